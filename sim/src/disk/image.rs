//! What a disk holds: a persistent (copy-on-write) map of blocks, so that keeping or branching an image costs little.

use crate::random::Random;
use crate::trace::{Payload, hash_bytes, mix};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The unit images share and compare by, in bytes.
pub const IMAGE_BLOCK: u64 = 4096;
/// Blocks in a shared group.
const GROUP: u64 = 64;

/// A block with its hash, once somebody asked for it.
#[derive(Clone)]
struct Block {
    bytes: [u8; IMAGE_BLOCK as usize],
    hash: Cell<Option<u64>>,
}

impl Block {
    /// Hash of the bytes and the block's place; zero for a block of zeroes.
    fn hash(&self, number: u64) -> u64 {
        if let Some(hash) = self.hash.get() {
            return hash;
        }
        let zero = self.bytes.iter().all(|b| *b == 0);
        let hash = if zero { 0 } else { mix(number, hash_bytes(&self.bytes)) };
        self.hash.set(Some(hash));
        hash
    }
}

/// Neighbouring blocks, shared as one.
#[derive(Clone)]
struct Group {
    blocks: [Option<Rc<Block>>; GROUP as usize],
    hash: Cell<Option<u64>>,
}

impl Group {
    fn hash(&self, number: u64) -> u64 {
        if let Some(hash) = self.hash.get() {
            return hash;
        }
        let blocks = self.blocks.iter().zip(number * GROUP..);
        let hash = blocks.filter_map(|(b, n)| Some(b.as_ref()?.hash(n))).fold(0, u64::wrapping_add);
        self.hash.set(Some(hash));
        hash
    }
}

/// A disk's content; blocks never written are zeroes.
#[derive(Clone)]
pub struct Image {
    size: u64,
    groups: BTreeMap<u64, Rc<Group>>,
}

impl Image {
    /// All zeroes, `size` bytes long.
    pub fn new(size: u64) -> Image {
        Image { size, groups: BTreeMap::new() }
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn block(&self, block: u64) -> Option<&Rc<Block>> {
        self.groups.get(&(block / GROUP))?.blocks[(block % GROUP) as usize].as_ref()
    }

    fn slot_mut(&mut self, block: u64) -> &mut Option<Rc<Block>> {
        let empty = || Rc::new(Group { blocks: [const { None }; GROUP as usize], hash: Cell::new(None) });
        let group = Rc::make_mut(self.groups.entry(block / GROUP).or_insert_with(empty));
        group.hash.set(None);
        &mut group.blocks[(block % GROUP) as usize]
    }

    fn block_mut(&mut self, block: u64) -> &mut [u8; IMAGE_BLOCK as usize] {
        let empty = || Rc::new(Block { bytes: [0; IMAGE_BLOCK as usize], hash: Cell::new(None) });
        let block = Rc::make_mut(self.slot_mut(block).get_or_insert_with(empty));
        block.hash.set(None);
        &mut block.bytes
    }

    /// Fills `out` from `offset` on.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        for_blocks(offset, out.len() as u64, |block, from, at, len| match self.block(block) {
            Some(block) => out[at..at + len].copy_from_slice(&block.bytes[from..from + len]),
            None => out[at..at + len].fill(0),
        });
    }

    /// Puts `bytes` at `offset`.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        for_blocks(offset, bytes.len() as u64, |block, from, at, len| {
            self.block_mut(block)[from..from + len].copy_from_slice(&bytes[at..at + len]);
        });
    }

    /// Puts the part `from..to` of a payload that belongs at `offset`.
    pub(crate) fn put(&mut self, offset: u64, payload: &Payload, from: u64, to: u64) {
        match payload {
            Payload::Bytes(bytes) => self.write(offset + from, &bytes[from as usize..to as usize]),
            Payload::Zeroes(_) => for_blocks(offset + from, to - from, |block, at, _, len| {
                if len as u64 == IMAGE_BLOCK {
                    self.forget(block);
                } else {
                    self.block_mut(block)[at..at + len].fill(0);
                }
            }),
            Payload::Noise(seed, _) => for_blocks(offset + from, to - from, |block, at, _, len| {
                // Small disks are discarded in large pieces: noise in the first bytes of each block is noise enough.
                let bytes = &mut self.block_mut(block)[at..at + len];
                bytes.fill(0xD5);
                Random::new(seed ^ block).fill(&mut bytes[..len.min(16)]);
            }),
        }
    }

    fn forget(&mut self, block: u64) {
        if self.block(block).is_some() {
            *self.slot_mut(block) = None;
        }
    }

    /// Flips the bits of `mask` in one byte.
    pub fn flip(&mut self, offset: u64, mask: u8) {
        self.block_mut(offset / IMAGE_BLOCK)[(offset % IMAGE_BLOCK) as usize] ^= mask;
    }

    /// Hash of the content. Blocks of zeroes and blocks never written are the same. What was hashed before and did not
    /// change is not hashed again.
    pub fn hash(&self) -> u64 {
        self.groups.iter().fold(self.size, |hash, (number, group)| hash.wrapping_add(group.hash(*number)))
    }

    /// Blocks in which two images differ.
    pub fn difference(&self, other: &Image) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.groups.keys().chain(other.groups.keys()).copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut out = Vec::new();
        for group in numbers {
            let (left, right) = (self.groups.get(&group), other.groups.get(&group));
            if let (Some(left), Some(right)) = (left, right)
                && Rc::ptr_eq(left, right)
            {
                continue;
            }
            for block in group * GROUP..(group + 1) * GROUP {
                let same = match (self.block(block), other.block(block)) {
                    (Some(left), Some(right)) => Rc::ptr_eq(left, right) || left.bytes == right.bytes,
                    (Some(one), None) | (None, Some(one)) => one.hash(block) == 0,
                    (None, None) => true,
                };
                if !same {
                    out.push(block);
                }
            }
        }
        out
    }
}

/// Cuts `offset..offset + len` at block boundaries: block, where in it, where in the range, how long.
fn for_blocks(offset: u64, len: u64, mut each: impl FnMut(u64, usize, usize, usize)) {
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let (block, from) = (at / IMAGE_BLOCK, at % IMAGE_BLOCK);
        let piece = (IMAGE_BLOCK - from).min(end - at);
        each(block, from as usize, (at - offset) as usize, piece as usize);
        at += piece;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_share_until_written_and_compare_by_block() {
        let mut a = Image::new(1 << 20);
        a.write(4000, &[7; 200]);
        let b = a.clone();
        a.put(8192, &Payload::Zeroes(4096), 0, 4096);
        assert_eq!(a.hash(), b.hash(), "zeroes written are zeroes never written");
        a.write(4096, &[1]);
        assert_eq!(a.difference(&b), [1]);
        let mut bytes = [0; 202];
        b.read(3999, &mut bytes);
        assert_eq!((bytes[0], bytes[1], bytes[200], bytes[201]), (0, 7, 7, 0));
        assert_ne!(a.hash(), b.hash());
    }
}
