//! Worlds with many clients on one file: writes, truncates, holes, reads and syncs that overlap.
//!
//! Whoever changes the file is told its change counter afterwards, and the counter of before; so the answers themselves
//! say in which order things happened. Repeated in that order on plain bytes they must give the same sizes, every read must be
//! the file as its counter says it was, and nothing may be seen to happen before what had ended when it was asked for. In every
//! other world the power goes meanwhile: each byte must then be what it was at some point since it was last promised.

use crate::disk::{DiskConfig, Image};
use crate::generate::Profile;
use crate::harness::{Mounted, Store, Tally, all, devices, formatted, plug};
use crate::ops::pattern;
use crate::random::Random;
use crate::world::{Ended, World};
use moraine_fs::vfs::*;
use moraine_platform::BLOCK_SIZE;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Bytes of the file when the clients come, so that there is something to load.
const BEGIN_BYTES: usize = 64 << 10;
/// No write ends behind this.
const REACH_BYTES: u64 = 96 << 10;
/// Device commands after which the power goes at the latest; most worlds make about as many.
const COMMANDS: u64 = 400;
/// How often, in percent, a deed begins at the end of the file.
const APPEND_PERCENT: u32 = 25;
const FILE: &[u8] = b"tug";

/// What a client does to the file.
#[derive(Clone, Debug)]
enum Deed {
    Write {
        offset: u64,
        len: u64,
        fill: u64,
        stability: Stability,
    },
    Size(u64),
    Punch {
        offset: u64,
        len: u64,
    },
    Read {
        offset: u64,
        len: u64,
    },
    Commit {
        offset: u64,
        len: u64,
    },
    /// A name elsewhere, so that the trees and the journal move.
    Name(u32),
}

/// A deed and what was answered.
#[derive(Clone, Debug)]
struct Act {
    deed: Deed,
    /// Places of question and answer in the order of all of them; the answer's is `None` if the power went first.
    asked: u64,
    answered: Option<u64>,
    pre: Option<PreAttr>,
    post: Option<Attr>,
    seq: Seq,
    bytes: Vec<u8>,
}

/// What the clients share.
#[derive(Default)]
struct Story {
    clock: u64,
    acts: Vec<Act>,
}

