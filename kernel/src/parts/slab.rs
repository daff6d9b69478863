//! The heap: size classes for small objects over the page allocator for large ones.
//!
//! Objects up to 2 KiB come from slabs: 16 KiB chunks, aligned to their size, cut into equal cells. The chunk's first
//! bytes hold its list of free cells, found from any cell by masking its address. Everything larger comes in whole
//! pages, so a block buffer is page-aligned and physically contiguous.

use crate::pages::Pages;
use core::alloc::Layout;
use core::ptr;
use moraine_boot::map::PAGE;

/// Cell sizes in bytes. Those that are no power of two are 16-byte aligned, the others aligned to themselves.
const CLASSES: [u16; 14] = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048];
/// Size and alignment of a slab in pages.
const SLAB_PAGES: usize = 4;
const SLAB_BYTES: usize = SLAB_PAGES * PAGE as usize;
/// Largest object in a slab.
const LARGEST: usize = CLASSES[CLASSES.len() - 1] as usize;

/// For a size in 16-byte steps (rounded up), the index of its class.
const CLASS_OF: [u8; LARGEST / 16 + 1] = {
    let mut table = [0; LARGEST / 16 + 1];
    let (mut step, mut class) = (0, 0);
    while step < table.len() {
        if step * 16 > CLASSES[class] as usize {
            class += 1;
        }
        table[step] = class as u8;
        step += 1;
    }
    table
};

/// The head of a slab.
struct Slab {
    next: *mut Slab,
    prev: *mut Slab,
    free: *mut Cell,
    /// Cells never handed out so far start here; they join `free` only once they come back.
    fresh: u16,
    used: u16,
    capacity: u16,
    class: u16,
}

/// A free cell.
struct Cell {
    next: *mut Cell,
}

/// The heap. Callers lock it.
pub struct Heap {
    pages: Pages,
    /// For each class the slabs with a free cell.
    partial: [*mut Slab; CLASSES.len()],
    slab_pages: usize,
}

// SAFETY: its pointers lead into memory it owns; it moves between cores behind a lock.
unsafe impl Send for Heap {}

/// How the heap's memory is used, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct HeapUse {
    /// All memory it has.
    pub total: usize,
    /// Whole free pages.
    pub free: usize,
    /// The least that was ever free.
    pub least_free: usize,
    /// Held in slabs, free cells included.
    pub slabs: usize,
}

impl Heap {
    /// A heap without memory.
    pub const fn empty() -> Heap {
        Heap { pages: Pages::empty(), partial: [ptr::null_mut(); CLASSES.len()], slab_pages: 0 }
    }

    /// The pages beneath.
    pub fn pages(&mut self) -> &mut Pages {
        &mut self.pages
    }

    /// How it is used now.
    pub fn usage(&self) -> HeapUse {
        let (free, total, least) = self.pages.counts();
        let bytes = |pages: usize| pages * PAGE as usize;
        HeapUse {
            total: bytes(total),
            free: bytes(free),
            least_free: bytes(least),
            slabs: bytes(self.slab_pages),
        }
    }

    /// Allocates; null when there is no memory.
    pub fn alloc(&mut self, layout: Layout) -> *mut u8 {
        match class_of(layout) {
            Some(class) => self.alloc_cell(class),
            None => {
                let (count, align) = page_need(layout);
                // Block buffers: their users try again. Anything else that cannot be had is a panic.
                if layout.align() >= PAGE as usize {
                    self.pages.alloc_if_plenty(count, align)
                } else {
                    self.pages.alloc(count, align)
                }
            }
        }
    }

    /// Frees.
    ///
    /// # Safety
    /// `at` came from [`Heap::alloc`] with the same layout and nothing refers to it any more.
    pub unsafe fn free(&mut self, at: *mut u8, layout: Layout) {
        match class_of(layout) {
            // SAFETY: the same layout chose the same class when it was allocated.
            Some(_) => unsafe { self.free_cell(at) },
            // SAFETY: as the caller promises.
            None => unsafe { self.pages.free(at, page_need(layout).0) },
        }
    }

