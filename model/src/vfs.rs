//! The façade: [`Vfs`] over the state. Every call is one synchronous step; nothing awaits.

use crate::state::{Body, ROOT_INODE, object};
use crate::{Model, Timestamp};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_fs::access::{self, READ, WRITE};
use moraine_fs::vfs::*;

/// An object of the only subvolume.
fn at(object: ObjectId) -> FsResult<u64> {
    Model::inode(object).ok_or(FsError::Stale)
}

impl Model {
    fn wall(&self) -> Timestamp {
        self.clock.wall()
    }

    fn made_durable(&self) {
        self.durable.set(self.seq());
    }
}

impl Vfs for Model {
    fn pool(&self) -> &PoolInfo {
        &self.pool
    }

    fn root(&self) -> ObjectId {
        object(ROOT_INODE)
    }

    fn write_verifier(&self) -> u64 {
        self.verifier.get()
    }

    async fn durable(&self, seq: Seq) -> FsResult<()> {
        self.durable.set(self.durable.get().max(seq));
        Ok(())
    }

    async fn getattr(&self, object: ObjectId) -> FsResult<Attr> {
        self.state.borrow().attr(at(object)?)
    }

    async fn setattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        set: &SetAttr,
        guard: Option<Timestamp>,
    ) -> FsResult<Change<()>> {
        self.state.borrow_mut().setattr(caller, at(object)?, set, guard, self.wall())
    }

    async fn lookup(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<(ObjectId, Attr)> {
        self.state.borrow().lookup(caller, at(dir)?, name)
    }

    async fn readlink(&self, object: ObjectId) -> FsResult<(Vec<u8>, Attr)> {
        let state = self.state.borrow();
        let inode = at(object)?;
        match &state.node(inode)?.body {
            Body::Symlink(target) => Ok((target.to_vec(), state.attr(inode)?)),
            _ => Err(FsError::Invalid),
        }
    }

    async fn read(&self, caller: &Caller, object: ObjectId, offset: u64, len: u32) -> FsResult<ReadData> {
        let state = self.state.borrow();
        let inode = at(object)?;
        let content = state.node(inode)?.content()?;
        let attr = state.attr(inode)?;
        access::check_io(&attr, caller, READ)?;
        let bytes = content.read(offset, len);
        let eof = offset.saturating_add(u64::from(len)) >= attr.size;
        let len = bytes.len();
        let parts = if len == 0 { Vec::new() } else { [Bytes::new(Rc::new(bytes), 0, len)].into() };
        Ok(ReadData { parts, eof, attr })
    }

    async fn write(
        &self,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        data: WriteData,
        stability: Stability,
    ) -> FsResult<Change<Written>> {
        let mut state = self.state.borrow_mut();
        let inode = at(object)?;
        state.node(inode)?.content()?;
        let end = offset.checked_add(data.len as u64).ok_or(FsError::TooBig)?;
        if end > FILE_SIZE_MAX {
            return Err(FsError::TooBig);
        }
        access::check_io(&state.attr(inode)?, caller, WRITE)?;
        let written = Written { count: data.len as u32, stability, verifier: self.verifier.get() };
        if data.len == 0 {
            return Ok(state.unchanged(inode, written));
        }
        let change = state.changed(inode, written, |state| {
            let node = state.node_mut(inode);
            node.content_mut().write(offset, data.bytes());
            node.drop_privileges(caller);
            node.touch_content(self.wall());
        });
        drop(state);
        if stability > Stability::Unstable {
            self.made_durable();
        }
        Ok(change)
    }

    async fn commit(&self, object: ObjectId, _offset: u64, _len: u64) -> FsResult<Change<Written>> {
        let inode = at(object)?;
        self.state.borrow().node(inode)?.content()?;
        self.made_durable();
        let written = Written { count: 0, stability: Stability::FileSync, verifier: self.verifier.get() };
        Ok(self.state.borrow().unchanged(inode, written))
    }

    async fn punch(&self, caller: &Caller, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<()>> {
        let mut state = self.state.borrow_mut();
        let inode = at(object)?;
        let size = state.node(inode)?.content()?.size;
        access::check_io(&state.attr(inode)?, caller, WRITE)?;
        if len == 0 || offset >= size {
            return Ok(state.unchanged(inode, ()));
        }
        Ok(state.changed(inode, (), |state| {
            let node = state.node_mut(inode);
            node.content_mut().punch(offset, len);
            node.drop_privileges(caller);
            node.touch_content(self.wall());
        }))
    }

    async fn segments(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Vec<Segment>> {
        Ok(self.state.borrow().node(at(object)?)?.content()?.segments(offset, len))
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        how: CreateMode,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
        self.state.borrow_mut().create(caller, at(dir)?, name, how, set, self.wall())
    }

    async fn make(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        node: NewNode<'_>,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
        self.state.borrow_mut().make(caller, at(dir)?, name, node, set, self.wall())
    }

    async fn remove(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>> {
        self.state.borrow_mut().remove(caller, at(dir)?, name, self.wall())
    }

    async fn rmdir(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>> {
        self.state.borrow_mut().rmdir(caller, at(dir)?, name, self.wall())
    }

    async fn rename(
        &self,
        caller: &Caller,
        from: (ObjectId, &[u8]),
        to: (ObjectId, &[u8]),
    ) -> FsResult<(Change<ObjectId>, Change<Option<ObjectId>>)> {
        let (from, to) = ((at(from.0)?, from.1), (at(to.0)?, to.1));
        self.state.borrow_mut().rename(caller, from, to, self.wall())
    }

    async fn link(
        &self,
        caller: &Caller,
        object: ObjectId,
        dir: ObjectId,
        name: &[u8],
    ) -> FsResult<Change<Attr>> {
        self.state.borrow_mut().link(caller, at(object)?, at(dir)?, name, self.wall())
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: ObjectId,
        cookie: u64,
        limit: usize,
        attributes: WithAttributes,
    ) -> FsResult<Listing> {
        self.state.borrow().readdir(caller, at(dir)?, cookie, limit, attributes)
    }

    async fn statfs(&self) -> FsResult<FsStat> {
        Ok(self.state.borrow().statfs())
    }

    async fn getxattr(&self, caller: &Caller, object: ObjectId, name: &[u8]) -> FsResult<Vec<u8>> {
        self.state.borrow().getxattr(caller, at(object)?, name)
    }

    async fn setxattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        name: &[u8],
        value: &[u8],
        how: XattrMode,
    ) -> FsResult<Change<()>> {
        self.state.borrow_mut().setxattr(caller, at(object)?, name, value, how, self.wall())
    }

    async fn removexattr(&self, caller: &Caller, object: ObjectId, name: &[u8]) -> FsResult<Change<()>> {
        self.state.borrow_mut().removexattr(caller, at(object)?, name, self.wall())
    }

    async fn listxattr(&self, object: ObjectId) -> FsResult<Vec<Box<[u8]>>> {
        self.state.borrow().xattr_names(at(object)?)
    }
}
