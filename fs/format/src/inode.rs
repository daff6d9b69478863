//! Inodes: everything about an object but its names and its bytes.
//!
//! Tree `inodes`, key `(0, inode number, snapshot)`. A fixed part whose length is stored in it (a later version may
//! append fields; what this version does not know is kept), then the target of a symbolic link.

use crate::FormatError;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Inode number of the pool's root directory.
pub const ROOT_INODE: u64 = 2;
/// Inode number of `/volumes`, made with the pool.
pub const VOLUMES_INODE: u64 = 3;
/// The first number given to objects users make; smaller ones are reserved.
pub const FIRST_FREE_INODE: u64 = 1024;

/// Layout version of [`InodeRaw`].
pub const INODE_VERSION: u8 = 1;
/// The longest symbolic link target, in bytes.
pub const TARGET_MAX: usize = 4095;

/// Hash type of directories: SipHash-2-4 of the name, keyed by the inode's seed, cut to its top `hash_bits` bits.
pub const HASH_SIP: u8 = 1;
/// Hash width of directories on disk.
pub const HASH_BITS: u8 = 62;

/// `flags`: `create_verifier` holds the verifier of an exclusive create.
pub const FLAG_CREATE_VERIFIER: u32 = 1 << 0;
/// All flags this version knows; others are refused, since they may change what the other fields mean.
pub const FLAGS_KNOWN: u32 = FLAG_CREATE_VERIFIER;

/// The fixed part as it lies on disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InodeRaw {
    version: u8,
    kind: u8,
    fixed_len: U16,
    mode: U16,
    hash_type: u8,
    hash_bits: u8,
    uid: U32,
    gid: U32,
    nlink: U32,
    flags: U32,
    size: U64,
    used: U64,
    atime_ns: U64,
    mtime_ns: U64,
    ctime_ns: U64,
    btime_ns: U64,
    change: U64,
    parent: U64,
    parent_offset: U64,
    hash_seed: [u8; 16],
    rdev_major: U32,
    rdev_minor: U32,
    create_verifier: [u8; 8],
    options: [u8; 8],
    content_version: U64,
}

const RAW_LEN: usize = size_of::<InodeRaw>();
const _: () = assert!(RAW_LEN == 144);

/// Kinds of objects, as numbered on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum InodeKind {
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

impl InodeKind {
    /// All kinds.
    pub const ALL: [InodeKind; 7] = [
        InodeKind::File,
        InodeKind::Dir,
        InodeKind::Symlink,
        InodeKind::Block,
        InodeKind::Char,
        InodeKind::Socket,
        InodeKind::Fifo,
    ];

    /// The kind stored as `n`.
    pub fn from_u8(n: u8) -> Option<InodeKind> {
        InodeKind::ALL.into_iter().find(|kind| *kind as u8 == n)
    }

    /// Its name, as in text dumps.
    pub fn name(self) -> &'static str {
        match self {
            InodeKind::File => "file",
            InodeKind::Dir => "dir",
            InodeKind::Symlink => "symlink",
            InodeKind::Block => "block",
            InodeKind::Char => "char",
            InodeKind::Socket => "socket",
            InodeKind::Fifo => "fifo",
        }
    }
}

/// An inode, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Kind of object.
    pub kind: InodeKind,
    /// Permission bits `0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names; 0 = deleted, content waits for the reaper.
    pub nlink: u32,
    /// Size in bytes: of files their content, of directories the bytes of their entries, of links the target's.
    pub size: u64,
    /// Bytes of space its extents use.
    pub used: u64,
    /// Last access, nanoseconds since 1970.
    pub atime_ns: u64,
    /// Last change of content.
    pub mtime_ns: u64,
    /// Last change of anything; strictly rises.
    pub ctime_ns: u64,
    /// Creation.
    pub btime_ns: u64,
    /// Change counter.
    pub change: u64,
    /// The directory that holds (one of) its names; 0 for the root.
    pub parent: u64,
    /// That name's position in the directory.
    pub parent_offset: u64,
    /// Secret that keys the hash of names: of a directory's entries, of anything's extended attributes.
    pub hash_seed: [u8; 16],
    /// Bits of hash used for names.
    pub hash_bits: u8,
    /// Device numbers of a device node.
    pub rdev: (u32, u32),
    /// Verifier of the exclusive create that made it.
    pub create_verifier: Option<[u8; 8]>,
    /// Per-file options (checksum, compression, replicas …): reserved, zero.
    pub options: [u8; 8],
    /// Grows with every commit of content, so that two commits that touch the same bytes always conflict.
    pub content_version: u64,
    /// Target of a symbolic link, else empty.
    pub target: Box<[u8]>,
    /// Fields of a later version, kept as they are.
    pub unknown: Box<[u8]>,
}

