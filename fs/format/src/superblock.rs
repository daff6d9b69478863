//! The superblock: who a pool is, which members it has, where its journal lies. Each member holds four copies, in
//! slots of 64 KiB: two behind the first 64 KiB of the device and two at its end. The first 4 KiB are never touched.
//!
//! | field | bytes | |
//! |---|---|---|
//! | magic | 0..16 | [`MAGIC`] |
//! | version, bytes | 16..24 | 0; bytes in use, members included |
//! | layout | 24..56 | name of the layout, zero-padded: [`LAYOUT`]; another name is refused before anything else is read |
//! | checksum | 56..64 | crc32c (zero-extended) of bytes 0..56 and 64..bytes |
//! | checksum type | 64 | 1 = crc32c; 7 reserved |
//! | pool id, pool tag, device uuid | 72..112 | 16, 8, 16 bytes |
//! | device, members, journal replicas, metadata replicas | 112..116 | a byte each; 4 reserved |
//! | seq, epoch, previous epoch | 120..144 | raised and drawn at random with each write |
//! | mount epoch, mount nonce | 144..160 | raised and drawn at random with each mount |
//! | change counter | 160..168 | highest value handed out, raised in steps |
//! | handle key, appliance | 168..200 | 16 bytes each: MAC key of file handles; identity of the appliance |
//! | dirty bytes | 200..208 | bound on journal items that are not yet written back |
//! | node bytes, block bytes | 208..216 | |
//! | compat, read-only compat, incompat | 216..240 | feature bits |
//! | flags | 240..248 | bit 0: shut down cleanly |
//! | journal floor | 248..256 | newest journal seq known durable: history cannot end before it |
//! | created, written | 256..272 | wall clock, ns |
//! | metadata checksum, data checksum, encryption, slots | 272..276 | types; 12 reserved |
//! | label | 288..352 | UTF-8, zero-padded |
//! | journal set, metadata set | 352..416 | 32 bytes each: members that may hold journal, metadata |
//! | reserved | 416..1024 | zero |
//! | encryption slots | 1024..3072 | 8 × 256, reserved, zero |
//! | reserved | 3072..4096 | zero |
//! | members | 4096.. | 192 bytes each, see [`Member`] |
//!
//! A member: uuid (16), bytes (u64), bucket bytes (u32), state, durability, 2 reserved, first bucket, bucket count (u64
//! each; bucket b covers bytes b·size..(b+1)·size), last seen seq, last seen epoch (u64 each), journal ranges (4 × {first
//! bucket, count}, u64 each), label (32), reserved (32).

use crate::FormatError;
use crate::device_set::{DeviceSet, MEMBERS_MAX};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::hash::Hasher;
use siphasher::sip::SipHasher24;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every superblock.
pub const MAGIC: [u8; 16] = *b"\x89Moraine pool\r\n\x1a";
/// Name of the layout that this build reads and writes. It changes with every change of anything on disk until
/// version 1.
pub const LAYOUT: &str = "moraine-0-2026-11-22";
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 64 << 10;
/// Copies on each device.
pub const SLOTS: usize = 4;
/// Bytes at the start of a device which hold no bucket: boot code and two slots.
pub const RESERVED_START: u64 = 3 * SLOT_BYTES as u64;
/// The smallest device that can be a member.
pub const DEVICE_BYTES_MIN: u64 = 1 << 20;
/// Journal ranges a member can have.
pub const JOURNAL_RANGES: usize = 4;
/// The longest label of a pool, in bytes.
pub const LABEL_BYTES: usize = 64;
/// The longest label of a member, in bytes.
pub const MEMBER_LABEL_BYTES: usize = 32;

const VERSION: u32 = 0;
const CHECKSUM_CRC32C: u8 = 1;
const LAYOUT_BYTES: usize = 32;
const HEADER_BYTES: usize = 4096;
const MEMBER_BYTES: usize = 192;
const FLAG_CLEAN: u64 = 1;
/// Incompatible features this build knows.
const INCOMPAT_KNOWN: u64 = INCOMPAT_REPAIR | INCOMPAT_MAKING;

