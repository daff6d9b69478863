//! How a repair writes: where to, by which commits, and where objects go whose name is lost.

use super::salvage;
use super::topology::is_usable;
use super::walk::{Found, Keys};
use super::{Check, FindingKind};
use crate::engine::commit::Proposal;
use crate::engine::{Mode, State};
use crate::journal::Class as JournalClass;
use crate::namespace::{Names, Pending, PendingAttrs, pos};
use crate::space::Geometry;
use crate::space::buckets::Spare;
use crate::space::triggers::{self, Reference};
use crate::tx::{Class, Value};
use crate::vfs::FsResult;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::vec::Vec;
use moraine_format::inode::{Inode, ROOT_INODE};
use moraine_format::key::ROOT_SNAPSHOT;
use moraine_format::space::{Alloc, BucketKind, DeviceUsage, bucket_pos};
use moraine_format::{Pos, Tree};

/// Buckets of a device that a repair may fill, at most.
const SPARE_MAX: usize = 1 << 14;
/// Keys changed in one commit, at most.
const COMMIT_KEYS: usize = 64;
/// Bytes changed in one commit, about, at most.
const COMMIT_BYTES: usize = 32 << 10;
/// The part of what the journal holds that one commit may take: a small journal must move between commits.
const COMMIT_SHARE: usize = 8;

/// The end of all inode numbers: each mount uses a few, so that none is ever near it.
const NUMBER_END: u64 = 1 << 62;

/// Classes of buckets that a repair may fill.
const RANKS: usize = 4;

/// How late a bucket is filled that nothing readable refers to: `free` by its alloc key or not, with an image of a node or
/// of what one refers to in it or not. An image may be all that is left of something lost; an alloc key may be wrong.
fn rank(free: bool, image: bool) -> usize {
    2 * usize::from(image) + usize::from(!free)
}

/// A set of buckets, of all devices.
pub(super) struct BucketSet(Vec<Vec<u64>>);

impl BucketSet {
    pub(super) fn new(geometry: &[Geometry]) -> BucketSet {
        BucketSet(geometry.iter().map(|g| alloc::vec![0u64; (g.buckets / 64 + 1) as usize]).collect())
    }

    /// Adds the bucket that holds a byte of a device; it must have one.
    pub(super) fn insert(&mut self, geometry: &[Geometry], device: u8, offset: u64) {
        let bucket = offset / geometry[device as usize].bucket_bytes;
        self.0[device as usize][(bucket / 64) as usize] |= 1 << (bucket % 64);
    }

    fn contains(&self, device: u8, bucket: u64) -> bool {
        self.0[device as usize][(bucket / 64) as usize] >> (bucket % 64) & 1 == 1
    }
}

/// New values of keys; `None` removes one.
pub(super) type Changes = Vec<((Tree, Pos), Option<Value>)>;

/// A repair knows nothing but what the trees say.
struct Nothing;

impl PendingAttrs for Nothing {
    fn pending(&self, _: u64) -> Option<Pending> {
        None
    }
}

