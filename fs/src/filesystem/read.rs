//! Reading: from the cache in one synchronous step, else after a load. Every block is verified before anybody sees it.

use super::Inner;
use super::vfs::outside;
use super::wait::join_all;
use crate::access::{self, READ};
use crate::cache::Page;
use crate::cache::page::Pages;
use crate::cache::store::{LoadPlan, Loaded, pages_of};
use crate::engine::Placed;
use crate::extent;
use crate::namespace::inode_of;
use crate::namespace::record::attr_of;
use crate::planted::{self, Fault};
use crate::tx::Class;
use crate::vfs::{Caller, FsError, FsResult, ObjectId, ReadData};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use moraine_format::Tree;
use moraine_format::extent::{Content, Extent, Stored};
use moraine_format::inode::Inode;
use moraine_platform::{BLOCK_SIZE, Buf};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Extents read side by side.
const READS_MAX: usize = 32;
/// Loads of one call that may be overtaken by writers or evictions before it gives up.
const ATTEMPTS_MAX: usize = 64;

/// A file that stays in the cache's table for as long as a call needs it there.
pub(super) struct Pin<'a> {
    inner: &'a Inner,
    object: ObjectId,
}

impl Inner {
    pub(super) fn pin(&self, object: ObjectId) -> Pin<'_> {
        self.cache.borrow_mut().file(object).pins += 1;
        Pin { inner: self, object }
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        let mut cache = self.inner.cache.borrow_mut();
        cache.file(self.object).pins -= 1;
        cache.settle(self.object);
    }
}

/// A load under way; its marks go when it ends, finished or dropped.
struct Load<'a> {
    inner: &'a Inner,
    object: ObjectId,
    plan: LoadPlan,
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.inner.cache.borrow_mut().end_load(self.object, &self.plan);
        self.inner.loaded.notify();
    }
}

impl Inner {
    pub(super) async fn read(
        self: &Rc<Self>,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        len: u32,
    ) -> FsResult<ReadData> {
        let number = inode_of(object)?;
        let mut loaded: Option<Loaded> = None;
        let mut pin = None;
        for _ in 0..ATTEMPTS_MAX {
            let (record, _) = self
                .engine
                .transact(Class::Normal, async |tx| self.names(tx).live_file(number).await)
                .await?;
            let missing = match self.read_cached(caller, object, &record, offset, len, loaded.as_ref())? {
                Ok(read) => return Ok(read),
                Err(missing) => missing,
            };
            pin.get_or_insert_with(|| self.pin(object));
            loaded = self.load(object, missing, false).await?;
        }
        Err(FsError::Busy)
    }

    /// Reads what is in memory, with the attributes of the same step; or says which pages are missing.
    fn read_cached(
        self: &Rc<Self>,
        caller: &Caller,
        object: ObjectId,
        record: &Inode,
        offset: u64,
        len: u32,
        loaded: Option<&Loaded>,
    ) -> FsResult<Result<ReadData, Range<u64>>> {
        let mut cache = self.cache.borrow_mut();
        let attr = attr_of(object.inode, record, cache.pending(object).as_ref());
        access::check_io(&attr, caller, READ)?;
        let end = offset.saturating_add(len as u64);
        let (eof, end) = (end >= attr.size, end.min(attr.size));
        let mut parts = Vec::new();
        if offset >= end {
            return Ok(Ok(ReadData { parts, eof, attr }));
        }
        if let Err(missing) = cache.collect(object, offset, end, loaded, &mut parts) {
            return Ok(Err(missing));
        }
        let ahead = self.ahead(&mut cache, object, offset, end, attr.size);
        drop(cache);
        if let Some(pages) = ahead {
            self.spawn_ahead(object, pages);
        }
        Ok(Ok(ReadData { parts, eof, attr }))
    }

    /// Brings `pages` into memory. Pages that another load brings are waited for; then `None` is returned, and the
    /// caller looks again.
    pub(super) async fn load(
        &self,
        object: ObjectId,
        pages: Range<u64>,
        ahead: bool,
    ) -> FsResult<Option<Loaded>> {
        let ticket = self.loaded.ticket();
        let bytes = (pages.end - pages.start) as usize * BLOCK_SIZE;
        if !self.cache.borrow_mut().make_room(bytes) && ahead {
            return Ok(None);
        }
        let plan = self.cache.borrow_mut().begin_load(object, pages, ahead);
        if plan.runs.is_empty() {
            if !ahead {
                self.loaded.after(ticket).await;
            }
            return Ok(None);
        }
        let load = Load { inner: self, object, plan };
        let mut loaded = Loaded { epoch: load.plan.epoch, pages: Vec::new() };
        // Pages at a time: fewer when there is no memory for so many in one piece.
        let mut most = u64::MAX;
        for run in &load.plan.runs {
            let mut from = run.start;
            while from < run.end {
                let before = loaded.pages.len();
                let until = run.end.min(from.saturating_add(most));
                from = match self.load_run(object, from..until, &mut loaded.pages).await {
                    Err(FsError::NoMemory) if until - from > 1 && !ahead => {
                        loaded.pages.truncate(before);
                        most = (until - from) / 2;
                        continue;
                    }
                    loaded => loaded?,
                };
                let mut cache = self.cache.borrow_mut();
                for (number, page) in &loaded.pages[before..] {
                    cache.finish_load(object, load.plan.id, *number, page);
                }
            }
        }
        Ok(Some(loaded))
    }

