//! Operations as values: what a workload does, who asks for it, and how to ask any `Vfs` for it.
//!
//! Objects are named by the step that made them, so a sequence from which steps were taken away (to find the few that
//! matter) still means the same: a step about an object that was never made is skipped.

use moraine_fs::vfs::*;
use moraine_platform::Timestamp;
use std::collections::BTreeMap;
use std::fmt;

/// An object: the number of the step that made it, or one of the objects that are always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The directory a client starts from: the root, or a directory of its own.
    pub const HOME: Slot = Slot(u32::MAX);
    /// The `volumes` directory.
    pub const VOLUMES: Slot = Slot(u32::MAX - 1);
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The superuser.
    Root,
    /// User 1000, groups 1000 and 50.
    Alice,
    /// User 1001, groups 1001 and 50, over a protocol without open.
    Bob,
}

impl Who {
    /// As the façade wants it.
    pub fn caller(self) -> Caller {
        let user = |uid, owner_override| Caller { uid, gid: uid, groups: vec![50], owner_override };
        match self {
            Who::Root => Caller::root(),
            Who::Alice => user(1000, false),
            Who::Bob => user(1001, true),
        }
    }
}

/// What is made by [`Op::Make`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A character device node.
    Char(u32, u32),
    /// A FIFO.
    Fifo,
}

/// A name in a directory.
pub type Name = Vec<u8>;

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the façade's calls")]
pub enum Op {
    Create {
        dir: Slot,
        name: Name,
        how: CreateMode,
        set: SetAttr,
    },
    Make {
        dir: Slot,
        name: Name,
        made: Made,
        set: SetAttr,
    },
    Link {
        object: Slot,
        dir: Slot,
        name: Name,
    },
    Remove {
        dir: Slot,
        name: Name,
    },
    Rmdir {
        dir: Slot,
        name: Name,
    },
    Rename {
        from: (Slot, Name),
        to: (Slot, Name),
    },
    Lookup {
        dir: Slot,
        name: Name,
    },
    Readdir {
        dir: Slot,
        page: usize,
    },
    Readlink {
        object: Slot,
    },
    GetAttr {
        object: Slot,
    },
    SetAttr {
        object: Slot,
        set: SetAttr,
        guard: Guard,
    },
    Write {
        file: Slot,
        offset: u64,
        len: u32,
        fill: u64,
        stability: Stability,
    },
    Read {
        file: Slot,
        offset: u64,
        len: u32,
    },
    Commit {
        file: Slot,
        offset: u64,
        len: u64,
    },
    Punch {
        file: Slot,
        offset: u64,
        len: u64,
    },
    Segments {
        file: Slot,
        offset: u64,
        len: u64,
    },
    SetXattr {
        object: Slot,
        name: Name,
        len: usize,
        fill: u64,
        how: XattrMode,
    },
    GetXattr {
        object: Slot,
        name: Name,
    },
    RemoveXattr {
        object: Slot,
        name: Name,
    },
    ListXattr {
        object: Slot,
    },
    Statfs,
    /// Waits until everything this client changed is on media.
    Durable,
}

/// The guard of a `SetAttr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// None.
    No,
    /// The object's ctime.
    Right,
    /// Another time.
    Wrong,
}

/// A step of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its number, which never changes.
    pub number: u32,
    /// Who asks.
    pub who: Who,
    /// For what.
    pub op: Op,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} as {:?}: {:?}", self.number, self.who, self.op)
    }
}

/// Bytes of a write: never zero, so that a hole is never mistaken for data.
pub fn pattern(fill: u64, len: usize) -> Vec<u8> {
    let mut state = fill | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8 | 1
        })
        .collect()
}

/// What a call answered, without what it changed.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Nothing but success.
    Done,
    /// An object with its attributes.
    Object(ObjectId, Attr),
    /// An object that lost a name, or none.
    Lost(Option<ObjectId>),
    /// Attributes.
    Attr(Attr),
    /// Bytes.
    Data {
        /// The bytes.
        bytes: Vec<u8>,
        /// Whether the end was reached.
        eof: bool,
        /// Attributes.
        attr: Attr,
    },
    /// A write or commit, and the verifier the filesystem gave when asked afterwards.
    Written(Written, u64),
    /// Data and holes.
    Segments(Vec<Segment>),
    /// A whole directory, read by pages.
    Entries(Vec<DirEntry>, Attr),
    /// Names of extended attributes.
    Names(Vec<Box<[u8]>>),
    /// Bytes without attributes.
    Value(Vec<u8>),
    /// Space.
    Space(FsStat),
}