/// Sizes a bucket can have.
pub const BUCKET_BYTES: core::ops::RangeInclusive<u32> = 64 << 10..=16 << 20;
/// The end of all counters: none is ever near it, and one that is was not counted.
const COUNTER_END: u64 = 1 << 62;
/// The end of mount epochs: node ids have room for so many.
pub const MOUNT_EPOCH_END: u64 = 1 << 28;

/// Incompatible feature: a repair began and did not end. What derives from other keys may be wrong, free space included,
/// so nothing but a repair may write.
pub const INCOMPAT_REPAIR: u64 = 1 << 0;
/// Incompatible feature: the pool is being made. It was never mounted, so nothing is in it; what it consists of may be
/// missing in part, so there is nothing to mount either. The first orderly unmount, which ends the making, takes it away.
pub const INCOMPAT_MAKING: u64 = 1 << 1;
const _: () = assert!(HEADER_BYTES + MEMBERS_MAX * MEMBER_BYTES <= SLOT_BYTES);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 16],
    version: U32,
    bytes: U32,
    layout: [u8; LAYOUT_BYTES],
    checksum: U64,
    checksum_type: u8,
    reserved0: [u8; 7],
    pool_id: [u8; 16],
    pool_tag: U64,
    device_uuid: [u8; 16],
    device: u8,
    members: u8,
    journal_replicas: u8,
    metadata_replicas: u8,
    reserved1: [u8; 4],
    seq: U64,
    epoch: U64,
    prev_epoch: U64,
    mount_epoch: U64,
    mount_nonce: U64,
    change_counter: U64,
    handle_key: [u8; 16],
    appliance: [u8; 16],
    dirty_bytes_max: U64,
    node_bytes: U32,
    block_bytes: U32,
    compat: U64,
    ro_compat: U64,
    incompat: U64,
    flags: U64,
    journal_floor: U64,
    created: U64,
    written: U64,
    metadata_checksum: u8,
    data_checksum: u8,
    encryption: u8,
    encryption_slots: u8,
    reserved2: [u8; 12],
    label: [u8; LABEL_BYTES],
    journal_set: [u8; 32],
    metadata_set: [u8; 32],
    reserved3: [u8; 608],
    slots: [[u8; 256]; 8],
    reserved4: [u8; 1024],
}
const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRange {
    first: U64,
    count: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMember {
    uuid: [u8; 16],
    bytes: U64,
    bucket_bytes: U32,
    state: u8,
    durability: u8,
    reserved0: [u8; 2],
    first_bucket: U64,
    bucket_count: U64,
    last_seen_seq: U64,
    last_seen_epoch: U64,
    journal: [RawRange; JOURNAL_RANGES],
    label: [u8; MEMBER_LABEL_BYTES],
    reserved1: [u8; 32],
}
const _: () = assert!(size_of::<RawMember>() == MEMBER_BYTES);

/// What a member is to the pool. Ids are persistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MemberState {
    /// Was removed; its index stays taken.
    Removed = 0,
    /// In use.
    ReadWrite = 1,
    /// Being emptied: nothing new is written to it.
    ReadOnly = 2,
    /// Failed: what it holds is believed only where it verifies.
    Failed = 3,
}

impl MemberState {
    fn from_id(id: u8) -> Option<MemberState> {
        use MemberState::*;
        [Removed, ReadWrite, ReadOnly, Failed].into_iter().find(|s| *s as u8 == id)
    }
}

