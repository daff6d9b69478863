//! Buffers that nodes are read into and written from. After days in little memory there may be no contiguous piece as
//! large as a node, however much is free; so a few are kept for that case. Without them nothing could be written back,
//! nothing would become clean, and what lies between would never be given back.

use crate::vfs::{FsError, FsResult};
use alloc::vec::Vec;
use core::cell::RefCell;
use moraine_platform::{Buf, OutOfMemory};

/// Buffers kept: a root that splits in two is three nodes, and one is read meanwhile.
const SPARE: usize = 4;

pub(crate) struct NodeBuffers {
    node_bytes: usize,
    spare: RefCell<Vec<Buf>>,
}

impl NodeBuffers {
    pub(crate) fn new(node_bytes: usize) -> Result<NodeBuffers, OutOfMemory> {
        let spare = (0..SPARE).map(|_| Buf::zeroed(node_bytes)).collect::<Result<_, _>>()?;
        Ok(NodeBuffers { node_bytes, spare: RefCell::new(spare) })
    }

    /// A zeroed buffer, at most of a node's size. To be [given back](NodeBuffers::give) as soon as its I/O is over.
    pub(super) fn take(&self, bytes: usize) -> FsResult<Buf> {
        assert!(bytes <= self.node_bytes, "nothing of a node is longer than a node");
        if let Ok(buf) = Buf::zeroed(bytes) {
            return Ok(buf);
        }
        let mut buf = self.spare.borrow_mut().pop().ok_or(FsError::NoMemory)?;
        buf.set_len(bytes);
        buf.fill(0);
        Ok(buf)
    }

    /// Keeps a buffer of a node's size if fewer than enough are kept.
    pub(super) fn give(&self, buf: Buf) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE && buf.memory_bytes() == self.node_bytes {
            spare.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_zeroed_and_no_more_than_enough_is_kept() {
        let buffers = NodeBuffers::new(32 << 10).unwrap();
        let spare = || buffers.spare.borrow().len();
        let mut taken = buffers.spare.borrow_mut().pop().unwrap();
        taken.set_len(4096);
        taken.fill(7);
        buffers.give(taken);
        assert_eq!(spare(), SPARE, "however much of it was used");
        buffers.give(buffers.take(4096).unwrap());
        buffers.give(buffers.take(32 << 10).unwrap());
        assert_eq!(spare(), SPARE);
        buffers.spare.borrow_mut().pop();
        buffers.give(buffers.take(4096).unwrap());
        assert_eq!(spare(), SPARE - 1, "small ones are of no use");
        buffers.give(buffers.take(32 << 10).unwrap());
        assert_eq!(spare(), SPARE);
    }
}