impl Inode {
    /// A new object with one name less than it will have: everything zero but its kind and seed.
    pub fn new(kind: InodeKind, hash_seed: [u8; 16]) -> Inode {
        Inode {
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            nlink: 0,
            size: 0,
            used: 0,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            btime_ns: 0,
            change: 0,
            parent: 0,
            parent_offset: 0,
            hash_seed,
            hash_bits: HASH_BITS,
            rdev: (0, 0),
            create_verifier: None,
            options: [0; 8],
            content_version: 0,
            target: Box::default(),
            unknown: Box::default(),
        }
    }

    /// Checks a stored value.
    pub fn parse(value: &[u8]) -> Result<Inode, FormatError> {
        let (raw, _) = InodeRaw::ref_from_prefix(value).map_err(|_| FormatError::Length)?;
        if raw.version != INODE_VERSION {
            return Err(FormatError::Unsupported);
        }
        let kind = InodeKind::from_u8(raw.kind).ok_or(FormatError::Unsupported)?;
        let fixed_len = raw.fixed_len.get() as usize;
        let unknown = value.get(RAW_LEN..fixed_len).ok_or(FormatError::Length)?;
        let target = &value[fixed_len..];
        if (kind == InodeKind::Symlink) == target.is_empty() || target.len() > TARGET_MAX {
            return Err(FormatError::Value);
        }
        if raw.mode.get() > 0o7777 {
            return Err(FormatError::Value);
        }
        if raw.hash_type != HASH_SIP || !(1..=HASH_BITS).contains(&raw.hash_bits) {
            return Err(FormatError::Unsupported);
        }
        let flags = raw.flags.get();
        if flags & !FLAGS_KNOWN != 0 {
            return Err(FormatError::Unsupported);
        }
        if raw.size.get() > 1 << 63 {
            return Err(FormatError::Value);
        }
        Ok(Inode {
            kind,
            mode: raw.mode.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            nlink: raw.nlink.get(),
            size: raw.size.get(),
            used: raw.used.get(),
            atime_ns: raw.atime_ns.get(),
            mtime_ns: raw.mtime_ns.get(),
            ctime_ns: raw.ctime_ns.get(),
            btime_ns: raw.btime_ns.get(),
            change: raw.change.get(),
            parent: raw.parent.get(),
            parent_offset: raw.parent_offset.get(),
            hash_seed: raw.hash_seed,
            hash_bits: raw.hash_bits,
            rdev: (raw.rdev_major.get(), raw.rdev_minor.get()),
            create_verifier: (flags & FLAG_CREATE_VERIFIER != 0).then_some(raw.create_verifier),
            options: raw.options,
            content_version: raw.content_version.get(),
            target: target.into(),
            unknown: unknown.into(),
        })
    }

    /// As stored.
    pub fn to_value(&self) -> Vec<u8> {
        let fixed_len = RAW_LEN + self.unknown.len();
        let raw = InodeRaw {
            version: INODE_VERSION,
            kind: self.kind as u8,
            fixed_len: (fixed_len as u16).into(),
            mode: self.mode.into(),
            hash_type: HASH_SIP,
            hash_bits: self.hash_bits,
            uid: self.uid.into(),
            gid: self.gid.into(),
            nlink: self.nlink.into(),
            flags: if self.create_verifier.is_some() { FLAG_CREATE_VERIFIER } else { 0 }.into(),
            size: self.size.into(),
            used: self.used.into(),
            atime_ns: self.atime_ns.into(),
            mtime_ns: self.mtime_ns.into(),
            ctime_ns: self.ctime_ns.into(),
            btime_ns: self.btime_ns.into(),
            change: self.change.into(),
            parent: self.parent.into(),
            parent_offset: self.parent_offset.into(),
            hash_seed: self.hash_seed,
            rdev_major: self.rdev.0.into(),
            rdev_minor: self.rdev.1.into(),
            create_verifier: self.create_verifier.unwrap_or_default(),
            options: self.options,
            content_version: self.content_version.into(),
        };
        let mut out = Vec::with_capacity(fixed_len + self.target.len());
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(&self.unknown);
        out.extend_from_slice(&self.target);
        out
    }
}

