//! Recounts what derives from keys: buckets, free ranges, backpointers and counters.
//!
//! Buckets are taken a window at a time, so that what refers to a window's buckets fits memory; for each window
//! everything that refers to anything is walked once. A repair first sees to it that no two keys refer to the same
//! bytes, then corrects what derives, and recounts until a whole count finds nothing: its own commits have nodes
//! written, which moves what they refer to.

use super::mend::Changes;
use super::walk::{Found, Keys};
use super::{Check, FindingKind};
use crate::engine::Mode;
use crate::space::triggers::{self, Reference};
use crate::vfs::{FsError, FsResult};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use moraine_format::space::{
    Alloc, Backpointer, BucketKind, DeviceUsage, PoolUsage, bucket_pos, fragmented_bucket, fragmented_pos,
    free_range_value, need_discard_bucket, need_discard_pos, parse_free_range,
};
use moraine_format::{Pos, Tree};

/// References held in memory at a time, about.
const WINDOW_REFERENCES: u64 = 1 << 18;
/// Buckets of a window, at most.
const WINDOW_BUCKETS: u64 = 1 << 18;
/// Parts of a device that references are counted by, to cut it into windows.
const SLICES: u64 = 4096;
/// Recounts until a repair gives up.
const ROUNDS_MAX: usize = 8;

/// What keys say of a bucket.
#[derive(Default)]
pub(super) struct Counted {
    live: u64,
    kind: Option<BucketKind>,
    pub(super) generation: u32,
}

/// Everything that refers to the buckets of a window.
#[derive(Default)]
pub(super) struct Truth {
    pub(super) buckets: BTreeMap<u64, Counted>,
    /// References by the byte offset they begin at.
    pub(super) places: BTreeMap<u64, Vec<Reference>>,
}

/// Some buckets of a device.
pub(super) struct Window {
    pub(super) device: u8,
    pub(super) buckets: Range<u64>,
}

/// How far the expected free ranges of a device have been compared.
struct Free {
    device: u8,
    /// Everything before this bucket has been compared.
    cursor: u64,
    /// The free range that has begun and not ended.
    open: Option<Range<u64>>,
}

pub(super) async fn check(check: &mut Check<'_>) -> FsResult<()> {
    check.engine.pause().await;
    let windows = windows(check).await?;
    super::overlaps::check(check, &windows).await?;
    for round in 0..ROUNDS_MAX {
        check.engine.pause().await;
        let mut count = Recount { check, told: round == 0 || round + 1 == ROUNDS_MAX, off: 0 };
        count.all(&windows).await?;
        let off = count.off;
        if off == 0 {
            // In the same synchronous step as the last look: nothing has changed since.
            if check.engine.inner.mode.get() == Mode::Mending {
                check.engine.end_mending().await?;
            }
            return Ok(());
        }
        if !check.repairs() {
            return Ok(());
        }
    }
    moraine_platform::error!("fs", "what is counted does not settle");
    Err(FsError::Corrupt)
}

/// Cuts all devices into windows.
async fn windows(check: &mut Check<'_>) -> FsResult<Vec<Window>> {
    let geometry = check.engine.inner.geometry.clone();
    let per_slice = |device: usize| geometry[device].buckets.div_ceil(SLICES).max(1);
    let mut slices: Vec<Vec<u64>> = (0..geometry.len())
        .map(|d| alloc::vec![0; geometry[d].buckets.div_ceil(per_slice(d)) as usize])
        .collect();
    let bytes: Vec<u64> = geometry.iter().map(|g| g.bucket_bytes).collect();
    check
        .each_reference(|_, r| {
            let device = r.device as usize;
            let Some(bucket_bytes) = bytes.get(device) else { return };
            let slice = r.offset / bucket_bytes / per_slice(device);
            if let Some(count) = slices[device].get_mut(slice as usize) {
                *count += 1;
            }
        })
        .await?;
    let mut windows = Vec::new();
    for (device, slices) in slices.iter().enumerate() {
        let (mut first, mut held, step) = (0, 0, per_slice(device));
        for (n, count) in slices.iter().enumerate() {
            let at = n as u64 * step;
            if at > first && (held + count > WINDOW_REFERENCES || at - first >= WINDOW_BUCKETS) {
                windows.push(Window { device: device as u8, buckets: first..at });
                (first, held) = (at, 0);
            }
            held += count;
        }
        windows.push(Window { device: device as u8, buckets: first..geometry[device].buckets });
    }
    Ok(windows)
}

