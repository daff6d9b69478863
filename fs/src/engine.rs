//! The engine: the database under the filesystem. Trees of keys, transactions over them, space for data.
//!
//! Everything above (namespace, extents, page cache) sees this door only:
//!
//! - [`Engine::transact`] runs a body that reads and queues updates, and commits it atomically;
//! - [`Engine::durable`] waits until a commit is on media;
//! - [`Engine::reserve`], [`Engine::write_data`], [`Engine::read_data`] place and fetch the bytes of files.
//!
//! | file | its idea |
//! |---|---|
//! | [`commit`] | the one synchronous step that makes updates history |
//! | [`pool`] | making, mounting and unmounting pools |
//! | [`mount`] | recovery: from superblocks and journal to a running engine |
//! | [`look`] | reading keys without a transaction |
//! | [`mend`] | the engine under repair: nothing is derived, space comes from a list of what is free for sure |
//! | [`cleaner`] | the background: write-back under pressure, freeing buckets |
//! | [`space`] | reservations, placed data, holds on buckets |

use crate::btree::{NodeBuffers, Table};
use crate::device::Devices;
use crate::journal::{Class as JournalClass, Journal, JournalError};
use crate::space::{Buckets, Geometry};

use crate::superblock::Superblocks;
use crate::tx::{Class, Tx};
use crate::vfs::{FsError, FsResult, PoolInfo, Seq};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::ops::Range;
use core::pin::Pin;
use moraine_format::{Tree, journal};
use moraine_platform::memory::Usage;
use moraine_platform::sync::{Event, Semaphore};
use moraine_platform::{BLOCK_SIZE, Platform, error};

mod cleaner;
pub(crate) mod commit;
mod look;
pub(crate) mod mend;
mod mount;
mod pool;
mod space;

pub use crate::superblock::FormatOptions;
pub use look::{Absent, Look};
pub use mount::{Budget, NODE_KEYS_MIN, RunError};
pub use pool::PoolError;
pub(crate) use space::Hold;
pub use space::{DataDep, DataKind, Placed, Space, SpaceReservation, WrittenData};

/// Room being made, for a transaction: which collecting needs transactions for, too.
type MakingRoom<'a> = Pin<Box<dyn Future<Output = FsResult<bool>> + 'a>>;

/// A handle on the engine; clones share it.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) platform: Platform,
    info: PoolInfo,
    superblocks: Superblocks,

    pub(crate) pool_tag: u64,
    /// Mount epoch: differs between any two mounts.
    pub(crate) epoch: u64,
    pub(crate) geometry: Vec<Geometry>,
    /// The buckets of each device that can hold data and nodes.
    usable: Vec<Vec<Range<u64>>>,
    pub(crate) devices: Rc<Devices>,
    pub(crate) journal: Rc<Journal>,
    pub(crate) state: RefCell<State>,
    /// Entry of the newest commit.
    pub(crate) newest: Cell<journal::Seq>,
    /// One collector works at a time.
    pub(crate) collecting: Rc<Semaphore>,
    /// Buckets with content that cannot be moved.
    pub(crate) uncollectable: RefCell<BTreeSet<(u8, u64)>>,
    /// Buckets a write into which failed: nobody knows what may still land there, so they stay held.
    quarantined: RefCell<Vec<Hold>>,
    /// Background work under way that frees space.
    pub(crate) freeing: Cell<usize>,
    /// Write-backs of nodes that failed, since one last succeeded.
    pub(crate) failed_write_backs: Cell<u32>,
    /// Memory for the I/O of nodes.
    pub(crate) node_buffers: NodeBuffers,
    /// Nodes that are being read in.
    pub(crate) loading: RefCell<BTreeMap<u64, Rc<Event>>>,
    /// A batch of nodes was written back.
    pub(crate) written_back: Event,
    /// Somebody waits for write-back or for free buckets.
    pub(crate) cleaner_wanted: Event,
    /// The background lacks memory.
    memory_short: Rc<Event>,
    /// Buckets were filled, emptied or freed.
    pub(crate) buckets_changed: Event,
    /// Who it works for.
    pub(crate) mode: Cell<Mode>,
    /// Roots that the journal holds and that make no sense; only a check mounts such a pool.
    pub(crate) lost_roots: RefCell<Vec<Tree>>,
    /// How the journal is damaged; only a check mounts such a pool.
    pub(crate) rot: Option<String>,
    /// The newest entry of the history that was recovered; if some of it is gone, any may be newer.
    pub(crate) recovered: journal::Seq,
    /// Why the engine refuses everything, once it does.
    stopped: Cell<Option<FsError>>,
    /// The background is to end.
    closing: Cell<bool>,
    /// The background is to wait.
    paused: Cell<bool>,
    /// Background steps under way.
    busy: Cell<usize>,
    /// Background tasks that still run.
    background: Cell<usize>,
    background_ended: Event,
}

