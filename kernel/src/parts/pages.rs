//! The page allocator: a binary buddy system over physical memory that is mapped one to one.
//!
//! A request of `n` pages takes a block of the next power of two and gives the tail back at once, so that 33 pages cost
//! 33, not 64. What is free is kept in one doubly linked list per order, threaded through the free blocks themselves;
//! a byte per page says which pages head a free block, so that neighbours find each other when they are freed.

use core::ops::Range;
use core::ptr;
use moraine_boot::map::PAGE;

/// Orders of blocks: the largest is 2^(ORDERS-1) pages = 128 MiB.
const ORDERS: usize = 16;
/// Order of the smallest block that counts as large: 256 KiB.
const LARGE: usize = 6;
/// Order of the largest request of a few pages: 32 KiB.
const FEW: usize = 3;
/// Parts of all memory, one in so many, that requests of a few pages and of more leave in large blocks.
const LEFT_BY_FEW: usize = 8;
const LEFT_BY_MANY: usize = 32;
/// In [`Pages::heads`]: the page does not head a free block. Any other value is its order.
const NO_HEAD: u8 = 0xff;

/// A free block's place in its list; lies in the block's first bytes.
struct Link {
    next: *mut Link,
    prev: *mut Link,
}

/// All memory the heap may use, by page.
pub struct Pages {
    /// Address of page 0: aligned to the largest block, so that alignment of an index is alignment of its address.
    base: usize,
    /// One byte per page from `base` on.
    heads: &'static mut [u8],
    lists: [*mut Link; ORDERS],
    free: usize,
    total: usize,
    least_free: usize,
    /// Free pages in large blocks.
    large: usize,
}

// SAFETY: the pointers lead only into memory that this value owns; it moves between cores behind a lock.
unsafe impl Send for Pages {}

impl Pages {
    /// An allocator without memory.
    pub const fn empty() -> Pages {
        Pages {
            base: 0,
            heads: &mut [],
            lists: [ptr::null_mut(); ORDERS],
            free: 0,
            total: 0,
            least_free: 0,
            large: 0,
        }
    }

    /// Bytes of bookkeeping that memory within `span` needs.
    pub fn heads_len(span: Range<u64>) -> usize {
        ((span.end - align_down(span.start)) / PAGE) as usize
    }

    /// Sets the range of addresses that may be added; `heads` has [`Pages::heads_len`] bytes.
    pub fn set_span(&mut self, span: Range<u64>, heads: &'static mut [u8]) {
        assert!(heads.len() >= Pages::heads_len(span.clone()), "one bookkeeping byte per page");
        heads.fill(NO_HEAD);
        self.base = align_down(span.start) as usize;
        self.heads = heads;
    }

    /// Adds free memory.
    ///
    /// # Safety
    /// The range is page-aligned, lies in the span, is mapped writable at its own address, is not yet here, and
    /// belongs to the allocator from now on.
    pub unsafe fn add(&mut self, range: Range<u64>) {
        let count = ((range.end - range.start) / PAGE) as usize;
        self.total += count;
        // SAFETY: as the caller promises.
        unsafe { self.free(range.start as usize as *mut u8, count) };
        self.least_free = self.free;
    }