/// Gathers what refers to a window's buckets; calls `stray` with what refers to no place that can be.
pub(super) async fn gather(
    check: &mut Check<'_>,
    window: &Window,
    mut stray: impl FnMut(&mut Check<'_>, &Reference),
) -> FsResult<Truth> {
    let mut truth = Truth::default();
    check
        .each_reference(|check, r| {
            let geometry = check.engine.inner.geometry.get(r.device as usize);
            let Some(bucket) = geometry.and_then(|g| g.bucket_of(r.offset, r.len as u64)) else {
                return stray(check, r);
            };
            if r.device != window.device || !window.buckets.contains(&bucket) {
                return;
            }
            let counted = truth.buckets.entry(bucket).or_default();
            counted.live += r.len as u64;
            if r.kind == BucketKind::Btree || counted.kind.is_none() {
                counted.kind = Some(r.kind);
            }
            counted.generation = counted.generation.max(r.generation);
            truth.places.entry(r.offset).or_default().push(*r);
        })
        .await?;
    Ok(truth)
}

struct Recount<'r, 'c> {
    check: &'r mut Check<'c>,
    /// What is off is reported.
    told: bool,
    /// How much was off.
    off: u64,
}

impl Recount<'_, '_> {
    fn found(&mut self, kind: FindingKind, text: impl FnOnce() -> String) {
        self.off += 1;
        if self.told {
            self.check.found(kind, text());
        }
    }

    async fn all(&mut self, windows: &[Window]) -> FsResult<()> {
        let devices = self.check.engine.inner.geometry.len();
        let mut usages = alloc::vec![DeviceUsage::default(); devices];
        let mut free: Option<Free> = None;
        let mut later = Changes::new();
        for window in windows {
            let mut changes = Changes::new();
            if free.as_ref().is_none_or(|f| f.device != window.device) {
                if let Some(done) = free.take() {
                    self.last_range(done, &mut changes).await?;
                }
                free = Some(Free { device: window.device, cursor: 0, open: None });
            }
            let truth = gather(self.check, window, |_, _| ()).await?;
            let allocs = self.buckets(window, &truth, &mut changes).await?;
            let free = free.as_mut().expect("set above");
            self.free_ranges(window, &allocs, free, &mut changes).await?;
            self.need_discard(window, &allocs, &mut changes).await?;
            self.fragmented(window, &allocs, &mut changes).await?;
            self.backpointers(window, &truth, &mut changes).await?;
            for alloc in allocs.values() {
                triggers::count(&mut usages[window.device as usize], &Alloc::UNUSED, alloc);
            }
            self.correct(changes, &mut later).await?;
        }
        if let Some(done) = free.take() {
            self.last_range(done, &mut later).await?;
        }
        self.foreign(devices, &mut later).await?;
        self.counters(&usages, &mut later).await?;
        self.check.change(&later).await
    }

    /// Commits corrections at once if they are many; few wait, so that nothing is written while the rest is counted.
    async fn correct(&mut self, changes: Changes, later: &mut Changes) -> FsResult<()> {
        later.extend(changes);
        if later.len() as u64 > WINDOW_REFERENCES {
            let changes = core::mem::take(later);
            self.check.change(&changes).await?;
        }
        Ok(())
    }

    /// Compares alloc keys; returns what each bucket with a key should be.
    async fn buckets(
        &mut self,
        window: &Window,
        truth: &Truth,
        changes: &mut Changes,
    ) -> FsResult<BTreeMap<u64, Alloc>> {
        let device = window.device;
        let mut allocs: BTreeMap<u64, Alloc> = BTreeMap::new();
        let mut keys = Keys::within(Tree::Alloc, 0, keys_of(window));
        while let Some((at, value)) = keys.next(self.check).await? {
            let bucket = at.offset;
            let usable = self.check.engine.inner.is_usable_bucket(device, bucket);
            let have = match Alloc::parse(&value) {
                Ok(have) if usable && at.snapshot == 0 => have,
                _ => {
                    self.found(FindingKind::AllocWrong, || {
                        format!("bucket {device}:{bucket}: no such key can be")
                    });
                    changes.push(((Tree::Alloc, at), None));
                    continue;
                }
            };
            let counted = truth.buckets.get(&bucket);
            let mut should = Alloc { live_bytes: counted.map_or(0, |c| c.live), ..have };
            if let Some(counted) = counted {
                if have.kind == BucketKind::Free || counted.kind == Some(BucketKind::Btree) {
                    should.kind = counted.kind.unwrap_or(BucketKind::User);
                } else if have.kind == BucketKind::Btree {
                    should.kind = BucketKind::User;
                }
                should.generation = counted.generation;
                if have.generation != counted.generation {
                    self.found(FindingKind::GenerationWrong, || format!("bucket {device}:{bucket}"));
                }
            }
            if should != have {
                self.found(FindingKind::AllocWrong, || {
                    let (kind, live) = (have.kind.name(), have.live_bytes);
                    format!("bucket {device}:{bucket}: {kind} {live} bytes, counted {}", should.live_bytes)
                });
                changes.push(((Tree::Alloc, at), Some(should.to_bytes().as_slice().into())));
            }
            allocs.insert(bucket, should);
        }
        for (bucket, counted) in truth.buckets.iter() {
            // What lies in buckets that none can be in was reported with its key.
            if allocs.contains_key(bucket) || !self.check.engine.inner.is_usable_bucket(device, *bucket) {
                continue;
            }
            let should = Alloc {
                kind: counted.kind.unwrap_or(BucketKind::User),
                generation: counted.generation,
                live_bytes: counted.live,
                ..Alloc::UNUSED
            };
            let live = counted.live;
            self.found(FindingKind::AllocWrong, || {
                format!("bucket {device}:{bucket}: no key, counted {live}")
            });
            let at = bucket_pos(device, *bucket);
            changes.push(((Tree::Alloc, at), Some(should.to_bytes().as_slice().into())));
            allocs.insert(*bucket, should);
        }
        Ok(allocs)
    }

    /// Compares the free ranges that end in a window.
    async fn free_ranges(
        &mut self,
        window: &Window,
        allocs: &BTreeMap<u64, Alloc>,
        free: &mut Free,
        changes: &mut Changes,
    ) -> FsResult<()> {
        let ranges = self.check.engine.inner.usable_ranges();
        let ranges = ranges.into_iter().find(|(d, _)| *d == window.device).map_or(Vec::new(), |(_, r)| r);
        for (first, end) in ranges {
            let (first, stop) = (first.max(window.buckets.start), end.min(window.buckets.end));
            if first >= stop {
                continue;
            }
            let mut from = first;
            let used = allocs.range(first..stop).filter(|(_, a)| a.kind != BucketKind::Free).map(|(b, _)| *b);
            for bucket in used.chain([stop]) {
                if from < bucket {
                    match &mut free.open {
                        Some(open) if open.end == from => open.end = bucket,
                        _ => {
                            self.range_ended(free, changes).await?;
                            free.open = Some(from..bucket);
                        }
                    }
                }
                from = bucket + 1;
            }
        }
        Ok(())
    }

    /// Compares the free range that was being put together, and all keys before it.
    async fn range_ended(&mut self, free: &mut Free, changes: &mut Changes) -> FsResult<()> {
        let Some(range) = free.open.take() else { return Ok(()) };
        let (device, last) = (free.device, range.end - 1);
        let mut right = false;
        let from = Pos::new(device as u64, free.cursor, 0);
        let mut keys = Keys::within(Tree::Freespace, 0, from..=Pos::new(device as u64, last, u32::MAX));
        while let Some((at, value)) = keys.next(self.check).await? {
            if at == bucket_pos(device, last) && parse_free_range(at, &value) == Ok(range.start) {
                right = true;
            } else {
                self.found(FindingKind::FreeRangeWrong, || format!("a range ends at {device}:{}", at.offset));
                changes.push(((Tree::Freespace, at), None));
            }
        }
        if !right {
            self.found(FindingKind::FreeRangeWrong, || {
                format!("{device}:{}..={last} is missing", range.start)
            });
            // A wrong key at the same place was put on the list to go: this one counts.
            changes.retain(|(key, _)| *key != (Tree::Freespace, bucket_pos(device, last)));
            let value = free_range_value(range.start).as_slice().into();
            changes.push(((Tree::Freespace, bucket_pos(device, last)), Some(value)));
        }
        free.cursor = range.end;
        Ok(())
    }

    async fn last_range(&mut self, mut free: Free, changes: &mut Changes) -> FsResult<()> {
        self.range_ended(&mut free, changes).await?;
        let device = free.device;
        let rest = Pos::new(device as u64, free.cursor, 0)..=Pos::new(device as u64, u64::MAX, u32::MAX);
        let mut keys = Keys::within(Tree::Freespace, 0, rest);
        while let Some((at, _)) = keys.next(self.check).await? {
            self.found(FindingKind::FreeRangeWrong, || format!("a range ends at {device}:{}", at.offset));
            changes.push(((Tree::Freespace, at), None));
        }
        Ok(())
    }

    async fn need_discard(
        &mut self,
        window: &Window,
        allocs: &BTreeMap<u64, Alloc>,
        changes: &mut Changes,
    ) -> FsResult<()> {
        let device = window.device;
        let mut have = BTreeSet::new();
        let mut keys = Keys::all(Tree::NeedDiscard, 0);
        while let Some((at, _)) = keys.next(self.check).await? {
            let (of, bucket) = need_discard_bucket(at);
            if of != device || !window.buckets.contains(&bucket) {
                continue;
            }
            let alloc = allocs.get(&bucket);
            if alloc.is_some_and(|a| a.needs_discard() && need_discard_pos(a.seq_empty, device, bucket) == at)
            {
                have.insert(bucket);
            } else {
                self.found(FindingKind::NeedDiscardWrong, || format!("stray key {at}"));
                changes.push(((Tree::NeedDiscard, at), None));
            }
        }
        for (bucket, alloc) in allocs.iter().filter(|(b, a)| a.needs_discard() && !have.contains(*b)) {
            self.found(FindingKind::NeedDiscardWrong, || format!("bucket {device}:{bucket} has none"));
            let at = need_discard_pos(alloc.seq_empty, device, *bucket);
            changes.push(((Tree::NeedDiscard, at), Some([].as_slice().into())));
        }
        Ok(())
    }

    async fn fragmented(
        &mut self,
        window: &Window,
        allocs: &BTreeMap<u64, Alloc>,
        changes: &mut Changes,
    ) -> FsResult<()> {
        let device = window.device;
        let bucket_bytes = self.check.engine.inner.geometry[device as usize].bucket_bytes;
        let mut have = BTreeSet::new();
        let mut keys = Keys::all(Tree::Lru, 0);
        while let Some((at, _)) = keys.next(self.check).await? {
            let (of, bucket) = fragmented_bucket(at);
            if of != device || !window.buckets.contains(&bucket) {
                continue;
            }
            let should = allocs.get(&bucket).and_then(|a| fragmented_pos(a, device, bucket, bucket_bytes));
            if should == Some(at) {
                have.insert(bucket);
            } else {
                self.found(FindingKind::FragmentedWrong, || format!("stray key {at}"));
                changes.push(((Tree::Lru, at), None));
            }
        }
        for (bucket, alloc) in allocs.iter().filter(|(b, _)| !have.contains(*b)) {
            if let Some(at) = fragmented_pos(alloc, device, *bucket, bucket_bytes) {
                self.found(FindingKind::FragmentedWrong, || format!("bucket {device}:{bucket} is missing"));
                changes.push(((Tree::Lru, at), Some([].as_slice().into())));
            }
        }
        Ok(())
    }

    async fn backpointers(&mut self, window: &Window, truth: &Truth, changes: &mut Changes) -> FsResult<()> {
        let device = window.device;
        let bytes = self.check.engine.inner.geometry[device as usize].bucket_bytes;
        let first = Pos::new(device as u64, window.buckets.start.saturating_mul(bytes), 0);
        let last =
            Pos::new(device as u64, window.buckets.end.saturating_mul(bytes).saturating_sub(1), u32::MAX);
        let mut have: BTreeMap<u64, Vec<Backpointer>> = BTreeMap::new();
        let mut taken = BTreeSet::new();
        let mut keys = Keys::within(Tree::Backpointers, 0, first..=last);
        while let Some((at, value)) = keys.next(self.check).await? {
            let wanted = truth.places.get(&at.offset);
            match Backpointer::parse(&value) {
                Ok(b)
                    if wanted.is_some_and(|w| w.iter().any(|r| r.from == b))
                        && !have.get(&at.offset).is_some_and(|h| h.contains(&b)) =>
                {
                    have.entry(at.offset).or_default().push(b);
                    taken.insert(at);
                }
                _ => {
                    self.found(FindingKind::BackpointerStray, || format!("{at}"));
                    changes.push(((Tree::Backpointers, at), None));
                }
            }
        }
        let usable = |r: &Reference| self.check.engine.inner.is_usable_bucket(device, r.offset / bytes);
        let missing: Vec<Reference> = truth
            .places
            .iter()
            .flat_map(|(offset, refs)| refs.iter().map(move |r| (offset, r)))
            .filter(|(offset, r)| usable(r) && !have.get(offset).is_some_and(|h| h.contains(&r.from)))
            .map(|(_, r)| *r)
            .collect();
        for r in missing {
            let (offset, from) = (r.offset, r.from);
            self.found(FindingKind::BackpointerMissing, || {
                format!("{device}:{offset} of {} {}", from.tree.name(), from.pos)
            });
            let mut numbers = (0..).map(|n| Pos::new(device as u64, offset, n));
            let at = numbers.find(|at| taken.insert(*at)).expect("fewer references than numbers");
            changes.retain(|(key, _)| *key != (Tree::Backpointers, at));
            changes.push(((Tree::Backpointers, at), Some(from.to_bytes().as_slice().into())));
        }
        Ok(())
    }

    /// Keys of space behind every device that there is.
    async fn foreign(&mut self, devices: usize, changes: &mut Changes) -> FsResult<()> {
        for (tree, kind) in [
            (Tree::Alloc, FindingKind::AllocWrong),
            (Tree::Freespace, FindingKind::FreeRangeWrong),
            (Tree::Backpointers, FindingKind::BackpointerStray),
        ] {
            let mut beyond: Vec<(Pos, Pos)> = Vec::new();
            for device in 0..devices {
                let g = self.check.engine.inner.geometry[device];
                let end = match tree {
                    Tree::Alloc => g.buckets,
                    Tree::Backpointers => g.buckets.saturating_mul(g.bucket_bytes),
                    // Compared to the end of the device already.
                    _ => continue,
                };
                let device = device as u64;
                beyond.push((Pos::new(device, end, 0), Pos::new(device, u64::MAX, u32::MAX)));
            }
            beyond.push((Pos::new(devices as u64, 0, 0), Pos::MAX));
            for (first, last) in beyond {
                let mut keys = Keys::within(tree, 0, first..=last);
                while let Some((at, _)) = keys.next(self.check).await? {
                    self.found(kind, || format!("{} {at}: no such place is there", tree.name()));
                    changes.push(((tree, at), None));
                }
            }
        }
        for (tree, kind) in
            [(Tree::NeedDiscard, FindingKind::NeedDiscardWrong), (Tree::Lru, FindingKind::FragmentedWrong)]
        {
            let mut keys = Keys::all(tree, 0);
            while let Some((at, _)) = keys.next(self.check).await? {
                let (device, bucket) = need_discard_bucket(at);
                let there = self.check.engine.inner.geometry.get(device as usize);
                if there.is_none_or(|g| bucket >= g.buckets) {
                    self.found(kind, || format!("{} {at}: no such bucket is there", tree.name()));
                    changes.push(((tree, at), None));
                }
            }
        }
        Ok(())
    }

    async fn counters(&mut self, usages: &[DeviceUsage], changes: &mut Changes) -> FsResult<()> {
        let mut known = BTreeSet::from([PoolUsage::pos()]);
        for (device, should) in usages.iter().enumerate() {
            let (device, at) = (device as u8, DeviceUsage::pos(device as u8));
            known.insert(at);
            let found = self.check.get(Tree::Accounting, at).await?;
            if matches!(found, Found::Unknown) {
                continue;
            }
            let value = found.value();
            let have = value.as_ref().map_or(Ok(DeviceUsage::default()), |v| DeviceUsage::parse(v));
            if have != Ok(*should) {
                self.found(FindingKind::UsageWrong, || {
                    format!("device {device}: {have:?}, counted {should:?}")
                });
                changes.push(((Tree::Accounting, at), Some(should.to_bytes().as_slice().into())));
            }
            if self.check.repairs() {
                self.check.engine.inner.state.borrow_mut().buckets.set_usage(device, *should);
            }
        }
        let mut inodes = 0i64;
        let mut keys = Keys::all(Tree::Inodes, 0);
        while keys.next(self.check).await?.is_some() {
            inodes += 1;
        }
        let found = self.check.get(Tree::Accounting, PoolUsage::pos()).await?;
        if !matches!(found, Found::Unknown) {
            let have = found.value().map_or(Ok(PoolUsage::default()), |v| PoolUsage::parse(&v));
            if have != Ok(PoolUsage { inodes }) {
                self.found(FindingKind::PoolUsageWrong, || format!("{have:?}, counted {inodes} inodes"));
                let value = PoolUsage { inodes }.to_bytes();
                changes.push(((Tree::Accounting, PoolUsage::pos()), Some(value.as_slice().into())));
            }
        }
        let mut keys = Keys::all(Tree::Accounting, 0);
        while let Some((at, _)) = keys.next(self.check).await? {
            if !known.contains(&at) {
                self.found(FindingKind::UsageWrong, || format!("{at}: nothing is counted there"));
                changes.push(((Tree::Accounting, at), None));
            }
        }
        Ok(())
    }
}

/// The alloc keys of a window.
fn keys_of(window: &Window) -> core::ops::RangeInclusive<Pos> {
    let last = window.buckets.end.saturating_sub(1);
    bucket_pos(window.device, window.buckets.start)..=Pos::new(window.device as u64, last, u32::MAX)
}
