//! Workloads written for crash enumeration: short, each of what it is named for, on a filesystem whose constants are so
//! small that it happens. The seed draws sizes, offsets and how often is synced, so that each is another set of worlds.

use crate::Random;
use crate::crash::{CrashPlan, CrashReport};
use crate::harness::{enumerate_steps, formatted};
use crate::ops::{Guard, Made, Op, Slot, Step, Who};
use crate::plug::Moraine;
use moraine_fs::vfs::*;
use moraine_platform::Timestamp;

/// Bytes of a piece of what fills a disk.
const PIECE: u32 = 128 << 10;
/// Pieces that are more than the disk holds.
const PIECES: u64 = 40;
/// Names that make trees of three levels, with a dozen keys a node.
const NAMES: u64 = 110;
/// Synced commits that go around a journal of four buckets, and on.
const COMMITS: u64 = 110;

/// What a workload is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Every operation of the namespace.
    Names,
    /// Large truncates, unlinks and holes, in steps of two extents.
    Cuts,
    /// Names until roots split, and split again.
    Splits,
    /// Commits until a journal of four buckets wraps.
    Wrap,
    /// Writes until there is no space, then removal.
    Full,
}

impl Script {
    /// All of them.
    pub const ALL: &[Script] = &[Script::Names, Script::Cuts, Script::Splits, Script::Wrap, Script::Full];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Script::Names => "names-cut",
            Script::Cuts => "cuts",
            Script::Splits => "splits",
            Script::Wrap => "wrap",
            Script::Full => "no-space",
        }
    }

    /// The one called `name`.
    pub fn named(name: &str) -> Option<Script> {
        Script::ALL.iter().copied().find(|script| script.name() == name)
    }

    /// The filesystem it runs on.
    pub fn store(self, seed: u64) -> Moraine {
        Moraine::for_cuts(seed, self == Script::Full)
    }

    /// Its steps, and how many of them only prepare.
    pub fn steps(self, seed: u64) -> (Vec<Step>, usize) {
        let mut w = Writer { steps: Vec::new(), random: Random::for_purpose(seed, self.name()) };
        let prepared = match self {
            Script::Names => names(&mut w),
            Script::Cuts => cuts(&mut w),
            Script::Splits => splits(&mut w),
            Script::Wrap => wrap(&mut w),
            Script::Full => full(&mut w),
        };
        (w.steps, prepared)
    }

    /// Cuts it at every device command.
    pub fn enumerate(self, seed: u64, bounds: impl FnOnce(&mut CrashPlan)) -> CrashReport {
        let store = self.store(seed);
        let start =
            formatted(&store, seed, &crate::generate::Profile::ALL[0]).expect("blank disks can be formatted");
        let (steps, prepared) = self.steps(seed);
        let mut plan = CrashPlan::new(format!("{} seed {seed}", self.name()), seed, start);
        // Two marks a step: asked and answered.
        plan.marks_first = 2 * prepared;
        bounds(&mut plan);
        enumerate_steps(&store, &plan, &steps)
    }
}

struct Writer {
    steps: Vec<Step>,
    random: Random,
}

impl Writer {
    /// Adds a step; returns what it makes, if it makes anything.
    fn op(&mut self, op: Op) -> Slot {
        let number = self.steps.len() as u32;
        self.steps.push(Step { number, who: Who::Root, op });
        Slot(number)
    }

    fn create(&mut self, dir: Slot, name: &str, how: CreateMode) -> Slot {
        let set = SetAttr { mode: Some(0o644), ..SetAttr::default() };
        self.op(Op::Create { dir, name: name.into(), how, set })
    }

    fn file(&mut self, dir: Slot, name: &str) -> Slot {
        self.create(dir, name, CreateMode::Guarded)
    }

    fn make(&mut self, dir: Slot, name: &str, made: Made) -> Slot {
        let set = SetAttr { mode: Some(0o755), ..SetAttr::default() };
        self.op(Op::Make { dir, name: name.into(), made, set })
    }

    fn write(&mut self, file: Slot, offset: u64, len: u32, stability: Stability) {
        let fill = self.random.next_u64();
        self.op(Op::Write { file, offset, len, fill, stability });
    }

    fn rename(&mut self, from: (Slot, &str), to: (Slot, &str)) {
        self.op(Op::Rename { from: (from.0, from.1.into()), to: (to.0, to.1.into()) });
    }

