//! The journal on disk: entries, each on blocks of its own, each a header and a list of items.
//!
//! | entry header | bytes | |
//! |---|---|---|
//! | magic | 0..8 | [`ENTRY_MAGIC`] xor the pool's tag |
//! | checksum | 8..16 | crc32c (zero-extended) of bytes 16.. of the entry, padding included |
//! | version, checksum type | 16..18 | 1, 1 = crc32c |
//! | header bytes | 18..20 | 192 |
//! | flags | 20..24 | bit 0: flush entry; bit 1: first entry of a mount |
//! | epoch | 24..32 | mount epoch, the counter in the superblock |
//! | seq | 32..40 | |
//! | previous seq, previous hash | 40..56 | the entry before it in history and [`Entry::hash`] of it; 0, 0 for the first |
//! | last seq | 56..64 | oldest entry still needed (of flush entries) |
//! | flushed up to | 64..72 | newest entry with items known to be durable when this one was submitted |
//! | bytes, items | 72..80 | header and items, without padding; number of items |
//! | devices | 80..112 | set of members it was written to |
//! | nonce, tag | 112..144 | reserved for encryption, zero |
//! | reserved | 144..192 | zero |
//!
//! An item: kind, tree, level, flags (a byte each), value length (u32), position (20 bytes, big-endian), the value, zeroes
//! up to a multiple of 8. All copies of an entry are bit-identical. Entries are padded with zeroes to whole blocks.

use crate::device_set::DeviceSet;
use crate::node::VALUE_MAX;
use crate::superblock::MOUNT_EPOCH_END;
use crate::{FormatError, Pos, key::POS_BYTES, key::Tree};
use alloc::vec::Vec;
use core::fmt;
use core::hash::Hasher;
use siphasher::sip::SipHasher24;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Entries begin on multiples of this, in bytes, and no two share a block.
pub const ENTRY_BLOCK: usize = 4096;
/// Marks an entry; xored with the pool's tag, so that an entry inside a pool image in a volume is never taken for one of
/// this pool.
pub const ENTRY_MAGIC: u64 = 0x316c_6e72_6e69_6172;
/// Bytes before the items of an entry.
pub const ENTRY_HEADER_BYTES: usize = 192;
/// Bytes of an item before its value.
pub const ITEM_HEADER_BYTES: usize = 28;
/// Items begin on multiples of this within an entry.
pub const ITEM_ALIGN: usize = 8;
/// The longest entry, padding included.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;

/// The end of all numbers of entries: no pool gets near it, and there is room for what is skipped at a mount.
const SEQ_END: u64 = 1 << 62;

const VERSION: u8 = 1;
const CHECKSUM_CRC32C: u8 = 1;
const FLAG_FLUSH: u32 = 1;
const FLAG_MOUNT: u32 = 2;
/// Kinds from here on may be skipped by a reader that does not know them; unknown ones below refuse the entry.
const KIND_SKIPPABLE: u8 = 0x80;

/// Number of a journal entry. Order of numbers is order of history; there may be gaps between mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// Before every entry.
    pub const ZERO: Seq = Seq(0);

    /// The number after this.
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: U64,
    checksum: U64,
    version: u8,
    checksum_type: u8,
    header_bytes: U16,
    flags: U32,
    epoch: U64,
    seq: U64,
    prev_seq: U64,
    prev_hash: U64,
    last_seq: U64,
    flushed_upto: U64,
    bytes: U32,
    items: U32,
    devices: [u8; 32],
    nonce: [u8; 16],
    tag: [u8; 16],
    reserved: [u8; 48],
}
const _: () = assert!(size_of::<RawHeader>() == ENTRY_HEADER_BYTES);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawItem {
    kind: u8,
    tree: u8,
    level: u8,
    flags: u8,
    value_len: U32,
    pos: [u8; POS_BYTES],
}
const _: () = assert!(size_of::<RawItem>() == ITEM_HEADER_BYTES);

macro_rules! kinds {
    ($($id:literal $name:ident $text:literal $doc:literal;)*) => {
        /// What an item says. Ids are persistent and never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum ItemKind { $(#[doc = $doc] $name = $id,)* }

        impl ItemKind {
            /// The kind with this id.
            pub fn from_id(id: u8) -> Option<ItemKind> {
                match id { $($id => Some(ItemKind::$name),)* _ => None }
            }

            /// Its name, as in text dumps.
            pub fn name(self) -> &'static str {
                match self { $(ItemKind::$name => $text,)* }
            }
        }
    };
}

