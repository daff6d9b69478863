//! Operations on names: finding, making, linking, removing, renaming, listing.

use crate::attributes::{NewOwner, check_size, new_owner};
use crate::content::Content;
use crate::state::{Body, Entries, Node, SGID, State, check_name, check_name_to_find, object};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Bound;
use moraine_fs::access::{self, EXEC, READ, WRITE};
use moraine_fs::vfs::*;
use moraine_platform::Timestamp;

/// Mode of a file, socket, FIFO or device made without one.
const FILE_MODE_DEFAULT: u32 = 0o600;
/// Mode of a directory made without one.
const DIR_MODE_DEFAULT: u32 = 0o700;
/// Mode of a symbolic link made without one.
const SYMLINK_MODE_DEFAULT: u32 = 0o777;

impl State {
    pub(crate) fn lookup(&self, caller: &Caller, dir: u64, name: &[u8]) -> FsResult<(ObjectId, Attr)> {
        let entries = self.node(dir)?.entries()?;
        check_name_to_find(name)?;
        let inode = match name {
            b"." | b".." => {
                access::check(&self.attr(dir)?, caller, EXEC)?;
                if name == b"." { dir } else { entries.parent }
            }
            _ => self.search(caller, dir, name)?.ok_or(FsError::NotFound)?,
        };
        Ok((object(inode), self.attr(inode)?))
    }

    pub(crate) fn create(
        &mut self,
        caller: &Caller,
        dir: u64,
        name: &[u8],
        how: CreateMode,
        set: &SetAttr,
        wall: Timestamp,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
        self.node(dir)?.entries()?;
        check_name(name)?;
        check_size(set)?;
        if let Some(inode) = self.search(caller, dir, name)? {
            let node = self.node(inode)?;
            match how {
                CreateMode::Unchecked if node.kind() == Kind::File => {
                    if set.size.is_some() {
                        let only_size = SetAttr { size: set.size, ..SetAttr::default() };
                        self.setattr(caller, inode, &only_size, None, wall)?;
                    }
                }
                CreateMode::Exclusive(verifier) if node.verifier == Some(verifier) => {}
                _ => return Err(FsError::Exists),
            }
            return Ok(self.unchanged(dir, (object(inode), self.attr(inode)?)));
        }
        self.check_dir_write(caller, dir)?;
        let mut content = Content::default();
        content.truncate(set.size.unwrap_or(0));
        let mut node = self.new_node(caller, dir, Body::File(content), FILE_MODE_DEFAULT, set, wall)?;
        if let CreateMode::Exclusive(verifier) = how {
            node.verifier = Some(verifier);
        }
        Ok(self.put(dir, name, node, wall))
    }

    pub(crate) fn make(
        &mut self,
        caller: &Caller,
        dir: u64,
        name: &[u8],
        new: NewNode<'_>,
        set: &SetAttr,
        wall: Timestamp,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
        self.node(dir)?.entries()?;
        check_name(name)?;
        let (body, mode) = match new {
            NewNode::Dir => (Body::Dir(Entries::new(dir)), DIR_MODE_DEFAULT),
            NewNode::Symlink(target) if target.is_empty() || target.contains(&0) => {
                return Err(FsError::Invalid);
            }
            NewNode::Symlink(target) if target.len() > SYMLINK_MAX => return Err(FsError::NameTooLong),
            NewNode::Symlink(target) => (Body::Symlink(target.into()), SYMLINK_MODE_DEFAULT),
            NewNode::Block(major, minor) => (Body::Block(major, minor), FILE_MODE_DEFAULT),
            NewNode::Char(major, minor) => (Body::Char(major, minor), FILE_MODE_DEFAULT),
            NewNode::Socket => (Body::Socket, FILE_MODE_DEFAULT),
            NewNode::Fifo => (Body::Fifo, FILE_MODE_DEFAULT),
        };
        if self.search(caller, dir, name)?.is_some() {
            return Err(FsError::Exists);
        }
        self.check_dir_write(caller, dir)?;
        if matches!(new, NewNode::Block(..) | NewNode::Char(..)) && caller.uid != 0 {
            return Err(FsError::NotPermitted);
        }
        let node = self.new_node(caller, dir, body, mode, set, wall)?;
        Ok(self.put(dir, name, node, wall))
    }

