//! The global allocator: a small arena from the first instruction on, the real heap once the memory map is known.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::{self, NonNull};
use kernel_parts::pages::Pages;
use kernel_parts::slab::{Heap, HeapUse};
use moraine_boot::map::RangeSet;
use spin::Mutex;

/// Memory for what is allocated before the memory map is known, in bytes.
const EARLY_BYTES: usize = 64 << 10;

struct Allocator {
    early: Mutex<linked_list_allocator::Heap>,
    heap: Mutex<Heap>,
}

#[global_allocator]
static ALLOCATOR: Allocator =
    Allocator { early: Mutex::new(linked_list_allocator::Heap::empty()), heap: Mutex::new(Heap::empty()) };

#[repr(align(4096))]
struct EarlyMemory(UnsafeCell<[u8; EARLY_BYTES]>);

// SAFETY: only the early allocator touches it, behind its lock.
unsafe impl Sync for EarlyMemory {}

static EARLY: EarlyMemory = EarlyMemory(UnsafeCell::new([0; EARLY_BYTES]));

fn early_range() -> Range<usize> {
    let start = EARLY.0.get() as usize;
    start..start + EARLY_BYTES
}

// SAFETY: both heaps hand out memory that is theirs and unused; an address tells which one it came from.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let at = self.heap.lock().alloc(layout);
        if !at.is_null() {
            return at;
        }
        self.early.lock().allocate_first_fit(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if early_range().contains(&(at as usize)) {
            let at = NonNull::new(at).expect("an address in the early arena");
            // SAFETY: it lies in the early arena, so it came from there, with this layout.
            unsafe { self.early.lock().deallocate(at, layout) };
        } else {
            // SAFETY: it came from the heap, with this layout.
            unsafe { self.heap.lock().free(at, layout) };
        }
    }
}

/// Makes the early arena usable.
pub(crate) fn init_early() {
    // SAFETY: the arena is static, and this runs once, first.
    unsafe { ALLOCATOR.early.lock().init(early_range().start as *mut u8, EARLY_BYTES) };
}

/// Gives all free memory to the heap.
pub(crate) fn init(free: &mut RangeSet) {
    let span = |set: &RangeSet| {
        let ranges = set.as_slice();
        ranges.first().expect("there is memory").start..ranges.last().expect("there is memory").end
    };
    let len = Pages::heads_len(span(free));
    let at = free.take(len as u64, 4096, u64::MAX).expect("memory for the heap's bookkeeping");
    // SAFETY: the range is mapped RAM that was just taken out of the free set.
    let heads = unsafe { core::slice::from_raw_parts_mut(at as *mut u8, len) };
    let mut heap = ALLOCATOR.heap.lock();
    heap.pages().set_span(span(free), heads);
    for range in free.as_slice() {
        // SAFETY: free RAM, mapped writable, which nobody else was given.
        unsafe { heap.pages().add(range.clone()) };
    }
}

/// How the heap is used now.
pub(crate) fn usage() -> HeapUse {
    ALLOCATOR.heap.lock().usage()
}
