//! virtio-blk (virtio 1.2 §5.2): one queue, as many requests in flight as it has room for.
//!
//! There is no abort: a request that takes too long ends in a reset of the device, until which its buffer stays here,
//! nothing new is issued and its caller is not answered (quarantine). Requests that the reset caught on their way
//! begin again. There is no FUA either: on a device with a volatile cache the filesystem writes and flushes.

use super::LOOK_INTERVAL;
use super::queue::{Direction, Next, Segment, Virtqueue};
use super::transport::{self, RESET_TIMEOUT, STATUS_NEEDS_RESET, Transport, VirtioError};
use crate::disk::{self, Disk};
use crate::dma::Dma;
use crate::hal::{Hal, Service};
use crate::request::{Begun, Operation, Request, SLOTS_MAX, Slots, TICK, Tag};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::time::Duration;
use moraine_platform::{
    BlockDevice, Buf, DeviceInfo, Fua, Instant, IoDone, IoError, IoFuture, error, info, warn,
};
use smallvec::SmallVec;

const FEATURE_SIZE_MAX: u64 = 1 << 1;
const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_BLOCK_SIZE: u64 = 1 << 6;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_TOPOLOGY: u64 = 1 << 10;
const FEATURE_CACHE_MODE: u64 = 1 << 11;
const FEATURE_DISCARD: u64 = 1 << 13;
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;
const WANTED: u64 = FEATURE_SIZE_MAX
    | FEATURE_SEG_MAX
    | FEATURE_READ_ONLY
    | FEATURE_BLOCK_SIZE
    | FEATURE_FLUSH
    | FEATURE_TOPOLOGY
    | FEATURE_CACHE_MODE
    | FEATURE_DISCARD
    | FEATURE_WRITE_ZEROES;

// Device configuration.
const CONFIG_CAPACITY: usize = 0;
const CONFIG_SIZE_MAX: usize = 8;
const CONFIG_SEG_MAX: usize = 12;
const CONFIG_BLOCK_SIZE: usize = 20;
const CONFIG_PHYSICAL_EXPONENT: usize = 24;
const CONFIG_WRITE_BACK: usize = 32;
const CONFIG_DISCARD_SECTORS: usize = 36;
const CONFIG_ZEROES_SECTORS: usize = 48;

/// The unit of all positions and limits on the wire, in bytes.
const SECTOR: u64 = 512;
const SECTOR_SHIFT: u8 = 9;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_UNSUPPORTED: u8 = 2;
/// Not a status: stands where the device has not written one.
const STATUS_NONE: u8 = 0xff;

const QUEUE: u16 = 0;
const QUEUE_SIZE_MAX: u16 = 512;
/// Largest transfer of one request, in bytes.
const TRANSFER_MAX: u64 = 1 << 20;
/// Data segments of one request, where the device limits their size.
const SEGMENTS_MAX: u64 = 32;
/// Largest range discarded or zeroed by one request, in bytes.
const RANGE_MAX: u64 = 1 << 30;
const PAGE: u64 = crate::hal::PAGE_SIZE as u64;

// A slot's memory: header, range, status, then an indirect table.
const SLOT_RANGE: usize = 16;
const SLOT_STATUS: usize = 32;
const SLOT_TABLE: usize = 64;
const HEADER_LEN: u32 = 16;
const RANGE_LEN: u32 = 16;
/// Length of the device's id string.
const ID_LEN: u32 = 20;

const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(5);
const COMPLAINTS_MAX: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// Waits for the device to have reset, until then.
    Resetting(Instant),
    Dead,
}

/// Queue, requests, and their memory.
struct Io {
    queue: Virtqueue,
    slots: Slots,
    memory: Dma,
    stride: usize,
    /// The request behind each head descriptor.
    tags: Vec<Tag>,
    segment_max: u64,
}

/// A block device.
pub(crate) struct VirtioBlock {
    hal: Rc<dyn Hal>,
    transport: Box<dyn Transport>,
    disk: Disk,
    /// Taken only by `drop`.
    io: RefCell<Option<Io>>,
    features: u64,
    state: Cell<State>,
    next_tick: Cell<Instant>,
    armed: Cell<bool>,
    complaints: Cell<u32>,
}

/// `vda` … `vdz`, `vdaa` …
fn name_of(mut index: usize) -> String {
    let mut letters = String::new();
    loop {
        letters.insert(0, (b'a' + (index % 26) as u8) as char);
        if index < 26 {
            return format!("vd{letters}");
        }
        index = index / 26 - 1;
    }
}