kinds! {
    1 Put "put" "The key at (tree, level, position) has this value.";
    2 Delete "delete" "There is no key at (tree, level, position).";
    3 Root "root" "The value is the pointer to the root node, of this level, of the tree.";
    4 Epoch "epoch" "First item of a mount: boot epoch's random number (u64).";
    0x80 Time "time" "Wall-clock time in nanoseconds since 1970 (u64).";
    0x81 Log "log" "Text for people.";
    0x82 Reply "reply" "Reserved: the reply to a request that must not be executed twice.";
}

/// One item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// What it says.
    pub kind: ItemKind,
    /// Tree id; 0 where it means nothing.
    pub tree: u8,
    /// Level: 0 for keys of leaves.
    pub level: u8,
    /// Reserved, 0.
    pub flags: u8,
    /// Position of the key.
    pub pos: Pos,
    /// Value; empty for a delete.
    pub value: &'a [u8],
}

impl<'a> Item<'a> {
    /// A key's new value.
    pub fn put(tree: Tree, level: u8, pos: Pos, value: &'a [u8]) -> Item<'a> {
        Item { kind: ItemKind::Put, tree: tree as u8, level, flags: 0, pos, value }
    }

    /// A key's end.
    pub fn delete(tree: Tree, level: u8, pos: Pos) -> Item<'a> {
        Item { kind: ItemKind::Delete, tree: tree as u8, level, flags: 0, pos, value: &[] }
    }

    /// A tree's root node: its level and the pointer to it.
    pub fn root(tree: Tree, level: u8, pointer: &'a [u8]) -> Item<'a> {
        Item { kind: ItemKind::Root, tree: tree as u8, level, flags: 0, pos: Pos::MIN, value: pointer }
    }

    /// An item that concerns no tree.
    pub fn note(kind: ItemKind, value: &'a [u8]) -> Item<'a> {
        Item { kind, tree: 0, level: 0, flags: 0, pos: Pos::MIN, value }
    }

    /// Bytes it takes in an entry.
    pub fn bytes(&self) -> usize {
        item_bytes(self.value.len())
    }

    /// Writes it into `out`, exactly [`Item::bytes`] long.
    pub fn write(&self, out: &mut [u8]) {
        let raw = RawItem {
            kind: self.kind as u8,
            tree: self.tree,
            level: self.level,
            flags: self.flags,
            value_len: U32::new(self.value.len() as u32),
            pos: self.pos.to_bytes(),
        };
        let (head, rest) = out.split_at_mut(ITEM_HEADER_BYTES);
        head.copy_from_slice(raw.as_bytes());
        let (value, padding) = rest.split_at_mut(self.value.len());
        value.copy_from_slice(self.value);
        padding.fill(0);
    }
}

impl fmt::Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tree = Tree::from_id(self.tree).map_or("unknown tree", |t| t.name());
        match self.kind {
            ItemKind::Put | ItemKind::Delete => {
                write!(f, "{} {tree}/{} {}", self.kind.name(), self.level, self.pos)?;
                if self.kind == ItemKind::Put { write!(f, " {} bytes", self.value.len()) } else { Ok(()) }
            }
            ItemKind::Root => write!(f, "root {tree}/{} {} bytes", self.level, self.value.len()),
            ItemKind::Log => {
                f.write_str("log ")?;
                self.value.utf8_chunks().try_for_each(|c| f.write_str(c.valid()))
            }
            ItemKind::Epoch | ItemKind::Time => {
                let number = self.value.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
                write!(f, "{} {number:#x}", self.kind.name())
            }
            ItemKind::Reply => write!(f, "reply {} bytes", self.value.len()),
        }
    }
}

/// Bytes that an item with a value of `len` bytes takes in an entry.
pub const fn item_bytes(len: usize) -> usize {
    (ITEM_HEADER_BYTES + len).next_multiple_of(ITEM_ALIGN)
}

/// Bytes on disk of an entry whose items take `items_bytes`.
pub const fn entry_bytes(items_bytes: usize) -> usize {
    (ENTRY_HEADER_BYTES + items_bytes).next_multiple_of(ENTRY_BLOCK)
}