/// Buckets in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketRange {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// A member of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Identity of the device, drawn when it was formatted.
    pub uuid: [u8; 16],
    /// Its capacity.
    pub bytes: u64,
    /// Size of its buckets; a power of two.
    pub bucket_bytes: u32,
    /// What it is to the pool.
    pub state: MemberState,
    /// How many copies one copy on it counts for; 0 for a cache.
    pub durability: u8,
    /// First bucket usable for anything.
    pub first_bucket: u64,
    /// Number of usable buckets.
    pub bucket_count: u64,
    /// Superblock seq at which it was last written.
    pub last_seen_seq: u64,
    /// Random epoch that went with it.
    pub last_seen_epoch: u64,
    /// Buckets of the journal on it.
    pub journal: Vec<BucketRange>,
    /// What people call it.
    pub label: String,
}

impl Member {
    /// The buckets of the journal on it, in order.
    pub fn journal_buckets(&self) -> impl Iterator<Item = u64> + '_ {
        self.journal.iter().flat_map(|r| r.first..r.first + r.count)
    }
}

/// A superblock as one device holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Identity of the pool.
    pub pool_id: [u8; 16],
    /// Index of the device that holds this copy.
    pub device: u8,
    /// Copies of each journal entry.
    pub journal_replicas: u8,
    /// Copies of each node.
    pub metadata_replicas: u8,
    /// Raised with each write.
    pub seq: u64,
    /// Random with each write: equal seq and other epoch means split brain.
    pub epoch: u64,
    /// Epoch of the superblock before.
    pub prev_epoch: u64,
    /// Raised with each mount.
    pub mount_epoch: u64,
    /// Random with each mount: first half of nonces.
    pub mount_nonce: u64,
    /// Highest change counter handed out, raised in steps.
    pub change_counter: u64,
    /// MAC key of file handles.
    pub handle_key: [u8; 16],
    /// Identity of the appliance towards clients.
    pub appliance: [u8; 16],
    /// Bound on the bytes of journal items not yet written back.
    pub dirty_bytes_max: u64,
    /// Size of B-tree nodes; a power of two, 32 KiB ..= 256 KiB.
    pub node_bytes: u32,
    /// Size of blocks.
    pub block_bytes: u32,
    /// Compatible features.
    pub compat: u64,
    /// Features without which a pool may be read but not written.
    pub ro_compat: u64,
    /// Features without which a pool may not be touched.
    pub incompat: u64,
    /// Whether the pool was shut down cleanly.
    pub clean: bool,
    /// Newest journal seq known durable when this was written.
    pub journal_floor: u64,
    /// When the pool was made, ns since 1970.
    pub created: u64,
    /// When this was written, ns since 1970.
    pub written: u64,
    /// What people call the pool.
    pub label: String,
    /// Members that may hold journal.
    pub journal_set: DeviceSet,
    /// Members that may hold metadata.
    pub metadata_set: DeviceSet,
    /// All members by index, at most [`MEMBERS_MAX`].
    pub members: Vec<Member>,
}

/// Why a slot holds no superblock of this build's layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// There is no superblock there.
    Absent,
    /// A superblock of another version or layout, named.
    OtherLayout(String),
    /// A superblock that is not whole.
    Damaged(FormatError),
    /// It uses features this build does not know (bits).
    UnknownFeatures(u64),
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SlotError::Absent => f.write_str("no superblock"),
            SlotError::OtherLayout(name) => {
                write!(f, "a pool of the layout '{name}'; this version reads '{LAYOUT}' only")
            }
            SlotError::Damaged(why) => write!(f, "damaged superblock: {why}"),
            SlotError::UnknownFeatures(bits) => write!(f, "a pool with unknown features {bits:#x}"),
        }
    }
}

/// Byte offsets of the four slots on a device of `bytes`. The first of each pair is written first.
pub fn slot_offsets(bytes: u64) -> [u64; SLOTS] {
    let slot = SLOT_BYTES as u64;
    let end = bytes / slot * slot;
    [slot, end - 2 * slot, 2 * slot, end - slot]
}

