//! Buckets in memory: which are claimed, which are being filled, and what space is promised to whom.

use super::triggers::Transition;
use crate::btree::{Miss, Table};
use crate::engine::{DataKind, Placed};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use moraine_format::space::{Alloc, BucketKind, DeviceUsage, bucket_pos, parse_free_range};
use moraine_format::{Pos, Tree};
use moraine_platform::BLOCK_SIZE;

/// Free buckets looked up ahead of need, per device.
const WINDOW_MAX: usize = 64;
/// Buckets of a device that only metadata may take: what write-back of nodes, deletes and the journal's reclaim need
/// when everything else is full. The greatest of this, of room for [`METADATA_NODES_MIN`], and of [`METADATA_SHARE`].
const METADATA_BUCKETS_MIN: u64 = 8;
/// Nodes for which metadata's reserve has room: a few batches of write-back, each node in two parts, in buckets that come
/// back only when all nodes in them are gone.
const METADATA_NODES_MIN: u64 = 48;
/// Metadata's reserve as a share of the device: one part in so many.
const METADATA_SHARE: u64 = 64;

/// Below this part of free buckets, besides metadata's reserve, fragmented ones are collected: one part in so many.
const LOW_SHARE: u64 = 32;

/// How a device is cut into buckets. Bucket `n` begins at byte `n × bucket_bytes`; those that hold superblocks or the
/// journal are in no free range and in no counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) bucket_bytes: u64,
    /// Buckets in all, those of superblocks and journal included.
    pub(crate) buckets: u64,
    /// Buckets that can hold data and nodes.
    pub(crate) usable: u64,
}

impl Geometry {
    /// The bucket that holds all of `offset .. offset + len`, if there is one.
    pub(crate) fn bucket_of(&self, offset: u64, len: u64) -> Option<u64> {
        let bucket = offset / self.bucket_bytes;
        let last = offset.checked_add(len.max(1) - 1)? / self.bucket_bytes;
        (bucket == last && bucket < self.buckets).then_some(bucket)
    }
}

/// What fills a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    Nodes,
    Data(DataKind),
}

impl Writer {
    const COUNT: usize = 3;

    fn slot(self) -> usize {
        match self {
            Writer::Nodes => 0,
            Writer::Data(DataKind::User) => 1,
            Writer::Data(DataKind::Moved) => 2,
        }
    }
}

/// A bucket being filled.
struct Open {
    bucket: u64,
    generation: u32,
    filled: u64,
}

struct Claim {
    holders: u32,
    /// Its alloc key still says free: nothing committed refers to it yet.
    fresh: bool,
}

struct Member {
    geometry: Geometry,
    window: VecDeque<(u64, u32)>,
    cursor: u64,
    open: [Option<Open>; Writer::COUNT],
    usage: DeviceUsage,
    /// Under repair: what is free for sure, and the only place that space comes from.
    spare: Option<VecDeque<(u64, u32)>>,
    /// Buckets that only metadata may take.
    metadata_reserve: u64,
    /// The device failed: nothing new is put there.
    failed: bool,
}

/// Buckets of each device that are free for sure, with their generations: where a repair writes.
pub(crate) type Spare = Vec<VecDeque<(u64, u32)>>;

/// Why space could not be had at once.
#[derive(Debug)]
pub(crate) enum Short {
    /// The window of this device is empty: look up free buckets, then ask again.
    Window(u8),
    /// There is no free bucket for this purpose: wait for discards, or give up.
    Full,
}

/// The buckets of all devices.
pub(crate) struct Buckets {
    members: Vec<Member>,
    claims: BTreeMap<(u8, u64), Claim>,
    fresh: u64,
    /// Bytes promised to writers.
    pub(crate) reserved: u64,
}

impl Buckets {
    pub(crate) fn new(geometry: &[Geometry], node_bytes: u64) -> Buckets {
        let members = geometry
            .iter()
            .map(|g| Member {
                geometry: *g,
                window: VecDeque::new(),
                cursor: 0,
                open: [const { None }; Writer::COUNT],
                usage: DeviceUsage::default(),
                spare: None,
                metadata_reserve: METADATA_BUCKETS_MIN
                    .max((METADATA_NODES_MIN * node_bytes).div_ceil(g.bucket_bytes))
                    .max(g.usable / METADATA_SHARE)
                    .min(g.usable / 4),
                failed: false,
            })
            .collect();
        Buckets { members, claims: BTreeMap::new(), fresh: 0, reserved: 0 }
    }

