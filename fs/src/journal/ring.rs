//! Where entries go: on each journal device a ring of buckets, filled one after another. Pure bookkeeping.
//!
//! Room is promised before it is used: what [`Ring::available`] says can be placed, whatever is lost at the ends of
//! buckets. For that, an entry is at most half a bucket long, a reservation
//! at most half an entry, and a bucket is left only when less than half an entry's room remains in it; that much is
//! never counted. One bucket a device stays free, so that the next mount has a bucket of its own to begin in.

use alloc::vec::Vec;
use core::fmt;
use moraine_format::journal::{ENTRY_BLOCK, ENTRY_HEADER_BYTES, Seq};
use smallvec::SmallVec;

/// Longer entries gain little, and this is a single command on every device.
const ENTRY_BYTES_WANTED: usize = 128 << 10;

/// The journal's part of one device, as the superblock lists it and as recovery found it.
#[derive(Clone, Debug)]
pub(super) struct RingDevice {
    /// Member index.
    pub(super) index: u8,
    /// Bytes of its buckets.
    pub(super) bucket_bytes: u64,
    /// Its buckets in ring order.
    pub(super) buckets: Vec<Bucket>,
    /// The bucket being filled, and the next byte in it.
    pub(super) current: Option<(usize, u64)>,
    /// Not written to any more.
    pub(super) failed: bool,
    /// How many buckets are free: asked for with every commit, so not counted each time.
    pub(super) free: u64,
}

/// One bucket of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// Byte offset on the device.
    pub(super) start: u64,
    /// Newest entry in it; zero if it was never used.
    pub(super) newest: Seq,
    /// Bytes from its start that hold needed entries.
    pub(super) filled: u64,
}

/// Room for an entry on its devices.
#[derive(Clone, Debug, Default)]
pub(super) struct Placement {
    /// (member index, byte offset) of each copy.
    pub(super) copies: SmallVec<[(u8, u64); 2]>,
    /// Bytes it may grow to.
    pub(super) room: usize,
}

/// What all journal devices can do. Bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The longest command.
    pub(super) transfer: usize,
    /// The largest unit that one of them writes without read-modify-write.
    pub(super) physical_block: usize,
}

/// All rings.
#[derive(Debug)]
pub(super) struct Ring {
    devices: Vec<RingDevice>,
    replicas: usize,
    entry_max: usize,
    /// Entries begin on multiples of this: what all devices write without touching a neighbour.
    unit: usize,
    /// Entries before this are not needed: their buckets are free.
    needed_from: Seq,
}

impl Ring {
    /// Rings as recovery found them, on devices like `limits`.
    pub(super) fn new(devices: Vec<RingDevice>, replicas: usize, limits: Limits, needed_from: Seq) -> Ring {
        let smallest = devices.iter().map(|d| d.bucket_bytes as usize).min().unwrap_or(0);
        // A device with absurdly large physical blocks gets no better than bucket halves.
        let unit = limits.physical_block.clamp(ENTRY_BLOCK, (smallest / 8).max(ENTRY_BLOCK));
        let entry_max = (smallest / 2).min(ENTRY_BYTES_WANTED).min(limits.transfer) / (2 * unit) * (2 * unit);
        let replicas = replicas.min(devices.len());
        let mut ring = Ring { devices, replicas, entry_max, unit, needed_from };
        for i in 0..ring.devices.len() {
            if ring.free_buckets(i).next().is_none() {
                ring.continue_in_used_bucket(i);
            }
        }
        ring.count_free();
        ring
    }

    /// Ring bytes that an entry with `items` bytes of items takes.
    pub(super) fn room_for(&self, items: usize) -> usize {
        (ENTRY_HEADER_BYTES + items).next_multiple_of(self.unit)
    }

    /// Ring bytes of the smallest entry.
    pub(super) fn unit(&self) -> u64 {
        self.unit as u64
    }

    /// The longest entry.
    pub(super) fn entry_max(&self) -> usize {
        self.entry_max
    }

    /// The longest items area that may be reserved at once.
    pub(super) fn reservation_max(&self) -> usize {
        self.slack() as usize - ENTRY_HEADER_BYTES
    }

