//! Write-back: dirty pages become extents on devices, or, where that is the shorter way to durability, bytes in keys.
//!
//! One commit brings extents, size and times of a file together. Pages stay dirty until that commit, whatever fails
//! before it, and it is made only when their content is past the device's cache: so a failed flush finds everything it
//! may have lost still dirty, and nobody's sync waits for what others wrote. Three ways lead to it:
//!
//! - **batch**: pages → contiguous runs of at most 128 KiB → [`Engine::write_data`](crate::engine::Engine::write_data), side by side →
//!   a flush, shared by what was written meanwhile → one transaction with the extents;
//! - **inline sync**: one dirty page that must be durable now goes into the transaction itself, so that one journal write
//!   is all a sync waits for; it stays dirty in the sense that a later batch moves it out of the tree;
//! - **small file**: a file of at most [`SMALL_FILE_MAX`] bytes stays inline for good.

use super::Inner;
use super::wait::join_all;
use crate::cache::TakenPage;
use crate::cache::store::{Take, Which};
use crate::engine::{DataDep, DataKind, Placed, SpaceReservation};
use crate::extent;
use crate::namespace::{Pending, inconsistent, inode_of};
use crate::planted::{self, Fault};
use crate::tx::Class;
use crate::vfs::*;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use moraine_format::extent::{Content, Extent, Pointer, STORED_BLOCKS_MAX, Stored};
use moraine_format::inode::Inode;
use moraine_platform::{BLOCK_SIZE, Buf};
use smallvec::smallvec;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Pages of one batch: 2 MiB.
const BATCH_PAGES: usize = 512;
/// Pages that share a flush, at most: 8 MiB.
const FLUSH_PAGES: usize = 2048;
/// ... and at most this part of the pages that may be dirty, so that writers wait for a part of them only.
const FLUSH_SHARE: usize = 4;
/// Extents put in one commit.
const COMMIT_EXTENTS: usize = 32;
/// The largest file that stays in its keys.
pub(super) const SMALL_FILE_MAX: u64 = 2048;
/// All pages of any file.
pub(super) const ALL_PAGES: Range<u64> = 0..u64::MAX / BLOCK;

/// Pages on their way to a device. Whatever becomes of the write-back, at its end they are either committed or as dirty as
/// before, with space reserved.
struct Batch<'a> {
    inner: &'a Inner,
    object: ObjectId,
    pages: Vec<TakenPage>,
    /// What was pending of the file when its pages were taken.
    pending: Option<Pending>,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        // Whatever was not used of the old reservation has gone back by now.
        let mut cache = self.inner.cache.borrow_mut();
        let needed = cache.still_taken(self.object, &self.pages) * BLOCK;
        let space = self.inner.engine.reserve(needed);
        if let Err(e) = &space {
            moraine_platform::warn!("fs", "{needed} bytes of dirty data have no reserved space: {e}");
        }
        cache.untake(self.object, &self.pages, space.ok());
        drop(cache);
        self.inner.cleaned.notify();
    }
}

/// A batch on its devices, not committed yet.
struct Landed<'a> {
    batch: Batch<'a>,
    placements: Vec<Placement>,
}

/// A run of pages as it was placed on a device.
struct Placement {
    /// Which of the batch's pages.
    pages: Range<usize>,
    place: Placed,
    checksums: Vec<u32>,
    dep: DataDep,
}

impl Inner {
    /// Makes the content of `pages` durable, with size and times; returns the commit that does.
    pub(super) async fn sync_range(self: &Rc<Self>, object: ObjectId, pages: Range<u64>) -> FsResult<Seq> {
        let result = self.try_sync_range(object, pages).await;
        if let Err(FsError::DeviceWrite | FsError::Stopped) = result {
            // Who is told this must not believe that what was written before is safe.
            self.change_verifier();
        }
        result
    }

    async fn try_sync_range(self: &Rc<Self>, object: ObjectId, pages: Range<u64>) -> FsResult<Seq> {
        let single = {
            let cache = self.cache.borrow();
            let file = cache.get(object);
            let mut unlogged =
                file.into_iter().flat_map(|f| f.dirty_in(pages.clone())).filter(|(_, _, d)| !d.logged);
            match (unlogged.next(), unlogged.next()) {
                (Some((page, ..)), None) => Some(page),
                _ => None,
            }
        };
        let inlined = match single {
            Some(page) => self.commit_inline(object, page).await,
            None => Err(FsError::NoSpace),
        };
        match inlined {
            // Keys take space of their own, which a full pool may not have; the page's space is reserved.
            Err(FsError::NoSpace) => {
                // With much to write, two at a time: while one batch is under way the other one is copied and checksummed.
                let dirty = self.cache.borrow().get(object).map_or(0, |file| file.dirty_pages);
                let tasks = if dirty > 2 * BATCH_PAGES { 2 } else { 1 };
                let both = (0..tasks).map(|_| self.write_back(object, pages.clone(), Which::Unlogged));
                join_all(both).await.into_iter().collect::<FsResult<()>>()?
            }
            other => other?,
        }
        let seq = self.cache.borrow().last_seq(object);
        self.make_durable(seq).await?;
        Ok(seq)
    }

