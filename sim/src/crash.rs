//! Crash enumeration: a workload runs once while every device command is recorded; then the power is cut, on paper, at
//! every point of that record and in every way that matters, and each image left is recovered and checked.
//!
//! At each cut the writes not yet durable are {all kept, none kept, each one lost, each one torn, neighbours swapped,
//! random subsets}. Images seen before are skipped, and so are those that differ from a checked one only in blocks
//! which that check never read: the same world would run again. A sample of the recoveries is itself cut at every
//! point, for power that fails twice, and a sample of the recoveries from that again.

use crate::disk::{Cache, DiskConfig, Fate, Image, Piece, SimDisk};
use crate::random::Random;
use crate::trace::{Command, CommandId, Event};
use crate::world::{World, WorldConfig};
use moraine_platform::Fua;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// Failures after which enumeration stops: the first is what a person looks at.
const FAILURES_MAX: usize = 5;
/// Checked images kept for pruning, for each point of the marks.
const EXPLORED_MAX: usize = 24;

/// The mark with which a check says that recovery is over: power cuts during recovery come before it.
pub const RECOVERED: u64 = u64::MAX;

/// What to enumerate.
#[derive(Clone)]
pub struct CrashPlan {
    /// Shows in reports.
    pub name: String,
    /// Drawn on by the workload's world, the choice of subsets and the recovering worlds.
    pub seed: u64,
    /// What the disks hold when the workload starts.
    pub start: Vec<Image>,
    /// What the disks are like.
    pub disk: DiskConfig,
    /// Random subsets of the pending writes at each cut.
    pub random_subsets: usize,
    /// Recoveries that are themselves cut everywhere.
    pub second_level_max: usize,
    /// Recoveries from these that are cut in turn.
    pub third_level_max: usize,
    /// At each cut in a recovery: every fate of each pending write, and so many random subsets; without it only all of
    /// them kept, none, and a random subset.
    pub recovery_subsets: Option<usize>,
    /// Cuts begin when so many marks were set: what is before prepares.
    pub marks_first: usize,
    /// Worlds recovered at most; beyond, cuts are thinned evenly.
    pub worlds_max: usize,
}

impl CrashPlan {
    /// A plan with the usual bounds.
    pub fn new(name: impl Into<String>, seed: u64, start: Vec<Image>) -> CrashPlan {
        CrashPlan {
            name: name.into(),
            seed,
            start,
            disk: DiskConfig::default(),
            random_subsets: 8,
            second_level_max: 8,
            third_level_max: 0,
            recovery_subsets: None,
            marks_first: 0,
            worlds_max: usize::MAX,
        }
    }
}

/// Where the power was cut, as the check sees it.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Entries of the record before the cut.
    pub position: usize,
    /// Marks that came before it.
    pub marks: Vec<u64>,
    /// Whether a recovery from this cut was itself cut, and this is the next one.
    pub again: bool,
}

/// An image that recovered wrongly.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which cut and which fate of the pending writes.
    pub place: String,
    /// What the check said.
    pub message: String,
}

/// What enumeration did.
#[derive(Clone, Debug, Default)]
pub struct CrashReport {
    /// The plan's name.
    pub name: String,
    /// Points at which the power was cut.
    pub cuts: usize,
    /// Images that could be left, also by cuts during recoveries.
    pub images: usize,
    /// Images seen before.
    pub duplicates: usize,
    /// Images that differ only where no check looks.
    pub pruned: usize,
    /// Worlds recovered and checked.
    pub worlds: usize,
    /// Cuts during recoveries.
    pub second_cuts: usize,
    /// Worlds recovered a second time.
    pub second_worlds: usize,
    /// Cuts during recoveries from these.
    pub third_cuts: usize,
    /// Worlds recovered a third time.
    pub third_worlds: usize,
    /// What went wrong.
    pub failures: Vec<Failure>,
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "crash {}: {} cuts, {} images, {} duplicate, {} pruned, {} worlds; in recovery: {} cuts, {} worlds; in \
             recovery of recovery: {} cuts, {} worlds; {} failures",
            self.name,
            self.cuts,
            self.images,
            self.duplicates,
            self.pruned,
            self.worlds,
            self.second_cuts,
            self.second_worlds,
            self.third_cuts,
            self.third_worlds,
            self.failures.len()
        )?;
        self.failures
            .iter()
            .try_for_each(|failure| write!(f, "\n  at {}: {}", failure.place, failure.message))
    }
}