impl Story {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

/// The next deed on a file that was `end` bytes long a moment ago.
fn draw(random: &mut Random, number: u32, end: u64) -> Deed {
    let place = |random: &mut Random| {
        let offset = random.below(REACH_BYTES - 20_000);
        let offset = if random.percent(50) { offset & !(BLOCK - 1) } else { offset };
        let len = *random.pick(&[1, 100, 512, 4096, 4096, 8192, 20_000]);
        (offset, len)
    };
    let (offset, len) = match random.percent(APPEND_PERCENT) && end < REACH_BYTES - 20_000 {
        true => (end, *random.pick(&[1, 100, 700])),
        false => place(random),
    };
    match random.below(100) {
        0..40 => {
            let unstable = Stability::Unstable;
            let stability = *random.pick(&[unstable, unstable, unstable, Stability::FileSync]);
            Deed::Write { offset, len, fill: random.next_u64(), stability }
        }
        40..55 => Deed::Size(random.below(REACH_BYTES)),
        55..67 => Deed::Punch { offset, len: if random.percent(30) { REACH_BYTES } else { len } },
        67..85 => Deed::Read { offset, len },
        85..92 => match random.percent(50) {
            true => Deed::Commit { offset: 0, len: 0 },
            false => Deed::Commit { offset, len },
        },
        _ => Deed::Name(number),
    }
}

async fn act<V: Vfs>(fs: &V, file: ObjectId, story: &RefCell<Story>, deed: Deed) -> Result<(), String> {
    let at = {
        let mut story = story.borrow_mut();
        let asked = story.tick();
        let act = Act {
            deed: deed.clone(),
            asked,
            answered: None,
            pre: None,
            post: None,
            seq: Seq(0),
            bytes: vec![],
        };
        story.acts.push(act);
        story.acts.len() - 1
    };
    let root = Caller::root();
    let failed = |error: FsError| format!("{deed:?}: {error}");
    let mut bytes = Vec::new();
    let (pre, post, seq) = match &deed {
        Deed::Write { offset, len, fill, stability } => {
            let data = WriteData::copy_of(*offset, &pattern(*fill, *len as usize)).map_err(|_| "memory")?;
            let change = fs.write(&root, file, *offset, data, *stability).await.map_err(failed)?;
            if change.value.stability < *stability {
                return Err(format!("{deed:?}: answered as {:?}", change.value.stability));
            }
            (Some(change.pre), Some(change.post), change.seq)
        }
        Deed::Size(size) => {
            let set = SetAttr { size: Some(*size), ..SetAttr::default() };
            let change = fs.setattr(&root, file, &set, None).await.map_err(failed)?;
            (Some(change.pre), Some(change.post), change.seq)
        }
        Deed::Punch { offset, len } => {
            let change = fs.punch(&root, file, *offset, *len).await.map_err(failed)?;
            (Some(change.pre), Some(change.post), change.seq)
        }
        Deed::Read { offset, len } => {
            let read = fs.read(&root, file, *offset, *len as u32).await.map_err(failed)?;
            bytes = read.to_vec();
            (None, Some(read.attr), Seq(0))
        }
        Deed::Commit { offset, len } => {
            let change = fs.commit(file, *offset, *len).await.map_err(failed)?;
            (None, Some(change.post), change.seq)
        }
        Deed::Name(number) => {
            let name = format!("name{number}");
            let set = SetAttr::default();
            let made = fs.create(&root, fs.root(), name.as_bytes(), CreateMode::Unchecked, &set).await;
            (None, None, made.map_err(failed)?.seq)
        }
    };
    let mut story = story.borrow_mut();
    let answered = Some(story.tick());
    let act = &mut story.acts[at];
    (act.answered, act.pre, act.post, act.seq, act.bytes) = (answered, pre, post, seq, bytes);
    Ok(())
}

/// The file after each change.
struct States {
    /// Change counter, and the bytes with it; the first are those the clients found.
    states: Vec<(u64, Rc<Vec<u8>>)>,
}

/// Deeds that may have happened although nobody was told, because the power went.
type Hidden<'a> = Vec<&'a Act>;

impl Act {
    /// Whether it changed the file; a hole behind the end does not.
    fn is_change(&self) -> bool {
        self.may_change() && self.pre.map(|pre| pre.change) != self.post.map(|post| post.change)
    }

    fn may_change(&self) -> bool {
        matches!(self.deed, Deed::Write { .. } | Deed::Size(_) | Deed::Punch { .. })
    }
}

impl States {
    /// Repeats what was answered in the order of the counters, and checks every answer.
    fn repeat(story: &Story, first: (u64, Vec<u8>)) -> Result<States, String> {
        let mut told: Vec<(u64, &Act)> =
            story.acts.iter().filter_map(|act| Some((act.post?.change, act))).collect();
        told.sort_by_key(|(change, act)| (*change, !act.is_change()));
        in_time(told.iter().map(|(_, act)| *act).filter(|act| act.is_change()))?;
        let hidden: Hidden<'_> =
            story.acts.iter().filter(|act| act.answered.is_none() && act.may_change()).collect();
        let mut states = States { states: vec![(first.0, Rc::new(first.1))] };
        states.go_on(&told, &hidden)?;
        Ok(states)
    }

