//! Checking and repairing a pool: everything on it is read, every inconsistency has a name, and what can be put right is.
//!
//! | file | its idea |
//! |---|---|
//! | [`findings`] | each kind of inconsistency, with a persistent id, a severity and its text |
//! | [`pool`] | superblocks and journal, before and while a pool is mounted to be checked |
//! | [`walk`] | reading whole trees and single keys, around what cannot be read |
//! | [`topology`] | nodes: every tree covers all positions, each exactly once; what is lost is replaced by nothing |
//! | [`salvage`] | what nodes on disk still hold of a lost part of a tree |
//! | [`mend`] | how a repair writes: free space it knows itself, commits, new names for lost objects |
//! | [`inodes`] | inodes and what only numbers and lists them |
//! | [`content`] | extents against inodes, content against checksums |
//! | [`names`] | entries of directories and extended attributes, against inodes and hashes |
//! | [`links`] | numbers of names, objects without any, directories that cannot be reached |
//! | [`overlaps`] | no bytes belong to two keys |
//! | [`recount`] | buckets, free ranges, backpointers and counters against what keys refer to |
//! | [`damage`] | which files lost content, by path |
//!
//! A repair looks first, as a check does, and tells what is wrong with the pool as it was found. Only if something is,
//! every pass runs again and mends. What that finds beyond is a consequence: of what was lost, or of what mended it.
//!
//! Truth are extents, dirents, inodes and xattrs; alloc, free ranges, need-discard, backpointers, lru and counters derive
//! from them and are rebuilt by the recount. Each pass relies on the ones before it. Memory is bounded: what a pass must
//! hold of many objects at once it holds of a range of them at a time.
//!
//! A repair may be cut anywhere: it marks the superblock first, and a pool so marked is mounted by the next repair only.

mod content;
mod damage;
mod findings;
mod inodes;
mod links;
mod mend;
mod names;
mod overlaps;
mod pool;
mod recount;
mod salvage;
mod topology;
mod walk;

pub use findings::{Damage, Finding, FindingKind, Severity};
pub use pool::check_pool;

use crate::btree::Remains;
use crate::engine::Engine;
use crate::vfs::FsResult;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use moraine_format::{Pos, Tree};

/// Findings that a repair remembers, so as to tell each once; of more, some may be told again as consequences.
const TOLD_MAX: usize = 1 << 18;

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
    /// Keys read, each as often as it was.
    pub keys: u64,
    /// Inconsistencies found.
    pub found: u64,
    /// Of these, mended.
    pub repaired: u64,
    /// File content verified, in bytes.
    pub bytes_verified: u64,
    /// Stretches of file content that are lost.
    pub lost: u64,
}

impl Summary {
    /// Whether anything is left that was not mended.
    pub fn is_clean(&self) -> bool {
        self.found == self.repaired
    }
}

/// Where a check tells what it finds and how far it is.
pub trait Reporter {
    /// An inconsistency of the pool as it was found.
    fn finding(&mut self, finding: &Finding);
    /// What a repair changed besides: a consequence of what was lost. Derived keys are not told.
    fn consequence(&mut self, _finding: &Finding) {}
    /// Content of a file that is lost: damaged now, or known to be from an earlier repair.
    fn damage(&mut self, _damage: &Damage) {}
    /// A pass begins.
    fn pass(&mut self, _name: &'static str) {}
    /// Bytes of nodes and content read so far, and about how many there are.
    fn progress(&mut self, _done: u64, _total: u64) {}
}

/// A check under way.
pub(crate) struct Check<'c> {
    pub(crate) engine: Engine,
    pub(crate) repair: Repair,
    pub(crate) reporter: &'c mut dyn Reporter,
    pub(crate) summary: Summary,
    /// Parts of trees that are lost, as far as they are not restored.
    lost: Vec<(Tree, Pos, Pos)>,
    /// Parts of trees that were lost and restored as far as old nodes had them: what is there may be outdated.
    restored: Vec<(Tree, Pos, Pos)>,
    /// What was in memory of them.
    remains: Vec<(Tree, Remains)>,
    /// Content that is lost.
    stretches: Vec<damage::Stretch>,
    /// A number for a new inode.
    fresh: Option<u64>,
    /// Node bytes read, and what is to be read in all.
    nodes_done: u64,
    total: u64,
    /// Every node can be read: what is wrong from here on is in keys.
    whole: bool,
    /// Nodes are written back in the background.
    writing_back: bool,
    /// What is wrong was looked at and told; now it is mended.
    mending: bool,
    /// Hashes of the findings that were told, and whether as mended.
    told: BTreeMap<u64, bool>,
}