    /// How many copies are made of each entry while all devices work.
    pub(super) fn replicas(&self) -> usize {
        self.replicas
    }

    /// Member indices of all journal devices that work.
    pub(super) fn working(&self) -> impl Iterator<Item = u8> + '_ {
        self.devices.iter().filter(|d| !d.failed).map(|d| d.index)
    }

    /// Stops using a device; says whether it was in use.
    pub(super) fn fail(&mut self, index: u8) -> bool {
        let device = self.devices.iter_mut().find(|d| d.index == index);
        device.is_some_and(|d| !core::mem::replace(&mut d.failed, true))
    }

    /// How many devices failed.
    pub(super) fn failed_count(&self) -> usize {
        self.devices.iter().filter(|d| d.failed).count()
    }

    /// Entries before `seq` are not needed any more.
    pub(super) fn needed_from(&mut self, seq: Seq) {
        assert!(seq >= self.needed_from, "the tail of the journal moves forward only");
        if seq > self.needed_from {
            self.needed_from = seq;
            self.count_free();
        }
    }

    fn count_free(&mut self) {
        for i in 0..self.devices.len() {
            self.devices[i].free = self.free_buckets(i).count() as u64;
        }
    }

    /// Whether a bucket would become free if the tail moved to `seq`.
    pub(super) fn would_free(&self, seq: Seq) -> bool {
        let frees = |d: &RingDevice, i: usize| {
            let newest = d.buckets[i].newest;
            d.current.is_none_or(|(c, _)| c != i) && newest >= self.needed_from && newest < seq
        };
        let working = self.devices.iter().filter(|d| !d.failed);
        working.into_iter().any(|d| (0..d.buckets.len()).any(|i| frees(d, i)))
    }

    /// Half an entry's longest: what each entry has room for at least, unless the ring is nearly full.
    pub(super) fn slack(&self) -> u64 {
        (self.entry_max / 2) as u64
    }

    /// When the last mount left no bucket free on a device, go on behind the needed entries of the one with most room.
    fn continue_in_used_bucket(&mut self, i: usize) {
        let unit = self.unit as u64;
        let device = &mut self.devices[i];
        let roomiest = device.buckets.iter().enumerate().min_by_key(|(_, b)| b.filled);
        device.current = roomiest.map(|(at, bucket)| (at, bucket.filled.next_multiple_of(unit)));
    }

    fn free_buckets(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        let device = &self.devices[i];
        let count = device.buckets.len();
        let first = device.current.map_or(0, |(at, _)| at + 1);
        (0..count).map(move |n| (first + n) % count).filter(move |at| {
            device.current.is_none_or(|(c, _)| c != *at)
                && device.buckets[*at].newest < self.needed_from.max(Seq(1))
        })
    }

    fn rest(&self, i: usize) -> u64 {
        let device = &self.devices[i];
        device.current.map_or(0, |(_, at)| device.bucket_bytes - at)
    }

    fn available_on(&self, i: usize) -> u64 {
        let takeable = self.devices[i].free.saturating_sub(1);
        match takeable {
            0 => self.rest(i),
            n => {
                n * (self.devices[i].bucket_bytes - self.slack()) + self.rest(i).saturating_sub(self.slack())
            }
        }
    }

    /// Bytes of entries that can surely be placed while none of them needs more than `largest` bytes at once.
    ///
    /// With N devices and fewer copies R, entries go to the devices with most room. If that fails, some N−R+1 devices
    /// have less than `largest` left; devices that were passed over once have less than twice that; and what the
    /// others hold is on all of them. So at most 2·(N−R+1)·`largest` of the ideal is out of reach.
    pub(super) fn available(&self, largest: u64) -> u64 {
        let working = self.devices.iter().filter(|d| !d.failed).count();
        let spare = working.saturating_sub(self.replicas) as u64;
        let lost = if spare == 0 { 0 } else { 2 * (spare + 1) * largest };
        self.spread(|i| self.available_on(i)).saturating_sub(lost)
    }

    /// What [`Ring::available`] is when nothing is needed.
    pub(super) fn capacity(&self) -> u64 {
        self.spread(|i| {
            let device = &self.devices[i];
            (device.buckets.len() as u64 - 1) * (device.bucket_bytes - self.slack())
        })
    }

    /// The most bytes that can be stored in as many copies as wanted, each on another device: the largest T with
    /// Σ min(aᵢ, T) ≥ R·T.
    fn spread(&self, on_device: impl Fn(usize) -> u64) -> u64 {
        let working = (0..self.devices.len()).filter(|i| !self.devices[*i].failed);
        let mut room: SmallVec<[u64; 4]> = working.map(on_device).collect();
        let replicas = self.replicas.min(room.len());
        if replicas == 0 {
            return 0;
        }
        room.sort_unstable();
        let total = |n: usize| room[..n].iter().sum::<u64>();
        (0..replicas).map(|j| total(room.len() - j) / (replicas - j) as u64).min().unwrap_or(0)
    }

    /// Finds room for an entry of at least `need` bytes on as many devices as copies are wanted. `None` if there is
    /// none, which a caller with a reservation never sees.
    pub(super) fn place(&mut self, need: usize) -> Option<Placement> {
        let mut order: SmallVec<[(u64, usize); 4]> = (0..self.devices.len())
            .filter(|i| !self.devices[*i].failed)
            .map(|i| (self.available_on(i), i))
            .collect();
        order.sort_by_key(|(room, i)| (core::cmp::Reverse(*room), *i));
        let mut placement = Placement { copies: SmallVec::new(), room: self.entry_max };
        for (_, i) in order {
            if placement.copies.len() == self.replicas {
                break;
            }
            if !self.make_room(i, need as u64) {
                continue;
            }
            let device = &self.devices[i];
            let (bucket, at) = device.current?;
            placement.copies.push((device.index, device.buckets[bucket].start + at));
            placement.room = placement.room.min(self.rest(i) as usize);
        }
        (!placement.copies.is_empty()).then_some(placement)
    }

    /// Moves on to the next free bucket if the current one has too little left.
    fn make_room(&mut self, i: usize, need: u64) -> bool {
        let rest = self.rest(i);
        let mut free = self.free_buckets(i);
        let (next, more) = (free.next(), free.next().is_some());
        drop(free);
        let device = &mut self.devices[i];
        match next {
            Some(next) if rest < need || (rest < (self.entry_max / 2) as u64 && more) => {
                device.current = Some((next, 0));
                device.buckets[next].newest = Seq::ZERO;
                self.count_free();
                true
            }
            _ => rest >= need,
        }
    }

    /// The entry at `placement` is `seq` and takes `bytes`: the next one goes behind it.
    pub(super) fn fill(&mut self, placement: &Placement, seq: Seq, bytes: usize) {
        let room = bytes.next_multiple_of(self.unit) as u64;
        for (index, offset) in &placement.copies {
            let device =
                self.devices.iter_mut().find(|d| d.index == *index).expect("an entry lies on ring devices");
            let (bucket, at) = device.current.expect("a placed entry lies in the current bucket");
            assert!(
                device.buckets[bucket].start + at == *offset,
                "entries are filled in the order they are placed"
            );
            device.current = Some((bucket, at + room));
            device.buckets[bucket].newest = seq;
            assert!(at + room <= device.bucket_bytes, "an entry lies in one bucket");
        }
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ring from {}: {} of {} bytes available",
            self.needed_from,
            self.available(0),
            self.capacity()
        )?;
        for device in &self.devices {
            let failed = if device.failed { ", failed" } else { "" };
            let (free, count) = (device.free, device.buckets.len());
            write!(f, "\n  device {}{failed}: {free} of {count} buckets free", device.index)?;
            if let Some((bucket, at)) = device.current {
                write!(f, ", filling {bucket} at {at} of {}", device.bucket_bytes)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    const KIB: u64 = 1 << 10;
    const LIMITS: Limits = Limits { transfer: 1 << 20, physical_block: 512 };

    fn device(index: u8, buckets: u64, bucket_bytes: u64) -> RingDevice {
        let bucket = |n| Bucket { start: (n + 3) * bucket_bytes, newest: Seq::ZERO, filled: 0 };
        let buckets = (0..buckets).map(bucket).collect();
        RingDevice { index, bucket_bytes, buckets, current: None, failed: false, free: 0 }
    }

    #[test]
    fn what_is_available_can_be_placed_in_any_order_of_sizes() {
        let mut state = 12345_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for round in 0..400 {
            let devices = 1 + round % 4;
            let replicas = 1 + random(devices) as usize;
            let list = (0..devices).map(|i| device(i as u8, 4 + random(6), 64 * KIB)).collect();
            let mut ring = Ring::new(list, replicas, LIMITS, Seq(1));
            let (mut seq, mut promised, mut tail) = (1, vec![], 1);
            for _ in 0..200 {
                // Promise as much as there is, then keep the promises, then let some entries go.
                loop {
                    let need = (random(4) + 1) * 4 * KIB;
                    let sum: u64 = promised.iter().sum();
                    if ring.available(16 * KIB) < sum + need {
                        break;
                    }
                    promised.push(need);
                }
                for need in promised.drain(..) {
                    let placement = ring.place(need as usize).expect("what is available can be placed");
                    assert_eq!(placement.copies.len(), replicas, "as many copies as wanted");
                    assert!(placement.room as u64 >= need);
                    ring.fill(&placement, Seq(seq), need as usize);
                    seq += 1;
                }
                tail += random(seq - tail + 1);
                ring.needed_from(Seq(tail));
            }
            assert!(seq > 500 || devices > 2, "{devices}/{replicas}: only {seq} entries in all that time");
        }
    }

    #[test]
    fn the_last_free_bucket_is_left_to_the_next_mount() {
        let mut ring = Ring::new(vec![device(0, 4, 64 * KIB)], 1, LIMITS, Seq(1));
        let mut used = vec![];
        for seq in 1.. {
            if ring.available(16 * KIB) < 16 * KIB {
                break;
            }
            let placement = ring.place(16 << 10).unwrap();
            ring.fill(&placement, Seq(seq), 16 << 10);
            used.push(placement.copies[0].1 / (64 * KIB));
        }
        used.dedup();
        assert_eq!(used.len(), 3);
        assert_eq!((ring.devices[0].free, ring.free_buckets(0).count()), (1, 1));
    }

    #[test]
    fn a_mount_begins_in_a_bucket_that_was_not_in_use_before_it() {
        let mut used = device(0, 4, 64 * KIB);
        for (i, bucket) in used.buckets.iter_mut().enumerate().take(3) {
            (bucket.newest, bucket.filled) = (Seq(10 + i as u64), 4 * KIB);
        }
        let mut ring = Ring::new(vec![used], 1, LIMITS, Seq(10));
        assert_eq!(ring.place(4096).unwrap().copies[0].1, (3 + 3) * 64 * KIB);
    }

    #[test]
    fn no_two_entries_share_a_physical_block() {
        let limits = Limits { transfer: 1 << 20, physical_block: 8192 };
        let mut ring = Ring::new(vec![device(0, 4, 64 * KIB)], 1, limits, Seq(1));
        assert_eq!((ring.room_for(100), ring.entry_max() % (2 * 8192)), (8192, 0));
        for seq in 1..10 {
            let placement = ring.place(ring.room_for(100)).unwrap();
            assert_eq!(placement.copies[0].1 % 8192, 0);
            ring.fill(&placement, Seq(seq), 4096);
        }
    }

    #[test]
    fn without_a_free_bucket_the_roomiest_used_one_goes_on_behind_what_is_needed() {
        let mut full = device(0, 4, 64 * KIB);
        for (i, bucket) in full.buckets.iter_mut().enumerate() {
            bucket.newest = Seq(10 + i as u64);
            bucket.filled = (60 - 8 * (i as u64 % 3)) * KIB;
        }
        let mut ring = Ring::new(vec![full], 1, LIMITS, Seq(5));
        let placement = ring.place(4096).unwrap();
        assert_eq!(placement.copies[0].1, (2 + 3) * 64 * KIB + 44 * KIB);
        assert_eq!(placement.room, 20 << 10);
    }
}
