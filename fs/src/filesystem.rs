//! The filesystem: namespace, extents and page cache put together behind [`Vfs`](crate::vfs::Vfs), on one engine.
//!
//! Every change has three phases: *prepare* may wait (load a page, get space); the *commit* is one synchronous step, in
//! which the keys and what memory knows change together; *settle* may wait again (write back, flush).
//!
//! | file | what it holds |
//! |---|---|
//! | `vfs` | the façade: each call of [`Vfs`](crate::vfs::Vfs) |
//! | `read` | cache hits, loads with verification, read-ahead |
//! | `write` | from a caller's buffer into dirty pages; throttling |
//! | `sync` | write-back: pages to extents; small syncs into keys; COMMIT |
//! | `cut` | truncate, punch, and their background steps |
//! | `tasks` | the write-back task and the reaper |
//! | `wait` | running futures side by side, waiting with a deadline |

mod cut;
mod read;
mod sync;
mod tasks;
mod vfs;
mod wait;
mod write;

pub use crate::cache::CacheBudget;

use crate::cache::Cache;
use crate::engine::Engine;
use crate::namespace::make::{Fresh, INODE_BATCH};
use crate::namespace::record::attr_of;
use crate::namespace::{Names, ROOT_SUBVOLUME, corrupt, object, pos};
use crate::planted::{self, Fault};
use crate::tx::{Class, Tx};
use crate::vfs::{Attr, Change, FsError, FsResult, ObjectId, Seq};
use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::time::Duration;
use moraine_format::dirent::{Dirent, Target};
use moraine_format::inode::{FIRST_FREE_INODE, HASH_BITS, Inode, InodeKind, ROOT_INODE, VOLUMES_INODE};
use moraine_format::record::{INODE_CURSOR, LoggedOp, cursor_value, parse_cursor};
use moraine_format::{Pos, Tree};
use moraine_platform::memory::Usage;
use moraine_platform::sync::{Event, Semaphore};
use moraine_platform::{Instant, Timestamp};

/// How long a filesystem that ends waits for memory before it gives up.
const CLOSING_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that may be on their way from pages to devices at once, copies included.
const WRITEBACK_BYTES: u64 = 4 << 20;

/// What tests set differently.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bits of name hash in directories made from now on; 62 but in tests that want collisions.
    pub hash_bits: u8,
    /// Extents changed in one commit of a truncate or punch; the rest follows in the background.
    pub cut_keys: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { hash_bits: HASH_BITS, cut_keys: 256 }
    }
}

/// A mounted filesystem; clones share it.
#[derive(Clone)]
pub struct Filesystem {
    pub(crate) inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) engine: Engine,
    pub(crate) cache: RefCell<Cache>,
    options: Options,
    /// The next inode number, and the stored cursor it must stay below.
    next_inode: Cell<u64>,
    covered_inodes: Cell<u64>,
    verifier: Cell<u64>,
    /// Pages were loaded, or a load was given up.
    loaded: Event,
    /// Pages became clean, a write-back failed, a logged operation ended: look again.
    cleaned: Event,
    /// There is something to write back, or to stop.
    work: Event,
    /// There is something to reap, or to stop.
    orphans: Event,
    /// Something lost its last name and is still there.
    orphans_due: Cell<bool>,
    /// Files that are written in large pieces and have enough dirty pages to begin with.
    streaming: RefCell<BTreeSet<ObjectId>>,
    /// Write-back is wanted although nothing is old.
    pressure: Cell<bool>,
    stopping: Cell<bool>,
    tasks: Cell<usize>,
    writeback: Rc<Semaphore>,
}