/// Where the space for buckets ends on a device of `bytes`: at the first of the slots at its end.
pub fn buckets_end(bytes: u64) -> u64 {
    (bytes / SLOT_BYTES as u64).saturating_sub(2) * SLOT_BYTES as u64
}

/// The tag of a pool: what its journal and node magics are xored with.
pub fn pool_tag(pool_id: &[u8; 16]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(0x6d6f_7261_696e_652d, 0x706f_6f6c_2d74_6167);
    hasher.write(pool_id);
    hasher.finish()
}

impl Superblock {
    /// The tag that this pool's journal and node magics are xored with.
    pub fn pool_tag(&self) -> u64 {
        pool_tag(&self.pool_id)
    }

    /// Whether its making began and, as far as this copy knows, did not end.
    pub fn is_being_made(&self) -> bool {
        self.incompat & INCOMPAT_MAKING != 0
    }

    /// The member that holds this copy.
    pub fn this_member(&self) -> &Member {
        &self.members[self.device as usize]
    }

    /// As on disk: the bytes in use of a slot, a multiple of 4 KiB.
    pub fn to_bytes(&self) -> Vec<u8> {
        assert!(self.members.len() <= MEMBERS_MAX, "a pool has at most {MEMBERS_MAX} members");
        let used = HEADER_BYTES + self.members.len() * MEMBER_BYTES;
        let mut out = alloc::vec![0; used.next_multiple_of(4096)];
        let mut raw = RawHeader::new_zeroed_header();
        raw.bytes = U32::new(used as u32);
        raw.pool_id = self.pool_id;
        raw.pool_tag = U64::new(self.pool_tag());
        raw.device_uuid = self.this_member().uuid;
        raw.device = self.device;
        raw.members = self.members.len() as u8;
        raw.journal_replicas = self.journal_replicas;
        raw.metadata_replicas = self.metadata_replicas;
        raw.seq = U64::new(self.seq);
        raw.epoch = U64::new(self.epoch);
        raw.prev_epoch = U64::new(self.prev_epoch);
        raw.mount_epoch = U64::new(self.mount_epoch);
        raw.mount_nonce = U64::new(self.mount_nonce);
        raw.change_counter = U64::new(self.change_counter);
        raw.handle_key = self.handle_key;
        raw.appliance = self.appliance;
        raw.dirty_bytes_max = U64::new(self.dirty_bytes_max);
        raw.node_bytes = U32::new(self.node_bytes);
        raw.block_bytes = U32::new(self.block_bytes);
        raw.compat = U64::new(self.compat);
        raw.ro_compat = U64::new(self.ro_compat);
        raw.incompat = U64::new(self.incompat);
        raw.flags = U64::new(u64::from(self.clean) * FLAG_CLEAN);
        raw.journal_floor = U64::new(self.journal_floor);
        raw.created = U64::new(self.created);
        raw.written = U64::new(self.written);
        raw.metadata_checksum = CHECKSUM_CRC32C;
        raw.data_checksum = CHECKSUM_CRC32C;
        put_text(&mut raw.label, &self.label);
        raw.journal_set = self.journal_set.to_bytes();
        raw.metadata_set = self.metadata_set.to_bytes();
        for (i, member) in self.members.iter().enumerate() {
            let at = HEADER_BYTES + i * MEMBER_BYTES;
            out[at..at + MEMBER_BYTES].copy_from_slice(raw_member(member).as_bytes());
        }
        out[..HEADER_BYTES].copy_from_slice(raw.as_bytes());
        raw.checksum = U64::new(checksum(&out[..used]));
        out[..HEADER_BYTES].copy_from_slice(raw.as_bytes());
        out
    }

