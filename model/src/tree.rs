//! What a [`Vfs`] holds, walked into one comparable value: the common ground of model and engine.
//!
//! Inode numbers, cookies and times of the clock differ between the two and are left out; objects are numbered in
//! the order in which their first path sorts, so hard links compare too.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use moraine_fs::vfs::*;
use moraine_platform::BLOCK_SIZE;

/// Entries asked for in one listing.
const LIST_LIMIT: usize = 64;
/// Bytes read at once.
const READ_LEN: u32 = 64 * 1024;

/// One path's object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Position of the object's first path: equal for hard links of one object, and only for them.
    pub id: usize,
    /// Kind.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; zero for directories, whose size is the filesystem's own business.
    pub size: u64,
    /// Device number.
    pub rdev: (u32, u32),
    /// A symbolic link's target.
    pub target: Vec<u8>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Box<[u8]>, Vec<u8>>,
    /// Hash of each block that is not all zeroes, by block number.
    pub blocks: BTreeMap<u64, u64>,
}

/// Everything below the root, by path. The root's path is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Objects by path, components joined by `/`.
    pub paths: BTreeMap<Vec<u8>, Object>,
}

impl Tree {
    /// Walks all of `fs` as root and reads every byte.
    pub async fn walk<V: Vfs>(fs: &V) -> FsResult<Tree> {
        let root = Caller::root();
        let mut found: BTreeMap<Vec<u8>, ObjectId> = BTreeMap::from([(Vec::new(), fs.root())]);
        let mut todo: Vec<(Vec<u8>, ObjectId)> = Vec::from([(Vec::new(), fs.root())]);
        while let Some((path, dir)) = todo.pop() {
            let mut cookie = 0;
            loop {
                let page = fs.readdir(&root, dir, cookie, LIST_LIMIT, WithAttributes::No).await?;
                for entry in &page.entries {
                    assert!(entry.cookie > cookie, "cookies rise within a listing");
                    cookie = entry.cookie;
                    if matches!(&*entry.name, b"." | b"..") {
                        continue;
                    }
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(&entry.name);
                    if entry.kind == Kind::Dir {
                        todo.push((below.clone(), entry.object));
                    }
                    let twice = found.insert(below, entry.object);
                    assert!(twice.is_none(), "a name is listed once");
                }
                if page.eof {
                    break;
                }
                assert!(!page.entries.is_empty(), "a listing that is not at its end has entries");
            }
        }
        let mut paths = BTreeMap::new();
        let mut ids = BTreeMap::new();
        for (path, object) in found {
            let next = ids.len();
            let id = *ids.entry(object).or_insert(next);
            let described = describe(fs, &root, object, id).await?;
            paths.insert(path, described);
        }
        Ok(Tree { paths })
    }

    /// What lies at and below `prefix`, with objects numbered anew. An empty prefix is everything.
    pub fn below(&self, prefix: &[u8]) -> Tree {
        let mut ids = BTreeMap::new();
        let inside = |path: &[u8]| {
            prefix.is_empty()
                || path.strip_prefix(prefix).is_some_and(|rest| rest.first().is_none_or(|b| *b == b'/'))
        };
        let found = self.paths.iter().filter(|(path, _)| inside(path));
        let renumbered = found.map(|(path, object)| {
            let next = ids.len();
            let id = *ids.entry(object.id).or_insert(next);
            (path.clone(), Object { id, ..object.clone() })
        });
        Tree { paths: renumbered.collect() }
    }

    /// The first difference to `other` in words, if there is one.
    pub fn difference(&self, other: &Tree) -> Option<String> {
        for (path, left) in &self.paths {
            let path_text = String::from_utf8_lossy(path);
            match other.paths.get(path) {
                None => return Some(alloc::format!("/{path_text} is only on the left: {left}")),
                Some(right) if left != right => {
                    return Some(alloc::format!("/{path_text} differs: left {left}, right {right}"));
                }
                Some(_) => {}
            }
        }
        let (path, right) = other.paths.iter().find(|(path, _)| !self.paths.contains_key(*path))?;
        Some(alloc::format!("/{} is only on the right: {right}", String::from_utf8_lossy(path)))
    }
}

async fn describe<V: Vfs>(fs: &V, root: &Caller, object: ObjectId, id: usize) -> FsResult<Object> {
    let attr = fs.getattr(object).await?;
    let mut xattrs = BTreeMap::new();
    for name in fs.listxattr(object).await? {
        let value = fs.getxattr(root, object, &name).await?;
        xattrs.insert(name, value);
    }
    let target = match attr.kind {
        Kind::Symlink => fs.readlink(object).await?.0,
        _ => Vec::new(),
    };
    let blocks = match attr.kind {
        Kind::File => block_hashes(fs, root, object, attr.size).await?,
        _ => BTreeMap::new(),
    };
    Ok(Object {
        id,
        kind: attr.kind,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        size: if attr.kind == Kind::Dir { 0 } else { attr.size },
        rdev: attr.rdev,
        target,
        xattrs,
        blocks,
    })
}

/// Hashes of the blocks that hold something. Holes are skipped by asking for them, as a copying tool would.
async fn block_hashes<V: Vfs>(
    fs: &V,
    root: &Caller,
    object: ObjectId,
    size: u64,
) -> FsResult<BTreeMap<u64, u64>> {
    let mut hashes = BTreeMap::new();
    let mut at = 0;
    while at < size {
        let segments = fs.segments(object, at, size - at).await?;
        assert!(!segments.is_empty(), "segments cover the file");
        for segment in segments {
            assert!(segment.offset == at && segment.len > 0, "segments leave no gap");
            let end = at + segment.len;
            // A block is hashed whole, so reads begin at block boundaries, whatever the segment's.
            let mut start = at - at % BLOCK_SIZE as u64;
            while start < end && !segment.hole {
                let read = fs.read(root, object, start, READ_LEN).await?.to_vec();
                assert!(!read.is_empty(), "a read inside the file gives bytes");
                for (n, block) in read.chunks(BLOCK_SIZE).enumerate() {
                    if block.iter().any(|b| *b != 0) {
                        hashes.insert(start / BLOCK_SIZE as u64 + n as u64, hash(block));
                    }
                }
                start += read.len() as u64;
            }
            at = end;
        }
    }
    Ok(hashes)
}

/// FNV-1a over the bytes up to the last that is not zero: the tail of a file's last block does not count.
pub fn hash(bytes: &[u8]) -> u64 {
    let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    bytes[..used]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// Runs a future that never has to wait (any call of the model) to its end.
///
/// Panics if it waits.
pub fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the model never waits"),
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "#{} {:?} {:04o} nlink={} uid={} gid={} size={}",
            self.id, self.kind, self.mode, self.nlink, self.uid, self.gid, self.size
        )?;
        if self.rdev != (0, 0) {
            write!(f, " rdev={}:{}", self.rdev.0, self.rdev.1)?;
        }
        if !self.target.is_empty() {
            write!(f, " -> {}", String::from_utf8_lossy(&self.target))?;
        }
        for (name, value) in &self.xattrs {
            write!(f, " {}={:016x}", String::from_utf8_lossy(name), hash(value))?;
        }
        for (block, hash) in &self.blocks {
            write!(f, " {block}:{hash:016x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, object) in &self.paths {
            writeln!(f, "/{} {object}", String::from_utf8_lossy(path).escape_debug())?;
        }
        Ok(())
    }
}
