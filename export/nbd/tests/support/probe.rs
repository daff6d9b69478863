//! The reference model behind a pane of glass: calls are recorded, can be held up, and can be made to fail.

use moraine_fs::vfs::*;
use moraine_fs::{FsError, Vfs};
use moraine_model::Model;
use moraine_platform::sync::Event;
use moraine_platform::{Clock, Timestamp};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Calls that can be held up or made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Read,
    Write,
    Commit,
    Durable,
    Punch,
    Segments,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Read(u64, u64),
    Written { offset: u64, len: u64, skip: usize, stability: Stability },
    CommitBegun(u64, u64),
    CommitEnded,
    Durable(Seq),
    Punched(u64, u64),
}

pub struct Probe {
    pub model: Model,
    pub log: RefCell<Vec<Call>>,
    held: RefCell<Vec<Op>>,
    waiting: Cell<usize>,
    released: Event,
    failing: RefCell<BTreeMap<Op, (FsError, usize)>>,
    /// Bytes read and not yet dropped would be a real cache's pinned pages; their peak is what a budget bounds.
    pub most_written_at_once: Cell<u64>,
    writing: Cell<u64>,
}

impl Probe {
    pub fn new(clock: Rc<dyn Clock>) -> Probe {
        struct Fours;
        impl moraine_platform::Rng for Fours {
            fn fill(&self, out: &mut [u8]) {
                out.fill(4);
            }
        }
        Probe {
            model: Model::new(clock, Rc::new(Fours)),
            log: RefCell::default(),
            held: RefCell::default(),
            waiting: Cell::new(0),
            released: Event::new(),
            failing: RefCell::default(),
            most_written_at_once: Cell::new(0),
            writing: Cell::new(0),
        }
    }

    /// Calls of this kind wait from now on.
    pub fn hold(&self, op: Op) {
        self.held.borrow_mut().push(op);
    }

    /// Lets all that wait go on.
    pub fn release(&self) {
        self.held.borrow_mut().clear();
        self.released.notify();
    }

    /// Calls that wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// The next `times` calls of this kind fail.
    pub fn fail(&self, op: Op, error: FsError, times: usize) {
        self.failing.borrow_mut().insert(op, (error, times));
    }

    pub fn take_log(&self) -> Vec<Call> {
        self.log.take()
    }

    fn note(&self, call: Call) {
        self.log.borrow_mut().push(call);
    }

    async fn pass(&self, op: Op) -> FsResult<()> {
        if self.held.borrow().contains(&op) {
            self.waiting.set(self.waiting.get() + 1);
            self.released.until(|| (!self.held.borrow().contains(&op)).then_some(())).await;
            self.waiting.set(self.waiting.get() - 1);
        }
        if let Some((error, times)) = self.failing.borrow_mut().get_mut(&op)
            && *times > 0
        {
            *times -= 1;
            return Err(*error);
        }
        Ok(())
    }
}

impl Vfs for Probe {
    async fn durable(&self, seq: Seq) -> FsResult<()> {
        self.pass(Op::Durable).await?;
        self.note(Call::Durable(seq));
        self.model.durable(seq).await
    }

    async fn getattr(&self, object: ObjectId) -> FsResult<Attr> {
        self.model.getattr(object).await
    }

    async fn read(&self, caller: &Caller, object: ObjectId, offset: u64, len: u32) -> FsResult<ReadData> {
        self.pass(Op::Read).await?;
        self.note(Call::Read(offset, u64::from(len)));
        self.model.read(caller, object, offset, len).await
    }

    async fn write(
        &self,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        data: WriteData,
        stability: Stability,
    ) -> FsResult<Change<Written>> {
        let (len, skip) = (data.len as u64, data.skip);
        self.writing.set(self.writing.get() + len);
        self.most_written_at_once.set(self.most_written_at_once.get().max(self.writing.get()));
        let passed = self.pass(Op::Write).await;
        self.writing.set(self.writing.get() - len);
        passed?;
        let result = self.model.write(caller, object, offset, data, stability).await;
        self.note(Call::Written { offset, len, skip, stability });
        result
    }

    async fn commit(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<Written>> {
        self.note(Call::CommitBegun(offset, len));
        self.pass(Op::Commit).await?;
        let result = self.model.commit(object, offset, len).await;
        self.note(Call::CommitEnded);
        result
    }

    async fn punch(&self, caller: &Caller, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<()>> {
        self.pass(Op::Punch).await?;
        let result = self.model.punch(caller, object, offset, len).await;
        self.note(Call::Punched(offset, len));
        result
    }

    async fn segments(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Vec<Segment>> {
        self.pass(Op::Segments).await?;
        self.model.segments(object, offset, len).await
    }

    fn pool(&self) -> &PoolInfo {
        self.model.pool()
    }

    fn root(&self) -> ObjectId {
        self.model.root()
    }

    fn write_verifier(&self) -> u64 {
        self.model.write_verifier()
    }

    async fn setattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        set: &SetAttr,
        guard: Option<Timestamp>,
    ) -> FsResult<Change<()>> {
        self.model.setattr(caller, object, set, guard).await
    }

    async fn lookup(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<(ObjectId, Attr)> {
        self.model.lookup(caller, dir, name).await
    }

    async fn readlink(&self, object: ObjectId) -> FsResult<(Vec<u8>, Attr)> {
        self.model.readlink(object).await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        how: CreateMode,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
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
        self.model.make(caller, dir, name, node, set).await
    }

    async fn remove(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>> {
        self.model.remove(caller, dir, name).await
    }

    async fn rmdir(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>> {
        self.model.rmdir(caller, dir, name).await
    }

    async fn rename(
        &self,
        caller: &Caller,
        from: (ObjectId, &[u8]),
        to: (ObjectId, &[u8]),
    ) -> FsResult<(Change<ObjectId>, Change<Option<ObjectId>>)> {
        self.model.rename(caller, from, to).await
    }

    async fn link(
        &self,
        caller: &Caller,
        object: ObjectId,
        dir: ObjectId,
        name: &[u8],
    ) -> FsResult<Change<Attr>> {
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
        self.model.readdir(caller, dir, cookie, limit, attributes).await
    }

    async fn statfs(&self) -> FsResult<FsStat> {
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
