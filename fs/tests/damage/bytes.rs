//! Single bytes and whole blocks, whatever they belong to.

use moraine_fs::repair::{FindingKind, Repair};
use moraine_sim::Image;
use moraine_sim::damage::{
    BUCKET_BYTES, DISK_BYTES, Exact, Left, Sample, TINY, choose, fsck, ordeal, ordeal_of, read_all,
};
use moraine_sim::disk::IMAGE_BLOCK;

/// Wrong outcomes that are told before the rest of a run is given up.
const FAILURES_MAX: usize = 20;

/// Blocks that hold something.
fn used(image: &Image) -> Vec<u64> {
    image.difference(&Image::new(image.size()))
}

/// Tries damages, and tells of all that come out wrong.
fn each(
    name: &str,
    sample: &Sample,
    usual: usize,
    all: Vec<(u64, u8)>,
    damage: impl Fn(&mut Image, u64, u8),
) {
    let (mut silent, mut mended, mut wrong) = (0, 0, Vec::new());
    let of = all.len();
    for (at, with) in choose(name, all, usual) {
        let mut image = sample.image.clone();
        damage(&mut image, at, with);
        // The newest entries of a journal with one copy: without them the pool is as it was a little earlier.
        let in_journal = sample.journal.contains(&(at / BUCKET_BYTES)) && sample.left == Left::Running;
        let before = if in_journal { Exact::AfterRepair } else { Exact::Yes };
        match ordeal_of(sample, &image, before, Some(Exact::AfterRepair)) {
            Ok(told) if told.findings.is_empty() => silent += 1,
            Ok(_) => mended += 1,
            Err(e) => wrong.push(format!("{name} at {at:#x} with {with:#x}: {e}")),
        }
        assert!(wrong.len() < FAILURES_MAX, "{}", wrong.join("\n"));
    }
    println!("{name}: {mended} noticed, {silent} of no consequence, {of} there are");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_whole_is_called_whole_and_not_touched() {
    for left in [Left::Clean, Left::Running] {
        let sample = Sample::new(left);
        read_all(&sample, &sample.image, Exact::Yes).unwrap();
        for repair in [Repair::No, Repair::Yes] {
            let (summary, told, after) = fsck(&sample.image, repair);
            let summary = summary.unwrap();
            assert_eq!((summary.found, summary.lost), (0, 0), "{}", told.text());
            assert!(summary.bytes_verified > 500_000, "{summary:?}");
            read_all(&sample, &after, Exact::Yes).unwrap();
        }
    }
}

fn flips(sample: &Sample, usual: usize) {
    let bytes =
        used(&sample.image).into_iter().flat_map(|b| (0..IMAGE_BLOCK).map(move |at| b * IMAGE_BLOCK + at));
    let all = bytes.map(|at| (at, 1u8 << (at % 8))).collect();
    each("flip", sample, usual, all, |image, at, mask| image.flip(at, mask));
}

#[test]
fn a_flipped_byte_in_a_clean_pool() {
    flips(&Sample::new(Left::Clean), 70);
}

#[test]
fn a_flipped_byte_in_a_pool_that_was_running() {
    flips(&Sample::new(Left::Running), 70);
}

#[test]
fn a_flipped_byte_in_a_tiny_clean_pool() {
    flips(&Sample::of(&TINY, Left::Clean), 100);
}

#[test]
fn a_flipped_byte_in_a_tiny_pool_that_was_running() {
    flips(&Sample::of(&TINY, Left::Running), 100);
}

#[test]
fn a_lost_block() {
    for left in [Left::Clean, Left::Running] {
        let sample = Sample::new(left);
        let all: Vec<(u64, u8)> = used(&sample.image)
            .into_iter()
            .flat_map(|b| [(b * IMAGE_BLOCK, 0), (b * IMAGE_BLOCK, 0xd5)])
            .collect();
        each("block", &sample, 40, all, |image, at, with| image.write(at, &[with; IMAGE_BLOCK as usize]));
    }
}

#[test]
fn a_lost_bucket() {
    for left in [Left::Clean, Left::Running] {
        let all: Vec<(u64, u8)> = (3..DISK_BYTES / BUCKET_BYTES).map(|b| (b * BUCKET_BYTES, 0)).collect();
        let sample = Sample::new(left);
        each("bucket", &sample, 25, all, |image, at, with| image.write(at, &[with; BUCKET_BYTES as usize]));
    }
}

#[test]
fn superblock_copies_are_made_anew_from_a_good_one() {
    let sample = Sample::new(Left::Clean);
    let slots = moraine_format::superblock::slot_offsets(DISK_BYTES);
    for spared in 0..slots.len() {
        let mut image = sample.image.clone();
        for (n, slot) in slots.iter().enumerate().filter(|(n, _)| *n != spared) {
            image.write(*slot + 200 * n as u64, &[0xaa; 3000]);
        }
        let told = ordeal(&sample, &image, Some(Exact::Yes)).unwrap();
        assert_eq!(told.kinds(), [FindingKind::SuperblockCopyBad]);
        assert_eq!(told.findings.len(), 3);
        let (_, _, after) = fsck(&image, Repair::Yes);
        let (_, told, _) = fsck(&after, Repair::No);
        assert!(told.findings.is_empty(), "{}", told.text());
    }
    let mut image = sample.image.clone();
    slots.iter().for_each(|slot| image.write(*slot, &[0; 4096]));
    let (nothing, _, _) = fsck(&image, Repair::Yes);
    assert!(nothing.unwrap_err().contains("no disk is a member of a pool"));
}

#[test]
fn a_lost_journal_costs_nothing_once_everything_was_written_back() {
    let sample = Sample::new(Left::Clean);
    for buckets in [3..11, 3..4, 4..11] {
        let mut image = sample.image.clone();
        let bytes = ((buckets.end - buckets.start) * BUCKET_BYTES) as usize;
        image.write(buckets.start * BUCKET_BYTES, &vec![0; bytes]);
        let told = ordeal(&sample, &image, Some(Exact::Yes)).unwrap();
        let whole = buckets == (3..11);
        assert!(!whole || told.kinds().contains(&FindingKind::JournalDamaged), "{}", told.text());
        assert!(told.damages.is_empty() && told.consequences.is_empty(), "{:?}", told.consequences);
    }
}
