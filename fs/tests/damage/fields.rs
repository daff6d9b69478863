//! Fields of superblocks, journal entries and nodes, with their checksums put right again: nothing but what the values
//! say is wrong.

use crate::sample::{BUCKET_BYTES, DISK_BYTES, Left, Sample, choose, ordeal};
use moraine_format::journal::{ENTRY_BLOCK, ENTRY_HEADER_BYTES, Entry};
use moraine_format::node::{NODE_BLOCK, RUN_HEADER_BYTES, Run};
use moraine_format::superblock::{SLOT_BYTES, Superblock, slot_offsets};
use moraine_sim::Image;

/// A checksummed structure: where it is, and where in it the checksum is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Superblock,
    Entry,
    Run,
}

/// One change of one structure.
#[derive(Clone, Debug)]
struct Change {
    what: What,
    /// Places on the disk that hold it; the four copies of a superblock change together.
    at: u64,
    bytes: usize,
    offset: usize,
    how: How,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Flip(u8),
    /// Eight bytes from the offset on.
    Fill(u8),
    /// A number off by one.
    Next,
}

fn pool(image: &Image) -> Superblock {
    let mut slot = vec![0; SLOT_BYTES];
    image.read(slot_offsets(DISK_BYTES)[0], &mut slot);
    Superblock::parse(&slot).unwrap()
}

/// Every structure of the image.
fn structures(image: &Image) -> Vec<(What, u64, usize)> {
    let tag = pool(image).pool_tag();
    let mut found = vec![(What::Superblock, slot_offsets(DISK_BYTES)[0], 4096 + 192)];
    let journal = pool(image).members[0].journal_buckets().collect::<Vec<_>>();
    for bucket in 3..DISK_BYTES / BUCKET_BYTES - 2 {
        let mut bytes = vec![0; BUCKET_BYTES as usize];
        image.read(bucket * BUCKET_BYTES, &mut bytes);
        let mut at = 0;
        while at < bytes.len() {
            if journal.contains(&bucket) {
                at += match Entry::parse(&bytes[at..], tag) {
                    Ok(entry) => {
                        found.push((What::Entry, bucket * BUCKET_BYTES + at as u64, entry.disk_bytes));
                        entry.disk_bytes
                    }
                    Err(_) => ENTRY_BLOCK,
                };
            } else {
                at += match Run::parse(&bytes[at..], tag) {
                    Ok(run) => {
                        found.push((What::Run, bucket * BUCKET_BYTES + at as u64, run.disk_bytes));
                        run.disk_bytes
                    }
                    Err(_) => NODE_BLOCK,
                };
            }
        }
    }
    found
}

/// What of a structure is not padding.
fn used(image: &Image, what: What, at: u64, bytes: usize) -> usize {
    let mut head = vec![0; 256];
    image.read(at, &mut head);
    let length = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()) as usize;
    match what {
        What::Superblock => bytes,
        What::Entry => length(72).max(ENTRY_HEADER_BYTES),
        What::Run => length(32).max(RUN_HEADER_BYTES),
    }
    .min(bytes)
}

fn changes(image: &Image, only: What) -> Vec<Change> {
    let mut all = Vec::new();
    for (what, at, bytes) in structures(image).into_iter().filter(|s| s.0 == only) {
        for offset in 0..used(image, what, at, bytes) {
            let skip = matches!(what, What::Superblock) && (416..4096).contains(&offset);
            if skip {
                continue;
            }
            for how in [How::Flip(1), How::Flip(0x80), How::Fill(0), How::Fill(0xff), How::Next] {
                all.push(Change { what, at, bytes, offset, how });
            }
        }
    }
    all
}

fn apply(image: &mut Image, change: &Change) {
    let Change { what, at, bytes, offset, how } = *change;
    let mut whole = vec![0; bytes];
    image.read(at, &mut whole);
    let end = (offset + 8).min(bytes);
    match how {
        How::Flip(mask) => whole[offset] ^= mask,
        How::Fill(with) => whole[offset..end].fill(with),
        How::Next => whole[offset] = whole[offset].wrapping_add(1),
    }
    match what {
        What::Superblock => {
            let used = u32::from_le_bytes(whole[20..24].try_into().unwrap()) as usize;
            let used = used.clamp(64, whole.len());
            let sum = moraine_accel::crc32c_append(moraine_accel::crc32c(&whole[..56]), &whole[64..used]);
            whole[56..64].copy_from_slice(&u64::from(sum).to_le_bytes());
            slot_offsets(DISK_BYTES).iter().for_each(|slot| image.write(*slot, &whole));
        }
        What::Entry | What::Run => {
            // The checksum is over as many blocks as the structure says that it has.
            let (field, block) = if what == What::Entry { (72, ENTRY_BLOCK) } else { (32, NODE_BLOCK) };
            let used = u32::from_le_bytes(whole[field..field + 4].try_into().unwrap()) as usize;
            let used = used.next_multiple_of(block);
            let mut covered = vec![0; used.clamp(block, 1 << 20).min((DISK_BYTES - at) as usize)];
            image.read(at, &mut covered);
            let both = covered.len().min(whole.len());
            covered[..both].copy_from_slice(&whole[..both]);
            let sum = moraine_accel::crc32c(&covered[16..]);
            whole[8..16].copy_from_slice(&u64::from(sum).to_le_bytes());
            image.write(at, &whole);
        }
    }
}

fn each(only: What, left: Left, usual: usize) {
    let sample = Sample::new(left);
    let name = format!("{only:?}");
    let all = changes(&sample.image, only);
    assert!(!all.is_empty());
    for change in choose(&name, all, usual) {
        let mut image = sample.image.clone();
        apply(&mut image, &change);
        if let Err(e) = ordeal(&sample, &image, None) {
            panic!("{change:?}: {e}");
        }
    }
}

#[test]
fn superblocks() {
    each(What::Superblock, Left::Clean, 60);
    each(What::Superblock, Left::Running, 30);
}

#[test]
fn journal_entries() {
    each(What::Entry, Left::Clean, 60);
    each(What::Entry, Left::Running, 120);
}

#[test]
fn runs_of_nodes() {
    each(What::Run, Left::Clean, 250);
    each(What::Run, Left::Running, 100);
}
