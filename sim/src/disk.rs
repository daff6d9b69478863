//! A simulated disk: commands take a seeded time, writes land in a volatile cache, a flush makes what had completed
//! durable, and a power cut keeps, loses or tears whatever was not.

use crate::random::Random;
use crate::trace::{Command, CommandId, Payload};
use crate::world::Inner;
use moraine_platform::{BlockDevice, Buf, DeviceInfo, Fua, IoDone, IoError, IoFuture};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

mod cache;
mod faults;
mod image;

pub use cache::{Cache, Fate, Piece};
pub use faults::{DiskFaults, WriteFault};
pub use image::{IMAGE_BLOCK, Image};

/// What a disk is like. Sizes are bytes, times nanoseconds.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// Its name in logs.
    pub name: &'static str,
    /// Smallest unit of transfer, and what a power cut cannot tear.
    pub logical_block: u32,
    /// Unit written without read-modify-write.
    pub physical_block: u32,
    /// Largest transfer.
    pub max_transfer: u32,
    /// Whether completed writes may be lost until a flush.
    pub volatile_cache: bool,
    /// Whether force-unit-access writes are supported.
    pub fua: bool,
    /// Whether discard destroys what was there.
    pub discard: bool,
    /// Shortest and longest time of a read or write.
    pub transfer_ns: (u64, u64),
    /// Shortest and longest time of a flush.
    pub flush_ns: (u64, u64),
}

impl Default for DiskConfig {
    fn default() -> DiskConfig {
        DiskConfig {
            name: "sim",
            logical_block: 512,
            physical_block: 4096,
            max_transfer: 1 << 20,
            volatile_cache: true,
            fua: true,
            discard: true,
            transfer_ns: (10_000, 400_000),
            flush_ns: (100_000, 3_000_000),
        }
    }
}

/// A disk of a world.
pub struct SimDisk {
    world: Weak<Inner>,
    /// Whether its machine is on.
    power: Rc<Cell<bool>>,
    index: usize,
    info: DeviceInfo,
    config: DiskConfig,
    core: Rc<RefCell<Core>>,
}

struct Core {
    cache: Cache,
    faults: DiskFaults,
    delays: Random,
    noise: Random,
    /// Blocks that were read since asked to watch.
    watched: Option<BTreeSet<u64>>,
    /// What ends each command under way: in its time, or before, with the error given.
    under_way: BTreeMap<CommandId, EndCommand>,
}

/// Ends a command: as planned, or with another error.
type EndCommand = Box<dyn FnOnce(&RefCell<Core>, Option<IoError>)>;

/// A completion on its way to the future that waits for it.
struct Slot<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