impl CrashReport {
    /// Different worlds recovered and checked, at all levels.
    pub fn distinct_worlds(&self) -> usize {
        self.worlds + self.second_worlds + self.third_worlds
    }

    /// Prints and notes the counts; panics with the failures if there are any.
    pub fn expect_clean(&self) {
        println!("{self}");
        crate::totals::cuts(self);
        assert!(self.failures.is_empty(), "{self}");
    }
}

/// A set of disks as they could be left, and how they came to be.
struct Candidate {
    images: Vec<Image>,
    how: String,
}

/// A checked set of images and the blocks its check read.
struct Explored {
    images: Vec<Image>,
    reads: Vec<BTreeSet<u64>>,
}

/// Runs `workload` in a recording world, then `check` in a world of its own on everything a power cut could leave.
///
/// The workload drives the world itself and marks what the check must know ([`crate::trace::Trace::mark`]); what it
/// returns goes to each check. A check that fails or panics is a failure of that image.
pub fn enumerate<H>(
    plan: &CrashPlan,
    workload: impl FnOnce(&World, &[Rc<SimDisk>]) -> H,
    check: impl Fn(&World, &[Rc<SimDisk>], &H, &Cut) -> Result<(), String>,
) -> CrashReport {
    let world = World::with(WorldConfig { record: true, ..WorldConfig::new(plan.seed) });
    let disks = plug(&world, &plan.start, plan);
    let history = workload(&world, &disks);
    let events = world.trace().events();
    drop((disks, world));
    let mut run = Run {
        plan,
        check: &|world, disks, cut| check(world, disks, &history, cut),
        report: CrashReport { name: plan.name.clone(), ..CrashReport::default() },
        random: Random::for_purpose(plan.seed, "crash enumeration"),
        seen: BTreeSet::new(),
        explored: BTreeMap::new(),
        second_left: plan.second_level_max,
        third_left: plan.third_level_max,
    };
    let cuts = count_cuts(&events, plan.marks_first);
    // A run too long for its bound is thinned evenly, so that all of it is still looked at.
    let stride = (cuts * (plan.random_subsets + 8)).div_ceil(plan.worlds_max.max(1)).max(1);
    let mut number = 0;
    each_cut(&events, &plan.start, plan.disk.volatile_cache, |caches, cut| {
        if cut.marks.len() < plan.marks_first {
            return true;
        }
        number += 1;
        if number % stride == 0 || number == cuts {
            run.cut(caches, cut);
        }
        run.report.failures.len() < FAILURES_MAX
    });
    run.report
}

type Check<'a> = &'a dyn Fn(&World, &[Rc<SimDisk>], &Cut) -> Result<(), String>;

struct Run<'a> {
    plan: &'a CrashPlan,
    check: Check<'a>,
    report: CrashReport,
    random: Random,
    /// Hashes of images, with the number of marks their check knows and whether it is one of a cut recovery.
    seen: BTreeSet<(u64, usize, bool)>,
    explored: BTreeMap<(usize, bool), Vec<Explored>>,
    second_left: usize,
    third_left: usize,
}

fn hash_of(images: &[Image]) -> u64 {
    images.iter().fold(0, |h, image| crate::trace::mix(h, image.hash()))
}