    /// COMMIT.
    pub(super) async fn commit(
        self: &Rc<Self>,
        object: ObjectId,
        offset: u64,
        len: u64,
    ) -> FsResult<Change<Written>> {
        let number = inode_of(object)?;
        let live = async || {
            let (record, _) = self
                .engine
                .transact(Class::Normal, async |tx| self.names(tx).live_file(number).await)
                .await?;
            Ok(self.attr(number, &record))
        };
        live().await?;
        let end = if len == 0 { u64::MAX / BLOCK } else { offset.saturating_add(len).div_ceil(BLOCK) };
        let seq = self.sync_range(object, offset / BLOCK..end).await?;
        // The verifier is read after the flush: had it changed before, the client would have to know.
        let value = Written { count: 0, stability: Stability::FileSync, verifier: self.verifier.get() };
        let attr = live().await?;
        Ok(Change { pre: attr.pre(), post: attr, seq, value })
    }

    /// Writes back every dirty page.
    pub(super) async fn write_back_all(self: &Rc<Self>) -> FsResult<()> {
        let files = self.cache.borrow().dirty_files();
        let mut result = Ok(());
        for object in files {
            result = self.write_back(object, ALL_PAGES, Which::All).await.and(result);
        }
        result
    }

    /// Writes back the pages among `pages` that are dirty now; what becomes dirty meanwhile may stay.
    pub(super) async fn write_back(
        self: &Rc<Self>,
        object: ObjectId,
        pages: Range<u64>,
        which: Which,
    ) -> FsResult<()> {
        let until = self.cache.borrow().version();
        if self.is_small(object) && self.commit_inline(object, 0).await.is_ok() {
            return Ok(());
        }
        let share = self.cache.borrow().budget().dirty_bytes / BLOCK_SIZE / FLUSH_SHARE;
        let together = FLUSH_PAGES.min(share).max(1);
        loop {
            let ticket = self.cleaned.ticket();
            let mut written = Vec::new();
            let (mut left, mut in_flight) = (together, false);
            let mut result = Ok(());
            while left > 0 && result.is_ok() {
                let most = left.min(BATCH_PAGES);
                let take = self.cache.borrow_mut().take(object, pages.clone(), until, which, most);
                match take {
                    Take::Nothing => break,
                    Take::InFlight => {
                        in_flight = !planted::is(Fault::InFlightIgnored);
                        break;
                    }
                    Take::Batch(taken, space, pending) => {
                        left -= taken.len();
                        let batch = Batch { inner: self, object, pages: taken, pending };
                        result = self.write_batch(batch, space).await.map(|w| written.push(w));
                    }
                }
            }
            if written.is_empty() && result.is_ok() {
                if !in_flight {
                    return Ok(());
                }
                self.cleaned.after(ticket).await;
                continue;
            }
            if result.is_ok() {
                result = self.settle_batches(&written).await;
            }
            drop(written);
            if let Err(error) = result {
                moraine_platform::warn!("fs", "inode {}: write-back failed: {error}", object.inode);
                self.change_verifier();
                return Err(error);
            }
        }
    }

