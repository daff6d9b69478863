//! The oracle: whether what a power cut left is something the promises allow.
//!
//! It keeps what each client asked for, what was answered, and the model after every step. After recovery, for each
//! client: the names, attributes and everything else that is metadata equal the model after some prefix of the steps,
//! no shorter than the last acknowledged sync, and exactly the one the filesystem says it recovered. Content not synced
//! may be any version since it last was; synced content is there.

use crate::ops::{Answer, Done, Objects, Op, Step, apply};
use moraine_fs::vfs::*;
use moraine_model::Model;
use moraine_model::tree::{Object, Tree, hash, now};
use moraine_platform::BLOCK_SIZE;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Ways in which a state does not fit that are told.
const COMPLAINTS_MAX: usize = 3;

/// A step and what became of it.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The step.
    pub step: Step,
    /// The answer of the filesystem under test; `None` if the power went first.
    pub done: Option<Done>,
    /// The model's object that a create opened or made.
    pub opened: Option<ObjectId>,
}

impl Recorded {
    fn failed(&self) -> bool {
        self.done.as_ref().is_some_and(|done| done.answer.is_err())
    }

    /// The point of the pool's history at which it changed something besides content.
    fn metadata_seq(&self) -> Option<Seq> {
        let done = self.done.as_ref().filter(|_| self.step.op.is_metadata())?;
        // Opening an existing file with a size changes the file and not the directory that is reported.
        let cuts =
            matches!(&self.step.op, Op::Create { how: CreateMode::Unchecked, set, .. } if set.size.is_some());
        let moved = done.changed.iter().filter(|c| cuts || c.pre.change != c.post.change);
        moved.map(|c| c.seq).max()
    }

    /// Whether its success promises that something is durable.
    fn is_sync(&self) -> bool {
        let asked = match &self.step.op {
            Op::Durable | Op::Commit { .. } => true,
            Op::Write { stability, .. } => *stability > Stability::Unstable,
            _ => false,
        };
        asked && self.done.as_ref().is_some_and(|done| done.answer.is_ok())
    }
}

/// What one client did. It works in a directory of its own, so its steps are in order among themselves.
#[derive(Clone, Default)]
pub struct History {
    /// Path of its directory; empty if the whole filesystem is its own.
    pub home: Vec<u8>,
    /// Its steps in order.
    pub steps: Vec<Recorded>,
    /// The model before the first step and after each step that was answered.
    pub models: Vec<Model>,
    /// Objects by slot in the model.
    pub objects: Objects,
}

/// How far a client had come when the power went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Steps answered.
    pub acked: usize,
    /// Steps asked for.
    pub issued: usize,
}

impl History {
    /// The progress of a run that was cut for real: everything recorded was issued.
    pub fn progress(&self) -> Progress {
        let acked = self.steps.iter().take_while(|recorded| recorded.done.is_some()).count();
        Progress { acked, issued: self.steps.len() }
    }

    /// The model after step `n`, and what it opened; the step may be one that was never answered.
    fn after(&self, n: usize) -> (Model, Option<ObjectId>) {
        match self.models.get(n + 1) {
            Some(model) => (model.clone(), self.steps[n].opened),
            None => {
                let model = self.models[n].clone();
                let done = now(apply(&model, &self.objects, &self.steps[n].step, Seq(0)));
                (model, done.as_ref().and_then(opened))
            }
        }
    }

    /// The model after the first `n` steps.
    fn model_at(&self, n: usize) -> Model {
        if n == 0 { self.models[0].clone() } else { self.after(n - 1).0 }
    }

    /// The shortest prefix that keeps what was acknowledged as durable.
    fn shortest(&self, progress: Progress) -> usize {
        let answered = || self.steps[..progress.acked].iter().enumerate().rev().filter(|(_, r)| r.is_sync());
        let promised = answered().map(|(n, recorded)| match &recorded.step.op {
            // What was committed is content: what came before its last change, whatever happened since.
            Op::Commit { file, offset, len } => {
                let range = if *len == 0 { 0..u64::MAX } else { *offset..offset.saturating_add(*len) };
                self.last_content(self.objects[file], range, n).map_or(0, |change| change + 1)
            }
            _ => n + 1,
        });
        promised.max().unwrap_or(0)
    }

