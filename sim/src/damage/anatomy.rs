//! The checksummed structures of a pool on one disk, and changing them so that every checksum and every hash that others
//! hold of them is right again: nothing but what the values say is wrong.

use crate::Image;
use moraine_format::journal::{
    ENTRY_BLOCK, ENTRY_BYTES_MAX, ENTRY_HEADER_BYTES, Entry, ITEM_HEADER_BYTES, item_bytes,
};
use moraine_format::node::{ENTRY_BYTES, NODE_BLOCK, RUN_HEADER_BYTES, Run};
use moraine_format::superblock::{SLOT_BYTES, Superblock, slot_offsets};
use std::collections::BTreeMap;
use std::ops::Range;

/// Where a superblock's copies begin to hold members.
const MEMBERS_AT: usize = 4096;
/// Bytes of a member.
const MEMBER_BYTES: usize = 192;

/// What a structure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// All copies of the superblock.
    Superblock,
    /// A journal entry.
    Entry,
    /// A run of a node.
    Run,
}

/// Whether those that hold the hash of a changed structure learn the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashes {
    /// They do not: what was changed is another structure than the one they knew.
    Old,
    /// They do: all that is wrong is what the values say.
    New,
}

/// A structure, and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What it is.
    pub what: What,
    /// Where it begins on the disk: of a superblock the first copy.
    pub at: u64,
    /// Bytes on disk.
    pub bytes: usize,
    /// Level of a run's node, 0 for anything else.
    pub level: u8,
    /// By what others know it; 0 for a superblock.
    hash: u64,
}

/// All structures of an image.
pub struct Anatomy {
    /// The superblock, then runs by level, node and index, then journal entries by number: who knows another's hash comes
    /// behind it.
    pub parts: Vec<Part>,
    tag: u64,
    image: Image,
    /// For each part those that hold its hash.
    known_to: Vec<Vec<usize>>,
}

impl Anatomy {
    /// Finds every structure of a pool on one disk.
    pub fn of(image: &Image) -> Anatomy {
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            image.read(at, &mut bytes);
            bytes
        };
        let slot = read(slot_offsets(image.size())[0], SLOT_BYTES);
        let superblock = Superblock::parse(&slot).expect("the image is a pool");
        let (tag, member) = (superblock.pool_tag(), &superblock.members[0]);
        let journal: Vec<u64> = member.journal_buckets().collect();
        let bucket_bytes = u64::from(member.bucket_bytes);
        let (mut runs, mut entries) = (Vec::new(), Vec::new());
        for bucket in member.first_bucket..member.first_bucket + member.bucket_count {
            let bytes = read(bucket * bucket_bytes, bucket_bytes as usize);
            let mut at = 0;
            while at < bytes.len() {
                let place = bucket * bucket_bytes + at as u64;
                if journal.contains(&bucket) {
                    let Ok(entry) = Entry::parse(&bytes[at..], tag) else {
                        at += ENTRY_BLOCK;
                        continue;
                    };
                    let (hash, len) = (entry.hash, entry.disk_bytes);
                    entries.push((
                        entry.header.seq,
                        Part { what: What::Entry, at: place, bytes: len, level: 0, hash },
                    ));
                    at += len;
                } else {
                    let Ok(run) = Run::parse(&bytes[at..], tag) else {
                        at += NODE_BLOCK;
                        continue;
                    };
                    let (hash, len, level) = (run.hash, run.disk_bytes, run.ident.level);
                    let order = (level, run.ident.node, run.info.index);
                    runs.push((order, Part { what: What::Run, at: place, bytes: len, level, hash }));
                    at += len;
                }
            }
        }
        runs.sort_by_key(|(order, part)| (*order, part.at));
        entries.sort_by_key(|(seq, part)| (*seq, part.at));
        let bytes = MEMBERS_AT + MEMBER_BYTES * superblock.members.len();
        let at = slot_offsets(image.size())[0];
        let mut parts = vec![Part { what: What::Superblock, at, bytes, level: 0, hash: 0 }];
        parts.extend(runs.into_iter().map(|(_, part)| part));
        parts.extend(entries.into_iter().map(|(_, part)| part));
        let contents: Vec<Vec<u8>> = parts.iter().map(|p| read(p.at, p.bytes)).collect();
        let known_to = (0..parts.len()).map(|i| {
            let behind = i + 1..parts.len();
            behind.filter(|j| parts[i].hash != 0 && finds(&contents[*j], parts[i].hash).is_some()).collect()
        });
        let known_to = known_to.collect();
        Anatomy { known_to, parts, tag, image: image.clone() }
    }

    /// Those of one kind.
    pub fn parts_of(&self, what: What) -> impl Iterator<Item = usize> + '_ {
        (0..self.parts.len()).filter(move |i| self.parts[*i].what == what)
    }
}

/// Where the bytes of a number lie first.
fn finds(bytes: &[u8], number: u64) -> Option<usize> {
    bytes.windows(8).position(|window| window == number.to_le_bytes())
}

/// An image whose parts are being changed.
pub struct Surgery<'a> {
    anatomy: &'a Anatomy,
    open: BTreeMap<usize, Vec<u8>>,
}

