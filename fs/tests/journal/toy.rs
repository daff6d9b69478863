//! A toy engine over the journal: numbered commits, some with data that must be on media first, a checkpoint that stands
//! for written-back nodes, and pins. Small enough to see at a glance whether what was recovered is a prefix.

use moraine_format::{Pos, Tree};
use moraine_fs::device::Deps;
use moraine_fs::journal::{
    self, Class, Item, ItemKind, Journal, Options, RecoverError, Report, Reservation, Seq, item_bytes,
    read_history,
};
use moraine_fs::superblock::{Completeness, FormatOptions, Superblocks, format};
use moraine_platform::sync::Semaphore;
use moraine_platform::{BlockDevice, Buf, Clock, Fua};
use moraine_sim::{DiskConfig, Image, SimDisk, World};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

pub(crate) const DISK: u64 = 2 << 20;
pub(crate) const BUCKET: u64 = 64 << 10;
/// Blocks for data and the two places of the checkpoint, behind superblocks and journal.
const DATA: u64 = 7 * BUCKET;
const CHECKPOINTS: [u64; 2] = [20 * BUCKET, 21 * BUCKET];
const NO_DATA: u64 = u64::MAX;
/// Write-backs that a commit may need before there is room for it.
const RECLAIMS_MAX: usize = 20;
/// Sizes of commits' values.
const SIZES: [usize; 4] = [16, 16, 300, 3000];

/// A pool of so many disks, with so many copies of each entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) disks: usize,
    pub(crate) copies: u8,
}

/// Disks of a new pool.
pub(crate) fn formatted(shape: Shape) -> Vec<Image> {
    let world = World::new(99);
    let disks: Vec<_> = (0..shape.disks).map(|_| world.disk(DISK, DiskConfig::default())).collect();
    let options = FormatOptions {
        bucket_bytes: BUCKET,
        node_bytes: 32 << 10,
        journal_replicas: shape.copies,
        metadata_replicas: shape.copies,
        journal_bytes: 4 * BUCKET,
        ..FormatOptions::default()
    };
    world.run(async { format(&world.platform(), &blocks(&disks), &options).await.unwrap() });
    disks.iter().map(|d| d.durable_image()).collect()
}

pub(crate) fn blocks(disks: &[Rc<SimDisk>]) -> Vec<Rc<dyn BlockDevice>> {
    disks.iter().map(|d| d.clone() as Rc<dyn BlockDevice>).collect()
}

pub(crate) type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

pub(crate) fn boxed<'a>(task: impl Future<Output = ()> + 'a) -> Task<'a> {
    Box::pin(task)
}

