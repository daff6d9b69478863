//! B-tree nodes on disk: a node is a series of checksummed sorted runs, appended one after another; the parent's
//! pointer says how many of them count.
//!
//! | run header | bytes | |
//! |---|---|---|
//! | magic | 0..8 | [`RUN_MAGIC`] xor the pool's tag |
//! | checksum | 8..16 | crc32c (zero-extended) of bytes 16.. of the run, padding included |
//! | version, checksum type, tree, level | 16..20 | |
//! | index, flags | 20..24 | which run of its node, from 0 |
//! | node id | 24..32 | |
//! | bytes, entries | 32..40 | header and entries, without padding; number of entries |
//! | epoch, seq | 40..56 | mount epoch and newest journal seq inside: for repair by scanning |
//! | previous hash | 56..64 | [`Run::hash`] of the run before, 0 for the first |
//! | min, max | 64..104 | range of the node, both inclusive |
//! | nonce, tag | 104..136 | reserved for encryption, zero |
//! | reserved | 136..160 | zero |
//!
//! Entries follow: position (20), kind (1: put, 2: deleted), reserved (0), value length (u16), value. Runs begin on a
//! block of 4 KiB and are padded with zeroes to whole blocks, so that no append touches a block of an older run.

use crate::{FormatError, Pos, Tree, key::POS_BYTES};
use alloc::vec::Vec;
use core::hash::Hasher;
use siphasher::sip::SipHasher24;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit of appends to a node.
pub const NODE_BLOCK: usize = 4096;
/// Marks a run; xored with the pool's tag, so that a pool image inside a volume is never taken for a part of this pool.
pub const RUN_MAGIC: u64 = 0x3172_6e65_6e69_6172;
/// Bytes before the entries of a run.
pub const RUN_HEADER_BYTES: usize = 160;
/// Bytes of an entry besides its value.
pub const ENTRY_BYTES: usize = 24;
/// The longest value a key can have.
pub const VALUE_MAX: usize = 8192;
/// Copies a node can have.
pub const REPLICAS_MAX: usize = 4;

const RUN_VERSION: u8 = 1;
const CHECKSUM_CRC32C: u8 = 1;
const ENTRY_PUT: u8 = 1;
const ENTRY_DELETED: u8 = 2;

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    checksum: U64,
    version: u8,
    checksum_type: u8,
    tree: u8,
    level: u8,
    index: U16,
    flags: U16,
    node: U64,
    bytes: U32,
    entries: U32,
    epoch: U64,
    seq: U64,
    previous: U64,
    min: [u8; POS_BYTES],
    max: [u8; POS_BYTES],
    nonce: [u8; 16],
    tag: [u8; 16],
    reserved: [u8; 24],
}
const _: () = assert!(size_of::<RawHeader>() == RUN_HEADER_BYTES);

/// Which node a run belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdent {
    /// Node id, unique in the pool for ever.
    pub node: u64,
    /// Tree.
    pub tree: Tree,
    /// 0 for leaves.
    pub level: u8,
    /// Smallest position it may hold.
    pub min: Pos,
    /// Greatest position it may hold.
    pub max: Pos,
}

/// What the header of a run says besides the node's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// Which run of its node, from 0.
    pub index: u16,
    /// Mount epoch in which it was written.
    pub epoch: u64,
    /// Newest journal seq whose changes it may hold.
    pub seq: u64,
    /// Hash of the run before it.
    pub previous: u64,
}

/// One entry of a run: a value, or the mark that an older run's value is gone.
pub type Entry<'a> = (Pos, Option<&'a [u8]>);

/// Bytes that an entry with a value of `len` bytes takes.
pub const fn entry_bytes(len: usize) -> usize {
    ENTRY_BYTES + len
}

/// Bytes on disk of a run whose entries take `entry_bytes`.
pub const fn run_bytes(entry_bytes: usize) -> usize {
    (RUN_HEADER_BYTES + entry_bytes).next_multiple_of(NODE_BLOCK)
}