    /// Checks and reads a slot.
    pub fn parse(slot: &[u8]) -> Result<Superblock, SlotError> {
        let damaged = SlotError::Damaged;
        let (raw, _) = RawHeader::ref_from_prefix(slot).map_err(|_| damaged(FormatError::Short))?;
        if raw.magic != MAGIC {
            return Err(SlotError::Absent);
        }
        let layout = get_text(&raw.layout);
        if raw.version.get() != VERSION || layout.as_deref() != Some(LAYOUT) {
            // A damaged name must not be echoed byte by byte: only printable names are.
            let name = layout.filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_graphic()));
            return Err(match name {
                Some(name) => SlotError::OtherLayout(name),
                None => damaged(FormatError::Value),
            });
        }
        let used = raw.bytes.get() as usize;
        let body = slot.get(..used).filter(|_| used >= HEADER_BYTES).ok_or(damaged(FormatError::Length))?;
        if raw.checksum_type != CHECKSUM_CRC32C {
            return Err(damaged(FormatError::Unsupported));
        }
        if raw.checksum.get() != checksum(body) {
            return Err(damaged(FormatError::Checksum));
        }
        if raw.incompat.get() & !INCOMPAT_KNOWN != 0 || raw.encryption != 0 {
            return Err(SlotError::UnknownFeatures(raw.incompat.get() & !INCOMPAT_KNOWN));
        }
        let members = <[RawMember]>::ref_from_bytes(&body[HEADER_BYTES..])
            .map_err(|_| damaged(FormatError::Length))?
            .iter()
            .map(parse_member)
            .collect::<Result<Vec<_>, _>>()
            .map_err(damaged)?;
        let superblock = Superblock {
            pool_id: raw.pool_id,
            device: raw.device,
            journal_replicas: raw.journal_replicas,
            metadata_replicas: raw.metadata_replicas,
            seq: raw.seq.get(),
            epoch: raw.epoch.get(),
            prev_epoch: raw.prev_epoch.get(),
            mount_epoch: raw.mount_epoch.get(),
            mount_nonce: raw.mount_nonce.get(),
            change_counter: raw.change_counter.get(),
            handle_key: raw.handle_key,
            appliance: raw.appliance,
            dirty_bytes_max: raw.dirty_bytes_max.get(),
            node_bytes: raw.node_bytes.get(),
            block_bytes: raw.block_bytes.get(),
            compat: raw.compat.get(),
            ro_compat: raw.ro_compat.get(),
            incompat: raw.incompat.get(),
            clean: raw.flags.get() & FLAG_CLEAN != 0,
            journal_floor: raw.journal_floor.get(),
            created: raw.created.get(),
            written: raw.written.get(),
            label: get_text(&raw.label).ok_or(damaged(FormatError::Value))?,
            journal_set: DeviceSet::from_bytes(raw.journal_set),
            metadata_set: DeviceSet::from_bytes(raw.metadata_set),
            members,
        };
        let same = superblock.members.len() == usize::from(raw.members)
            && superblock.pool_tag() == raw.pool_tag.get()
            && raw.metadata_checksum == CHECKSUM_CRC32C
            && raw.data_checksum == CHECKSUM_CRC32C;
        if !same {
            return Err(damaged(FormatError::Value));
        }
        superblock.check(&raw.device_uuid).map_err(damaged)?;
        Ok(superblock)
    }

    fn check(&self, device_uuid: &[u8; 16]) -> Result<(), FormatError> {
        let this = self.members.get(self.device as usize).ok_or(FormatError::Value)?;
        let members = self.members.len();
        let listed = |set: &DeviceSet| set.iter().all(|i| usize::from(i) < members);
        let fine = this.uuid == *device_uuid
            && self.journal_replicas >= 1
            && self.metadata_replicas >= 1
            && self.node_bytes.is_power_of_two()
            && (32 << 10..=256 << 10).contains(&self.node_bytes)
            && self.members.iter().all(|m| m.bucket_bytes >= self.node_bytes)
            && [self.seq, self.journal_floor, self.change_counter].iter().all(|n| *n < COUNTER_END)
            && self.mount_epoch < MOUNT_EPOCH_END
            && self.block_bytes == 4096
            && listed(&self.journal_set)
            && listed(&self.metadata_set);
        if fine { Ok(()) } else { Err(FormatError::Value) }
    }
}