/// What an entry's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// Mount epoch.
    pub epoch: u64,
    /// Its number.
    pub seq: Seq,
    /// The entry before it in history; zero if there is none.
    pub prev_seq: Seq,
    /// Hash of the entry before it; zero if there is none.
    pub prev_hash: u64,
    /// Oldest entry still needed; means something in flush entries only.
    pub last_seq: Seq,
    /// Newest entry with items known to be durable when this one was submitted.
    pub flushed_upto: Seq,
    /// Everything before it and everything it refers to was durable before it was submitted: history may end here.
    pub flush: bool,
    /// First entry of a mount.
    pub mount: bool,
    /// Members it was written to.
    pub devices: DeviceSet,
}

/// Completes an entry whose items already lie at [`ENTRY_HEADER_BYTES`]`..used`; the rest of `out` must be zero and
/// `out` exactly [`entry_bytes`] long. Returns its hash.
pub fn seal_entry(out: &mut [u8], used: usize, items: usize, pool_tag: u64, header: &EntryHeader) -> u64 {
    assert!(out.len() == entry_bytes(used - ENTRY_HEADER_BYTES), "an entry is padded to whole blocks");
    let mut raw = RawHeader {
        magic: U64::new(ENTRY_MAGIC ^ pool_tag),
        checksum: U64::ZERO,
        version: VERSION,
        checksum_type: CHECKSUM_CRC32C,
        header_bytes: U16::new(ENTRY_HEADER_BYTES as u16),
        flags: U32::new((u32::from(header.flush) * FLAG_FLUSH) | (u32::from(header.mount) * FLAG_MOUNT)),
        epoch: U64::new(header.epoch),
        seq: U64::new(header.seq.0),
        prev_seq: U64::new(header.prev_seq.0),
        prev_hash: U64::new(header.prev_hash),
        last_seq: U64::new(header.last_seq.0),
        flushed_upto: U64::new(header.flushed_upto.0),
        bytes: U32::new(used as u32),
        items: U32::new(items as u32),
        devices: header.devices.to_bytes(),
        nonce: [0; 16],
        tag: [0; 16],
        reserved: [0; 48],
    };
    out[..ENTRY_HEADER_BYTES].copy_from_slice(raw.as_bytes());
    raw.checksum = U64::new(u64::from(moraine_accel::crc32c(&out[16..])));
    out[..ENTRY_HEADER_BYTES].copy_from_slice(raw.as_bytes());
    hash_of(&out[..ENTRY_HEADER_BYTES], pool_tag)
}

/// The header holds the checksum of the rest, so its hash stands for the whole entry.
fn hash_of(header: &[u8], pool_tag: u64) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(pool_tag, 0x6a6f_7572_6e61_6c2d);
    hasher.write(header);
    hasher.finish()
}

/// An entry whose checksum and structure were verified.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Its header.
    pub header: EntryHeader,
    /// Bytes on disk, padding included.
    pub disk_bytes: usize,
    /// What the next entry's `prev_hash` must be.
    pub hash: u64,
    /// How many items it has.
    pub item_count: usize,
    items: &'a [u8],
}

/// Whether a block could be the beginning of an entry of this pool; cheap, and no proof.
pub fn looks_like_entry(block: &[u8], pool_tag: u64) -> bool {
    block.first_chunk().is_some_and(|m| u64::from_le_bytes(*m) == ENTRY_MAGIC ^ pool_tag)
}

