//! Values of the trees that account for space: buckets, free ranges, backpointers, counters.

use crate::{FormatError, Pos, Tree, key::POS_BYTES};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a bucket holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BucketKind {
    /// Nothing; it can be claimed (as can a bucket without an alloc key).
    Free = 0,
    /// Nodes of B-trees.
    Btree = 1,
    /// File content.
    User = 2,
    /// Content moved by background work.
    Moved = 3,
}

impl BucketKind {
    fn from_u8(n: u8) -> Option<BucketKind> {
        use BucketKind::*;
        [Free, Btree, User, Moved].into_iter().find(|k| *k as u8 == n)
    }

    /// Its name in text dumps.
    pub fn name(self) -> &'static str {
        match self {
            BucketKind::Free => "free",
            BucketKind::Btree => "btree",
            BucketKind::User => "user",
            BucketKind::Moved => "moved",
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawAlloc {
    version: u8,
    kind: u8,
    flags: U16,
    generation: U32,
    live_bytes: U64,
    cached_bytes: U64,
    stripe: U64,
    seq_nonempty: U64,
    seq_empty: U64,
    io_time: U64,
}
const _: () = assert!(size_of::<RawAlloc>() == 56);

const ALLOC_VERSION: u8 = 1;

/// Value in tree alloc at `(device, bucket, 0)`. Layout: version, kind, flags (u16, zero), generation (u32), live bytes,
/// cached bytes, stripe (reserved), journal seq that filled it, journal seq that emptied it, io time (reserved).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alloc {
    /// What it holds.
    pub kind: BucketKind,
    /// Raised each time the bucket is freed.
    pub generation: u32,
    /// Bytes that keys point at.
    pub live_bytes: u64,
    /// Journal seq of the commit that put the first live bytes there.
    pub seq_nonempty: u64,
    /// Journal seq of the commit that took the last live bytes away; names its key in tree need-discard.
    pub seq_empty: u64,
}

impl Alloc {
    /// A bucket never used: what the absence of a key means.
    pub const UNUSED: Alloc =
        Alloc { kind: BucketKind::Free, generation: 0, live_bytes: 0, seq_nonempty: 0, seq_empty: 0 };

    /// As stored.
    pub fn to_bytes(&self) -> [u8; 56] {
        let raw = RawAlloc {
            version: ALLOC_VERSION,
            kind: self.kind as u8,
            flags: U16::ZERO,
            generation: U32::new(self.generation),
            live_bytes: U64::new(self.live_bytes),
            cached_bytes: U64::ZERO,
            stripe: U64::ZERO,
            seq_nonempty: U64::new(self.seq_nonempty),
            seq_empty: U64::new(self.seq_empty),
            io_time: U64::ZERO,
        };
        zerocopy::transmute!(raw)
    }

    /// From its bytes.
    pub fn parse(bytes: &[u8]) -> Result<Alloc, FormatError> {
        let raw = RawAlloc::ref_from_bytes(bytes).map_err(|_| FormatError::Length)?;
        if raw.version != ALLOC_VERSION {
            return Err(FormatError::Unsupported);
        }
        Ok(Alloc {
            kind: BucketKind::from_u8(raw.kind).ok_or(FormatError::Unsupported)?,
            generation: raw.generation.get(),
            live_bytes: raw.live_bytes.get(),
            seq_nonempty: raw.seq_nonempty.get(),
            seq_empty: raw.seq_empty.get(),
        })
    }

