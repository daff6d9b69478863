//! Where the bytes of a file are.
//!
//! Tree `extents`, key `(inode, end, snapshot)`: the position's offset is where the extent *ends* in the file, its
//! length is in the value; both are multiples of [`BLOCK`]. No key = a hole.
//!
//! | part | bytes | |
//! |---|---|---|
//! | type | 0 | 1 hole whiteout, 2 reservation, 3 inline, 4 extent, 5 reflink reference, 6 error |
//! | encoding, checksum type, granule | 1..4 | of type 4, else zero |
//! | blocks | 4..8 | length in the file, in blocks |
//!
//! An inline extent goes on with its bytes; what is missing to the end of its block is zero. A stored extent goes on
//! with [`StoredRaw`], then, as its flags say, nonce and tag (32 bytes), place in a stripe (16 bytes), then its
//! pointers (16 bytes each) and its checksums (4 or 8 bytes each, one a granule).

use crate::{FormatError, Pos};
use alloc::vec::Vec;
use core::fmt;
use smallvec::SmallVec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit of extents, in bytes.
pub const BLOCK: u64 = 4096;
/// The largest stored extent, in blocks: 128 KiB.
pub const STORED_BLOCKS_MAX: u32 = 32;
/// Copies an extent can have.
pub const POINTERS_MAX: usize = 4;

const TYPE_HOLE: u8 = 1;
const TYPE_RESERVATION: u8 = 2;
const TYPE_INLINE: u8 = 3;
const TYPE_STORED: u8 = 4;
const TYPE_REFLINK: u8 = 5;
const TYPE_ERROR: u8 = 6;

/// The bytes lie as they are. Other encodings (lz4, zstd, each optionally encrypted) come later.
pub const ENCODING_NONE: u8 = 0;
/// CRC-32C, four bytes each.
pub const CHECKSUM_CRC32C: u8 = 1;
/// log2 of the bytes each checksum covers.
pub const GRANULE_SHIFT: u8 = 12;

/// `flags`: nonce and tag follow.
pub const FLAG_SEALED: u8 = 1 << 0;
/// `flags`: a place in a stripe follows.
pub const FLAG_STRIPED: u8 = 1 << 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct HeadRaw {
    kind: u8,
    encoding: u8,
    checksum: u8,
    granule_shift: u8,
    blocks: U32,
}

/// What follows the head of a stored extent.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct StoredRaw {
    /// Blocks it takes on a device.
    body_blocks: U32,
    /// Blocks after decoding; equals `body_blocks` without encoding.
    decoded_blocks: U32,
    /// Where this key's range begins in the decoded body; zero without encoding, where pointers move instead.
    skip_blocks: U32,
    flags: u8,
    pointers: u8,
    checksums: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PointerRaw {
    device: u8,
    flags: u8,
    reserved: [u8; 2],
    generation: U32,
    offset_blocks: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ReflinkRaw {
    end: U64,
    front_blocks: U32,
    back_blocks: U32,
}

const HEAD: usize = size_of::<HeadRaw>();
const STORED: usize = size_of::<StoredRaw>();
const POINTER: usize = size_of::<PointerRaw>();
const _: () = assert!(HEAD == 8 && STORED == 16 && POINTER == 16 && size_of::<ReflinkRaw>() == 16);

/// A copy of an extent's body on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Device index in the pool.
    pub device: u8,
    /// Generation of the bucket.
    pub generation: u32,
    /// Byte offset on the device.
    pub offset_bytes: u64,
    /// Bytes this key keeps alive there.
    pub len_bytes: u32,
}

/// Content on devices: plain blocks with a checksum each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Copies; 1 ..= 4.
    pub pointers: SmallVec<[Pointer; 1]>,
    /// CRC-32C of each block.
    pub checksums: SmallVec<[u32; 4]>,
}

