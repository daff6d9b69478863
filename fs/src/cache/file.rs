//! What memory holds of one file: its pages, and what unsynced writes changed.

use super::ahead::Streams;
use super::group::{Cached, Dirty, GROUP_PAGES, Group, Slot};
use crate::namespace::Pending;
use crate::vfs::Seq;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use core::ops::Range;
use moraine_platform::BLOCK_SIZE;

/// A file's cache.
pub(crate) struct File {
    pub(crate) groups: BTreeMap<u64, Box<Group>>,
    /// Groups with dirty pages, so that a sync of a large file looks at these only.
    pub(crate) dirty_groups: BTreeSet<u64>,
    /// Dirty pages.
    pub(crate) dirty_pages: usize,
    /// Dirty pages whose newest content is nowhere but in memory.
    pub(crate) unlogged_pages: usize,
    /// Size and times of unsynced writes; there as long as unlogged pages are.
    pub(crate) pending: Option<Pending>,
    /// The last commit of its content, or a later one.
    pub(crate) last_seq: Seq,
    /// Changes whenever content does: what was loaded before may be old.
    pub(crate) epoch: u64,
    pub(crate) streams: Streams,
    /// A read-ahead is running.
    pub(crate) ahead: bool,
    /// A logged operation is deleting these bytes' extents: they read as a hole.
    pub(crate) masked: Option<Range<u64>>,
    /// Calls that need it to stay.
    pub(crate) pins: usize,
    /// It is in the queue of dirty files.
    pub(crate) queued: bool,
}

impl File {
    pub(crate) fn new(epoch: u64, last_seq: Seq) -> File {
        File {
            groups: BTreeMap::new(),
            dirty_groups: BTreeSet::new(),
            dirty_pages: 0,
            unlogged_pages: 0,
            pending: None,
            last_seq,
            epoch,
            streams: Streams::default(),
            ahead: false,
            masked: None,
            pins: 0,
            queued: false,
        }
    }

    /// Whether nothing would be forgotten with it.
    pub(crate) fn is_idle(&self) -> bool {
        self.groups.is_empty()
            && self.pins == 0
            && self.pending.is_none()
            && self.masked.is_none()
            && !self.queued
    }

    /// What is pending, with its dirty bytes.
    pub(crate) fn pending(&self) -> Option<Pending> {
        let dirty_bytes = (self.unlogged_pages * BLOCK_SIZE) as u64;
        self.pending.map(|pending| Pending { dirty_bytes, ..pending })
    }

    pub(crate) fn slot(&self, page: u64) -> &Slot {
        match self.groups.get(&(page / GROUP_PAGES)) {
            Some(group) => &group.slots[(page % GROUP_PAGES) as usize],
            None => &Slot::Empty,
        }
    }

    pub(crate) fn cached(&self, page: u64) -> Option<&Cached> {
        match self.slot(page) {
            Slot::Full(cached) => Some(cached),
            _ => None,
        }
    }

    pub(crate) fn cached_mut(&mut self, page: u64) -> Option<&mut Cached> {
        match self.groups.get_mut(&(page / GROUP_PAGES))?.slots.get_mut((page % GROUP_PAGES) as usize) {
            Some(Slot::Full(cached)) => Some(cached),
            _ => None,
        }
    }

    pub(crate) fn dirty(&self, page: u64) -> Option<&Dirty> {
        self.cached(page)?.dirty.as_ref()
    }

    /// Pages in `pages` that are dirty, in order.
    pub(crate) fn dirty_in(&self, pages: Range<u64>) -> impl Iterator<Item = (u64, &Cached, &Dirty)> {
        let groups = pages.start / GROUP_PAGES..pages.end.div_ceil(GROUP_PAGES);
        self.dirty_groups.range(groups).flat_map(move |index| {
            let pages = pages.clone();
            let group = &self.groups[index];
            group.slots.iter().enumerate().filter_map(move |(n, slot)| {
                let page = index * GROUP_PAGES + n as u64;
                match slot {
                    Slot::Full(cached) if pages.contains(&page) => {
                        Some((page, cached, cached.dirty.as_ref()?))
                    }
                    _ => None,
                }
            })
        })
    }

    /// Takes the dirty mark of a page off, or the page away; keeps the counts.
    pub(crate) fn forget_dirty(&mut self, page: u64) -> Option<Dirty> {
        let dirty = self.cached_mut(page)?.dirty.take()?;
        self.dirty_pages -= 1;
        self.unlogged_pages -= usize::from(!dirty.logged);
        let index = page / GROUP_PAGES;
        if !self.groups[&index].has_dirty() {
            self.dirty_groups.remove(&index);
        }
        Some(dirty)
    }

    /// Marks a page in memory as dirty with a new version.
    pub(crate) fn set_dirty(&mut self, page: u64, dirty: Dirty) {
        let before = self.forget_dirty(page);
        debug_assert!(before.is_none_or(|b| b.version <= dirty.version), "versions rise");
        let cached = self.cached_mut(page).expect("a page that becomes dirty is in memory");
        let logged = dirty.logged;
        cached.dirty = Some(dirty);
        self.dirty_pages += 1;
        self.unlogged_pages += usize::from(!logged);
        self.dirty_groups.insert(page / GROUP_PAGES);
    }
}
