//! Reservations in every state that a small ring reaches, from empty and from full.
//!
//! What must hold is told of the disk: of the places entries were written to, and of the headers they were written with.
//! What a durable flush entry needs is never written over and holds everything pinned; what was granted finds its room,
//! whatever else happens; and a full journal always gets empty again.

use super::super::ring::{Bucket, Limits, RingDevice};
use super::*;
use alloc::format;
use alloc::string::String;
use core::time::Duration;
use moraine_format::journal::{Entry, item_bytes};
use moraine_format::{Pos, Tree};
use moraine_sim::explore::{Core, expect_a_fault, expect_all_to_hold};
use std::vec;

const TAG: u64 = 77;
/// Four buckets of four blocks, of which an entry takes at most two and a commit at most one.
const BUCKETS: u64 = 4;
const BUCKET_BYTES: u64 = 16 << 10;
/// Bounds on what is not written back: one that the ring reaches first, and one that is reached before the ring is full.
const DIRTY_MUCH: u64 = 1 << 20;
const DIRTY_LITTLE: u64 = 12 << 10;
/// Entries that are there from the beginning in the fuller ring, of nine that it holds.
const FILLED: usize = 5;
/// Reservations kept at a time.
const KEPT_MAX: usize = 2;
const NOW: Instant = Instant(0);
/// Rounds in which a journal that nobody pins gets empty.
const DRAIN_ROUNDS: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Reserve and append in one step, if there is room: as much as a commit may have, or little.
    Commit(Class, Size),
    /// Reserve, and keep it.
    Reserve(Class),
    /// Append what was reserved.
    Append,
    /// Give back what was reserved.
    Drop,
    /// Somebody waits for everything to be durable.
    Sync,
    /// The next entry is written.
    Write,
    /// A write is done: the older or the newer one.
    Written(usize),
    /// What the oldest pinned entry held is written back.
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Small,
    Large,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Whoever asks gets room.
    GrantsAll,
    /// A pin goes at once.
    ReleasedEarly,
    /// Buckets are used again when the entry that would free them is submitted.
    FreedEarly,
}

/// An entry, as the disk has it.
#[derive(Clone, Copy, Debug)]
struct OnDisk {
    seq: u64,
    at: u64,
    len: u64,
    flush: bool,
    last_seq: u64,
}

struct Small {
    fault: Fault,
    state: State,
    /// Reservations that are kept.
    kept: Vec<usize>,
    keys: u64,
    under_way: Vec<(OnDisk, Buf)>,
    disk: Vec<OnDisk>,
    /// Pinned entries, and after which entry the pin goes once it was released.
    pins: Vec<(u64, Option<u64>)>,
    /// Steps from the beginning: to begin again.
    path: Vec<Step>,
    dirty_max: u64,
}

impl Small {
    /// With the ring more than half full, or empty under a tight bound.
    fn new(fault: Fault, dirty_max: u64) -> Small {
        let bucket = |n| Bucket { start: n * BUCKET_BYTES, newest: Seq::ZERO, filled: 0 };
        let device = RingDevice {
            index: 0,
            bucket_bytes: BUCKET_BYTES,
            buckets: (0..BUCKETS).map(bucket).collect(),
            current: None,
            failed: false,
            free: 0,
        };
        let ring = Ring::new(vec![device], 1, Limits { transfer: 1 << 20, physical_block: 512 }, Seq(1));
        let options = Options { dirty_bytes_max: dirty_max, idle_after: Duration::from_secs(1) };
        let start =
            Start { pool_tag: TAG, epoch: 1, next_seq: Seq(1), prev: (Seq::ZERO, 0), dirty: VecDeque::new() };
        let state = State::new(options, ring, start).expect("there is memory for buffers");
        let mut small = Small {
            fault,
            state,
            kept: Vec::new(),
            keys: 0,
            under_way: Vec::new(),
            disk: Vec::new(),
            pins: Vec::new(),
            path: Vec::new(),
            dirty_max,
        };
        let filled = match fault {
            _ if dirty_max == DIRTY_LITTLE => 0,
            Fault::ReleasedEarly => 0,
            Fault::GrantsAll => FILLED + 3,
            Fault::None | Fault::FreedEarly => FILLED,
        };
        for _ in 0..filled {
            for step in [Step::Commit(Class::Normal, Size::Large), Step::Sync, Step::Write, Step::Written(0)]
            {
                small.go(step).expect("one after another");
            }
        }
        small
    }

