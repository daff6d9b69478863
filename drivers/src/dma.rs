//! Memory shared with a device: owned, bounds-checked, and read and written as the device's concurrent use demands.

use crate::hal::{DmaPages, Hal, PAGE_SIZE};
use alloc::rc::Rc;
use moraine_platform::OutOfMemory;

/// An integer: any bytes are a valid one.
pub(crate) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for u64 {}

/// DMA memory, zeroed at first. Every access is volatile, because the device may change it at any time; words are
/// in the machine's order, which is the devices' (little-endian).
///
/// Dropping it frees the memory: its owner drops it only when the device is known not to use it, and otherwise
/// calls [`leak`](Dma::leak).
pub(crate) struct Dma {
    hal: Rc<dyn Hal>,
    pages: DmaPages,
    len: usize,
}

impl Dma {
    /// At least `len` bytes, rounded up to whole pages.
    pub(crate) fn new(hal: &Rc<dyn Hal>, len: usize) -> Result<Dma, OutOfMemory> {
        let pages = hal.alloc_dma(len.div_ceil(PAGE_SIZE)).ok_or(OutOfMemory)?;
        assert!(pages.memory.addr().get().is_multiple_of(PAGE_SIZE), "DMA memory is page-aligned");
        Ok(Dma { hal: hal.clone(), pages, len: pages.pages * PAGE_SIZE })
    }

    /// The bus address of byte `offset`.
    pub(crate) fn bus(&self, offset: usize) -> u64 {
        assert!(offset < self.len, "address inside the memory");
        self.pages.bus + offset as u64
    }

    #[inline(always)]
    fn at<T: Plain>(&self, offset: usize) -> *mut T {
        assert!(offset <= self.len - size_of::<T>(), "access inside the memory");
        debug_assert!(offset.is_multiple_of(size_of::<T>()), "naturally aligned access");
        // SAFETY: inside the allocation, as just checked.
        unsafe { self.pages.memory.as_ptr().add(offset).cast::<T>() }
    }

    /// Reads the word at `offset`.
    #[inline(always)]
    pub(crate) fn read<T: Plain>(&self, offset: usize) -> T {
        // SAFETY: `at` checked the bounds; the base is page-aligned and offsets are multiples of the width, which
        // unaligned access would survive on x86 but `debug_assert` holds anyway; any bytes are a valid integer.
        unsafe { self.at::<T>(offset).read_volatile() }
    }

    /// Writes the word at `offset`.
    #[inline(always)]
    pub(crate) fn write<T: Plain>(&self, offset: usize, value: T) {
        // SAFETY: as in `read`; writing through a shared reference is sound because nothing ever forms a Rust
        // reference into this memory but `with_bytes`, which excludes other access while it runs.
        unsafe { self.at::<T>(offset).write_volatile(value) }
    }

    /// Copies bytes out, from `offset`.
    pub(crate) fn copy_out(&self, offset: usize, out: &mut [u8]) {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = self.read(offset + i);
        }
    }

    /// Zeroes all of it. The device must not be using it.
    pub(crate) fn clear(&self) {
        // SAFETY: the whole allocation, valid for writes.
        unsafe { self.pages.memory.as_ptr().write_bytes(0, self.len) }
    }

    /// Hands `len` bytes from `offset` to `visit` as a slice.
    ///
    /// # Safety
    /// While `visit` runs the device does not write to them (nor read what `visit` changes), and nothing else
    /// accesses them through this object.
    pub(crate) unsafe fn with_bytes<R>(
        &self,
        offset: usize,
        len: usize,
        visit: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "access inside the memory");
        // SAFETY: inside the allocation, initialised (zeroed at first), exclusive by the caller's promise.
        visit(unsafe { core::slice::from_raw_parts_mut(self.pages.memory.as_ptr().add(offset), len) })
    }

    /// Never frees the memory, because a device may still use it.
    pub(crate) fn leak(self) {
        core::mem::forget(self);
    }
}

impl Drop for Dma {
    fn drop(&mut self) {
        // SAFETY: from `alloc_dma`, freed once; the owner vouches that the device is done (see the type).
        unsafe { self.hal.free_dma(self.pages) }
    }
}