    /// A node as `caller` would make it in `dir`. A size is a file's matter and was used before.
    fn new_node(
        &self,
        caller: &Caller,
        dir: u64,
        body: Body,
        mode_default: u32,
        set: &SetAttr,
        wall: Timestamp,
    ) -> FsResult<Node> {
        let parent = self.attr(dir)?;
        let NewOwner { uid, gid } = new_owner(caller, &parent, set)?;
        let mut mode = set.mode.unwrap_or(mode_default) & 0o7777;
        let is_dir = matches!(body, Body::Dir(_));
        if is_dir && parent.mode & SGID != 0 {
            mode |= SGID;
        } else if !is_dir && caller.uid != 0 && !access::in_group(caller, gid) {
            mode &= !SGID;
        }
        let mut node = Node::new(body, mode, uid, gid, wall);
        if let Some(SetTime::To(time)) = set.atime {
            node.atime = time;
        }
        if let Some(SetTime::To(time)) = set.mtime {
            node.mtime = time;
        }
        Ok(node)
    }

    fn put(&mut self, dir: u64, name: &[u8], node: Node, wall: Timestamp) -> Change<(ObjectId, Attr)> {
        let inode = self.add(node);
        let change = self.changed(dir, (), |state| {
            state.enter(dir, name, inode);
            state.node_mut(dir).touch_content(wall);
        });
        let attr = self.attr(inode).expect("just made");
        change.map(|()| (object(inode), attr))
    }

    pub(crate) fn remove(
        &mut self,
        caller: &Caller,
        dir: u64,
        name: &[u8],
        wall: Timestamp,
    ) -> FsResult<Change<ObjectId>> {
        self.node(dir)?.entries()?;
        check_name(name)?;
        let inode = self.search(caller, dir, name)?.ok_or(FsError::NotFound)?;
        self.check_take(caller, dir, inode)?;
        if self.is_dir(inode) {
            return Err(FsError::IsDir);
        }
        Ok(self.changed(dir, object(inode), |state| {
            state.leave(dir, name);
            state.drop_link(inode, wall);
            state.node_mut(dir).touch_content(wall);
        }))
    }

    pub(crate) fn rmdir(
        &mut self,
        caller: &Caller,
        dir: u64,
        name: &[u8],
        wall: Timestamp,
    ) -> FsResult<Change<ObjectId>> {
        self.node(dir)?.entries()?;
        check_name(name)?;
        let inode = self.search(caller, dir, name)?.ok_or(FsError::NotFound)?;
        self.check_take(caller, dir, inode)?;
        if !self.node(inode)?.entries()?.by_name.is_empty() {
            return Err(FsError::NotEmpty);
        }
        Ok(self.changed(dir, object(inode), |state| {
            state.leave(dir, name);
            state.drop_link(inode, wall);
            state.node_mut(dir).touch_content(wall);
        }))
    }