impl RawHeader {
    fn new_zeroed_header() -> RawHeader {
        use zerocopy::FromZeros;
        let mut raw = RawHeader::new_zeroed();
        raw.magic = MAGIC;
        raw.version = U32::new(VERSION);
        put_text(&mut raw.layout, LAYOUT);
        raw.checksum_type = CHECKSUM_CRC32C;
        raw
    }
}

fn checksum(used: &[u8]) -> u64 {
    u64::from(moraine_accel::crc32c_append(moraine_accel::crc32c(&used[..56]), &used[64..]))
}

fn put_text(out: &mut [u8], text: &str) {
    assert!(text.len() <= out.len(), "a label fits its field");
    out[..text.len()].copy_from_slice(text.as_bytes());
}

fn get_text(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    core::str::from_utf8(&bytes[..end]).ok().map(String::from)
}

fn raw_member(member: &Member) -> RawMember {
    assert!(member.journal.len() <= JOURNAL_RANGES, "a member has at most {JOURNAL_RANGES} journal ranges");
    let mut journal = [RawRange { first: U64::ZERO, count: U64::ZERO }; JOURNAL_RANGES];
    for (raw, range) in journal.iter_mut().zip(&member.journal) {
        *raw = RawRange { first: U64::new(range.first), count: U64::new(range.count) };
    }
    let mut label = [0; MEMBER_LABEL_BYTES];
    put_text(&mut label, &member.label);
    RawMember {
        uuid: member.uuid,
        bytes: U64::new(member.bytes),
        bucket_bytes: U32::new(member.bucket_bytes),
        state: member.state as u8,
        durability: member.durability,
        reserved0: [0; 2],
        first_bucket: U64::new(member.first_bucket),
        bucket_count: U64::new(member.bucket_count),
        last_seen_seq: U64::new(member.last_seen_seq),
        last_seen_epoch: U64::new(member.last_seen_epoch),
        journal,
        label,
        reserved1: [0; 32],
    }
}

fn parse_member(raw: &RawMember) -> Result<Member, FormatError> {
    let journal: Vec<BucketRange> = raw
        .journal
        .iter()
        .map(|r| BucketRange { first: r.first.get(), count: r.count.get() })
        .filter(|r| r.count != 0)
        .collect();
    let member = Member {
        uuid: raw.uuid,
        bytes: raw.bytes.get(),
        bucket_bytes: raw.bucket_bytes.get(),
        state: MemberState::from_id(raw.state).ok_or(FormatError::Unsupported)?,
        durability: raw.durability,
        first_bucket: raw.first_bucket.get(),
        bucket_count: raw.bucket_count.get(),
        last_seen_seq: raw.last_seen_seq.get(),
        last_seen_epoch: raw.last_seen_epoch.get(),
        journal,
        label: get_text(&raw.label).ok_or(FormatError::Value)?,
    };
    let size = u64::from(member.bucket_bytes);
    let end = member.first_bucket.checked_add(member.bucket_count).and_then(|b| b.checked_mul(size));
    let within = |r: &BucketRange| {
        r.first >= member.first_bucket
            && r.first
                .checked_add(r.count)
                .is_some_and(|end| end <= member.first_bucket + member.bucket_count)
    };
    let fine = member.bucket_bytes.is_power_of_two()
        && BUCKET_BYTES.contains(&member.bucket_bytes)
        && member.first_bucket.checked_mul(size).is_some_and(|start| start >= RESERVED_START)
        && end.is_some_and(|end| end <= buckets_end(member.bytes))
        && member.journal.iter().all(within)
        && are_apart(&member.journal);
    if fine { Ok(member) } else { Err(FormatError::Value) }
}

