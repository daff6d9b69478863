//! All files' caches within one budget: collecting, loading, changing, taking for write-back, evicting.

use super::CacheBudget;
use super::file::File;
use super::group::{Cached, Dirty, GROUP_PAGES, Group, Slot};
use super::page::{Page, Pages};
use crate::engine::SpaceReservation;
use crate::namespace::{Pending, PendingAttrs};
use crate::planted::{self, Fault};
use crate::vfs::{Bytes, FsResult, ObjectId, Seq};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::Range;
use moraine_platform::memory::Meter;
use moraine_platform::{BLOCK_SIZE, Instant};

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Memory of a group's bookkeeping: it counts, or reading holes would take memory without bound.
const GROUP_BYTES: usize = size_of::<Group>();
/// Entries of groups that are gone that the ring may hold before it is swept.
const RING_SLACK: usize = 1024;

/// The pages that hold bytes `start .. end`.
pub(crate) fn pages_of(start: u64, end: u64) -> Range<u64> {
    start / BLOCK..end.div_ceil(BLOCK)
}

/// Pages brought for one call, usable by it even if the cache had no room for them.
pub(crate) struct Loaded {
    /// The file's epoch when the load began: if it is another now, these pages may be old.
    pub(crate) epoch: u64,
    pub(crate) pages: Vec<(u64, Page)>,
}

impl Loaded {
    /// Whether nothing of the file changed since the load began.
    pub(crate) fn is_current(&self, file: Option<&File>) -> bool {
        file.is_some_and(|file| file.epoch == self.epoch)
    }

    /// A page of it, if it is certain that nothing changed since.
    pub(crate) fn page(&self, file: Option<&File>, number: u64) -> Option<&Page> {
        if !self.is_current(file) {
            return None;
        }
        let at = self.pages.binary_search_by_key(&number, |(n, _)| *n).ok()?;
        Some(&self.pages[at].1)
    }
}

/// Pages that one load will bring.
pub(crate) struct LoadPlan {
    pub(crate) id: u64,
    pub(crate) epoch: u64,
    pub(crate) runs: Vec<Range<u64>>,
}

/// A copy of a dirty page on its way to a device.
pub(crate) struct TakenPage {
    pub(crate) number: u64,
    pub(crate) page: Page,
    pub(crate) version: u64,
}

/// Which dirty pages a write-back is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those whose content is nowhere but in memory: what a sync needs.
    Unlogged,
    /// All, also what only waits to move from a key to an extent.
    All,
}

/// What there is to write back.
pub(crate) enum Take {
    /// Nothing.
    Nothing,
    /// Others are writing the rest.
    InFlight,
    /// These pages, with the space reserved for them, and what is pending of the file as they are.
    Batch(Vec<TakenPage>, SpaceReservation, Option<Pending>),
}

/// A part of a page that becomes zero, with a spare page to do it in without needing memory.
pub(crate) struct Edge {
    pub(crate) page: u64,
    pub(crate) zero: Range<usize>,
    pub(crate) spare: Page,
    /// The version whose content, with the zeroes, was put into the tree in the same commit.
    pub(crate) inlined: Option<u64>,
}

/// The page cache.
pub(crate) struct Cache {
    budget: CacheBudget,
    pub(crate) meter: Rc<Meter>,
    zeroes: Pages,
    files: BTreeMap<ObjectId, File>,
    /// Every group in memory, in the order in which the clock's hand meets them.
    ring: VecDeque<(ObjectId, u64)>,
    /// Versions, epochs and loads are numbered together.
    counter: u64,
    dirty_pages: usize,
    /// Groups in memory; the ring may hold more, of groups that are gone.
    groups: usize,
    /// Files with dirty pages, the longest dirty first, with the time since when.
    queue: VecDeque<(Instant, ObjectId)>,
    /// The newest commit of any file that is no longer here.
    forgotten_seq: Seq,
    /// Space for every dirty page that no write-back has taken, but for those `owed`.
    reserved: SpaceReservation,
    /// Dirty pages that lost their reservation: a write-back failed, or a page was cut in the middle of one, and the
    /// pool was full or had stopped. Writing them back has to ask for space.
    owed: u64,
}