    fn alloc_cell(&mut self, class: usize) -> *mut u8 {
        let mut slab = self.partial[class];
        if slab.is_null() {
            slab = self.new_slab(class);
            if slab.is_null() {
                return ptr::null_mut();
            }
        }
        // SAFETY: slabs on the partial list are live and have a free cell.
        unsafe {
            let cell = (*slab).free;
            let at = if cell.is_null() {
                let at = slab.cast::<u8>().add((*slab).fresh as usize);
                (*slab).fresh += CLASSES[class];
                at
            } else {
                (*slab).free = (*cell).next;
                cell.cast()
            };
            (*slab).used += 1;
            if (*slab).used == (*slab).capacity {
                self.unlink(slab);
            }
            at
        }
    }

    /// # Safety
    /// `at` is a live cell of one of this heap's slabs.
    unsafe fn free_cell(&mut self, at: *mut u8) {
        let slab = at.map_addr(|a| a & !(SLAB_BYTES - 1)).cast::<Slab>();
        // SAFETY: slabs are aligned to their size, so masking a cell's address finds its slab.
        unsafe {
            let was_full = (*slab).used == (*slab).capacity;
            at.cast::<Cell>().write(Cell { next: (*slab).free });
            (*slab).free = at.cast();
            (*slab).used -= 1;
            if was_full {
                self.link(slab);
            } else if (*slab).used == 0 && (!(*slab).next.is_null() || !(*slab).prev.is_null()) {
                // The last slab of a class stays, so that one object coming and going costs no slab each time.
                self.unlink(slab);
                self.slab_pages -= SLAB_PAGES;
                self.pages.free(slab.cast(), SLAB_PAGES);
            }
        }
    }

    fn new_slab(&mut self, class: usize) -> *mut Slab {
        let slab = self.pages.alloc(SLAB_PAGES, SLAB_PAGES).cast::<Slab>();
        if slab.is_null() {
            return slab;
        }
        self.slab_pages += SLAB_PAGES;
        let size = CLASSES[class] as usize;
        let first = size_of::<Slab>().next_multiple_of(if size.is_power_of_two() { size } else { 64 });
        let capacity = ((SLAB_BYTES - first) / size) as u16;
        let (next, prev) = (ptr::null_mut(), ptr::null_mut());
        let head = Slab {
            next,
            prev,
            free: ptr::null_mut(),
            fresh: first as u16,
            used: 0,
            capacity,
            class: class as u16,
        };
        // SAFETY: the pages were just taken; the slab is on no list yet.
        unsafe {
            slab.write(head);
            self.link(slab);
        }
        slab
    }

    /// # Safety
    /// `slab` is live and on no list.
    unsafe fn link(&mut self, slab: *mut Slab) {
        // SAFETY: lists hold live slabs only.
        unsafe {
            let first = &mut self.partial[(*slab).class as usize];
            (*slab).next = *first;
            (*slab).prev = ptr::null_mut();
            if !(*first).is_null() {
                (**first).prev = slab;
            }
            *first = slab;
        }
    }

    /// # Safety
    /// `slab` is on its class's list.
    unsafe fn unlink(&mut self, slab: *mut Slab) {
        // SAFETY: lists hold live slabs only.
        unsafe {
            let (next, prev) = ((*slab).next, (*slab).prev);
            if prev.is_null() {
                self.partial[(*slab).class as usize] = next;
            } else {
                (*prev).next = next;
            }
            if !next.is_null() {
                (*next).prev = prev;
            }
            (*slab).next = ptr::null_mut();
            (*slab).prev = ptr::null_mut();
        }
    }
}

/// The slab class for `layout`, or none if it goes by pages.
fn class_of(layout: Layout) -> Option<usize> {
    let size = if layout.align() <= 16 {
        layout.size()
    } else {
        layout.size().max(layout.align()).next_power_of_two()
    };
    (size <= LARGEST).then(|| CLASS_OF[size.div_ceil(16)] as usize)
}