/// Runs all tasks until the last is done.
pub(crate) async fn all(mut tasks: Vec<Task<'_>>) {
    poll_fn(|cx| {
        tasks.retain_mut(|task| task.as_mut().poll(cx).is_pending());
        if tasks.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await
}

/// The pool, open.
pub(crate) struct Toy {
    pub(crate) pool: Superblocks,
    pub(crate) journal: Rc<Journal>,
    pub(crate) report: Report,
    /// Where commit `n`'s data is, at `n - 1`.
    commits: RefCell<Vec<u64>>,
    next_data: Cell<u64>,
    pins: RefCell<Vec<journal::Pin>>,
    root: RefCell<Option<journal::Pin>>,
    place: Cell<usize>,
    checkpointed: Cell<Seq>,
    writing_back: Rc<Semaphore>,
    clock: Rc<dyn Clock>,
    /// All commits' size from now on.
    pub(crate) size: Cell<Option<usize>>,
}

fn pattern(data: u64) -> Buf {
    let mut buf = Buf::zeroed(4096).unwrap();
    buf.fill(data as u8 ^ 0x5A);
    buf[..8].copy_from_slice(&data.to_le_bytes());
    buf
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |h: u64, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_le_bytes(*b))
}

impl Toy {
    pub(crate) async fn mount(world: &World, disks: &[Rc<SimDisk>]) -> Result<Toy, RecoverError> {
        Toy::mount_with(world, disks, Options::default(), Completeness::Complete).await
    }

    /// Opens the pool, recovers, and checks that what was recovered is whole.
    pub(crate) async fn mount_with(
        world: &World,
        disks: &[Rc<SimDisk>],
        options: Options,
        completeness: Completeness,
    ) -> Result<Toy, RecoverError> {
        let platform = world.platform();
        let pool = Superblocks::open(&platform, &blocks(disks), completeness).await.unwrap();
        let history = read_history(pool.devices(), &pool.current()).await?;
        pool.begin_mount().await.unwrap();
        let (journal, kept) =
            Journal::start(&platform, pool.devices(), &pool.current(), &history, options).await?;
        let mut commits = Vec::new();
        let mut root = None;
        let mut place = 1;
        if let Some((seq, item)) = history.roots().first() {
            place = item.value[0] as usize;
            let device = pool.devices().healthy().next().unwrap();
            let buf = Buf::zeroed(4096).unwrap();
            let (buf, result) = pool.devices().read(device, CHECKPOINTS[place], buf).await;
            result.unwrap();
            assert_eq!(word(item.value, 8), checksum(&buf), "a durable root points at a durable checkpoint");
            commits = (0..word(&buf, 0) as usize).map(|n| word(&buf, 8 + 8 * n)).collect();
            root = Some(journal.pin(*seq));
        }
        let mut last = commits.len() as u64;
        for (_, item) in history.items().filter(|(_, item)| item.kind == ItemKind::Put) {
            match item.pos.offset {
                0 => last = last.max(word(item.value, 0)),
                n if n as usize <= commits.len() => {
                    assert_eq!(commits[n as usize - 1], word(item.value, 8), "commit {n} is what it was");
                }
                n => {
                    assert_eq!(
                        n as usize,
                        commits.len() + 1,
                        "commits are recovered in order, without a gap"
                    );
                    assert_eq!(word(item.value, 0), n);
                    commits.push(word(item.value, 8));
                }
            }
        }
        assert_eq!(last as usize, commits.len(), "a commit is recovered with all its keys or not at all");
        let next_data = commits.iter().filter(|d| **d != NO_DATA).max().map_or(0, |d| d + 1);
        let toy = Toy {
            pool,
            journal,
            report: history.report,
            commits: RefCell::new(commits),
            next_data: Cell::new(next_data),
            pins: RefCell::new(vec![kept]),
            root: RefCell::new(root),
            place: Cell::new(place),
            checkpointed: Cell::new(Seq::ZERO),
            writing_back: Semaphore::new(1),
            clock: platform.clock,
            size: Cell::new(None),
        };
        let commits = toy.commits.borrow().clone();
        for data in commits.into_iter().filter(|d| *d != NO_DATA) {
            let (device, offset) = toy.data_place(data);
            if toy.pool.devices().info(device).is_some() {
                let (buf, result) = toy.pool.devices().read(device, offset, Buf::zeroed(4096).unwrap()).await;
                result.unwrap();
                assert!(
                    buf[..] == pattern(data)[..],
                    "data {data} was durable before the commit that refers to it"
                );
            }
        }
        Ok(toy)
    }

    /// Commits so far.
    pub(crate) fn count(&self) -> u64 {
        self.commits.borrow().len() as u64
    }

    fn data_place(&self, data: u64) -> (u8, u64) {
        let disks = self.pool.current().members.len() as u64;
        assert!(data / disks < 12 * BUCKET / 4096, "the toy's data area is large enough");
        ((data % disks) as u8, DATA + data / disks * 4096)
    }

    /// One commit without data; its number.
    pub(crate) async fn commit(&self) -> Result<(u64, Seq), String> {
        self.commit_with(NO_DATA, Deps::default()).await
    }

    /// One commit that refers to data written for it.
    pub(crate) async fn commit_data(&self) -> Result<(u64, Seq), String> {
        let data = self.next_data.get();
        self.next_data.set(data + 1);
        let (device, offset) = self.data_place(data);
        let (_, result) = self.pool.devices().write(device, offset, pattern(data), Fua::No).await;
        let dep = result.map_err(|e| e.to_string())?;
        self.commit_with(data, [dep].into_iter().collect()).await
    }

    async fn commit_with(&self, data: u64, deps: Deps) -> Result<(u64, Seq), String> {
        let size = self.size.get().unwrap_or(SIZES[self.count() as usize % SIZES.len()]);
        let room = item_bytes(SIZES[3]) + item_bytes(8);
        let mut reservation = self.room(room).await?;
        // From here on synchronous: the commit point.
        let n = self.count() + 1;
        let mut value = vec![n as u8; size];
        value[..8].copy_from_slice(&n.to_le_bytes());
        value[8..16].copy_from_slice(&data.to_le_bytes());
        deps.iter().for_each(|dep| self.journal.add_dependency(dep));
        let seq = self.journal.append(
            &mut reservation,
            &[
                Item::put(Tree::Inodes, 0, Pos::new(0, n, 0), &value),
                Item::put(Tree::Inodes, 0, Pos::new(0, 0, 0), &n.to_le_bytes()),
            ],
        );
        self.pins.borrow_mut().push(self.journal.pin(seq));
        self.commits.borrow_mut().push(data);
        Ok((n, seq))
    }

    /// Room for a commit; while there is none, does what reclaim would do.
    async fn room(&self, bytes: usize) -> Result<Reservation, String> {
        let mut reserve = pin!(self.journal.reserve(Class::Normal, bytes));
        for _ in 0..RECLAIMS_MAX {
            let now = poll_fn(|cx| {
                Poll::Ready(match reserve.as_mut().poll(cx) {
                    Poll::Ready(result) => Some(result),
                    Poll::Pending => None,
                })
            });
            if let Some(result) = now.await {
                return result.map_err(|e| e.to_string());
            }
            let seq = self.write_back().await?;
            self.sync(seq).await?;
            self.clock.sleep(Duration::from_millis(20)).await;
        }
        panic!("no room after {RECLAIMS_MAX} write-backs: {}", self.journal);
    }

    pub(crate) async fn sync(&self, seq: Seq) -> Result<(), String> {
        let durable = self.journal.durable(seq).await.map_err(|e| e.to_string())?;
        assert!(durable.seq() >= seq && self.journal.flushed_seq() >= seq, "an ack is true");
        Ok(())
    }

    pub(crate) async fn sync_all(&self) {
        self.journal.durable(Seq(u64::MAX)).await.unwrap();
    }

    /// Says that all commits so far are written back, without writing anything.
    pub(crate) fn let_go(&self) {
        self.pins.take().into_iter().for_each(journal::Pin::release);
    }

    /// The program dies: what was submitted completes, nothing more comes.
    pub(crate) async fn kill(&self, disks: &[Rc<SimDisk>]) {
        let devices = self.pool.devices();
        devices.present().for_each(|d| devices.fail(d, "killed"));
        while disks.iter().any(|d| d.in_flight() > 0) {
            self.clock.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Writes all commits so far to the checkpoint's other place and publishes it; lets their entries go.
    pub(crate) async fn write_back(&self) -> Result<Seq, String> {
        let _turn = self.writing_back.take(1).await;
        // The place of the checkpoint before the last is free once the last is durable.
        self.sync(self.checkpointed.get()).await?;
        let place = 1 - self.place.get();
        let mut buf = Buf::zeroed(4096).unwrap();
        let pins = self.pins.take();
        {
            let commits = self.commits.borrow();
            buf[..8].copy_from_slice(&(commits.len() as u64).to_le_bytes());
            for (n, data) in commits.iter().enumerate() {
                buf[8 + 8 * n..][..8].copy_from_slice(&data.to_le_bytes());
            }
        }
        let sum = checksum(&buf);
        let mut deps = Deps::default();
        let healthy: Vec<u8> = self.pool.devices().healthy().collect();
        for device in healthy {
            let copy = Buf::copy_of(&buf).unwrap();
            let (_, result) = self.pool.devices().write(device, CHECKPOINTS[place], copy, Fua::No).await;
            deps.add(result.map_err(|e| e.to_string())?);
        }
        let mut pointer = [0u8; 16];
        pointer[0] = place as u8;
        pointer[8..].copy_from_slice(&sum.to_le_bytes());
        let mut reserve = pin!(self.journal.reserve(Class::Interior, item_bytes(16)));
        let mut deadline = self.clock.sleep(Duration::from_secs(100));
        let reservation = poll_fn(|cx| match reserve.as_mut().poll(cx) {
            Poll::Pending if deadline.as_mut().poll(cx).is_ready() => Poll::Ready(None),
            other => other.map(Some),
        });
        let Some(reservation) = reservation.await else {
            panic!("a write-back waits for ever: {}", self.journal);
        };
        let mut reservation = reservation.map_err(|e| e.to_string())?;
        deps.iter().for_each(|dep| self.journal.add_dependency(dep));
        let seq = self.journal.append(&mut reservation, &[Item::root(Tree::Inodes, 0, &pointer)]);
        let old = self.root.replace(Some(self.journal.pin(seq)));
        pins.into_iter().chain(old).for_each(|pin| pin.release_after(seq));
        self.place.set(place);
        self.checkpointed.set(seq);
        Ok(seq)
    }
}