    /// Reads some pages from the front of `run`, in order, verified. Returns up to where.
    async fn load_run(&self, object: ObjectId, run: Range<u64>, out: &mut Vec<(u64, Page)>) -> FsResult<u64> {
        let number = object.inode;
        let bytes = run.start * BLOCK..run.end * BLOCK;
        let (extents, _) = self
            .engine
            .transact(Class::Normal, async |tx| extent::lookup(tx, number, bytes.clone(), READS_MAX).await)
            .await?;
        // The keys are true now, so every read must begin in this step: then no place can be reused before it ends.
        let until = match extents.last() {
            Some(last) if extents.len() == READS_MAX => last.end.min(bytes.end),
            _ => bytes.end,
        };
        let masked = self.cache.borrow().get(object).and_then(|f| f.masked.clone()).unwrap_or(0..0);
        let visible = |e: &Extent| outside(e.start.max(bytes.start)..e.end.min(bytes.end), &masked);
        let pieces: Vec<Extent> =
            extents.iter().flat_map(|e| visible(e).map(|part| e.cut(part.start, part.end))).collect();
        let results = join_all(pieces.iter().map(|piece| self.fetch(number, piece))).await;
        let mut next = run.start;
        for (piece, result) in pieces.iter().zip(results) {
            let first = piece.start / BLOCK;
            self.push_zeroes(next..first, out)?;
            let fetched = result?;
            for n in 0..piece.len() / BLOCK {
                let page = match &fetched {
                    Some(pages) => pages.page((n * BLOCK) as usize),
                    None => self.cache.borrow().zero_page(first + n),
                };
                out.try_reserve(1).map_err(|_| FsError::NoMemory)?;
                out.push((first + n, page));
            }
            next = piece.end / BLOCK;
        }
        self.push_zeroes(next..until / BLOCK, out)?;
        Ok(until / BLOCK)
    }

    fn push_zeroes(&self, pages: Range<u64>, out: &mut Vec<(u64, Page)>) -> FsResult<()> {
        let cache = self.cache.borrow();
        for number in pages {
            out.try_reserve(1).map_err(|_| FsError::NoMemory)?;
            out.push((number, cache.zero_page(number)));
        }
        Ok(())
    }

    /// The bytes of a (cut) extent, verified; `None` if they are zeroes.
    async fn fetch(&self, inode: u64, piece: &Extent) -> FsResult<Option<Pages>> {
        let meter = || self.cache.borrow().meter.clone();
        match &piece.content {
            Content::Hole | Content::Reservation => Ok(None),
            Content::Inline(bytes) => {
                let mut buf = Buf::zeroed(BLOCK_SIZE).map_err(|_| FsError::NoMemory)?;
                buf[..bytes.len()].copy_from_slice(bytes);
                Ok(Some(Pages::adopt(buf, &meter())))
            }
            Content::Stored(stored) => {
                let buf = self.fetch_stored(inode, piece, stored).await?;
                Ok(Some(Pages::adopt(buf, &meter())))
            }
            Content::Reflink { .. } => Err(FsError::Unsupported),
            Content::Error => Err(FsError::Checksum),
        }
    }

    /// Tries every copy, the first one twice: a transfer can go wrong where the medium did not.
    async fn fetch_stored(&self, inode: u64, piece: &Extent, stored: &Stored) -> FsResult<Buf> {
        let mut error = FsError::Checksum;
        let copies = stored.pointers.iter().chain(stored.pointers.first());
        for pointer in copies {
            let place = Placed {
                device: pointer.device,
                generation: pointer.generation,
                offset: pointer.offset_bytes,
                len: pointer.len_bytes,
            };
            match self.engine.read_data(place, 0, pointer.len_bytes).await {
                Ok(buf) if verify(&buf, stored) => return Ok(buf),
                Ok(_) => error = FsError::Checksum,
                // That says nothing about the copies, and passes.
                Err(FsError::NoMemory) => return Err(FsError::NoMemory),
                Err(e) => error = e,
            }
        }
        moraine_platform::error!(
            "fs",
            "{} {inode}: no good copy of bytes {}..{}: {error}",
            Tree::Extents.name(),
            piece.start,
            piece.end
        );
        Err(error)
    }
}

/// Whether every block matches its checksum.
fn verify(buf: &[u8], stored: &Stored) -> bool {
    if planted::is(Fault::DataNotVerified) {
        return true;
    }
    let mut blocks = buf.chunks_exact(BLOCK_SIZE);
    buf.len() == stored.checksums.len() * BLOCK_SIZE
        && stored
            .checksums
            .iter()
            .all(|sum| blocks.next().is_some_and(|block| moraine_accel::crc32c(block) == *sum))
}

/// Read-ahead.
impl Inner {
    fn ahead(
        &self,
        cache: &mut crate::cache::Cache,
        object: ObjectId,
        start: u64,
        end: u64,
        size: u64,
    ) -> Option<Range<u64>> {
        let window_max = (cache.budget().total_bytes / 16 / BLOCK_SIZE) as u64;
        let file = cache.file(object);
        if file.ahead {
            return None;
        }
        let pages = file.streams.read(pages_of(start, end), size, window_max)?;
        file.ahead = true;
        Some(pages)
    }

    fn spawn_ahead(self: &Rc<Self>, object: ObjectId, pages: Range<u64>) {
        let inner = self.clone();
        self.spawn("read-ahead", async move {
            let pin = inner.pin(object);
            // Whoever needs the pages meets the error himself.
            let _ = inner.load(object, pages, true).await;
            inner.cache.borrow_mut().file(object).ahead = false;
            drop(pin);
        });
    }
}
