//! I/O buffers: owned, block-aligned memory that a device may read from or write into.

use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, DerefMut};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The filesystem's block: the unit of device I/O, of data checksums and of the page cache, in bytes.
pub const BLOCK_SIZE: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK_SIZE]);

/// Memory could not be had. The caller waits for reclaim or refuses the request; it never panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

/// An owned buffer of whole blocks, aligned to [`BLOCK_SIZE`], for device I/O.
///
/// Ownership is what makes cancellation safe: a device takes a `Buf` by value and gives it back when the
/// command completed, so memory that hardware still uses can never be freed by a dropped future. In the
/// kernel the heap is a linear map of physical memory, so a `Buf` is also physically contiguous.
pub struct Buf {
    pages: Vec<Page>,
    len: usize,
}

impl Buf {
    /// A zeroed buffer of `len` bytes; its memory is rounded up to whole blocks. Refused also while the platform's
    /// [gate](crate::memory::set_gate) is closed for so many.
    pub fn zeroed(len: usize) -> Result<Buf, OutOfMemory> {
        let count = len.div_ceil(BLOCK_SIZE);
        if !crate::memory::open(count * BLOCK_SIZE) {
            return Err(OutOfMemory);
        }
        let mut pages = Vec::new();
        pages.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
        pages.resize(count, Page([0; BLOCK_SIZE]));
        Ok(Buf { pages, len })
    }

    /// A buffer holding copies of whole blocks, one behind the other, which is cheaper than to copy them over zeroes.
    /// Refused as [`Buf::zeroed`] is.
    ///
    /// # Panics
    /// If one of them is not [`BLOCK_SIZE`] bytes long.
    pub fn of_blocks<'a>(blocks: impl ExactSizeIterator<Item = &'a [u8]>) -> Result<Buf, OutOfMemory> {
        let len = blocks.len() * BLOCK_SIZE;
        if !crate::memory::open(len) {
            return Err(OutOfMemory);
        }
        let mut pages = Vec::new();
        pages.try_reserve_exact(blocks.len()).map_err(|_| OutOfMemory)?;
        pages.extend(blocks.map(|block| Page(block.try_into().expect("a whole block"))));
        Ok(Buf { pages, len })
    }

    /// A buffer holding a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Result<Buf, OutOfMemory> {
        let mut buf = Buf::zeroed(bytes.len())?;
        buf.copy_from_slice(bytes);
        Ok(buf)
    }

    /// What to ask for when there was no memory for `len` bytes in one piece and less would do: half, but whole blocks.
    pub fn less_than(len: usize) -> usize {
        (len / 2).next_multiple_of(BLOCK_SIZE).min(len)
    }

    /// Length in bytes, as asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of its memory, shown or not.
    pub fn memory_bytes(&self) -> usize {
        self.pages.len() * BLOCK_SIZE
    }

    /// Shows the first `len` bytes of the memory, which may be more than before: a truncated buffer grows back.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.memory_bytes(), "a buffer cannot outgrow its memory");
        self.len = len;
    }

    /// Shortens the visible part to `len` bytes; the memory stays.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.pages.as_slice().as_bytes()[..self.len]
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_slice().as_mut_bytes()[..self.len]
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_block_aligned_zeroed_and_as_long_as_asked() {
        let mut buf = Buf::zeroed(5000).unwrap();
        assert_eq!(buf.as_ptr() as usize % BLOCK_SIZE, 0);
        assert_eq!(buf.len(), 5000);
        assert!(buf.iter().all(|&b| b == 0));
        buf[4999] = 7;
        buf.truncate(10);
        assert_eq!(buf.len(), 10);
        buf.set_len(5000);
        assert_eq!(buf[4999], 7, "what was hidden is still there");
        assert_eq!(&*Buf::copy_of(b"abc").unwrap(), b"abc");
    }

    #[test]
    fn blocks_are_gathered_in_order() {
        let blocks = [[1; BLOCK_SIZE], [2; BLOCK_SIZE]];
        let buf = Buf::of_blocks(blocks.iter().map(|b| &b[..])).unwrap();
        assert_eq!(&*buf, blocks.as_flattened());
        assert!(Buf::of_blocks([].into_iter()).unwrap().is_empty());
    }
}
