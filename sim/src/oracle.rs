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
        let moved = done.changed.iter().filter(|c| c.pre.change != c.post.change);
        moved.map(|c| c.seq).max()
    }

    /// Whether its success promises that all metadata before it is durable.
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
        let synced = self.steps[..progress.acked].iter().rposition(Recorded::is_sync);
        synced.map_or(0, |n| n + 1)
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
                complaints.push(format!(
                    "only {prefix} steps survived, but what {} acknowledged must: {}",
                    shortest - 1,
                    self.steps[shortest - 1].step
                ));
                continue;
            }
            match self.fits(recovered, prefix, progress) {
                Ok(()) => return Ok(prefix),
                Err(problem) => complaints.push(format!("after {prefix} steps: {problem}")),
            }
        }
        complaints.truncate(COMPLAINTS_MAX);
        Err(format!(
            "/{}: no allowed state ({progress:?}, at least {shortest} steps, end {end:?}): {}",
            String::from_utf8_lossy(&self.home),
            complaints.join("; or ")
        ))
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
                allowed.check(object).map_err(|why| format!("/{}: {why}", String::from_utf8_lossy(path)))?;
            }
        }
        Ok(())
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
                Op::Create { set, .. } if self.after(n).1 == Some(file) => {
                    let existed = now(self.models[n].getattr(file)).is_ok();
                    if !existed || set.size.is_some() {
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

/// Contents a file may have: sizes, and for each block that was ever written its versions. Others are zeroes.
#[derive(Default)]
struct Allowed {
    sizes: BTreeSet<u64>,
    blocks: BTreeMap<u64, BTreeSet<Vec<u8>>>,
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
        self.sizes = BTreeSet::from([size]);
    }

    /// One more version of the blocks of a range.
    fn write(&mut self, after: &Model, file: ObjectId, start: u64, end: u64) {
        let longer: Vec<u64> = self.sizes.iter().map(|size| *size.max(&end)).collect();
        self.sizes.extend(longer);
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            let versions = self.blocks.entry(block).or_insert_with(|| BTreeSet::from([vec![0; BLOCK_SIZE]]));
            versions.insert(block_of(after, file, block));
        }
    }

    /// The range is synced: every version has its bytes, and the file is long enough to show them.
    fn keep(&mut self, model: &Model, file: ObjectId, start: u64, end: u64) {
        let size = now(model.getattr(file)).map_or(0, |attr| attr.size);
        if end == u64::MAX {
            self.sizes = BTreeSet::from([size]);
        } else {
            self.sizes = self.sizes.iter().map(|old| *old.max(&end.min(size))).collect();
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
                    .map(|mut bytes| {
                        edit(*block, &mut bytes[from as usize..to as usize]);
                        bytes
                    })
                    .collect();
            }
        }
    }

    fn check(&self, found: &Object) -> Result<(), String> {
        if !self.sizes.contains(&found.size) {
            return Err(format!("size {} is none of {:?}", found.size, self.sizes));
        }
        let blocks: BTreeSet<u64> = self.blocks.keys().chain(found.blocks.keys()).copied().collect();
        for block in blocks {
            let zero = [vec![0; BLOCK_SIZE]].into();
            let versions = self.blocks.get(&block).unwrap_or(&zero);
            let inside = found.size.saturating_sub(block * BLOCK).min(BLOCK) as usize;
            let hashes: BTreeSet<u64> = versions.iter().map(|bytes| hash(&bytes[..inside])).collect();
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
