//! Writing: from a caller's buffer into dirty pages, with space reserved for each; writers are slowed before memory is
//! full of dirty pages, and wait when it is.

use super::Inner;
use crate::access::{self, WRITE};
use crate::cache::Page;
use crate::cache::page::Pages;
use crate::cache::store::{Loaded, pages_of};
use crate::engine::SpaceReservation;
use crate::namespace::record::attr_of;
use crate::namespace::{Pending, inode_of};
use crate::tx::Class;
use crate::vfs::*;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;
use moraine_platform::{BLOCK_SIZE, Instant};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Percent of the dirty budget from which writers are delayed.
const DELAY_FROM_PERCENT: usize = 60;
/// The delay for a page at the middle between that and the limit; it grows without bound towards the limit.
const DELAY_UNIT_NS: u64 = 20_000;
/// The longest delay of one write.
const DELAY_MAX: Duration = Duration::from_millis(100);
/// Writes from this length on come from a stream, whose pages will hardly be written again soon.
const STREAM_WRITE_BYTES: usize = 64 << 10;
/// Dirty pages of a file in streams, 4 MiB, from which it is written back, so that the device works while the rest comes.
const STREAM_PAGES: usize = 1024;
/// How long a write that has its caller's bytes in hand waits for memory before it gives up: some protocols cannot get
/// these bytes again.
const PATIENCE: Duration = Duration::from_secs(600);
/// Times a write may be overtaken while it waits before it gives up.
const OVERTAKEN_MAX: usize = 100_000;

impl Inner {
    pub(super) async fn write(
        self: &Rc<Self>,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        data: WriteData,
        stability: Stability,
    ) -> FsResult<Change<Written>> {
        let (start, end) = (offset, offset.checked_add(data.len as u64).ok_or(FsError::TooBig)?);
        let until = self.now() + PATIENCE;
        let mut data = Some(data);
        let mut change = self
            .with_patience(until, async || self.write_cached(caller, object, offset, &mut data).await)
            .await?;
        if stability > Stability::Unstable {
            if start < end {
                change.seq = self
                    .with_patience(until, async || self.sync_range(object, pages_of(start, end)).await)
                    .await?;
            }
            change.value.stability = Stability::FileSync;
        }
        Ok(change)
    }

    /// Makes a call until it is not short of memory, which passes: dirty pages are written back, and others end.
    pub(super) async fn with_patience<T>(
        &self,
        until: Instant,
        mut call: impl AsyncFnMut() -> FsResult<T>,
    ) -> FsResult<T> {
        loop {
            match call().await {
                Err(FsError::NoMemory) if self.now() < until => {
                    self.wait_for_memory().await;
                }
                result => return result,
            }
        }
    }