impl Filesystem {
    /// Makes an empty namespace in a new pool: the root directory and `/volumes`, both owned by root with mode 0755.
    pub async fn format_root(engine: &Engine) -> FsResult<Seq> {
        let platform = engine.platform();
        let (now, mut seeds) = (platform.clock.wall(), [[0; 16]; 2]);
        seeds.iter_mut().for_each(|seed| platform.rng.fill(seed));
        let (_, seq) = engine
            .transact(Class::Normal, async |tx| {
                if tx.get(Tree::Inodes, pos(0, ROOT_INODE)).await?.is_some() {
                    return Err(FsError::Exists);
                }
                let dir = |seed, nlink| Inode {
                    mode: 0o755,
                    nlink,
                    atime_ns: now.0,
                    mtime_ns: now.0,
                    ctime_ns: now.0,
                    btime_ns: now.0,
                    change: 1,
                    ..Inode::new(InodeKind::Dir, seed)
                };
                let mut root = dir(seeds[0], 3);
                let name = b"volumes";
                let offset = crate::namespace::hash::home(&root, &[name]);
                let target = Target::Inode { inode: VOLUMES_INODE, kind: InodeKind::Dir };
                let entry = Dirent::Entry { target, name }.to_value();
                root.size = entry.len() as u64;
                let volumes = Inode { parent: ROOT_INODE, parent_offset: offset, ..dir(seeds[1], 2) };
                tx.put(Tree::Dirents, pos(ROOT_INODE, offset), entry);
                tx.put(Tree::Inodes, pos(0, ROOT_INODE), root.to_value());
                tx.put(Tree::Inodes, pos(0, VOLUMES_INODE), volumes.to_value());
                tx.put(Tree::Settings, INODE_CURSOR, cursor_value(FIRST_FREE_INODE));
                Ok(())
            })
            .await?;
        Ok(seq)
    }

    /// Opens the namespace of a mounted engine and starts its background tasks.
    pub async fn open(engine: Engine, budget: CacheBudget) -> FsResult<Filesystem> {
        Filesystem::open_with(engine, budget, Options::default()).await
    }

    /// As [`Filesystem::open`], with options.
    pub async fn open_with(engine: Engine, budget: CacheBudget, options: Options) -> FsResult<Filesystem> {
        let (cursor, _) = engine
            .transact(Class::Normal, async |tx| {
                if tx.get(Tree::Inodes, pos(0, ROOT_INODE)).await?.is_none() {
                    moraine_platform::error!("fs", "the pool has no root directory; run fsck");
                    return Err(FsError::Corrupt);
                }
                let Some(value) = tx.get(Tree::Settings, INODE_CURSOR).await? else {
                    moraine_platform::error!("fs", "the pool has no inode cursor; run fsck");
                    return Err(FsError::Corrupt);
                };
                parse_cursor(&value).map_err(|e| corrupt(Tree::Settings, INODE_CURSOR, e))
            })
            .await?;
        let cache = Cache::new(budget, engine.reserve(0)?)?;
        let verifier = match planted::is(Fault::VerifierSurvives) {
            true => u64::MAX,
            false => engine.platform().rng.next_u64(),
        };
        let inner = Inner {
            cache: RefCell::new(cache),
            options,
            next_inode: Cell::new(cursor),
            covered_inodes: Cell::new(cursor),
            verifier: Cell::new(verifier),
            loaded: Event::new(),
            cleaned: Event::new(),
            work: Event::new(),
            orphans: Event::new(),
            orphans_due: Cell::new(false),
            streaming: RefCell::default(),
            pressure: Cell::new(false),
            stopping: Cell::new(false),
            tasks: Cell::new(0),
            writeback: Semaphore::new(WRITEBACK_BYTES),
            engine,
        };
        let fs = Filesystem { inner: Rc::new(inner) };
        fs.resume_logged_ops().await?;
        fs.start_tasks();
        Ok(fs)
    }

    /// The engine it runs on.
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Memory that pages take, and how much of it is dirty, in bytes.
    pub fn cache_bytes(&self) -> (usize, usize) {
        let cache = self.inner.cache.borrow();
        (cache.meter.bytes(), cache.dirty_bytes())
    }

    /// What its nodes and its pages take of memory.
    pub fn memory(&self) -> [Usage; 2] {
        let cache = self.inner.cache.borrow();
        [self.inner.engine.memory(), cache.meter.usage("pages", cache.budget().total_bytes as u64)]
    }

    /// Deletes what is left of everything without a name, now; the reaper does so in its own time.
    pub async fn reap(&self) -> FsResult<()> {
        self.inner.reap_all().await
    }

    /// Writes everything back and makes it durable.
    pub async fn sync_all(&self) -> FsResult<()> {
        debug_assert!(self.inner.cache.borrow().is_covered(), "every dirty page has space reserved");
        self.inner.write_back_all().await?;
        self.inner.make_durable(self.inner.engine.last_seq()).await
    }

