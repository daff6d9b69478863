//! Fields of superblocks, journal entries and nodes, with their checksums put right again: nothing but what the values
//! say is wrong.

use moraine_sim::Image;
use moraine_sim::damage::anatomy::{Anatomy, Hashes, Surgery, What, used};
use moraine_sim::damage::{Left, Sample, choose, ordeal};

/// One change of one structure.
#[derive(Clone, Debug)]
struct Change {
    part: usize,
    offset: usize,
    how: How,
    /// Whether who refers to it knows of the change.
    hashes: Hashes,
}

#[derive(Clone, Copy, Debug)]
enum How {
    Flip(u8),
    /// Eight bytes from the offset on.
    Fill(u8),
    /// A number off by one.
    Next,
}

fn changes(anatomy: &Anatomy, only: What) -> Vec<Change> {
    let mut all = Vec::new();
    for part in anatomy.parts_of(only) {
        let bytes = Surgery::new(anatomy).part(part).clone();
        for offset in 0..used(only, &bytes) {
            let skip = matches!(only, What::Superblock) && (416..4096).contains(&offset);
            if skip {
                continue;
            }
            for how in [How::Flip(1), How::Flip(0x80), How::Fill(0), How::Fill(0xff), How::Next] {
                all.extend([Hashes::Old, Hashes::New].map(|hashes| Change { part, offset, how, hashes }));
            }
        }
    }
    all
}

fn apply(anatomy: &Anatomy, change: &Change) -> Image {
    let mut surgery = Surgery::new(anatomy);
    let whole = surgery.part(change.part);
    let end = (change.offset + 8).min(whole.len());
    match change.how {
        How::Flip(mask) => whole[change.offset] ^= mask,
        How::Fill(with) => whole[change.offset..end].fill(with),
        How::Next => whole[change.offset] = whole[change.offset].wrapping_add(1),
    }
    surgery.close(change.hashes)
}

fn each(only: What, left: Left, usual: usize) {
    let sample = Sample::new(left);
    let name = format!("{only:?}");
    let anatomy = Anatomy::of(&sample.image);
    let all = changes(&anatomy, only);
    assert!(!all.is_empty());
    for change in choose(&name, all, usual) {
        let image = apply(&anatomy, &change);
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
