//! Looking at a disk without touching it: ours, blank, foreign, damaged?

use super::foreign::{self, WINDOW_BYTES};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use moraine_format::FormatError;
use moraine_format::superblock::{DEVICE_BYTES_MIN, SLOT_BYTES, SlotError, Superblock, slot_offsets};
use moraine_platform::{BLOCK_SIZE, BlockDevice, Buf, Fua, IoError};

/// Blocks looked at between the ends of a device before it is called blank.
const SAMPLES: u64 = 64;

/// What a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A member of a pool that this build can read: the newest valid copy of its superblock.
    Ours(Box<Superblock>),
    /// Nothing but zeroes wherever anything would be.
    Blank,
    /// Something else, named as far as it can be.
    Foreign(&'static str),
    /// A member of a pool in another layout of this format, named.
    OtherLayout(String),
    /// A member of a pool which uses features (bits) that this build does not know.
    UnknownFeatures(u64),
    /// Was a member of a pool; none of its superblocks is whole.
    Damaged(FormatError),
    /// Smaller than any member can be.
    TooSmall,
    /// Cannot be read.
    Unreadable(IoError),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Ours(sb) if sb.is_being_made() => {
                write!(f, "member {} of a pool '{}' whose making did not end", sb.device, sb.label)
            }
            Found::Ours(sb) => write!(f, "member {} of the pool '{}'", sb.device, sb.label),
            Found::Blank => f.write_str("blank"),
            Found::Foreign(what) => f.write_str(what),
            Found::OtherLayout(name) => SlotError::OtherLayout(name.clone()).fmt(f),
            Found::UnknownFeatures(bits) => SlotError::UnknownFeatures(*bits).fmt(f),
            Found::Damaged(why) => write!(f, "a damaged superblock: {why}"),
            Found::TooSmall => f.write_str("too small"),
            Found::Unreadable(error) => write!(f, "unreadable: {error}"),
        }
    }
}

/// One of the copies of a disk's superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// It is whole.
    Valid(Box<Superblock>),
    /// It is not, and why.
    Damaged(String),
}

/// All copies of a disk's superblock, in order of their slots. Only reads.
pub async fn copies(device: &dyn BlockDevice) -> Vec<Copy> {
    let mut found = Vec::new();
    for offset in slot_offsets(device.info().size) {
        found.push(match read(device, offset, SLOT_BYTES as u64).await {
            Ok(slot) => match Superblock::parse(&slot) {
                Ok(superblock) => Copy::Valid(Box::new(superblock)),
                Err(e) => Copy::Damaged(e.to_string()),
            },
            Err(e) => Copy::Damaged(e.to_string()),
        });
    }
    found
}

/// Looks at a disk. Only reads.
///
/// A disk that somebody else formatted over an old member may still have our slots at its end: with a foreign
/// signature, only the slots at the start count.
pub async fn probe(device: &dyn BlockDevice) -> Found {
    match look(device).await {
        Ok(found) => found,
        Err(error) => Found::Unreadable(error),
    }
}

async fn look(device: &dyn BlockDevice) -> Result<Found, IoError> {
    let size = device.info().size;
    if size < DEVICE_BYTES_MIN {
        return Ok(Found::TooSmall);
    }
    let mut best: Option<Superblock> = None;
    let mut best_at_start = false;
    let mut problem = None;
    for offset in slot_offsets(size) {
        // One bad block must not hide the other copies.
        let Ok(slot) = read(device, offset, SLOT_BYTES as u64).await else { continue };
        match Superblock::parse(&slot) {
            Ok(found) => {
                best_at_start |= offset < size / 2;
                if best.as_ref().is_none_or(|b| found.seq > b.seq) {
                    best = Some(found);
                }
            }
            Err(SlotError::Absent) => {}
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    if let Some(superblock) = best.take_if(|_| best_at_start) {
        return Ok(Found::Ours(Box::new(superblock)));
    }
    let (start, end) = ends(device).await?;
    let signature = foreign::recognise(&start, &end);
    Ok(match (best, problem, signature) {
        (Some(superblock), _, None) => Found::Ours(Box::new(superblock)),
        (_, Some(SlotError::OtherLayout(name)), _) => Found::OtherLayout(name),
        (_, Some(SlotError::UnknownFeatures(bits)), _) => Found::UnknownFeatures(bits),
        (_, _, Some(name)) => Found::Foreign(name),
        (None, Some(SlotError::Damaged(why)), None) => Found::Damaged(why),
        (None, Some(SlotError::Absent) | None, None) => match is_blank(device, &start, &end).await? {
            true => Found::Blank,
            false => Found::Foreign("data of an unknown kind"),
        },
    })
}

/// Takes away every mark by which somebody else would know a disk as theirs. What else is on it stays.
pub(super) async fn wipe(device: &dyn BlockDevice) -> Result<(), IoError> {
    let unit = u64::from(device.info().logical_block);
    let size = device.info().size / unit * unit;
    let (start, end) = ends(device).await?;
    for (at, len) in foreign::marks(&start, &end) {
        let at = at.map_or_else(|back| size - back as u64, |offset| offset as u64);
        let (first, last) = (at / unit * unit, (at + len as u64).next_multiple_of(unit));
        let mut block = read(device, first, last - first).await?;
        block[(at - first) as usize..][..len].fill(0);
        let buf = Buf::copy_of(&block).map_err(|_| IoError::Device)?;
        device.write(first, buf, Fua::No).await.result?;
    }
    device.flush().await
}

/// The first and the last bytes of a device.
async fn ends(device: &dyn BlockDevice) -> Result<(Vec<u8>, Vec<u8>), IoError> {
    let info = device.info();
    let unit = u64::from(info.logical_block);
    let end = info.size / unit * unit;
    let window = (WINDOW_BYTES as u64).min(end);
    Ok((read(device, 0, window).await?, read(device, end - window, window).await?))
}

async fn is_blank(device: &dyn BlockDevice, start: &[u8], end: &[u8]) -> Result<bool, IoError> {
    let zero = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
    if !zero(start) || !zero(end) {
        return Ok(false);
    }
    let block = BLOCK_SIZE as u64;
    let step = device.info().size / (SAMPLES + 1) / block * block;
    for n in 1..=SAMPLES {
        if !zero(&read(device, n * step, block).await?) {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn read(device: &dyn BlockDevice, offset: u64, len: u64) -> Result<Vec<u8>, IoError> {
    let piece = u64::from(device.info().max_transfer);
    let mut out = Vec::new();
    out.try_reserve_exact(len as usize).map_err(|_| IoError::Device)?;
    let mut at = 0;
    while at < len {
        let part = piece.min(len - at);
        let buf = Buf::zeroed(part as usize).map_err(|_| IoError::Device)?;
        let done = device.read(offset + at, buf).await;
        done.result?;
        out.extend_from_slice(&done.buf);
        at += part;
    }
    Ok(out)
}
