//! A small pool with a real tree of files, changed in its superblock, journal, nodes, keys and values, with every checksum
//! and hash made right again; then used, checked, repaired and checked again.

use moraine_sim::Image;
use moraine_sim::damage::anatomy::{Anatomy, Hashes, Surgery, What, pieces, set_pieces, used};
use moraine_sim::damage::{DISK_BYTES, Exact, Left, Sample, ordeal_of, use_all};

/// Bytes that say one change: kind, how, which part, which piece of it, where in that, a number.
pub(crate) const CHANGE: usize = 16;
/// Changes of one input.
const CHANGES_MAX: usize = 12;

/// A pool to change.
struct Subject {
    sample: Sample,
    anatomy: Anatomy,
    /// Blocks that hold something.
    blocks: Vec<u64>,
    /// The parts of each kind.
    runs: Vec<usize>,
    entries: Vec<usize>,
}

impl Subject {
    fn new(left: Left) -> Subject {
        let sample = Sample::new(left);
        let anatomy = Anatomy::of(&sample.image);
        let blocks = sample.image.difference(&Image::new(DISK_BYTES));
        let (runs, entries) =
            (anatomy.parts_of(What::Run).collect(), anatomy.parts_of(What::Entry).collect());
        Subject { sample, anatomy, blocks, runs, entries }
    }
}

thread_local! {
    static CLEAN: Subject = Subject::new(Left::Clean);
    static RUNNING: Subject = Subject::new(Left::Running);
}

/// The first byte chooses the pool and whether it is used before it is checked; then changes.
pub(super) fn pool(bytes: &[u8]) {
    let Some((how, changes)) = bytes.split_first() else { return };
    let subject = if how & 1 == 0 { &CLEAN } else { &RUNNING };
    subject.with(|subject| run(subject, changes, how & 2 != 0));
}

fn run(subject: &Subject, changes: &[u8], used_before: bool) {
    let (mut surgery, mut raw) = (Surgery::new(&subject.anatomy), Vec::new());
    let mut only_raw = true;
    for bytes in changes.chunks_exact(CHANGE).take(CHANGES_MAX) {
        let change = Change::parse(bytes);
        match change.kind % 16 {
            15 => raw.push(change),
            _ => {
                only_raw = false;
                change.cut(subject, &mut surgery);
            }
        }
    }
    let mut image = surgery.close(Hashes::New);
    raw.iter().for_each(|change| change.spoil(subject, &mut image));
    let after = use_all(&image).unwrap_or_else(|e| panic!("{e}"));
    // What only spoils bytes leaves nothing wrong behind, or an error. With fields changed under right checksums there is
    // no telling what is right, but that all of it fits together after a repair.
    let exact = (only_raw && !used_before).then_some(Exact::AfterRepair);
    let image = if used_before { after } else { image };
    if let Err(e) = ordeal_of(&subject.sample, &image, Exact::AfterRepair, exact) {
        panic!("{e}");
    }
}

/// One change, as the bytes say it.
struct Change {
    kind: u8,
    how: u8,
    which: usize,
    piece: usize,
    field: usize,
    value: u64,
}

impl Change {
    fn parse(bytes: &[u8]) -> Change {
        let short = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let value = bytes[8..CHANGE].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        Change { kind: bytes[0], how: bytes[1], which: short(2), piece: short(4), field: short(6), value }
    }

    /// Changes a field of `bytes`: sets, flips or adds to it.
    fn edit(&self, bytes: &mut [u8]) {
        let width = [1, 2, 4, 8][usize::from(self.how & 3)];
        if bytes.len() < width {
            return;
        }
        let at = self.field % (bytes.len() - width + 1);
        let field = &mut bytes[at..at + width];
        // Positions are big-endian, all else is little-endian.
        let big = self.how & 16 != 0;
        let old = if big { number(field.iter()) } else { number(field.iter().rev()) };
        let new = match self.how >> 2 & 3 {
            0 => self.value,
            1 => old ^ self.value,
            2 => old.wrapping_add(self.value as i8 as u64),
            _ => old ^ 1 << (self.value % (8 * width as u64)),
        };
        let raw =
            if big { new.to_be_bytes()[8 - width..].to_vec() } else { new.to_le_bytes()[..width].to_vec() };
        field.copy_from_slice(&raw);
    }