    async fn write_batch<'a>(&self, batch: Batch<'a>, mut space: SpaceReservation) -> FsResult<Landed<'a>> {
        let bytes = (batch.pages.len() * BLOCK_SIZE) as u64;
        let _permit = self.writeback.take(bytes).await;
        if space.bytes() < bytes {
            space.merge(self.engine.reserve(bytes - space.bytes())?);
        }
        let placements = self.place(&batch.pages, &mut space).await?;
        Ok(Landed { batch, placements })
    }

    /// Makes batches durable where they are, and then part of their file.
    async fn settle_batches(&self, written: &[Landed<'_>]) -> FsResult<()> {
        let data = written.iter().flat_map(|w| &w.placements).map(|p| &p.dep);
        self.engine.make_data_durable(data).await?;
        for Landed { batch, placements } in written {
            for placements in placements.chunks(COMMIT_EXTENTS) {
                self.commit_placements(batch, placements).await?;
            }
        }
        Ok(())
    }

    /// Writes runs of contiguous pages to devices, side by side.
    async fn place(&self, pages: &[TakenPage], space: &mut SpaceReservation) -> FsResult<Vec<Placement>> {
        let mut runs = Vec::new();
        for mut rest in runs_of(pages) {
            while !rest.is_empty() {
                let buf = self.copy_of(rest)?;
                let checksums: Vec<u32> = buf.chunks_exact(BLOCK_SIZE).map(moraine_accel::crc32c).collect();
                let (_, after) = rest.split_at(checksums.len());
                let space = space.split(buf.len() as u64);
                runs.push((buf, checksums, space));
                rest = after;
            }
        }
        let written = join_all(runs.into_iter().map(|(buf, checksums, mut space)| async move {
            let data = self.engine.write_data(DataKind::User, buf, &mut space).await?;
            Ok((checksums, data))
        }))
        .await;
        let mut placements = Vec::new();
        let mut first = 0;
        for result in written {
            // Runs follow each other without a gap.
            let (mut checksums, data): (Vec<u32>, _) = result?;
            for place in data.places {
                let count = place.len as usize / BLOCK_SIZE;
                let rest = checksums.split_off(count);
                let pages = first..first + count;
                placements.push(Placement { pages, place, checksums, dep: data.dep.clone() });
                (first, checksums) = (first + count, rest);
            }
        }
        Ok(placements)
    }

    /// A copy of the first pages: of all of them, or of fewer where memory is short or lies in small pieces, since without
    /// write-back there will never be more.
    fn copy_of(&self, mut pages: &[TakenPage]) -> FsResult<Buf> {
        loop {
            match Buf::of_blocks(pages.iter().map(|taken| taken.page.bytes())) {
                Ok(buf) => return Ok(buf),
                Err(_) if pages.len() > 1 => pages = &pages[..pages.len().div_ceil(2)],
                Err(_) => {
                    self.give_memory_back();
                    return Err(FsError::NoMemory);
                }
            }
        }
    }

    /// One commit: extents of what may still be committed, and what is pending of the file.
    async fn commit_placements(&self, batch: &Batch<'_>, placements: &[Placement]) -> FsResult<()> {
        let object = batch.object;
        let number = object.inode;
        let all = || placements.iter().flat_map(|p| &batch.pages[p.pages.clone()]);
        let (committed, seq) = self
            .engine
            .transact(Class::WriteBack, async |tx| {
                let mut names = self.names(tx);
                let Some(mut record) = names.load(number).await?.filter(|r| r.nlink > 0) else {
                    // What lost its last name has lost its pages too.
                    return match self.cache.borrow().still_taken(object, &batch.pages) {
                        0 => Ok(false),
                        _ => Err(inconsistent("pages of a file without a record", number)),
                    };
                };
                let (mut used, mut end) = (0, 0);
                for placement in placements {
                    let may = |page: &TakenPage| self.cache.borrow().may_commit(object, page);
                    let pages = &batch.pages[placement.pages.clone()];
                    let chosen: Vec<bool> = pages.iter().map(may).collect();
                    for extent in extents_of(placement, pages, &chosen) {
                        end = end.max(extent.end);
                        used += extent::insert(names.tx, number, &extent).await?;
                    }
                    names.tx.data_written(placement.dep.clone());
                }
                if end > 0 {
                    record.used = record.used.saturating_add_signed(used);
                    let newest = self.cache.borrow().pending(object);
                    let whole = self.unlogged_besides(object, all()) == 0;
                    fold_pending(&mut record, newest, batch.pending, end, whole);
                    names.store(number, &record);
                }
                Ok(true)
            })
            .await?;
        let mut cache = self.cache.borrow_mut();
        if committed {
            for page in all() {
                cache.committed(object, page);
            }
            cache.note_commit(object, seq);
        }
        cache.settle_file(object);
        drop(cache);
        self.cleaned.notify();
        Ok(())
    }

    /// Whether all that is dirty of a file is the one page of a small file.
    fn is_small(&self, object: ObjectId) -> bool {
        let cache = self.cache.borrow();
        cache.get(object).is_some_and(|file| {
            let small = file.pending().is_some_and(|p| p.size <= SMALL_FILE_MAX);
            small && file.dirty_pages == 1 && file.dirty(0).is_some_and(|d| !d.taken)
        })
    }

    /// Unlogged pages of a file besides these.
    fn unlogged_besides<'p>(&self, object: ObjectId, pages: impl Iterator<Item = &'p TakenPage>) -> usize {
        let cache = self.cache.borrow();
        let Some(file) = cache.get(object) else { return 0 };
        let is = |p: &&TakenPage| file.dirty(p.number).is_some_and(|d| !d.logged && d.version == p.version);
        file.unlogged_pages - pages.filter(is).count()
    }

    /// Commits one page's content as an inline extent.
    async fn commit_inline(&self, object: ObjectId, page: u64) -> FsResult<()> {
        let number = object.inode;
        let (done, seq) = self
            .engine
            .transact(Class::Normal, async |tx| {
                let mut names = self.names(tx);
                let record = names.load(number).await?.filter(|r| r.nlink > 0);
                // Content, version and what is pending, as they are at one moment: inserting may wait.
                let found = {
                    let cache = self.cache.borrow();
                    let file = cache.get(object);
                    file.and_then(|file| {
                        let (cached, dirty) = (file.cached(page)?, file.dirty(page)?);
                        let whole = file.unlogged_pages == usize::from(!dirty.logged);
                        Some((inline(page, cached.page.bytes()), dirty.version, file.pending(), whole))
                    })
                };
                let Some((extent, version, pending, whole)) = found else { return Ok(None) };
                let Some(mut record) = record else {
                    return Err(inconsistent("a page of a file without a record", number));
                };
                let used = extent::insert(names.tx, number, &extent).await?;
                record.used = record.used.saturating_add_signed(used);
                fold_pending(&mut record, pending, pending, extent.end, whole);
                names.store(number, &record);
                Ok(Some((version, record.size)))
            })
            .await?;
        if let Some((version, size)) = done {
            let mut cache = self.cache.borrow_mut();
            cache.inlined(object, page, version, page > 0 || size > SMALL_FILE_MAX);
            cache.note_commit(object, seq);
            cache.settle_file(object);
            drop(cache);
            self.cleaned.notify();
        }
        Ok(())
    }
}