    fn bytes(&self, size: Size) -> usize {
        match size {
            Size::Small => item_bytes(100),
            Size::Large => self.state.ring.reservation_max() / 8 * 8,
        }
    }

    fn grant(&mut self, class: Class, bytes: usize) -> bool {
        if self.fault != Fault::GrantsAll {
            return self.state.try_grant(class, bytes, None);
        }
        self.state.reserved_ring += self.state.charge(bytes);
        self.state.reserved_items += bytes as u64;
        let need = self.state.ring.room_for(bytes) as u64;
        *self.state.needs.entry(need).or_default() += 1;
        true
    }

    fn has_room(&mut self, class: Class, size: Size) -> bool {
        let bytes = self.bytes(size);
        let granted = self.state.try_grant(class, bytes, None);
        if granted {
            self.state.ungrant(bytes);
        }
        granted
    }

    fn append(&mut self, bytes: usize) {
        let seq = self.state.bind(bytes, NOW);
        self.keys += 1;
        let value = vec![7; bytes - item_bytes(0)];
        let item = Item::put(Tree::Inodes, 0, Pos::new(0, self.keys, 0), &value);
        self.state.push(&[item], bytes);
        self.state.pins.hold(seq);
        self.pins.push((seq.0, None));
        if self.fault == Fault::ReleasedEarly {
            let flushed = self.state.flushed;
            self.state.pins.release(seq, Seq::ZERO, flushed);
        }
    }

    fn write(&mut self) -> Result<(), String> {
        let Some(write) = self.state.next_write(NOW, |_| true) else { return Ok(()) };
        let entry = Entry::parse(&write.buf, TAG).map_err(|e| format!("an entry is {e}"))?;
        let header = entry.header;
        let (_, at) = write.placement.copies[0];
        let new = OnDisk {
            seq: write.seq.0,
            at,
            len: write.buf.len() as u64,
            flush: write.flush,
            last_seq: header.last_seq.0,
        };
        // Whatever of it arrives: what recovery may come to read stays.
        for old in self.disk.iter().filter(|old| old.at < new.at + new.len && new.at < old.at + old.len) {
            if old.seq >= self.needed() {
                return Err(format!("entry {} is written over entry {}, which is needed", new.seq, old.seq));
            }
        }
        self.disk.retain(|old| old.at >= new.at + new.len || new.at >= old.at + old.len);
        if self.fault == Fault::FreedEarly && new.flush {
            self.state.ring.needed_from(Seq(new.last_seq));
        }
        self.disk.push(new);
        self.under_way.push((new, write.buf));
        Ok(())
    }

    /// The oldest entry that recovery reads if it ends with the newest flush entry that is durable.
    fn needed(&self) -> u64 {
        let durable = self.disk.iter().filter(|e| e.flush && e.seq <= self.durable());
        durable.max_by_key(|e| e.seq).map_or(0, |e| e.last_seq)
    }

    /// Entries become durable in order.
    fn durable(&self) -> u64 {
        let first_under_way = self.under_way.iter().map(|(e, _)| e.seq).min();
        first_under_way.map_or(u64::MAX, |seq| seq - 1)
    }

    fn written(&mut self, which: usize) -> Result<(), String> {
        let before = self.durable();
        let (entry, buf) = self.under_way.remove(which);
        self.state.written(Seq(entry.seq), &[], buf);
        let now = self.durable();
        for flush in self.disk.iter().filter(|e| e.flush && e.seq > before && e.seq <= now) {
            let kept =
                |(pin, after): &&(u64, Option<u64>)| *pin <= flush.seq && after.is_none_or(|a| a > flush.seq);
            if let Some((pin, _)) = self.pins.iter().filter(kept).find(|(pin, _)| *pin < flush.last_seq) {
                return Err(format!("entry {} says that {pin} is not needed, which is pinned", flush.seq));
            }
        }
        let durable = self.state.flushed.0;
        self.pins.retain(|(_, after)| after.is_none_or(|a| a > durable));
        Ok(())
    }

