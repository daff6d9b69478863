//! The reference model behind a pane of glass: calls are recorded, can be held up, and can be made to fail.

use moraine_fs::Vfs;
use moraine_fs::vfs::*;
use moraine_model::Model;
use moraine_model::double::Gate;
use moraine_platform::Clock;
use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;

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
    gate: Gate,
    pub log: RefCell<Vec<Call>>,
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
            gate: Gate::default(),
            log: RefCell::default(),
            most_written_at_once: Cell::new(0),
            writing: Cell::new(0),
        }
    }

    pub fn take_log(&self) -> Vec<Call> {
        self.log.take()
    }

    fn note(&self, call: Call) {
        self.log.borrow_mut().push(call);
    }
}

impl Deref for Probe {
    type Target = Gate;
    fn deref(&self) -> &Gate {
        &self.gate
    }
}

impl Vfs for Probe {
    moraine_model::forward!(model; pool root write_verifier setattr lookup readlink create make remove rmdir rename);
    moraine_model::forward!(model; link readdir statfs getxattr setxattr removexattr listxattr);
    moraine_model::forward!(model, gate; getattr segments);

    async fn durable(&self, seq: Seq) -> FsResult<()> {
        self.gate.pass("durable").await?;
        self.note(Call::Durable(seq));
        self.model.durable(seq).await
    }

    async fn read(&self, caller: &Caller, object: ObjectId, offset: u64, len: u32) -> FsResult<ReadData> {
        self.gate.pass("read").await?;
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
        let passed = self.gate.pass("write").await;
        self.writing.set(self.writing.get() - len);
        passed?;
        let result = self.model.write(caller, object, offset, data, stability).await;
        self.note(Call::Written { offset, len, skip, stability });
        result
    }

    async fn commit(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<Written>> {
        self.note(Call::CommitBegun(offset, len));
        self.gate.pass("commit").await?;
        let result = self.model.commit(object, offset, len).await;
        self.note(Call::CommitEnded);
        result
    }

    async fn punch(&self, caller: &Caller, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<()>> {
        self.gate.pass("punch").await?;
        let result = self.model.punch(caller, object, offset, len).await;
        self.note(Call::Punched(offset, len));
        result
    }
}
