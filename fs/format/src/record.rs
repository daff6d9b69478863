//! Small records of file housekeeping: inode numbers handed out, orphans, operations that span commits.

use crate::{FormatError, Pos};
use alloc::vec::Vec;
use core::fmt;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Key of the inode cursor in tree `settings`: every inode number in use is below its value.
pub const INODE_CURSOR: Pos = Pos::new(SETTINGS_CURSORS, 1, 0);
/// Domain of cursors in tree `settings`.
pub const SETTINGS_CURSORS: u64 = 1;

/// A cursor: a number that only rises.
pub fn parse_cursor(value: &[u8]) -> Result<u64, FormatError> {
    let bytes = value.try_into().map_err(|_| FormatError::Length)?;
    Ok(u64::from_le_bytes(bytes))
}

/// A cursor as stored.
pub fn cursor_value(cursor: u64) -> Vec<u8> {
    cursor.to_le_bytes().into()
}

/// Value in tree `deleted-inodes`, key `(inode, 0, snapshot)`: the boot epoch in which the last name went.
pub fn parse_deleted(value: &[u8]) -> Result<u64, FormatError> {
    let bytes = value.try_into().map_err(|_| FormatError::Length)?;
    Ok(u64::from_le_bytes(bytes))
}

/// A deleted inode's entry as stored.
pub fn deleted_value(boot_epoch: u64) -> Vec<u8> {
    boot_epoch.to_le_bytes().into()
}

const TYPE_PUNCH: u8 = 1;

/// A logged operation, tree `logged-ops`, key `(inode, n, 0)`: begun in one commit, finished in later ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoggedOp {
    /// The extents of `cursor .. end` are going; all of `start .. end` already reads as a hole. A truncate is this to
    /// the end of all offsets, with the new size in the same commit.
    Punch {
        /// First byte; a multiple of the block size.
        start: u64,
        /// End, excluding.
        end: u64,
        /// Everything before is done.
        cursor: u64,
    },
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct PunchRaw {
    kind: u8,
    reserved: [u8; 7],
    start: U64,
    end: U64,
    cursor: U64,
}

const _: () = assert!(size_of::<PunchRaw>() == 32);

impl LoggedOp {
    /// Checks a stored value.
    pub fn parse(value: &[u8]) -> Result<LoggedOp, FormatError> {
        if value.first() != Some(&TYPE_PUNCH) {
            return Err(FormatError::Unsupported);
        }
        let raw = PunchRaw::ref_from_bytes(value).map_err(|_| FormatError::Length)?;
        let (start, end, cursor) = (raw.start.get(), raw.end.get(), raw.cursor.get());
        if !(start <= cursor && cursor <= end) {
            return Err(FormatError::Order);
        }
        Ok(LoggedOp::Punch { start, end, cursor })
    }

    /// As stored.
    pub fn to_value(&self) -> Vec<u8> {
        let LoggedOp::Punch { start, end, cursor } = *self;
        let raw = PunchRaw {
            kind: TYPE_PUNCH,
            reserved: [0; 7],
            start: start.into(),
            end: end.into(),
            cursor: cursor.into(),
        };
        raw.as_bytes().into()
    }
}

impl fmt::Display for LoggedOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoggedOp::Punch { start, end, cursor } = self;
        write!(f, "punch {start}..{end} done to {cursor}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_checks() {
        assert_eq!(parse_cursor(&cursor_value(0x0102)), Ok(0x0102));
        assert_eq!(cursor_value(0x0102), [2, 1, 0, 0, 0, 0, 0, 0]);
        assert!(parse_cursor(&[1]).is_err());
        assert_eq!(parse_deleted(&deleted_value(7)), Ok(7));
        let op = LoggedOp::Punch { start: 4096, end: u64::MAX, cursor: 8192 };
        let value = op.to_value();
        assert_eq!(value[..10], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0x10]);
        assert_eq!(LoggedOp::parse(&value), Ok(op));
        for len in 0..value.len() {
            assert!(LoggedOp::parse(&value[..len]).is_err());
        }
        let backwards = LoggedOp::Punch { start: 8192, end: 4096, cursor: 8192 };
        assert!(LoggedOp::parse(&backwards.to_value()).is_err());
    }
}