    /// Whether it waits for its discard: used once, empty now. Exactly then it has a key in tree need-discard.
    pub fn needs_discard(&self) -> bool {
        self.kind != BucketKind::Free && self.live_bytes == 0
    }
}

/// Position of a bucket's key in tree alloc.
pub fn bucket_pos(device: u8, bucket: u64) -> Pos {
    Pos::new(device as u64, bucket, 0)
}

/// Position of a bucket's key in tree need-discard: ordered by the journal seq that emptied it.
pub fn need_discard_pos(seq_empty: u64, device: u8, bucket: u64) -> Pos {
    debug_assert!(bucket < 1 << 48);
    Pos::new(seq_empty, (device as u64) << 48 | bucket, 0)
}

/// Device and bucket of a key in tree need-discard.
pub fn need_discard_bucket(pos: Pos) -> (u8, u64) {
    ((pos.offset >> 48) as u8, pos.offset & ((1 << 48) - 1))
}

/// List number of fragmented buckets in tree lru.
const LIST_FRAGMENTED: u64 = 1;
/// Steps that the fill of a bucket is told apart by.
const FILL_STEPS: u64 = 64;

/// Where a bucket stands in the list of fragmented ones: at `(list << 56 | fill, device << 48 | bucket, 0)` in tree lru,
/// with an empty value; `fill` is live bytes in 64ths of the bucket, rounded down. Full, empty and metadata buckets are not
/// in the list.
pub fn fragmented_pos(alloc: &Alloc, device: u8, bucket: u64, bucket_bytes: u64) -> Option<Pos> {
    let data = matches!(alloc.kind, BucketKind::User | BucketKind::Moved);
    let fill = alloc.live_bytes.saturating_mul(FILL_STEPS) / bucket_bytes.max(1);
    let listed = data && alloc.live_bytes > 0 && fill < FILL_STEPS - 2;
    listed.then(|| Pos::new(LIST_FRAGMENTED << 56 | fill, (device as u64) << 48 | bucket, 0))
}

/// Where the list of fragmented buckets is, emptiest first.
pub fn fragmented_range() -> core::ops::RangeInclusive<Pos> {
    Pos::new(LIST_FRAGMENTED << 56, 0, 0)..=Pos::new(LIST_FRAGMENTED << 56 | FILL_STEPS, u64::MAX, u32::MAX)
}

/// Device and bucket of a key in the list of fragmented buckets.
pub fn fragmented_bucket(pos: Pos) -> (u8, u64) {
    need_discard_bucket(pos)
}

/// A key of tree freespace at `(device, last bucket, 0)`: its value is the first bucket of the range (u64).
pub fn free_range_value(first: u64) -> [u8; 8] {
    first.to_le_bytes()
}

/// First bucket of a free range.
pub fn parse_free_range(pos: Pos, value: &[u8]) -> Result<u64, FormatError> {
    let first = u64::from_le_bytes(value.try_into().map_err(|_| FormatError::Length)?);
    if first > pos.offset { Err(FormatError::Value) } else { Ok(first) }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBackpointer {
    version: u8,
    tree: u8,
    level: u8,
    flags: u8,
    len: U32,
    pos: [u8; POS_BYTES],
    reserved: U32,
}
const _: () = assert!(size_of::<RawBackpointer>() == 32);

/// Value in tree backpointers at `(device, byte offset, n)`: which key refers to the bytes there. Several keys may refer
/// to one place; `n` tells them apart. Layout: version, tree, level, flags, bytes (u32), position (20), 4 reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backpointer {
    /// Tree of the key.
    pub tree: Tree,
    /// Its level: 0 for extents, that of the pointer (≥ 1) for nodes; [`Backpointer::ROOT`] for a root.
    pub level: u8,
    /// Bytes it refers to.
    pub len: u32,
    /// Where the key is.
    pub pos: Pos,
}

impl Backpointer {
    /// Set in `level` when the referrer is a tree's root item (whose pointer is of the level in the other bits).
    pub const ROOT: u8 = 0x80;

    /// As stored.
    pub fn to_bytes(&self) -> [u8; 32] {
        let raw = RawBackpointer {
            version: ALLOC_VERSION,
            tree: self.tree as u8,
            level: self.level,
            flags: 0,
            len: U32::new(self.len),
            pos: self.pos.to_bytes(),
            reserved: U32::ZERO,
        };
        zerocopy::transmute!(raw)
    }