    /// Changes structures of which the checksums are put right later.
    fn cut(&self, subject: &Subject, surgery: &mut Surgery<'_>) {
        let of = |parts: &[usize], number: usize| (!parts.is_empty()).then(|| parts[number % parts.len()]);
        let kind = self.kind % 16;
        let (what, chosen) = match kind {
            0 => (What::Superblock, Some(0)),
            1..=4 => (What::Entry, of(&subject.entries, self.which)),
            _ => (What::Run, of(&subject.runs, self.which)),
        };
        let Some(part) = chosen else { return };
        match kind {
            0 => self.edit(surgery.part(part)),
            1 => self.edit(&mut surgery.part(part)[16..192]),
            5 => self.edit(&mut surgery.part(part)[16..160]),
            // A value, or all of a piece.
            2 | 6 | 7 | 8 => {
                let head = match (kind, self.how & 32) {
                    (2, 0) => 28,
                    (6, _) | (7, 0) => 24,
                    _ => 0,
                };
                let bytes = surgery.part(part);
                let pieces = pieces(what, bytes);
                if let Some(piece) = pieces.get(self.piece % pieces.len().max(1)) {
                    let end = piece.end;
                    self.edit(&mut bytes[(piece.start + head).min(end)..end]);
                }
            }
            // One piece less, one twice, or one of another part among them.
            3 | 9 | 10 => {
                let mut list = list(what, surgery.part(part));
                let at = self.piece % list.len().max(1);
                match self.how % 4 {
                    0 if !list.is_empty() => drop(list.remove(at)),
                    1 if !list.is_empty() => list.swap(0, at),
                    _ => {
                        let parts = if what == What::Run { &subject.runs } else { &subject.entries };
                        let Some(other) = of(parts, self.field) else { return };
                        let others = self::list(what, surgery.part(other));
                        let Some(piece) = others.get(self.value as usize % others.len().max(1)) else {
                            return;
                        };
                        list.insert(at, piece.clone());
                    }
                }
                if what == What::Run {
                    list.sort_by(|a, b| a[..20].cmp(&b[..20]));
                    list.dedup_by(|a, b| a[..20] == b[..20]);
                }
                set_pieces(what, surgery.part(part), &list);
            }
            // The value of one piece in the place of another's.
            4 | 11 | 12 => {
                let parts = if what == What::Run { &subject.runs } else { &subject.entries };
                let Some(other) = of(parts, self.field) else { return };
                let others = self::list(what, surgery.part(other));
                let Some(from) = others.get(self.value as usize % others.len().max(1)) else { return };
                let head = if what == What::Run { 20 } else { 28 };
                let mut list = list(what, surgery.part(part));
                let at = self.piece % list.len().max(1);
                if let Some(piece) = list.get_mut(at) {
                    if what == What::Run {
                        piece.truncate(head);
                        piece.extend(&from[head..]);
                    } else if piece.len() == from.len() {
                        piece[head..].copy_from_slice(&from[head..]);
                    }
                    set_pieces(what, surgery.part(part), &list);
                }
            }
            // A position near another's, in order still.
            13 => {
                let mut list = list(what, surgery.part(part));
                let at = self.piece % list.len().max(1);
                if let Some(piece) = list.get_mut(at) {
                    self.edit(&mut piece[..20]);
                    list.sort_by(|a, b| a[..20].cmp(&b[..20]));
                    list.dedup_by(|a, b| a[..20] == b[..20]);
                    set_pieces(what, surgery.part(part), &list);
                }
            }
            // All of another part in its place.
            _ => {
                let Some(other) = of(&subject.runs, self.field) else { return };
                let bytes = surgery.part(other).clone();
                let mine = surgery.part(part);
                if mine.len() == bytes.len() {
                    mine.copy_from_slice(&bytes);
                }
            }
        }
        debug_assert!(used(what, surgery.part(part)) > 0);
    }

    /// Changes bytes of the disk, whatever they belong to.
    fn spoil(&self, subject: &Subject, image: &mut Image) {
        const BLOCK: u64 = moraine_sim::disk::IMAGE_BLOCK;
        let block = subject.blocks[(self.which + self.piece) % subject.blocks.len()] * BLOCK;
        match self.how % 4 {
            0 => image.write(block, &[self.value as u8; BLOCK as usize]),
            1 => {
                let mut other = vec![0; BLOCK as usize];
                image.read(subject.blocks[self.field % subject.blocks.len()] * BLOCK, &mut other);
                image.write(block, &other);
            }
            _ => image.flip(block + self.field as u64 % BLOCK, (self.value as u8).max(1)),
        }
    }
}

fn number<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    bytes.fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The pieces of a part, each by itself.
fn list(what: What, bytes: &[u8]) -> Vec<Vec<u8>> {
    pieces(what, bytes).into_iter().map(|piece| bytes[piece].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_value_is_read_as_changed() {
        // A clean pool of which nothing is changed stays as it is; a changed key is found by a check.
        pool(&[0]);
        CLEAN.with(|subject| {
            let untouched = Surgery::new(&subject.anatomy).close(Hashes::New);
            assert_eq!(untouched.hash(), subject.sample.image.hash());
            assert!(subject.runs.len() > 20 && subject.entries.len() > 1);
        });
    }
}
