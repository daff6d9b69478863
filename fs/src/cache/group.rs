//! Sixteen neighbouring pages of a file: the unit of eviction and of bookkeeping.

use super::page::Page;

/// Pages in a group.
pub(crate) const GROUP_PAGES: u64 = 16;

/// Why a page must not be dropped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dirty {
    /// Which content it is: grows with each change, over all pages of the cache.
    pub(crate) version: u64,
    /// No change in it is older than this, but for those that are committed: a sync of changes up to a version must
    /// wait for every page whose `since` is not later, also when a copy of it is on its way already.
    pub(crate) since: u64,
    /// Copies older than this must not be committed any more: something newer was, or the page was cut.
    pub(crate) floor: u64,
    /// A write-back holds a copy of exactly this version, and the space that was reserved for it.
    pub(crate) taken: bool,
    /// This version is committed as an inline extent: nothing is lost without a write-back, it only moves the
    /// content out of the tree.
    pub(crate) logged: bool,
}

/// A page in memory.
pub(crate) struct Cached {
    pub(crate) page: Page,
    pub(crate) dirty: Option<Dirty>,
}

/// State of a page.
#[derive(Default)]
pub(crate) enum Slot {
    /// Not in memory.
    #[default]
    Empty,
    /// Not in memory, but the load with this number brings it.
    Loading(u64),
    /// In memory.
    Full(Cached),
}

/// Sixteen slots.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) slots: [Slot; GROUP_PAGES as usize],
    /// Used since the clock's hand last came by.
    pub(crate) hot: bool,
    /// Brought by read-ahead and not yet used: its first use does not make it hot, so streams pass through.
    pub(crate) ahead: bool,
}

impl Group {
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot, Slot::Empty))
    }

    pub(crate) fn has_dirty(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot, Slot::Full(Cached { dirty: Some(_), .. })))
    }

    /// Notes a use.
    pub(crate) fn touch(&mut self) {
        if self.ahead {
            self.ahead = false;
        } else {
            self.hot = true;
        }
    }
}