    /// Pages free, in all, and the fewest that were ever free.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.free, self.total, self.least_free)
    }

    /// Takes `count` contiguous pages aligned to `align` pages (a power of two); null if there are none.
    pub fn alloc(&mut self, count: usize, align: usize) -> *mut u8 {
        let order = count.max(align).next_power_of_two().trailing_zeros() as usize;
        let Some(from) = (order..ORDERS).find(|&o| !self.lists[o].is_null()) else {
            return ptr::null_mut();
        };
        let block = self.lists[from];
        let index = self.index(block.cast());
        // SAFETY: the block heads a list, so it is free and its link is valid.
        unsafe { self.unlink(index, from) };
        self.free -= 1 << from;
        let taken = block.cast::<u8>();
        // SAFETY: the tail belongs to the block just taken.
        unsafe { self.give_back(index + count, index + (1 << from)) };
        self.least_free = self.least_free.min(self.free);
        taken
    }

    /// As [`Pages::alloc`], for whoever can try again: null if too little would be left in large blocks. Else many such
    /// users, each of a few pages, would leave no large block to those who need one. A request of more than a few pages is
    /// one of those: it leaves a little only for who cannot try again.
    pub fn alloc_if_plenty(&mut self, count: usize, align: usize) -> *mut u8 {
        let order = count.max(align).next_power_of_two().trailing_zeros() as usize;
        let breaks_large = (order..LARGE).all(|o| self.lists[o].is_null());
        let left = self.total / if order <= FEW { LEFT_BY_FEW } else { LEFT_BY_MANY };
        if breaks_large && self.large < left + count.next_multiple_of(1 << LARGE) {
            return ptr::null_mut();
        }
        self.alloc(count, align)
    }

    /// Gives `count` pages back.
    ///
    /// # Safety
    /// They were taken from here (or are being added) and nothing refers to them any more.
    pub unsafe fn free(&mut self, block: *mut u8, count: usize) {
        let index = self.index(block);
        // SAFETY: as the caller promises.
        unsafe { self.give_back(index, index + count) };
    }

    /// Frees the pages `from .. to` as the fewest aligned blocks.
    ///
    /// # Safety
    /// The pages are the caller's and nothing refers to them.
    unsafe fn give_back(&mut self, mut from: usize, to: usize) {
        while from < to {
            let aligned = if from == 0 { ORDERS - 1 } else { from.trailing_zeros() as usize };
            let order = aligned.min((to - from).ilog2() as usize).min(ORDERS - 1);
            // SAFETY: as the caller promises.
            unsafe { self.free_block(from, order) };
            from += 1 << order;
        }
    }

    /// Frees one block and joins it with its free neighbours.
    ///
    /// # Safety
    /// As [`Pages::give_back`].
    unsafe fn free_block(&mut self, mut index: usize, mut order: usize) {
        assert!(self.heads[index] == NO_HEAD, "a free page is not freed again");
        self.free += 1 << order;
        while order < ORDERS - 1 {
            let buddy = index ^ (1 << order);
            if self.heads.get(buddy) != Some(&(order as u8)) {
                break;
            }
            // SAFETY: the byte says that the buddy heads a free block of this order.
            unsafe { self.unlink(buddy, order) };
            index &= buddy;
            order += 1;
        }
        let link = self.address(index).cast::<Link>();
        let next = self.lists[order];
        // SAFETY: the block is free memory of at least a page; `next` is null or heads the list.
        unsafe {
            link.write(Link { next, prev: ptr::null_mut() });
            if !next.is_null() {
                (*next).prev = link;
            }
        }
        self.lists[order] = link;
        self.heads[index] = order as u8;
        self.large += if order >= LARGE { 1 << order } else { 0 };
    }

    /// Takes a block off its list.
    ///
    /// # Safety
    /// `index` heads a free block of `order`.
    unsafe fn unlink(&mut self, index: usize, order: usize) {
        let link = self.address(index).cast::<Link>();
        // SAFETY: links of free blocks are valid, and so are those they lead to.
        unsafe {
            let Link { next, prev } = link.read();
            if prev.is_null() {
                self.lists[order] = next;
            } else {
                (*prev).next = next;
            }
            if !next.is_null() {
                (*next).prev = prev;
            }
        }
        self.heads[index] = NO_HEAD;
        self.large -= if order >= LARGE { 1 << order } else { 0 };
    }

    fn index(&self, block: *mut u8) -> usize {
        (block as usize - self.base) / PAGE as usize
    }

    fn address(&self, index: usize) -> *mut u8 {
        (self.base + index * PAGE as usize) as *mut u8
    }
}

fn align_down(address: u64) -> u64 {
    address & !((PAGE << (ORDERS - 1)) - 1)
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::*;
    use std::alloc::{Layout, alloc_zeroed};
    use std::vec;
    use std::vec::Vec;

    /// An allocator over `count` pages of the test's own memory.
    pub(crate) fn pages(count: usize) -> Pages {
        let bytes = count * PAGE as usize;
        // SAFETY: leaked on purpose; the allocator owns it for the rest of the test process.
        let start = unsafe { alloc_zeroed(Layout::from_size_align(bytes, PAGE as usize).unwrap()) } as u64;
        let span = start..start + bytes as u64;
        let mut pages = Pages::empty();
        pages.set_span(span.clone(), Vec::leak(vec![0; Pages::heads_len(span.clone())]));
        // SAFETY: as above.
        unsafe { pages.add(span) };
        pages
    }

    #[test]
    fn every_page_can_be_taken_once_and_comes_back_whole() {
        let mut pages = pages(1000);
        let mut taken: Vec<_> = (0..1000).map(|_| pages.alloc(1, 1)).collect();
        assert!(pages.alloc(1, 1).is_null());
        taken.sort();
        taken.dedup();
        assert_eq!(taken.len(), 1000);
        for page in taken {
            // SAFETY: taken above.
            unsafe { pages.free(page, 1) };
        }
        assert_eq!(pages.counts(), (1000, 1000, 0));
        assert!(!pages.alloc(256, 1).is_null(), "neighbours must have joined");
    }

    #[test]
    fn odd_sizes_cost_what_they_are_and_alignment_holds() {
        let mut pages = pages(512);
        let block = pages.alloc(33, 64);
        assert_eq!(block as usize % (64 * PAGE as usize), 0);
        assert_eq!(pages.counts().0, 512 - 33);
        // SAFETY: taken above.
        unsafe { pages.free(block, 33) };
        assert_eq!(pages.counts().0, 512);
    }

    #[test]
    fn random_work_never_hands_out_a_page_twice() {
        let mut pages = pages(2048);
        let mut held: Vec<(usize, usize, u8)> = Vec::new();
        let mut seed = 1_u64;
        for round in 0..20_000_u32 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let r = (seed >> 33) as usize;
            if r % 3 != 0 || held.is_empty() {
                let count = 1 + r % 40;
                let block = pages.alloc(count, 1 << (r % 3));
                if !block.is_null() {
                    let mark = round as u8;
                    // SAFETY: `count` pages were just taken.
                    unsafe { block.write_bytes(mark, count * PAGE as usize) };
                    held.push((block as usize, count, mark));
                }
            } else {
                let (block, count, mark) = held.swap_remove(r % held.len());
                // SAFETY: taken above and still ours.
                unsafe {
                    assert_eq!((block as *const u8).add(count * PAGE as usize - 1).read(), mark);
                    assert_eq!((block as *const u8).read(), mark);
                    pages.free(block as *mut u8, count);
                }
            }
        }
        let held_pages: usize = held.iter().map(|h| h.1).sum();
        assert_eq!(pages.counts().0, 2048 - held_pages);
    }
}
