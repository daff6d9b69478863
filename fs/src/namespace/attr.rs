//! SETATTR, but for the size: that is content (`extent`).

use super::Names;
use super::record::{SGID, without_privileges};
use crate::access::{self, WRITE};
use crate::vfs::*;
use moraine_format::inode::{Inode, InodeKind};
use moraine_platform::Timestamp;

impl Names<'_> {
    /// Checks everything about a setattr and returns the object's record as it will be, stamped but not stored; `None`
    /// if nothing is to be set. A size is checked and set in the record; its content is the caller's matter.
    pub(crate) async fn setattr(
        &mut self,
        caller: &Caller,
        number: u64,
        set: &SetAttr,
        guard: Option<Timestamp>,
    ) -> FsResult<(Inode, bool)> {
        let mut record = self.live(number).await?;
        if set.size.is_some() {
            match record.kind {
                InodeKind::File => {}
                InodeKind::Dir => return Err(FsError::IsDir),
                _ => return Err(FsError::Invalid),
            }
        }
        if set.size.is_some_and(|size| size > FILE_SIZE_MAX) {
            return Err(FsError::TooBig);
        }
        let attr = self.attr(number, &record);
        if guard.is_some_and(|ctime| ctime != attr.ctime) {
            return Err(FsError::NotSync);
        }
        check(caller, &attr, set)?;
        if *set == SetAttr::default() {
            return Ok((record, false));
        }
        let gid = set.gid.unwrap_or(attr.gid);
        let mut mode = attr.mode;
        if let Some(new) = set.mode {
            mode = new & 0o7777;
            if caller.uid != 0 && !access::in_group(caller, gid) {
                mode &= !SGID;
            }
        }
        let gives_away = attr.kind != Kind::Dir && (set.uid.is_some() || set.gid.is_some());
        if gives_away || (set.size.is_some() && caller.uid != 0 && set.mode.is_none()) {
            mode = without_privileges(mode);
        }
        record.mode = mode as u16;
        record.uid = set.uid.unwrap_or(attr.uid);
        record.gid = gid;
        self.touch(number, &mut record);
        if let Some(size) = set.size {
            record.size = size;
            record.mtime_ns = record.ctime_ns;
        }
        let ctime_ns = record.ctime_ns;
        let at = |time| match time {
            SetTime::Now => ctime_ns,
            SetTime::To(time) => time.0,
        };
        record.atime_ns = set.atime.map_or(record.atime_ns, at);
        record.mtime_ns = set.mtime.map_or(record.mtime_ns, at);
        Ok((record, true))
    }
}

/// Whether `caller` may do all of `set`.
fn check(caller: &Caller, attr: &Attr, set: &SetAttr) -> FsResult<()> {
    let owner = access::is_owner(attr, caller);
    let root = caller.uid == 0;
    if set.mode.is_some() && !owner {
        return Err(FsError::NotPermitted);
    }
    if let Some(uid) = set.uid
        && !root
        && !(owner && uid == attr.uid)
    {
        return Err(FsError::NotPermitted);
    }
    if let Some(gid) = set.gid
        && !root
        && !(owner && (gid == attr.gid || access::in_group(caller, gid)))
    {
        return Err(FsError::NotPermitted);
    }
    let times = [set.atime, set.mtime];
    if times.iter().any(|t| matches!(t, Some(SetTime::To(_)))) && !owner {
        return Err(FsError::NotPermitted);
    }
    if set.size.is_some() {
        access::check_io(attr, caller, WRITE)?;
    }
    if times.contains(&Some(SetTime::Now)) && !owner {
        access::check(attr, caller, WRITE)?;
    }
    Ok(())
}
