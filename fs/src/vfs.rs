//! The façade of the filesystem: what an export may ask, in the filesystem's own words.
//!
//! No protocol's numbers appear here; each export translates [`FsError`] and the rest into its own. Two types
//! implement [`Vfs`]: the engine, and a small reference model in memory that tests compare it with.
//!
//! # Durability
//! A change is visible to everybody when its call returns, and durable when [`Vfs::durable`] for its [`Seq`] does.
//! An export whose protocol calls a change stable awaits both before it answers.

use alloc::boxed::Box;
use alloc::vec::Vec;
use moraine_platform::{Buf, Timestamp};

mod error;
mod types;

pub use error::FsError;
pub use types::*;

/// Result of a filesystem call.
pub type FsResult<T> = Result<T, FsError>;

/// The filesystem as exports see it. Futures stay on the reactor; a dropped call either happened or did not.
///
/// Calls that take a [`Caller`] check POSIX permissions in the same step as the change.
#[allow(async_fn_in_trait, reason = "single-threaded by design: no caller needs Send")]
pub trait Vfs {
    /// What the pool is: identity, limits, keys for file handles. Constant while it is mounted.
    fn pool(&self) -> &PoolInfo;

    /// The root directory of the pool.
    fn root(&self) -> ObjectId;

    /// The write verifier in force: changes whenever unstable writes may have been lost (each mount; each failed
    /// write-back).
    fn write_verifier(&self) -> u64;

    /// Waits until everything up to `seq` is on media.
    async fn durable(&self, seq: Seq) -> FsResult<()>;

    /// Attributes of a live object; [`FsError::Stale`] when it has no name left or never was.
    async fn getattr(&self, object: ObjectId) -> FsResult<Attr>;

    /// Changes attributes. With `guard`, only if the object's ctime equals it, else [`FsError::NotSync`].
    async fn setattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        set: &SetAttr,
        guard: Option<Timestamp>,
    ) -> FsResult<Change<()>>;

    /// Finds `name` in `dir`; `.` and `..` work, the root's parent is the root.
    async fn lookup(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<(ObjectId, Attr)>;

    /// A symbolic link's target.
    async fn readlink(&self, object: ObjectId) -> FsResult<(Vec<u8>, Attr)>;

    /// Reads up to `len` bytes at `offset`; short only at the end of the file. Checks permission for `caller`.
    async fn read(&self, caller: &Caller, object: ObjectId, offset: u64, len: u32) -> FsResult<ReadData>;

    /// Writes `data` at `offset`. It is visible on return; see [`Stability`] for what else is.
    async fn write(
        &self,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        data: WriteData,
        stability: Stability,
    ) -> FsResult<Change<Written>>;

    /// Makes what was written to the range durable, with the metadata that finds it: size and times included. A
    /// length of zero means to the end of the file. The verifier in the result is the one in force *after* the flush.
    async fn commit(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<Written>>;

    /// Frees the range's space: it reads as zeroes afterwards. The size stays.
    async fn punch(&self, caller: &Caller, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<()>>;

    /// Which parts of the range hold data and which are holes, cached writes included; covers the range without a
    /// gap, in order, and may stop early after at least one segment.
    async fn segments(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Vec<Segment>>;

    /// Makes a regular file.
    async fn create(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        how: CreateMode,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>>;

    /// Makes a directory, a symbolic link or a special file.
    async fn make(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        node: NewNode<'_>,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>>;

    /// Removes a name that is not a directory. The result tells which object lost it.
    async fn remove(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>>;

    /// Removes an empty directory.
    async fn rmdir(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>>;

    /// Renames, replacing a compatible target (file by non-directory, empty directory by directory). Renaming onto
    /// another link of the same object does nothing. The first change is the source directory's, the second the
    /// target directory's.
    async fn rename(
        &self,
        caller: &Caller,
        from: (ObjectId, &[u8]),
        to: (ObjectId, &[u8]),
    ) -> FsResult<(Change<ObjectId>, Change<Option<ObjectId>>)>;

    /// Gives a non-directory another name. The change is the directory's; its value the object's new attributes.
    async fn link(
        &self,
        caller: &Caller,
        object: ObjectId,
        dir: ObjectId,
        name: &[u8],
    ) -> FsResult<Change<Attr>>;

    /// Entries of `dir` after `cookie` (0 = from the start; `.` and `..` come first, with cookies 1 and 2). A cookie
    /// is good for ever: it survives reboots, concurrent change, and the deletion of its entry. Stops after
    /// `limit` entries or when enough was read; `eof` only when nothing follows.
    async fn readdir(
        &self,
        caller: &Caller,
        dir: ObjectId,
        cookie: u64,
        limit: usize,
        attributes: WithAttributes,
    ) -> FsResult<Listing>;

    /// Space and inodes.
    async fn statfs(&self) -> FsResult<FsStat>;

    /// An extended attribute's value.
    async fn getxattr(&self, caller: &Caller, object: ObjectId, name: &[u8]) -> FsResult<Vec<u8>>;

    /// Sets an extended attribute (full name with its namespace, `user.…`).
    async fn setxattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        name: &[u8],
        value: &[u8],
        how: XattrMode,
    ) -> FsResult<Change<()>>;

    /// Removes an extended attribute.
    async fn removexattr(&self, caller: &Caller, object: ObjectId, name: &[u8]) -> FsResult<Change<()>>;

    /// Names of all extended attributes of an object.
    async fn listxattr(&self, object: ObjectId) -> FsResult<Vec<Box<[u8]>>>;

    /// Memory for a buffer could not be had, by whomever. What is only kept for speed is given back, more with each call,
    /// so that who waits and tries again gets it in the end, also when free memory lies in pieces that are too small.
    fn memory_is_short(&self) {}
}

/// Data on its way into a file: the bytes are `buf[skip .. skip + len]`. A protocol server receives straight into a
/// block-aligned buffer with `skip = offset % BLOCK_SIZE`, so that whole blocks can go to the device as they lie.
#[derive(Debug)]
pub struct WriteData {
    /// The memory.
    pub buf: Buf,
    /// Bytes before the data.
    pub skip: usize,
    /// Bytes of data.
    pub len: usize,
}

impl WriteData {
    /// The bytes to write.
    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.skip..self.skip + self.len]
    }

    /// Data copied from a slice, placed for a write at `offset`.
    pub fn copy_of(offset: u64, bytes: &[u8]) -> Result<WriteData, moraine_platform::OutOfMemory> {
        let skip = (offset % moraine_platform::BLOCK_SIZE as u64) as usize;
        let mut buf = Buf::zeroed(skip + bytes.len())?;
        buf[skip..].copy_from_slice(bytes);
        Ok(WriteData { buf, skip, len: bytes.len() })
    }
}