    /// The write itself: visible when it returns. `data` is taken only by a write that happens.
    async fn write_cached(
        self: &Rc<Self>,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        data: &mut Option<WriteData>,
    ) -> FsResult<Change<Written>> {
        let number = inode_of(object)?;
        let (mut delayed, mut flushed) = (false, false);
        let mut pin = None;
        let mut edges: Vec<Loaded> = Vec::new();
        for _ in 0..OVERTAKEN_MAX {
            self.engine.check_running()?;
            let (record, _) = self
                .engine
                .transact(Class::Normal, async |tx| self.names(tx).live_file(number).await)
                .await?;
            // One step from here to the return, or to a wait after which all is looked at again.
            let Some(len) = data.as_ref().map(|d| d.len) else { return Err(FsError::Invalid) };
            let end =
                offset.checked_add(len as u64).filter(|e| *e <= FILE_SIZE_MAX).ok_or(FsError::TooBig)?;
            let pending = self.cache.borrow().pending(object);
            let attr = attr_of(number, &record, pending.as_ref());
            access::check_io(&attr, caller, WRITE)?;
            let written =
                Written { count: len as u32, stability: Stability::Unstable, verifier: self.verifier.get() };
            if len == 0 {
                return Ok(Change {
                    pre: attr.pre(),
                    post: attr,
                    seq: self.engine.last_seq(),
                    value: written,
                });
            }
            if self.wait_for_cut(object, offset..end).await {
                continue;
            }
            let pages = pages_of(offset, end);
            let needed = self.cache.borrow().new_dirty(object, pages.clone()) * BLOCK;
            if self.throttle(needed, &mut delayed).await {
                continue;
            }
            // After making room: nothing is dropped from here to the change.
            if let Some(pages) = self.edge_to_load(object, offset, end, attr.size, &edges) {
                pin.get_or_insert_with(|| self.pin(object));
                edges.retain(|e| e.is_current(self.cache.borrow().get(object)));
                match self.load(object, pages, false).await {
                    Err(FsError::NoMemory) => self.wait_for_memory().await,
                    loaded => edges.extend(loaded?),
                }
                continue;
            }
            let mut space = match self.engine.reserve(needed) {
                Ok(space) => space,
                Err(FsError::NoSpace) if !flushed => {
                    // What overwrites will free is free only once they are written back.
                    flushed = true;
                    self.write_back_all().await?;
                    self.make_durable(self.engine.last_seq()).await?;
                    continue;
                }
                Err(FsError::NoSpace) if self.engine.make_room(needed).await? => continue,
                Err(e) => return Err(e),
            };
            let pages = self.prepare_pages(object, offset, data, &edges)?;
            self.apply(object, pages, &mut space);
            let ctime = self.wall().max(moraine_platform::Timestamp(attr.ctime.0.saturating_add(1)));
            let drops = pending.is_some_and(|p| p.drops_privileges);
            self.cache.borrow_mut().file(object).pending = Some(Pending {
                size: attr.size.max(end),
                mtime: ctime,
                ctime,
                change: attr.change + 1,
                drops_privileges: drops || caller.uid != 0,
                dirty_bytes: 0,
            });
            if self.cache.borrow().dirty_bytes() * 2 > self.cache.borrow().budget().dirty_bytes {
                self.pressure.set(true);
            }
            self.note_stream(object, len);
            self.work.notify();
            let post = self.attr(number, &record);
            return Ok(Change { pre: attr.pre(), post, seq: self.engine.last_seq(), value: written });
        }
        Err(FsError::Busy)
    }

    /// Has a file written back early that is written in large pieces.
    fn note_stream(&self, object: ObjectId, len: usize) {
        if len < STREAM_WRITE_BYTES {
            return;
        }
        let cache = self.cache.borrow();
        if cache.get(object).is_some_and(|file| file.dirty_pages >= STREAM_PAGES) {
            self.streaming.borrow_mut().insert(object);
        }
    }

    /// A page that is written in part, holds older content and is not in memory.
    fn edge_to_load(
        &self,
        object: ObjectId,
        offset: u64,
        end: u64,
        size: u64,
        edges: &[Loaded],
    ) -> Option<Range<u64>> {
        let cache = self.cache.borrow();
        let lacks = |page: u64, partly: bool| {
            partly && page * BLOCK < size && cache.page(object, page, edges).is_none()
        };
        let (first, last) = (offset / BLOCK, (end - 1) / BLOCK);
        let last_whole = end.is_multiple_of(BLOCK) || end >= size;
        if lacks(first, !offset.is_multiple_of(BLOCK) || (first == last && !last_whole)) {
            return Some(first..first + 1);
        }
        lacks(last, !last_whole || (first == last && !offset.is_multiple_of(BLOCK))).then_some(last..last + 1)
    }