impl<'c> Check<'c> {
    fn new(engine: &Engine, repair: Repair, reporter: &'c mut dyn Reporter) -> Check<'c> {
        Check {
            engine: engine.clone(),
            repair,
            reporter,
            summary: Summary::default(),
            lost: Vec::new(),
            restored: Vec::new(),
            remains: Vec::new(),
            stretches: Vec::new(),
            fresh: None,
            nodes_done: 0,
            total: 0,
            whole: false,
            writing_back: false,
            mending: false,
            told: BTreeMap::new(),
        }
    }

    /// Whether what is found is mended at once.
    fn repairs(&self) -> bool {
        self.mending
    }

    /// Whether what is found is mended now or later.
    fn will_repair(&self) -> bool {
        self.repair == Repair::Yes
    }

    pub(crate) fn report(&mut self, kind: FindingKind, text: String, repaired: bool) {
        let finding = Finding { kind, text, repaired };
        if self.mending {
            match self.told.get_mut(&finding.hash()) {
                Some(as_mended) if *as_mended && !repaired => {
                    *as_mended = false;
                    self.summary.repaired -= 1;
                    return;
                }
                Some(_) => return,
                None if !repaired => {}
                None if kind.severity() == Severity::Derived => return,
                None => return self.reporter.consequence(&finding),
            }
        }
        if self.repair == Repair::Yes && self.told.len() < TOLD_MAX {
            self.told.insert(finding.hash(), repaired);
        }
        self.summary.found += 1;
        self.summary.repaired += u64::from(repaired);
        self.reporter.finding(&finding);
    }

    /// Reports what the caller mends, if this is a repair.
    fn found(&mut self, kind: FindingKind, text: String) {
        self.report(kind, text, self.will_repair());
    }

    /// Whether a part of a tree that meets `min ..= max` was lost.
    fn was_lost(&self, tree: Tree, min: Pos, max: Pos) -> bool {
        self.restored.iter().any(|(t, first, last)| *t == tree && *first <= max && min <= *last)
    }

    fn tell_progress(&mut self) {
        let done = self.nodes_done + self.summary.bytes_verified;
        self.total = self.total.max(done);
        self.reporter.progress(done, self.total);
    }
}

/// Checks everything on a mounted pool that nobody else uses meanwhile, and changes nothing. Background work waits
/// while it looks. To repair, see [`check_pool`].
pub async fn check(engine: &Engine, repair: Repair, reporter: &mut dyn Reporter) -> FsResult<Summary> {
    assert!(repair == Repair::No || engine.is_mounted_to_check(), "only a pool mounted for it is repaired");
    engine.pause().await;
    let mut check = Check::new(engine, repair, reporter);
    let result = check.passes().await;
    engine.resume();
    result.map(|()| check.summary)
}

/// As [`check`], but for what knows of no files: structure and space, whatever the trees hold.
pub async fn check_space(engine: &Engine, reporter: &mut dyn Reporter) -> FsResult<Summary> {
    engine.pause().await;
    let mut check = Check::new(engine, Repair::No, reporter);
    let result = check.structure_and_space().await;
    engine.resume();
    result.map(|()| check.summary)
}

impl Check<'_> {
    async fn structure_and_space(&mut self) -> FsResult<()> {
        self.pass("topology");
        topology::check(self).await?;
        self.pass("space");
        recount::check(self).await
    }

    async fn passes(&mut self) -> FsResult<()> {
        self.total = self.used_bytes().await?;
        let before = self.summary.found;
        match self.all_passes().await {
            // What keeps a check from going on may be what is to be mended.
            Err(e) if self.will_repair() && walk::is_damage(e) => {}
            Err(e) => return Err(e),
            Ok(()) if self.will_repair() && self.summary.found > before => {}
            Ok(()) => return self.tell_damage().await,
        }
        self.mending = true;
        self.whole = false;
        self.stretches.clear();
        self.nodes_done = 0;
        (self.summary.bytes_verified, self.summary.lost) = (0, 0);
        self.all_passes().await?;
        self.tell_damage().await
    }

    async fn all_passes(&mut self) -> FsResult<()> {
        if self.engine.is_under_repair() {
            self.found(FindingKind::RepairUnfinished, "what derives from other keys may be wrong".into());
            if self.repairs() {
                self.begin_mending().await?;
            }
        }
        if let Some(why) = self.engine.inner.rot.clone() {
            self.found(FindingKind::JournalDamaged, why);
        }
        self.pass("topology");
        topology::check(self).await?;
        self.whole = true;
        salvage::restore(self).await?;
        self.pass("inodes");
        inodes::check(self).await?;
        self.pass("content");
        content::check(self).await?;
        self.pass("names");
        names::check(self).await?;
        self.pass("links");
        links::check(self).await?;
        self.pass("space");
        recount::check(self).await
    }

    async fn tell_damage(&mut self) -> FsResult<()> {
        self.pass("damage");
        damage::report(self).await
    }

    fn pass(&mut self, name: &'static str) {
        self.reporter.pass(name);
        self.tell_progress();
    }
}
