//! Checking the filesystem: every key is read, every derived key is recounted from the ones it derives from.
//!
//! | file | its idea |
//! |---|---|
//! | [`findings`] | each kind of inconsistency, with a persistent id, a severity and its text |
//! | [`walk`] | reading whole trees, damaged nodes left out and reported |
//! | [`recount`] | buckets, free ranges, backpointers and counters against what keys refer to |
//!
//! Truth are extents, dirents, inodes and xattrs; alloc, free ranges, need-discard, backpointers and counters derive from
//! them and are rebuilt by the recount.

mod findings;
mod names;
mod recount;
mod walk;

pub use findings::{Finding, FindingKind, Severity};

use crate::engine::Engine;
use crate::vfs::FsResult;

/// What a check is to do about what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Report only.
    No,
    /// Mend what can be mended.
    Yes,
}

/// What a check saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Keys read.
    pub keys: u64,
    /// Inconsistencies found.
    pub found: u64,
    /// Of these, mended.
    pub repaired: u64,
    /// File content verified, in bytes.
    pub bytes_verified: u64,
}

impl Summary {
    /// Whether anything is left that was not mended.
    pub fn is_clean(&self) -> bool {
        self.found == self.repaired
    }
}

/// Where a check tells what it finds and how far it is.
pub trait Reporter {
    /// An inconsistency.
    fn finding(&mut self, finding: &Finding);
    /// A pass begins.
    fn pass(&mut self, _name: &'static str) {}
    /// Keys read so far in this pass.
    fn progress(&mut self, _keys: u64) {}
}

/// A check under way.
pub(crate) struct Check<'c> {
    pub(crate) engine: &'c Engine,
    pub(crate) repair: Repair,
    pub(crate) reporter: &'c mut dyn Reporter,
    pub(crate) summary: Summary,
}

impl Check<'_> {
    pub(crate) fn report(&mut self, kind: FindingKind, text: alloc::string::String, repaired: bool) {
        self.summary.found += 1;
        self.summary.repaired += u64::from(repaired);
        self.reporter.finding(&Finding { kind, text, repaired });
    }
}

/// Checks everything on a pool that nobody else uses meanwhile. Background work waits while it looks.
pub async fn check(engine: &Engine, repair: Repair, reporter: &mut dyn Reporter) -> FsResult<Summary> {
    engine.pause().await;
    let result = passes(engine, repair, reporter).await;
    engine.resume();
    result
}

async fn passes(engine: &Engine, repair: Repair, reporter: &mut dyn Reporter) -> FsResult<Summary> {
    let mut check = Check { engine, repair, reporter, summary: Summary::default() };
    check.reporter.pass("topology");
    walk::topology(&mut check).await?;
    check.reporter.pass("files");
    names::check(&mut check).await?;
    check.reporter.pass("space");
    recount::recount(&mut check).await?;
    Ok(check.summary)
}
