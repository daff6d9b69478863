//! Truncate and punch: extents go, edges become zero, size and times change, in one commit. If there are too many extents
//! for one, that commit also logs the operation, and the rest goes in steps; meanwhile the range reads as a hole, and
//! whoever wants to write there waits.

use super::Inner;
use super::sync::inline;
use crate::access::{self, WRITE};
use crate::cache::page::Pages;
use crate::cache::store::{Edge, Loaded};
use crate::extent::{self, END};
use crate::namespace::record::drop_privileges;
use crate::namespace::{Names, corrupt, inode_of, object};
use crate::planted::{self, Fault};
use crate::tx::Class;
use crate::vfs::*;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Range;
use moraine_format::inode::Inode;
use moraine_format::record::LoggedOp;
use moraine_format::{Pos, Tree};
use moraine_platform::{BLOCK_SIZE, Timestamp};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Key of a file's logged operation; one at a time.
fn op_key(inode: u64) -> Pos {
    Pos::new(inode, 0, 0)
}

/// What bytes a cut removes: whole blocks, and parts of at most two pages.
struct Hole {
    whole: Range<u64>,
    edges: [Option<(u64, Range<usize>)>; 2],
}

impl Hole {
    fn of(start: u64, end: u64) -> Hole {
        let whole = start.next_multiple_of(BLOCK)..end / BLOCK * BLOCK;
        let (first, last) = (start / BLOCK, end / BLOCK);
        if planted::is(Fault::TruncateLeavesTail) {
            let whole = if whole.start < whole.end { whole } else { 0..0 };
            return Hole { whole, edges: [None, None] };
        }
        let (skip, keep) = ((start % BLOCK) as usize, (end % BLOCK) as usize);
        let edges = if first == last {
            [(skip < keep).then_some((first, skip..keep)), None]
        } else {
            [(skip > 0).then_some((first, skip..BLOCK_SIZE)), (keep > 0).then_some((last, 0..keep))]
        };
        let whole = if whole.start < whole.end { whole } else { 0..0 };
        Hole { whole, edges }
    }

    fn edges(&self) -> impl Iterator<Item = (u64, Range<usize>)> + '_ {
        self.edges.iter().flatten().cloned()
    }
}

/// What the body of a cut found.
enum Step {
    /// A page must be in memory first.
    Load(u64),
    /// Nothing is to be done to this record.
    Nothing(Box<Inode>),
    /// Committed.
    Cut(Box<Cut>),
}

/// A committed cut.
struct Cut {
    old: Inode,
    new: Inode,
    hole: Hole,
    /// Versions of the edge pages whose content was put into the tree.
    inlined: [Option<u64>; 2],
    /// Extents are left for the background.
    more: bool,
}

/// What a cut does to the record before anything else; `None` if there is nothing to do.
struct Plan {
    old: Inode,
    new: Inode,
    hole: Hole,
    /// The size that unsynced writes made, for a cut that keeps it.
    keeps: Option<u64>,
}