/// One object's change, without a value.
#[derive(Clone, Copy, Debug)]
pub struct Changed {
    /// Before.
    pub pre: PreAttr,
    /// After.
    pub post: Attr,
    /// When.
    pub seq: Seq,
}

impl Changed {
    fn of<T>(change: &Change<T>) -> Changed {
        Changed { pre: change.pre, post: change.post, seq: change.seq }
    }
}

/// What became of a step.
#[derive(Clone, Debug)]
pub struct Done {
    /// The answer or the error.
    pub answer: FsResult<Answer>,
    /// What changed.
    pub changed: Vec<Changed>,
}

/// Objects by slot, as one filesystem names them.
pub type Objects = BTreeMap<Slot, ObjectId>;

impl Op {
    /// The objects it is about.
    pub fn slots(&self) -> Vec<Slot> {
        use Op::*;
        match self {
            Create { dir, .. } | Make { dir, .. } | Remove { dir, .. } | Rmdir { dir, .. } => vec![*dir],
            Lookup { dir, .. } | Readdir { dir, .. } => vec![*dir],
            Link { object, dir, .. } => vec![*object, *dir],
            Rename { from, to } => vec![from.0, to.0],
            Readlink { object } | GetAttr { object } | SetAttr { object, .. } => vec![*object],
            SetXattr { object, .. } | GetXattr { object, .. } | RemoveXattr { object, .. } => vec![*object],
            ListXattr { object } => vec![*object],
            Write { file, .. } | Read { file, .. } | Commit { file, .. } => vec![*file],
            Punch { file, .. } | Segments { file, .. } => vec![*file],
            Statfs | Durable => vec![],
        }
    }

    /// Whether a success of it is a point of the history that survives in order (everything that changes anything, but
    /// for content written).
    pub fn is_metadata(&self) -> bool {
        use Op::*;
        matches!(
            self,
            Create { .. }
                | Make { .. }
                | Link { .. }
                | Remove { .. }
                | Rmdir { .. }
                | Rename { .. }
                | SetAttr { .. }
                | Punch { .. }
                | SetXattr { .. }
                | RemoveXattr { .. }
        )
    }
}

/// Asks `fs` for the step. `None` if it is about an object that was never made. `last` is the client's latest change,
/// which [`Op::Durable`] waits for.
pub async fn apply<V: Vfs>(fs: &V, objects: &Objects, step: &Step, last: Seq) -> Option<Done> {
    let slots = step.op.slots();
    if slots.iter().any(|slot| !objects.contains_key(slot)) {
        return None;
    }
    let mut changed = Vec::new();
    let answer = ask(fs, objects, step, last, &mut changed).await;
    Some(Done { answer, changed })
}

