//! A toy filesystem that keeps its promises, and the same with a bug by name: what tests the harness itself.
//!
//! It is the model plus a log of calls: each record on disk names a call (kept in memory shared by all worlds of a
//! test), a mount replays the records that survived in an unbroken chain. Small, slow, and right.

use crate::harness::{Disks, Mounted, Store};
use moraine_fs::vfs::*;
use moraine_model::Model;
use moraine_model::tree::now;
use moraine_platform::sync::Event;
use moraine_platform::{BlockDevice, Buf, Fua, Platform, Timestamp};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const BLOCK: u64 = 4096;
const MAGIC: u64 = 0x544f_5921;

/// What is wrong with a toy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToyBug {
    /// Nothing.
    None,
    /// Syncs are answered without a flush.
    AnswersBeforeFlush,
    /// Recovery skips records that did not survive.
    SkipsGaps,
    /// Recovery believes records of an older chain behind its own end.
    BelievesOldTail,
    /// A rename is two records: a link and a removal.
    TearsRename,
    /// Recovery loses the content of files.
    LosesContent,
    /// Recovery forgets writes that make a file longer.
    LosesAppends,
    /// Removing a directory that is not empty gives the wrong error.
    WrongError,
    /// A write across a block boundary leaves out its last byte.
    ShortWrite,
    /// A link says it happened before what it came after.
    WrongOrder,
    /// It says it recovered more than it did.
    WrongEnd,
}

type Call = Rc<dyn Fn(&Model)>;

/// The result of a call that is repeated from the log, where only the effect counts.
fn again<T>(_: FsResult<T>) {}

/// A toy store. Clones share the calls.
#[derive(Clone)]
pub struct Toy {
    bug: ToyBug,
    calls: Rc<RefCell<Vec<Call>>>,
}

impl Toy {
    /// A toy with this bug.
    pub fn new(bug: ToyBug) -> Toy {
        Toy { bug, calls: Rc::default() }
    }
}

