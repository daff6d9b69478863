//! Recovery: from superblocks and journal to a running engine, and back.

use super::{Engine, Inner, Mode, State, cleaner};
use crate::btree::{self, NodeBuffers, Pending, Table};
use crate::journal::{
    self, Class as JournalClass, History, Item, ItemKind, Journal, JournalError, RecoverError,
};
use crate::space::{Buckets, Geometry};
use crate::superblock::Superblocks;
use crate::vfs::{FsError, FsResult, PoolInfo};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;
use moraine_format::node::NodePointer;
use moraine_format::space::{DeviceUsage, bucket_pos, free_range_value};
use moraine_format::superblock::Member;
use moraine_format::{FormatError, Pos, Tree};
use moraine_platform::sync::{Event, Semaphore};
use moraine_platform::{Platform, info};

/// The most keys a node may have when nothing else is asked for: more than fit.
const KEYS_MAX: usize = 1 << 20;
/// The highest level of a root: with the smallest fan-out there is, more keys than fit any pool.
const LEVEL_MAX: u8 = 15;
/// Node ids handed out in one mount at most: the rest of the number is the mount's epoch, so none is ever used twice.
const NODE_IDS_PER_MOUNT_BITS: u32 = 36;

/// Memory of an engine, and bounds that tests make small.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes for nodes in memory. Dirty ones may exceed it for a while.
    pub node_cache_bytes: usize,
    /// The most keys of a node; tests force deep trees with it. At least [`NODE_KEYS_MIN`].
    pub node_keys_max: usize,
    /// Bounds of the journal.
    pub journal: journal::Options,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { node_cache_bytes: 20 << 20, node_keys_max: KEYS_MAX, journal: journal::Options::default() }
    }
}

/// The fewest keys that nodes must be allowed to hold.
///
/// Writing a node to a new place changes about eight keys of other trees (its parent's, two buckets', two backpointers,
/// two places in the list of fragmented buckets, a counter), each of which makes a leaf dirty and in turn the nodes above
/// it. A node of 32 KiB takes eight small writes before it needs a new place. So write-back gets ahead of itself only if
/// those keys share leaves: with 12 keys a leaf they do, with four they do not, and cleaning one node dirties more than one.
pub const NODE_KEYS_MIN: usize = 12;

/// Why what the journal or a tree holds cannot be mounted.
#[derive(Debug)]
pub enum RunError {
    /// Nodes of so few keys cannot be written back faster than that makes others dirty.
    NodeKeys(usize),
    /// The journal cannot be recovered.
    Recover(RecoverError),
    /// A journal item or a key that mounting needs makes no sense.
    Format(Tree, FormatError),
    /// Something could not be read or committed.
    Fs(FsError),
}