async fn ask<V: Vfs>(
    fs: &V,
    objects: &Objects,
    step: &Step,
    last: Seq,
    changed: &mut Vec<Changed>,
) -> FsResult<Answer> {
    let caller = &step.who.caller();
    let at = |slot: &Slot| objects[slot];
    let object_of = |change: Change<(ObjectId, Attr)>, changed: &mut Vec<Changed>| {
        changed.push(Changed::of(&change));
        Answer::Object(change.value.0, change.value.1)
    };
    Ok(match &step.op {
        Op::Create { dir, name, how, set } => {
            object_of(fs.create(caller, at(dir), name, *how, set).await?, changed)
        }
        Op::Make { dir, name, made, set } => {
            let node = match made {
                Made::Dir => NewNode::Dir,
                Made::Symlink(target) => NewNode::Symlink(target),
                Made::Char(major, minor) => NewNode::Char(*major, *minor),
                Made::Fifo => NewNode::Fifo,
            };
            object_of(fs.make(caller, at(dir), name, node, set).await?, changed)
        }
        Op::Link { object, dir, name } => {
            let change = fs.link(caller, at(object), at(dir), name).await?;
            changed.push(Changed::of(&change));
            Answer::Attr(change.value)
        }
        Op::Remove { dir, name } => {
            let change = fs.remove(caller, at(dir), name).await?;
            changed.push(Changed::of(&change));
            Answer::Lost(Some(change.value))
        }
        Op::Rmdir { dir, name } => {
            let change = fs.rmdir(caller, at(dir), name).await?;
            changed.push(Changed::of(&change));
            Answer::Lost(Some(change.value))
        }
        Op::Rename { from, to } => {
            let (left, right) = fs.rename(caller, (at(&from.0), &from.1), (at(&to.0), &to.1)).await?;
            changed.extend([Changed::of(&left), Changed::of(&right)]);
            Answer::Lost(right.value)
        }
        Op::Lookup { dir, name } => {
            let (object, attr) = fs.lookup(caller, at(dir), name).await?;
            Answer::Object(object, attr)
        }
        Op::Readdir { dir, page } => read_all_pages(fs, caller, at(dir), *page).await?,
        Op::Readlink { object } => Answer::Value(fs.readlink(at(object)).await?.0),
        Op::GetAttr { object } => Answer::Attr(fs.getattr(at(object)).await?),
        Op::SetAttr { object, set, guard } => {
            let ctime = match guard {
                Guard::No => None,
                Guard::Right => Some(fs.getattr(at(object)).await?.ctime),
                Guard::Wrong => Some(Timestamp(1)),
            };
            changed.push(Changed::of(&fs.setattr(caller, at(object), set, ctime).await?));
            Answer::Done
        }
        Op::Write { file, offset, len, fill, stability } => {
            let bytes = pattern(*fill, *len as usize);
            let data = WriteData::copy_of(*offset, &bytes).map_err(|_| FsError::NoMemory)?;
            let change = fs.write(caller, at(file), *offset, data, *stability).await?;
            changed.push(Changed::of(&change));
            Answer::Written(change.value, fs.write_verifier())
        }
        Op::Read { file, offset, len } => {
            let read = fs.read(caller, at(file), *offset, *len).await?;
            Answer::Data { bytes: read.to_vec(), eof: read.eof, attr: read.attr }
        }
        Op::Commit { file, offset, len } => {
            let change = fs.commit(at(file), *offset, *len).await?;
            changed.push(Changed::of(&change));
            Answer::Written(change.value, fs.write_verifier())
        }
        Op::Punch { file, offset, len } => {
            changed.push(Changed::of(&fs.punch(caller, at(file), *offset, *len).await?));
            Answer::Done
        }
        Op::Segments { file, offset, len } => Answer::Segments(fs.segments(at(file), *offset, *len).await?),
        Op::SetXattr { object, name, len, fill, how } => {
            let value = pattern(*fill, *len);
            changed.push(Changed::of(&fs.setxattr(caller, at(object), name, &value, *how).await?));
            Answer::Done
        }
        Op::GetXattr { object, name } => Answer::Value(fs.getxattr(caller, at(object), name).await?),
        Op::RemoveXattr { object, name } => {
            changed.push(Changed::of(&fs.removexattr(caller, at(object), name).await?));
            Answer::Done
        }
        Op::ListXattr { object } => Answer::Names(fs.listxattr(at(object)).await?),
        Op::Statfs => Answer::Space(fs.statfs().await?),
        Op::Durable => {
            fs.durable(last).await?;
            Answer::Done
        }
    })
}

async fn read_all_pages<V: Vfs>(fs: &V, caller: &Caller, dir: ObjectId, page: usize) -> FsResult<Answer> {
    let mut entries: Vec<DirEntry> = Vec::new();
    loop {
        let cookie = entries.last().map_or(0, |entry| entry.cookie);
        let listing = fs.readdir(caller, dir, cookie, page.max(1), WithAttributes::Yes).await?;
        let stuck = listing.entries.is_empty();
        entries.extend(listing.entries);
        if listing.eof || stuck {
            assert!(listing.eof, "a listing that is not at its end has entries");
            return Ok(Answer::Entries(entries, listing.attr));
        }
    }
}