    /// Goes on with what was told. Where the counter says that more happened, one of the hidden deeds did.
    fn go_on(&mut self, told: &[(u64, &Act)], hidden: &Hidden<'_>) -> Result<(), String> {
        let begin = self.states.len();
        for (n, (change, act)) in told.iter().enumerate() {
            let (at, bytes) = self.states[self.states.len() - 1].clone();
            let seen = if act.is_change() { act.pre.map_or(0, |pre| pre.change) } else { *change };
            if seen > at {
                let mut why = format!("the counter goes from {at} to {seen} by itself: {act:?}");
                for (i, deed) in hidden.iter().enumerate() {
                    let length = self.states.len();
                    self.states.push((at + 1, Rc::new(apply(&bytes, &deed.deed))));
                    let rest =
                        hidden.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, act)| *act).collect();
                    match self.go_on(&told[n..], &rest) {
                        Ok(()) => return Ok(()),
                        Err(problem) => why = problem,
                    }
                    self.states.truncate(length);
                }
                self.states.truncate(begin);
                return Err(why);
            }
            if seen < at {
                return Err(format!("at counter {at} something is told of {seen}: {act:?}"));
            }
            if act.is_change() {
                let after = apply(&bytes, &act.deed);
                let (pre, post) = (act.pre.map(|pre| pre.size), act.post.map(|post| post.size));
                if (pre, post) != (Some(bytes.len() as u64), Some(after.len() as u64)) {
                    return Err(format!("the size goes from {} to {}: {act:?}", bytes.len(), after.len()));
                }
                self.states.push((*change, Rc::new(after)));
                continue;
            }
            if act.post.map(|post| post.size) != Some(bytes.len() as u64) {
                return Err(format!("at counter {at} it is {} bytes long: {act:?}", bytes.len()));
            }
            if let Deed::Read { offset, len } = act.deed
                && bytes[inside(&bytes, offset, len)] != act.bytes[..]
            {
                let what = first_difference(&bytes, &act.bytes, offset);
                return Err(format!("read at {offset} of {len} at counter {at}: {what}"));
            }
        }
        Ok(())
    }

    /// What happened, for a person to read.
    fn told(&self, story: &Story) -> String {
        let changes =
            story.acts.iter().filter(|act| act.may_change() || matches!(act.deed, Deed::Commit { .. }));
        let line = |act: &Act| {
            let state = act.post.map(|post| self.at(post.change));
            let size = act.post.map(|post| post.size);
            let (asked, answered) = (act.asked, act.answered);
            format!(
                "\n    state {state:?}, size {size:?}, {:?}, {asked}..{answered:?}: {:?}",
                act.seq, act.deed
            )
        };
        changes.map(line).collect()
    }

    /// The index of the state at a counter.
    fn at(&self, change: u64) -> usize {
        self.states.partition_point(|(at, _)| *at <= change).saturating_sub(1)
    }
}

/// Changes in the order of their counters: none is before one that had been answered when it was asked for, and the times of
/// change never go back.
fn in_time<'a>(changes: impl Iterator<Item = &'a Act>) -> Result<(), String> {
    let mut latest: Option<&Act> = None;
    let mut before: Option<&Act> = None;
    for act in changes {
        if let Some(later) = latest.filter(|other| Some(other.asked) > act.answered) {
            return Err(format!("{later:?} is counted before {act:?}, which had been answered by then"));
        }
        if let Some(before) = before.filter(|before| {
            let at = |act: &Act| act.post.map(|post| (post.change, post.ctime));
            let (Some((change, ctime)), Some((next, then))) = (at(before), at(act)) else { return true };
            next <= change || then < ctime
        }) {
            return Err(format!("counter or ctime does not rise from {before:?} to {act:?}"));
        }
        if latest.is_none_or(|other| other.asked < act.asked) {
            latest = Some(act);
        }
        before = Some(act);
    }
    Ok(())
}

fn first_difference(expected: &[u8], found: &[u8], offset: u64) -> String {
    let at = found.iter().enumerate().position(|(n, byte)| expected.get(offset as usize + n) != Some(byte));
    format!("{} bytes of a file of {}, the first wrong one {at:?}", found.len(), expected.len())
}

fn inside(bytes: &[u8], offset: u64, len: u64) -> Range<usize> {
    let (start, end) = (offset as usize, offset.saturating_add(len) as usize);
    start.min(bytes.len())..end.min(bytes.len())
}