impl<T: 'static> Slot<T> {
    fn new() -> Rc<Slot<T>> {
        Rc::new(Slot { value: RefCell::new(None), waker: RefCell::new(None) })
    }

    fn fill(&self, value: T) {
        *self.value.borrow_mut() = Some(value);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn wait(self: Rc<Self>) -> IoFuture<T> {
        Box::pin(poll_fn(move |cx| match self.value.take() {
            Some(value) => Poll::Ready(value),
            None => {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }))
    }
}

/// What a write command turned into.
enum Writing {
    /// As asked for.
    Plain,
    /// With a fault.
    Fault(WriteFault),
}

impl SimDisk {
    pub(crate) fn new(
        world: &Rc<Inner>,
        index: usize,
        image: Image,
        config: DiskConfig,
        power: Rc<Cell<bool>>,
    ) -> SimDisk {
        let info = DeviceInfo {
            name: format!("{}{index}", config.name),
            identity: format!("simulated disk {index}"),
            size: image.size(),
            logical_block: config.logical_block,
            physical_block: config.physical_block,
            max_transfer: config.max_transfer,
            queue_depth: 64,
            volatile_cache: config.volatile_cache,
            fua: config.fua,
            discard: config.discard,
            read_only: false,
        };
        let core = Core {
            cache: Cache::new(image),
            faults: DiskFaults::default(),
            delays: world.random_for(&format!("disk {index} delays")),
            noise: world.random_for(&format!("disk {index} noise")),
            watched: None,
            under_way: BTreeMap::new(),
        };
        SimDisk { world: Rc::downgrade(world), power, index, info, config, core: Rc::new(RefCell::new(core)) }
    }

    /// Plans or changes faults.
    pub fn faults<T>(&self, edit: impl FnOnce(&mut DiskFaults) -> T) -> T {
        edit(&mut self.core.borrow_mut().faults)
    }

    /// What a reader sees now: completed writes included.
    pub fn visible_image(&self) -> Image {
        self.core.borrow().cache.visible().clone()
    }

    /// What survives if everything volatile is lost.
    pub fn durable_image(&self) -> Image {
        let core = self.core.borrow();
        core.cache.crash(&Fate::all(Piece::Drop, core.cache.pending()))
    }

    /// What a power cut leaves, by `random`: each unflushed write kept, lost or torn.
    pub fn crash_image(&self, random: &mut Random) -> Image {
        let core = self.core.borrow();
        core.cache.crash(&Fate::random(core.cache.pending(), random))
    }

    /// What is there if only the process died: writes under way are kept, lost or torn, completed ones are there.
    pub fn killed_image(&self, random: &mut Random) -> Image {
        let core = self.core.borrow();
        core.cache.crash(&core.cache.killed(random))
    }

    /// Changes one bit of each of `count` bytes drawn from the range: rot at rest.
    pub fn rot(&self, offset: u64, len: u64, count: u64, random: &mut Random) {
        let mut core = self.core.borrow_mut();
        for _ in 0..count {
            core.cache.rot(offset + random.below(len), 1 << random.below(8));
        }
    }

    /// Whether everything completed in the range is durable and nothing is being written to it.
    pub fn is_durable(&self, offset: u64, len: u64) -> bool {
        self.core.borrow().cache.is_durable(offset, len)
    }

    /// Commands under way.
    pub fn in_flight(&self) -> u64 {
        self.core.borrow().under_way.len() as u64
    }

    /// Ends every command under way now, as one that failed: what a reset of whatever drives the disk does to them.
    pub fn end_all(&self) {
        let under_way = std::mem::take(&mut self.core.borrow_mut().under_way);
        under_way.into_values().for_each(|end| end(&self.core, Some(IoError::Device)));
    }

    /// Starts to note which blocks ([`IMAGE_BLOCK`]) are read.
    pub fn watch_reads(&self) {
        self.core.borrow_mut().watched = Some(BTreeSet::new());
    }

    /// Blocks read since [`SimDisk::watch_reads`].
    pub fn reads_seen(&self) -> BTreeSet<u64> {
        self.core.borrow().watched.clone().unwrap_or_default()
    }

    fn fits(&self, offset: u64, len: u64, limit: u64) -> bool {
        let block = u64::from(self.config.logical_block);
        let aligned = offset.is_multiple_of(block) && len.is_multiple_of(block);
        aligned && len <= limit && offset.checked_add(len).is_some_and(|end| end <= self.info.size)
    }

    /// Submits `command`; `done` gets its number and its fault when it completes. With the power off nothing happens.
    fn submit(
        &self,
        command: Command,
        fault: Option<IoError>,
        done: impl FnOnce(&mut Core, CommandId, Result<(), IoError>) -> Result<(), IoError> + 'static,
        deliver: impl FnOnce(Result<(), IoError>) + 'static,
    ) {
        let power = self.power.clone();
        let Some(world) = self.world.upgrade().filter(|world| world.is_alive() && power.get()) else {
            return;
        };
        let id = world.trace().submit(self.index, world.now_ns(), &command);
        let (low, high) = match command {
            Command::Flush => self.config.flush_ns,
            _ => self.config.transfer_ns,
        };
        let took = {
            let mut core = self.core.borrow_mut();
            if let Command::Write { offset, payload, .. } = &command {
                core.cache.submit(id, *offset, payload.clone());
            }
            let slow = core.faults.slow_factor.max(1);
            core.delays.between(low, high).saturating_mul(slow)
        };
        let (index, weak) = (self.index, self.world.clone());
        let complete = move |core: &RefCell<Core>, instead: Option<IoError>| {
            let Some(world) = weak.upgrade().filter(|world| world.is_alive() && power.get()) else { return };
            let result = done(&mut core.borrow_mut(), id, instead.or(fault).map_or(Ok(()), Err));
            world.trace().complete(index, world.now_ns(), id, result);
            deliver(result);
        };
        self.core.borrow_mut().under_way.insert(id, Box::new(complete));
        let core = Rc::downgrade(&self.core);
        let in_time = move || {
            let Some(core) = core.upgrade() else { return };
            let end = core.borrow_mut().under_way.remove(&id);
            end.into_iter().for_each(|end| end(&core, None));
        };
        world.at(world.now_ns() + took, Box::new(in_time));
    }

    /// A write of any payload, with its planned fault.
    fn put(
        &self,
        offset: u64,
        payload: Payload,
        fua: Fua,
        deliver: impl FnOnce(Result<(), IoError>) + 'static,
    ) {
        let (error, writing) = {
            let mut core = self.core.borrow_mut();
            let error = core.faults.next_command();
            let writing = core.faults.next_write().map_or(Writing::Plain, Writing::Fault);
            (error, writing)
        };
        let durable = fua == Fua::Yes || !self.config.volatile_cache;
        let (weak, shared) = (self.world.clone(), Rc::downgrade(&self.core));
        let command = Command::Write { offset, payload, fua };
        let size = self.info.size;
        self.submit(
            command,
            error,
            move |core, id, result| {
                if result.is_err() {
                    // What a failed write left is anybody's guess.
                    match core.noise.below(3) {
                        0 => core.cache.complete(id, false),
                        1 => core.cache.forget(id),
                        _ => {
                            let seed = core.noise.next_u64();
                            core.cache.complete_torn(id, seed);
                        }
                    }
                    return result;
                }
                match writing {
                    Writing::Plain => core.cache.complete(id, durable),
                    Writing::Fault(WriteFault::Lost) => core.cache.forget(id),
                    Writing::Fault(WriteFault::Misdirected { by }) => {
                        core.cache.redirect(id, |at, len| (at.wrapping_add(by) % (size - len + 1)) & !511);
                        core.cache.complete(id, durable);
                    }
                    Writing::Fault(WriteFault::Zombie { after_ns }) => {
                        if let Some(world) = weak.upgrade() {
                            let lands = move || {
                                shared
                                    .upgrade()
                                    .iter()
                                    .for_each(|c| c.borrow_mut().cache.complete(id, false));
                            };
                            world.at(world.now_ns() + after_ns, Box::new(lands));
                        }
                        return Err(IoError::Timeout);
                    }
                }
                Ok(())
            },
            deliver,
        );
    }

    fn refused<T: 'static>(value: T) -> IoFuture<T> {
        Box::pin(std::future::ready(value))
    }
}

