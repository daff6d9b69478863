//! Extended attributes.
//!
//! Tree `xattrs`, key `(inode, position, snapshot)`, where the position is found as that of a directory entry, from
//! the hash of the namespace's number and the name. POSIX ACLs are attributes of namespace [`Namespace::System`].

use crate::FormatError;
use crate::text::Text;
use alloc::vec::Vec;
use core::fmt;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The longest name without its namespace, in bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// The longest value, in bytes.
pub const XATTR_VALUE_MAX: usize = 4096;

const TYPE_XATTR: u8 = 1;
const TYPE_WHITEOUT: u8 = 2;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct XattrRaw {
    kind_of_value: u8,
    namespace: u8,
    name_len: u8,
    reserved: u8,
    value_len: U16,
}

const FIXED: usize = size_of::<XattrRaw>();
const _: () = assert!(FIXED == 6);

/// The part of a full name before its first dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Namespace {
    /// `user.`: for anybody who may read or write the object.
    User = 1,
    /// `trusted.`: for root.
    Trusted = 2,
    /// `security.`: labels.
    Security = 3,
    /// `system.`: access control lists.
    System = 4,
}

impl Namespace {
    const ALL: [(Namespace, &'static str); 4] = [
        (Namespace::User, "user."),
        (Namespace::Trusted, "trusted."),
        (Namespace::Security, "security."),
        (Namespace::System, "system."),
    ];

    /// Its prefix with the dot.
    pub fn prefix(self) -> &'static str {
        Namespace::ALL[self as usize - 1].1
    }

    /// Splits a full name.
    pub fn split(full: &[u8]) -> Option<(Namespace, &[u8])> {
        Namespace::ALL.iter().find_map(|(ns, prefix)| Some((*ns, full.strip_prefix(prefix.as_bytes())?)))
    }
}

/// A value of the tree, checked, borrowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xattr<'a> {
    /// An attribute.
    Entry {
        /// Namespace.
        namespace: Namespace,
        /// Name without the namespace; 1 ..= 255 bytes.
        name: &'a [u8],
        /// Value; at most [`XATTR_VALUE_MAX`] bytes.
        value: &'a [u8],
    },
    /// An attribute was here and others lie behind it.
    Whiteout,
}

impl<'a> Xattr<'a> {
    /// Checks a stored value.
    pub fn parse(stored: &'a [u8]) -> Result<Xattr<'a>, FormatError> {
        match stored {
            [TYPE_WHITEOUT] => Ok(Xattr::Whiteout),
            [TYPE_XATTR, ..] => {
                let (raw, rest) = XattrRaw::ref_from_prefix(stored).map_err(|_| FormatError::Length)?;
                let (namespace, _) = Namespace::ALL
                    .into_iter()
                    .find(|(ns, _)| *ns as u8 == raw.namespace)
                    .ok_or(FormatError::Unsupported)?;
                let (name, value) = rest.split_at_checked(raw.name_len as usize).ok_or(FormatError::Value)?;
                if name.is_empty() || name.contains(&0) {
                    return Err(FormatError::Value);
                }
                if value.len() != raw.value_len.get() as usize || value.len() > XATTR_VALUE_MAX {
                    return Err(FormatError::Value);
                }
                Ok(Xattr::Entry { namespace, name, value })
            }
            _ => Err(FormatError::Unsupported),
        }
    }

    /// As stored.
    pub fn to_value(&self) -> Vec<u8> {
        let Xattr::Entry { namespace, name, value } = self else { return [TYPE_WHITEOUT].into() };
        assert!((1..=XATTR_NAME_MAX).contains(&name.len()) && value.len() <= XATTR_VALUE_MAX);
        let raw = XattrRaw {
            kind_of_value: TYPE_XATTR,
            namespace: *namespace as u8,
            name_len: name.len() as u8,
            reserved: 0,
            value_len: (value.len() as u16).into(),
        };
        let mut out = Vec::with_capacity(FIXED + name.len() + value.len());
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
        out
    }
}

impl fmt::Display for Xattr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Xattr::Whiteout => f.write_str("hash whiteout"),
            Xattr::Entry { namespace, name, value } => {
                write!(f, "{}{:?} = {} bytes", namespace.prefix(), Text(name), value.len())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_checks() {
        let entry = Xattr::Entry { namespace: Namespace::User, name: b"ab", value: b"xyz" };
        let stored = entry.to_value();
        assert_eq!(stored, [1, 1, 2, 0, 3, 0, b'a', b'b', b'x', b'y', b'z']);
        assert_eq!(Xattr::parse(&stored), Ok(entry));
        assert_eq!(Xattr::parse(&[2]), Ok(Xattr::Whiteout));
        for len in 0..stored.len() {
            assert!(Xattr::parse(&stored[..len]).is_err());
        }
        assert_eq!(Namespace::split(b"trusted.x"), Some((Namespace::Trusted, &b"x"[..])));
        assert_eq!(Namespace::split(b"other.x"), None);
    }
}