/// What the configuration says, checked.
fn read_disk(transport: &dyn Transport, features: u64, index: usize) -> Result<(Disk, u64), VirtioError> {
    let has = |feature| features & feature != 0;
    let sectors = transport.config64(CONFIG_CAPACITY);
    let size = sectors.checked_mul(SECTOR).ok_or(VirtioError::Unsupported("its capacity makes no sense"))?;
    let block = if has(FEATURE_BLOCK_SIZE) { transport.config32(CONFIG_BLOCK_SIZE) } else { SECTOR as u32 };
    if !block.is_power_of_two() || !(512..=4096).contains(&block) {
        return Err(VirtioError::Unsupported("its block is not 512 to 4096 bytes"));
    }
    let exponent = if has(FEATURE_TOPOLOGY) { transport.config8(CONFIG_PHYSICAL_EXPONENT) } else { 0 };
    let physical_block = if exponent <= 4 { block << exponent } else { block };
    // At most as many segments as the device takes, and as fit one request's table.
    let segments = if has(FEATURE_SEG_MAX) { transport.config32(CONFIG_SEG_MAX).max(1) } else { 1 };
    let (segment_max, transfer_max) = if has(FEATURE_SIZE_MAX) {
        let segment = u64::from(transport.config32(CONFIG_SIZE_MAX));
        (segment, (segment * u64::from(segments).min(SEGMENTS_MAX)) / PAGE * PAGE)
    } else {
        (TRANSFER_MAX, TRANSFER_MAX)
    };
    let transfer_max = transfer_max.min(TRANSFER_MAX);
    if transfer_max == 0 {
        return Err(VirtioError::Unsupported("it takes less than 4 KiB at once"));
    }
    // A range limit, cut to whole pages; none for a device that offers the command but allows nothing.
    let range = |feature, at| {
        let limit = u64::from(transport.config32(at)) * SECTOR;
        (has(feature) && limit >= PAGE).then_some(limit.min(RANGE_MAX) / PAGE * PAGE)
    };
    let discard = range(FEATURE_DISCARD, CONFIG_DISCARD_SECTORS);
    // §5.2.5: without CONFIG_WCE, a device that can flush is write-back and one that cannot is write-through.
    let volatile_cache = match (has(FEATURE_FLUSH), has(FEATURE_CACHE_MODE)) {
        (true, true) => transport.config8(CONFIG_WRITE_BACK) != 0,
        (true, false) => true,
        (false, true) => {
            // A cache which cannot be flushed is switched off.
            transport.set_config8(CONFIG_WRITE_BACK, 0);
            false
        }
        (false, false) => false,
    };
    let info = DeviceInfo {
        name: name_of(index),
        identity: String::new(),
        size: size / u64::from(block) * u64::from(block),
        logical_block: block,
        physical_block,
        max_transfer: disk::reported_transfer_max(transfer_max),
        queue_depth: 0,
        volatile_cache,
        // Where nothing is cached every write is through when it completes.
        fua: !volatile_cache,
        discard: discard.is_some(),
        read_only: has(FEATURE_READ_ONLY),
    };
    let disk = Disk {
        info,
        target: 0,
        block_shift: SECTOR_SHIFT,
        transfer_max,
        discard_max: discard.unwrap_or(PAGE),
        zeroes_max: range(FEATURE_WRITE_ZEROES, CONFIG_ZEROES_SECTORS),
    };
    Ok((disk, segment_max))
}