/// Puts what is pending into a record whose content up to `end` is being committed. If that is all there is of new content
/// (`whole`), the record becomes what the `newest` writes made it. Else it becomes what they had made it when this content
/// was `taken`, and the size grows only as far as content is there: a size never shows more of this content than
/// was written when it was taken. Pages before it that are not synced may come later, and are holes until then.
fn fold_pending(record: &mut Inode, newest: Option<Pending>, taken: Option<Pending>, end: u64, whole: bool) {
    // Also when all else stays equal: whoever looked at pages and keys before this commit must look again.
    record.content_version += 1;
    let (Some(newest), Some(taken)) = (newest, taken) else { return };
    let whole = whole && !planted::is(Fault::SizeForgotten);
    let end = if planted::is(Fault::SizeForgotten) { 0 } else { end };
    let size = if planted::is(Fault::SizeRunsAhead) { newest.size } else { newest.size.min(taken.size) };
    record.size = if whole { newest.size } else { record.size.max(size.min(end)) };
    let Pending { ctime, change, .. } = if whole { newest } else { taken };
    record.ctime_ns = record.ctime_ns.max(ctime.0);
    record.change = record.change.max(change);
    // What a SETATTR set since then is in `newest` only.
    record.mtime_ns = newest.mtime.0;
    if newest.drops_privileges {
        record.mode = crate::namespace::record::without_privileges(record.mode as u32) as u16;
    }
}

/// A page as an inline extent, without the zeroes at its end.
pub(super) fn inline(page: u64, bytes: &[u8]) -> Extent {
    let len = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    let content = Content::Inline(bytes[..len].into());
    Extent { start: page * BLOCK, end: (page + 1) * BLOCK, content }
}

/// Contiguous runs within aligned stretches of 128 KiB: no extent crosses such a boundary.
fn runs_of(pages: &[TakenPage]) -> impl Iterator<Item = &[TakenPage]> {
    let stretch = |page: &TakenPage| page.number / STORED_BLOCKS_MAX as u64;
    pages.chunk_by(move |a, b| a.number + 1 == b.number && stretch(a) == stretch(b))
}

/// The extents of the chosen pages of a placement.
fn extents_of<'a>(
    placement: &'a Placement,
    pages: &'a [TakenPage],
    chosen: &'a [bool],
) -> impl Iterator<Item = Extent> + use<'a> {
    let Placement { place, checksums, .. } = placement;
    let mut at = 0;
    core::iter::from_fn(move || {
        at += chosen[at..].iter().position(|c| *c)?;
        let first = at;
        at += chosen[at..].iter().position(|c| !*c).unwrap_or(chosen.len() - at);
        let pointer = Pointer {
            device: place.device,
            generation: place.generation,
            offset_bytes: place.offset + first as u64 * BLOCK,
            len_bytes: ((at - first) * BLOCK_SIZE) as u32,
        };
        let stored = Stored { pointers: smallvec![pointer], checksums: checksums[first..at].into() };
        let start = pages[first].number * BLOCK;
        let end = start + (at - first) as u64 * BLOCK;
        Some(Extent { start, end, content: Content::Stored(stored) })
    })
}