    /// The last step before `end` that changed the content of a file in `range`. That it was cut or punched counts for
    /// the whole file only.
    fn last_content(&self, file: ObjectId, range: Range<u64>, end: usize) -> Option<usize> {
        let whole = range == (0..u64::MAX);
        let is_it = |slot| self.objects.get(slot) == Some(&file);
        let touches = |n: &usize| match &self.steps[*n].step.op {
            _ if self.steps[*n].failed() => false,
            Op::Write { file, offset, len, .. } => {
                is_it(file) && *offset < range.end && range.start < offset + u64::from(*len)
            }
            Op::SetAttr { object, set, .. } => whole && is_it(object) && set.size.is_some(),
            Op::Punch { file, .. } => whole && is_it(file),
            _ => false,
        };
        let change = |n: usize| now(self.models[n].getattr(file)).ok().map(|attr| attr.change);
        (0..end).rev().filter(touches).find(|n| change(*n) != change(*n + 1))
    }

    /// The prefixes that end at `end` of the pool's history: one, or two if a step was under way.
    fn prefixes_ending_at(&self, end: Seq, progress: Progress) -> Vec<usize> {
        let issued = &self.steps[..progress.issued];
        let lost = issued.iter().position(|recorded| recorded.metadata_seq().is_some_and(|seq| seq > end));
        let first_lost = lost.unwrap_or(progress.issued);
        let unanswered = issued.iter().position(|r| r.done.is_none() && r.step.op.is_metadata());
        match unanswered {
            Some(n) if n < first_lost => vec![n, first_lost],
            _ => vec![first_lost],
        }
    }

    /// Checks what was recovered against this history; `end` is what the filesystem says it recovered. Returns the
    /// prefix found.
    pub fn check(&self, recovered: &Tree, progress: Progress, end: Option<Seq>) -> Result<usize, String> {
        let shortest = self.shortest(progress);
        let candidates = match end {
            Some(end) => self.prefixes_ending_at(end, progress),
            None => (shortest..=progress.issued).rev().collect(),
        };
        let mut complaints = Vec::new();
        for prefix in candidates {
            if prefix < shortest {
                let Recorded { step, done, .. } = &self.steps[shortest - 1];
                let seq = done.as_ref().and_then(|done| done.changed.iter().map(|change| change.seq).max());
                complaints.push(format!(
                    "only {prefix} steps survived, but a sync was answered that covers step {} ({seq:?}): {step}",
                    shortest - 1,
                ));
                continue;
            }
            match self.fits(recovered, prefix, progress) {
                Ok(()) => return Ok(prefix),
                Err(problem) => complaints.push(format!("after {prefix} steps: {problem}")),
            }
        }
        complaints.truncate(COMPLAINTS_MAX);
        if end.is_some()
            && let Some(prefix) =
                (0..=progress.issued).rev().find(|n| self.fits(recovered, *n, progress).is_ok())
        {
            complaints.push(format!("what is there would fit after {prefix} steps"));
        }
        Err(format!(
            "/{}: no allowed state ({progress:?}, at least {shortest} steps, end {end:?}): {}",
            String::from_utf8_lossy(&self.home),
            complaints.join("; or ")
        ))
    }

    /// Whether what was recovered is the state after any number of steps, as if nothing had ever been promised.
    pub fn check_any(&self, recovered: &Tree) -> Result<usize, String> {
        let progress = Progress { acked: 0, issued: self.steps.len() };
        let found = (0..=progress.issued).rev().find(|n| self.fits(recovered, *n, progress).is_ok());
        found.ok_or_else(|| {
            let home = String::from_utf8_lossy(&self.home);
            let last = self.fits(recovered, progress.issued, progress);
            format!("/{home}: no state of {} fits; the last does not because {last:?}", progress.issued)
        })
    }

    /// Whether what was recovered is the state after `prefix` steps, content aside, with content that is allowed then.
    fn fits(&self, recovered: &Tree, prefix: usize, progress: Progress) -> Result<(), String> {
        let model = self.model_at(prefix);
        let (expected, actual) = (model.tree().below(&self.home), recovered.below(&self.home));
        let without_content = |tree: &Tree| {
            let bare = |object: &Object| match object.kind {
                Kind::File => Object { size: 0, blocks: BTreeMap::new(), ..object.clone() },
                _ => object.clone(),
            };
            Tree { paths: tree.paths.iter().map(|(path, object)| (path.clone(), bare(object))).collect() }
        };
        if let Some(problem) = without_content(&expected).difference(&without_content(&actual)) {
            return Err(problem);
        }
        let mut seen = BTreeSet::new();
        for (path, object) in actual.paths.iter().filter(|(_, object)| object.kind == Kind::File) {
            if seen.insert(object.id) {
                let file = resolve(&model, path);
                let allowed = self.allowed(file, prefix, progress);
                allowed.check(object).map_err(|why| {
                    format!("/{}: {why}{}", String::from_utf8_lossy(path), self.story(file, progress))
                })?;
            }
        }
        Ok(())
    }