impl VirtioBlock {
    /// Brings the device up, waiting for it. It becomes disk number `index`.
    pub(crate) fn new(
        hal: &Rc<dyn Hal>,
        transport: Box<dyn Transport>,
        index: usize,
    ) -> Result<Rc<VirtioBlock>, VirtioError> {
        transport::reset(&**hal, &*transport)?;
        let features = transport::negotiate(&*transport, WANTED)?;
        let (mut disk, segment_max) = read_disk(&*transport, features, index)?;
        let queue = Virtqueue::new(hal, &*transport, QUEUE, QUEUE_SIZE_MAX, features)?;
        let segments = disk.transfer_max.div_ceil(segment_max) as usize;
        let each = if queue.has_indirect() { 1 } else { segments + 2 };
        let depth = (usize::from(queue.size()) / each).min(SLOTS_MAX);
        if depth == 0 {
            return Err(VirtioError::Unsupported("its queue is too short for a request"));
        }
        disk.info.queue_depth = depth as u32;
        let stride = (SLOT_TABLE + (segments + 2) * 16).next_power_of_two();
        let io = Io {
            memory: Dma::new(hal, depth * stride)?,
            stride,
            slots: Slots::new(depth),
            tags: alloc::vec![Tag(0); usize::from(queue.size())],
            queue,
            segment_max,
        };
        transport::drive(&*transport);
        let mut device = VirtioBlock {
            hal: hal.clone(),
            transport,
            disk,
            io: RefCell::new(Some(io)),
            features,
            state: Cell::new(State::Ready),
            next_tick: Cell::new(hal.now()),
            armed: Cell::new(false),
            complaints: Cell::new(0),
        };
        device.disk.info.identity = device.identify()?;
        let info = &device.disk.info;
        info!("virtio", "{}: {} bytes, {} requests in flight", info.name, info.size, info.queue_depth);
        Ok(Rc::new(device))
    }

    /// The serial number, by a request of its own. Empty where the device has none.
    fn identify(&mut self) -> Result<String, VirtioError> {
        let io = self.io.get_mut().as_mut().expect("not dropped");
        let memory = &io.memory;
        memory.write(0, TYPE_GET_ID);
        memory.write(SLOT_STATUS, STATUS_NONE);
        let segments = [
            Segment { bus: memory.bus(0), len: HEADER_LEN, direction: Direction::ToDevice },
            Segment { bus: memory.bus(SLOT_TABLE), len: ID_LEN, direction: Direction::FromDevice },
            Segment { bus: memory.bus(SLOT_STATUS), len: 1, direction: Direction::FromDevice },
        ];
        if io.queue.add(&segments).is_none() {
            return Ok(String::new());
        }
        io.queue.kick(&*self.transport);
        let deadline = self.hal.now() + IDENTIFY_TIMEOUT;
        while !matches!(io.queue.pop(), Next::Chain(_)) {
            if self.hal.now() >= deadline {
                return Err(VirtioError::Unsupported("it does not answer"));
            }
            self.hal.relax();
        }
        if io.memory.read::<u8>(SLOT_STATUS) != STATUS_OK {
            return Ok(String::new());
        }
        let mut id = [0; ID_LEN as usize];
        io.memory.copy_out(SLOT_TABLE, &mut id);
        let text: String = id.iter().take_while(|&&b| b != 0).map(|&b| b as char).collect();
        Ok(String::from(text.trim_matches(|c: char| !c.is_ascii_graphic())))
    }

    fn submit(&self, request: Rc<Request>) {
        let mut io = self.io.borrow_mut();
        let io = io.as_mut().expect("not dropped");
        io.slots.push(request);
        match self.state.get() {
            State::Ready => io.issue(),
            State::Resetting(_) => (),
            // Nobody waits on the new request yet, so no task is woken under the borrow.
            State::Dead => io.slots.abandon().fail(IoError::Gone),
        }
    }

    /// Takes completions; whether there were any.
    fn complete(&self) -> bool {
        let mut worked = false;
        for _ in 0..QUEUE_SIZE_MAX {
            let mut borrow = self.io.borrow_mut();
            let io = borrow.as_mut().expect("not dropped");
            let head = match io.queue.pop() {
                Next::Empty => break,
                Next::Chain(used) => usize::from(used.head),
                Next::Nonsense(id) => {
                    self.complain(id);
                    continue;
                }
            };
            worked = true;
            let tag = io.tags[head];
            let status = io.memory.read::<u8>(tag.slot() * io.stride + SLOT_STATUS);
            let ended = io.slots.take(tag).expect("a chain in flight is a slot in flight");
            drop(borrow);
            let result = match status {
                STATUS_OK => Ok(()),
                STATUS_UNSUPPORTED => Err(IoError::Invalid),
                // The protocol has one code for all errors; on reads and writes it is the medium's.
                _ if ended.timed_out => Err(IoError::Timeout),
                STATUS_NONE => Err(IoError::Device),
                _ if matches!(ended.operation(), Operation::Read | Operation::Write(_)) => {
                    Err(IoError::Media)
                }
                _ => Err(IoError::Device),
            };
            if result.is_err() {
                let (operation, piece) = (ended.operation(), ended.piece());
                warn!("virtio", "{}: {operation:?} of {piece:?}: status {status}", self.disk.info.name);
            }
            ended.finish(result);
        }
        worked
    }

