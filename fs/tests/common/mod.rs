//! Worlds with a filesystem in them, for tests of the façade.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::filesystem::Options;
use moraine_fs::vfs::*;
use moraine_fs::{CacheBudget, Filesystem};
use moraine_platform::BlockDevice;
use moraine_sim::{DiskConfig, World, WorldConfig};
use std::rc::Rc;

/// A pool of this many bytes.
pub const POOL_BYTES: u64 = 256 << 20;

/// What a test wants to be different.
#[derive(Clone, Copy)]
pub struct Shape {
    pub pool_bytes: u64,
    pub cache_bytes: usize,
    pub options: Options,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { pool_bytes: POOL_BYTES, cache_bytes: 8 << 20, options: Options::default() }
    }
}

/// An engine without files.
pub async fn engine(world: &World, shape: &Shape) -> Engine {
    world.disk(shape.pool_bytes, DiskConfig::default());
    let disks: Vec<Rc<dyn BlockDevice>> =
        world.disks().into_iter().map(|d| d as Rc<dyn BlockDevice>).collect();
    Engine::format(&world.platform(), &disks, &FormatOptions::default(), &Budget::default()).await.unwrap()
}

/// Makes a pool and opens it.
pub async fn fresh(world: &World, shape: Shape) -> Filesystem {
    let engine = engine(world, &shape).await;
    Filesystem::format_root(&engine).await.unwrap();
    open(engine, shape).await
}

pub async fn open(engine: Engine, shape: Shape) -> Filesystem {
    Filesystem::open_with(engine, CacheBudget::of(shape.cache_bytes), shape.options).await.unwrap()
}

/// Runs `test` in the world of `seed` on a fresh filesystem, and shuts it down.
pub fn run<T>(seed: u64, shape: Shape, test: impl AsyncFnOnce(&World, Filesystem) -> T) -> T {
    let world = World::with(WorldConfig::new(seed));
    world.run(async {
        let fs = fresh(&world, shape).await;
        let result = test(&world, fs.clone()).await;
        fs.shutdown().await.unwrap();
        fs.engine().unmount().await.unwrap();
        result
    })
}

pub fn root() -> Caller {
    Caller::root()
}

pub fn user(uid: u32) -> Caller {
    Caller { uid, gid: uid, groups: vec![], owner_override: false }
}

pub fn data(offset: u64, bytes: &[u8]) -> WriteData {
    WriteData::copy_of(offset, bytes).unwrap()
}

pub fn with_mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

pub fn with_size(size: u64) -> SetAttr {
    SetAttr { size: Some(size), ..SetAttr::default() }
}

/// A new file in the root.
pub async fn file(fs: &Filesystem, name: &[u8]) -> ObjectId {
    let set = with_mode(0o644);
    fs.create(&root(), fs.root(), name, CreateMode::Guarded, &set).await.unwrap().value.0
}

/// A new directory.
pub async fn dir(fs: &Filesystem, parent: ObjectId, name: &[u8]) -> ObjectId {
    fs.make(&root(), parent, name, NewNode::Dir, &with_mode(0o755)).await.unwrap().value.0
}

pub async fn write(
    fs: &Filesystem,
    file: ObjectId,
    offset: u64,
    bytes: &[u8],
    stability: Stability,
) -> Change<Written> {
    fs.write(&root(), file, offset, data(offset, bytes), stability).await.unwrap()
}

/// All bytes of a file.
pub async fn content(fs: &Filesystem, file: ObjectId) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let read = fs.read(&root(), file, out.len() as u64, 1 << 20).await.unwrap();
        out.extend(read.to_vec());
        if read.eof {
            return out;
        }
        assert!(!read.is_empty(), "a read that is not at the end gives bytes");
    }
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

/// A pool small enough to fill.
pub const FULL_POOL_BYTES: u64 = 24 << 20;

/// The engine under a filesystem, as it goes on after the filesystem's memory was lost.
pub fn engine_of(fs: &Filesystem) -> Engine {
    fs.engine().clone()
}

/// Keys of an inode in the trees of files.
pub async fn keys_of(engine: &Engine, inode: u64) -> usize {
    use moraine_format::{Pos, Tree};
    use moraine_fs::tx::Class;
    let trees = [Tree::Extents, Tree::Xattrs, Tree::Dirents, Tree::LoggedOps, Tree::DeletedInodes];
    let mut ranges: Vec<_> =
        trees.map(|tree| (tree, Pos::new(inode, 0, 0), Pos::new(inode, u64::MAX, u32::MAX))).into();
    ranges.push((Tree::Inodes, Pos::new(0, inode, 0), Pos::new(0, inode, u32::MAX)));
    let (count, _) = engine
        .transact(Class::Normal, async |tx| {
            let mut count = 0;
            for (tree, from, to) in &ranges {
                let mut from = *from;
                while let Some((at, _)) = tx.first(*tree, from..=*to).await? {
                    count += 1;
                    from = at.successor().unwrap();
                }
            }
            Ok(count)
        })
        .await
        .unwrap();
    count
}