    /// The steps about a file, for a person to read.
    fn story(&self, file: ObjectId, progress: Progress) -> String {
        let about = |n: usize| {
            let slots = self.steps[n].step.op.slots();
            slots.iter().any(|slot| self.objects.get(slot) == Some(&file)) || self.after(n).1 == Some(file)
        };
        let line = |n: usize| {
            let Recorded { step, done, .. } = &self.steps[n];
            let seq = done.as_ref().and_then(|done| done.changed.iter().map(|c| c.seq).max());
            let failed = if self.steps[n].failed() { " (failed)" } else { "" };
            format!("\n    {n}{failed} {seq:?}: {step}")
        };
        (0..progress.issued).filter(|n| about(*n)).map(line).collect()
    }

    /// What a file may hold after the first `prefix` steps.
    fn allowed(&self, file: ObjectId, prefix: usize, progress: Progress) -> Allowed {
        let mut allowed = Allowed::default();
        for n in 0..prefix {
            let recorded = &self.steps[n];
            let about = |slot| self.objects.get(slot) == Some(&file);
            if recorded.failed() {
                continue;
            }
            let synced = n < progress.acked && recorded.is_sync();
            match &recorded.step.op {
                Op::Create { set, how, .. } if self.after(n).1 == Some(file) => {
                    let existed = now(self.models[n].getattr(file)).is_ok();
                    if !existed || (set.size.is_some() && *how == CreateMode::Unchecked) {
                        allowed.truncate(set.size.unwrap_or(0));
                    }
                }
                Op::SetAttr { object, set, .. } if about(object) => {
                    if let Some(size) = set.size {
                        allowed.truncate(size);
                    }
                }
                Op::Punch { file, offset, len } if about(file) => {
                    let end = offset.saturating_add(*len).min(FILE_SIZE_MAX);
                    allowed.overlay(*offset, end, |_, bytes| bytes.fill(0));
                }
                Op::Write { file: slot, offset, len, .. } if about(slot) && *len > 0 => {
                    let (after, end) = (self.after(n).0, offset + u64::from(*len));
                    allowed.write(&after, file, *offset, end);
                    if synced {
                        allowed.keep(&after, file, *offset, end);
                    }
                }
                Op::Commit { file: slot, offset, len } if about(slot) && synced => {
                    let end = if *len == 0 { u64::MAX } else { offset.saturating_add(*len) };
                    let start = if *len == 0 { 0 } else { *offset };
                    allowed.keep(&self.after(n).0, file, start, end);
                }
                _ => {}
            }
        }
        allowed
    }
}

/// The object at `path` in the model.
fn resolve(model: &Model, path: &[u8]) -> ObjectId {
    let names = path.split(|b| *b == b'/').filter(|name| !name.is_empty());
    names.fold(model.root(), |dir, name| {
        now(model.lookup(&Caller::root(), dir, name)).expect("the same tree was just walked").0
    })
}

/// A version of a block, and the largest size that the file had while this was its content.
type Version = (Vec<u8>, u64);

/// Contents a file may have: sizes, and for each block that was ever written its versions. Others are zeroes.
#[derive(Default)]
struct Allowed {
    sizes: BTreeSet<u64>,
    /// The size that was last set, which is metadata: it may show what is not there yet.
    set: u64,
    /// Ranges of which every block's end is a size, too.
    growth: Vec<Range<u64>>,
    blocks: BTreeMap<u64, BTreeSet<Version>>,
}

fn block_of(model: &Model, file: ObjectId, block: u64) -> Vec<u8> {
    let read = now(model.read(&Caller::root(), file, block * BLOCK, BLOCK as u32));
    let mut bytes = read.map(|read| read.to_vec()).unwrap_or_default();
    bytes.resize(BLOCK_SIZE, 0);
    bytes
}

impl Allowed {
    /// The size is set, which is metadata: content beyond is gone in every version.
    fn truncate(&mut self, size: u64) {
        self.overlay(size, u64::MAX, |_, bytes| bytes.fill(0));
        for versions in self.blocks.values_mut() {
            *versions = std::mem::take(versions).into_iter().map(|(v, shows)| (v, shows.min(size))).collect();
        }
        self.sizes = BTreeSet::from([size]);
        self.set = size;
        self.growth.clear();
    }