/// What a range of a file is, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A hole that hides an older snapshot's data. Reserved.
    Hole,
    /// Space promised, reads as zeroes. Reserved.
    Reservation,
    /// The bytes themselves, at most one block; zeroes follow to its end.
    Inline(Vec<u8>),
    /// On devices.
    Stored(Stored),
    /// Shared content in tree `reflink`. Reserved.
    Reflink {
        /// Position there.
        end: u64,
        /// Blocks counted before the range.
        front_blocks: u32,
        /// Blocks counted behind it.
        back_blocks: u32,
    },
    /// The content is known to be lost.
    Error,
}

/// A value of the tree with its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file, in bytes.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
    /// What is there.
    pub content: Content,
}

impl Extent {
    /// Checks the value stored at `pos`.
    pub fn parse(pos: Pos, value: &[u8]) -> Result<Extent, FormatError> {
        let (start, head, rest) = parse_head(pos, value)?;
        let content = match head.kind {
            TYPE_HOLE if rest.is_empty() => Content::Hole,
            TYPE_RESERVATION if rest.is_empty() => Content::Reservation,
            TYPE_ERROR if rest.is_empty() => Content::Error,
            TYPE_INLINE if head.blocks == 1 && rest.len() as u64 <= BLOCK => Content::Inline(rest.into()),
            TYPE_STORED => {
                let stored = StoredView::parse(head, rest)?;
                if stored.encoded {
                    return Err(FormatError::Unsupported);
                }
                Content::Stored(Stored {
                    pointers: stored.pointers().collect(),
                    checksums: stored.checksums.iter().map(|c| c.get()).collect(),
                })
            }
            TYPE_REFLINK => {
                let raw = ReflinkRaw::ref_from_bytes(rest).map_err(|_| FormatError::Length)?;
                Content::Reflink {
                    end: raw.end.get(),
                    front_blocks: raw.front_blocks.get(),
                    back_blocks: raw.back_blocks.get(),
                }
            }
            TYPE_HOLE..=TYPE_ERROR => return Err(FormatError::Length),
            _ => return Err(FormatError::Unsupported),
        };
        Ok(Extent { start, end: pos.offset, content })
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Whether it is empty; no valid extent is.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes of space it is said to use in its file's attributes.
    pub fn used(&self) -> u64 {
        match self.content {
            Content::Inline(_) | Content::Stored(_) | Content::Reflink { .. } => self.len(),
            Content::Hole | Content::Reservation | Content::Error => 0,
        }
    }

    /// Whether it reads as zeroes and may be called a hole.
    pub fn is_hole(&self) -> bool {
        matches!(self.content, Content::Hole | Content::Reservation)
    }

    /// The part of it in `start .. end`, which must lie inside and on block boundaries: pointers and checksums are
    /// cut with it.
    pub fn cut(&self, start: u64, end: u64) -> Extent {
        assert!(self.start <= start && start < end && end <= self.end, "a cut lies inside its extent");
        assert!(
            start.is_multiple_of(BLOCK) && end.is_multiple_of(BLOCK),
            "extents are cut at block boundaries"
        );
        let (skip, keep) = ((start - self.start) / BLOCK, (end - start) / BLOCK);
        let content = match &self.content {
            Content::Stored(stored) => Content::Stored(Stored {
                pointers: stored
                    .pointers
                    .iter()
                    .map(|p| Pointer {
                        offset_bytes: p.offset_bytes + skip * BLOCK,
                        len_bytes: (keep * BLOCK) as u32,
                        ..*p
                    })
                    .collect(),
                checksums: stored.checksums[skip as usize..(skip + keep) as usize].into(),
            }),
            Content::Reflink { end, front_blocks, back_blocks } => {
                let behind = ((self.end - start) / BLOCK - keep) as u32;
                Content::Reflink {
                    end: end - behind as u64 * BLOCK,
                    front_blocks: front_blocks + skip as u32,
                    back_blocks: back_blocks + behind,
                }
            }
            other => other.clone(),
        };
        Extent { start, end, content }
    }

    /// The value to store at the position that ends it.
    pub fn to_value(&self) -> Vec<u8> {
        let blocks = ((self.end - self.start) / BLOCK) as u32;
        let plain =
            |kind| HeadRaw { kind, encoding: 0, checksum: 0, granule_shift: 0, blocks: blocks.into() };
        let mut out;
        match &self.content {
            Content::Hole => out = plain(TYPE_HOLE).as_bytes().to_vec(),
            Content::Reservation => out = plain(TYPE_RESERVATION).as_bytes().to_vec(),
            Content::Error => out = plain(TYPE_ERROR).as_bytes().to_vec(),
            Content::Inline(bytes) => {
                assert!(blocks == 1 && bytes.len() as u64 <= BLOCK, "inline content is one block at most");
                out = Vec::with_capacity(HEAD + bytes.len());
                out.extend_from_slice(plain(TYPE_INLINE).as_bytes());
                out.extend_from_slice(bytes);
            }
            Content::Reflink { end, front_blocks, back_blocks } => {
                out = plain(TYPE_REFLINK).as_bytes().to_vec();
                let raw = ReflinkRaw {
                    end: (*end).into(),
                    front_blocks: (*front_blocks).into(),
                    back_blocks: (*back_blocks).into(),
                };
                out.extend_from_slice(raw.as_bytes());
            }
            Content::Stored(stored) => {
                assert!(
                    stored.checksums.len() == blocks as usize
                        && (1..=POINTERS_MAX).contains(&stored.pointers.len())
                        && blocks <= STORED_BLOCKS_MAX,
                    "a stored extent has a checksum a block and one to four copies"
                );
                out =
                    Vec::with_capacity(HEAD + STORED + POINTER * stored.pointers.len() + 4 * blocks as usize);
                let head = HeadRaw {
                    kind: TYPE_STORED,
                    encoding: ENCODING_NONE,
                    checksum: CHECKSUM_CRC32C,
                    granule_shift: GRANULE_SHIFT,
                    blocks: blocks.into(),
                };
                out.extend_from_slice(head.as_bytes());
                let raw = StoredRaw {
                    body_blocks: blocks.into(),
                    decoded_blocks: blocks.into(),
                    skip_blocks: 0.into(),
                    flags: 0,
                    pointers: stored.pointers.len() as u8,
                    checksums: (blocks as u16).into(),
                };
                out.extend_from_slice(raw.as_bytes());
                for p in &stored.pointers {
                    let raw = PointerRaw {
                        device: p.device,
                        flags: 0,
                        reserved: [0; 2],
                        generation: p.generation.into(),
                        offset_blocks: (p.offset_bytes / BLOCK).into(),
                    };
                    out.extend_from_slice(raw.as_bytes());
                }
                for checksum in &stored.checksums {
                    out.extend_from_slice(&checksum.to_le_bytes());
                }
            }
        }
        out
    }
}

struct Head {
    kind: u8,
    encoding: u8,
    checksum: u8,
    granule_shift: u8,
    blocks: u32,
}

fn parse_head(pos: Pos, value: &[u8]) -> Result<(u64, Head, &[u8]), FormatError> {
    let (raw, rest) = HeadRaw::ref_from_prefix(value).map_err(|_| FormatError::Short)?;
    let blocks = raw.blocks.get();
    let start = pos.offset.checked_sub(blocks as u64 * BLOCK).ok_or(FormatError::Value)?;
    if blocks == 0 || !pos.offset.is_multiple_of(BLOCK) {
        return Err(FormatError::Value);
    }
    let head = Head {
        kind: raw.kind,
        encoding: raw.encoding,
        checksum: raw.checksum,
        granule_shift: raw.granule_shift,
        blocks,
    };
    Ok((start, head, rest))
}

/// A stored extent as it lies in its value, its lengths checked.
struct StoredView<'a> {
    encoded: bool,
    body_bytes: u32,
    pointers: &'a [PointerRaw],
    checksums: &'a [U32],
}