/// Writes a run into `out`, which must be zeroed and exactly [`run_bytes`] long, and returns its hash.
pub fn write_run<'a>(
    out: &mut [u8],
    pool_tag: u64,
    ident: &NodeIdent,
    info: &RunInfo,
    entries: impl Iterator<Item = Entry<'a>>,
) -> u64 {
    let mut at = RUN_HEADER_BYTES;
    let mut count = 0u32;
    for (pos, value) in entries {
        assert!(ident.min <= pos && pos <= ident.max, "an entry lies in its node's range");
        let bytes = value.unwrap_or(&[]);
        assert!(bytes.len() <= VALUE_MAX, "a value is at most {VALUE_MAX} bytes");
        out[at..at + POS_BYTES].copy_from_slice(&pos.to_bytes());
        out[at + POS_BYTES] = if value.is_some() { ENTRY_PUT } else { ENTRY_DELETED };
        out[at + 22..at + 24].copy_from_slice(&(bytes.len() as u16).to_le_bytes());
        out[at + ENTRY_BYTES..at + ENTRY_BYTES + bytes.len()].copy_from_slice(bytes);
        at += entry_bytes(bytes.len());
        count += 1;
    }
    assert!(run_bytes(at - RUN_HEADER_BYTES) == out.len(), "a run fills its blocks");
    let mut header = RawHeader {
        magic: U64::new(RUN_MAGIC ^ pool_tag),
        checksum: U64::ZERO,
        version: RUN_VERSION,
        checksum_type: CHECKSUM_CRC32C,
        tree: ident.tree as u8,
        level: ident.level,
        index: U16::new(info.index),
        flags: U16::ZERO,
        node: U64::new(ident.node),
        bytes: U32::new(at as u32),
        entries: U32::new(count),
        epoch: U64::new(info.epoch),
        seq: U64::new(info.seq),
        previous: U64::new(info.previous),
        min: ident.min.to_bytes(),
        max: ident.max.to_bytes(),
        nonce: [0; 16],
        tag: [0; 16],
        reserved: [0; 24],
    };
    out[..RUN_HEADER_BYTES].copy_from_slice(header.as_bytes());
    header.checksum = U64::new(moraine_accel::crc32c(&out[16..]) as u64);
    out[..RUN_HEADER_BYTES].copy_from_slice(header.as_bytes());
    hash_of(&out[..RUN_HEADER_BYTES])
}

fn hash_of(header: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(0x6d6f_7261_696e_652d, 0x6e6f_6465_2d72_756e);
    hasher.write(header);
    hasher.finish()
}

/// A run whose checksum and structure were verified.
pub struct Run<'a> {
    /// The node it says it belongs to.
    pub ident: NodeIdent,
    /// The rest of its header.
    pub info: RunInfo,
    /// Bytes on disk, padding included.
    pub disk_bytes: usize,
    /// Hash of its header: the parent's pointer holds that of the last run.
    pub hash: u64,
    entries: &'a [u8],
    count: u32,
}

impl<'a> Run<'a> {
    /// Checks and opens the run at the start of `bytes`.
    pub fn parse(bytes: &'a [u8], pool_tag: u64) -> Result<Run<'a>, FormatError> {
        let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| FormatError::Short)?;
        if raw.magic.get() != RUN_MAGIC ^ pool_tag {
            return Err(FormatError::Magic);
        }
        let used = raw.bytes.get() as usize;
        if used < RUN_HEADER_BYTES || used > bytes.len() {
            return Err(FormatError::Length);
        }
        let disk_bytes = used.next_multiple_of(NODE_BLOCK);
        let body = bytes.get(16..disk_bytes).ok_or(FormatError::Length)?;
        if raw.checksum_type != CHECKSUM_CRC32C {
            return Err(FormatError::Unsupported);
        }
        if raw.checksum.get() != moraine_accel::crc32c(body) as u64 {
            return Err(FormatError::Checksum);
        }
        if raw.version != RUN_VERSION {
            return Err(FormatError::Unsupported);
        }
        let ident = NodeIdent {
            node: raw.node.get(),
            tree: Tree::from_id(raw.tree).ok_or(FormatError::Unsupported)?,
            level: raw.level,
            min: Pos::from_bytes(&raw.min),
            max: Pos::from_bytes(&raw.max),
        };
        let info = RunInfo {
            index: raw.index.get(),
            epoch: raw.epoch.get(),
            seq: raw.seq.get(),
            previous: raw.previous.get(),
        };
        let hash = hash_of(&bytes[..RUN_HEADER_BYTES]);
        let run = Run {
            ident,
            info,
            disk_bytes,
            hash,
            entries: &bytes[RUN_HEADER_BYTES..used],
            count: raw.entries.get(),
        };
        run.check_entries()?;
        Ok(run)
    }

