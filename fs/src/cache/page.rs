//! Memory of pages. A page is a block-sized part of a buffer that others may share: readers that are still sending it, a
//! write-back under way, neighbours that came in the same transfer. Shared memory is never written: a change makes a
//! copy. What a buffer takes is metered until its last user is gone, so the cache knows what it really holds.

use crate::vfs::{Bytes, FsError, FsResult};
use alloc::rc::Rc;
use moraine_platform::memory::Meter;
use moraine_platform::{BLOCK_SIZE, Buf};

/// A buffer whose parts are pages.
struct Memory {
    buf: Buf,
    meter: Rc<Meter>,
}

impl Memory {
    fn new(buf: Buf, meter: &Rc<Meter>) -> Rc<Memory> {
        meter.add(footprint(&buf));
        Rc::new(Memory { buf, meter: meter.clone() })
    }
}

fn footprint(buf: &Buf) -> usize {
    buf.len().next_multiple_of(BLOCK_SIZE)
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.meter.sub(footprint(&self.buf));
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        &self.buf
    }
}

/// One block of content.
#[derive(Clone)]
pub(crate) struct Page {
    memory: Rc<Memory>,
    at: usize,
}

/// Several pages in one buffer.
pub(crate) struct Pages {
    memory: Rc<Memory>,
}

impl Pages {
    /// Adopts a buffer of whole blocks.
    pub(crate) fn adopt(buf: Buf, meter: &Rc<Meter>) -> Pages {
        Pages { memory: Memory::new(buf, meter) }
    }

    /// `count` pages of zeroes.
    pub(crate) fn zeroed(count: usize, meter: &Rc<Meter>) -> FsResult<Pages> {
        let buf = Buf::zeroed(count * BLOCK_SIZE).map_err(|_| FsError::NoMemory)?;
        Ok(Pages::adopt(buf, meter))
    }

    /// The page that begins at byte `at`.
    pub(crate) fn page(&self, at: usize) -> Page {
        assert!(at + BLOCK_SIZE <= self.memory.buf.len(), "a page lies inside its buffer");
        Page { memory: self.memory.clone(), at }
    }
}

impl Page {
    /// A page of its own holding `bytes` and zeroes after them.
    pub(crate) fn copy_of(bytes: &[u8], meter: &Rc<Meter>) -> FsResult<Page> {
        let mut buf = Buf::zeroed(BLOCK_SIZE).map_err(|_| FsError::NoMemory)?;
        buf[..bytes.len()].copy_from_slice(bytes);
        Ok(Page { memory: Memory::new(buf, meter), at: 0 })
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory.buf[self.at..self.at + BLOCK_SIZE]
    }

    /// Its bytes to write; the page must be new, shared with nobody.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let at = self.at;
        let memory = Rc::get_mut(&mut self.memory).expect("only a page that nobody shares is written");
        &mut memory.buf[at..at + BLOCK_SIZE]
    }

    /// Whether `next` follows it in the same buffer.
    pub(crate) fn precedes(&self, pages: usize, next: &Page) -> bool {
        Rc::ptr_eq(&self.memory, &next.memory) && self.at + pages * BLOCK_SIZE == next.at
    }

    /// `len` bytes from byte `skip` of this page on, running over into the pages that follow it in its buffer.
    pub(crate) fn share(&self, skip: usize, len: usize) -> Bytes {
        Bytes::new(self.memory.clone(), self.at + skip, len)
    }
}
