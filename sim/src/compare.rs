//! Whether two filesystems answered one step alike: the model and the one under test.
//!
//! Inode numbers, cookies, times of the clock and space used are each filesystem's own business; everything else has
//! to be equal, and what is its own business has to follow its rules.

use crate::ops::{Answer, Changed, Done, Objects, Op, Slot, Step};
use moraine_fs::vfs::*;
use moraine_model::Model;
use moraine_model::tree::now;
use moraine_platform::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Times that a workload sets lie below, times of the clock above.
const SET_TIME_MAX: u64 = 1_000_000_000;

/// What a comparison knows of both sides.
pub(crate) struct Pair {
    /// The model.
    pub(crate) model: Model,
    /// Objects by slot in the model.
    pub(crate) ours: Objects,
    /// Objects by slot in the filesystem under test.
    pub(crate) theirs: Objects,
    to_theirs: BTreeMap<ObjectId, ObjectId>,
    /// Objects that others change too: their attributes are not compared.
    shared: BTreeSet<ObjectId>,
    /// The write verifier may change at any time, because disks fail.
    pub(crate) verifier_changes: bool,
    /// Positions of entries that were listed and have not been removed since.
    cookies: BTreeMap<(ObjectId, Vec<u8>), u64>,
}

type Verdict = Result<(), String>;

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, model: T, engine: T) -> Verdict {
    if model == engine {
        Ok(())
    } else {
        Err(format!("{what}: the model says {model:?}, the filesystem {engine:?}"))
    }
}

fn holds(what: &str, condition: bool) -> Verdict {
    if condition { Ok(()) } else { Err(what.to_string()) }
}

impl Pair {
    /// A model and the filesystem's root. With `volumes`, the whole filesystem is this client's.
    pub(crate) fn new(model: Model, their_root: ObjectId, volumes: Option<ObjectId>) -> Pair {
        let our_root = model.root();
        let mut pair = Pair {
            model,
            ours: Objects::new(),
            theirs: Objects::new(),
            to_theirs: BTreeMap::new(),
            shared: BTreeSet::new(),
            cookies: BTreeMap::new(),
            verifier_changes: false,
        };
        match volumes {
            Some(theirs) => {
                let found = now(pair.model.lookup(&Caller::root(), our_root, b"volumes"));
                let ours = found.expect("a new model has it").0;
                pair.bind(Slot::HOME, our_root, their_root);
                pair.bind(Slot::VOLUMES, ours, theirs);
            }
            None => {
                pair.shared.insert(our_root);
                pair.to_theirs.insert(our_root, their_root);
            }
        }
        pair
    }

    /// Says that a slot is this object in both.
    pub(crate) fn bind(&mut self, slot: Slot, ours: ObjectId, theirs: ObjectId) {
        self.ours.insert(slot, ours);
        self.theirs.insert(slot, theirs);
        self.to_theirs.insert(ours, theirs);
    }

    fn same_object(&self, what: &str, ours: ObjectId, theirs: ObjectId) -> Verdict {
        match self.to_theirs.get(&ours) {
            Some(known) if *known == theirs => Ok(()),
            known => Err(format!("{what}: object {theirs:?}, expected {known:?}")),
        }
    }

    /// Compares what became of a step, and learns the objects it made.
    pub(crate) fn compare(&mut self, step: &Step, ours: &Done, theirs: &Done) -> Verdict {
        let (left, right) = match (&ours.answer, &theirs.answer) {
            (Ok(left), Ok(right)) => (left, right),
            (left, right) => {
                let error = |answer: &FsResult<Answer>| answer.as_ref().map(|_| "success").map_err(|e| *e);
                return equal("result", error(left), error(right));
            }
        };
        if let (Answer::Object(ours, _), Answer::Object(theirs, _)) = (left, right)
            && matches!(step.op, Op::Create { .. } | Op::Make { .. })
            && !self.to_theirs.contains_key(ours)
        {
            let known = self.to_theirs.values().any(|object| object == theirs);
            holds("a new object has the number of another", !known)?;
            self.bind(Slot(step.number), *ours, *theirs);
        }
        self.forget_cookies(step);
        self.answers(step, left, right)?;
        equal("number of changes", ours.changed.len(), theirs.changed.len())?;
        let pairs = ours.changed.iter().zip(&theirs.changed);
        pairs.into_iter().try_for_each(|(left, right)| self.changes(left, right))
    }

