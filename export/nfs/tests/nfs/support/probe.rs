//! A filesystem that can be watched, held and made to fail: the model behind a gate at every call.

use moraine_fs::vfs::*;
use moraine_model::Model;
use moraine_platform::Timestamp;
use moraine_platform::sync::Event;
use std::cell::{Cell, RefCell};

/// The model with a gate in front.
pub struct Probe {
    pub model: Model,
    log: RefCell<Vec<&'static str>>,
    held: RefCell<Vec<&'static str>>,
    failures: RefCell<Vec<(&'static str, FsError)>>,
    opened: Event,
    /// WRITE takes no bytes and says so.
    pub writes_nothing: Cell<bool>,
    /// READ returns no bytes and says that it is not the end.
    pub reads_nothing: Cell<bool>,
    /// Objects that READDIR shows as roots of another subvolume.
    pub boundary: Cell<Option<u64>>,
    /// Largest number of entries a listing returns.
    pub listing_limit: Cell<usize>,
}

use moraine_fs::FsError;

impl Probe {
    pub fn new(model: Model) -> Probe {
        Probe {
            model,
            log: RefCell::default(),
            held: RefCell::default(),
            failures: RefCell::default(),
            opened: Event::new(),
            writes_nothing: Cell::new(false),
            reads_nothing: Cell::new(false),
            boundary: Cell::new(None),
            listing_limit: Cell::new(usize::MAX),
        }
    }

    /// Calls named `call` wait at the gate from now on.
    pub fn hold(&self, call: &'static str) {
        self.held.borrow_mut().push(call);
    }

    /// Opens the gate for `call`.
    pub fn release(&self, call: &'static str) {
        self.held.borrow_mut().retain(|held| *held != call);
        self.opened.notify();
    }

    /// The next call named `call` fails, without having happened.
    pub fn fail(&self, call: &'static str, error: FsError) {
        self.failures.borrow_mut().push((call, error));
    }

    /// Names of the calls since the last time this was asked.
    pub fn calls(&self) -> Vec<&'static str> {
        self.log.take()
    }

    /// How often `call` was made since the log was last taken.
    pub fn count(&self, call: &'static str) -> usize {
        self.log.borrow().iter().filter(|c| **c == call).count()
    }

    async fn gate(&self, call: &'static str) -> FsResult<()> {
        self.log.borrow_mut().push(call);
        self.opened.until(|| (!self.held.borrow().contains(&call)).then_some(())).await;
        let mut failures = self.failures.borrow_mut();
        match failures.iter().position(|(c, _)| *c == call) {
            Some(at) => Err(failures.remove(at).1),
            None => Ok(()),
        }
    }
}

impl Vfs for Probe {
    fn pool(&self) -> &PoolInfo {
        self.model.pool()
    }
    fn root(&self) -> ObjectId {
        self.model.root()
    }
    fn write_verifier(&self) -> u64 {
        self.model.write_verifier()
    }
    async fn durable(&self, seq: Seq) -> FsResult<()> {
        self.gate("durable").await?;
        self.model.durable(seq).await
    }
    async fn getattr(&self, object: ObjectId) -> FsResult<Attr> {
        self.gate("getattr").await?;
        self.model.getattr(object).await
    }
    async fn setattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        set: &SetAttr,
        guard: Option<Timestamp>,
    ) -> FsResult<Change<()>> {
        self.gate("setattr").await?;
        self.model.setattr(caller, object, set, guard).await
    }
    async fn lookup(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<(ObjectId, Attr)> {
        self.gate("lookup").await?;
        self.model.lookup(caller, dir, name).await
    }
    async fn readlink(&self, object: ObjectId) -> FsResult<(Vec<u8>, Attr)> {
        self.gate("readlink").await?;
        self.model.readlink(object).await
    }
    async fn read(&self, caller: &Caller, object: ObjectId, offset: u64, len: u32) -> FsResult<ReadData> {
        self.gate("read").await?;
        let mut data = self.model.read(caller, object, offset, len).await?;
        if self.reads_nothing.get() {
            (data.parts, data.eof) = (Vec::new(), false);
        }
        Ok(data)
    }
    async fn write(
        &self,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        data: WriteData,
        stability: Stability,
    ) -> FsResult<Change<Written>> {
        assert!(data.len == 0 || data.skip as u64 == offset % 4096, "data lies where the file wants it");
        self.gate("write").await?;
        let mut change = self.model.write(caller, object, offset, data, stability).await?;
        if self.writes_nothing.get() {
            change.value.count = 0;
        }
        Ok(change)
    }
    async fn commit(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<Written>> {
        self.gate("commit").await?;
        self.model.commit(object, offset, len).await
    }
    async fn punch(&self, caller: &Caller, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<()>> {
        self.model.punch(caller, object, offset, len).await
    }
    async fn segments(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Vec<Segment>> {
        self.model.segments(object, offset, len).await
    }
    async fn create(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        how: CreateMode,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
        self.gate("create").await?;
        self.model.create(caller, dir, name, how, set).await
    }
    async fn make(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        node: NewNode<'_>,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
        self.gate("make").await?;
        self.model.make(caller, dir, name, node, set).await
    }
    async fn remove(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>> {
        self.gate("remove").await?;
        self.model.remove(caller, dir, name).await
    }
    async fn rmdir(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>> {
        self.gate("rmdir").await?;
        self.model.rmdir(caller, dir, name).await
    }
    async fn rename(
        &self,
        caller: &Caller,
        from: (ObjectId, &[u8]),
        to: (ObjectId, &[u8]),
    ) -> FsResult<(Change<ObjectId>, Change<Option<ObjectId>>)> {
        self.gate("rename").await?;
        self.model.rename(caller, from, to).await
    }
    async fn link(
        &self,
        caller: &Caller,
        object: ObjectId,
        dir: ObjectId,
        name: &[u8],
    ) -> FsResult<Change<Attr>> {
        self.gate("link").await?;
        self.model.link(caller, object, dir, name).await
    }
    async fn readdir(
        &self,
        caller: &Caller,
        dir: ObjectId,
        cookie: u64,
        limit: usize,
        attributes: WithAttributes,
    ) -> FsResult<Listing> {
        self.gate("readdir").await?;
        let limit = limit.min(self.listing_limit.get());
        let mut listing = self.model.readdir(caller, dir, cookie, limit, attributes).await?;
        for entry in listing.entries.iter_mut().filter(|e| self.boundary.get() == Some(e.object.inode)) {
            entry.object.subvolume += 1;
        }
        Ok(listing)
    }
    async fn statfs(&self) -> FsResult<FsStat> {
        self.gate("statfs").await?;
        self.model.statfs().await
    }
    async fn getxattr(&self, caller: &Caller, object: ObjectId, name: &[u8]) -> FsResult<Vec<u8>> {
        self.model.getxattr(caller, object, name).await
    }
    async fn setxattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        name: &[u8],
        value: &[u8],
        how: XattrMode,
    ) -> FsResult<Change<()>> {
        self.model.setxattr(caller, object, name, value, how).await
    }
    async fn removexattr(&self, caller: &Caller, object: ObjectId, name: &[u8]) -> FsResult<Change<()>> {
        self.model.removexattr(caller, object, name).await
    }
    async fn listxattr(&self, object: ObjectId) -> FsResult<Vec<Box<[u8]>>> {
        self.model.listxattr(object).await
    }
}