/// Who an engine works for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Its users.
    Serving,
    /// A check: the background rests, buckets are neither freed nor collected.
    Checking,
    /// A repair: as for a check, and nothing is derived from commits; see [`mend`].
    Mending,
}

/// What changes: looked at and changed in synchronous steps only.
pub(crate) struct State {
    pub(crate) table: Table,
    pub(crate) buckets: Buckets,
}

impl Engine {
    /// Runs `body` and commits what it queued: all of it or nothing, at one point of the pool's history.
    ///
    /// The body may run several times: it is started again when something it read has changed before the commit. So
    /// it must have no side effect but through its [`Tx`]. An error from the body queues nothing and is returned,
    /// once what it read is known to be still true.
    ///
    /// There is no await between the commit point and the return of this function: the caller continues in the same
    /// synchronous step, and may update state in memory that must change together with the keys.
    pub async fn transact<T>(
        &self,
        class: Class,
        body: impl AsyncFnMut(&mut Tx) -> FsResult<T>,
    ) -> FsResult<(T, Seq)> {
        self.transact_while(class, &|| true, body).await
    }

    /// As [`Engine::transact`], for a body that also looks at what only memory knows. `still` says whether that is as the
    /// body saw it: asked in the step of the commit, as what was read is. If it is not, the body runs again.
    pub(crate) async fn transact_while<T>(
        &self,
        class: Class,
        still: &dyn Fn() -> bool,
        mut body: impl AsyncFnMut(&mut Tx) -> FsResult<T>,
    ) -> FsResult<(T, Seq)> {
        let mut made_room = false;
        loop {
            let mut tx = Tx::new(self.clone(), class);
            let result = body(&mut tx).await;
            match tx.finish(result, still).await {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => {}
                // Space may be on its way: buckets to be discarded, fragmented ones to be collected.
                Err(FsError::NoSpace) if class == Class::Normal && !made_room => {
                    made_room = true;
                    let room: MakingRoom<'_> = Box::pin(self.make_room(BLOCK_SIZE as u64));
                    room.await?;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until the commit `seq` and all before it are on media, with the data they refer to.
    pub async fn durable(&self, seq: Seq) -> FsResult<()> {
        self.inner.make_durable(journal::Seq(seq.0)).await
    }

    /// Background work begins that will free space: whoever finds none waits for it instead of being told that the pool is
    /// full, until as many calls of [`Engine::freeing_ends`] were made.
    pub(crate) fn freeing_begins(&self) {
        self.inner.freeing.set(self.inner.freeing.get() + 1);
    }

    /// It ended, or does not get on.
    pub(crate) fn freeing_ends(&self) {
        self.inner.freeing.set(self.inner.freeing.get() - 1);
        self.inner.buckets_changed.notify();
    }

    /// Fails once the engine takes no more changes: after a failure that nothing can be written past, or at its end.
    pub fn check_running(&self) -> FsResult<()> {
        self.inner.check_running()
    }

    /// The number of the last commit.
    pub fn last_seq(&self) -> Seq {
        Seq(self.inner.newest_seq().0)
    }

    /// Stops background work, so that nothing changes but by commits of the caller, until [`Engine::resume`].
    pub async fn pause(&self) {
        self.inner.paused.set(true);
        self.inner.background_ended.until(|| (self.inner.busy.get() == 0).then_some(())).await;
    }

    /// Lets background work go on.
    pub fn resume(&self) {
        self.inner.paused.set(false);
        self.inner.cleaner_wanted.notify();
        self.inner.buckets_changed.notify();
    }

    /// Notified when the background cannot go on for want of memory: whoever keeps some only for speed gives it back.
    pub(crate) fn memory_short(&self) -> Rc<Event> {
        self.inner.memory_short.clone()
    }

    /// What the pool is.
    pub fn pool(&self) -> &PoolInfo {
        &self.inner.info
    }

    /// What its nodes take of memory.
    pub fn memory(&self) -> Usage {
        let table = &self.inner.state.borrow().table;
        table.memory.usage("nodes", table.memory_limit as u64)
    }

    /// The world it runs in.
    pub fn platform(&self) -> &Platform {
        &self.inner.platform
    }
}

impl core::fmt::Display for Engine {
    /// What keeps the journal, the nodes and the buckets busy: for people who look for a reason.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let inner = &self.inner;
        let (pressure, fill) = (inner.journal.pressure(), inner.journal.fill_permille());
        writeln!(
            f,
            "journal: newest {} flushed {} oldest pin {:?} {pressure:?} {fill} per mille",
            inner.newest.get(),
            inner.journal.flushed_seq(),
            inner.journal.oldest_pin()
        )?;
        let state = inner.state.borrow();
        write!(f, "{}{}", state.table, state.buckets)
    }
}

impl Inner {
    /// Fails once the engine takes no more changes.
    pub(crate) fn check_running(&self) -> FsResult<()> {
        match self.stopped.get() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// Fails once the engine has ended. One that stopped after a failure can still be read.
    pub(crate) fn check_open(&self) -> FsResult<()> {
        match self.stopped.get() {
            Some(FsError::ShuttingDown) => Err(FsError::ShuttingDown),
            _ => Ok(()),
        }
    }

    /// Refuses every change from now on: state on disk stays as of the last durable commit. What is in memory and on
    /// the disks can still be read.
    pub(crate) fn stop(&self, why: &str) {
        if self.stopped.replace(Some(FsError::Stopped)).is_none() {
            error!("fs", "the pool stops and takes no more changes: {why}");
            self.journal.refuse();
            self.written_back.notify();
            self.buckets_changed.notify();
            self.cleaner_wanted.notify();
        }
    }

    /// The entry that the next commit will at the earliest be in is the one after this.
    pub(crate) fn newest_seq(&self) -> journal::Seq {
        self.newest.get()
    }

    /// Waits until everything up to `seq` is on media.
    pub(crate) async fn make_durable(&self, seq: journal::Seq) -> FsResult<()> {
        self.journal.durable(seq).await.map(|_| ()).map_err(journal_error)
    }

    /// Commits derived updates; `propose` gives the proposal and the state change of a bucket that goes with it.
    pub(crate) async fn commit_derived(
        &self,
        watermark: JournalClass,
        mut propose: impl FnMut(
            &State,
        ) -> Result<
            Option<(commit::Proposal, crate::space::triggers::Transition)>,
            commit::Obstacle,
        >,
    ) -> FsResult<bool> {
        let done = self
            .commit(watermark, &mut propose, |state, step, _, transition| {
                if step == commit::Step::After {
                    let State { table, buckets } = state;
                    buckets.committed(table, core::slice::from_ref(transition));
                }
            })
            .await?;
        Ok(done.is_some())
    }
}

/// What a journal's failure is to callers.
pub(crate) fn journal_error(e: JournalError) -> FsError {
    if e == JournalError::Stopped {
        return FsError::Stopped;
    }
    error!("fs", "journal: {e}");
    FsError::DeviceWrite
}
