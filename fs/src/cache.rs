//! The page cache: verified file content in memory, clean and dirty, and what is pending about files.
//!
//! Everything here is synchronous: one look or one change at a time, no await. What must wait (loading, write-back,
//! throttling) is done by `filesystem`, which comes back with results that are accepted only if they still fit.
//!
//! | file | what it holds |
//! |---|---|
//! | [`page`] | memory of pages: shared, metered, copied when written while shared |
//! | [`group`] | sixteen pages of a file, and what state each is in |
//! | [`file`] | what is cached and pending of one file |
//! | [`ahead`] | recognising sequential readers |
//! | [`store`] | all files within one budget; eviction; the queue of dirty files |
//!
//! # Why no lock is needed
//! A page is changed in one synchronous step. A load or a write-back that was under way meanwhile finds out when it comes
//! back: a load's slot no longer says that this load fills it; a write-back's copy is older than what the page may commit
//! ([`group::Dirty::floor`]). And whatever invalidates a write-back also changes the inode's record in its own commit, so
//! that the write-back's transaction runs its body again.

pub(crate) mod ahead;
pub(crate) mod file;
pub(crate) mod group;
pub(crate) mod page;
pub(crate) mod store;

pub(crate) use page::Page;
pub(crate) use store::{Cache, TakenPage};

/// Bytes a page cache may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheBudget {
    /// All pages.
    pub total_bytes: usize,
    /// Dirty pages, out of the total. Writers are slowed from 60 % of it and wait at all of it.
    pub dirty_bytes: usize,
}

impl CacheBudget {
    /// A budget of `total_bytes`, a third of which may be dirty.
    pub const fn of(total_bytes: usize) -> CacheBudget {
        CacheBudget { total_bytes, dirty_bytes: total_bytes / 3 }
    }
}
