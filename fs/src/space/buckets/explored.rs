//! The life of buckets in every state that a disk of three reaches: filled, referred to, emptied, read, freed, filled.
//!
//! What must hold is told of bytes: nothing is put where a crash at any time might still lead to what was there before,
//! nor where somebody reads or writes.

use super::*;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use moraine_sim::explore::{Core, expect_a_fault, expect_all_to_hold};

const BUCKETS: u64 = 3;
const BUCKET_BYTES: u64 = 2 * BLOCK_SIZE as u64;
/// Places being written, and being read, at a time.
const WRITERS_MAX: usize = 2;
const READERS_MAX: usize = 1;
/// Commits.
const SEQ_MAX: u64 = 7;
const WRITER: Writer = Writer::Data(DataKind::User);

/// A block: its bucket, the bucket's generation, and its offset.
type Block = (u64, u32, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Space is carved for a write.
    Carve,
    /// The oldest write is done, and a commit refers to it; or it comes to nothing.
    Commit,
    GiveUp,
    /// A commit takes a reference away.
    Drop(Block),
    Read(Block),
    EndRead,
    /// Everything committed is durable.
    Flush,
    /// An empty bucket is discarded and free.
    Free(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A bucket is freed before the commit that emptied it is durable.
    FreedBeforeDurable,
    /// Who reads holds nothing.
    ReaderNotHeld,
    /// Who writes holds nothing.
    WriterNotHeld,
}

struct Disk {
    fault: Fault,
    buckets: Buckets,
    keys: BTreeMap<u64, Alloc>,
    seq: u64,
    durable: u64,
    /// What is referred to after each commit since the last that is durable.
    history: Vec<(u64, BTreeSet<Block>)>,
    writing: Vec<Block>,
    reading: Vec<Block>,
}

impl Disk {
    fn new(fault: Fault) -> Disk {
        let geometry = Geometry { bucket_bytes: BUCKET_BYTES, buckets: BUCKETS, usable: BUCKETS };
        let mut disk = Disk {
            fault,
            buckets: Buckets::new(&[geometry], BLOCK_SIZE as u64),
            keys: (0..BUCKETS).map(|b| (b, Alloc::UNUSED)).collect(),
            seq: 0,
            durable: 0,
            history: Vec::from([(0, BTreeSet::new())]),
            writing: Vec::new(),
            reading: Vec::new(),
        };
        // All of the disk is for data here.
        disk.buckets.members[0].metadata_reserve = 0;
        disk
    }

    fn referred(&self) -> BTreeSet<Block> {
        self.history.last().expect("there is always a newest").1.clone()
    }

    /// What a recovery after a crash may lead to.
    fn needed(&self) -> BTreeSet<Block> {
        self.history.iter().flat_map(|(_, refs)| refs.iter().copied()).collect()
    }

    fn carve(&mut self) -> Result<(), String> {
        let place = loop {
            match self.buckets.carve(WRITER, BLOCK_SIZE as u64) {
                Ok(place) => break place,
                Err(Short::Full) => return Ok(()),
                Err(Short::Window(device)) => {
                    let taken = |b: u64| self.buckets.is_held(device, b);
                    let free = self.keys.iter().filter(|(b, a)| a.kind == BucketKind::Free && !taken(**b));
                    let free: Vec<(u64, u32)> = free.map(|(b, a)| (*b, a.generation)).collect();
                    if free.is_empty() {
                        return Ok(());
                    }
                    self.buckets.members[0].window.extend(free);
                }
            }
        };
        let bucket = self.buckets.bucket_of(&place);
        let block = (bucket, place.generation, place.offset);
        let there = |b: &&Block| b.2 == block.2;
        if let Some(old) = self.needed().iter().find(there) {
            return Err(format!("a write goes to {block:?}, and after a crash {old:?} may count"));
        }
        if self.reading.iter().chain(&self.writing).any(|b| b.2 == block.2) {
            return Err(format!("a write goes to {block:?}, which is in use"));
        }
        if place.generation != self.keys[&bucket].generation {
            return Err(format!("{block:?} is not of the bucket's generation"));
        }
        if self.fault == Fault::WriterNotHeld {
            self.buckets.release(0, bucket);
        }
        self.writing.push(block);
        Ok(())
    }

    fn change(&mut self, bucket: u64, change: impl FnOnce(&mut Alloc), refs: BTreeSet<Block>) {
        self.seq += 1;
        let before = self.keys[&bucket];
        let mut after = before;
        change(&mut after);
        self.keys.insert(bucket, after);
        self.buckets.follow(&[Transition { device: 0, bucket, before, after }]);
        let used = self.keys.values().filter(|a| a.kind != BucketKind::Free).count() as i64;
        self.buckets.set_usage(0, DeviceUsage { data_buckets: used, ..DeviceUsage::default() });
        self.history.push((self.seq, refs));
    }

    fn commit(&mut self) {
        let block = self.writing.remove(0);
        let mut refs = self.referred();
        refs.insert(block);
        let put =
            |a: &mut Alloc| (a.kind, a.live_bytes) = (BucketKind::User, a.live_bytes + BLOCK_SIZE as u64);
        self.change(block.0, put, refs);
        self.let_go(block.0);
    }

    fn let_go(&mut self, bucket: u64) {
        if self.fault != Fault::WriterNotHeld {
            self.buckets.release(0, bucket);
        }
    }

    fn free(&mut self, bucket: u64) -> Result<(), String> {
        let users = self.reading.iter().chain(&self.writing);
        let needed = self.needed();
        if let Some(block) = users.chain(&needed).find(|b| b.0 == bucket) {
            return Err(format!("{block:?} is discarded and still counts"));
        }
        let refs = self.referred();
        let free = |a: &mut Alloc| *a = Alloc { generation: a.generation + 1, ..Alloc::UNUSED };
        self.change(bucket, free, refs);
        Ok(())
    }
}

impl Core for Disk {
    type Step = Step;
    type Key = String;

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.writing.len() < WRITERS_MAX {
            steps.push(Step::Carve);
        }
        if !self.writing.is_empty() {
            steps.push(Step::GiveUp);
        }
        if !self.reading.is_empty() {
            steps.push(Step::EndRead);
        }
        if self.durable < self.seq {
            steps.push(Step::Flush);
        }
        let refs = self.referred();
        if self.reading.len() < READERS_MAX {
            steps.extend(refs.iter().copied().map(Step::Read));
        }
        if self.seq == SEQ_MAX {
            return steps;
        }
        steps.extend((!self.writing.is_empty()).then_some(Step::Commit));
        steps.extend(refs.iter().copied().map(Step::Drop));
        let durable = if self.fault == Fault::FreedBeforeDurable { u64::MAX } else { self.durable };
        let due = |(b, a): &(&u64, &Alloc)| {
            a.needs_discard() && self.buckets.may_be_freed((0, **b), a.seq_empty, durable)
        };
        steps.extend(self.keys.iter().filter(due).map(|(b, _)| Step::Free(*b)));
        steps
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Carve => self.carve()?,
            Step::Commit => self.commit(),
            Step::GiveUp => {
                let block = self.writing.remove(0);
                self.let_go(block.0);
            }
            Step::Drop(block) => {
                let mut refs = self.referred();
                refs.remove(&block);
                let seq = self.seq + 1;
                let take = |a: &mut Alloc| {
                    a.live_bytes -= BLOCK_SIZE as u64;
                    a.seq_empty = if a.live_bytes == 0 { seq } else { a.seq_empty };
                };
                self.change(block.0, take, refs);
            }
            Step::Read(block) => {
                self.reading.push(block);
                if self.fault != Fault::ReaderNotHeld {
                    self.buckets.hold(0, block.0);
                }
            }
            Step::EndRead => {
                let block = self.reading.remove(0);
                if self.fault != Fault::ReaderNotHeld {
                    self.buckets.release(0, block.0);
                }
            }
            Step::Flush => {
                self.durable = self.seq;
                self.history.drain(..self.history.len() - 1);
            }
            Step::Free(bucket) => self.free(bucket)?,
        }
        let fresh = self.buckets.claims.values().filter(|c| c.fresh).count() as u64;
        let free = self.keys.values().filter(|a| a.kind == BucketKind::Free).count() as u64;
        if self.buckets.fresh != fresh || self.buckets.unclaimed() != free.saturating_sub(fresh) {
            return Err(format!(
                "{fresh} of {free} free buckets are claimed, it counts {}",
                self.buckets.fresh
            ));
        }
        Ok(())
    }

    fn key(&self) -> String {
        let m = &self.buckets.members[0];
        let open = m.open.iter().flatten().map(|o| (o.bucket, o.generation, o.filled));
        let open: Vec<_> = open.collect();
        let claims: Vec<_> = self.buckets.claims.iter().map(|(at, c)| (at, c.holders, c.fresh)).collect();
        let keys: Vec<_> =
            self.keys.values().map(|a| (a.generation, a.kind as u8, a.live_bytes, a.seq_empty)).collect();
        let known = (&self.history, &self.writing, &self.reading, self.seq, self.durable);
        format!("{open:?} {:?} {claims:?} {keys:?} {known:?}", m.window)
    }
}

#[test]
fn nothing_is_put_where_something_may_still_count() {
    let explored = expect_all_to_hold("buckets", || Disk::new(Fault::None), 13);
    assert!(explored.states > 10_000, "{explored}");
}

#[test]
fn buckets_with_a_fault_are_noticed() {
    for (name, fault) in [
        ("a bucket freed before that is durable", Fault::FreedBeforeDurable),
        ("a reader that holds nothing", Fault::ReaderNotHeld),
        ("a writer that holds nothing", Fault::WriterNotHeld),
    ] {
        expect_a_fault(name, || Disk::new(fault), 14);
    }
}
