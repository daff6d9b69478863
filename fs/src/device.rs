//! The pool's devices: every command to a disk goes through here, and here alone is known what is durable.
//!
//! Completion of a write is not durability. Each device counts completed writes (`completed_gen`); a flush
//! remembers the count at its submission and, when it succeeds, raises `flushed_gen` to it. A [`Dep`] names a
//! device and a count: what it stands for is durable once `flushed_gen` has reached the count. [`Deps`] go into
//! whatever refers to the written bytes, and [`Devices::flush_covering`] makes them true.
//!
//! A failed flush means *unknown for everything since the last good one*: the device is marked failed and never
//! believed again until the pool is opened anew.

use crate::planted::{self, Fault};
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use moraine_platform::sync::Event;
use moraine_platform::{BlockDevice, Buf, DeviceInfo, Fua, IoError, Spawn};
use smallvec::SmallVec;

mod transfer;

/// Flushes of one device under way at once: one running, one that covers what completed meanwhile.
const FLUSHES_MAX: usize = 2;

/// Writes to one device up to a point; durable once a flush covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dep {
    /// Device index in the pool.
    pub device: u8,
    /// Count of completed writes that must be flushed.
    pub generation: u64,
}

/// What must be durable before something else counts: at most one [`Dep`] a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deps(SmallVec<[Dep; 2]>);

impl Deps {
    /// Adds one.
    pub fn add(&mut self, dep: Dep) {
        match self.0.iter_mut().find(|d| d.device == dep.device) {
            Some(have) => have.generation = have.generation.max(dep.generation),
            None => self.0.push(dep),
        }
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &Deps) {
        other.iter().for_each(|dep| self.add(dep));
    }

    /// What is in it.
    pub fn iter(&self) -> impl Iterator<Item = Dep> + '_ {
        self.0.iter().copied()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Dep> for Deps {
    fn from_iter<I: IntoIterator<Item = Dep>>(deps: I) -> Deps {
        let mut out = Deps::default();
        deps.into_iter().for_each(|dep| out.add(dep));
        out
    }
}

/// Why a command of the pool to a device failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// The device said so.
    Io(IoError),
    /// The device failed earlier; it is not believed any more.
    Failed(u8),
    /// No device of this index is here.
    Missing(u8),
    /// No memory for the transfer.
    OutOfMemory,
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceError::Io(error) => error.fmt(f),
            DeviceError::Failed(index) => write!(f, "device {index} failed earlier"),
            DeviceError::Missing(index) => write!(f, "device {index} is missing"),
            DeviceError::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

impl core::error::Error for DeviceError {}

/// Commands and errors of one device since the pool was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads of the pool (not pieces), and their bytes.
    pub reads: u64,
    /// See `reads`.
    pub read_bytes: u64,
    /// Writes of the pool, FUA ones included, and their bytes.
    pub writes: u64,
    /// See `writes`.
    pub written_bytes: u64,
    /// Writes that had to be durable on completion.
    pub fua_writes: u64,
    /// Flushes; those of a device without a volatile cache cost nothing, but are counted.
    pub flushes: u64,
    /// Callers whose need was covered by a flush that somebody else had begun.
    pub flushes_joined: u64,
    /// Reads that failed.
    pub read_errors: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Flushes that failed.
    pub flush_errors: u64,
}

/// The devices of a pool, by member index. Indices may have gaps: members that are not here.
pub struct Devices {
    members: Vec<Option<Rc<Device>>>,
    spawn: Rc<dyn Spawn>,
    failure: Rc<Event>,
}

struct Device {
    index: u8,
    block: Rc<dyn BlockDevice>,
    completed: Cell<u64>,
    flushed: Cell<u64>,
    /// `completed` at the submission of each flush under way.
    flushing: RefCell<SmallVec<[u64; FLUSHES_MAX]>>,
    flush_ended: Event,
    failed: Cell<bool>,
    counters: Cell<Counters>,
}