impl<'a> StoredView<'a> {
    fn parse(head: Head, rest: &'a [u8]) -> Result<StoredView<'a>, FormatError> {
        let (raw, mut rest) = StoredRaw::ref_from_prefix(rest).map_err(|_| FormatError::Short)?;
        if raw.flags & !(FLAG_SEALED | FLAG_STRIPED) != 0 {
            return Err(FormatError::Unsupported);
        }
        for (flag, len) in [(FLAG_SEALED, 32), (FLAG_STRIPED, 16)] {
            if raw.flags & flag != 0 {
                rest = rest.get(len..).ok_or(FormatError::Short)?;
            }
        }
        let (body, decoded, skip) = (raw.body_blocks.get(), raw.decoded_blocks.get(), raw.skip_blocks.get());
        let encoded = head.encoding != ENCODING_NONE || raw.flags != 0;
        let live_end = skip.checked_add(head.blocks).ok_or(FormatError::Value)?;
        if body == 0 || body > STORED_BLOCKS_MAX || live_end > decoded || decoded > STORED_BLOCKS_MAX {
            return Err(FormatError::Value);
        }
        if !encoded && (body != head.blocks || decoded != body || skip != 0) {
            return Err(FormatError::Value);
        }
        let count = raw.pointers as usize;
        if !(1..=POINTERS_MAX).contains(&count) {
            return Err(FormatError::Value);
        }
        let (pointers, rest) =
            <[PointerRaw]>::ref_from_prefix_with_elems(rest, count).map_err(|_| FormatError::Short)?;
        let checksums = <[U32]>::ref_from_bytes(rest).map_err(|_| FormatError::Length)?;
        let expected = if encoded { checksums.len() } else { body as usize };
        if checksums.len() != raw.checksums.get() as usize || checksums.len() != expected {
            return Err(FormatError::Length);
        }
        if !encoded && (head.checksum != CHECKSUM_CRC32C || head.granule_shift != GRANULE_SHIFT) {
            return Err(FormatError::Unsupported);
        }
        if pointers.iter().any(|p| p.offset_blocks.get() > u64::MAX / BLOCK - STORED_BLOCKS_MAX as u64) {
            return Err(FormatError::Value);
        }
        Ok(StoredView { encoded, body_bytes: body * BLOCK as u32, pointers, checksums })
    }

    fn pointers(&self) -> impl Iterator<Item = Pointer> + use<'a> {
        let len_bytes = self.body_bytes;
        self.pointers.iter().map(move |p| Pointer {
            device: p.device,
            generation: p.generation.get(),
            offset_bytes: p.offset_blocks.get() * BLOCK,
            len_bytes,
        })
    }
}