    fn go(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Commit(class, size) => {
                let bytes = self.bytes(size);
                if self.grant(class, bytes) {
                    self.append(bytes);
                }
            }
            Step::Reserve(class) => {
                let bytes = self.bytes(Size::Large);
                let granted = self.grant(class, bytes);
                self.kept.extend(granted.then_some(bytes));
            }
            Step::Append => {
                let bytes = self.kept.pop().ok_or("nothing is reserved")?;
                self.append(bytes);
            }
            Step::Drop => {
                let bytes = self.kept.pop().ok_or("nothing is reserved")?;
                self.state.ungrant(bytes);
            }
            Step::Sync => drop(self.state.want(Seq(u64::MAX), NOW)),
            Step::Write => self.write()?,
            Step::Written(which) => self.written(which)?,
            Step::Release => {
                let after = self.state.last_appended();
                let flushed = self.state.flushed;
                let pin =
                    self.pins.iter_mut().find(|(_, after)| after.is_none()).ok_or("nothing is pinned")?;
                pin.1 = Some(after.0);
                let seq = Seq(pin.0);
                if self.fault != Fault::ReleasedEarly {
                    self.state.pins.release(seq, after, flushed);
                }
                self.pins.retain(|(_, after)| after.is_none_or(|a| a > flushed.0));
            }
        }
        let dirty = self.state.dirty_now();
        if dirty > self.dirty_max {
            return Err(format!("{dirty} bytes are to be recovered"));
        }
        Ok(())
    }

    /// Once nothing is kept or pinned, everybody gets room.
    fn drain(mut self) -> Result<(), String> {
        while self.pins.iter().any(|(_, after)| after.is_none()) {
            self.go(Step::Release)?;
        }
        for _ in 0..DRAIN_ROUNDS {
            self.state.ask_to_publish();
            self.go(Step::Write)?;
            while !self.under_way.is_empty() {
                self.go(Step::Written(0))?;
            }
        }
        let room = self.has_room(Class::Normal, Size::Large);
        if room { Ok(()) } else { Err(format!("nobody gets room any more: {}", self.state)) }
    }
}

impl Core for Small {
    type Step = Step;
    type Key = String;

    fn steps(&self) -> Vec<Step> {
        let mut steps = vec![
            Step::Commit(Class::Normal, Size::Small),
            Step::Commit(Class::Normal, Size::Large),
            Step::Commit(Class::Interior, Size::Large),
            Step::Sync,
            Step::Write,
        ];
        if !self.kept.is_empty() {
            steps.extend([Step::Append, Step::Drop]);
        }
        if self.kept.len() < KEPT_MAX {
            steps.extend([Step::Reserve(Class::Interior), Step::Reserve(Class::Normal)]);
        }
        steps.extend((0..self.under_way.len()).map(Step::Written));
        steps.extend(self.pins.iter().any(|(_, after)| after.is_none()).then_some(Step::Release));
        steps
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        self.go(*step)?;
        self.path.push(*step);
        if !self.kept.is_empty() || !self.under_way.is_empty() {
            return Ok(());
        }
        let mut again = Small::new(self.fault, self.dirty_max);
        self.path.iter().try_for_each(|step| again.go(*step))?;
        again.drain()
    }

    fn key(&self) -> String {
        let s = &self.state;
        let open = s.open.as_ref().map(|o| (o.seq, o.used, o.promised, o.placement.clone()));
        let closed: Vec<_> = s.closed.iter().map(|c| (c.seq, c.used, c.placement.clone())).collect();
        let in_flight: Vec<_> =
            s.in_flight.iter().map(|f| (f.seq, f.last_seq, f.flush, f.plain, f.written)).collect();
        let held = (s.spare.len(), s.reserved_ring, s.reserved_items, &s.needs);
        let seqs = (s.next_seq, s.last_appended, s.flush_started, s.last_seq_started, s.flushed);
        let rest = (&s.ring, &s.wants, s.publish, s.last_sync.is_some(), &s.dirty, s.dirty_bytes);
        format!(
            "{open:?} {closed:?} {in_flight:?} {held:?} {seqs:?} {rest:?} {:?} {:?}",
            self.pins, self.kept
        )
    }
}

#[test]
fn what_is_granted_finds_room_and_nothing_needed_is_written_over() {
    let ring = expect_all_to_hold("reservations in a filled ring", || Small::new(Fault::None, DIRTY_MUCH), 8);
    let dirty = expect_all_to_hold("reservations, much dirty", || Small::new(Fault::None, DIRTY_LITTLE), 8);
    assert!(ring.states + dirty.states > 3_000, "{ring}, {dirty}");
}

#[test]
fn a_journal_with_a_fault_is_noticed() {
    for (name, fault) in [
        ("a grant to whoever asks", Fault::GrantsAll),
        ("a pin that goes at once", Fault::ReleasedEarly),
        ("a bucket freed early", Fault::FreedEarly),
    ] {
        expect_a_fault(name, || Small::new(fault, DIRTY_MUCH), 12);
    }
}
