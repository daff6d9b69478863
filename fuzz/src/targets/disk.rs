//! What lies on a disk. A checksum would keep all but the luckiest changes out, so each input is tried as it is and with its
//! checksum made right.

use crate::seeds::POOL_TAG;
use moraine_format::dirent::Dirent;
use moraine_format::extent::{self, Extent};
use moraine_format::inode::Inode;
use moraine_format::journal::{Entry, Items};
use moraine_format::node::{NodePointer, Run};
use moraine_format::record::{self, LoggedOp};
use moraine_format::space::{self, Alloc, Backpointer, DeviceUsage, PoolUsage};
use moraine_format::superblock::Superblock;
use moraine_format::xattr::{Namespace, Xattr};
use moraine_format::{FormatError, Pos};

/// Journal entries and runs of nodes are whole blocks of so many bytes.
const BLOCK: usize = 4096;

pub(super) fn superblock(bytes: &[u8]) {
    let look = |bytes: &[u8]| {
        if let Ok(found) = Superblock::parse(bytes) {
            let again = Superblock::parse(&found.to_bytes());
            assert_eq!(again.as_ref(), Ok(&found), "what is read is written and read again the same");
            assert!(!found.to_string().is_empty());
        }
    };
    look(bytes);
    let mut bytes = bytes.to_vec();
    let Some(field) = bytes.get(20..24).filter(|_| bytes.len() >= 64) else { return };
    let used = u32::from_le_bytes([field[0], field[1], field[2], field[3]]) as usize;
    if (64..=bytes.len()).contains(&used) {
        let sum = two_parts(&bytes[..56], &bytes[64..used]);
        bytes[56..64].copy_from_slice(&u64::from(sum).to_le_bytes());
    }
    look(&bytes);
}

fn two_parts(head: &[u8], rest: &[u8]) -> u32 {
    moraine_accel::crc32c_append(moraine_accel::crc32c(head), rest)
}

/// Seals bytes 16.. of the first block, of the first two and so on, and hands each to `look`.
fn sealed(bytes: &[u8], mut look: impl FnMut(&[u8])) {
    look(bytes);
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    for end in (BLOCK..=bytes.len().min(4 * BLOCK)).step_by(BLOCK) {
        let sum = moraine_accel::crc32c(&bytes[16..end]);
        bytes[8..16].copy_from_slice(&u64::from(sum).to_le_bytes());
        look(&bytes);
    }
}

pub(super) fn journal(bytes: &[u8]) {
    sealed(bytes, |bytes| {
        if let Ok(entry) = Entry::parse(bytes, POOL_TAG) {
            assert!(entry.disk_bytes <= bytes.len());
            // Items of a later kind that may be skipped count, and are not handed out.
            assert!(entry.items().count() <= entry.item_count);
            entry.items().for_each(|item| assert!(item.bytes() <= bytes.len()));
        }
    });
    let taken: usize = Items::new(bytes).map(|(whole, _)| whole.len().max(1)).sum();
    assert!(taken <= bytes.len(), "every item takes bytes, and no byte is taken twice");
}

pub(super) fn node(bytes: &[u8]) {
    sealed(bytes, |bytes| {
        if let Ok(run) = Run::parse(bytes, POOL_TAG) {
            assert_eq!(run.entries().count(), run.len());
            let mut last = None;
            for (pos, _) in run.entries() {
                assert!(last < Some(pos), "entries rise");
                last = Some(pos);
            }
        }
    });
}

/// Parses, and what parsed must be written and parse to the same again.
macro_rules! round_trip {
    ($bytes:expr, $parse:expr, $write:expr) => {
        if let Ok(found) = $parse($bytes) {
            let bytes = $write(&found);
            let again = $parse(&bytes);
            assert_eq!(again.ok().as_ref(), Some(&found));
        }
    };
}

/// The first byte chooses the kind, the next twenty are the key.
pub(super) fn value(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let Some((key, value)) = rest.split_first_chunk() else { return };
    let pos = Pos::from_bytes(key);
    match kind % 13 {
        0 => round_trip!(value, Inode::parse, Inode::to_value),
        1 => drop(Dirent::parse(value).map(|entry| Dirent::parse(&entry.to_value()) == Ok(entry))),
        2 => {
            if let Ok(extent) = Extent::parse(pos, value) {
                assert_eq!(Extent::parse(pos, &extent.to_value()).as_ref(), Ok(&extent));
                assert!(!extent.is_empty() && extent.used() <= extent.len());
                let pointers: Result<Vec<_>, FormatError> =
                    extent::pointers(pos, value).map(Iterator::collect);
                assert!(pointers.is_ok(), "who reads the extent finds its pointers");
            } else {
                let _ = extent::pointers(pos, value).map(Iterator::count);
            }
        }
        3 => round_trip!(value, NodePointer::parse, NodePointer::to_bytes),
        4 => drop(NodePointer::node_of(value)),
        5 => round_trip!(value, Alloc::parse, |a: &Alloc| a.to_bytes()),
        6 => round_trip!(value, Backpointer::parse, |b: &Backpointer| b.to_bytes()),
        7 => round_trip!(value, DeviceUsage::parse, |u: &DeviceUsage| u.to_bytes()),
        8 => round_trip!(value, PoolUsage::parse, |u: &PoolUsage| u.to_bytes()),
        9 => drop(Xattr::parse(value).map(|xattr| Xattr::parse(&xattr.to_value()) == Ok(xattr))),
        10 => round_trip!(value, LoggedOp::parse, LoggedOp::to_value),
        11 => {
            let _ = (record::parse_cursor(value), record::parse_deleted(value));
            let _ = Namespace::split(value);
        }
        _ => {
            let _ = space::parse_free_range(pos, value);
            let _ = (space::need_discard_bucket(pos), space::fragmented_bucket(pos));
            let _ = (pos.successor(), pos.predecessor());
        }
    }
}