    /// Sets what the counters in the tree say; kept up to date by [`Buckets::committed`].
    pub(crate) fn set_usage(&mut self, device: u8, usage: DeviceUsage) {
        let member = &mut self.members[device as usize];
        member.usage = believable(usage, &member.geometry);
    }

    /// From now on space comes from `spare` alone.
    pub(crate) fn begin_spare(&mut self, spare: Spare) {
        self.close_all();
        for (member, spare) in self.members.iter_mut().zip(spare) {
            member.spare = Some(spare);
        }
    }

    /// Space comes from the free ranges again.
    pub(crate) fn end_spare(&mut self) {
        self.close_all();
        self.members.iter_mut().for_each(|m| m.spare = None);
    }

    /// Goes on in no bucket that is being filled, and forgets which ones were to be next.
    fn close_all(&mut self) {
        for device in 0..self.members.len() {
            let m = &mut self.members[device];
            m.window.clear();
            let open: Vec<u64> = m.open.iter_mut().filter_map(|o| Some(o.take()?.bucket)).collect();
            open.into_iter().for_each(|bucket| self.release(device as u8, bucket));
        }
    }

    fn free_buckets(&self, m: &Member) -> u64 {
        if m.failed {
            return 0;
        }
        let used = m.usage.btree_buckets + m.usage.data_buckets + m.usage.discard_buckets;
        m.geometry.usable.saturating_sub(used.max(0) as u64)
    }

    /// Buckets kept for metadata; none where nothing new is put.
    fn metadata_reserve(m: &Member) -> u64 {
        if m.failed { 0 } else { m.metadata_reserve }
    }

    /// Whether there is a device left to put something on.
    pub(crate) fn can_grow(&self) -> bool {
        self.members.iter().any(|m| !m.failed)
    }

    /// Free buckets that are not claimed, of all devices.
    pub(crate) fn unclaimed(&self) -> u64 {
        self.members.iter().map(|m| self.free_buckets(m)).sum::<u64>().saturating_sub(self.fresh)
    }

    /// Buckets that wait for their discard, of all devices.
    pub(crate) fn waiting_for_discard(&self) -> u64 {
        self.members.iter().map(|m| m.usage.discard_buckets.max(0) as u64).sum()
    }

    /// Whether new metadata of users must be refused: only deletes and write-back may take what is left.
    pub(crate) fn is_metadata_short(&self) -> bool {
        self.unclaimed() < self.members.iter().map(|m| Self::metadata_reserve(m) / 2).sum::<u64>()
    }

    /// Whether free buckets are so few that fragmented ones should be collected ahead of need.
    pub(crate) fn is_low(&self) -> bool {
        let wanted: u64 =
            self.members.iter().map(|m| Self::metadata_reserve(m) + m.geometry.usable / LOW_SHARE).sum();
        self.unclaimed() + self.waiting_for_discard() < wanted
    }

    /// Bytes of data that can still be promised.
    pub(crate) fn available(&self) -> u64 {
        let reserve = self.members.iter().map(Self::metadata_reserve).sum::<u64>();
        let bucket_bytes = self.members.iter().map(|m| m.geometry.bucket_bytes).min().unwrap_or(0);
        let open: u64 = self.members.iter().map(Self::open_room).sum();
        ((self.unclaimed().saturating_sub(reserve)) * bucket_bytes + open).saturating_sub(self.reserved)
    }

    fn open_room(m: &Member) -> u64 {
        let slot = Writer::Data(DataKind::User).slot();
        m.open[slot].as_ref().map_or(0, |o| m.geometry.bucket_bytes - o.filled)
    }

