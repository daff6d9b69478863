//! A small pool with a real tree of files in it.

use crate::{DiskConfig, Image, SimDisk, World, WorldConfig};
use moraine_format::superblock::RESERVED_START;
use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::filesystem::Options;
use moraine_fs::vfs::*;
use moraine_fs::{CacheBudget, Filesystem};
use moraine_platform::BlockDevice;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// Size of the usual one's disk.
pub const DISK_BYTES: u64 = 8 << 20;
/// Size of its buckets.
pub const BUCKET_BYTES: u64 = 64 << 10;
const NODE_BYTES: u32 = 32 << 10;
pub(super) const CACHE_BYTES: usize = 1 << 20;
/// Polls a world may take: beyond, it hangs.
const POLLS_MAX: u64 = 3_000_000;

/// Why nothing fails here.
const WHOLE: &str = "the disk is whole";

/// What a file, a directory or a link was made as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// A file with the contents it had at one time or another; the newest last.
    File(Vec<Vec<u8>>),
    /// A directory.
    Dir,
    /// A symbolic link with its target.
    Link(Vec<u8>),
}

/// How much there is of a sample.
pub struct Size {
    /// Bytes of its disk.
    pub disk_bytes: u64,
    /// Buckets of its journal.
    pub journal_buckets: u64,
    dirs: &'static [&'static [u8]],
    /// Numbers and lengths of the files in each directory. Number 3 has an extended attribute, 5 a second name, 9 was
    /// written in parts and has a hole.
    files: &'static [(u64, usize)],
}

/// Enough for trees of several levels.
pub const USUAL: Size = Size {
    disk_bytes: DISK_BYTES,
    journal_buckets: 8,
    dirs: &[b"/a", b"/a/b", b"/c"],
    files: &[
        (0, 0),
        (1, 17),
        (2, 3000),
        (3, 4096),
        (4, 5000),
        (5, 40_000),
        (6, 9000),
        (7, 1),
        (8, 70_000),
        (9, 20_000),
    ],
};

/// So little that each of its bytes can be damaged in turn.
pub const TINY: Size = Size {
    disk_bytes: 2 << 20,
    journal_buckets: 4,
    dirs: &[],
    files: &[(1, 17), (3, 4096), (5, 5000), (9, 9000)],
};

/// A pool on one disk, and what is in it.
pub struct Sample {
    /// How it was left.
    pub left: Left,
    /// Its journal's buckets.
    pub journal: Range<u64>,
    /// What the disk holds.
    pub image: Image,
    /// Everything in it by path.
    pub tree: BTreeMap<Vec<u8>, Made>,
}

/// Small nodes, so that trees are deep.
pub fn budget() -> Budget {
    Budget { node_cache_bytes: 1 << 20, node_keys_max: 16, ..Budget::default() }
}

pub(super) fn options() -> Options {
    Options { hash_bits: 4, ..Options::default() }
}

/// Plugs a disk with this content in.
pub fn plug(world: &World, image: &Image) -> (Rc<SimDisk>, Vec<Rc<dyn BlockDevice>>) {
    let config = DiskConfig { discard: false, ..DiskConfig::default() };
    let disk = world.disk_with(image.clone(), config);
    (disk.clone(), vec![disk as Rc<dyn BlockDevice>])
}

/// A world that ends when it hangs.
pub fn world(seed: u64) -> World {
    World::with(WorldConfig { poll_limit: POLLS_MAX, ..WorldConfig::new(seed) })
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8 | 1
        })
        .collect()
}

/// How the pool was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Cleanly unmounted.
    Clean,
    /// In the middle of everything: what counts is in the journal.
    Running,
}

impl Sample {
    /// The usual one.
    pub fn new(left: Left) -> Sample {
        Sample::of(&USUAL, left)
    }