impl Run<'_> {
    fn cut(&mut self, caches: &[Cache], cut: &Cut) {
        self.report.cuts += 1;
        for candidate in candidates(caches, self.plan.random_subsets, &mut self.random) {
            if self.is_new(&candidate, cut) {
                self.recover(candidate, cut);
            }
            if self.report.failures.len() >= FAILURES_MAX {
                return;
            }
        }
    }

    /// Whether images were not checked yet, nor others with which every check would go the same way.
    fn is_new(&mut self, candidate: &Candidate, cut: &Cut) -> bool {
        let (hash, marks) = (hash_of(&candidate.images), cut.marks.len());
        self.report.images += 1;
        // What holds after a cut run is asked of a cut recovery, too, but for the end of a history that another one followed.
        let known = self.seen.contains(&(hash, marks, false)) || !self.seen.insert((hash, marks, cut.again));
        if known {
            self.report.duplicates += 1;
        } else if self.is_explored(&candidate.images, (marks, cut.again)) {
            self.report.pruned += 1;
        } else {
            return true;
        }
        false
    }

    /// Whether a checked world with the same claims never looked at any block in which these images differ from it.
    fn is_explored(&self, images: &[Image], claims: (usize, bool)) -> bool {
        self.explored.get(&claims).is_some_and(|known| {
            known.iter().any(|world| {
                let mut pairs = images.iter().zip(&world.images).zip(&world.reads);
                pairs
                    .all(|((new, old), reads)| new.difference(old).iter().all(|block| !reads.contains(block)))
            })
        })
    }

    fn explored(&mut self, images: Vec<Image>, reads: Vec<BTreeSet<u64>>, cut: &Cut) {
        let known = self.explored.entry((cut.marks.len(), cut.again)).or_default();
        if known.len() < EXPLORED_MAX {
            known.push(Explored { images, reads });
        }
    }

    fn recover(&mut self, candidate: Candidate, cut: &Cut) {
        self.report.worlds += 1;
        let place = format!("cut {} (seed {}), {}", cut.position, self.plan.seed, candidate.how);
        let second = self.second_left > 0 && self.random.percent(20);
        let (reads, events) = self.run_check(&candidate.images, cut, second, &place);
        if second && self.report.failures.is_empty() {
            self.second_left -= 1;
            self.cut_recovery(&candidate.images, &events, cut, &place);
        }
        self.explored(candidate.images, reads, cut);
    }

    /// Cuts the power during the recovery that `events` records, and recovers again.
    fn cut_recovery(&mut self, start: &[Image], events: &[Event], before: &Cut, place: &str) {
        let over = events.iter().position(|event| matches!(event, Event::Mark(RECOVERED)));
        let events = &events[..over.unwrap_or(events.len())];
        let mut again: Vec<Candidate> = Vec::new();
        let mut cuts = 0;
        let (random, subsets) = (&mut self.random, self.plan.recovery_subsets);
        each_cut(events, start, self.plan.disk.volatile_cache, |caches, cut| {
            cuts += 1;
            let left = match subsets {
                Some(subsets) => candidates(caches, subsets, random),
                None => [Fates::All(Piece::Keep), Fates::All(Piece::Drop), Fates::Random]
                    .iter()
                    .map(|fate| build(caches, fate, random))
                    .collect(),
            };
            let told = |c: Candidate| {
                let how = format!("then cut {} of recovery, {}", cut.position, c.how);
                Candidate { how, ..c }
            };
            again.extend(left.into_iter().map(told));
            true
        });
        let third = before.again;
        *(if third { &mut self.report.third_cuts } else { &mut self.report.second_cuts }) += cuts;
        let cut = Cut { again: true, ..before.clone() };
        for candidate in again {
            if self.report.failures.len() >= FAILURES_MAX || !self.is_new(&candidate, &cut) {
                continue;
            }
            *(if third { &mut self.report.third_worlds } else { &mut self.report.second_worlds }) += 1;
            let place = format!("{place}, {}", candidate.how);
            let deeper = !third && self.third_left > 0 && self.random.percent(20);
            let (reads, events) = self.run_check(&candidate.images, &cut, deeper, &place);
            if deeper && self.report.failures.is_empty() {
                self.third_left -= 1;
                self.cut_recovery(&candidate.images, &events, &cut, &place);
            }
            self.explored(candidate.images, reads, &cut);
        }
    }

    /// Recovers and checks in a new world; returns what was read and, if asked to record, what was done.
    fn run_check(
        &mut self,
        images: &[Image],
        cut: &Cut,
        record: bool,
        place: &str,
    ) -> (Vec<BTreeSet<u64>>, Vec<Event>) {
        let world = World::with(WorldConfig { record, ..WorldConfig::new(self.plan.seed ^ 0x5eed) });
        let disks = plug(&world, images, self.plan);
        disks.iter().for_each(|disk| disk.watch_reads());
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.check)(&world, &disks, cut)));
        let problem = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(message)) => Some(message),
            Err(panic) => Some(format!("panic: {}", panic_text(&*panic))),
        };
        if let Some(message) = problem {
            self.report.failures.push(Failure { place: place.to_string(), message });
        }
        (disks.iter().map(|disk| disk.reads_seen()).collect(), world.trace().events())
    }
}

/// The text of a caught panic.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no text)").to_string()
}

fn plug(world: &World, images: &[Image], plan: &CrashPlan) -> Vec<Rc<SimDisk>> {
    images.iter().map(|image| world.disk_with(image.clone(), plan.disk.clone())).collect()
}

/// Whether the power is cut just before this event.
fn is_cut_point(event: &Event, reads: &mut BTreeSet<CommandId>) -> bool {
    match event {
        Event::Submit { id, command: Command::Read { .. }, .. } => {
            reads.insert(*id);
            false
        }
        Event::Submit { .. } => true,
        Event::Complete { id, .. } => !reads.remove(id),
        Event::Mark(_) => false,
    }
}