impl BlockDevice for SimDisk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buf: Buf) -> IoFuture<IoDone> {
        let len = buf.len() as u64;
        if !self.fits(offset, len, u64::from(self.config.max_transfer)) {
            return Self::refused(IoDone { buf, result: Err(IoError::Invalid) });
        }
        let fault = {
            let mut core = self.core.borrow_mut();
            let touched = offset / IMAGE_BLOCK..(offset + len).div_ceil(IMAGE_BLOCK);
            if let Some(watched) = &mut core.watched {
                watched.extend(touched);
            }
            core.faults.next_command().or_else(|| core.faults.next_read(offset, len))
        };
        let slot = Slot::new();
        let (fill, filled) = (slot.clone(), Rc::new(Cell::new(None)));
        let taken = filled.clone();
        self.submit(
            Command::Read { offset, len },
            fault,
            move |core, _, result| {
                match result {
                    Ok(()) => core.cache.visible().read(offset, &mut buf),
                    Err(_) => core.noise.fill(&mut buf),
                }
                filled.set(Some(buf));
                result
            },
            move |result| {
                let buf = taken.take().expect("the command ran");
                fill.fill(IoDone { buf, result });
            },
        );
        slot.wait()
    }

    fn write(&self, offset: u64, buf: Buf, fua: Fua) -> IoFuture<IoDone> {
        let fits = self.fits(offset, buf.len() as u64, u64::from(self.config.max_transfer));
        if !fits || (fua == Fua::Yes && !self.config.fua) {
            return Self::refused(IoDone { buf, result: Err(IoError::Invalid) });
        }
        let slot = Slot::new();
        let fill = slot.clone();
        let payload = Payload::Bytes(Rc::from(&*buf));
        self.put(offset, payload, fua, move |result| fill.fill(IoDone { buf, result }));
        slot.wait()
    }

    fn flush(&self) -> IoFuture<Result<(), IoError>> {
        let slot = Slot::new();
        let fill = slot.clone();
        let (fault, loses, ignored, covered) = {
            let mut core = self.core.borrow_mut();
            let fault = core.faults.next_command();
            let failed = core.faults.next_flush();
            let fault = fault.or(failed.map(|_| IoError::Device));
            (fault, failed == Some(true), core.faults.ignore_flush, core.cache.completed())
        };
        let done = move |core: &mut Core, _, result: Result<(), IoError>| {
            match result {
                Ok(()) if !ignored => core.cache.make_durable(&covered),
                Err(_) if loses => core.cache.lose(&covered),
                _ => {}
            }
            result
        };
        self.submit(Command::Flush, fault, done, move |result| fill.fill(result));
        slot.wait()
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        if !self.fits(offset, len, u64::MAX) {
            return Self::refused(Err(IoError::Invalid));
        }
        let slot = Slot::new();
        let fill = slot.clone();
        if !self.config.discard || len == 0 {
            return Self::refused(Ok(()));
        }
        let seed = self.core.borrow_mut().noise.next_u64();
        self.put(offset, Payload::Noise(seed, len), Fua::No, move |result| fill.fill(result));
        slot.wait()
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        if !self.fits(offset, len, u64::MAX) {
            return Self::refused(Err(IoError::Invalid));
        }
        let slot = Slot::new();
        let fill = slot.clone();
        self.put(offset, Payload::Zeroes(len), Fua::No, move |result| fill.fill(result));
        slot.wait()
    }
}