    fn remove(&mut self, dir: Slot, name: &str) {
        self.op(Op::Remove { dir, name: name.into() });
    }

    fn truncate(&mut self, object: Slot, size: u64) {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        self.op(Op::SetAttr { object, set, guard: Guard::No });
    }

    fn sync(&mut self) {
        self.op(Op::Durable);
    }

    fn sync_sometimes(&mut self) {
        if self.random.percent(30) {
            self.sync();
        }
    }

    /// A file of blocks that do not touch, so that each is an extent.
    fn comb(&mut self, dir: Slot, name: &str, teeth: u64) -> Slot {
        let file = self.file(dir, name);
        for n in 0..teeth {
            self.write(file, n * 12_288, 4096, Stability::Unstable);
        }
        file
    }
}

fn names(w: &mut Writer) -> usize {
    let home = Slot::HOME;
    let a = w.make(home, "a", Made::Dir);
    w.sync_sometimes();
    let b = w.make(a, "b", Made::Dir);
    let unchecked = w.create(home, "unchecked", CreateMode::Unchecked);
    w.create(a, "exclusive", CreateMode::Exclusive([7; 8]));
    w.sync_sometimes();
    let guarded = w.file(b, "guarded");
    for (n, made) in [Made::Symlink(b"target".to_vec()), Made::Char(5, 6), Made::Fifo].into_iter().enumerate()
    {
        w.make(a, &format!("special{n}"), made);
    }
    let len = 1 + w.random.below(9000) as u32;
    w.write(guarded, 0, len, Stability::FileSync);
    w.write(unchecked, w.steps.len() as u64 * 100, 5000, Stability::DataSync);
    w.write(unchecked, 0, 3000, Stability::Unstable);
    w.op(Op::Commit { file: unchecked, offset: 0, len: 0 });
    w.op(Op::Link { object: guarded, dir: home, name: b"hard".to_vec() });
    w.sync_sometimes();
    w.op(Op::SetXattr {
        object: guarded,
        name: b"user.x".to_vec(),
        len: 40,
        fill: 3,
        how: XattrMode::Create,
    });
    w.op(Op::SetXattr { object: a, name: b"user.y".to_vec(), len: 250, fill: 4, how: XattrMode::Either });
    w.op(Op::RemoveXattr { object: guarded, name: b"user.x".to_vec() });
    let times = SetAttr {
        mode: Some(0o600),
        uid: Some(7),
        mtime: Some(SetTime::To(Timestamp(5))),
        ..SetAttr::default()
    };
    w.op(Op::SetAttr { object: unchecked, set: times, guard: Guard::Right });
    // In the same directory, to another, over a file, a directory over an empty one, onto its own other name.
    w.rename((home, "unchecked"), (home, "renamed"));
    w.sync_sometimes();
    w.rename((b, "guarded"), (a, "moved"));
    w.rename((a, "exclusive"), (home, "renamed"));
    w.make(home, "empty", Made::Dir);
    w.rename((a, "b"), (home, "empty"));
    w.sync_sometimes();
    w.rename((a, "moved"), (home, "hard"));
    w.rename((home, "empty"), (a, "under"));
    w.remove(a, "special1");
    w.truncate(guarded, 10);
    w.op(Op::Punch { file: guarded, offset: 2, len: 5 });
    w.sync_sometimes();
    w.remove(home, "hard");
    w.remove(a, "moved");
    w.op(Op::Rmdir { dir: a, name: b"under".to_vec() });
    w.file(a, "last");
    w.sync();
    0
}

fn cuts(w: &mut Writer) -> usize {
    let home = Slot::HOME;
    let teeth = 10 + w.random.below(6);
    let (shrinks, goes, punched) =
        (w.comb(home, "shrinks", teeth), w.comb(home, "goes", teeth), w.comb(home, "punched", teeth));
    w.sync();
    let prepared = w.steps.len();
    let some = w.random.below(teeth) * 12_288 + w.random.below(4096);
    w.truncate(shrinks, some);
    w.sync_sometimes();
    w.write(shrinks, some + 20_000, 4096, Stability::Unstable);
    w.remove(home, "goes");
    w.op(Op::Commit { file: shrinks, offset: 0, len: 0 });
    w.op(Op::Punch { file: punched, offset: 6000, len: u64::MAX });
    w.sync();
    w.truncate(shrinks, 0);
    w.write(punched, 0, 8192, Stability::FileSync);
    w.comb(home, "goes", 3);
    w.op(Op::Commit { file: goes, offset: 0, len: 0 });
    w.rename((home, "punched"), (home, "shrinks"));
    w.sync();
    prepared
}