impl Inner {
    /// SETATTR, with or without a size.
    pub(super) async fn setattr(
        self: &Rc<Self>,
        caller: &Caller,
        object: ObjectId,
        set: &SetAttr,
        guard: Option<Timestamp>,
    ) -> FsResult<Change<()>> {
        let number = inode_of(object)?;
        let fix = |pending: &mut crate::namespace::Pending, new: &Inode| {
            if set.mtime.is_some() || set.size.is_some() {
                pending.mtime = Timestamp(new.mtime_ns);
            }
            if set.mode.is_some() {
                pending.drops_privileges = false;
            }
        };
        if let Some(size) = set.size {
            return self
                .cut(
                    object,
                    async |names: &mut Names<'_>| {
                        let old = names.live(number).await?;
                        let before = names.attr(number, &old).size;
                        let (new, _) = names.setattr(caller, number, set, guard).await?;
                        let hole = if size < before { Hole::of(size, END) } else { Hole::of(0, 0) };
                        Ok(Some(Plan { old, new, hole, keeps: None }))
                    },
                    |pending, new| {
                        fix(pending, new);
                        pending.size = size;
                    },
                )
                .await;
        }
        let ((old, new, changed), seq) = self
            .engine
            .transact(Class::Normal, async |tx| {
                let mut names = self.names(tx);
                let (new, changed) = names.setattr(caller, number, set, guard).await?;
                let old = names.live(number).await?;
                if changed {
                    names.store(number, &new);
                }
                Ok((old, new, changed))
            })
            .await?;
        if !changed {
            let attr = self.attr(number, &old);
            return Ok(Change { pre: attr.pre(), post: attr, seq: self.engine.last_seq(), value: () });
        }
        Ok(self.stamped(number, (&old, &new), seq, (), |pending| fix(pending, &new)))
    }

    /// Makes a range a hole; the size stays.
    pub(super) async fn punch(
        self: &Rc<Self>,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        len: u64,
    ) -> FsResult<Change<()>> {
        let number = inode_of(object)?;
        self.cut(
            object,
            async |names: &mut Names<'_>| {
                let old = names.live_file(number).await?;
                let attr = names.attr(number, &old);
                access::check_io(&attr, caller, WRITE)?;
                if len == 0 || offset >= attr.size {
                    return Ok(None);
                }
                let end = match offset.saturating_add(len) {
                    // Past the size all is zero anyway: whole blocks then, without an edge.
                    end if end >= attr.size => END,
                    end => end,
                };
                let mut new = old.clone();
                // What is pending may go with the pages: the record keeps the mode.
                new.mode = attr.mode as u16;
                names.touch_content(number, &mut new);
                drop_privileges(&mut new, caller);
                Ok(Some(Plan { old, new, hole: Hole::of(offset, end), keeps: Some(attr.size) }))
            },
            |pending, new| pending.mtime = Timestamp(new.mtime_ns),
        )
        .await
    }

    /// The common way of truncate and punch. `plan` is part of the transaction's body.
    async fn cut(
        self: &Rc<Self>,
        object: ObjectId,
        mut plan: impl AsyncFnMut(&mut Names<'_>) -> FsResult<Option<Plan>>,
        fix: impl FnOnce(&mut crate::namespace::Pending, &Inode),
    ) -> FsResult<Change<()>> {
        let number = inode_of(object)?;
        let _pin = self.pin(object);
        let mut loaded: Vec<Loaded> = Vec::new();
        loop {
            self.engine.check_running()?;
            if self.wait_for_cut(object, 0..u64::MAX).await {
                continue;
            }
            // Memory for the edges is had before the commit: after it nothing may fail.
            let spares = Pages::zeroed(1, &self.cache.borrow().meter.clone())
                .and_then(|a| Ok([a, Pages::zeroed(1, &self.cache.borrow().meter.clone())?]))?;
            // What is cut depends on the size and the pages that only memory has: a write between the body and its commit
            // would leave bytes behind the end, or lose some.
            let epoch = || self.cache.borrow().get(object).map(|file| file.epoch);
            let seen = Cell::new(None);
            let unchanged = || planted::is(Fault::CutOvertaken) || epoch() == seen.get();
            let (step, seq) = self
                .engine
                .transact_while(Class::Delete, &unchanged, async |tx| {
                    seen.set(epoch());
                    let mut names = self.names(tx);
                    match plan(&mut names).await? {
                        None => Ok(Step::Nothing(Box::new(names.live(number).await?))),
                        Some(plan) => self.cut_body(&mut names, number, plan, &loaded).await,
                    }
                })
                .await?;
            // One step from here on.
            let Cut { old, new, hole, inlined, more } = match step {
                Step::Load(page) => {
                    loaded.retain(|l| l.is_current(self.cache.borrow().get(object)));
                    loaded.extend(self.load(object, page..page + 1, false).await?);
                    continue;
                }
                Step::Nothing(record) => {
                    let attr = self.attr(number, &record);
                    return Ok(Change {
                        pre: attr.pre(),
                        post: attr,
                        seq: self.engine.last_seq(),
                        value: (),
                    });
                }
                Step::Cut(cut) => *cut,
            };
            let pre = self.attr(number, &old).pre();
            let mut edges = Vec::new();
            for (((page, zero), spare), inlined) in
                hole.edges.iter().flatten().cloned().zip(spares).zip(inlined)
            {
                edges.push(Edge { page, zero, spare: spare.page(0), inlined });
            }
            drop_pages(self, object, &hole, edges);
            let mut change = self.stamped(number, (&old, &new), seq, (), |pending| fix(pending, &new));
            change.pre = pre;
            if more && !planted::is(Fault::MaskForgotten) {
                self.cache.borrow_mut().file(object).masked = Some(hole.whole.clone());
                self.spawn_cut_steps(number);
            }
            self.cleaned.notify();
            return Ok(change);
        }
    }

    /// Queues a cut: extents out, edges into the tree as inline content, record, and the logged operation if need be.
    async fn cut_body(
        &self,
        names: &mut Names<'_>,
        number: u64,
        plan: Plan,
        loaded: &[Loaded],
    ) -> FsResult<Step> {
        let Plan { old, mut new, hole, keeps } = plan;
        let mut inlined = [None; 2];
        let mut used = 0i64;
        for (n, (page, zero)) in hole.edges().enumerate() {
            let at = page * BLOCK;
            let covered = extent::next(names.tx, number, at).await?.is_some_and(|e| e.start <= at);
            if !covered {
                continue;
            }
            let content = {
                let cache = self.cache.borrow();
                let version = cache.get(object(number)).and_then(|f| f.dirty(page)).map_or(0, |d| d.version);
                cache.page(object(number), page, loaded).map(|old| {
                    let mut bytes = Vec::from(old.bytes());
                    bytes[zero].fill(0);
                    (inline(page, &bytes), version)
                })
            };
            let Some((extent, version)) = content else { return Ok(Step::Load(page)) };
            used += extent::insert(names.tx, number, &extent).await?;
            inlined[n] = Some(version);
        }
        let mut more = false;
        if hole.whole.start < hole.whole.end && !planted::is(Fault::PunchKeepsData) {
            let Range { start, end } = hole.whole;
            let cleared = extent::clear(names.tx, number, start..end, self.options.cut_keys).await?;
            used -= cleared.freed as i64;
            more = cleared.reached < end;
            if more {
                let op = LoggedOp::Punch { start, end, cursor: cleared.reached };
                names.tx.put(Tree::LoggedOps, op_key(number), op.to_value());
            }
        }
        if let Some(size) = keeps {
            new.size = self.size_of_what_goes(number, &hole, inlined, old.size, size);
        }
        new.used = new.used.saturating_add_signed(used);
        new.content_version += 1;
        names.store(number, &new);
        Ok(Step::Cut(Box::new(Cut { old, new, hole, inlined, more })))
    }

    /// The size to commit with a punch, which keeps the `pending` one. With the last page that is nowhere but in memory
    /// goes what is pending, so the record says it; else, as in a write-back, the size grows as far as content is committed.
    fn size_of_what_goes(
        &self,
        number: u64,
        hole: &Hole,
        inlined: [Option<u64>; 2],
        stored: u64,
        pending: u64,
    ) -> u64 {
        if pending == stored {
            return stored;
        }
        let cache = self.cache.borrow();
        let file = cache.get(object(number));
        let goes = |page: u64| {
            let is_edge = |(n, (edge, _)): (usize, (u64, _))| edge == page && inlined[n].is_some();
            hole.whole.contains(&(page * BLOCK)) || hole.edges().enumerate().any(is_edge)
        };
        let pages = file.into_iter().flat_map(|f| f.dirty_in(super::sync::ALL_PAGES));
        let (mut all, mut end) = (true, 0);
        for (page, ..) in pages.filter(|(_, _, dirty)| !dirty.logged) {
            match goes(page) {
                true => end = (page + 1) * BLOCK,
                false => all = false,
            }
        }
        if all { pending } else { stored.max(pending.min(end)) }
    }

    /// If a cut is still deleting what lies in `range` of a file, waits for a change and says so.
    pub(super) async fn wait_for_cut(&self, object: ObjectId, range: Range<u64>) -> bool {
        let ticket = self.cleaned.ticket();
        if self.engine.check_running().is_err() {
            // Nobody goes on with it. Who asks to change something is refused.
            return false;
        }
        let masked = self.cache.borrow().get(object).and_then(|f| f.masked.clone());
        match masked {
            Some(masked) if masked.start < range.end && range.start < masked.end => {
                self.cleaned.after(ticket).await;
                true
            }
            _ => false,
        }
    }

    /// Does the rest of a logged cut in the background.
    pub(super) fn spawn_cut_steps(self: &Rc<Self>, number: u64) {
        let inner = self.clone();
        inner.engine.freeing_begins();
        self.spawn("cut", async move {
            loop {
                let step = inner.cut_step(number).await;
                if inner.stopping.get() && step != Ok(false) {
                    // The key is there: the next mount goes on.
                    return inner.engine.freeing_ends();
                }
                match step {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(FsError::Corrupt) => return inner.engine.freeing_ends(),
                    Err(error) => {
                        moraine_platform::warn!("fs", "inode {number}: cutting goes on later: {error}");
                        inner.engine.freeing_ends();
                        // Who waits for its end may have to be told that there will be none.
                        inner.cleaned.notify();
                        inner.pause_after_failure(&inner.work).await;
                        inner.engine.freeing_begins();
                    }
                }
            }
            inner.engine.freeing_ends();
            let mut cache = inner.cache.borrow_mut();
            cache.file(object(number)).masked = None;
            cache.settle(object(number));
            drop(cache);
            inner.cleaned.notify();
        });
    }

    /// One bounded commit of it; says whether there is more.
    async fn cut_step(&self, number: u64) -> FsResult<bool> {
        let (more, _) = self
            .engine
            .transact(Class::Delete, async |tx| {
                let mut names = self.names(tx);
                let Some(value) = names.tx.get(Tree::LoggedOps, op_key(number)).await? else {
                    return Ok(false);
                };
                let LoggedOp::Punch { start, end, cursor } =
                    LoggedOp::parse(&value).map_err(|e| corrupt(Tree::LoggedOps, op_key(number), e))?;
                let cleared = extent::clear(names.tx, number, cursor..end, self.options.cut_keys).await?;
                assert!(cleared.reached >= cursor, "the cursor of a logged operation only rises");
                if let Some(mut record) = names.load(number).await? {
                    record.used = record.used.saturating_sub(cleared.freed);
                    record.content_version += 1;
                    names.store(number, &record);
                }
                if cleared.reached >= end {
                    names.tx.delete(Tree::LoggedOps, op_key(number));
                    return Ok(false);
                }
                let op = LoggedOp::Punch { start, end, cursor: cleared.reached };
                names.tx.put(Tree::LoggedOps, op_key(number), op.to_value());
                Ok(true)
            })
            .await?;
        Ok(more)
    }
}

/// Makes the cache agree with a cut that was just committed.
fn drop_pages(inner: &Inner, object: ObjectId, hole: &Hole, edges: Vec<Edge>) {
    let now = inner.now();
    // Without space an edge page simply stays in the tree.
    let wanted = edges.len() as u64 * BLOCK;
    let Ok(mut space) = inner.engine.reserve(wanted).or_else(|_| inner.engine.reserve(0)) else { return };
    let pages = hole.whole.start / BLOCK..hole.whole.end / BLOCK;
    inner.cache.borrow_mut().cut(object, pages, edges, &mut space, now);
}