impl<'a> Entry<'a> {
    /// Checks and opens the entry at the start of `bytes`.
    pub fn parse(bytes: &'a [u8], pool_tag: u64) -> Result<Entry<'a>, FormatError> {
        let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| FormatError::Short)?;
        if raw.magic.get() != ENTRY_MAGIC ^ pool_tag {
            return Err(FormatError::Magic);
        }
        let used = raw.bytes.get() as usize;
        if !(ENTRY_HEADER_BYTES..=ENTRY_BYTES_MAX).contains(&used) {
            return Err(FormatError::Length);
        }
        let disk_bytes = used.next_multiple_of(ENTRY_BLOCK);
        let body = bytes.get(16..disk_bytes).ok_or(FormatError::Length)?;
        if raw.checksum_type != CHECKSUM_CRC32C {
            return Err(FormatError::Unsupported);
        }
        if raw.checksum.get() != u64::from(moraine_accel::crc32c(body)) {
            return Err(FormatError::Checksum);
        }
        if raw.version != VERSION || usize::from(raw.header_bytes.get()) != ENTRY_HEADER_BYTES {
            return Err(FormatError::Unsupported);
        }
        let header = EntryHeader {
            epoch: raw.epoch.get(),
            seq: Seq(raw.seq.get()),
            prev_seq: Seq(raw.prev_seq.get()),
            prev_hash: raw.prev_hash.get(),
            last_seq: Seq(raw.last_seq.get()),
            flushed_upto: Seq(raw.flushed_upto.get()),
            flush: raw.flags.get() & FLAG_FLUSH != 0,
            mount: raw.flags.get() & FLAG_MOUNT != 0,
            devices: DeviceSet::from_bytes(raw.devices),
        };
        if header.prev_seq >= header.seq
            || header.last_seq > header.seq
            || header.flushed_upto >= header.seq
            || header.seq.0 >= SEQ_END
            || header.epoch >= MOUNT_EPOCH_END
        {
            return Err(FormatError::Value);
        }
        let entry = Entry {
            header,
            disk_bytes,
            hash: hash_of(&bytes[..ENTRY_HEADER_BYTES], pool_tag),
            item_count: raw.items.get() as usize,
            items: &bytes[ENTRY_HEADER_BYTES..used],
        };
        check_items(entry.items, entry.item_count)?;
        Ok(entry)
    }

    /// Its items in order. Unknown kinds that may be skipped are left out.
    pub fn items(&self) -> impl Iterator<Item = Item<'a>> + use<'a> {
        Items { rest: self.items }.filter_map(|(_, item)| item)
    }

    /// The bytes of its items, as [`Items::new`] reads them.
    pub fn item_bytes(&self) -> &'a [u8] {
        self.items
    }
}

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let h = &self.header;
        write!(
            f,
            "entry {} epoch {} prev {} ({:016x}) last {} flushed {} devices {} {} bytes{}{}",
            h.seq,
            h.epoch,
            h.prev_seq,
            h.prev_hash,
            h.last_seq,
            h.flushed_upto,
            h.devices,
            self.disk_bytes,
            if h.flush { " flush" } else { "" },
            if h.mount { " mount" } else { "" },
        )?;
        self.items().try_for_each(|item| write!(f, "\n  {item}"))
    }
}

