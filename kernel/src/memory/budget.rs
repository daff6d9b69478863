//! The memory budget on this machine: the heap, divided into the appliance's shares.
//!
//! Every share but the last is kept by its owner. The reserve is what is left for everything that nobody counts; the last
//! part of it is closed to large buffers, whose users can be told to come again, so that small things, whose users
//! cannot, still find memory.

use super::heap;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use moraine_appliance::Memory;
use moraine_platform::memory::{Usage, set_gate};
use moraine_platform::{info, warn};

/// The part of the reserve that large buffers leave alone: one part in so many.
const CLOSED_PART: u64 = 4;

/// Free bytes of the heap below which no large buffer is made.
static CLOSED_BELOW: AtomicUsize = AtomicUsize::new(0);
/// Buffers refused.
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// The budget and what was in use when it was made.
pub(crate) struct Budget {
    /// The shares.
    pub(crate) memory: Memory,
    used_before: u64,
}

impl Budget {
    /// Divides what is free of the heap, or `limit` bytes of it, and prints the table.
    pub(crate) fn new(limit: Option<u64>) -> Budget {
        let heap = heap::usage();
        let free = heap.free as u64;
        let memory = Memory::of(limit.map_or(free, |limit| limit.min(free)));
        if memory.total > free {
            warn!("memory", "only {} MiB are free: too little for every share to be used up", free >> 20);
        }
        let closed = free.saturating_sub(memory.total) + memory.reserve / CLOSED_PART;
        CLOSED_BELOW.store(closed as usize, Ordering::Relaxed);
        set_gate(|bytes| {
            let open = heap::usage().free >= bytes.saturating_add(CLOSED_BELOW.load(Ordering::Relaxed));
            if !open {
                REFUSED.fetch_add(1, Ordering::Relaxed);
            }
            open
        });
        info!("memory", "{memory}");
        Budget { memory, used_before: (heap.total - heap.free) as u64 }
    }

    /// Prints how the shares are used, and what is left over for the reserve.
    pub(crate) fn report(&self, shares: Vec<Usage>) {
        let heap = heap::usage();
        let used = |free: usize| ((heap.total - free) as u64).saturating_sub(self.used_before);
        let counted: u64 = shares.iter().map(|share| share.used).sum();
        let reserve = Usage {
            name: "reserve",
            limit: self.memory.reserve,
            used: used(heap.free).saturating_sub(counted),
            // Not all peaks are at one time, so this is the least that its own can have been.
            peak: used(heap.least_free).saturating_sub(shares.iter().map(|share| share.peak).sum()),
            refused: REFUSED.load(Ordering::Relaxed),
        };
        for share in shares.iter().chain([&reserve]) {
            info!("memory", "{share}");
        }
        info!("memory", "all {} MiB, at most {}", self.memory.total >> 20, used(heap.least_free) >> 20);
    }
}
