//! The façade: every call of [`Vfs`] on top of namespace, extents and cache.

use super::{Filesystem, Inner};
use crate::cache::store::Which;
use crate::extent;
use crate::namespace::dir::LIST_CHUNK;
use crate::namespace::make::Made;
use crate::namespace::record::attr_of;
use crate::namespace::take::Taking;
use crate::namespace::{corrupt, inode_of, object};
use crate::tx::Class;
use crate::vfs::*;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use moraine_format::Tree;
use moraine_format::inode::{InodeKind, ROOT_INODE};
use moraine_format::space::PoolUsage;
use moraine_platform::{BLOCK_SIZE, Timestamp};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Extents looked at by one call of `segments`.
const SEGMENT_EXTENTS: usize = 256;
/// Inodes a pool can have, as far as anybody will count.
const INODES_MAX: u64 = 1 << 48;

impl Vfs for Filesystem {
    fn pool(&self) -> &PoolInfo {
        self.inner.engine.pool()
    }

    fn root(&self) -> ObjectId {
        object(ROOT_INODE)
    }

    fn write_verifier(&self) -> u64 {
        self.inner.verifier.get()
    }

    async fn durable(&self, seq: Seq) -> FsResult<()> {
        self.inner.make_durable(seq).await
    }

    async fn getattr(&self, object: ObjectId) -> FsResult<Attr> {
        let (inner, number) = self.enter(object)?;
        let (record, _) =
            inner.engine.transact(Class::Normal, async |tx| inner.names(tx).live(number).await).await?;
        Ok(inner.attr(number, &record))
    }