    fn check_entries(&self) -> Result<(), FormatError> {
        let (mut rest, mut last, mut count) = (self.entries, None, 0);
        while !rest.is_empty() {
            let (pos, kind, len) = entry_head(rest).ok_or(FormatError::Length)?;
            if rest.len() < ENTRY_BYTES + len || len > VALUE_MAX || !matches!(kind, ENTRY_PUT | ENTRY_DELETED)
            {
                return Err(FormatError::Length);
            }
            if pos < self.ident.min || pos > self.ident.max || last.is_some_and(|l| l >= pos) {
                return Err(FormatError::Order);
            }
            last = Some(pos);
            count += 1;
            rest = &rest[ENTRY_BYTES + len..];
        }
        if count == self.count { Ok(()) } else { Err(FormatError::Length) }
    }

    /// Its entries in order of position.
    pub fn entries(&self) -> impl Iterator<Item = Entry<'a>> + use<'a> {
        let mut rest = self.entries;
        core::iter::from_fn(move || {
            let (pos, kind, len) = entry_head(rest)?;
            let value = &rest[ENTRY_BYTES..ENTRY_BYTES + len];
            rest = &rest[ENTRY_BYTES + len..];
            Some((pos, (kind == ENTRY_PUT).then_some(value)))
        })
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

fn entry_head(bytes: &[u8]) -> Option<(Pos, u8, usize)> {
    let head = bytes.first_chunk::<ENTRY_BYTES>()?;
    let pos = Pos::from_bytes(head.first_chunk::<POS_BYTES>()?);
    Some((pos, head[POS_BYTES], u16::from_le_bytes([head[22], head[23]]) as usize))
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPointer {
    version: u8,
    level: u8,
    replicas: u8,
    flags: u8,
    blocks_written: U32,
    node: U64,
    last_hash: U64,
    runs: U16,
    reserved: U16,
    reserved2: U32,
    tag: [u8; 16],
    min: [u8; POS_BYTES],
    reserved3: U32,
}
const _: () = assert!(size_of::<RawPointer>() == 72);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPlace {
    device: u8,
    flags: u8,
    reserved: U16,
    generation: U32,
    offset: U64,
}
const _: () = assert!(size_of::<RawPlace>() == 16);

/// Where one copy of a node lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePlace {
    /// Device index.
    pub device: u8,
    /// Generation of the bucket.
    pub generation: u32,
    /// Byte offset on the device.
    pub offset: u64,
}

/// A parent's pointer to a node: the value of a key at the node's greatest position, one level up; of a root, the
/// value of its root item in the journal. Layout (72 bytes, then 16 a copy): version, level, copies, flags; blocks
/// written (u32); node id; hash of the last run; runs (u16); 6 reserved; tag (16, reserved); smallest position (20);
/// 4 reserved; copies {device, flags, 2 reserved, generation u32, offset u64}.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePointer {
    /// Node id.
    pub node: u64,
    /// Level of the node pointed at.
    pub level: u8,
    /// How many blocks of [`NODE_BLOCK`] count.
    pub blocks_written: u32,
    /// How many runs these hold.
    pub runs: u16,
    /// Hash of the last of them.
    pub last_hash: u64,
    /// The node's smallest position.
    pub min: Pos,
    /// Its copies, at least one.
    pub places: smallvec::SmallVec<[NodePlace; 1]>,
}

impl NodePointer {
    /// As stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let raw = RawPointer {
            version: RUN_VERSION,
            level: self.level,
            replicas: self.places.len() as u8,
            flags: 0,
            blocks_written: U32::new(self.blocks_written),
            node: U64::new(self.node),
            last_hash: U64::new(self.last_hash),
            runs: U16::new(self.runs),
            reserved: U16::ZERO,
            reserved2: U32::ZERO,
            tag: [0; 16],
            min: self.min.to_bytes(),
            reserved3: U32::ZERO,
        };
        let mut out = raw.as_bytes().to_vec();
        for p in &self.places {
            let raw = RawPlace {
                device: p.device,
                flags: 0,
                reserved: U16::ZERO,
                generation: U32::new(p.generation),
                offset: U64::new(p.offset),
            };
            out.extend_from_slice(raw.as_bytes());
        }
        out
    }

    /// From its bytes.
    pub fn parse(bytes: &[u8]) -> Result<NodePointer, FormatError> {
        let (raw, rest) = RawPointer::ref_from_prefix(bytes).map_err(|_| FormatError::Short)?;
        if raw.version != RUN_VERSION {
            return Err(FormatError::Unsupported);
        }
        let places = <[RawPlace]>::ref_from_bytes(rest).map_err(|_| FormatError::Length)?;
        if places.len() != raw.replicas as usize || places.is_empty() || places.len() > REPLICAS_MAX {
            return Err(FormatError::Length);
        }
        if raw.blocks_written.get() == 0 || raw.runs.get() == 0 {
            return Err(FormatError::Length);
        }
        Ok(NodePointer {
            node: raw.node.get(),
            level: raw.level,
            blocks_written: raw.blocks_written.get(),
            runs: raw.runs.get(),
            last_hash: raw.last_hash.get(),
            min: Pos::from_bytes(&raw.min),
            places: places
                .iter()
                .map(|p| NodePlace {
                    device: p.device,
                    generation: p.generation.get(),
                    offset: p.offset.get(),
                })
                .collect(),
        })
    }

    /// The node id alone: what a descent needs at each level. `None` for bytes that are no pointer.
    pub fn node_of(bytes: &[u8]) -> Option<u64> {
        Some(u64::from_le_bytes(*bytes.get(8..16)?.first_chunk()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    fn ident() -> NodeIdent {
        NodeIdent { node: 42, tree: Tree::Dirents, level: 0, min: Pos::MIN, max: Pos::new(9, 9, 9) }
    }

    fn sample() -> Vec<u8> {
        let entries = [(Pos::new(1, 2, 3), Some(&b"value"[..])), (Pos::new(1, 2, 4), None)];
        let size = entries.iter().map(|(_, v)| entry_bytes(v.map_or(0, |v| v.len()))).sum();
        let mut out = vec![0; run_bytes(size)];
        let info = RunInfo { index: 0, epoch: 5, seq: 77, previous: 0 };
        write_run(&mut out, 0xabcd, &ident(), &info, entries.into_iter());
        out
    }

    #[test]
    fn a_run_reads_back_and_every_flipped_byte_is_noticed() {
        let mut bytes = sample();
        let run = Run::parse(&bytes, 0xabcd).unwrap();
        assert_eq!(run.ident, ident());
        let got: Vec<_> = run.entries().collect();
        assert_eq!(got, [(Pos::new(1, 2, 3), Some(&b"value"[..])), (Pos::new(1, 2, 4), None)]);
        assert!(Run::parse(&bytes, 0xabce).is_err(), "another pool's run");
        for i in 0..bytes.len() {
            bytes[i] ^= 0x10;
            assert!(Run::parse(&bytes, 0xabcd).is_err(), "flipped byte {i}");
            bytes[i] ^= 0x10;
        }
        for cut in 0..bytes.len() {
            assert!(Run::parse(&bytes[..cut], 0xabcd).is_err());
        }
    }

    #[test]
    fn a_pointer_reads_back_and_short_ones_are_refused() {
        let pointer = NodePointer {
            node: 7,
            level: 1,
            blocks_written: 3,
            runs: 2,
            last_hash: 99,
            min: Pos::new(1, 2, 3),
            places: smallvec::smallvec![NodePlace { device: 0, generation: 4, offset: 1 << 20 }],
        };
        let bytes = pointer.to_bytes();
        assert_eq!(NodePointer::parse(&bytes), Ok(pointer));
        assert_eq!(NodePointer::node_of(&bytes), Some(7));
        for cut in 0..bytes.len() {
            assert!(NodePointer::parse(&bytes[..cut]).is_err());
        }
    }
}