/// Pages and alignment in pages that `layout` needs.
fn page_need(layout: Layout) -> (usize, usize) {
    (layout.size().div_ceil(PAGE as usize), layout.align().div_ceil(PAGE as usize))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn heap(pages: usize) -> Heap {
        let mut heap = Heap::empty();
        heap.pages = crate::pages::tests::pages(pages);
        heap
    }

    #[test]
    fn each_size_fits_its_class_and_no_smaller_one() {
        for size in 1..=LARGEST {
            let class = class_of(Layout::from_size_align(size, 8).unwrap()).unwrap();
            assert!(CLASSES[class] as usize >= size);
            assert!(class == 0 || (CLASSES[class - 1] as usize) < size);
        }
        assert_eq!(class_of(Layout::from_size_align(LARGEST + 1, 8).unwrap()), None);
        assert_eq!(class_of(Layout::from_size_align(8, 4096).unwrap()), None);
    }

    #[test]
    fn random_objects_keep_their_content_and_alignment_and_all_memory_returns() {
        let mut heap = heap(4096);
        let mut held: Vec<(*mut u8, Layout, u8)> = Vec::new();
        let mut seed = 7_u64;
        for round in 0..60_000_u32 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let r = (seed >> 33) as usize;
            if held.len() < 1500 && r % 5 < 3 {
                let size = 1 + [r % 100, r % 3000, r % 20_000][r % 3];
                let layout = Layout::from_size_align(size, 1 << (r % 9)).unwrap();
                let at = heap.alloc(layout);
                assert!(!at.is_null());
                assert_eq!(at as usize % layout.align(), 0);
                // SAFETY: just allocated.
                unsafe { at.write_bytes(round as u8, size) };
                held.push((at, layout, round as u8));
            } else if !held.is_empty() {
                let (at, layout, mark) = held.swap_remove(r % held.len());
                // SAFETY: allocated above, still ours.
                unsafe {
                    assert!(core::slice::from_raw_parts(at, layout.size()).iter().all(|b| *b == mark));
                    heap.free(at, layout);
                }
            }
        }
        for (at, layout, _) in held {
            // SAFETY: allocated above.
            unsafe { heap.free(at, layout) };
        }
        let used = heap.usage();
        assert_eq!(used.free + used.slabs, used.total);
        assert!(used.slabs <= CLASSES.len() * SLAB_BYTES, "only one empty slab a class stays");
    }

    #[test]
    fn block_buffers_leave_large_blocks_to_those_who_cannot_do_without() {
        let mut heap = heap(4096);
        let buffer = Layout::from_size_align(3 * PAGE as usize, PAGE as usize).unwrap();
        let held: Vec<*mut u8> =
            core::iter::from_fn(|| Some(heap.alloc(buffer)).filter(|at| !at.is_null())).collect();
        // A buffer of three pages leaves the fourth of its block.
        assert!(held.len() > 4096 / 5, "most of the memory: {}", held.len());
        // Every second one goes: much is free, in pieces of three pages.
        for at in held.into_iter().step_by(2) {
            // SAFETY: allocated above, and freed once.
            unsafe { heap.free(at, buffer) };
        }
        // Whoever reads a node needs a buffer of many pages, again and again; what is left in large blocks is for him.
        let node = Layout::from_size_align(25 * PAGE as usize, PAGE as usize).unwrap();
        let mut nodes: Vec<*mut u8> =
            core::iter::from_fn(|| Some(heap.alloc(node)).filter(|at| !at.is_null())).collect();
        assert!(nodes.len() >= 4096 / 16 / 64, "buffers of many pages: {}", nodes.len());
        assert!(heap.alloc(buffer).is_null() || heap.alloc(node).is_null());
        // And a little for those who cannot try again.
        let large = Layout::from_size_align(134_352, 8).unwrap();
        let count = core::iter::from_fn(|| Some(heap.alloc(large)).filter(|at| !at.is_null())).count();
        assert!(count >= 4096 / 32 / 64, "a part of all in large blocks: {count}");
        // SAFETY: allocated above, and freed once.
        nodes.drain(..).for_each(|at| unsafe { heap.free(at, node) });
        assert!(!heap.alloc(node).is_null());
    }

    #[test]
    fn running_out_is_an_answer() {
        let mut heap = heap(64);
        assert!(heap.alloc(Layout::from_size_align(65 * PAGE as usize, 8).unwrap()).is_null());
        let small = Layout::from_size_align(1024, 8).unwrap();
        let count = core::iter::from_fn(|| Some(heap.alloc(small)).filter(|at| !at.is_null())).count();
        assert!(count > 200);
    }
}