impl Check<'_> {
    /// Begins to write, if that has not begun: the buckets nobody refers to are looked up first.
    pub(super) async fn begin_mending(&mut self) -> FsResult<()> {
        if self.engine.inner.mode.get() == Mode::Checking {
            let spare = self.spare().await?;
            self.engine.begin_mending(spare).await?;
        }
        if self.whole && !self.writing_back {
            self.engine.begin_write_back();
            self.writing_back = true;
        }
        Ok(())
    }

    /// Changes keys, in several commits if there are many.
    pub(super) async fn change(&mut self, changes: &[((Tree, Pos), Option<Value>)]) -> FsResult<()> {
        if changes.is_empty() || !self.repairs() {
            return Ok(());
        }
        self.begin_mending().await?;
        let bytes_max = COMMIT_BYTES.min(self.engine.inner.journal.capacity_bytes() as usize / COMMIT_SHARE);
        // The journal moves only while nodes are written back.
        self.engine.resume();
        let mut done = Ok(());
        let mut rest = changes;
        while !rest.is_empty() && done.is_ok() {
            let mut bytes = 0;
            let fits = |((_, _), value): &&((Tree, Pos), Option<Value>)| {
                bytes += 64 + value.as_ref().map_or(0, |v| v.len());
                bytes <= bytes_max
            };
            let count = rest.iter().take(COMMIT_KEYS).take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            rest = later;
            let propose = |_: &State| {
                let keys = now.iter().map(|((tree, pos), value)| ((*tree, 0, *pos), value.clone()));
                Ok(Some((Proposal { updates: keys.collect(), ..Proposal::default() }, ())))
            };
            let commit = self.engine.inner.commit(JournalClass::Delete, propose, |_, _, _, _| ()).await;
            done = commit.map(|_| ());
        }
        self.engine.pause().await;
        done
    }

    /// Changes one key.
    pub(super) async fn set(&mut self, tree: Tree, at: Pos, value: Option<Vec<u8>>) -> FsResult<()> {
        self.change(&[((tree, at), value.map(Value::from))]).await
    }

    /// Runs a body of the namespace's as a transaction of the repair.
    pub(super) async fn rename_by<T>(
        &mut self,
        mut body: impl AsyncFnMut(&mut Names<'_>) -> FsResult<T>,
    ) -> FsResult<T> {
        self.begin_mending().await?;
        let now = self.engine.platform().clock.wall();
        let boot_epoch = self.engine.pool().boot_epoch;
        self.engine.resume();
        let done = self
            .engine
            .transact(Class::Delete, async |tx| {
                body(&mut Names { tx, now, pending: &Nothing, boot_epoch }).await
            })
            .await;
        self.engine.pause().await;
        done.map(|(value, _)| value)
    }

    /// The record of an inode; none if it is missing, unknown or makes no sense.
    pub(super) async fn inode(&mut self, number: u64) -> FsResult<Option<Inode>> {
        let value = self.get(Tree::Inodes, pos(0, number)).await?.value();
        Ok(value.and_then(|value| Inode::parse(&value).ok()))
    }

    /// Changes the record of an inode.
    pub(super) async fn edit_inode(&mut self, number: u64, edit: impl FnOnce(&mut Inode)) -> FsResult<()> {
        let Some(mut inode) = self.inode(number).await? else { return Ok(()) };
        edit(&mut inode);
        self.set(Tree::Inodes, pos(0, number), Some(inode.to_value())).await
    }

    /// Calls `visit` with everything that the keys and roots of a pool refer to.
    pub(super) async fn each_reference(
        &mut self,
        mut visit: impl FnMut(&mut Check<'_>, &Reference),
    ) -> FsResult<()> {
        let inner = self.engine.inner.clone();
        let node_bytes = inner.state.borrow().table.node_bytes as u32;
        let mut found: Vec<Reference> = Vec::new();
        for tree in Tree::ALL {
            let (pointer, top) = {
                let state = inner.state.borrow();
                let root = state.table.root(*tree);
                (root.pointer.clone(), root.level)
            };
            if let Some(pointer) = &pointer {
                triggers::root_references(*tree, pointer, node_bytes, &mut found);
            }
            let lowest = if *tree == Tree::Extents { 0 } else { 1 };
            for level in lowest..=top {
                let mut keys = Keys::all(*tree, level);
                while let Some((at, value)) = keys.next(self).await? {
                    // What makes no sense refers to nothing; the passes before have reported it.
                    let _ = triggers::references((*tree, level, at), &value, node_bytes, &mut found);
                    found.drain(..).for_each(|r| visit(self, &r));
                }
            }
            found.drain(..).for_each(|r| visit(self, &r));
        }
        Ok(())
    }

    /// Buckets that nothing refers to, those first that are missed least should that not be the whole truth: while parts
    /// of trees are lost, what they referred to and what is left of them looks like nobody's.
    async fn spare(&mut self) -> FsResult<Spare> {
        let inner = self.engine.inner.clone();
        let mut used = BucketSet::new(&inner.geometry);
        self.each_reference(|check, r| {
            if is_usable(check, r.device, r.offset, r.len as u64) {
                used.insert(&check.engine.inner.geometry, r.device, r.offset);
            }
        })
        .await?;
        let images = if self.whole { None } else { Some(salvage::images(self).await?) };
        let mut spare = Spare::new();
        for (device, ranges) in inner.usable_ranges() {
            let mut ranked: [VecDeque<(u64, u32)>; RANKS] = Default::default();
            for bucket in ranges.into_iter().flat_map(|(first, end)| first..end) {
                if used.contains(device, bucket) {
                    continue;
                }
                let alloc = match self.look(Tree::Alloc, bucket_pos(device, bucket)).await? {
                    Found::Value(value) => Alloc::parse(&value).ok(),
                    Found::Missing => Some(Alloc::UNUSED),
                    Found::Unknown => None,
                };
                let free = alloc.is_some_and(|a| a.kind == BucketKind::Free);
                let image = images.as_ref().is_some_and(|i| i.contains(device, bucket));
                let rank = &mut ranked[rank(free, image)];
                if rank.len() < SPARE_MAX {
                    rank.push_back((bucket, alloc.map_or(0, |a| a.generation)));
                }
                if ranked[0].len() == SPARE_MAX {
                    break;
                }
            }
            spare.push(ranked.into_iter().flatten().take(SPARE_MAX).collect());
        }
        Ok(spare)
    }

    /// Bytes of nodes and content, as the counters say.
    pub(super) async fn used_bytes(&mut self) -> FsResult<u64> {
        let mut total = 0u64;
        for device in 0..self.engine.inner.geometry.len() as u8 {
            let value = self.look(Tree::Accounting, DeviceUsage::pos(device)).await?.value();
            let usage = value.and_then(|v| DeviceUsage::parse(&v).ok()).unwrap_or_default();
            let bytes = usage.btree_bytes.max(0).saturating_add(usage.data_bytes.max(0));
            total = total.saturating_add(bytes as u64);
        }
        Ok(total)
    }

    /// Reports a key whose value makes no sense, or that is where none can be, and removes it.
    pub(super) async fn drop_key(
        &mut self,
        kind: FindingKind,
        tree: Tree,
        at: Pos,
        why: &str,
    ) -> FsResult<()> {
        self.found(kind, format!("{} {at}: {why}", tree.name()));
        self.set(tree, at, None).await
    }
}

/// Whether a key of a versioned tree is in the only view there is.
pub(super) fn is_in_view(at: Pos) -> bool {
    at.snapshot == ROOT_SNAPSHOT
}

/// Whether an inode can have this number.
pub(super) fn is_number(number: u64) -> bool {
    (ROOT_INODE..NUMBER_END).contains(&number)
}