    /// New content for each page, ready to be put in place without anything that can fail. Whole blocks are adopted as
    /// they lie where the buffer is mostly whole blocks; the rest is copied once. If it fails, the data is still there.
    fn prepare_pages(
        &self,
        object: ObjectId,
        offset: u64,
        taken: &mut Option<WriteData>,
        edges: &[Loaded],
    ) -> FsResult<Vec<(u64, Page)>> {
        let Some(data) = taken.as_ref() else { return Err(FsError::Invalid) };
        let pages = pages_of(offset, offset + data.len as u64);
        let meter = self.cache.borrow().meter.clone();
        let mut out = Vec::new();
        out.try_reserve((pages.end - pages.start) as usize).map_err(|_| FsError::NoMemory)?;
        let whole = offset.next_multiple_of(BLOCK)..(offset + data.len as u64) / BLOCK * BLOCK;
        let whole_bytes = whole.end.saturating_sub(whole.start) as usize;
        let aligned = data.skip % BLOCK_SIZE == (offset % BLOCK) as usize;
        let (skip, len) = (data.skip, data.len);
        let adopt = aligned && whole_bytes * 2 > data.buf.len() && data.buf.len().is_multiple_of(BLOCK_SIZE);
        // First all that can fail: copies.
        let part = |number: u64| {
            let begin = number * BLOCK;
            let (from, to) = (offset.max(begin), (offset + len as u64).min(begin + BLOCK));
            (skip + (from - offset) as usize, (from - begin) as usize, (to - from) as usize)
        };
        for number in pages.clone() {
            let (at, inside, count) = part(number);
            if !adopt || count < BLOCK_SIZE {
                let bytes = &data.buf[at..at + count];
                out.push((number, self.patched(object, number, edges, inside, bytes)?));
            }
        }
        let Some(data) = taken.take() else { return Err(FsError::Invalid) };
        if adopt {
            let adopted = Pages::adopt(data.buf, &meter);
            let whole = pages.map(|number| (number, part(number))).filter(|(_, (.., n))| *n == BLOCK_SIZE);
            out.extend(whole.map(|(number, (at, ..))| (number, adopted.page(at))));
        }
        Ok(out)
    }

    /// The page's content in memory with `bytes` written at `at`.
    fn patched(
        &self,
        object: ObjectId,
        number: u64,
        edges: &[Loaded],
        at: usize,
        bytes: &[u8],
    ) -> FsResult<Page> {
        let cache = self.cache.borrow();
        let old = if bytes.len() < BLOCK_SIZE { cache.page(object, number, edges) } else { None };
        let mut page = Page::copy_of(old.map_or(&[][..], Page::bytes), &cache.meter)?;
        page.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(page)
    }

    fn apply(&self, object: ObjectId, pages: Vec<(u64, Page)>, space: &mut SpaceReservation) {
        let now = self.now();
        let mut cache = self.cache.borrow_mut();
        for (number, page) in pages {
            cache.write(object, number, page, space, now);
        }
    }

    /// Slows a writer of `bytes` new dirty bytes: a delay that grows from 60 % of the budget on, a wait at all of it.
    /// Says whether it waited.
    async fn throttle(&self, bytes: u64, delayed: &mut bool) -> bool {
        let ticket = self.cleaned.ticket();
        let (dirty, limit) = {
            let mut cache = self.cache.borrow_mut();
            let room = cache.make_room(bytes as usize);
            let dirty = cache.dirty_bytes();
            let limit = cache.budget().dirty_bytes;
            // A single write that exceeds the budget still makes progress, and so does one for which write-back could not
            // make room, since others hold the memory.
            let fits = dirty + bytes as usize <= limit && (room || dirty <= limit / 4);
            if bytes == 0 || dirty == 0 || fits {
                (dirty + bytes as usize, limit)
            } else {
                (usize::MAX, limit)
            }
        };
        if dirty == usize::MAX {
            if self.engine.check_running().is_err() {
                return true;
            }
            self.pressure.set(true);
            self.work.notify();
            self.cleaned.after(ticket).await;
            return true;
        }
        let from = limit / 100 * DELAY_FROM_PERCENT;
        if *delayed || dirty <= from || dirty >= limit {
            return false;
        }
        *delayed = true;
        let (over, left) = ((dirty - from) as u64, (limit - dirty) as u64);
        let nanos = bytes.div_ceil(BLOCK).saturating_mul(DELAY_UNIT_NS).saturating_mul(over) / left;
        let delay = Duration::from_nanos(nanos).min(DELAY_MAX);
        self.engine.platform().clock.sleep(delay).await;
        true
    }
}