fn count_cuts(events: &[Event], marks_first: usize) -> usize {
    let (mut reads, mut marks) = (BTreeSet::new(), 0);
    let counts = |event: &&Event| {
        marks += usize::from(matches!(event, Event::Mark(_)));
        is_cut_point(event, &mut reads) && marks >= marks_first
    };
    events.iter().filter(counts).count() + 1
}

/// Replays the record and stops before each write or flush is submitted or completed, and at the end. The claims of a
/// cut are the strongest of its interval: all marks before the next command.
fn each_cut(events: &[Event], start: &[Image], volatile: bool, mut at: impl FnMut(&[Cache], &Cut) -> bool) {
    let mut caches: Vec<Cache> = start.iter().cloned().map(Cache::new).collect();
    let mut flushes: BTreeMap<CommandId, Vec<CommandId>> = BTreeMap::new();
    let mut durable_writes: BTreeSet<CommandId> = BTreeSet::new();
    let mut reads = BTreeSet::new();
    let mut marks = Vec::new();
    for (position, event) in events.iter().enumerate() {
        if is_cut_point(event, &mut reads)
            && !at(&caches, &Cut { position, marks: marks.clone(), again: false })
        {
            return;
        }
        match event {
            Event::Mark(value) => marks.push(*value),
            Event::Submit { disk, id, command } => match command {
                Command::Read { .. } => {}
                Command::Write { offset, payload, fua } => {
                    caches[*disk].submit(*id, *offset, payload.clone());
                    if *fua == Fua::Yes || !volatile {
                        durable_writes.insert(*id);
                    }
                }
                Command::Flush => {
                    flushes.insert(*id, caches[*disk].completed());
                }
            },
            Event::Complete { disk, id, result } => {
                assert!(result.is_ok(), "enumeration replays disks without faults");
                match flushes.remove(id) {
                    Some(covered) => caches[*disk].make_durable(&covered),
                    None => caches[*disk].complete(*id, durable_writes.remove(id)),
                }
            }
        }
    }
    at(&caches, &Cut { position: events.len(), marks, again: false });
}

/// A choice for the pending writes of all disks, numbered through.
enum Fates {
    All(Piece),
    One(usize, Piece),
    Swap(usize, usize),
    Random,
}

fn candidates(caches: &[Cache], random_subsets: usize, random: &mut Random) -> Vec<Candidate> {
    let pending: usize = caches.iter().map(Cache::pending).sum();
    let mut fates = vec![Fates::All(Piece::Keep), Fates::All(Piece::Drop)];
    for n in 0..pending {
        fates.push(Fates::One(n, Piece::Drop));
        fates.push(Fates::One(n, Piece::Torn(random.next_u64())));
    }
    for (disk, cache) in caches.iter().enumerate() {
        let pairs = cache.pending().saturating_sub(1);
        fates.extend((0..pairs).filter(|n| cache.may_swap(*n)).map(|n| Fates::Swap(disk, n)));
    }
    if pending > 1 {
        fates.extend((0..random_subsets).map(|_| Fates::Random));
    }
    fates.iter().map(|fate| build(caches, fate, random)).collect()
}

fn build(caches: &[Cache], fates: &Fates, random: &mut Random) -> Candidate {
    let mut first = 0;
    let mut how = match fates {
        Fates::All(piece) => format!("all pending writes: {piece:?}"),
        Fates::One(..) => String::new(),
        Fates::Swap(disk, n) => format!("disk {disk}: writes {n} and {} swapped", n + 1),
        Fates::Random => String::from("random subset"),
    };
    let mut images = Vec::with_capacity(caches.len());
    for (disk, cache) in caches.iter().enumerate() {
        let count = cache.pending();
        let fate = match fates {
            Fates::All(piece) => Fate::all(*piece, count),
            Fates::One(n, piece) if (first..first + count).contains(n) => {
                let (offset, len) = cache.pending_ranges()[n - first];
                how = format!("disk {disk}: write of {len} bytes at {offset}: {piece:?}");
                Fate::all(Piece::Keep, count).with(n - first, *piece)
            }
            Fates::One(..) => Fate::all(Piece::Keep, count),
            Fates::Swap(chosen, n) => {
                let swapped = (*chosen == disk).then_some(*n);
                Fate { swapped, ..Fate::all(Piece::Keep, count) }
            }
            Fates::Random => {
                let fate = Fate::random(count, random);
                how = format!("{how} {:?}", fate.pieces);
                fate
            }
        };
        first += count;
        images.push(cache.crash(&fate));
    }
    Candidate { images, how }
}