fn apply(before: &[u8], deed: &Deed) -> Vec<u8> {
    let mut bytes = before.to_vec();
    match deed {
        Deed::Write { offset, len, fill, .. } => {
            let end = (offset + len) as usize;
            bytes.resize(bytes.len().max(end), 0);
            bytes[*offset as usize..end].copy_from_slice(&pattern(*fill, *len as usize));
        }
        Deed::Size(size) => bytes.resize(*size as usize, 0),
        Deed::Punch { offset, len } => {
            let range = inside(&bytes, *offset, *len);
            bytes[range].fill(0);
        }
        Deed::Read { .. } | Deed::Commit { .. } | Deed::Name(_) => {}
    }
    bytes
}

/// What a power cut may leave of the file.
struct Admissible<'a> {
    states: &'a States,
    /// For each byte, the first state that it may be of.
    floor: Vec<usize>,
    /// For each byte, the last state of which it was promised.
    promised: Vec<Option<usize>>,
    /// Truncates that survived, or may have.
    cuts: Vec<&'a Act>,
    /// Deeds that were under way: theirs may be there as well.
    unanswered: Vec<&'a Act>,
}

impl<'a> Admissible<'a> {
    /// `end` is the last commit that survived.
    fn of(states: &'a States, story: &'a Story, end: Seq) -> Admissible<'a> {
        let mut floor = vec![0; REACH_BYTES as usize];
        let mut promised = vec![None; REACH_BYTES as usize];
        let range_of =
            |range: Range<u64>| inside(&[0; REACH_BYTES as usize], range.start, range.end - range.start);
        let mut raise = |range: Range<u64>, to: usize| {
            floor[range_of(range)].iter_mut().for_each(|byte| *byte = to.max(*byte));
        };
        let mut promise = |range: Range<u64>, at: usize| {
            let size = states.states[at].1.len() as u64;
            let range = range.start.min(size)..range.end.min(size);
            // What was never written may be a hole, or behind the end: it reads as zeroes or not at all.
            let written = |byte: usize| states.states[at].1[byte] != 0;
            range_of(range).filter(|byte| written(*byte)).for_each(|byte| {
                promised[byte] = Some(at).max(promised[byte]);
            });
        };
        let answered = || story.acts.iter().filter(|act| act.answered.is_some());
        for act in answered() {
            let state = act.post.map_or(0, |post| states.at(post.change));
            match &act.deed {
                Deed::Write { offset, len, stability: Stability::FileSync | Stability::DataSync, .. } => {
                    raise(*offset..offset + len, state);
                    promise(*offset..offset + len, state);
                }
                Deed::Size(size) if act.seq <= end => raise(*size..REACH_BYTES, state),
                Deed::Punch { offset, len } if act.seq <= end => raise(*offset..offset + len, state),
                Deed::Commit { offset, len } => {
                    // What had been answered when it was asked for.
                    let before = answered().filter(|other| other.answered < Some(act.asked));
                    let last = before.filter_map(|other| other.post).map(|post| post.change).max();
                    let range = if *len == 0 { 0..REACH_BYTES } else { *offset..offset + len };
                    let state = last.map_or(0, |change| states.at(change));
                    raise(range.clone(), state);
                    promise(range, state);
                }
                _ => {}
            }
        }
        let unanswered = story.acts.iter().filter(|act| act.answered.is_none()).collect();
        let survived = |act: &&Act| act.answered.is_none() || act.seq <= end;
        let cuts =
            story.acts.iter().filter(|act| matches!(act.deed, Deed::Size(_))).filter(survived).collect();
        Admissible { states, floor, promised, cuts, unanswered }
    }

    fn check(&self, found: &[u8]) -> Result<(), String> {
        for (at, byte) in found.iter().enumerate() {
            let floor = self.floor.get(at).copied().unwrap_or(0);
            let was =
                self.states.states[floor..].iter().any(|(_, s)| s.get(at).copied().unwrap_or(0) == *byte);
            let may = |act: &Act| {
                apply(&[], &act.deed).get(at) == Some(byte)
                    || (matches!(act.deed, Deed::Punch { .. } | Deed::Size(_)) && *byte == 0)
            };
            if !was && !self.unanswered.iter().copied().any(may) {
                return Err(format!(
                    "byte {at} of {} is {byte:#04x}, which it was in none of {} states since the {floor}th",
                    found.len(),
                    self.states.states.len()
                ));
            }
        }
        self.check_size(found)
    }

    /// The file is as long as it was at some point since what was promised of its last byte, or ends with a block that was
    /// written back before those behind it.
    fn check_size(&self, found: &[u8]) -> Result<(), String> {
        let size = found.len();
        let sizes = || self.states.states.iter().map(|(_, bytes)| bytes.len());
        let was = sizes().any(|s| s == size)
            || (size.is_multiple_of(BLOCK_SIZE) && sizes().any(|s| s > size))
            || self.unanswered.iter().any(|act| match &act.deed {
                Deed::Write { offset, len, .. } => {
                    size as u64 == offset + len
                        || (size.is_multiple_of(BLOCK_SIZE) && offset + len > size as u64)
                }
                Deed::Size(set) => size as u64 == *set,
                _ => false,
            });
        if !was {
            return Err(format!("it never was {size} bytes long"));
        }
        // A size that writes made is there only with the content that made it.
        let all = || self.states.states.iter().map(|(_, bytes)| bytes);
        let set = |act: &Act| matches!(act.deed, Deed::Size(s) if s == size as u64);
        let last = size.saturating_sub(1) / BLOCK_SIZE * BLOCK_SIZE..size;
        let begin = self.states.states[0].1.len() == size;
        if self.unanswered.is_empty() && !begin && !self.cuts.iter().copied().any(set) {
            let fits =
                |state: &Rc<Vec<u8>>| state.len() >= size && state[last.clone()] == found[last.clone()];
            if !all().any(fits) {
                return Err(format!("its last block never was so in a file of {size} bytes or more"));
            }
        }
        // Promised bytes are there, unless a cut that survived took them away again.
        let lost = self.promised.iter().enumerate().skip(size).find(|(at, promised)| {
            let Some(promised) = **promised else { return false };
            let cut = |act: &&Act| matches!(act.deed, Deed::Size(s) if s as usize <= *at);
            let since = |act: &Act| act.post.is_none_or(|post| self.states.at(post.change) > promised);
            !self.cuts.iter().copied().filter(cut).any(since)
        });
        match lost {
            Some((at, promised)) => {
                Err(format!("it ends at {size}, but byte {at} was promised at state {promised:?}"))
            }
            None => Ok(()),
        }
    }
}