    fn complain(&self, id: u32) {
        let count = self.complaints.get();
        if count < COMPLAINTS_MAX {
            self.complaints.set(count + 1);
            warn!("virtio", "{}: it completed a request never given: {id}", self.disk.info.name);
        }
    }

    /// Looks after requests that take too long.
    fn tick(&self) {
        let now = self.hal.now();
        if now < self.next_tick.get() {
            return;
        }
        self.next_tick.set(now + TICK);
        let idle = self.io.borrow().as_ref().expect("not dropped").slots.in_flight() == 0;
        if self.state.get() != State::Ready || idle {
            return;
        }
        if !self.transport.is_present() {
            return self.give_up();
        }
        let mut io = self.io.borrow_mut();
        let io = io.as_mut().expect("not dropped");
        let late = io.slots.tick().is_some();
        let sick = self.transport.status() & STATUS_NEEDS_RESET != 0;
        if late || sick {
            let why = if late { "a request timed out" } else { "it asks for a reset" };
            warn!("virtio", "{}: {why}; resetting it", self.disk.info.name);
            self.transport.set_status(0);
            self.state.set(State::Resetting(now + RESET_TIMEOUT));
        }
    }

    /// Goes on with a reset; whether it came to an end.
    fn recover(&self, until: Instant) -> bool {
        // Its registers may read as zeroes, like a reset that is through.
        if !self.transport.is_present() {
            self.give_up();
            return true;
        }
        if self.transport.status() == 0 {
            self.restart();
            return true;
        }
        if self.hal.now() >= until {
            self.give_up();
            return true;
        }
        false
    }

    /// The device was reset, and forgot everything.
    fn restart(&self) {
        let failed = {
            let mut io = self.io.borrow_mut();
            let io = io.as_mut().expect("not dropped");
            let failed = io.slots.interrupted();
            let restarted = transport::negotiate(&*self.transport, self.features).and_then(|features| {
                if features != self.features {
                    return Err(VirtioError::Features);
                }
                io.queue.restart(&*self.transport)
            });
            if restarted.is_ok() {
                transport::drive(&*self.transport);
                self.state.set(State::Ready);
            }
            failed
        };
        for ended in failed {
            ended.finish(Err(IoError::Timeout));
        }
        if self.state.get() != State::Ready {
            self.give_up();
        }
    }

    /// Cuts the device off from memory, and fails everything.
    fn give_up(&self) {
        error!("virtio", "{}: giving the device up", self.disk.info.name);
        let certain = self.transport.cut_off();
        self.state.set(State::Dead);
        let abandoned = self.io.borrow_mut().as_mut().expect("not dropped").slots.abandon();
        if !certain {
            // It may still write into them, for ever.
            abandoned.lose_buffers();
        }
        abandoned.fail(IoError::Gone);
    }

    fn submit_waiting(&self) -> bool {
        let mut io = self.io.borrow_mut();
        let io = io.as_mut().expect("not dropped");
        if io.slots.has_waiting() {
            io.issue();
        }
        io.queue.kick(&*self.transport)
    }
}

impl Io {
    /// Makes chains of waiting pieces while there is room.
    fn issue(&mut self) {
        while let Some(begun) = self.slots.begin() {
            match self.place(&begun) {
                Some(head) => self.tags[usize::from(head)] = begun.tag,
                None => return self.slots.put_back(begun.tag),
            }
        }
    }