fn splits(w: &mut Writer) -> usize {
    let mut prepared = 0;
    let dir = w.make(Slot::HOME, "d", Made::Dir);
    for n in 0..NAMES {
        // Names in no order, so that leaves split in the middle.
        let name = format!("name{:03}-{}", n * 37 % NAMES, "x".repeat((n % 7 * 5) as usize));
        w.file(dir, &name);
        w.sync();
        if n == NAMES / 3 {
            prepared = w.steps.len();
        }
    }
    for n in (0..NAMES).step_by(4) {
        w.remove(dir, &format!("name{:03}-{}", n * 37 % NAMES, "x".repeat((n % 7 * 5) as usize)));
    }
    w.sync();
    prepared
}

fn wrap(w: &mut Writer) -> usize {
    let file = w.file(Slot::HOME, "f");
    let prepared = COMMITS as usize / 3;
    for n in 0..COMMITS {
        let (at, len) = (w.random.below(20) * 4096, 100 + w.random.below(4000) as u32);
        match n % 5 {
            0 => drop(w.file(Slot::HOME, &format!("n{n}"))),
            1 => w.rename((Slot::HOME, &format!("n{}", n - 1)), (Slot::HOME, "newest")),
            _ => w.write(file, at, len, Stability::FileSync),
        }
        w.sync_sometimes();
    }
    prepared
}

fn full(w: &mut Writer) -> usize {
    let home = Slot::HOME;
    let (large, small) = (w.file(home, "large"), w.file(home, "small"));
    w.sync();
    for n in 0..PIECES {
        w.write(large, n * u64::from(PIECE), PIECE, Stability::Unstable);
    }
    w.op(Op::Commit { file: large, offset: 0, len: 0 });
    let prepared = w.steps.len();
    for n in 0..6 {
        w.write(small, n * 5000, 5000, Stability::FileSync);
        w.file(home, &format!("one more {n}"));
    }
    let keep = w.random.below(8) * u64::from(PIECE) / 2;
    w.truncate(large, keep);
    w.sync();
    w.write(small, 0, 30_000, Stability::FileSync);
    w.remove(home, "large");
    w.write(small, 200_000, PIECE, Stability::FileSync);
    w.sync();
    prepared
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::mem::{Discriminant, discriminant};

    #[test]
    fn every_operation_that_changes_anything_is_cut() {
        let steps = Script::ALL.iter().flat_map(|script| script.steps(1).0);
        let kinds: Vec<Discriminant<Op>> = steps.map(|step| discriminant(&step.op)).collect();
        let (home, name) = (Slot::HOME, Vec::new());
        let set = SetAttr::default();
        let all = [
            Op::Create { dir: home, name: name.clone(), how: CreateMode::Guarded, set },
            Op::Make { dir: home, name: name.clone(), made: Made::Dir, set },
            Op::Link { object: home, dir: home, name: name.clone() },
            Op::Remove { dir: home, name: name.clone() },
            Op::Rmdir { dir: home, name: name.clone() },
            Op::Rename { from: (home, name.clone()), to: (home, name.clone()) },
            Op::SetAttr { object: home, set, guard: Guard::No },
            Op::Write { file: home, offset: 0, len: 0, fill: 0, stability: Stability::Unstable },
            Op::Commit { file: home, offset: 0, len: 0 },
            Op::Punch { file: home, offset: 0, len: 0 },
            Op::SetXattr { object: home, name: name.clone(), len: 0, fill: 0, how: XattrMode::Either },
            Op::RemoveXattr { object: home, name },
            Op::Durable,
        ];
        for op in all {
            assert!(kinds.contains(&discriminant(&op)), "{op:?} is in no script");
        }
        let names: BTreeSet<&str> = Script::ALL.iter().map(|script| script.name()).collect();
        assert_eq!(names.len(), Script::ALL.len());
    }
}