impl core::fmt::Display for RunError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            RunError::NodeKeys(keys) => write!(f, "{keys} keys a node, at least {NODE_KEYS_MIN} are needed"),
            RunError::Recover(e) => write!(f, "journal: {e}"),
            RunError::Format(tree, e) => write!(f, "tree {}: {e}: run fsck", tree.name()),
            RunError::Fs(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for RunError {}

impl From<FsError> for RunError {
    fn from(e: FsError) -> RunError {
        RunError::Fs(e)
    }
}

impl Geometry {
    fn of(member: &Member) -> Geometry {
        let journal: u64 = member.journal.iter().map(|r| r.count).sum();
        Geometry {
            bucket_bytes: member.bucket_bytes as u64,
            buckets: member.first_bucket + member.bucket_count,
            usable: member.bucket_count - journal,
        }
    }
}

/// The buckets of a member that can hold data and nodes.
fn usable_ranges(member: &Member) -> Vec<Range<u64>> {
    let end = member.first_bucket + member.bucket_count;
    let mut journal: Vec<_> = member.journal.iter().map(|r| r.first..r.first + r.count).collect();
    journal.sort_by_key(|r| r.start);
    let mut from = member.first_bucket;
    let mut ranges = Vec::new();
    for taken in journal.into_iter().chain(core::iter::once(end..end)) {
        if from < taken.start {
            ranges.push(from..taken.start);
        }
        from = taken.end;
    }
    ranges
}

impl Engine {
    /// Starts the engine of a pool. Its superblock is on media with this mount's epoch.
    pub(crate) async fn run(
        platform: &Platform,
        superblocks: Superblocks,
        budget: &Budget,
        mode: Mode,
    ) -> Result<Engine, RunError> {
        let began = platform.clock.now();
        if budget.node_keys_max < NODE_KEYS_MIN {
            return Err(RunError::NodeKeys(budget.node_keys_max));
        }
        let devices = &superblocks.devices().clone();
        let current = superblocks.current();
        let (history, rot) = match journal::read_history(devices, &current).await {
            Err(e @ RecoverError::Rot { .. }) if mode == Mode::Checking => {
                let left = journal::read_what_is_left(devices, &current).await.map_err(RunError::Recover)?;
                (left, Some(alloc::format!("{e}")))
            }
            history => (history.map_err(RunError::Recover)?, None),
        };
        if history.epoch >= superblocks.current().mount_epoch {
            // The superblock is older than the journal: what is made in this mount must not be taken for that mount's.
            let raised = superblocks.begin_mount_above(history.epoch).await;
            raised.map_err(|_| RunError::Fs(FsError::DeviceWrite))?;
        }
        let superblock = &superblocks.current();
        let (journal, kept) = Journal::start(platform, devices, superblock, &history, budget.journal)
            .await
            .map_err(RunError::Recover)?;
        let next_node = superblock.mount_epoch << NODE_IDS_PER_MOUNT_BITS;
        let node_bytes = superblock.node_bytes as usize;
        let mut table =
            Table::new(journal.clone(), node_bytes, budget.node_keys_max, budget.node_cache_bytes, next_node);
        let mut lost_roots = Vec::new();
        if rot.is_some() {
            // What is gone may have told newer roots: nodes are looked for, and the newest count.
            lost_roots.extend(Tree::ALL.iter().map(|t| (*t, FormatError::Short)));
        }
        let items = lay_over(&mut table, &history, &mut lost_roots)?;
        if mode == Mode::Serving
            && let Some((tree, why)) = lost_roots.first()
        {
            return Err(RunError::Format(*tree, *why));
        }
        if !table.overlay.is_empty() {
            table.overlay_pin = Some(journal.pin(history.tail()));
        }
        kept.release();
        let geometry: Vec<Geometry> = superblock.members.iter().map(Geometry::of).collect();
        let newest = Cell::new(history.end());
        let info = PoolInfo {
            pool_id: superblock.pool_id,
            handle_key: superblock.handle_key,
            boot_epoch: superblock.mount_epoch,
        };
        let inner = Rc::new(Inner {
            platform: platform.clone(),
            info,
            superblocks,
            pool_tag: superblock.pool_tag(),
            epoch: superblock.mount_epoch,
            usable: superblock.members.iter().map(usable_ranges).collect(),
            state: RefCell::new(State { table, buckets: Buckets::new(&geometry, node_bytes as u64) }),
            geometry,
            devices: devices.clone(),
            journal,
            newest,
            collecting: Semaphore::new(1),
            uncollectable: RefCell::default(),
            quarantined: RefCell::default(),
            freeing: Cell::new(0),
            failed_write_backs: Cell::new(0),
            node_buffers: NodeBuffers::new(node_bytes).map_err(|_| RunError::Fs(FsError::NoMemory))?,
            loading: RefCell::default(),
            written_back: Event::new(),
            cleaner_wanted: Event::new(),
            memory_short: Rc::default(),
            buckets_changed: Event::new(),
            mode: Cell::new(mode),
            lost_roots: RefCell::new(lost_roots.into_iter().map(|(tree, _)| tree).collect()),
            recovered: if rot.is_some() { journal::Seq(u64::MAX) } else { history.end() },
            rot,
            stopped: Cell::new(None),
            closing: Cell::new(false),
            paused: Cell::new(mode != Mode::Serving),
            busy: Cell::new(0),
            background: Cell::new(0),
            background_ended: Event::new(),
        });
        let weak = Rc::downgrade(&inner);
        inner.journal.on_failure(move |e: JournalError| {
            if let Some(inner) = weak.upgrade() {
                inner.stop(&alloc::format!("{e}"));
            }
        });
        if mode == Mode::Serving {
            inner.read_usage().await?;
            cleaner::start(&inner);
        }
        let took = platform.clock.now().since(began);
        info!(
            "fs",
            "mounted: {} journal entries with {items} items replayed up to seq {} in {} ms",
            history.entries.len(),
            history.end(),
            took.as_millis()
        );
        Ok(Engine { inner })
    }

    /// Writes the first keys of a new pool: its free space.
    pub(crate) async fn initialise(&self) -> FsResult<()> {
        let mut updates = BTreeMap::new();
        for (device, ranges) in self.inner.usable.iter().enumerate() {
            for r in ranges {
                let key = (Tree::Freespace, 0, bucket_pos(device as u8, r.end - 1));
                updates.insert(key, Some(free_range_value(r.start).as_slice().into()));
            }
        }
        let propose = |_: &State| {
            let proposal = super::commit::Proposal { updates: updates.clone(), ..Default::default() };
            Ok(Some((proposal, ())))
        };
        self.inner.commit(JournalClass::Interior, propose, |_, _, _, _| ()).await?;
        Ok(())
    }

    /// Ends all background work, writes everything back and makes it durable. The engine takes no more commits.
    pub(crate) async fn halt(&self) -> FsResult<()> {
        let inner = &self.inner;
        inner.closing.set(true);
        inner.cleaner_wanted.notify();
        inner.buckets_changed.notify();
        inner.background_ended.until(|| (inner.background.get() == 0).then_some(())).await;
        let result = match inner.check_running() {
            Ok(()) => cleaner::clean_all(inner).await,
            Err(e) => Err(e),
        };
        inner.stopped.set(Some(FsError::ShuttingDown));
        drop(inner.quarantined.take());
        let durable = inner.journal.publish_tail().await.map_err(super::journal_error);
        let ended = inner.journal.shut_down().await.map(|_| ()).map_err(super::journal_error);
        result.and(durable).and(ended)
    }
}

/// Puts what the journal holds over the trees; returns how many keys.
fn lay_over(
    table: &mut Table,
    history: &History,
    lost: &mut Vec<(Tree, FormatError)>,
) -> Result<usize, RunError> {
    for (seq, item) in history.roots() {
        let Some(tree) = Tree::from_id(item.tree) else { continue };
        if lost.iter().any(|(t, _)| *t == tree) {
            continue;
        }
        let pointer = match NodePointer::parse(item.value) {
            Ok(pointer) if pointer.min == Pos::MIN && pointer.level <= LEVEL_MAX => pointer,
            Ok(_) => {
                lost.push((tree, FormatError::Value));
                continue;
            }
            Err(e) => {
                lost.push((tree, e));
                continue;
            }
        };
        table.set_recovered_root(tree, pointer, seq);
    }
    for (seq, item) in history.items() {
        let Item { kind, tree, level, pos, value, .. } = item;
        let value = match kind {
            ItemKind::Put => Some(value.into()),
            ItemKind::Delete => None,
            _ => continue,
        };
        let Some(tree) = Tree::from_id(tree) else { continue };
        table.overlay.insert((tree, level, pos), Pending { value, seq });
    }
    // What was said of levels that a tree no longer has is history.
    let mut tops: Vec<u8> = Tree::ALL.iter().map(|t| table.root(*t).level).collect();
    // Of a lost root only what was said of its tree tells the level.
    for (tree, _) in lost.iter() {
        let levels = table.overlay.range((*tree, 0, Pos::MIN)..=(*tree, LEVEL_MAX, Pos::MAX));
        let top = levels.map(|((_, level, _), _)| *level).max().unwrap_or(0);
        table.root_mut(*tree).level = top;
        tops[*tree as usize] = top;
    }
    table.overlay.retain(|(tree, level, _), _| *level <= tops[*tree as usize]);
    let items = table.overlay.len();
    // What is known of a lost tree waits for what is found of it: the newer counts.
    for tree in Tree::ALL.iter().filter(|t| lost.iter().all(|(l, _)| l != *t)) {
        table.fold_resident_root(*tree);
    }
    Ok(items)
}

impl Inner {
    /// Reads the counters that allocation goes by.
    async fn read_usage(&self) -> Result<(), RunError> {
        for device in 0..self.geometry.len() as u8 {
            let pos: Pos = DeviceUsage::pos(device);
            loop {
                let miss = {
                    let State { table, buckets } = &mut *self.state.borrow_mut();
                    match table.get(Tree::Accounting, 0, pos) {
                        Ok(value) => {
                            let usage = value.map(DeviceUsage::parse).transpose();
                            let usage = usage.map_err(|e| RunError::Format(Tree::Accounting, e))?;
                            buckets.set_usage(device, usage.unwrap_or_default());
                            break;
                        }
                        Err(miss) => miss,
                    }
                };
                btree::load(self, miss).await?;
            }
        }
        Ok(())
    }

    /// Whether a bucket can hold data and nodes: neither superblocks nor the journal.
    pub(crate) fn is_usable_bucket(&self, device: u8, bucket: u64) -> bool {
        self.usable.get(device as usize).is_some_and(|ranges| ranges.iter().any(|r| r.contains(&bucket)))
    }

    /// The buckets of each device that can hold data and nodes, as (first, end) ranges.
    pub(crate) fn usable_ranges(&self) -> Vec<(u8, Vec<(u64, u64)>)> {
        let of = |ranges: &Vec<Range<u64>>| ranges.iter().map(|r| (r.start, r.end)).collect();
        self.usable.iter().enumerate().map(|(device, ranges)| (device as u8, of(ranges))).collect()
    }
}