    fn place(&mut self, begun: &Begun) -> Option<u16> {
        let Begun { tag, piece, request } = begun;
        let at = tag.slot() * self.stride;
        let sector = piece.offset >> request.block_shift;
        let (kind, direction) = match request.operation {
            Operation::Read => (TYPE_IN, Some(Direction::FromDevice)),
            Operation::Write(_) => (TYPE_OUT, Some(Direction::ToDevice)),
            Operation::WriteZeroes if request.emulates_zeroes() => (TYPE_OUT, Some(Direction::ToDevice)),
            Operation::WriteZeroes => (TYPE_WRITE_ZEROES, None),
            Operation::Discard => (TYPE_DISCARD, None),
            Operation::Flush => (TYPE_FLUSH, None),
        };
        let ranged = matches!(kind, TYPE_WRITE_ZEROES | TYPE_DISCARD);
        self.memory.write(at, u64::from(kind));
        self.memory.write(at + 8, if ranged { 0 } else { sector });
        self.memory.write(at + SLOT_STATUS, STATUS_NONE);
        let to_device =
            |offset, len| Segment { bus: self.memory.bus(at + offset), len, direction: Direction::ToDevice };
        let mut segments: SmallVec<[Segment; 4]> = SmallVec::new();
        segments.push(to_device(0, HEADER_LEN));
        if ranged {
            self.memory.write(at + SLOT_RANGE, sector);
            // Number of sectors, and no flags: zeroed blocks stay allocated.
            self.memory.write(at + SLOT_RANGE + 8, piece.len >> request.block_shift);
            segments.push(to_device(SLOT_RANGE, RANGE_LEN));
        }
        if let Some(direction) = direction {
            let (mut bus, mut left) = (request.bus_of(*piece), piece.len);
            while left > 0 {
                let len = left.min(self.segment_max);
                segments.push(Segment { bus, len: len as u32, direction });
                bus += len;
                left -= len;
            }
        }
        let status =
            Segment { bus: self.memory.bus(at + SLOT_STATUS), len: 1, direction: Direction::FromDevice };
        segments.push(status);
        // Chains in the queue itself cost the device one access less; they are used while there are plenty.
        let plenty = usize::from(self.queue.free_count()) >= usize::from(self.queue.size()) / 2;
        if self.queue.has_indirect() && !(plenty && segments.len() <= usize::from(self.queue.free_count())) {
            self.queue.add_indirect(&segments, &self.memory, at + SLOT_TABLE)
        } else {
            self.queue.add(&segments)
        }
    }
}

impl Service for VirtioBlock {
    fn name(&self) -> &str {
        &self.disk.info.name
    }

    fn poll(&self) -> bool {
        match self.state.get() {
            State::Dead => return false,
            State::Resetting(until) => return self.recover(until),
            State::Ready => (),
        }
        if self.armed.replace(false) {
            self.transport.acknowledge_interrupt();
            self.io.borrow_mut().as_mut().expect("not dropped").queue.disarm();
        }
        let mut worked = self.submit_waiting();
        if self.complete() {
            worked = true;
            self.submit_waiting();
        }
        self.tick();
        worked
    }

    fn arm(&self) -> bool {
        if self.state.get() != State::Ready {
            return true;
        }
        self.armed.set(true);
        self.transport.acknowledge_interrupt();
        self.io.borrow_mut().as_mut().expect("not dropped").queue.arm()
    }

    fn deadline(&self) -> Option<Instant> {
        match self.state.get() {
            State::Dead => None,
            State::Resetting(_) => Some(self.hal.now() + LOOK_INTERVAL),
            State::Ready => {
                let io = self.io.borrow();
                io.as_ref().filter(|io| io.slots.in_flight() > 0)?;
                let look = self.transport.look_interval().map(|interval| self.hal.now() + interval);
                Some(look.map_or(self.next_tick.get(), |look| look.min(self.next_tick.get())))
            }
        }
    }
}

impl disk::Engine for VirtioBlock {
    fn submit(&self, request: Rc<Request>) {
        VirtioBlock::submit(self, request);
    }
    fn hal(&self) -> &dyn Hal {
        &*self.hal
    }
}

impl BlockDevice for VirtioBlock {
    fn info(&self) -> &DeviceInfo {
        &self.disk.info
    }
    fn read(&self, offset: u64, buf: Buf) -> IoFuture<IoDone> {
        self.disk.read(self, offset, buf)
    }
    fn write(&self, offset: u64, buf: Buf, fua: Fua) -> IoFuture<IoDone> {
        self.disk.write(self, offset, buf, fua)
    }
    fn flush(&self) -> IoFuture<Result<(), IoError>> {
        self.disk.flush(self)
    }
    fn discard(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        self.disk.discard(self, offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        self.disk.write_zeroes(self, offset, len)
    }
}

impl Drop for VirtioBlock {
    fn drop(&mut self) {
        if !self.transport.cut_off()
            && let Some(mut io) = self.io.take()
        {
            let abandoned = io.slots.abandon();
            abandoned.lose_buffers();
            abandoned.fail(IoError::Gone);
            io.queue.leak();
            io.memory.leak();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::name_of;

    #[test]
    fn disks_are_named_as_usual() {
        let names: [_; 5] = [0, 25, 26, 51, 702].map(name_of);
        assert_eq!(names, ["vda", "vdz", "vdaa", "vdaz", "vdaaa"]);
    }
}