/// Walks over the items area of an entry: the bytes each item takes, and the item unless its kind is unknown.
#[derive(Clone)]
pub struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Items<'a> {
    /// Reads `bytes`; ends at the first item that is not whole.
    pub fn new(bytes: &'a [u8]) -> Items<'a> {
        Items { rest: bytes }
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = (&'a [u8], Option<Item<'a>>);

    fn next(&mut self) -> Option<Self::Item> {
        let (raw, after) = RawItem::ref_from_prefix(self.rest).ok()?;
        let len = raw.value_len.get() as usize;
        let value = after.get(..len)?;
        let (whole, rest) = self.rest.split_at_checked(item_bytes(len))?;
        self.rest = rest;
        let item = ItemKind::from_id(raw.kind).map(|kind| Item {
            kind,
            tree: raw.tree,
            level: raw.level,
            flags: raw.flags,
            pos: Pos::from_bytes(&raw.pos),
            value,
        });
        Some((whole, item))
    }
}

fn check_items(bytes: &[u8], count: usize) -> Result<(), FormatError> {
    let (mut seen, mut taken) = (0, 0);
    for (whole, item) in Items::new(bytes) {
        if item.is_none() && whole[0] < KIND_SKIPPABLE {
            return Err(FormatError::Unsupported);
        }
        // A longer value fits no node: it would be found out only when it is to be written.
        if item.is_some_and(|i| i.value.len() > VALUE_MAX && matches!(i.kind, ItemKind::Put | ItemKind::Root))
        {
            return Err(FormatError::Length);
        }
        seen += 1;
        taken += whole.len();
    }
    if seen == count && taken == bytes.len() { Ok(()) } else { Err(FormatError::Length) }
}

/// Appends items to a vector, as a convenience for tools and tests.
pub fn push_item(out: &mut Vec<u8>, item: &Item<'_>) {
    let at = out.len();
    out.resize(at + item.bytes(), 0);
    item.write(&mut out[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::{vec, vec::Vec};

    const TAG: u64 = 0x1122_3344_5566_7788;

    fn header() -> EntryHeader {
        EntryHeader {
            epoch: 3,
            seq: Seq(100),
            prev_seq: Seq(99),
            prev_hash: 0xABCD,
            last_seq: Seq(90),
            flushed_upto: Seq(98),
            flush: true,
            mount: false,
            devices: [0, 9].into_iter().collect(),
        }
    }

    fn sample() -> Vec<u8> {
        let mut items = vec![];
        push_item(&mut items, &Item::put(Tree::Dirents, 0, Pos::new(1, 2, 3), b"value"));
        push_item(&mut items, &Item::delete(Tree::Inodes, 0, Pos::new(0, 7, u32::MAX)));
        push_item(&mut items, &Item::note(ItemKind::Log, b"hello"));
        let mut out = vec![0; entry_bytes(items.len())];
        let used = ENTRY_HEADER_BYTES + items.len();
        out[ENTRY_HEADER_BYTES..used].copy_from_slice(&items);
        seal_entry(&mut out, used, 3, TAG, &header());
        out
    }

    #[test]
    fn an_entry_reads_back_as_written() {
        let bytes = sample();
        let entry = Entry::parse(&bytes, TAG).unwrap();
        assert_eq!(entry.header, header());
        assert_eq!(entry.disk_bytes, 4096);
        let items: Vec<_> = entry.items().collect();
        assert_eq!(items[0], Item::put(Tree::Dirents, 0, Pos::new(1, 2, 3), b"value"));
        assert_eq!(items[1], Item::delete(Tree::Inodes, 0, Pos::new(0, 7, u32::MAX)));
        assert_eq!(items[2].value, b"hello");
        assert_eq!(
            entry.to_string(),
            "entry 100 epoch 3 prev 99 (000000000000abcd) last 90 flushed 98 devices 0,9 4096 bytes flush\n  \
             put dirents/0 1:2:3 5 bytes\n  delete inodes/0 0:7\n  log hello"
        );
        assert!(matches!(Entry::parse(&bytes, TAG ^ 1), Err(FormatError::Magic)));
    }

    #[test]
    fn golden_bytes_do_not_move() {
        let bytes = sample();
        let u64_at = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        assert_eq!(u64_at(0), ENTRY_MAGIC ^ TAG);
        assert_eq!(bytes[16..24], [1, 1, 192, 0, 1, 0, 0, 0]);
        assert_eq!([24, 32, 40, 48, 56, 64].map(u64_at), [3, 100, 99, 0xABCD, 90, 98]);
        assert_eq!(u64_at(72), (ENTRY_HEADER_BYTES as u64 + 40 + 32 + 40) | 3 << 32);
        assert_eq!(bytes[80..82], [1, 2]);
        assert!(bytes[82..192].iter().all(|b| *b == 0));
        assert_eq!(bytes[192..200], [1, Tree::Dirents as u8, 0, 0, 5, 0, 0, 0]);
        assert_eq!(bytes[200..220], Pos::new(1, 2, 3).to_bytes());
        assert_eq!(&bytes[220..232], b"value\0\0\0\0\0\0\0");
        assert_eq!(moraine_accel::crc32c(&bytes), GOLDEN_CRC, "the whole entry, byte for byte");
    }
    const GOLDEN_CRC: u32 = 3_480_519_473;

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let bytes = sample();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(Entry::parse(&bad, TAG).is_err(), "byte {at}");
        }
        for len in (0..bytes.len()).step_by(7) {
            assert!(Entry::parse(&bytes[..len], TAG).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn unknown_kinds_are_skipped_only_where_that_is_allowed() {
        for (kind, fine) in [(0xFE, true), (0x7F, false), (0, false)] {
            let mut items = vec![];
            push_item(&mut items, &Item::note(ItemKind::Log, b"x"));
            push_item(&mut items, &Item::note(ItemKind::Log, b"y"));
            items[0] = kind;
            let mut out = vec![0; 4096];
            let used = ENTRY_HEADER_BYTES + items.len();
            out[ENTRY_HEADER_BYTES..used].copy_from_slice(&items);
            seal_entry(&mut out, used, 2, TAG, &header());
            match Entry::parse(&out, TAG) {
                Ok(entry) => assert!(fine && entry.items().count() == 1),
                Err(error) => assert!(!fine && error == FormatError::Unsupported),
            }
        }
    }
}