impl PendingAttrs for core::cell::RefCell<Cache> {
    fn pending(&self, inode: u64) -> Option<Pending> {
        self.borrow().pending(crate::namespace::object(inode))
    }
}

impl Cache {
    /// An empty cache; `reserved` is a reservation of nothing, to add to.
    pub(crate) fn new(budget: CacheBudget, reserved: SpaceReservation) -> FsResult<Cache> {
        let meter = Rc::new(Meter::default());
        let zeroes = Pages::zeroed(GROUP_PAGES as usize, &meter)?;
        Ok(Cache {
            budget,
            meter,
            zeroes,
            files: BTreeMap::new(),
            ring: VecDeque::new(),
            counter: 0,
            dirty_pages: 0,
            groups: 0,
            queue: VecDeque::new(),
            forgotten_seq: Seq(0),
            reserved,
            owed: 0,
        })
    }

    pub(crate) fn budget(&self) -> CacheBudget {
        self.budget
    }

    pub(crate) fn dirty_bytes(&self) -> usize {
        self.dirty_pages * BLOCK_SIZE
    }

    /// The number of the newest change.
    pub(crate) fn version(&self) -> u64 {
        self.counter
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub(crate) fn get(&self, object: ObjectId) -> Option<&File> {
        self.files.get(&object)
    }

    /// A file's cache, made if there is none.
    pub(crate) fn file(&mut self, object: ObjectId) -> &mut File {
        if !self.files.contains_key(&object) {
            // It may have been here before: then a COMMIT of it has to wait for what was committed before it left.
            let last_seq = self.forgotten_seq;
            let epoch = self.next();
            self.files.insert(object, File::new(epoch, last_seq));
        }
        self.files.get_mut(&object).expect("just made sure of")
    }

    pub(crate) fn pending(&self, object: ObjectId) -> Option<Pending> {
        self.files.get(&object)?.pending()
    }

    /// Forgets a file's cache if nothing is lost with it.
    pub(crate) fn settle(&mut self, object: ObjectId) {
        if let Some(file) = self.files.get(&object)
            && file.is_idle()
        {
            self.forgotten_seq = self.forgotten_seq.max(file.last_seq);
            self.files.remove(&object);
        }
    }

    /// The commit that must be durable for a file's written-back content to be.
    pub(crate) fn last_seq(&self, object: ObjectId) -> Seq {
        self.files.get(&object).map_or(self.forgotten_seq, |file| file.last_seq)
    }

    /// Notes a commit of a file's content. Nothing is kept for a file that has no cache: all of these share one number.
    pub(crate) fn note_commit(&mut self, object: ObjectId, seq: Seq) {
        let last = self.files.get_mut(&object).map_or(&mut self.forgotten_seq, |file| &mut file.last_seq);
        *last = (*last).max(seq);
    }

    /// Gathers bytes `start .. end`; else says from which to which page something is missing.
    pub(crate) fn collect(
        &mut self,
        object: ObjectId,
        start: u64,
        end: u64,
        loaded: Option<&Loaded>,
        parts: &mut Vec<Bytes>,
    ) -> Result<(), Range<u64>> {
        parts.clear();
        let pages = pages_of(start, end);
        let Some(file) = self.files.get_mut(&object) else { return Err(pages) };
        let loaded = loaded.filter(|l| l.epoch == file.epoch);
        let mut missing: Option<Range<u64>> = None;
        let mut run: Option<(Page, usize)> = None;
        let mut at = start;
        let mut flush = |run: &mut Option<(Page, usize)>, at: &mut u64, next: u64| {
            if let Some((page, _)) = run.take() {
                let until = next.min(end);
                parts.push(page.share((*at % BLOCK) as usize, (until - *at) as usize));
                *at = until;
            }
        };
        for number in pages {
            let index = number / GROUP_PAGES;
            let found = match file.groups.get_mut(&index) {
                Some(group) => match &group.slots[(number % GROUP_PAGES) as usize] {
                    Slot::Full(cached) => {
                        let page = cached.page.clone();
                        group.touch();
                        Some(page)
                    }
                    _ => None,
                },
                None => None,
            };
            let found = found.or_else(|| {
                let loaded = loaded?;
                let at = loaded.pages.binary_search_by_key(&number, |(n, _)| *n).ok()?;
                Some(loaded.pages[at].1.clone())
            });
            let Some(page) = found else {
                missing = Some(missing.map_or(number, |m| m.start)..number + 1);
                continue;
            };
            if missing.is_some() {
                continue;
            }
            match &mut run {
                Some((first, count)) if first.precedes(*count, &page) => *count += 1,
                _ => {
                    flush(&mut run, &mut at, number * BLOCK);
                    run = Some((page, 1));
                }
            }
        }
        if let Some(missing) = missing {
            parts.clear();
            return Err(missing);
        }
        flush(&mut run, &mut at, u64::MAX);
        Ok(())
    }

    /// A page that is in memory, for good or brought by one of the loads of this call.
    pub(crate) fn page<'a>(
        &'a self,
        object: ObjectId,
        number: u64,
        loaded: &'a [Loaded],
    ) -> Option<&'a Page> {
        let file = self.files.get(&object);
        let cached = file.and_then(|f| f.cached(number)).map(|cached| &cached.page);
        cached.or_else(|| loaded.iter().find_map(|l| l.page(file, number)))
    }

    /// A page of zeroes that stands for page `number` of a hole; neighbours are neighbours in memory too.
    pub(crate) fn zero_page(&self, number: u64) -> Page {
        self.zeroes.page((number % GROUP_PAGES) as usize * BLOCK_SIZE)
    }

    fn group(&mut self, object: ObjectId, index: u64) -> &mut Group {
        let file = self.file(object);
        if let alloc::collections::btree_map::Entry::Vacant(vacant) = file.groups.entry(index) {
            vacant.insert(Box::default());
            self.groups += 1;
            self.meter.add(GROUP_BYTES);
            self.ring.push_back((object, index));
            if self.ring.len() > 2 * self.groups + RING_SLACK {
                let files = &self.files;
                self.ring.retain(|(o, i)| files.get(o).is_some_and(|f| f.groups.contains_key(i)));
            }
        }
        let file = self.files.get_mut(&object).expect("made above");
        file.groups.get_mut(&index).expect("made above")
    }

    /// Marks the pages among `pages` that are neither in memory nor on their way, for one load.
    pub(crate) fn begin_load(&mut self, object: ObjectId, pages: Range<u64>, ahead: bool) -> LoadPlan {
        let id = self.next();
        let mut runs: Vec<Range<u64>> = Vec::new();
        for number in pages {
            let existed =
                self.files.get(&object).is_some_and(|f| f.groups.contains_key(&(number / GROUP_PAGES)));
            let group = self.group(object, number / GROUP_PAGES);
            group.ahead |= ahead && !existed;
            let slot = &mut group.slots[(number % GROUP_PAGES) as usize];
            if matches!(slot, Slot::Empty) {
                *slot = Slot::Loading(id);
                match runs.last_mut() {
                    Some(run) if run.end == number => run.end += 1,
                    _ => runs.push(number..number + 1),
                }
            }
        }
        LoadPlan { id, epoch: self.file(object).epoch, runs }
    }

    /// A loaded page: kept if it is still this load that fills it and there is room.
    pub(crate) fn finish_load(&mut self, object: ObjectId, id: u64, number: u64, page: &Page) {
        let room = self.meter.bytes() <= self.budget.total_bytes;
        if let Some(slot) = self.slot_mut(object, number)
            && (matches!(slot, Slot::Loading(n) if *n == id) || planted::is(Fault::LoadOverwritesNewer))
        {
            match slot {
                // Only where the fault is planted.
                Slot::Full(cached) => cached.page = page.clone(),
                _ if room => *slot = Slot::Full(Cached { page: page.clone(), dirty: None }),
                _ => *slot = Slot::Empty,
            }
        }
    }

    fn slot_mut(&mut self, object: ObjectId, number: u64) -> Option<&mut Slot> {
        let group = self.files.get_mut(&object)?.groups.get_mut(&(number / GROUP_PAGES))?;
        Some(&mut group.slots[(number % GROUP_PAGES) as usize])
    }

    /// Takes the marks off that a load left, when it ends in whatever way.
    pub(crate) fn end_load(&mut self, object: ObjectId, plan: &LoadPlan) {
        for number in plan.runs.iter().flat_map(|run| run.clone()) {
            if let Some(slot) = self.slot_mut(object, number)
                && matches!(slot, Slot::Loading(n) if *n == plan.id)
            {
                *slot = Slot::Empty;
            }
        }
        for run in &plan.runs {
            for index in run.start / GROUP_PAGES..run.end.div_ceil(GROUP_PAGES) {
                self.drop_empty_group(object, index);
            }
        }
    }

    fn drop_empty_group(&mut self, object: ObjectId, index: u64) {
        if let Some(file) = self.files.get_mut(&object)
            && file.groups.get(&index).is_some_and(|group| group.is_empty())
        {
            file.groups.remove(&index);
            self.groups -= 1;
            self.meter.sub(GROUP_BYTES);
            self.settle(object);
        }
    }

    /// Makes room for `bytes` more by dropping clean pages, coldest first. Says whether there is room now.
    pub(crate) fn make_room(&mut self, bytes: usize) -> bool {
        self.drop_clean(self.budget.total_bytes.saturating_sub(bytes))
    }

    /// Gives half of the memory back, as far as it is clean.
    pub(crate) fn shrink(&mut self) {
        self.drop_clean(self.meter.bytes() / 2);
    }

    /// Drops clean pages until at most `limit` bytes are held. Says whether that was possible.
    fn drop_clean(&mut self, limit: usize) -> bool {
        // Two rounds of the hand: one to cool groups down, one to drop them.
        let mut looks = self.ring.len() * 2;
        while self.meter.bytes() > limit && looks > 0 {
            looks -= 1;
            let Some((object, index)) = self.ring.pop_front() else { break };
            let Some(group) = self.files.get_mut(&object).and_then(|f| f.groups.get_mut(&index)) else {
                continue;
            };
            if core::mem::take(&mut group.hot) {
                self.ring.push_back((object, index));
                continue;
            }
            for slot in &mut group.slots {
                if matches!(slot, Slot::Full(Cached { dirty: None, .. })) {
                    *slot = Slot::Empty;
                }
            }
            if group.is_empty() {
                self.drop_empty_group(object, index);
            } else {
                self.ring.push_back((object, index));
            }
        }
        self.meter.bytes() <= limit
    }

    /// Pages among `pages` for which a write must reserve space: all but those dirty with a reservation of their own.
    pub(crate) fn new_dirty(&self, object: ObjectId, pages: Range<u64>) -> u64 {
        let count = pages.end - pages.start;
        let Some(file) = self.files.get(&object) else { return count };
        count - file.dirty_in(pages).filter(|(_, _, dirty)| !dirty.taken).count() as u64
    }

    /// Changes a page. `page` replaces it whole; its space was reserved and is in `space` unless the page has some.
    pub(crate) fn write(
        &mut self,
        object: ObjectId,
        number: u64,
        page: Page,
        space: &mut SpaceReservation,
        now: Instant,
    ) {
        let version = self.next();
        let group = self.group(object, number / GROUP_PAGES);
        group.touch();
        let slot = &mut group.slots[(number % GROUP_PAGES) as usize];
        match slot {
            Slot::Full(cached) => cached.page = page,
            _ => *slot = Slot::Full(Cached { page, dirty: None }),
        }
        self.dirtied(object, number, version, space, now);
    }

    /// Notes that the content of a page in memory is new.
    fn dirtied(
        &mut self,
        object: ObjectId,
        number: u64,
        version: u64,
        space: &mut SpaceReservation,
        now: Instant,
    ) {
        let file = self.files.get_mut(&object).expect("a page's file is in memory");
        let before = file.dirty(number).copied();
        let dirty = match before {
            Some(d) => Dirty { version, taken: false, logged: false, ..d },
            None => Dirty { version, since: version, floor: version, taken: false, logged: false },
        };
        self.dirty_pages += usize::from(before.is_none());
        file.set_dirty(number, dirty);
        file.epoch = version;
        if !file.queued {
            file.queued = true;
            self.queue.push_back((now, object));
        }
        if before.is_none_or(|d| d.taken) {
            self.put_space(space);
        }
    }

    /// Removes pages of `whole` and zeroes the `edges`, which a commit has just done to the keys. `space` is what could
    /// be had for edges that now only wait to be moved out of the tree.
    pub(crate) fn cut(
        &mut self,
        object: ObjectId,
        whole: Range<u64>,
        edges: Vec<Edge>,
        space: &mut SpaceReservation,
        now: Instant,
    ) {
        let version = self.next();
        if !self.files.contains_key(&object) {
            return;
        }
        for mut edge in edges {
            let Some(slot) = self.slot_mut(object, edge.page) else { continue };
            let Slot::Full(cached) = slot else {
                *slot = Slot::Empty;
                continue;
            };
            let mut fresh = core::mem::replace(&mut edge.spare, cached.page.clone());
            fresh.bytes_mut().copy_from_slice(cached.page.bytes());
            fresh.bytes_mut()[edge.zero.clone()].fill(0);
            cached.page = fresh;
            let before = cached.dirty;
            let settled = edge.inlined.is_some_and(|v| before.is_none_or(|d| d.version == v));
            match before {
                Some(d) => {
                    let version = self.next();
                    // What a write-back took of it is old now: the page needs space of its own again.
                    if d.taken {
                        self.put_space(space);
                    }
                    let since = if settled { version } else { d.since };
                    let dirty = Dirty { version, since, floor: version, taken: false, logged: settled };
                    self.file(object).set_dirty(edge.page, dirty);
                }
                None if settled && space.bytes() >= BLOCK => {
                    let version = self.next();
                    self.dirtied(object, edge.page, version, space, now);
                    let file = self.files.get_mut(&object).expect("looked at above");
                    let dirty = *file.dirty(edge.page).expect("just marked");
                    file.set_dirty(edge.page, Dirty { logged: true, ..dirty });
                }
                None => {}
            }
        }
        let file = self.files.get_mut(&object).expect("looked at above");
        file.epoch = version;
        let groups = whole.start / GROUP_PAGES..whole.end.div_ceil(GROUP_PAGES);
        let indices: Vec<u64> = file.groups.range(groups).map(|(index, _)| *index).collect();
        for index in indices {
            for n in 0..GROUP_PAGES {
                let number = index * GROUP_PAGES + n;
                if whole.contains(&number) {
                    self.drop_page(object, number);
                }
            }
            self.drop_empty_group(object, index);
        }
        self.settle_pending(object);
    }

    fn drop_page(&mut self, object: ObjectId, number: u64) {
        let file = self.files.get_mut(&object).expect("the caller looked at it");
        if let Some(dirty) = file.forget_dirty(number) {
            self.dirty_pages -= 1;
            if !dirty.taken {
                drop(self.take_space(1));
            }
        }
        if let Some(slot) = self.slot_mut(object, number) {
            *slot = Slot::Empty;
        }
    }

    /// Nothing unlogged left: the record says it all.
    fn settle_pending(&mut self, object: ObjectId) {
        if let Some(file) = self.files.get_mut(&object)
            && file.unlogged_pages == 0
        {
            file.pending = None;
        }
    }

    /// Forgets everything about a file that lost its last name.
    pub(crate) fn forget(&mut self, object: ObjectId) {
        let Some(file) = self.files.get_mut(&object) else { return };
        file.pending = None;
        let numbers: Vec<u64> = file.dirty_in(0..u64::MAX / BLOCK).map(|(number, ..)| number).collect();
        for number in numbers {
            self.drop_page(object, number);
        }
        let version = self.next();
        let file = self.files.get_mut(&object).expect("looked at above");
        file.epoch = version;
        self.groups -= file.groups.len();
        self.meter.sub(GROUP_BYTES * file.groups.len());
        file.groups.clear();
        self.settle(object);
    }

    /// Takes copies of dirty pages among `pages` whose changes began at or before version `until`: at most `max`.
    pub(crate) fn take(
        &mut self,
        object: ObjectId,
        pages: Range<u64>,
        until: u64,
        which: Which,
        max: usize,
    ) -> Take {
        let Some(file) = self.files.get_mut(&object) else { return Take::Nothing };
        let mut taken: Vec<TakenPage> = Vec::new();
        let mut in_flight = false;
        for (number, cached, dirty) in file.dirty_in(pages) {
            let wanted = match dirty.logged {
                true => which == Which::All && dirty.version <= until,
                false => dirty.since <= until,
            };
            if !wanted {
                continue;
            }
            if dirty.taken {
                in_flight = true;
                continue;
            }
            taken.push(TakenPage { number, page: cached.page.clone(), version: dirty.version });
            if taken.len() == max {
                break;
            }
        }
        if taken.is_empty() {
            return if in_flight { Take::InFlight } else { Take::Nothing };
        }
        for page in &taken {
            let cached = file.cached_mut(page.number).expect("just seen");
            cached.dirty.as_mut().expect("just seen").taken = true;
        }
        let pending = file.pending();
        let space = self.take_space(taken.len() as u64);
        Take::Batch(taken, space, pending)
    }

    /// Whether a taken page's content may still be committed.
    pub(crate) fn may_commit(&self, object: ObjectId, page: &TakenPage) -> bool {
        let dirty = self.files.get(&object).and_then(|file| file.dirty(page.number));
        dirty.is_some_and(|dirty| page.version >= dirty.floor || planted::is(Fault::OldWriteBackWins))
    }

    /// A taken page was committed: clean, unless it changed meanwhile.
    pub(crate) fn committed(&mut self, object: ObjectId, page: &TakenPage) {
        let Some(file) = self.files.get_mut(&object) else { return };
        let Some(dirty) = file.dirty(page.number).copied() else { return };
        if dirty.version == page.version || planted::is(Fault::PageCleanedEarly) {
            file.forget_dirty(page.number);
            self.dirty_pages -= 1;
        } else if let Some(dirty) = file.cached_mut(page.number).and_then(|c| c.dirty.as_mut()) {
            dirty.floor = dirty.floor.max(page.version);
            dirty.since = dirty.since.max(page.version + 1);
        }
    }

    /// The content `version` of a page was committed as an inline extent. With `keep` it stays dirty, to be moved out of
    /// the tree later; without it is clean now.
    pub(crate) fn inlined(&mut self, object: ObjectId, number: u64, version: u64, keep: bool) {
        let Some(file) = self.files.get_mut(&object) else { return };
        let Some(mut dirty) = file.dirty(number).copied() else { return };
        dirty.floor = dirty.floor.max(version);
        dirty.since = dirty.since.max(version + 1);
        if dirty.version == version && !keep && !dirty.taken {
            file.forget_dirty(number);
            self.dirty_pages -= 1;
            drop(self.take_space(1));
            return;
        }
        dirty.logged |= dirty.version == version;
        file.set_dirty(number, dirty);
    }

    /// A write-back failed or was given up: its pages are as dirty as before. `space` is what could be reserved anew.
    pub(crate) fn untake(
        &mut self,
        object: ObjectId,
        pages: &[TakenPage],
        mut space: Option<SpaceReservation>,
    ) {
        for page in pages {
            let Some(file) = self.files.get_mut(&object) else { break };
            let Some(dirty) = file.cached_mut(page.number).and_then(|c| c.dirty.as_mut()) else { continue };
            if dirty.taken && dirty.version == page.version {
                dirty.taken = false;
                match &mut space {
                    Some(space) => self.put_space(space),
                    None => self.owed += 1,
                }
            }
        }
    }

    /// Pages of a taken batch that would need space again if it failed now.
    pub(crate) fn still_taken(&self, object: ObjectId, pages: &[TakenPage]) -> u64 {
        let Some(file) = self.files.get(&object) else { return 0 };
        let is = |p: &&TakenPage| file.dirty(p.number).is_some_and(|d| d.taken && d.version == p.version);
        pages.iter().filter(is).count() as u64
    }

    /// Every unlogged page of a file is committed, with these times: the record says it all now. Else what is pending
    /// stays.
    pub(crate) fn settle_file(&mut self, object: ObjectId) {
        self.settle_pending(object);
        self.settle(object);
    }

    /// The file that has been dirty longest, if since `before` or earlier; it leaves the queue.
    pub(crate) fn next_dirty(&mut self, before: Instant) -> Option<ObjectId> {
        while let Some((since, object)) = self.queue.front().copied() {
            let dirty = self.files.get(&object).is_some_and(|f| f.dirty_pages > 0);
            if dirty && since > before {
                return None;
            }
            self.queue.pop_front();
            if let Some(file) = self.files.get_mut(&object) {
                file.queued = false;
            }
            if dirty {
                return Some(object);
            }
            self.settle(object);
        }
        None
    }

    /// Puts a file back into the queue that still has dirty pages.
    pub(crate) fn requeue(&mut self, object: ObjectId, since: Instant) {
        if let Some(file) = self.files.get_mut(&object)
            && file.dirty_pages > 0
            && !file.queued
        {
            file.queued = true;
            self.queue.push_back((since, object));
        }
    }

    /// Since when the longest dirty file is.
    pub(crate) fn dirty_since(&self) -> Option<Instant> {
        self.queue.front().map(|(since, _)| *since)
    }

    /// Files with dirty pages.
    pub(crate) fn dirty_files(&self) -> Vec<ObjectId> {
        self.files.iter().filter(|(_, f)| f.dirty_pages > 0).map(|(object, _)| *object).collect()
    }

    /// Adds the space of one page.
    fn put_space(&mut self, space: &mut SpaceReservation) {
        let page = space.split(BLOCK);
        self.owed += u64::from(page.bytes() < BLOCK);
        self.reserved.merge(page);
    }

    /// Takes the space of some dirty pages; less if some are owed.
    fn take_space(&mut self, pages: u64) -> SpaceReservation {
        let space = self.reserved.split(pages * BLOCK);
        self.owed -= pages - space.bytes() / BLOCK;
        space
    }

    /// Whether what is reserved is exactly what dirty pages need: write-back never meets a full pool.
    pub(crate) fn is_covered(&self) -> bool {
        let all = || self.files.values().flat_map(|f| f.dirty_in(0..u64::MAX / BLOCK));
        let waiting = all().filter(|(_, _, dirty)| !dirty.taken).count() as u64;
        self.reserved.bytes() + self.owed * BLOCK == waiting * BLOCK && self.dirty_pages == all().count()
    }
}