impl<'a> Surgery<'a> {
    /// Nothing changed yet.
    pub fn new(anatomy: &'a Anatomy) -> Surgery<'a> {
        Surgery { anatomy, open: BTreeMap::new() }
    }

    /// The bytes of a part, to change. They stay as many.
    pub fn part(&mut self, index: usize) -> &mut Vec<u8> {
        let part = &self.anatomy.parts[index];
        self.open.entry(index).or_insert_with(|| {
            let mut bytes = vec![0; part.bytes];
            self.anatomy.image.read(part.at, &mut bytes);
            bytes
        })
    }

    /// The image with all changes, and with every checksum right.
    pub fn close(mut self, hashes: Hashes) -> Image {
        let mut image = self.anatomy.image.clone();
        // What is behind may be opened on the way, to learn a new hash.
        let mut next = 0;
        while let Some((index, mut bytes)) = self.open.range(next..).next().map(|(i, b)| (*i, b.clone())) {
            next = index + 1;
            let part = &self.anatomy.parts[index];
            assert_eq!(bytes.len(), part.bytes, "a part keeps its size");
            seal(part, &mut bytes, &image);
            match part.what {
                What::Superblock => {
                    slot_offsets(image.size()).iter().for_each(|slot| image.write(*slot, &bytes));
                }
                What::Entry | What::Run => image.write(part.at, &bytes),
            }
            let hash = match part.what {
                What::Superblock => None,
                What::Entry => Entry::parse(&bytes, self.anatomy.tag).ok().map(|entry| entry.hash),
                What::Run => Run::parse(&bytes, self.anatomy.tag).ok().map(|run| run.hash),
            };
            // What does not parse is refused before anybody asks for its hash.
            let Some(hash) = hash.filter(|hash| *hash != part.hash && hashes == Hashes::New) else {
                continue;
            };
            for knows in &self.anatomy.known_to[index] {
                let bytes = self.part(*knows);
                while let Some(at) = finds(bytes, part.hash) {
                    bytes[at..at + 8].copy_from_slice(&hash.to_le_bytes());
                }
            }
        }
        image
    }
}

/// Makes the checksum of a part right.
fn seal(part: &Part, bytes: &mut [u8], image: &Image) {
    let number = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    match part.what {
        What::Superblock => {
            let used = (number(bytes, 20) as usize).clamp(64, bytes.len());
            let sum = moraine_accel::crc32c_append(moraine_accel::crc32c(&bytes[..56]), &bytes[64..used]);
            bytes[56..64].copy_from_slice(&u64::from(sum).to_le_bytes());
        }
        What::Entry | What::Run => {
            // The checksum is over as many blocks as the structure says that it has.
            let (field, block) = if part.what == What::Entry { (72, ENTRY_BLOCK) } else { (32, NODE_BLOCK) };
            let used = (number(bytes, field) as usize).next_multiple_of(block).clamp(block, ENTRY_BYTES_MAX);
            let mut covered = vec![0; used.min((image.size() - part.at) as usize)];
            image.read(part.at, &mut covered);
            let both = covered.len().min(bytes.len());
            covered[..both].copy_from_slice(&bytes[..both]);
            bytes[8..16].copy_from_slice(&u64::from(moraine_accel::crc32c(&covered[16..])).to_le_bytes());
        }
    }
}

/// What of a part is in use: the rest is padding.
pub fn used(what: What, bytes: &[u8]) -> usize {
    let length = |at: usize| bytes[at..at + 4].first_chunk().map_or(0, |b| u32::from_le_bytes(*b)) as usize;
    match what {
        What::Superblock => bytes.len(),
        What::Entry => length(72).max(ENTRY_HEADER_BYTES),
        What::Run => length(32).max(RUN_HEADER_BYTES),
    }
    .min(bytes.len())
}

/// The entries of a run, or the items of a journal entry: where each lies, as far as they are whole.
pub fn pieces(what: What, bytes: &[u8]) -> Vec<Range<usize>> {
    let end = used(what, bytes);
    let (mut at, head) = match what {
        What::Superblock => return Vec::new(),
        What::Entry => (ENTRY_HEADER_BYTES, ITEM_HEADER_BYTES),
        What::Run => (RUN_HEADER_BYTES, ENTRY_BYTES),
    };
    let mut found = Vec::new();
    while at + head <= end {
        let piece = &bytes[at..end];
        let len = match what {
            What::Run => ENTRY_BYTES + usize::from(u16::from_le_bytes([piece[22], piece[23]])),
            _ => item_bytes(u32::from_le_bytes([piece[4], piece[5], piece[6], piece[7]]) as usize),
        };
        if len > piece.len() {
            break;
        }
        found.push(at..at + len);
        at += len;
    }
    found
}

/// Puts other pieces in place of those a run or a journal entry has, and says so in its header. Whether they fit.
pub fn set_pieces(what: What, bytes: &mut [u8], pieces: &[Vec<u8>]) -> bool {
    let (head, field) = match what {
        What::Superblock => return false,
        What::Entry => (ENTRY_HEADER_BYTES, 72),
        What::Run => (RUN_HEADER_BYTES, 32),
    };
    let used = head + pieces.iter().map(Vec::len).sum::<usize>();
    if used.next_multiple_of(NODE_BLOCK) != bytes.len() {
        return false;
    }
    bytes[head..].fill(0);
    let mut at = head;
    for piece in pieces {
        bytes[at..at + piece.len()].copy_from_slice(piece);
        at += piece.len();
    }
    bytes[field..field + 4].copy_from_slice(&(used as u32).to_le_bytes());
    bytes[field + 4..field + 8].copy_from_slice(&(pieces.len() as u32).to_le_bytes());
    true
}
