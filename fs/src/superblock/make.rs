//! A new pool: geometry, identities, and the first superblocks.

use super::Superblocks;
use crate::device::Devices;
use crate::journal::BUCKETS_MIN;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use moraine_format::device_set::MEMBERS_MAX;
use moraine_format::superblock::{
    BUCKET_BYTES, BucketRange, DEVICE_BYTES_MIN, INCOMPAT_MAKING, LABEL_BYTES, MEMBER_LABEL_BYTES, Member,
    MemberState, RESERVED_START, Superblock, buckets_end,
};
use moraine_platform::{BlockDevice, Platform};

/// Smallest and largest buckets chosen by default; explicit ones may be smaller, down to the smallest of all.
const BUCKET_BYTES_DEFAULT: core::ops::RangeInclusive<u64> = 256 << 10..=1 << 20;
/// By default the journal takes this part of a device, up to so many bytes.
const JOURNAL_PART: u64 = 256;
const JOURNAL_BYTES_MAX: u64 = 32 << 20;
/// Buckets a member must have besides its journal.
const OTHER_BUCKETS_MIN: u64 = 8;

/// How to make a pool. Zero means "choose".
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// What people call the pool; at most [`LABEL_BYTES`].
    pub label: String,
    /// Bucket size; a power of two.
    pub bucket_bytes: u64,
    /// Journal size on each device, rounded to buckets.
    pub journal_bytes: u64,
    /// B-tree node size; a power of two, 32 KiB ..= 256 KiB.
    pub node_bytes: u32,
    /// Copies of each journal entry; at most the number of devices.
    pub journal_replicas: u8,
    /// Copies of each node that the superblock asks for; at most the number of devices. Nodes have one copy so far.
    pub metadata_replicas: u8,
    /// Bound on journal bytes not written back.
    pub dirty_bytes_max: u64,
}

impl Default for FormatOptions {
    fn default() -> FormatOptions {
        FormatOptions {
            label: String::from("moraine"),
            bucket_bytes: 0,
            journal_bytes: 0,
            node_bytes: 128 << 10,
            journal_replicas: 1,
            metadata_replicas: 1,
            dirty_bytes_max: 12 << 20,
        }
    }
}

/// Why no pool was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MakeError {
    /// An option has a value it cannot have; its name.
    Option(&'static str),
    /// A disk (by position) is too small.
    TooSmall(usize),
    /// A disk (by position) refuses writes.
    ReadOnly(usize),
    /// A disk (by position) did not take its superblock.
    Write(usize),
}

impl fmt::Display for MakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MakeError::Option(name) => write!(f, "impossible {name}"),
            MakeError::TooSmall(disk) => write!(f, "disk {disk} is too small"),
            MakeError::ReadOnly(disk) => write!(f, "disk {disk} is read-only"),
            MakeError::Write(disk) => write!(f, "disk {disk} could not be written"),
        }
    }
}

impl core::error::Error for MakeError {}

/// Makes a pool of `disks`, whatever they hold: the caller has asked [`probe`](super::probe()) and whoever must agree. Returns once it
/// is durable, and as one that is still being made: whoever puts into it what every pool has says when that is done, by an
/// orderly unmount. The first 4 KiB of each disk stay as they are, but for marks of other formats: these go wherever they are.
pub async fn format(
    platform: &Platform,
    disks: &[Rc<dyn BlockDevice>],
    options: &FormatOptions,
) -> Result<Superblocks, MakeError> {
    check(options, disks.len())?;
    let id = || {
        let mut bytes = [0; 16];
        platform.rng.fill(&mut bytes);
        bytes
    };
    let mut members = Vec::new();
    for (n, disk) in disks.iter().enumerate() {
        if disk.info().read_only {
            return Err(MakeError::ReadOnly(n));
        }
        members.push(member(id(), n, &**disk, options)?);
    }
    for (n, disk) in disks.iter().enumerate() {
        super::probe::wipe(&**disk).await.map_err(|_| MakeError::Write(n))?;
    }
    let all = (0..disks.len()).map(|i| i as u8);
    let superblock = Superblock {
        pool_id: id(),
        device: 0,
        journal_replicas: options.journal_replicas,
        metadata_replicas: options.metadata_replicas,
        seq: 0,
        epoch: 0,
        prev_epoch: 0,
        mount_epoch: 0,
        mount_nonce: platform.rng.next_u64(),
        change_counter: 0,
        handle_key: id(),
        appliance: id(),
        dirty_bytes_max: options.dirty_bytes_max,
        node_bytes: options.node_bytes,
        block_bytes: 4096,
        compat: 0,
        ro_compat: 0,
        incompat: INCOMPAT_MAKING,
        clean: true,
        journal_floor: 0,
        created: platform.clock.wall().0,
        written: 0,
        label: options.label.clone(),
        journal_set: all.clone().collect(),
        metadata_set: all.clone().collect(),
        members,
    };
    let devices = Devices::new(platform.spawn.clone(), all.clone().zip(disks.iter().cloned()).collect());
    let pool = Superblocks::with(platform, devices, superblock);
    let written = pool.update(|_| {}).await;
    if let Some(bad) = all.into_iter().find(|i| written.is_err() || !pool.devices().is_healthy(*i)) {
        return Err(MakeError::Write(usize::from(bad)));
    }
    Ok(pool)
}