/// The places on devices that the value at `pos` keeps alive, for the accounting of space: none for what is not stored.
pub fn pointers(pos: Pos, value: &[u8]) -> Result<impl Iterator<Item = Pointer> + use<'_>, FormatError> {
    let (_, head, rest) = parse_head(pos, value)?;
    let view = match head.kind {
        TYPE_STORED => Some(StoredView::parse(head, rest)?),
        TYPE_HOLE..=TYPE_ERROR => None,
        _ => return Err(FormatError::Unsupported),
    };
    Ok(view.into_iter().flat_map(|view| view.pointers()))
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{} ", self.start, self.end)?;
        match &self.content {
            Content::Hole => f.write_str("hole whiteout"),
            Content::Reservation => f.write_str("reservation"),
            Content::Error => f.write_str("lost"),
            Content::Inline(bytes) => write!(f, "inline {} bytes", bytes.len()),
            Content::Reflink { end, front_blocks, back_blocks } => {
                write!(f, "reflink {end} pads {front_blocks} {back_blocks}")
            }
            Content::Stored(stored) => {
                f.write_str("stored")?;
                for p in &stored.pointers {
                    write!(f, " {}:{}+{} gen {}", p.device, p.offset_bytes, p.len_bytes, p.generation)?;
                }
                f.write_str(" crc32c")?;
                stored.checksums.iter().try_for_each(|c| write!(f, " {c:08x}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;
    use std::string::ToString;

    fn sample() -> Extent {
        let pointer = Pointer { device: 1, generation: 7, offset_bytes: 0x30_0000, len_bytes: 3 * 4096 };
        let stored = Stored { pointers: smallvec![pointer], checksums: smallvec![1, 2, 3] };
        Extent { start: 4096, end: 4 * 4096, content: Content::Stored(stored) }
    }

    fn at(end: u64) -> Pos {
        Pos::new(9, end, crate::key::ROOT_SNAPSHOT)
    }

    #[test]
    fn golden_bytes() {
        let value = sample().to_value();
        assert_eq!(
            value,
            [
                4, 0, 1, 12, 3, 0, 0, 0, // head
                3, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0, // stored
                1, 0, 0, 0, 7, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, // pointer
                1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, // checksums
            ]
        );
        assert_eq!(Extent::parse(at(4 * 4096), &value), Ok(sample()));
        assert_eq!(
            sample().to_string(),
            "4096..16384 stored 1:3145728+12288 gen 7 crc32c 00000001 00000002 00000003"
        );
        let inline = Extent { start: 0, end: 4096, content: Content::Inline(b"hi".into()) };
        assert_eq!(inline.to_value(), [3, 0, 0, 0, 1, 0, 0, 0, b'h', b'i']);
        assert_eq!(Extent::parse(at(4096), &inline.to_value()), Ok(inline));
        for content in [Content::Hole, Content::Reservation, Content::Error]
            .into_iter()
            .chain([Content::Reflink { end: 1 << 20, front_blocks: 1, back_blocks: 2 }])
        {
            let extent = Extent { start: 0, end: 1 << 30, content };
            assert_eq!(Extent::parse(at(1 << 30), &extent.to_value()), Ok(extent));
        }
    }

    #[test]
    fn pointers_name_exactly_what_a_cut_keeps_alive() {
        let (front, back) = (sample().cut(4096, 8192), sample().cut(8192, 16384));
        let live = |e: &Extent| -> Vec<(u64, u32)> {
            let value = e.to_value();
            pointers(at(e.end), &value).unwrap().map(|p| (p.offset_bytes, p.len_bytes)).collect()
        };
        assert_eq!(live(&sample()), [(0x30_0000, 12288)]);
        assert_eq!(live(&front), [(0x30_0000, 4096)]);
        assert_eq!(live(&back), [(0x30_1000, 8192)]);
        let Content::Stored(stored) = &back.content else { panic!("a cut keeps the kind") };
        assert_eq!(stored.checksums[..], [2, 3]);
        let inline = Extent { start: 0, end: 4096, content: Content::Inline(b"hi".into()) };
        assert_eq!(live(&inline), []);
    }

    #[test]
    fn sealed_and_striped_extents_count_their_space_but_are_not_read() {
        let mut value = sample().to_value();
        value[20] = FLAG_SEALED;
        let tail = value.split_off(24);
        value.extend_from_slice(&[0; 32]);
        value.extend_from_slice(&tail);
        assert_eq!(Extent::parse(at(4 * 4096), &value), Err(FormatError::Unsupported));
        assert_eq!(pointers(at(4 * 4096), &value).unwrap().count(), 1);
    }

    #[test]
    fn damaged_values_are_refused_without_panic() {
        let good = sample().to_value();
        for len in 0..good.len() {
            assert!(Extent::parse(at(4 * 4096), &good[..len]).is_err());
        }
        for byte in 0..good.len() {
            for bit in 0..8 {
                let mut value = good.clone();
                value[byte] ^= 1 << bit;
                let _ = Extent::parse(at(4 * 4096), &value).map(|e| e.cut(e.start, e.start + BLOCK));
            }
        }
        assert!(Extent::parse(at(4096), &good).is_err(), "an extent cannot begin before its file");
        assert!(Extent::parse(at(4 * 4096 + 1), &good).is_err(), "ends lie on block boundaries");
    }
}
