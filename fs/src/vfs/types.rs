//! Values of the façade: identities, attributes, changes.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_platform::Timestamp;

/// The longest name in a directory, in bytes.
pub const NAME_MAX: usize = 255;
/// The longest symbolic link target, in bytes.
pub const SYMLINK_MAX: usize = 4095;
/// The largest file: offsets fit a signed 64-bit number with room for block rounding.
pub const FILE_SIZE_MAX: u64 = (1 << 63) - (1 << 20);
/// The most names one inode can have.
pub const LINK_MAX: u32 = u32::MAX - 1;
/// The largest value of an extended attribute, in bytes.
pub const XATTR_VALUE_MAX: usize = 4096;

/// A point in the pool's history of commits. Later changes have greater numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

/// An object for the life of the pool: inode numbers are never reused, so no generation is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// The subvolume it is seen through; 1 is the pool's root subvolume.
    pub subvolume: u32,
    /// The inode number: the *fileid* of file protocols.
    pub inode: u64,
}

/// What the pool is.
#[derive(Clone, Debug)]
pub struct PoolInfo {
    /// Pool identity: copied with an image, constant for its life.
    pub pool_id: [u8; 16],
    /// Keys the checksum in file handles.
    pub handle_key: [u8; 16],
    /// Counts mounts: differs between any two boots of this pool.
    pub boot_epoch: u64,
}

/// What kind of object an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Regular file.
    File = 1,
    /// Directory.
    Dir = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Block device node.
    Block = 4,
    /// Character device node.
    Char = 5,
    /// Unix socket.
    Socket = 6,
    /// FIFO.
    Fifo = 7,
}

impl Kind {
    /// The kind stored as `n`.
    pub fn from_u8(n: u8) -> Option<Kind> {
        use Kind::*;
        [File, Dir, Symlink, Block, Char, Socket, Fifo].into_iter().find(|k| *k as u8 == n)
    }
}

/// Attributes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Kind of object.
    pub kind: Kind,
    /// Permission bits: `0o7777`.
    pub mode: u32,
    /// Names it has.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes, cached writes included; a directory's grows with its entries.
    pub size: u64,
    /// Bytes of space used.
    pub used: u64,
    /// Major and minor number of a device node.
    pub rdev: (u32, u32),
    /// Filesystem id: differs between subvolumes and snapshots.
    pub fsid: u64,
    /// Inode number.
    pub fileid: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of anything; strictly rises with each.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Change counter: +1 at least with each change, never reused, also over crashes.
    pub change: u64,
}

/// What wcc data needs to know of a changed object: taken in the same step as the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreAttr {
    /// Size before.
    pub size: u64,
    /// mtime before.
    pub mtime: Timestamp,
    /// ctime before.
    pub ctime: Timestamp,
    /// Change counter before.
    pub change: u64,
}

impl Attr {
    /// The part that is reported as "before".
    pub fn pre(&self) -> PreAttr {
        PreAttr { size: self.size, mtime: self.mtime, ctime: self.ctime, change: self.change }
    }
}

/// A change to one object (of a namespace operation: the directory), with what it was and what it is.
#[derive(Clone, Copy, Debug)]
pub struct Change<T> {
    /// The object before.
    pub pre: PreAttr,
    /// The object after.
    pub post: Attr,
    /// When it happened; see [`super::Vfs::durable`].
    pub seq: Seq,
    /// The call's own result.
    pub value: T,
}

impl<T> Change<T> {
    /// The same change with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Change<U> {
        Change { pre: self.pre, post: self.post, seq: self.seq, value: f(self.value) }
    }
}

/// Who asks. Exports apply squashing before they make one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Further groups (AUTH_SYS carries at most 16).
    pub groups: Vec<u32>,
    /// NFSv3 has no open: the owner may read and write whatever the mode says, and execute permission implies read.
    pub owner_override: bool,
}