/// A record: which call, which call came before.
fn record(position: u64, call: u64, before: u64) -> Buf {
    let mut buf = Buf::zeroed(BLOCK as usize).expect("memory");
    let words =
        [MAGIC, position, call, before, MAGIC ^ position ^ call.rotate_left(17) ^ before.rotate_left(31)];
    for half in [0, 2048] {
        for (n, word) in words.iter().enumerate() {
            buf[half + n * 8..half + n * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
    buf
}

/// The call and its predecessor, if the block holds a whole record for `position`.
fn parse(bytes: &[u8], position: u64) -> Option<(u64, u64)> {
    let word = |n: usize| u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().expect("eight bytes"));
    let (call, before) = (word(2), word(3));
    (bytes[..] == record(position, call, before)[..]).then_some((call, before))
}

impl Store for Toy {
    type Fs = ToyFs;

    fn disks(&self) -> (usize, u64) {
        (1, 16 << 20)
    }

    async fn format(&self, _: &Platform, disks: &Disks) -> Result<(), String> {
        disks[0].write_zeroes(0, disks[0].info().size).await.map_err(|e| e.to_string())?;
        disks[0].flush().await.map_err(|e| e.to_string())
    }

    async fn mount(&self, platform: &Platform, disks: &Disks) -> Result<Mounted<ToyFs>, String> {
        let disk = disks[0].clone();
        let model = Model::new(platform.clock.clone(), platform.rng.clone());
        let (mut position, mut before, mut gaps) = (0, u64::MAX, 0);
        let mut last_good = 0;
        while gaps < 20 {
            let done = disk.read(position * BLOCK, Buf::zeroed(BLOCK as usize).expect("memory")).await;
            let found = parse(&done.buf, position).filter(|(_, b)| match self.bug {
                ToyBug::BelievesOldTail | ToyBug::SkipsGaps => true,
                _ => *b == before,
            });
            match found {
                Some((call, _)) => {
                    let run = self.calls.borrow()[call as usize].clone();
                    run(&model);
                    before = call;
                    last_good = position + 1;
                    gaps = 0;
                }
                None if self.bug == ToyBug::SkipsGaps => gaps += 1,
                None => break,
            }
            position += 1;
        }
        let position = last_good;
        // What was read may still be in a volatile cache.
        disk.flush().await.map_err(|e| e.to_string())?;
        let end = Seq(if self.bug == ToyBug::WrongEnd { position + 3 } else { position });
        let fs = ToyFs {
            toy: self.clone(),
            model,
            disk,
            position: Cell::new(position),
            before: Cell::new(before),
            landed: Cell::new(position),
            changed: Event::new(),
        };
        Ok(Mounted { fs: Rc::new(fs), end: Some(end) })
    }

    async fn unmount(&self, fs: Rc<ToyFs>) -> Result<(), String> {
        fs.sync(Seq(fs.position.get())).await.map_err(|e| e.to_string())
    }

    async fn check(&self, _: &Platform, _: &Disks) -> Result<(), String> {
        Ok(())
    }
}

/// A mounted toy.
pub struct ToyFs {
    toy: Toy,
    model: Model,
    disk: Rc<dyn BlockDevice>,
    position: Cell<u64>,
    before: Cell<u64>,
    /// Records whose write completed, counted from the front.
    landed: Cell<u64>,
    changed: Event,
}

impl ToyFs {
    /// Writes a record for a call the model has just done.
    async fn log(&self, call: impl Fn(&Model) + 'static) -> FsResult<Seq> {
        let position = self.position.get();
        let number = self.toy.calls.borrow().len() as u64;
        self.toy.calls.borrow_mut().push(Rc::new(call));
        let buf = record(position, number, self.before.get());
        self.position.set(position + 1);
        self.before.set(number);
        let done = self.disk.write(position * BLOCK, buf, Fua::No).await;
        done.result.map_err(|_| FsError::DeviceWrite)?;
        self.changed.until(|| (self.landed.get() == position).then_some(())).await;
        self.landed.set(position + 1);
        self.changed.notify();
        Ok(Seq(position + 1))
    }

    async fn sync(&self, seq: Seq) -> FsResult<()> {
        self.changed.until(|| (self.landed.get() >= seq.0).then_some(())).await;
        if self.toy.bug == ToyBug::AnswersBeforeFlush {
            return Ok(());
        }
        self.disk.flush().await.map_err(|_| FsError::DeviceWrite)
    }

    /// Logs what was changed, if it was, and puts the log's number into the change.
    async fn logged<T>(&self, mut change: Change<T>, call: impl Fn(&Model) + 'static) -> FsResult<Change<T>> {
        change.seq = Seq(self.position.get() + 1);
        self.log(call).await?;
        Ok(change)
    }
}

impl Vfs for ToyFs {
    moraine_model::forward!(model; pool root write_verifier getattr lookup readlink read segments readdir statfs);
    moraine_model::forward!(model; getxattr listxattr);

    async fn durable(&self, seq: Seq) -> FsResult<()> {
        self.sync(seq).await
    }
    async fn setattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        set: &SetAttr,
        guard: Option<Timestamp>,
    ) -> FsResult<Change<()>> {
        let change = now(self.model.setattr(caller, object, set, guard))?;
        let (caller, set) = (caller.clone(), *set);
        let call = move |m: &Model| again(now(m.setattr(&caller, object, &set, None)));
        self.logged(change, call).await
    }
    async fn write(
        &self,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        mut data: WriteData,
        stability: Stability,
    ) -> FsResult<Change<Written>> {
        let mut bytes = data.bytes().to_vec();
        if self.toy.bug == ToyBug::ShortWrite && data.skip + data.len > BLOCK as usize {
            let (skip, len) = (data.skip, data.len);
            data.buf[skip + len - 1] = 0;
            bytes[len - 1] = 0;
        }
        let change = now(self.model.write(caller, object, offset, data, stability))?;
        let (caller, bug) = (caller.clone(), self.toy.bug);
        let call = move |m: &Model| {
            let grows = now(m.getattr(object)).is_ok_and(|attr| attr.size < offset + bytes.len() as u64);
            if bug == ToyBug::LosesAppends && grows && offset > 0 {
                return;
            }
            let mut copy = bytes.clone();
            if bug == ToyBug::LosesContent {
                copy.fill(0);
            }
            let data = WriteData::copy_of(offset, &copy).expect("memory");
            again(now(m.write(&caller, object, offset, data, Stability::Unstable)));
        };
        let change = self.logged(change, call).await?;
        if stability > Stability::Unstable {
            self.sync(change.seq).await?;
        }
        Ok(change)
    }
    async fn commit(&self, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<Written>> {
        let change = now(self.model.commit(object, offset, len))?;
        let seq = Seq(self.position.get());
        self.sync(seq).await?;
        Ok(Change { seq, ..change })
    }
    async fn punch(&self, caller: &Caller, object: ObjectId, offset: u64, len: u64) -> FsResult<Change<()>> {
        let change = now(self.model.punch(caller, object, offset, len))?;
        let caller = caller.clone();
        self.logged(change, move |m| again(now(m.punch(&caller, object, offset, len)))).await
    }
    async fn create(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        how: CreateMode,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
        let change = now(self.model.create(caller, dir, name, how, set))?;
        let (caller, name, set) = (caller.clone(), name.to_vec(), *set);
        self.logged(change, move |m| again(now(m.create(&caller, dir, &name, how, &set)))).await
    }
    async fn make(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        node: NewNode<'_>,
        set: &SetAttr,
    ) -> FsResult<Change<(ObjectId, Attr)>> {
        let change = now(self.model.make(caller, dir, name, node, set))?;
        let (caller, name, set) = (caller.clone(), name.to_vec(), *set);
        let target = if let NewNode::Symlink(target) = node { target.to_vec() } else { Vec::new() };
        let plain = match node {
            NewNode::Symlink(_) => None,
            NewNode::Dir => Some(NewNode::Dir),
            NewNode::Block(a, b) => Some(NewNode::Block(a, b)),
            NewNode::Char(a, b) => Some(NewNode::Char(a, b)),
            NewNode::Socket => Some(NewNode::Socket),
            NewNode::Fifo => Some(NewNode::Fifo),
        };
        let call = move |m: &Model| {
            let node: NewNode<'_> = plain.unwrap_or(NewNode::Symlink(&target));
            again(now(m.make(&caller, dir, &name, node, &set)));
        };
        self.logged(change, call).await
    }
    async fn remove(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>> {
        let change = now(self.model.remove(caller, dir, name))?;
        let (caller, name) = (caller.clone(), name.to_vec());
        self.logged(change, move |m| again(now(m.remove(&caller, dir, &name)))).await
    }
    async fn rmdir(&self, caller: &Caller, dir: ObjectId, name: &[u8]) -> FsResult<Change<ObjectId>> {
        let done = now(self.model.rmdir(caller, dir, name));
        if self.toy.bug == ToyBug::WrongError && done.as_ref().is_err_and(|e| *e == FsError::NotEmpty) {
            return Err(FsError::Exists);
        }
        let (change, caller, name) = (done?, caller.clone(), name.to_vec());
        self.logged(change, move |m| again(now(m.rmdir(&caller, dir, &name)))).await
    }
    async fn rename(
        &self,
        caller: &Caller,
        from: (ObjectId, &[u8]),
        to: (ObjectId, &[u8]),
    ) -> FsResult<(Change<ObjectId>, Change<Option<ObjectId>>)> {
        let (mut left, right) = now(self.model.rename(caller, from, to))?;
        let (caller, from, to) = (caller.clone(), (from.0, from.1.to_vec()), (to.0, to.1.to_vec()));
        let is_dir = now(self.model.getattr(left.value)).is_ok_and(|attr| attr.kind == Kind::Dir);
        if self.toy.bug == ToyBug::TearsRename && right.value.is_none() && !is_dir {
            let (object, dir, name) = (left.value, to.0, to.1.clone());
            let root = caller.clone();
            self.log(move |m| again(now(m.link(&root, object, dir, &name)))).await?;
            let seq = self.log(move |m| again(now(m.remove(&caller, from.0, &from.1)))).await?;
            left.seq = seq;
            return Ok((left, Change { seq, ..right }));
        }
        let call = move |m: &Model| again(now(m.rename(&caller, (from.0, &from.1), (to.0, &to.1))));
        let left = self.logged(left, call).await?;
        let seq = left.seq;
        Ok((left, Change { seq, ..right }))
    }
    async fn link(
        &self,
        caller: &Caller,
        object: ObjectId,
        dir: ObjectId,
        name: &[u8],
    ) -> FsResult<Change<Attr>> {
        let change = now(self.model.link(caller, object, dir, name))?;
        let (caller, name) = (caller.clone(), name.to_vec());
        let change = self.logged(change, move |m| again(now(m.link(&caller, object, dir, &name)))).await?;
        let early = if self.toy.bug == ToyBug::WrongOrder { 9 } else { 0 };
        Ok(Change { seq: Seq(change.seq.0.saturating_sub(early)), ..change })
    }
    async fn setxattr(
        &self,
        caller: &Caller,
        object: ObjectId,
        name: &[u8],
        value: &[u8],
        how: XattrMode,
    ) -> FsResult<Change<()>> {
        let change = now(self.model.setxattr(caller, object, name, value, how))?;
        let (caller, name, value) = (caller.clone(), name.to_vec(), value.to_vec());
        self.logged(change, move |m| again(now(m.setxattr(&caller, object, &name, &value, how)))).await
    }
    async fn removexattr(&self, caller: &Caller, object: ObjectId, name: &[u8]) -> FsResult<Change<()>> {
        let change = now(self.model.removexattr(caller, object, name))?;
        let (caller, name) = (caller.clone(), name.to_vec());
        self.logged(change, move |m| again(now(m.removexattr(&caller, object, &name)))).await
    }
}
