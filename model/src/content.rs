//! A sparse file's bytes: a map from block number to block. What is not in the map is a hole.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use moraine_fs::vfs::Segment;
use moraine_platform::BLOCK_SIZE;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Content of a regular file. Bytes past `size` are always zero, so that extending shows zeroes.
#[derive(Clone, Default)]
pub(crate) struct Content {
    pub(crate) size: u64,
    blocks: BTreeMap<u64, Rc<[u8; BLOCK_SIZE]>>,
}

impl Content {
    /// Bytes of space used: whole blocks.
    pub(crate) fn used(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    /// Bytes at `offset`, at most `len`, short at the end of the file.
    pub(crate) fn read(&self, offset: u64, len: u32) -> Vec<u8> {
        let end = offset.saturating_add(u64::from(len)).min(self.size);
        let mut out = vec![0; end.saturating_sub(offset) as usize];
        for (block, from, to) in pieces(offset, end) {
            if let Some(bytes) = self.blocks.get(&block) {
                let at = (block * BLOCK + from as u64 - offset) as usize;
                out[at..at + (to - from)].copy_from_slice(&bytes[from..to]);
            }
        }
        out
    }

    /// Writes `data`, which makes the file longer where it ends beyond it.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        for (block, from, to) in pieces(offset, end) {
            let at = (block * BLOCK + from as u64 - offset) as usize;
            let bytes = self.blocks.entry(block).or_insert_with(|| Rc::new([0; BLOCK_SIZE]));
            Rc::make_mut(bytes)[from..to].copy_from_slice(&data[at..at + (to - from)]);
        }
        self.size = self.size.max(end);
    }

    /// Cuts or extends the file.
    pub(crate) fn truncate(&mut self, size: u64) {
        if size < self.size {
            self.clear(size, self.size);
        }
        self.size = size;
    }

    /// Makes the range zeroes and its whole blocks holes; what lies beyond the end needs no clearing.
    pub(crate) fn punch(&mut self, offset: u64, len: u64) {
        self.clear(offset, offset.saturating_add(len).min(self.size));
    }

    /// Clears `from..to`; a range that reaches the end of the file includes the rest of its last block.
    fn clear(&mut self, from: u64, to: u64) {
        let to = if to >= self.size { to.next_multiple_of(BLOCK) } else { to };
        if from >= to {
            return;
        }
        let (first_whole, end_whole) = (from.div_ceil(BLOCK), to / BLOCK);
        for (block, lo, hi) in [from, to].map(|edge| edge / BLOCK).into_iter().filter_map(|block| {
            let lo = from.max(block * BLOCK) - block * BLOCK;
            let hi = to.min((block + 1) * BLOCK).saturating_sub(block * BLOCK);
            (lo < hi && hi - lo < BLOCK).then_some((block, lo as usize, hi as usize))
        }) {
            if let Some(bytes) = self.blocks.get_mut(&block) {
                Rc::make_mut(bytes)[lo..hi].fill(0);
            }
        }
        if first_whole < end_whole {
            let whole: Vec<u64> = self.blocks.range(first_whole..end_whole).map(|(b, _)| *b).collect();
            for block in whole {
                self.blocks.remove(&block);
            }
        }
    }

    /// Data and holes of the range, clipped to the file.
    pub(crate) fn segments(&self, offset: u64, len: u64) -> Vec<Segment> {
        let end = offset.saturating_add(len).min(self.size);
        let mut out: Vec<Segment> = Vec::new();
        let mut at = offset;
        while at < end {
            let block = at / BLOCK;
            let next = self.blocks.range(block..).next().map(|(b, _)| *b);
            let (hole, until) = match next {
                Some(b) if b == block => (false, (block + 1) * BLOCK),
                Some(b) => (true, b * BLOCK),
                None => (true, end),
            };
            let until = until.min(end);
            match out.last_mut() {
                Some(last) if last.hole == hole => last.len += until - at,
                _ => out.push(Segment { offset: at, len: until - at, hole }),
            }
            at = until;
        }
        out
    }

    /// Whether a block takes no space.
    #[cfg(test)]
    pub(crate) fn is_hole(&self, block: u64) -> bool {
        !self.blocks.contains_key(&block)
    }
}

/// The range cut at block boundaries: block number and the part of it that is inside.
fn pieces(start: u64, end: u64) -> Box<dyn Iterator<Item = (u64, usize, usize)>> {
    let blocks = start / BLOCK..end.div_ceil(BLOCK).max(start / BLOCK);
    Box::new(blocks.filter_map(move |block| {
        let from = start.max(block * BLOCK) - block * BLOCK;
        let to = end.min((block + 1) * BLOCK) - block * BLOCK;
        (from < to).then_some((block, from as usize, to as usize))
    }))
}