impl Device {
    fn count(&self, change: impl FnOnce(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    fn usable(&self) -> Result<(), DeviceError> {
        if self.failed.get() { Err(DeviceError::Failed(self.index)) } else { Ok(()) }
    }
}

impl Devices {
    /// The members that are here, with their indices. Each index at most once.
    pub fn new(spawn: Rc<dyn Spawn>, present: Vec<(u8, Rc<dyn BlockDevice>)>) -> Rc<Devices> {
        let mut members = Vec::new();
        for (index, block) in present {
            let slot = usize::from(index);
            if members.len() <= slot {
                members.resize_with(slot + 1, || None);
            }
            assert!(members[slot].is_none(), "a member index is used once");
            members[slot] = Some(Rc::new(Device {
                index,
                block,
                completed: Cell::new(0),
                flushed: Cell::new(0),
                flushing: RefCell::default(),
                flush_ended: Event::new(),
                failed: Cell::new(false),
                counters: Cell::default(),
            }));
        }
        Rc::new(Devices { members, spawn, failure: Rc::new(Event::new()) })
    }

    /// Indices of the members that are here and believed.
    pub fn healthy(&self) -> impl Iterator<Item = u8> + '_ {
        self.members.iter().flatten().filter(|d| !d.failed.get()).map(|d| d.index)
    }

    /// Indices of all members that are here.
    pub fn present(&self) -> impl Iterator<Item = u8> + '_ {
        self.members.iter().flatten().map(|d| d.index)
    }

    /// Whether the member is here and believed.
    pub fn is_healthy(&self, device: u8) -> bool {
        self.get(device).is_ok_and(|d| !d.failed.get())
    }

    /// What a member is.
    pub fn info(&self, device: u8) -> Option<&DeviceInfo> {
        self.members.get(usize::from(device))?.as_ref().map(|d| d.block.info())
    }

    /// A member's name for people.
    pub fn name(&self, device: u8) -> String {
        self.info(device).map_or_else(|| alloc::format!("device {device}"), |i| i.name.clone())
    }

    /// What a member has done so far.
    pub fn counters(&self, device: u8) -> Counters {
        self.get(device).map(|d| d.counters.get()).unwrap_or_default()
    }

    /// Notified whenever a device fails.
    pub fn failure(&self) -> &Event {
        &self.failure
    }

    /// Stops believing a device: writes and flushes are refused from now on.
    pub fn fail(&self, device: u8, why: &str) {
        if let Ok(member) = self.get(device)
            && !member.failed.replace(true)
        {
            moraine_platform::error!("fs", "device {device} ({}) failed: {why}", member.block.info().name);
            member.flush_ended.notify();
            self.failure.notify();
        }
    }

    /// Reads `buf.len()` bytes at `offset`. A failed device may still be read: what it says is verified.
    pub async fn read(&self, device: u8, offset: u64, buf: Buf) -> (Buf, Result<(), DeviceError>) {
        let member = match self.get(device) {
            Ok(member) => member,
            Err(error) => return (buf, Err(error)),
        };
        let bytes = buf.len() as u64;
        let (buf, result) = transfer::read(&*member.block, offset, buf).await;
        member.count(|c| {
            c.reads += 1;
            c.read_bytes += bytes;
            c.read_errors += u64::from(result.is_err());
        });
        (buf, result)
    }

    /// Writes `buf` at `offset`. The answer names what a flush must cover for it to be durable; with [`Fua::Yes`] it
    /// is durable already, by a flush if the device knows no better.
    pub async fn write(
        &self,
        device: u8,
        offset: u64,
        buf: Buf,
        fua: Fua,
    ) -> (Buf, Result<Dep, DeviceError>) {
        let member = match self.get(device).and_then(|d| d.usable().map(|()| d)) {
            Ok(member) => member,
            Err(error) => return (buf, Err(error)),
        };
        let info = member.block.info();
        let native = if fua == Fua::Yes && info.fua && info.volatile_cache { Fua::Yes } else { Fua::No };
        let bytes = buf.len() as u64;
        let sent = if planted::is(Fault::FuaForgotten) { Fua::No } else { native };
        let (buf, result) = transfer::write(&*member.block, offset, buf, sent).await;
        member.count(|c| {
            c.writes += 1;
            c.written_bytes += bytes;
            c.fua_writes += u64::from(fua == Fua::Yes);
            c.write_errors += u64::from(result.is_err());
        });
        if let Err(error) = result.and_then(|()| member.usable()) {
            return (buf, Err(error));
        }
        if native == Fua::Yes {
            return (buf, Ok(Dep { device, generation: 0 }));
        }
        member.completed.set(member.completed.get() + 1);
        let dep = Dep { device, generation: member.completed.get() };
        if !info.volatile_cache {
            member.flushed.set(member.completed.get());
        } else if fua == Fua::Yes {
            return (buf, self.flush_to(member, dep.generation).await.map(|()| dep));
        }
        (buf, Ok(dep))
    }

