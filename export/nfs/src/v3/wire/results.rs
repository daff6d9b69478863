//! The pieces results are made of (RFC 1813 §2.5, §2.6): attributes, weak cache consistency data, handles.

use crate::handle::HANDLE_LEN;
use crate::v3::status::Status;
use crate::xdr::Encoder;
use moraine_fs::vfs::{Attr, Change, Kind, PreAttr};
use moraine_platform::Timestamp;

/// Length of `fattr3` on the wire, in bytes.
pub const ATTR_LEN: usize = 84;

/// The type of an object on the wire (`ftype3`).
pub fn ftype(kind: Kind) -> u32 {
    match kind {
        Kind::File => 1,
        Kind::Dir => 2,
        Kind::Block => 3,
        Kind::Char => 4,
        Kind::Symlink => 5,
        Kind::Socket => 6,
        Kind::Fifo => 7,
    }
}

/// A time on the wire: seconds and nanoseconds. Times after 2106 are the last second there is.
pub fn nfstime(time: Timestamp) -> (u32, u32) {
    let seconds = time.0 / 1_000_000_000;
    (u32::try_from(seconds).unwrap_or(u32::MAX), (time.0 % 1_000_000_000) as u32)
}

/// Writing of results.
pub trait Results {
    /// `nfsstat3`.
    fn status(&mut self, status: Status) -> &mut Self;
    /// `nfstime3`.
    fn time(&mut self, time: Timestamp) -> &mut Self;
    /// `fattr3`.
    fn attr(&mut self, attr: &Attr) -> &mut Self;
    /// `post_op_attr`.
    fn post_attr(&mut self, attr: Option<&Attr>) -> &mut Self;
    /// `wcc_data`: attributes before, taken in the same step as the change, and after.
    fn wcc(&mut self, pre: Option<&PreAttr>, post: Option<&Attr>) -> &mut Self;
    /// `wcc_data` of a change that happened.
    fn wcc_of<T>(&mut self, change: &Change<T>) -> &mut Self;
    /// `nfs_fh3`.
    fn handle(&mut self, handle: &[u8; HANDLE_LEN]) -> &mut Self;
    /// `post_op_fh3`.
    fn post_handle(&mut self, handle: Option<&[u8; HANDLE_LEN]>) -> &mut Self;
}

impl Results for Encoder {
    fn status(&mut self, status: Status) -> &mut Encoder {
        self.u32(status as u32)
    }

    fn time(&mut self, time: Timestamp) -> &mut Encoder {
        let (seconds, nanos) = nfstime(time);
        self.u32(seconds).u32(nanos)
    }

    fn attr(&mut self, attr: &Attr) -> &mut Encoder {
        self.u32(ftype(attr.kind)).u32(attr.mode).u32(attr.nlink).u32(attr.uid).u32(attr.gid);
        self.u64(attr.size).u64(attr.used).u32(attr.rdev.0).u32(attr.rdev.1);
        self.u64(attr.fsid).u64(attr.fileid).time(attr.atime).time(attr.mtime).time(attr.ctime)
    }

    fn post_attr(&mut self, attr: Option<&Attr>) -> &mut Encoder {
        match attr {
            Some(attr) => self.bool(true).attr(attr),
            None => self.bool(false),
        }
    }

    fn wcc(&mut self, pre: Option<&PreAttr>, post: Option<&Attr>) -> &mut Encoder {
        match pre {
            Some(pre) => self.bool(true).u64(pre.size).time(pre.mtime).time(pre.ctime),
            None => self.bool(false),
        };
        self.post_attr(post)
    }

    fn wcc_of<T>(&mut self, change: &Change<T>) -> &mut Encoder {
        self.wcc(Some(&change.pre), Some(&change.post))
    }

    fn handle(&mut self, handle: &[u8; HANDLE_LEN]) -> &mut Encoder {
        self.opaque(handle)
    }

    fn post_handle(&mut self, handle: Option<&[u8; HANDLE_LEN]>) -> &mut Encoder {
        match handle {
            Some(handle) => self.bool(true).opaque(handle),
            None => self.bool(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn attr() -> Attr {
        Attr {
            kind: Kind::Char,
            mode: 0o640,
            nlink: 2,
            uid: 3,
            gid: 4,
            size: 5,
            used: 6,
            rdev: (7, 8),
            fsid: 9,
            fileid: 10,
            atime: Timestamp(11_000_000_012),
            mtime: Timestamp(13_000_000_014),
            ctime: Timestamp(u64::MAX),
            btime: Timestamp(0),
            change: 99,
        }
    }

    #[test]
    fn golden_bytes_of_attributes_and_wcc_data() {
        let words = |e: Encoder| -> Vec<u32> {
            e.into_bytes().chunks(4).map(|w| u32::from_be_bytes(w.try_into().unwrap())).collect()
        };
        let golden =
            [4, 0o640, 2, 3, 4, 0, 5, 0, 6, 7, 8, 0, 9, 0, 10, 11, 12, 13, 14, u32::MAX, 709_551_615];
        let mut e = Encoder::default();
        e.attr(&attr());
        assert_eq!(e.len(), ATTR_LEN);
        assert_eq!(words(e), golden);
        let mut e = Encoder::default();
        e.wcc(Some(&attr().pre()), None);
        assert_eq!(words(e), [1, 0, 5, 13, 14, u32::MAX, 709_551_615, 0]);
        let mut e = Encoder::default();
        e.wcc(None, Some(&attr()));
        assert_eq!(words(e)[..3], [0, 1, 4]);
        let mut e = Encoder::default();
        e.post_handle(None).post_handle(Some(&[1; HANDLE_LEN]));
        assert_eq!(words(e)[..4], [0, 1, 40, 0x0101_0101]);
    }
}