    /// An entry that was taken away may come back at another place.
    fn forget_cookies(&mut self, step: &Step) {
        let gone: Vec<(Slot, &Vec<u8>)> = match &step.op {
            Op::Remove { dir, name } | Op::Rmdir { dir, name } => vec![(*dir, name)],
            Op::Rename { from, to } => vec![(from.0, &from.1), (to.0, &to.1)],
            _ => return,
        };
        for (dir, name) in gone {
            self.cookies.remove(&(self.theirs[&dir], name.clone()));
        }
    }

    fn answers(&mut self, step: &Step, left: &Answer, right: &Answer) -> Verdict {
        match (left, right) {
            (Answer::Done, Answer::Done) => Ok(()),
            (Answer::Object(a, x), Answer::Object(b, y)) => {
                self.same_object("answer", *a, *b)?;
                self.attributes(x, y)
            }
            (Answer::Lost(None), Answer::Lost(None)) => Ok(()),
            (Answer::Lost(Some(a)), Answer::Lost(Some(b))) => self.same_object("lost a name", *a, *b),
            (Answer::Attr(x), Answer::Attr(y)) => self.attributes(x, y),
            (Answer::Data { bytes: a, eof: p, attr: x }, Answer::Data { bytes: b, eof: q, attr: y }) => {
                equal("length read", a.len(), b.len())?;
                if let Some(at) = a.iter().zip(b).position(|(a, b)| a != b) {
                    return Err(format!("byte {at} read: the model has {}, the filesystem {}", a[at], b[at]));
                }
                equal("end of file", p, q)?;
                self.attributes(x, y)
            }
            (Answer::Written(a, _), Answer::Written(b, verifier)) => {
                equal("count written", a.count, b.count)?;
                holds("a write is no more stable than was asked", b.stability >= a.stability)?;
                // It is the one in force when the bytes were taken, which need not be today's.
                if self.verifier_changes { Ok(()) } else { equal("write verifier", *verifier, b.verifier) }
            }
            (Answer::Segments(_), Answer::Segments(theirs)) => self.segments(step, theirs),
            (Answer::Entries(a, x), Answer::Entries(b, y)) => {
                self.entries(step, a, b)?;
                self.attributes(x, y)
            }
            (Answer::Names(a), Answer::Names(b)) => {
                let sorted = |names: &[Box<[u8]>]| names.iter().cloned().collect::<BTreeSet<_>>();
                equal("attribute names", sorted(a), sorted(b))?;
                equal("number of attribute names", a.len(), b.len())
            }
            (Answer::Value(a), Answer::Value(b)) => equal("value", a, b),
            (Answer::Space(_), Answer::Space(space)) => {
                holds("free space within the total", space.free <= space.total)?;
                holds("available space within the free", space.available <= space.free)
            }
            (left, right) => Err(format!("answers of different kinds: {left:?} and {right:?}")),
        }
    }

    fn attributes(&self, ours: &Attr, theirs: &Attr) -> Verdict {
        let object = self.ours.values().find(|object| object.inode == ours.fileid);
        if object.is_none_or(|object| self.shared.contains(object)) {
            return Ok(());
        }
        let their_inode = object.and_then(|object| self.to_theirs.get(object)).map(|object| object.inode);
        equal("fileid", their_inode, Some(theirs.fileid))?;
        equal("kind", ours.kind, theirs.kind)?;
        equal("mode", format!("{:04o}", ours.mode), format!("{:04o}", theirs.mode))?;
        equal("nlink", ours.nlink, theirs.nlink)?;
        equal("uid", ours.uid, theirs.uid)?;
        equal("gid", ours.gid, theirs.gid)?;
        equal("rdev", ours.rdev, theirs.rdev)?;
        if ours.kind != Kind::Dir {
            equal("size", ours.size, theirs.size)?;
        }
        let time = |what: &str, ours: Timestamp, theirs: Timestamp| {
            if ours.0 < SET_TIME_MAX {
                equal(what, ours, theirs)
            } else {
                holds(&format!("{what} is of the clock, not {theirs:?}"), theirs.0 >= SET_TIME_MAX)
            }
        };
        time("atime", ours.atime, theirs.atime)?;
        time("mtime", ours.mtime, theirs.mtime)?;
        time("ctime", ours.ctime, theirs.ctime)
    }