    /// Makes everything durable that completed on `device` before this call.
    pub async fn flush(&self, device: u8) -> Result<(), DeviceError> {
        let member = self.get(device)?;
        self.flush_to(member, member.completed.get()).await
    }

    /// As [`Devices::flush`], but sends the command even if nothing was written by this pool object: what an earlier
    /// start left in the device's cache becomes durable too.
    pub async fn flush_earlier(&self, device: u8) -> Result<(), DeviceError> {
        let member = self.get(device)?;
        member.usable()?;
        member.completed.set(member.completed.get() + 1);
        self.flush_to(member, member.completed.get()).await
    }

    /// Whether everything in `deps` is durable.
    pub fn covered(&self, deps: &Deps) -> bool {
        deps.iter().all(|dep| self.get(dep.device).is_ok_and(|d| d.flushed.get() >= dep.generation))
    }

    /// Makes everything in `deps` durable: joins flushes under way that were submitted late enough, begins others,
    /// all devices at once. The error names the first device that could not.
    pub async fn flush_covering(&self, deps: &Deps) -> Result<(), (u8, DeviceError)> {
        for dep in deps.iter() {
            let member = self.get(dep.device).map_err(|e| (dep.device, e))?;
            self.begin_flush(member, dep.generation);
        }
        let mut result = Ok(());
        for dep in deps.iter() {
            let member = self.get(dep.device).map_err(|e| (dep.device, e))?;
            let one = self.flush_to(member, dep.generation).await;
            result = result.and(one.map_err(|e| (dep.device, e)));
        }
        result
    }

    /// Tells the device that a range is no longer needed.
    pub async fn discard(&self, device: u8, offset: u64, len: u64) -> Result<(), DeviceError> {
        let member = self.get(device)?;
        member.usable()?;
        if !member.block.info().discard {
            return Ok(());
        }
        member.block.discard(offset, len).await.map_err(DeviceError::Io)
    }

    fn get(&self, device: u8) -> Result<&Rc<Device>, DeviceError> {
        let member = self.members.get(usize::from(device)).and_then(|m| m.as_ref());
        member.ok_or(DeviceError::Missing(device))
    }

    async fn flush_to(&self, member: &Rc<Device>, generation: u64) -> Result<(), DeviceError> {
        let mut first = true;
        loop {
            let ticket = member.flush_ended.ticket();
            if member.flushed.get() >= generation {
                return Ok(());
            }
            member.usable()?;
            let began = self.begin_flush(member, generation);
            if core::mem::take(&mut first) && !began {
                member.count(|c| c.flushes_joined += 1);
            }
            member.flush_ended.after(ticket).await;
        }
    }

    /// Begins a flush unless one under way covers `generation` or the device has enough of them. It runs as a task of
    /// its own, because several may wait for it and each of them may go away.
    fn begin_flush(&self, member: &Rc<Device>, generation: u64) -> bool {
        let covered = member.flushed.get().max(member.flushing.borrow().iter().copied().max().unwrap_or(0));
        if covered >= generation || member.failed.get() || member.flushing.borrow().len() >= FLUSHES_MAX {
            return false;
        }
        let snapshot = member.completed.get();
        if planted::is(Fault::FlushSkipped) {
            member.flushed.set(snapshot);
            member.flush_ended.notify();
            return true;
        }
        assert!(snapshot >= generation, "a dependency names writes that have completed");
        member.count(|c| c.flushes += 1);
        if !member.block.info().volatile_cache {
            member.flushed.set(snapshot);
            member.flush_ended.notify();
            return true;
        }
        member.flushing.borrow_mut().push(snapshot);
        let flush = member.block.flush();
        let (member, failure) = (member.clone(), self.failure.clone());
        self.spawn.spawn(
            "device-flush",
            alloc::boxed::Box::pin(async move {
                let result = flush.await;
                member.flushing.borrow_mut().retain(|s| *s != snapshot);
                match result {
                    Ok(()) if !member.failed.get() => {
                        member.flushed.set(member.flushed.get().max(snapshot));
                    }
                    Ok(()) => {}
                    Err(error) => {
                        member.count(|c| c.flush_errors += 1);
                        let name = &member.block.info().name;
                        moraine_platform::error!(
                            "fs",
                            "flush of device {} ({name}) failed: {error}",
                            member.index
                        );
                        member.failed.set(true);
                        failure.notify();
                    }
                }
                member.flush_ended.notify();
            }),
        );
        true
    }
}