    pub(crate) fn rename(
        &mut self,
        caller: &Caller,
        (from_dir, from): (u64, &[u8]),
        (to_dir, to): (u64, &[u8]),
        wall: Timestamp,
    ) -> FsResult<(Change<ObjectId>, Change<Option<ObjectId>>)> {
        self.node(from_dir)?.entries()?;
        self.node(to_dir)?.entries()?;
        check_name(from)?;
        check_name(to)?;
        let source = self.search(caller, from_dir, from)?;
        let target = self.search(caller, to_dir, to)?;
        let source = source.ok_or(FsError::NotFound)?;
        let moves_dir = self.is_dir(source);
        if moves_dir && self.is_above(source, to_dir) {
            return Err(FsError::Invalid);
        }
        if target.is_some_and(|t| self.is_dir(t) && self.is_above(t, from_dir)) {
            return Err(FsError::NotEmpty);
        }
        if target == Some(source) {
            return Ok((self.unchanged(from_dir, object(source)), self.unchanged(to_dir, None)));
        }
        self.check_take(caller, from_dir, source)?;
        match target {
            None => self.check_dir_write(caller, to_dir)?,
            Some(target) => {
                self.check_take(caller, to_dir, target)?;
                match (moves_dir, self.is_dir(target)) {
                    (true, false) => return Err(FsError::NotDir),
                    (false, true) => return Err(FsError::IsDir),
                    _ => {}
                }
            }
        }
        if moves_dir && from_dir != to_dir {
            // Its `..` changes: that is a write to the directory itself.
            access::check(&self.attr(source)?, caller, WRITE)?;
        }
        if let Some(target) = target
            && let Body::Dir(entries) = &self.node(target)?.body
            && !entries.by_name.is_empty()
        {
            return Err(FsError::NotEmpty);
        }
        let pre = (self.attr(from_dir)?.pre(), self.attr(to_dir)?.pre());
        self.leave(from_dir, from);
        if let Some(target) = target {
            self.leave(to_dir, to);
            self.drop_link(target, wall);
        }
        self.enter(to_dir, to, source);
        self.node_mut(source).touch(wall);
        self.node_mut(from_dir).touch_content(wall);
        if to_dir != from_dir {
            self.node_mut(to_dir).touch_content(wall);
        }
        let seq = self.advance();
        let (post_from, post_to) = (self.attr(from_dir)?, self.attr(to_dir)?);
        Ok((
            Change { pre: pre.0, post: post_from, seq, value: object(source) },
            Change { pre: pre.1, post: post_to, seq, value: target.map(object) },
        ))
    }

    pub(crate) fn link(
        &mut self,
        caller: &Caller,
        inode: u64,
        dir: u64,
        name: &[u8],
        wall: Timestamp,
    ) -> FsResult<Change<Attr>> {
        let kind = self.node(inode)?.kind();
        self.node(dir)?.entries()?;
        if kind == Kind::Dir {
            return Err(FsError::IsDir);
        }
        check_name(name)?;
        if self.search(caller, dir, name)?.is_some() {
            return Err(FsError::Exists);
        }
        self.check_dir_write(caller, dir)?;
        if self.node(inode)?.links >= LINK_MAX {
            return Err(FsError::TooManyLinks);
        }
        let change = self.changed(dir, (), |state| {
            state.enter(dir, name, inode);
            let node = state.node_mut(inode);
            node.links += 1;
            node.touch(wall);
            state.node_mut(dir).touch_content(wall);
        });
        let attr = self.attr(inode)?;
        Ok(change.map(|()| attr))
    }

    pub(crate) fn readdir(
        &self,
        caller: &Caller,
        dir: u64,
        cookie: u64,
        limit: usize,
        attributes: WithAttributes,
    ) -> FsResult<Listing> {
        let entries = self.node(dir)?.entries()?;
        let attr = self.attr(dir)?;
        access::check(&attr, caller, READ)?;
        let dots: [(u64, &[u8], u64); 2] = [(1, b".", dir), (2, b"..", entries.parent)];
        let after = (Bound::Excluded(cookie), Bound::Unbounded);
        let named = entries.by_cookie.range(after).map(|(at, name)| (*at, &**name, entries.by_name[name].0));
        let mut rest = dots.into_iter().filter(|(at, ..)| *at > cookie).chain(named).peekable();
        let mut listed: Vec<DirEntry> = Vec::new();
        while listed.len() < limit
            && let Some((cookie, name, inode)) = rest.next()
        {
            let attr = self.attr(inode)?;
            listed.push(DirEntry {
                cookie,
                name: Box::from(name),
                object: object(inode),
                kind: attr.kind,
                attr: (attributes == WithAttributes::Yes).then_some(attr),
            });
        }
        Ok(Listing { entries: listed, eof: rest.peek().is_none(), attr })
    }
}