    fn changes(&self, ours: &Changed, theirs: &Changed) -> Verdict {
        self.attributes(&ours.post, &theirs.post)?;
        let object = self.ours.values().find(|object| object.inode == ours.post.fileid);
        if object.is_none_or(|object| self.shared.contains(object)) {
            return Ok(());
        }
        let (pre, post) = (theirs.pre, theirs.post.pre());
        if ours.pre == ours.post.pre() {
            // `commit` may write times back late, but nothing a client can tell from a change.
            return equal("an unchanged object's attributes", pre, post);
        }
        if theirs.post.kind != Kind::Dir {
            equal("size before", ours.pre.size, pre.size)?;
        }
        holds("the change counter rises", post.change > pre.change)?;
        holds("ctime rises", post.ctime > pre.ctime)
    }

    /// Segments cover what was asked for, and every hole reads as zeroes in the model.
    fn segments(&self, step: &Step, segments: &[Segment]) -> Verdict {
        let Op::Segments { file, offset, len } = &step.op else { unreachable!("only it answers segments") };
        let object = self.ours[file];
        let size = now(self.model.getattr(object)).map_err(|e| format!("the model lost the file: {e}"))?.size;
        let end = offset.saturating_add(*len).min(size);
        let mut at = *offset;
        for segment in segments {
            equal("segment's start", at, segment.offset)?;
            holds("segments are not empty", segment.len > 0)?;
            at += segment.len;
            if segment.hole {
                let read = now(self.model.read(&Caller::root(), object, segment.offset, segment.len as u32));
                let zero = read.is_ok_and(|read| read.to_vec().iter().all(|b| *b == 0));
                holds("a hole holds data", zero)?;
            }
        }
        // Beyond the end of the file there may be one more hole, or nothing.
        holds("segments end within the range", at <= offset.saturating_add(*len))?;
        holds("at least one segment of a range inside the file", *offset >= end || !segments.is_empty())
    }

    fn entries(&mut self, step: &Step, ours: &[DirEntry], theirs: &[DirEntry]) -> Verdict {
        let Op::Readdir { dir, .. } = &step.op else { unreachable!("only it answers entries") };
        let dir = self.theirs[dir];
        holds("cookies rise", theirs.windows(2).all(|two| two[0].cookie < two[1].cookie))?;
        holds("cookies fit 63 bits", theirs.iter().all(|e| e.cookie < 1 << 63))?;
        let dots: Vec<(u64, &[u8])> = theirs.iter().take(2).map(|e| (e.cookie, &*e.name)).collect();
        equal("the first entries", vec![(1, &b"."[..]), (2, &b".."[..])], dots)?;
        let by_name = |entries: &[DirEntry]| -> BTreeMap<Vec<u8>, DirEntry> {
            entries.iter().map(|entry| (entry.name.to_vec(), entry.clone())).collect()
        };
        let (left, right) = (by_name(ours), by_name(theirs));
        equal("number of entries", left.len(), theirs.len())?;
        equal("names", left.keys().collect::<Vec<_>>(), right.keys().collect())?;
        for (name, entry) in &left {
            let found = &right[name];
            self.same_object("entry", entry.object, found.object)?;
            equal("entry's kind", entry.kind, found.kind)?;
            if let (Some(x), Some(y)) = (&entry.attr, &found.attr) {
                self.attributes(x, y)?;
            }
            let key = (dir, name.clone());
            if let Some(cookie) = self.cookies.get(&key) {
                equal("the cookie of an entry that stayed", *cookie, found.cookie)?;
            }
            self.cookies.insert(key, found.cookie);
        }
        Ok(())
    }
}