/// `clients` on one file at once; with an odd seed the power goes while they work.
pub fn tug_world<S: Store>(store: &S, seed: u64, clients: usize, steps: usize) -> Result<Tally, String> {
    let profile = Profile::named("data").ok_or("no such workload")?;
    let images = formatted(store, seed, profile)?;
    let images = prepared(store, seed, &images)?;
    let world = World::new(seed ^ 1 << 40);
    let config = DiskConfig::default();
    let disks = plug(&world, &images, &config);
    let (platform, seen) = (world.platform(), devices(&disks));
    let story: Rc<RefCell<Story>> = Rc::default();
    let mut random = Random::for_purpose(seed, "tug");
    let cut = seed % 2 == 1;
    let limit = if cut { 1 + random.below(COMMANDS) } else { u64::MAX };
    let found: RefCell<(u64, Vec<u8>)> = RefCell::default();
    let ended = world.run_to_power_cut(
        async {
            let Mounted { fs, .. } = store.mount(&platform, &seen).await?;
            let name = |e: FsError| e.to_string();
            let (file, attr) = fs.lookup(&Caller::root(), fs.root(), FILE).await.map_err(name)?;
            *found.borrow_mut() = (attr.change, pattern(seed, BEGIN_BYTES));
            let problem: RefCell<Option<String>> = RefCell::default();
            let task = |number: usize| {
                let (fs, story, problem) = (fs.clone(), &story, &problem);
                let mut random = world.random(&format!("client {number}"));
                Box::pin(async move {
                    for step in 0..steps {
                        let end =
                            story.borrow().acts.iter().rev().find_map(|act| act.post).map_or(0, |p| p.size);
                        let deed = draw(&mut random, (number * steps + step) as u32, end);
                        if let Err(why) = act(&*fs, file, story, deed).await {
                            problem.borrow_mut().get_or_insert(why);
                            return;
                        }
                    }
                })
            };
            all((0..clients).map(task).collect()).await;
            if let Some(why) = problem.take() {
                return Err(why);
            }
            store.unmount(fs).await
        },
        limit,
    );
    let cut = match ended {
        Ok(Ended::Done(result)) => result.map(|()| false)?,
        Ok(Ended::PowerCut) => true,
        Err(stall) => return Err(stall.to_string()),
    };
    let tally = Tally {
        worlds: 1,
        steps: story.borrow().acts.len() as u64,
        cuts: u64::from(cut),
        hash: world.trace().hash(),
    };
    let images = if cut { world.crash() } else { disks.iter().map(|disk| disk.durable_image()).collect() };
    drop((disks, seen, world));
    if found.borrow().1.is_empty() {
        // The power went before they came.
        return Ok(tally);
    }
    let story = story.borrow();
    let states = States::repeat(&story, found.into_inner())?;
    let (left, end) = recovered(store, seed, &images)?;
    if cut {
        let admissible = Admissible::of(&states, &story, end.unwrap_or(Seq(u64::MAX)));
        admissible.check(&left).map_err(|why| format!("{why}, end {end:?}{}", states.told(&story)))?;
    } else if let Some((_, last)) = states.states.last().filter(|(_, last)| **last != left) {
        return Err(format!("after a clean remount: {}", first_difference(last, &left, 0)));
    }
    Ok(tally)
}