    async fn setattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        set: &SetAttr,
        guard: Option<Timestamp>,
    ) -> FsResult<Change<()>> {
        self.enter(object)?.0.setattr(caller, object, set, guard).await
    }

    async fn lookup(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<(ObjectId, Attr)> {
        let (inner, dir) = self.enter(dir)?;
        let ((number, record), _) = inner
            .engine
            .transact(Class::Normal, async |tx| inner.names(tx).lookup(caller, dir, name).await)
            .await?;
        Ok((object(number), inner.attr(number, &record)))
    }

    async fn readlink(&self, object: ObjectId) -> FsResult<(Vec<u8>, Attr)> {
        let (inner, number) = self.enter(object)?;
        let (record, _) =
            inner.engine.transact(Class::Normal, async |tx| inner.names(tx).live(number).await).await?;
        if record.kind != InodeKind::Symlink {
            return Err(FsError::Invalid);
        }
        Ok((record.target.to_vec(), inner.attr(number, &record)))
    }

    async fn read(&self, caller: &Caller, object: ObjectId, offset: u64, len: u32) -> FsResult<ReadData> {
        self.enter(object)?.0.read(caller, object, offset, len).await
    }

    async fn write(
        &self,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        data: WriteData,
        stability: Stability,
    ) -> FsResult<Change<Written>> {
        self.enter(object)?.0.write(caller, object, offset, data, stability).await
    }

    async fn commit(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<Written>> {
        self.enter(object)?.0.commit(object, offset, len).await
    }

    async fn punch(&self, caller: &Caller, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<()>> {
        self.enter(object)?.0.punch(caller, object, offset, len).await
    }

    async fn segments(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Vec<Segment>> {
        self.enter(object)?.0.segments(object, offset, len).await
    }

    async fn create(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        how: CreateMode,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
        let (inner, dir) = self.enter(dir)?;
        let fresh = inner.fresh();
        let (made, seq) = inner
            .engine
            .transact(Class::Normal, async |tx| {
                inner.names(tx).create(caller, dir, name, how, set, &fresh).await
            })
            .await?;
        if let (true, CreateMode::Unchecked, Some(size)) = (made.existed, how, set.size) {
            // Opening an existing file applies the size and nothing else.
            let only_size = SetAttr { size: Some(size), ..SetAttr::default() };
            let change = inner.setattr(caller, object(made.number), &only_size, None).await?;
            return Ok(made.dir.at(change.seq, (object(made.number), change.post)));
        }
        Ok(inner.made(made, seq))
    }

    async fn make(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        node: NewNode<'_>,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
        let (inner, dir) = self.enter(dir)?;
        let fresh = inner.fresh();
        let (made, seq) = inner
            .engine
            .transact(Class::Normal, async |tx| {
                inner.names(tx).make(caller, dir, name, &node, set, &fresh).await
            })
            .await?;
        Ok(inner.made(made, seq))
    }

    async fn remove(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>> {
        self.take(caller, dir, name, Taking::NonDirectory).await
    }

    async fn rmdir(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>> {
        self.take(caller, dir, name, Taking::EmptyDirectory).await
    }

    async fn rename(
        &self,
        caller: &Caller,
        from: (ObjectId, &[u8]),
        to: (ObjectId, &[u8]),
    ) -> FsResult<(Change<ObjectId>, Change<Option<ObjectId>>)> {
        let (inner, from_dir) = self.enter(from.0)?;
        let to_dir = inode_of(to.0)?;
        inner.write_back_before_replacing((from_dir, from.1), (to_dir, to.1)).await?;
        let (renamed, seq) = inner
            .engine
            .transact(Class::Normal, async |tx| {
                inner.names(tx).rename(caller, (from_dir, from.1), (to_dir, to.1)).await
            })
            .await?;
        let (number, record) = &renamed.source;
        if let Some(record) = record {
            inner.stamped(*number, (record, record), Seq(0), (), |_| ());
        }
        if let Some((number, gone)) = renamed.replaced {
            inner.lost_name(number, gone);
        }
        let replaced = renamed.replaced.map(|(number, _)| object(number));
        Ok((renamed.from.at(seq, object(*number)), renamed.to.at(seq, replaced)))
    }

    async fn link(
        &self,
        caller: &Caller,
        target: ObjectId,
        dir: ObjectId,
        name: &[u8],
    ) -> FsResult<Change<Attr>> {
        let (inner, number) = self.enter(target)?;
        let dir = inode_of(dir)?;
        let ((change, record), seq) = inner
            .engine
            .transact(Class::Normal, async |tx| inner.names(tx).link(caller, number, dir, name).await)
            .await?;
        let post = inner.stamped(number, (&record, &record), Seq(0), (), |_| ()).post;
        Ok(change.at(seq, post))
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: ObjectId,
        cookie: u64,
        limit: usize,
        attributes: WithAttributes,
    ) -> FsResult<Listing> {
        let (inner, dir) = self.enter(dir)?;
        let mut entries: Vec<DirEntry> = Vec::new();
        let mut cookie = cookie;
        loop {
            let left = (limit - entries.len()).min(LIST_CHUNK);
            let (chunk, _) = inner
                .engine
                .transact(Class::Normal, async |tx| {
                    inner.names(tx).list(caller, dir, cookie, left, attributes).await
                })
                .await?;
            cookie = chunk.entries.last().map_or(cookie, |e| e.cookie);
            entries.try_reserve(chunk.entries.len()).map_err(|_| FsError::NoMemory)?;
            entries.extend(chunk.entries);
            if chunk.eof || entries.len() >= limit {
                return Ok(Listing { entries, eof: chunk.eof, attr: chunk.attr });
            }
        }
    }

    fn memory_is_short(&self) {
        self.inner.give_memory_back();
    }

    async fn statfs(&self) -> FsResult<FsStat> {
        // The counter that every commit keeps: what waits to be reaped counts until it is.
        let (usage, _) = self
            .inner
            .engine
            .transact(Class::Normal, async |tx| {
                let Some(value) = tx.get(Tree::Accounting, PoolUsage::pos()).await? else {
                    return Ok(PoolUsage::default());
                };
                PoolUsage::parse(&value).map_err(|e| corrupt(Tree::Accounting, PoolUsage::pos(), e))
            })
            .await?;
        let space = self.inner.engine.space();
        let inodes_used = u64::try_from(usage.inodes).unwrap_or(0).min(INODES_MAX);
        Ok(FsStat {
            total: space.total,
            free: space.free,
            available: space.available,
            inodes_used,
            inodes_free: INODES_MAX - inodes_used,
        })
    }

    async fn getxattr(&self, caller: &Caller, object: ObjectId, name: &[u8]) -> FsResult<Vec<u8>> {
        let (inner, number) = self.enter(object)?;
        let (value, _) = inner
            .engine
            .transact(Class::Normal, async |tx| inner.names(tx).getxattr(caller, number, name).await)
            .await?;
        Ok(value)
    }

    async fn setxattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        name: &[u8],
        value: &[u8],
        how: XattrMode,
    ) -> FsResult<Change<()>> {
        let (inner, number) = self.enter(object)?;
        let ((old, new), seq) = inner
            .engine
            .transact(Class::Normal, async |tx| {
                let mut names = inner.names(tx);
                let old = names.live(number).await?;
                Ok((old, names.setxattr(caller, number, name, value, how).await?))
            })
            .await?;
        Ok(inner.stamped(number, (&old, &new), seq, (), |_| ()))
    }

    async fn removexattr(&self, caller: &Caller, object: ObjectId, name: &[u8]) -> FsResult<Change<()>> {
        let (inner, number) = self.enter(object)?;
        let ((old, new), seq) = inner
            .engine
            .transact(Class::Delete, async |tx| {
                let mut names = inner.names(tx);
                let old = names.live(number).await?;
                Ok((old, names.removexattr(caller, number, name).await?))
            })
            .await?;
        Ok(inner.stamped(number, (&old, &new), seq, (), |_| ()))
    }

    async fn listxattr(&self, object: ObjectId) -> FsResult<Vec<Box<[u8]>>> {
        let (inner, number) = self.enter(object)?;
        let (names, _) =
            inner.engine.transact(Class::Normal, async |tx| inner.names(tx).listxattr(number).await).await?;
        Ok(names)
    }
}

impl Filesystem {
    /// The way into every call.
    fn enter(&self, object: ObjectId) -> FsResult<(&Rc<Inner>, u64)> {
        self.inner.check_running()?;
        Ok((&self.inner, inode_of(object)?))
    }

    async fn take(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        taking: Taking,
    ) -> FsResult<Change<ObjectId>> {
        let (inner, dir) = self.enter(dir)?;
        let (taken, seq) = inner
            .engine
            .transact(Class::Delete, async |tx| inner.names(tx).take(caller, dir, name, taking).await)
            .await?;
        inner.lost_name(taken.number, taken.gone);
        Ok(taken.dir.at(seq, object(taken.number)))
    }
}

impl Inner {
    fn made(&self, made: Made, seq: Seq) -> Change<(ObjectId, Attr)> {
        self.covered(made.covered);
        made.dir.at(seq, (object(made.number), made.attr))
    }

    /// An object lost a name in the commit just made: with the last one everything in memory goes, and the reaper comes.
    fn lost_name(&self, number: u64, gone: bool) {
        let mut cache = self.cache.borrow_mut();
        if gone {
            cache.forget(object(number));
            drop(cache);
            if !self.orphans_due.replace(true) {
                self.engine.freeing_begins();
            }
            self.orphans.notify();
            self.cleaned.notify();
        } else if cache.get(object(number)).is_some()
            && let Some(pending) = &mut cache.file(object(number)).pending
        {
            pending.change += 1;
            pending.ctime.0 += 1;
        }
    }

    /// Before a rename replaces a file: what replaces it must not be less than what was there. So its content goes to disk
    /// first, and "write new, rename over old" leaves either the old or the new file after a crash.
    async fn write_back_before_replacing(
        self: &Rc<Self>,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
    ) -> FsResult<()> {
        let (source, _) = self
            .engine
            .transact(Class::Normal, async |tx| {
                let mut names = self.names(tx);
                let mut found = [None; 2];
                for (slot, (dir, name)) in found.iter_mut().zip([from, to]) {
                    if let Ok(record) = names.live_dir(dir).await
                        && let crate::namespace::dir::Entry::Found { inode, .. } =
                            names.find(dir, &record, name).await?
                    {
                        *slot = Some(inode);
                    }
                }
                Ok(found[0].filter(|_| found[1].is_some()))
            })
            .await?;
        match source {
            Some(number) => self.write_back(object(number), super::sync::ALL_PAGES, Which::Unlogged).await,
            None => Ok(()),
        }
    }

    /// Data and holes, from keys and dirty pages in one look: the keys are true at the end of the transaction, and nothing
    /// happens between that and the look into the cache.
    async fn segments(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Vec<Segment>> {
        let number = inode_of(object)?;
        let end = offset.checked_add(len).ok_or(FsError::TooBig)?;
        let ((record, extents), _) = self
            .engine
            .transact(Class::Normal, async |tx| {
                let record = self.names(tx).live_file(number).await?;
                Ok((record, extent::lookup(tx, number, offset..end, SEGMENT_EXTENTS).await?))
            })
            .await?;
        let cache = self.cache.borrow();
        let size = attr_of(number, &record, cache.pending(object).as_ref()).size;
        let until = match extents.last() {
            Some(last) if extents.len() == SEGMENT_EXTENTS => last.end.min(end),
            _ => end,
        };
        let file = cache.get(object);
        let masked = file.and_then(|f| f.masked.clone()).unwrap_or(0..0);
        let keys = extents.iter().filter(|e| !e.is_hole()).flat_map(|e| outside(e.start..e.end, &masked));
        let pages = offset / BLOCK..until.div_ceil(BLOCK);
        let dirty = file.into_iter().flat_map(|f| f.dirty_in(pages.clone()));
        let mut data: Vec<Range<u64>> = keys.chain(dirty.map(|(n, ..)| n * BLOCK..(n + 1) * BLOCK)).collect();
        data.sort_unstable_by_key(|range| range.start);
        let mut segments: Vec<Segment> = Vec::new();
        let mut at = offset;
        let mut push = |from: u64, to: u64, hole: bool| {
            if from >= to {
                return;
            }
            match segments.last_mut() {
                Some(last) if last.hole == hole => last.len += to - from,
                _ => segments.push(Segment { offset: from, len: to - from, hole }),
            }
        };
        for range in data {
            let (start, stop) = (range.start.max(at), range.end.min(until).min(size));
            if start < stop {
                push(at, start, true);
                push(start, stop, false);
                at = stop;
            }
        }
        push(at, until, true);
        Ok(segments)
    }
}

/// The parts of `range` outside `hole`.
pub(super) fn outside(range: Range<u64>, hole: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let before = range.start..range.end.min(hole.start.max(range.start));
    let after = range.start.max(hole.end.min(range.end))..range.end;
    let parts = if hole.is_empty() { [range, 0..0] } else { [before, after] };
    parts.into_iter().filter(|r| r.start < r.end)
}
