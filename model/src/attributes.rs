//! Attributes: who may set what, and what a change takes away; extended attributes by namespace.

use crate::state::{SGID, State, without_privileges};
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_fs::access::{self, READ, WRITE};
use moraine_fs::vfs::*;
use moraine_platform::Timestamp;

/// Who owns a new object.
pub(crate) struct NewOwner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The owner of what `caller` makes in `parent`: itself and its group, or the directory's group where that has
/// set-group-id. Only root may ask for another owner; others may ask for a group of theirs.
pub(crate) fn new_owner(caller: &Caller, parent: &Attr, set: &SetAttr) -> FsResult<NewOwner> {
    let inherited = if parent.mode & SGID != 0 { parent.gid } else { caller.gid };
    let owner = NewOwner { uid: set.uid.unwrap_or(caller.uid), gid: set.gid.unwrap_or(inherited) };
    let group_ok = owner.gid == inherited || access::in_group(caller, owner.gid);
    if caller.uid != 0 && (owner.uid != caller.uid || !group_ok) {
        return Err(FsError::NotPermitted);
    }
    Ok(owner)
}

/// Whether the size asked for is one a file can have.
pub(crate) fn check_size(set: &SetAttr) -> FsResult<()> {
    if set.size.is_some_and(|size| size > FILE_SIZE_MAX) { Err(FsError::TooBig) } else { Ok(()) }
}

/// Namespaces of extended attributes, with the rules of Linux.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    /// `user.`: as the file's content; on files and directories only.
    User,
    /// `trusted.`: root's, invisible to others.
    Trusted,
    /// `security.`: root sets, everybody reads.
    Security,
}

/// The namespace of a well-formed name.
fn space_of(name: &[u8]) -> FsResult<Space> {
    if name.len() > NAME_MAX {
        return Err(FsError::XattrTooBig);
    }
    let dot = name.iter().position(|b| *b == b'.').ok_or(FsError::Unsupported)?;
    let space = match &name[..dot] {
        b"user" => Space::User,
        b"trusted" => Space::Trusted,
        b"security" => Space::Security,
        _ => return Err(FsError::Unsupported),
    };
    if dot + 1 == name.len() || name.contains(&0) { Err(FsError::Invalid) } else { Ok(space) }
}

impl State {
    pub(crate) fn setattr(
        &mut self,
        caller: &Caller,
        inode: u64,
        set: &SetAttr,
        guard: Option<Timestamp>,
        wall: Timestamp,
    ) -> FsResult<Change<()>> {
        let node = self.node(inode)?;
        let attr = node.attr(inode);
        if set.size.is_some() {
            node.content()?;
        }
        check_size(set)?;
        if guard.is_some_and(|ctime| ctime != attr.ctime) {
            return Err(FsError::NotSync);
        }
        self.check_setattr(caller, &attr, set)?;
        if *set == SetAttr::default() {
            return Ok(self.unchanged(inode, ()));
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
        Ok(self.changed(inode, (), |state| {
            let node = state.node_mut(inode);
            node.mode = mode;
            node.uid = set.uid.unwrap_or(attr.uid);
            node.gid = gid;
            node.touch(wall);
            if let Some(size) = set.size {
                node.content_mut().truncate(size);
                node.mtime = node.ctime;
            }
            let at = |time| match time {
                SetTime::Now => node.ctime,
                SetTime::To(time) => time,
            };
            let (atime, mtime) = (set.atime.map(at), set.mtime.map(at));
            node.atime = atime.unwrap_or(node.atime);
            node.mtime = mtime.unwrap_or(node.mtime);
        }))
    }

    /// Whether `caller` may do all of `set`.
    fn check_setattr(&self, caller: &Caller, attr: &Attr, set: &SetAttr) -> FsResult<()> {
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

    pub(crate) fn getxattr(&self, caller: &Caller, inode: u64, name: &[u8]) -> FsResult<Vec<u8>> {
        let node = self.node(inode)?;
        let attr = node.attr(inode);
        match space_of(name)? {
            Space::User if !matches!(attr.kind, Kind::File | Kind::Dir) => return Err(FsError::NoXattr),
            Space::User => access::check_io(&attr, caller, READ)?,
            Space::Trusted if caller.uid != 0 => return Err(FsError::NoXattr),
            Space::Trusted | Space::Security => {}
        }
        node.xattrs.get(name).map(|value| value.to_vec()).ok_or(FsError::NoXattr)
    }

    pub(crate) fn setxattr(
        &mut self,
        caller: &Caller,
        inode: u64,
        name: &[u8],
        value: &[u8],
        how: XattrMode,
        wall: Timestamp,
    ) -> FsResult<Change<()>> {
        self.node(inode)?;
        let space = space_of(name)?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(FsError::XattrTooBig);
        }
        self.check_xattr_write(caller, inode, space)?;
        match (how, self.node(inode)?.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err(FsError::Exists),
            (XattrMode::Replace, false) => return Err(FsError::NoXattr),
            _ => {}
        }
        Ok(self.changed(inode, (), |state| {
            let node = state.node_mut(inode);
            node.xattrs.insert(name.into(), Rc::from(value));
            node.touch(wall);
        }))
    }

    pub(crate) fn removexattr(
        &mut self,
        caller: &Caller,
        inode: u64,
        name: &[u8],
        wall: Timestamp,
    ) -> FsResult<Change<()>> {
        self.node(inode)?;
        let space = space_of(name)?;
        self.check_xattr_write(caller, inode, space)?;
        if !self.node(inode)?.xattrs.contains_key(name) {
            return Err(FsError::NoXattr);
        }
        Ok(self.changed(inode, (), |state| {
            let node = state.node_mut(inode);
            node.xattrs.remove(name);
            node.touch(wall);
        }))
    }

    fn check_xattr_write(&self, caller: &Caller, inode: u64, space: Space) -> FsResult<()> {
        let attr = self.attr(inode)?;
        match space {
            Space::User => {
                if !matches!(attr.kind, Kind::File | Kind::Dir) {
                    return Err(FsError::NotPermitted);
                }
                // Else anybody could fill a shared directory's attributes.
                if attr.kind == Kind::Dir && attr.mode & 0o1000 != 0 && !access::is_owner(&attr, caller) {
                    return Err(FsError::NotPermitted);
                }
                access::check_io(&attr, caller, WRITE)
            }
            Space::Trusted | Space::Security if caller.uid != 0 => Err(FsError::NotPermitted),
            Space::Trusted | Space::Security => Ok(()),
        }
    }
}