    /// One more version of the blocks of a range.
    fn write(&mut self, after: &Model, file: ObjectId, start: u64, end: u64) {
        // Blocks are written back one by one, each with the size that shows it, zeroes before the write included.
        let shortest = self.sizes.first().copied().unwrap_or(0);
        let size = now(after.getattr(file)).map_or(end, |attr| attr.size);
        self.growth.push(shortest..end);
        let longer: Vec<u64> = self.sizes.iter().map(|size| *size.max(&end)).collect();
        self.sizes.extend(longer);
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            let versions = self.blocks.entry(block).or_insert_with(|| [(vec![0; BLOCK_SIZE], 0)].into());
            versions.insert((block_of(after, file, block), size));
        }
        // What is the content of a block now is so with the new size, too.
        for (block, versions) in self.blocks.range_mut(shortest / BLOCK..) {
            versions.insert((block_of(after, file, *block), size));
        }
    }

    /// The range is synced: every version has its bytes, and the file is long enough to show them.
    fn keep(&mut self, model: &Model, file: ObjectId, start: u64, end: u64) {
        let size = now(model.getattr(file)).map_or(0, |attr| attr.size);
        let reached = if end == u64::MAX {
            self.sizes = BTreeSet::from([size]);
            self.growth.clear();
            size
        } else {
            // As long as to show the last byte in the range that was ever written; others may be a hole.
            let used = |versions: &BTreeSet<Version>| {
                versions
                    .iter()
                    .filter_map(|(v, _)| v.iter().rposition(|b| *b != 0))
                    .max()
                    .map(|last| last as u64 + 1)
            };
            let mut inside = self.blocks.range(start / BLOCK..end.div_ceil(BLOCK)).rev();
            let last = inside.find_map(|(block, versions)| Some(block * BLOCK + used(versions)?));
            let reached = last.map_or(0, |last| last.min(end).min(size));
            self.sizes = self.sizes.iter().map(|old| *old.max(&reached)).collect();
            self.growth.iter_mut().for_each(|range| range.start = range.start.max(reached));
            reached
        };
        for (_, versions) in self.blocks.range_mut(start / BLOCK..end.div_ceil(BLOCK)) {
            *versions =
                std::mem::take(versions).into_iter().map(|(v, shows)| (v, shows.max(reached))).collect();
        }
        self.overlay(start, end, |block, bytes| {
            let from = start.saturating_sub(block * BLOCK) as usize;
            bytes.copy_from_slice(&block_of(model, file, block)[from..from + bytes.len()]);
        });
    }

    /// Changes the bytes of a range in every version of every block.
    fn overlay(&mut self, start: u64, end: u64, mut edit: impl FnMut(u64, &mut [u8])) {
        for (block, versions) in self.blocks.range_mut(start / BLOCK..) {
            let (first, last) = (block * BLOCK, (block + 1) * BLOCK);
            if end <= first {
                break;
            }
            let (from, to) = (start.max(first) - first, end.min(last) - first);
            if from < to {
                *versions = std::mem::take(versions)
                    .into_iter()
                    .map(|(mut bytes, shows)| {
                        edit(*block, &mut bytes[from as usize..to as usize]);
                        (bytes, shows)
                    })
                    .collect();
            }
        }
    }

    fn check(&self, found: &Object) -> Result<(), String> {
        let grown = found.size.is_multiple_of(BLOCK) && self.growth.iter().any(|r| r.contains(&found.size));
        if !grown && !self.sizes.contains(&found.size) {
            return Err(format!(
                "size {} is none of {:?} (growing over {:?})",
                found.size, self.sizes, self.growth
            ));
        }
        let blocks: BTreeSet<u64> = self.blocks.keys().chain(found.blocks.keys()).copied().collect();
        for block in blocks {
            let zero = [(vec![0; BLOCK_SIZE], u64::MAX)].into();
            let versions = self.blocks.get(&block).unwrap_or(&zero);
            let inside = found.size.saturating_sub(block * BLOCK).min(BLOCK) as usize;
            // A size that writes made is there only with the content that made it.
            let last = block == found.size.saturating_sub(1) / BLOCK && found.size != self.set;
            let fitting = versions.iter().filter(|(_, shows)| !last || *shows >= found.size);
            let hashes: BTreeSet<u64> = fitting.map(|(bytes, _)| hash(&bytes[..inside])).collect();
            let actual = found.blocks.get(&block).copied().unwrap_or_else(|| hash(&[]));
            if !hashes.contains(&actual) {
                return Err(format!(
                    "block {block} (size {}) holds {actual:016x}, allowed are {hashes:016x?}",
                    found.size
                ));
            }
        }
        Ok(())
    }
}

/// The object a create or make answered.
pub(crate) fn opened(done: &Done) -> Option<ObjectId> {
    match &done.answer {
        Ok(Answer::Object(object, _)) => Some(*object),
        _ => None,
    }
}
