//! Directory entries.
//!
//! Tree `dirents`, key `(directory, position, snapshot)`. The position is the name's hash plus [`FIRST_POSITION`], or
//! the next free one after it, and is what readdir hands out as a cookie: entries never move.

use crate::FormatError;
use crate::inode::InodeKind;
use crate::text::Text;
use alloc::vec::Vec;
use core::fmt;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The smallest position of a name: smaller ones are for `.`, `..` and what may come.
pub const FIRST_POSITION: u64 = 16;
/// The longest name, in bytes.
pub const NAME_MAX: usize = 255;
/// Bytes of an entry beside its name.
pub const DIRENT_FIXED: usize = size_of::<DirentRaw>();

const TYPE_ENTRY: u8 = 1;
const TYPE_WHITEOUT: u8 = 2;
/// `kind` of an entry that leads into a subvolume: `object` is then parent id (low half) and child id (high half).
const KIND_SUBVOLUME: u8 = 16;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DirentRaw {
    kind_of_value: u8,
    kind: u8,
    name_len: u8,
    reserved: u8,
    object: U64,
}

const _: () = assert!(DIRENT_FIXED == 12);

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// An inode of the same subvolume.
    Inode {
        /// Its number.
        inode: u64,
        /// Its kind.
        kind: InodeKind,
    },
    /// The root of another subvolume.
    Subvolume {
        /// The subvolume the entry was made in.
        parent: u32,
        /// The subvolume it leads to.
        child: u32,
    },
}

/// A value of the tree, checked, borrowing its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dirent<'a> {
    /// A name.
    Entry {
        /// What it leads to.
        target: Target,
        /// The name: 1 ..= 255 bytes without `/` and NUL.
        name: &'a [u8],
    },
    /// A name was here and others lie behind it: probing goes on.
    Whiteout,
}

impl<'a> Dirent<'a> {
    /// Checks a stored value.
    pub fn parse(value: &'a [u8]) -> Result<Dirent<'a>, FormatError> {
        match value {
            [] => Err(FormatError::Length),
            [TYPE_WHITEOUT] => Ok(Dirent::Whiteout),
            [TYPE_ENTRY, ..] => {
                let (raw, name) = DirentRaw::ref_from_prefix(value).map_err(|_| FormatError::Length)?;
                let clean = !name.iter().any(|b| matches!(b, 0 | b'/')) && !matches!(name, b"." | b"..");
                if name.is_empty() || name.len() != raw.name_len as usize || !clean {
                    return Err(FormatError::Value);
                }
                let object = raw.object.get();
                let target = if raw.kind == KIND_SUBVOLUME {
                    Target::Subvolume { parent: object as u32, child: (object >> 32) as u32 }
                } else {
                    let kind = InodeKind::from_u8(raw.kind).ok_or(FormatError::Unsupported)?;
                    Target::Inode { inode: object, kind }
                };
                Ok(Dirent::Entry { target, name })
            }
            _ => Err(FormatError::Unsupported),
        }
    }

    /// As stored.
    pub fn to_value(&self) -> Vec<u8> {
        let Dirent::Entry { target, name } = self else { return [TYPE_WHITEOUT].into() };
        let (kind, object) = match *target {
            Target::Inode { inode, kind } => (kind as u8, inode),
            Target::Subvolume { parent, child } => (KIND_SUBVOLUME, parent as u64 | (child as u64) << 32),
        };
        assert!((1..=NAME_MAX).contains(&name.len()), "a name was checked before it becomes an entry");
        let raw = DirentRaw {
            kind_of_value: TYPE_ENTRY,
            kind,
            name_len: name.len() as u8,
            reserved: 0,
            object: object.into(),
        };
        let mut out = Vec::with_capacity(DIRENT_FIXED + name.len());
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(name);
        out
    }
}

impl fmt::Display for Dirent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dirent::Whiteout => f.write_str("hash whiteout"),
            Dirent::Entry { target: Target::Inode { inode, kind }, name } => {
                write!(f, "{:?} -> {} {inode}", Text(name), kind.name())
            }
            Dirent::Entry { target: Target::Subvolume { parent, child }, name } => {
                write!(f, "{:?} -> subvolume {child} (in {parent})", Text(name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn golden_bytes() {
        let target = Target::Inode { inode: 0x0102, kind: InodeKind::Dir };
        let entry = Dirent::Entry { target, name: b"src" };
        assert_eq!(entry.to_value(), [1, 2, 3, 0, 2, 1, 0, 0, 0, 0, 0, 0, b's', b'r', b'c']);
        assert_eq!(Dirent::parse(&entry.to_value()), Ok(entry));
        assert_eq!(entry.to_string(), "\"src\" -> dir 258");
        let volume = Dirent::Entry { target: Target::Subvolume { parent: 1, child: 7 }, name: b"v" };
        assert_eq!(volume.to_value(), [1, 16, 1, 0, 1, 0, 0, 0, 7, 0, 0, 0, b'v']);
        assert_eq!(Dirent::parse(&volume.to_value()), Ok(volume));
        assert_eq!(Dirent::Whiteout.to_value(), [2]);
        assert_eq!(Dirent::parse(&[2]), Ok(Dirent::Whiteout));
    }

    #[test]
    fn names_no_directory_may_hold_are_refused() {
        let target = Target::Inode { inode: 9, kind: InodeKind::File };
        for name in [&b"a/b"[..], b"a\0b", b".", b".."] {
            let value = Dirent::Entry { target, name }.to_value();
            assert_eq!(Dirent::parse(&value), Err(FormatError::Value));
        }
        let good = Dirent::Entry { target, name: b"name" }.to_value();
        for len in 0..good.len() {
            assert!(Dirent::parse(&good[..len]).is_err());
        }
        assert!(Dirent::parse(&[3]).is_err());
    }
}
