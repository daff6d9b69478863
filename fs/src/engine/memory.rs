//! State of an engine without a disk.

use crate::tx::Value;
use crate::vfs::{FsError, FsResult};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use moraine_format::{Pos, Tree};
use moraine_platform::Buf;

pub(crate) struct State {
    pub(crate) keys: BTreeMap<(Tree, Pos), Value>,
    pub(crate) seq: u64,
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) reserved: u64,
    data: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

impl State {
    pub(crate) fn new(total: u64) -> State {
        State {
            keys: BTreeMap::new(),
            seq: 0,
            total,
            free: total,
            reserved: 0,
            data: BTreeMap::new(),
            next: 1 << 20,
        }
    }

    pub(crate) fn place(&mut self, data: &[u8]) -> u64 {
        let offset = self.next;
        self.next += data.len() as u64;
        self.data.insert(offset, data.to_vec());
        offset
    }

    pub(crate) fn fetch(&self, offset: u64, skip: usize, len: usize) -> FsResult<Buf> {
        let (start, data) =
            self.data.range(..=offset + skip as u64).next_back().ok_or(FsError::DeviceRead)?;
        let at = (offset - start) as usize + skip;
        Buf::copy_of(&data[at..at + len]).map_err(|_| FsError::NoMemory)
    }
}
