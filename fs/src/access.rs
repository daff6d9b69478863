//! POSIX permission rules, as pure functions of attributes and caller: one answer for every protocol.

use crate::vfs::{Attr, Caller, FsError, Kind};

/// Permission to read.
pub const READ: u32 = 4;
/// Permission to write.
pub const WRITE: u32 = 2;
/// Permission to execute a file or search a directory.
pub const EXEC: u32 = 1;

/// Whether `caller` is in `gid`.
pub fn in_group(caller: &Caller, gid: u32) -> bool {
    caller.gid == gid || caller.groups.contains(&gid)
}

/// Which of the bits in `want` the mode grants `caller`: owner, group or other class, the first that fits decides.
/// Root may do anything but execute a file that nobody may execute.
pub fn granted(attr: &Attr, caller: &Caller, want: u32) -> u32 {
    if caller.uid == 0 {
        let exec = attr.kind == Kind::Dir || attr.mode & 0o111 != 0;
        return want & if exec { READ | WRITE | EXEC } else { READ | WRITE };
    }
    let class = if caller.uid == attr.uid {
        attr.mode >> 6
    } else if in_group(caller, attr.gid) {
        attr.mode >> 3
    } else {
        attr.mode
    };
    want & class & 7
}

/// Fails with [`FsError::AccessDenied`] unless all of `want` is granted.
pub fn check(attr: &Attr, caller: &Caller, want: u32) -> Result<(), FsError> {
    if granted(attr, caller, want) == want { Ok(()) } else { Err(FsError::AccessDenied) }
}

/// As [`check`] for reading or writing a file's content: with `owner_override` the owner may whatever the mode, and
/// execute permission implies read (a client that runs a program must be able to page it in).
pub fn check_io(attr: &Attr, caller: &Caller, want: u32) -> Result<(), FsError> {
    if caller.owner_override {
        if caller.uid == attr.uid {
            return Ok(());
        }
        if want == READ && granted(attr, caller, EXEC) == EXEC {
            return Ok(());
        }
    }
    check(attr, caller, want)
}

/// Whether `caller` owns the object (or is root).
pub fn is_owner(attr: &Attr, caller: &Caller) -> bool {
    caller.uid == 0 || caller.uid == attr.uid
}

/// The sticky-bit rule: in a directory with mode `0o1000`, a name may be removed or replaced only by the owner of the
/// directory, the owner of the object, or root.
pub fn check_sticky(dir: &Attr, object: &Attr, caller: &Caller) -> Result<(), FsError> {
    if dir.mode & 0o1000 == 0 || is_owner(dir, caller) || is_owner(object, caller) {
        Ok(())
    } else {
        Err(FsError::NotPermitted)
    }
}