    /// Writes everything back, makes it durable and ends the background tasks. Calls made from now on are refused. The
    /// caller sees to it that no call is under way.
    pub async fn shutdown(&self) -> FsResult<()> {
        let until = self.inner.now() + CLOSING_PATIENCE;
        let result = self.inner.with_patience(until, async || self.sync_all().await).await;
        self.inner.stopping.set(true);
        self.inner.work.notify();
        self.inner.orphans.notify();
        self.inner.engine.memory_short().notify();
        self.inner.cleaned.notify();
        let inner = &self.inner;
        inner.cleaned.until(|| (inner.tasks.get() == 0).then_some(())).await;
        result
    }

    /// Takes up operations that a crash or a shutdown interrupted: their ranges read as holes from the start.
    async fn resume_logged_ops(&self) -> FsResult<()> {
        let mut from = Pos::MIN;
        loop {
            let (found, _) = self
                .inner
                .engine
                .transact(Class::Normal, async |tx| tx.first(Tree::LoggedOps, from..=Pos::MAX).await)
                .await?;
            let Some((at, value)) = found else { return Ok(()) };
            let LoggedOp::Punch { start, end, .. } =
                LoggedOp::parse(&value).map_err(|e| corrupt(Tree::LoggedOps, at, e))?;
            self.inner.cache.borrow_mut().file(object(at.inode)).masked = Some(start..end);
            self.inner.spawn_cut_steps(at.inode);
            match at.successor() {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }
}

impl Inner {
    pub(crate) fn names<'a>(&'a self, tx: &'a mut Tx) -> Names<'a> {
        Names { tx, now: self.wall(), pending: &self.cache, boot_epoch: self.engine.pool().boot_epoch }
    }

    fn wall(&self) -> Timestamp {
        self.engine.platform().clock.wall()
    }

    fn now(&self) -> Instant {
        self.engine.platform().clock.now()
    }

    /// A record's attributes with what is pending, now.
    fn attr(&self, number: u64, record: &Inode) -> Attr {
        attr_of(number, record, self.cache.borrow().pending(object(number)).as_ref())
    }

    /// A new inode number and secret. A number that ends up unused is lost, which costs nothing.
    fn fresh(&self) -> Fresh {
        let number = self.next_inode.get();
        self.next_inode.set(number + 1);
        let mut seed = [0; 16];
        self.engine.platform().rng.fill(&mut seed);
        Fresh { number, covered: self.covered_inodes.get(), seed, hash_bits: self.options.hash_bits }
    }

    fn covered(&self, covered: u64) {
        debug_assert!(covered <= self.next_inode.get() + INODE_BATCH);
        self.covered_inodes.set(self.covered_inodes.get().max(covered));
    }

    /// After a commit that stamped a file's record: what is pending stays ahead of it. Returns the change that callers
    /// see. `fix` says what else of the pending state the commit replaced.
    fn stamped<T>(
        &self,
        number: u64,
        (old, new): (&Inode, &Inode),
        seq: Seq,
        value: T,
        fix: impl FnOnce(&mut crate::namespace::Pending),
    ) -> Change<T> {
        let object: ObjectId = object(number);
        let pre = self.attr(number, old).pre();
        let mut cache = self.cache.borrow_mut();
        if cache.get(object).is_some()
            && let Some(pending) = &mut cache.file(object).pending
        {
            fix(pending);
            // A write came between the body and the commit: this change is later than that write.
            if pending.change >= new.change {
                pending.change += 1;
                pending.ctime.0 += 1;
            }
        }
        if seq > Seq(0) {
            cache.note_commit(object, seq);
        }
        drop(cache);
        Change { pre, post: self.attr(number, new), seq, value }
    }

    /// Waits until `seq` is durable. If it cannot be, clients must send their unstable writes again.
    async fn make_durable(&self, seq: Seq) -> FsResult<()> {
        let result = self.engine.durable(seq).await;
        if result.is_err() {
            self.change_verifier();
        }
        result
    }

    /// Unstable writes may be lost: everybody must notice.
    fn change_verifier(&self) {
        if planted::is(Fault::VerifierUnchanged) {
            return;
        }
        let old = self.verifier.get();
        let new = self.engine.platform().rng.next_u64();
        self.verifier.set(if new == old { !old } else { new });
    }

    fn check_running(&self) -> FsResult<()> {
        if self.stopping.get() { Err(FsError::ShuttingDown) } else { Ok(()) }
    }
}

const _: () = assert!(ROOT_SUBVOLUME == 1);