impl Caller {
    /// The superuser.
    pub const fn root() -> Caller {
        Caller { uid: 0, gid: 0, groups: Vec::new(), owner_override: false }
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The server's own time; needs only write permission.
    Now,
    /// A given time; needs ownership.
    To(Timestamp),
}

/// Attributes to set; what is `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncates or extends.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}

/// What an existing name means to `create`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateMode {
    /// An existing regular file is opened (and gets `size` applied), as `O_CREAT`.
    Unchecked,
    /// An existing name is an error, as `O_CREAT | O_EXCL`.
    Guarded,
    /// As guarded, unless the existing file was made with the same verifier: then the request is a repeat and succeeds.
    Exclusive([u8; 8]),
}

/// What `make` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewNode<'a> {
    /// A directory.
    Dir,
    /// A symbolic link with its target.
    Symlink(&'a [u8]),
    /// A block device node: major, minor.
    Block(u32, u32),
    /// A character device node: major, minor.
    Char(u32, u32),
    /// A Unix socket.
    Socket,
    /// A FIFO.
    Fifo,
}

/// What a write promises on return. Ordered: each includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stability {
    /// Visible, in memory.
    Unstable,
    /// Data and what is needed to find it are on media.
    DataSync,
    /// All of the file's metadata too.
    FileSync,
}

/// Result of a write or a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes taken.
    pub count: u32,
    /// What really was reached; at least what was asked.
    pub stability: Stability,
    /// For a write the verifier in force when its bytes were taken, for a commit the one after its flush.
    pub verifier: u64,
}

/// Bytes read: shared slices of the page cache (or of zeroes), in order, verified.
#[derive(Clone, Debug)]
pub struct ReadData {
    /// The bytes.
    pub parts: Vec<Bytes>,
    /// Whether the read reached the end of the file.
    pub eof: bool,
    /// The file's attributes in the same step.
    pub attr: Attr,
}

impl ReadData {
    /// Bytes in all parts.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|p| p.len()).sum()
    }

    /// Whether nothing was read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All bytes in one piece, for tests and small readers.
    pub fn to_vec(&self) -> Vec<u8> {
        self.parts.iter().flat_map(|p| p.iter().copied()).collect()
    }
}

/// A shared, immutable slice.
#[derive(Clone)]
pub struct Bytes {
    data: Rc<dyn AsRef<[u8]>>,
    start: usize,
    len: usize,
}

impl Bytes {
    /// `data[start .. start + len]`. Panics if the range lies outside.
    pub fn new(data: Rc<dyn AsRef<[u8]>>, start: usize, len: usize) -> Bytes {
        assert!(start + len <= (*data).as_ref().len(), "slice outside its data");
        Bytes { data, start, len }
    }
}

impl core::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Bytes({})", self.len)
    }
}

impl core::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &(*self.data).as_ref()[self.start..self.start + self.len]
    }
}

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub offset: u64,
    /// How long it is; never zero.
    pub len: u64,
    /// Whether it takes no space and reads as zeroes.
    pub hole: bool,
}

/// Whether a listing carries attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithAttributes {
    /// Names only.
    No,
    /// Attributes of each entry (READDIRPLUS).
    Yes,
}

/// One directory entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Position after this entry; in 1 ..= 2^63 - 1.
    pub cookie: u64,
    /// Name.
    pub name: Box<[u8]>,
    /// The object.
    pub object: ObjectId,
    /// Its kind.
    pub kind: Kind,
    /// Its attributes, if asked for and readable.
    pub attr: Option<Attr>,
}

/// A part of a directory.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Entries in cookie order.
    pub entries: Vec<DirEntry>,
    /// Whether nothing follows.
    pub eof: bool,
    /// The directory's attributes.
    pub attr: Attr,
}

/// Space and inodes, in bytes and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsStat {
    /// Usable size.
    pub total: u64,
    /// Free.
    pub free: u64,
    /// Free and allocatable for data.
    pub available: u64,
    /// Inodes in use.
    pub inodes_used: u64,
    /// Inodes that can still be made.
    pub inodes_free: u64,
}

/// What an existing extended attribute means to `setxattr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Set it either way.
    Either,
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
}