    /// Bytes of all buckets that can hold something, and those of them in free or discardable buckets.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let total = self.members.iter().map(|m| m.geometry.usable * m.geometry.bucket_bytes).sum();
        let used: i64 = self.members.iter().map(|m| m.usage.btree_bytes + m.usage.data_bytes).sum();
        (total, total.saturating_sub(used.max(0) as u64))
    }

    /// Puts nothing more on devices that are not `healthy`. Says whether there is one that is.
    pub(crate) fn believe_only(&mut self, healthy: impl Fn(u8) -> bool) -> bool {
        for device in 0..self.members.len() as u8 {
            if !self.members[device as usize].failed && !healthy(device) {
                self.members[device as usize].failed = true;
                for slot in 0..Writer::COUNT {
                    if let Some(open) = self.members[device as usize].open[slot].take() {
                        self.release(device, open.bucket);
                    }
                }
            }
        }
        self.can_grow()
    }

    /// Puts nothing more into a bucket that is being filled.
    pub(crate) fn close(&mut self, device: u8, bucket: u64) {
        for slot in 0..Writer::COUNT {
            let open = &mut self.members[device as usize].open[slot];
            if open.take_if(|o| o.bucket == bucket).is_some() {
                self.release(device, bucket);
            }
        }
    }

    /// Carves up to `len` bytes (all of them for nodes) out of the bucket that `writer` fills, and holds the bucket for
    /// the caller, who must [`Buckets::release`] it.
    pub(crate) fn carve(&mut self, writer: Writer, len: u64) -> Result<Placed, Short> {
        let best = (0..self.members.len()).filter(|i| !self.members[*i].failed).max_by_key(|i| {
            let m = &self.members[*i];
            let free = m.spare.as_ref().map_or_else(|| self.free_buckets(m), |s| s.len() as u64);
            (m.open[writer.slot()].is_some(), free, usize::MAX - i)
        });
        let device = best.ok_or(Short::Full)? as u8;
        let least = if writer == Writer::Nodes { len } else { BLOCK_SIZE as u64 };
        let m = &mut self.members[device as usize];
        let slot = writer.slot();
        if let Some(open) = &m.open[slot]
            && m.geometry.bucket_bytes - open.filled < least
        {
            let closed = open.bucket;
            m.open[slot] = None;
            self.release(device, closed);
        }
        if self.members[device as usize].open[slot].is_none() {
            self.open(device, writer)?;
        }
        let m = &mut self.members[device as usize];
        let open = m.open[slot].as_mut().expect("opened above");
        let take = len.min(m.geometry.bucket_bytes - open.filled);
        let place = Placed {
            device,
            generation: open.generation,
            offset: open.bucket * m.geometry.bucket_bytes + open.filled,
            len: take as u32,
        };
        open.filled += take;
        let bucket = open.bucket;
        self.hold(device, bucket);
        Ok(place)
    }

    fn open(&mut self, device: u8, writer: Writer) -> Result<(), Short> {
        let unclaimed = self.unclaimed();
        let m = &mut self.members[device as usize];
        if let Some(spare) = &mut m.spare {
            let (bucket, generation) = spare.pop_front().ok_or(Short::Full)?;
            self.fill(device, writer, bucket, generation);
            return Ok(());
        }
        let floor = match writer {
            Writer::Nodes => 0,
            Writer::Data(DataKind::User) => Self::metadata_reserve(m) / 2,
            Writer::Data(DataKind::Moved) => Self::metadata_reserve(m) / 4,
        };
        if unclaimed < floor || (floor > 0 && unclaimed == floor) {
            return Err(Short::Full);
        }
        let Some((bucket, generation)) = m.window.pop_front() else {
            return Err(if unclaimed == 0 { Short::Full } else { Short::Window(device) });
        };
        self.fill(device, writer, bucket, generation);
        Ok(())
    }

    fn fill(&mut self, device: u8, writer: Writer, bucket: u64, generation: u32) {
        self.members[device as usize].open[writer.slot()] = Some(Open { bucket, generation, filled: 0 });
        let old = self.claims.insert((device, bucket), Claim { holders: 1, fresh: true });
        assert!(old.is_none(), "a free bucket is held by nobody");
        self.fresh += 1;
    }

    /// Keeps a bucket from being reused until it is released: something in it is being written or read.
    pub(crate) fn hold(&mut self, device: u8, bucket: u64) {
        let claim = self.claims.entry((device, bucket)).or_insert(Claim { holders: 0, fresh: false });
        claim.holders += 1;
    }

    /// Undoes one [`Buckets::hold`].
    pub(crate) fn release(&mut self, device: u8, bucket: u64) {
        let claim = self.claims.get_mut(&(device, bucket)).expect("a released bucket is held");
        claim.holders -= 1;
        if claim.holders == 0 {
            self.fresh -= claim.fresh as u64;
            self.claims.remove(&(device, bucket));
        }
    }

    /// Whether somebody holds it.
    pub(crate) fn is_held(&self, device: u8, bucket: u64) -> bool {
        self.claims.contains_key(&(device, bucket))
    }

    pub(crate) fn bucket_of(&self, place: &Placed) -> u64 {
        place.offset / self.members[place.device as usize].geometry.bucket_bytes
    }

    /// Whether an empty bucket, which the commit `seq_empty` emptied, may be discarded and used again: that commit is
    /// durable, and nobody reads or writes there.
    pub(crate) fn may_be_freed(&self, (device, bucket): (u8, u64), seq_empty: u64, durable: u64) -> bool {
        seq_empty <= durable && !self.is_held(device, bucket)
    }

    /// Follows what a commit did to buckets, and to the counters.
    pub(crate) fn committed(&mut self, table: &Table, transitions: &[Transition]) {
        self.follow(transitions);
        for device in 0..self.members.len() as u8 {
            if let Ok(Some(value)) = table.get(Tree::Accounting, 0, DeviceUsage::pos(device))
                && let Ok(usage) = DeviceUsage::parse(value)
            {
                self.set_usage(device, usage);
            }
        }
    }

    fn follow(&mut self, transitions: &[Transition]) {
        for t in transitions {
            assert!(
                t.after.kind == BucketKind::Free
                    || t.before.kind != BucketKind::Free
                    || self.is_held(t.device, t.bucket),
                "a bucket comes into use only while its writer holds it"
            );
            if t.before.kind == BucketKind::Free
                && let Some(claim) = self.claims.get_mut(&(t.device, t.bucket))
                && core::mem::take(&mut claim.fresh)
            {
                self.fresh -= 1;
            }
        }
    }

    /// Looks up free buckets ahead of need, from where the last look ended.
    pub(crate) fn refill(&mut self, table: &Table, device: u8) -> Result<(), Miss> {
        let start = self.members[device as usize].cursor;
        let mut found: Vec<(u64, u32)> = Vec::new();
        let mut cursor = start;
        for part in [start..u64::MAX, 0..start] {
            cursor = part.start;
            while found.len() < WINDOW_MAX && cursor < part.end {
                let range = bucket_pos(device, cursor)..=Pos::new(device as u64, u64::MAX, u32::MAX);
                let Some((pos, value)) = table.first(Tree::Freespace, 0, &range)? else { break };
                let first = parse_free_range(pos, value)
                    .map_err(|_| Miss::Corrupt(Tree::Freespace, pos))?
                    .max(cursor);
                if first >= part.end {
                    break;
                }
                for bucket in first..=pos.offset.min(part.end - 1) {
                    cursor = bucket + 1;
                    let m = &self.members[device as usize];
                    if self.is_held(device, bucket) || m.window.iter().any(|(b, _)| *b == bucket) {
                        continue;
                    }
                    let at = bucket_pos(device, bucket);
                    let alloc = table.get(Tree::Alloc, 0, at)?.map(Alloc::parse).transpose();
                    let alloc = alloc.map_err(|_| Miss::Corrupt(Tree::Alloc, at))?.unwrap_or(Alloc::UNUSED);
                    if alloc.kind != BucketKind::Free {
                        return Err(Miss::Corrupt(Tree::Freespace, pos));
                    }
                    found.push((bucket, alloc.generation));
                    if found.len() == WINDOW_MAX {
                        break;
                    }
                }
            }
            if found.len() == WINDOW_MAX {
                break;
            }
        }
        let m = &mut self.members[device as usize];
        m.cursor = cursor;
        m.window.extend(found);
        Ok(())
    }
}

/// Counters as far as they are possible: damaged ones must not break the arithmetic of whoever goes by them.
fn believable(usage: DeviceUsage, geometry: &Geometry) -> DeviceUsage {
    let buckets = |n: i64| n.clamp(0, geometry.usable as i64);
    let bytes = |n: i64| n.clamp(0, geometry.usable.saturating_mul(geometry.bucket_bytes) as i64);
    DeviceUsage {
        btree_buckets: buckets(usage.btree_buckets),
        data_buckets: buckets(usage.data_buckets),
        discard_buckets: buckets(usage.discard_buckets),
        btree_bytes: bytes(usage.btree_bytes),
        data_bytes: bytes(usage.data_bytes),
    }
}

impl core::fmt::Display for Buckets {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (i, m) in self.members.iter().enumerate() {
            writeln!(
                f,
                "device {i}: {} of {} buckets free, {:?}, window {}",
                self.free_buckets(m),
                m.geometry.usable,
                m.usage,
                m.window.len()
            )?;
        }
        writeln!(
            f,
            "buckets held: {}, of these fresh {}; bytes reserved: {}",
            self.claims.len(),
            self.fresh,
            self.reserved
        )
    }
}

#[cfg(test)]
mod explored;