/// Disks with the file on them.
fn prepared<S: Store>(store: &S, seed: u64, images: &[Image]) -> Result<Vec<Image>, String> {
    let world = World::new(seed ^ 1 << 41);
    let disks = plug(&world, images, &DiskConfig::default());
    let (platform, seen) = (world.platform(), devices(&disks));
    world.run(async {
        let fs = store.mount(&platform, &seen).await?.fs;
        let (root, set) = (Caller::root(), SetAttr { mode: Some(0o600), ..SetAttr::default() });
        let failed = |e: FsError| format!("cannot prepare the file: {e}");
        let made = fs.create(&root, fs.root(), FILE, CreateMode::Guarded, &set).await.map_err(failed)?;
        let data = WriteData::copy_of(0, &pattern(seed, BEGIN_BYTES)).map_err(|_| "memory")?;
        fs.write(&root, made.value.0, 0, data, Stability::Unstable).await.map_err(failed)?;
        store.unmount(fs).await
    })?;
    Ok(disks.iter().map(|disk| disk.durable_image()).collect())
}

/// The file after recovery, the last commit that survived; fsck finds nothing.
fn recovered<S: Store>(store: &S, seed: u64, images: &[Image]) -> Result<(Vec<u8>, Option<Seq>), String> {
    let world = World::new(seed ^ 1 << 42);
    let disks = plug(&world, images, &DiskConfig::default());
    let (platform, seen) = (world.platform(), devices(&disks));
    let left = world.try_run(async {
        let Mounted { fs, end } = store.mount(&platform, &seen).await?;
        let failed = |e: FsError| format!("cannot read the file afterwards: {e}");
        let (file, _) = fs.lookup(&Caller::root(), fs.root(), FILE).await.map_err(failed)?;
        let read = fs.read(&Caller::root(), file, 0, 2 * REACH_BYTES as u32).await.map_err(failed)?;
        store.unmount(fs).await?;
        store.check(&platform, &seen).await?;
        Ok::<_, String>((read.to_vec(), end))
    });
    left.map_err(|stall| stall.to_string())?
}