    /// Makes it anew: the same bytes each time.
    pub fn of(size: &Size, left: Left) -> Sample {
        let world = world(1);
        let (disk, disks) = plug(&world, &Image::new(size.disk_bytes));
        let tree = world.run(async {
            let format = FormatOptions {
                label: "sample".into(),
                bucket_bytes: BUCKET_BYTES,
                journal_bytes: size.journal_buckets * BUCKET_BYTES,
                node_bytes: NODE_BYTES,
                ..FormatOptions::default()
            };
            let engine = Engine::format(&world.platform(), &disks, &format, &budget()).await.expect(WHOLE);
            Filesystem::format_root(&engine).await.expect(WHOLE);
            engine.unmount().await.expect(WHOLE);
            let engine = Engine::mount(&world.platform(), &disks, &budget()).await.expect(WHOLE);
            let fs =
                Filesystem::open_with(engine, CacheBudget::of(CACHE_BYTES), options()).await.expect(WHOLE);
            let tree = fill(&fs, size).await;
            if left == Left::Clean {
                fs.shutdown().await.expect(WHOLE);
                fs.engine().unmount().await.expect(WHOLE);
            } else {
                fs.sync_all().await.expect(WHOLE);
            }
            tree
        });
        let first = RESERVED_START / BUCKET_BYTES;
        let journal = first..first + size.journal_buckets;
        Sample { left, journal, image: disk.durable_image(), tree }
    }
}

pub(super) fn root() -> Caller {
    Caller::root()
}

fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

async fn write(fs: &Filesystem, file: ObjectId, at: u64, bytes: &[u8]) {
    let data = WriteData::copy_of(at, bytes).expect(WHOLE);
    fs.write(&root(), file, at, data, Stability::Unstable).await.expect(WHOLE);
    fs.commit(file, 0, 0).await.expect(WHOLE);
}

/// Makes files of all kinds, some of them twice.
async fn fill(fs: &Filesystem, size: &Size) -> BTreeMap<Vec<u8>, Made> {
    let mut tree = BTreeMap::new();
    let mut dirs = vec![(Vec::new(), fs.root())];
    for name in size.dirs {
        let at = name.iter().rposition(|b| *b == b'/').expect(WHOLE);
        let parent = dirs.iter().find(|d| d.0 == name[..at]).expect(WHOLE).1;
        let made = fs.make(&root(), parent, &name[at + 1..], NewNode::Dir, &mode(0o755)).await.expect(WHOLE);
        dirs.push((name.to_vec(), made.value.0));
        tree.insert(name.to_vec(), Made::Dir);
    }
    for (n, (path, dir)) in dirs.clone().iter().enumerate() {
        for &(i, len) in size.files {
            let name = format!("file{i}");
            let file = fs
                .create(&root(), *dir, name.as_bytes(), CreateMode::Guarded, &mode(0o644))
                .await
                .expect(WHOLE)
                .value
                .0;
            let seed = n as u64 * 100 + i;
            let bytes = pattern(seed, len);
            write(fs, file, 0, &bytes).await;
            let mut versions = vec![bytes];
            if i == 9 {
                // Once more, in part, and with a hole behind.
                let mut again = versions[0].clone();
                again[4096..8192].copy_from_slice(&pattern(seed + 50, 4096));
                write(fs, file, 4096, &again[4096..8192]).await;
                versions.push(again.clone());
                again.resize(40_000, 0);
                again.extend(pattern(seed + 51, 100));
                write(fs, file, 40_000, &again[40_000..]).await;
                versions.push(again);
            }
            if i == 3 {
                fs.setxattr(&root(), file, b"user.colour", &pattern(seed, 30), XattrMode::Either)
                    .await
                    .expect(WHOLE);
            }
            let mut full = path.clone();
            full.push(b'/');
            full.extend(name.as_bytes());
            tree.insert(full, Made::File(versions.clone()));
            if i == 5 {
                fs.link(&root(), file, *dir, b"hard").await.expect(WHOLE);
                let mut full = path.clone();
                full.extend(b"/hard");
                tree.insert(full, Made::File(versions));
            }
        }
        let target = pattern(n as u64, 40);
        fs.make(&root(), *dir, b"soft", NewNode::Symlink(&target), &mode(0o777)).await.expect(WHOLE);
        let mut full = path.clone();
        full.extend(b"/soft");
        tree.insert(full, Made::Link(target));
        // Made and gone again: leaves its traces.
        let gone = fs.create(&root(), *dir, b"gone", CreateMode::Guarded, &mode(0o644)).await.expect(WHOLE);
        write(fs, gone.value.0, 0, &pattern(7, 30_000)).await;
        fs.remove(&root(), *dir, b"gone").await.expect(WHOLE);
    }
    fs.reap().await.expect(WHOLE);
    tree
}