/// Whether no bucket is in two of the ranges.
fn are_apart(ranges: &[BucketRange]) -> bool {
    let apart =
        |a: &BucketRange, b: &BucketRange| a.first + a.count <= b.first || b.first + b.count <= a.first;
    ranges.iter().enumerate().all(|(n, a)| ranges[..n].iter().all(|b| apart(a, b)))
}

/// Sixteen bytes as people write a UUID.
pub struct Uuid<'a>(pub &'a [u8; 16]);

impl fmt::Display for Uuid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Superblock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pool {} '{}' layout {LAYOUT}", Uuid(&self.pool_id), self.label)?;
        writeln!(f, "  this device {} of {}", self.device, self.members.len())?;
        writeln!(f, "  seq {} epoch {:016x} after {:016x}", self.seq, self.epoch, self.prev_epoch)?;
        writeln!(f, "  mount epoch {} nonce {:016x}", self.mount_epoch, self.mount_nonce)?;
        let clean = if self.clean { "yes" } else { "no" };
        writeln!(
            f,
            "  clean {clean}, journal floor {}, change counter {}",
            self.journal_floor, self.change_counter
        )?;
        writeln!(
            f,
            "  node {} block {} dirty at most {}",
            self.node_bytes, self.block_bytes, self.dirty_bytes_max
        )?;
        writeln!(f, "  features {:x}/{:x}/{:x}", self.compat, self.ro_compat, self.incompat)?;
        writeln!(f, "  journal on {} × {}", self.journal_set, self.journal_replicas)?;
        write!(f, "  metadata on {} × {}", self.metadata_set, self.metadata_replicas)?;
        for (i, m) in self.members.iter().enumerate() {
            write!(
                f,
                "\n  member {i} {} '{}' {:?} durability {}",
                Uuid(&m.uuid),
                m.label,
                m.state,
                m.durability
            )?;
            write!(f, "\n    {} bytes, buckets {}+{}", m.bytes, m.first_bucket, m.bucket_count)?;
            write!(
                f,
                " of {} bytes, last seen {} {:016x}",
                m.bucket_bytes, m.last_seen_seq, m.last_seen_epoch
            )?;
            for range in &m.journal {
                write!(f, "\n    journal buckets {}+{}", range.first, range.count)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec;

    fn member(n: u8) -> Member {
        Member {
            uuid: [n; 16],
            bytes: 64 << 20,
            bucket_bytes: 64 << 10,
            state: MemberState::ReadWrite,
            durability: 1,
            first_bucket: 3,
            bucket_count: 1000,
            last_seen_seq: 5,
            last_seen_epoch: 6,
            journal: vec![BucketRange { first: 3, count: 4 }],
            label: String::from("ssd"),
        }
    }

    fn sample() -> Superblock {
        Superblock {
            pool_id: *b"0123456789abcdef",
            device: 1,
            journal_replicas: 2,
            metadata_replicas: 1,
            seq: 5,
            epoch: 6,
            prev_epoch: 4,
            mount_epoch: 9,
            mount_nonce: 10,
            change_counter: 1 << 20,
            handle_key: [3; 16],
            appliance: [4; 16],
            dirty_bytes_max: 12 << 20,
            node_bytes: 64 << 10,
            block_bytes: 4096,
            compat: 0,
            ro_compat: 0,
            incompat: 0,
            clean: true,
            journal_floor: 77,
            created: 1,
            written: 2,
            label: String::from("tank"),
            journal_set: [0, 1].into_iter().collect(),
            metadata_set: [0].into_iter().collect(),
            members: vec![member(7), member(8)],
        }
    }

    #[test]
    fn a_superblock_reads_back_as_written() {
        let bytes = sample().to_bytes();
        assert_eq!(bytes.len(), 8192);
        assert_eq!(Superblock::parse(&bytes).unwrap(), sample());
        let text = sample().to_string();
        assert!(text.contains("pool 30313233-3435-3637-3839-616263646566 'tank'"), "{text}");
        assert!(text.contains("journal buckets 3+4"), "{text}");
    }

    #[test]
    fn golden_bytes_do_not_move() {
        let bytes = sample().to_bytes();
        let u64_at = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        assert_eq!(bytes[..16], MAGIC);
        assert_eq!(u64_at(16), (4096 + 2 * 192) << 32);
        assert_eq!(bytes[24..24 + LAYOUT.len()], *LAYOUT.as_bytes());
        assert_eq!(bytes[72..88], *b"0123456789abcdef");
        assert_eq!(u64_at(88), pool_tag(b"0123456789abcdef"));
        assert_eq!(bytes[96..116], [[8; 16].as_slice(), &[1, 2, 2, 1]].concat());
        assert_eq!([120, 128, 136, 144, 152, 160].map(u64_at), [5, 6, 4, 9, 10, 1 << 20]);
        assert_eq!([200, 240, 248, 256, 264].map(u64_at), [12 << 20, 1, 77, 1, 2]);
        assert_eq!(u64_at(208), 64 << 10 | 4096 << 32);
        assert_eq!(&bytes[288..292], b"tank");
        assert_eq!((bytes[352], bytes[384]), (3, 1));
        assert_eq!(u64_at(4096 + 192 + 16), 64 << 20);
        assert_eq!(moraine_accel::crc32c(&bytes), GOLDEN_CRC, "the whole slot, byte for byte");
    }
    const GOLDEN_CRC: u32 = 2_704_641_881;

    #[test]
    fn another_layout_is_refused_by_name_and_damage_is_told_apart() {
        let mut bytes = sample().to_bytes();
        assert_eq!(Superblock::parse(&vec![0; SLOT_BYTES]), Err(SlotError::Absent));
        bytes[24 + LAYOUT.len()] = b'b';
        let error = Superblock::parse(&bytes).unwrap_err();
        assert_eq!(error, SlotError::OtherLayout(std::format!("{LAYOUT}b")));
        assert!(error.to_string().contains("reads 'moraine-0"));
        for at in (16..4096 + 2 * 192).filter(|at| !(24..56).contains(at)) {
            let mut bad = sample().to_bytes();
            bad[at] ^= 1 << (at % 8);
            assert!(Superblock::parse(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn impossible_geometry_is_refused_though_its_checksum_is_right() {
        type Break = fn(&mut Superblock);
        let breaks: [Break; 7] = [
            |s| s.members[0].bucket_bytes = 3000,
            |s| s.members[0].first_bucket = 2,
            |s| s.members[0].bucket_count = u64::MAX,
            |s| s.members[1].journal[0].count = u64::MAX,
            |s| s.node_bytes = 128 << 10,
            |s| s.journal_set.insert(2),
            |s| s.journal_replicas = 0,
        ];
        for (i, break_it) in breaks.iter().enumerate() {
            let mut bad = sample();
            break_it(&mut bad);
            assert_eq!(
                Superblock::parse(&bad.to_bytes()),
                Err(SlotError::Damaged(FormatError::Value)),
                "break {i}"
            );
        }
        let mut future = sample();
        future.incompat = 4;
        assert_eq!(Superblock::parse(&future.to_bytes()), Err(SlotError::UnknownFeatures(4)));
    }

    #[test]
    fn slots_do_not_overlap_each_other_or_the_buckets() {
        for bytes in [DEVICE_BYTES_MIN, (64 << 20) + 12345, 8 << 30] {
            let offsets = slot_offsets(bytes);
            let mut sorted = offsets;
            sorted.sort_unstable();
            assert!(sorted.windows(2).all(|w| w[1] >= w[0] + SLOT_BYTES as u64));
            assert!(sorted[1] + SLOT_BYTES as u64 <= RESERVED_START);
            assert_eq!(sorted[2], buckets_end(bytes));
            assert!(sorted[3] + SLOT_BYTES as u64 <= bytes);
        }
    }
}