impl fmt::Display for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} mode {:04o} uid {} gid {} nlink {} size {} used {} atime {} mtime {} ctime {} btime {} change {} \
             parent {}:{} hash {}",
            self.kind.name(),
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.size,
            self.used,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.btime_ns,
            self.change,
            self.parent,
            self.parent_offset,
            self.hash_bits,
        )?;
        if matches!(self.kind, InodeKind::Block | InodeKind::Char) {
            write!(f, " rdev {}:{}", self.rdev.0, self.rdev.1)?;
        }
        if self.kind == InodeKind::Symlink {
            write!(f, " target {:?}", crate::text::Text(&self.target))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn sample() -> Inode {
        Inode {
            mode: 0o4755,
            uid: 0x01020304,
            gid: 0x05060708,
            nlink: 2,
            size: 0x1122334455,
            used: 8192,
            atime_ns: 1,
            mtime_ns: 2,
            ctime_ns: 3,
            btime_ns: 4,
            change: 5,
            parent: 2,
            parent_offset: 0x1234,
            create_verifier: Some(*b"verifier"),
            content_version: 6,
            ..Inode::new(InodeKind::File, [0xab; 16])
        }
    }

    #[test]
    fn golden_bytes() {
        let value = sample().to_value();
        assert_eq!(value.len(), 144);
        assert_eq!(&value[..8], &[1, 1, 144, 0, 0xed, 0x09, 1, 62]);
        assert_eq!(&value[8..16], &[4, 3, 2, 1, 8, 7, 6, 5]);
        assert_eq!(&value[16..24], &[2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(&value[24..32], &[0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0]);
        assert_eq!((value[40], value[48], value[56], value[64], value[72]), (1, 2, 3, 4, 5));
        assert_eq!(&value[88..96], &[0x34, 0x12, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&value[96..112], &[0xab; 16]);
        assert_eq!(&value[120..128], b"verifier");
        assert_eq!(value[136], 6);
        assert_eq!(
            sample().to_string(),
            "file mode 4755 uid 16909060 gid 84281096 nlink 2 size 73588229205 used 8192 atime 1 mtime 2 ctime 3 \
             btime 4 change 5 parent 2:4660 hash 62"
        );
    }

    #[test]
    fn round_trip_and_unknown_fields_are_kept() {
        let mut link = Inode { target: (*b"../x").into(), ..Inode::new(InodeKind::Symlink, [1; 16]) };
        assert_eq!(Inode::parse(&link.to_value()), Ok(link.clone()));
        link.unknown = [1, 2, 3].into();
        assert_eq!(Inode::parse(&link.to_value()), Ok(link));
        assert_eq!(Inode::parse(&sample().to_value()), Ok(sample()));
    }

    #[test]
    fn no_byte_string_panics_and_each_field_is_checked() {
        let good = sample().to_value();
        for len in 0..good.len() {
            assert!(Inode::parse(&good[..len]).is_err());
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                let _ = Inode::parse(&bytes);
            }
        }
        let refuse = |at: usize, byte: u8, why| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            assert_eq!(Inode::parse(&bytes), Err(why));
        };
        refuse(0, 2, FormatError::Unsupported);
        refuse(1, 8, FormatError::Unsupported);
        refuse(2, 143, FormatError::Length);
        refuse(5, 0xff, FormatError::Value);
        refuse(7, 63, FormatError::Unsupported);
        refuse(23, 0x80, FormatError::Unsupported);
        refuse(31, 0xff, FormatError::Value);
        refuse(1, 3, FormatError::Value);
    }
}