    /// From its bytes.
    pub fn parse(bytes: &[u8]) -> Result<Backpointer, FormatError> {
        let raw = RawBackpointer::ref_from_bytes(bytes).map_err(|_| FormatError::Length)?;
        if raw.version != ALLOC_VERSION {
            return Err(FormatError::Unsupported);
        }
        Ok(Backpointer {
            tree: Tree::from_id(raw.tree).ok_or(FormatError::Unsupported)?,
            level: raw.level,
            len: raw.len.get(),
            pos: Pos::from_bytes(&raw.pos),
        })
    }
}

/// Counters of one device: at `(DEVICE, device, 0)` in tree accounting, six i64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceUsage {
    /// Buckets that hold nodes.
    pub btree_buckets: i64,
    /// Buckets that hold file content.
    pub data_buckets: i64,
    /// Empty buckets that wait for their discard.
    pub discard_buckets: i64,
    /// Live bytes of nodes.
    pub btree_bytes: i64,
    /// Live bytes of file content.
    pub data_bytes: i64,
}

/// Counters of the whole pool: at `(POOL, 0, 0)` in tree accounting, six i64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// Inodes that exist, nameless ones included.
    pub inodes: i64,
}

const COUNTERS: usize = 6;
const DEVICE: u64 = 1;
const POOL: u64 = 2;

fn counters(values: &[i64]) -> [u8; 8 * COUNTERS] {
    let mut raw = [I64::ZERO; COUNTERS];
    for (out, value) in raw.iter_mut().zip(values) {
        *out = I64::new(*value);
    }
    zerocopy::transmute!(raw)
}

fn parse_counters(bytes: &[u8]) -> Result<[i64; COUNTERS], FormatError> {
    let raw = <[I64; COUNTERS]>::ref_from_bytes(bytes).map_err(|_| FormatError::Length)?;
    Ok(raw.map(|v| v.get()))
}

impl DeviceUsage {
    /// Where a device's counters are.
    pub fn pos(device: u8) -> Pos {
        Pos::new(DEVICE, device as u64, 0)
    }

    /// As stored.
    pub fn to_bytes(&self) -> [u8; 48] {
        counters(&[
            self.btree_buckets,
            self.data_buckets,
            self.discard_buckets,
            self.btree_bytes,
            self.data_bytes,
        ])
    }

    /// From its bytes.
    pub fn parse(bytes: &[u8]) -> Result<DeviceUsage, FormatError> {
        let [btree_buckets, data_buckets, discard_buckets, btree_bytes, data_bytes, _] =
            parse_counters(bytes)?;
        Ok(DeviceUsage { btree_buckets, data_buckets, discard_buckets, btree_bytes, data_bytes })
    }
}

impl PoolUsage {
    /// Where they are.
    pub fn pos() -> Pos {
        Pos::new(POOL, 0, 0)
    }

    /// As stored.
    pub fn to_bytes(&self) -> [u8; 48] {
        counters(&[self.inodes])
    }

    /// From its bytes.
    pub fn parse(bytes: &[u8]) -> Result<PoolUsage, FormatError> {
        Ok(PoolUsage { inodes: parse_counters(bytes)?[0] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_back_and_wrong_lengths_are_refused() {
        let alloc =
            Alloc { kind: BucketKind::User, generation: 3, live_bytes: 4096, seq_nonempty: 5, seq_empty: 6 };
        assert_eq!(Alloc::parse(&alloc.to_bytes()), Ok(alloc));
        assert!(Alloc::parse(&alloc.to_bytes()[..55]).is_err());
        let back = Backpointer { tree: Tree::Extents, level: 0, len: 4096, pos: Pos::new(1, 2, 3) };
        assert_eq!(Backpointer::parse(&back.to_bytes()), Ok(back));
        let usage = DeviceUsage {
            btree_buckets: 1,
            data_buckets: -2,
            discard_buckets: 3,
            btree_bytes: 4,
            data_bytes: 5,
        };
        assert_eq!(DeviceUsage::parse(&usage.to_bytes()), Ok(usage));
        assert_eq!(PoolUsage::parse(&PoolUsage { inodes: 9 }.to_bytes()), Ok(PoolUsage { inodes: 9 }));
        assert_eq!(need_discard_bucket(need_discard_pos(9, 3, 77)), (3, 77));
        assert_eq!(parse_free_range(Pos::new(0, 9, 0), &free_range_value(4)), Ok(4));
        assert!(parse_free_range(Pos::new(0, 9, 0), &free_range_value(10)).is_err());
    }
}