fn check(options: &FormatOptions, disks: usize) -> Result<(), MakeError> {
    let copies = 1..=disks.min(usize::from(u8::MAX));
    let rules = [
        ("label", options.label.len() <= LABEL_BYTES),
        ("number of disks", (1..=MEMBERS_MAX).contains(&disks)),
        ("journal replicas", copies.contains(&usize::from(options.journal_replicas))),
        ("metadata replicas", copies.contains(&usize::from(options.metadata_replicas))),
        (
            "node size",
            options.node_bytes.is_power_of_two() && (32 << 10..=256 << 10).contains(&options.node_bytes),
        ),
        (
            "bucket size",
            options.bucket_bytes == 0
                || options.bucket_bytes.is_power_of_two()
                    && u32::try_from(options.bucket_bytes).is_ok_and(|bytes| BUCKET_BYTES.contains(&bytes))
                    && options.bucket_bytes >= u64::from(options.node_bytes),
        ),
    ];
    match rules.iter().find(|(_, fine)| !fine) {
        Some((name, _)) => Err(MakeError::Option(name)),
        None => Ok(()),
    }
}

fn member(
    uuid: [u8; 16],
    n: usize,
    disk: &dyn BlockDevice,
    options: &FormatOptions,
) -> Result<Member, MakeError> {
    let info = disk.info();
    if info.size < DEVICE_BYTES_MIN {
        return Err(MakeError::TooSmall(n));
    }
    let bucket_bytes = match options.bucket_bytes {
        0 => {
            let wanted = (info.size / 4096 + 1).next_power_of_two() / 2;
            wanted.clamp(*BUCKET_BYTES_DEFAULT.start(), *BUCKET_BYTES_DEFAULT.end())
        }
        bytes => bytes,
    };
    let first_bucket = RESERVED_START.div_ceil(bucket_bytes);
    let bucket_count = (buckets_end(info.size) / bucket_bytes).saturating_sub(first_bucket);
    let journal_bytes = match options.journal_bytes {
        0 => (info.size / JOURNAL_PART).min(JOURNAL_BYTES_MAX),
        bytes => bytes,
    };
    let journal_buckets = (journal_bytes / bucket_bytes).max(BUCKETS_MIN);
    if bucket_count < journal_buckets + OTHER_BUCKETS_MIN {
        return Err(MakeError::TooSmall(n));
    }
    // A label that does not fit is cut at a character.
    let fits =
        info.name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|at| *at <= MEMBER_LABEL_BYTES);
    let label = info.name[..fits.last().unwrap_or(0)].into();
    Ok(Member {
        uuid,
        bytes: info.size,
        bucket_bytes: bucket_bytes as u32,
        state: MemberState::ReadWrite,
        durability: 1,
        first_bucket,
        bucket_count,
        last_seen_seq: 0,
        last_seen_epoch: 0,
        journal: alloc::vec![BucketRange { first: first_bucket, count: journal_buckets }],
        label,
    })
}
