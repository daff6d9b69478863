//! A fake virtio device on either bus: registers, feature negotiation and the device's side of split virtqueues.
//! It checks that the driver keeps to the specification. What the device does with chains is its [`Backend`]'s.

use crate::board::{Board, Model};
use crate::function::Function;
use crate::memory::{read as dma_read, read_into as dma_read_into, write as dma_write};
use crate::random::Random;
use moraine_drivers::MmioWindow;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

/// Where the registers of the first device on PCI are; each further one has its own behind it.
pub const BAR: u64 = 0x20_0000_0000;
const BAR_LEN: usize = 0x4000;
/// Where the window of the first device on MMIO is; each further one has its own behind it.
pub const MMIO: u64 = 0xfeb0_0000;
/// Length of such a window.
pub const MMIO_LEN: usize = 0x200;
const COMMON_AT: usize = 0;
const NOTIFY_AT: usize = 0x1000;
const CONFIG_AT: usize = 0x2000;
const MSIX_AT: usize = 0x3000;
const NOTIFY_MULTIPLIER: usize = 4;
/// Of the status: the driver uses the device.
const DRIVER_OK: u8 = 4;

/// The feature of chains in tables of their own.
pub const INDIRECT: u64 = 1 << 28;
/// The feature of notifications at an index.
pub const EVENT_IDX: u64 = 1 << 29;
/// The feature of virtio 1.0 and later.
pub const VERSION_1: u64 = 1 << 32;

/// What a device is reached over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// PCI, virtio 1.0.
    Pci,
    /// A window, virtio 1.0.
    Mmio,
    /// A window, virtio before 1.0.
    MmioLegacy,
}

/// A stretch of the driver's memory; only chains that a driver made have some.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    bus: u64,
    /// How many bytes.
    pub len: usize,
}

impl Part {
    /// Writes to its start.
    pub fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len, "a device writes no more than there is room for");
        dma_write(self.bus, bytes);
    }
}

/// The window of device number `index`.
pub fn window(index: u8) -> MmioWindow {
    MmioWindow { address: MMIO + u64::from(index) * MMIO_LEN as u64, len: MMIO_LEN as u64 }
}

/// A chain of buffers that the driver made available.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Its first descriptor, by which it is given back.
    pub head: u16,
    /// What the device may read.
    pub readable: Vec<Part>,
    /// What it may write.
    pub writable: Vec<Part>,
    /// Descriptors of the ring that it takes.
    pub descriptors: usize,
}

impl Chain {
    /// All that may be read.
    pub fn read(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for part in &self.readable {
            let start = all.len();
            all.resize(start + part.len, 0);
            dma_read_into(part.bus, &mut all[start..]);
        }
        all
    }

    /// Bytes that may be written.
    pub fn writable_len(&self) -> usize {
        self.writable.iter().map(|w| w.len).sum()
    }

    /// Scatters bytes from the start of the writable part.
    pub fn write(&self, mut bytes: &[u8]) {
        for part in &self.writable {
            let n = part.len.min(bytes.len());
            part.write(&bytes[..n]);
            bytes = &bytes[n..];
        }
        assert!(bytes.is_empty(), "the device writes no more than there is room for");
    }
}

#[derive(Default)]
struct Queue {
    size: u16,
    enabled: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    vector: u16,
    seen: u16,
    used_index: u16,
    active: bool,
}

#[derive(Default)]
struct State {
    status: u8,
    accepted: u64,
    feature_select: u32,
    accepted_select: u32,
    queue_select: u16,
    queues: Vec<Queue>,
    msix: [u32; 4],
    interrupt_status: u32,
}

/// What the device does.
pub trait Backend {
    /// A chain became available on a queue.
    fn arrived(&self, device: &Virtio, queue: u16, chain: Chain);
    /// Works on what it has; whether it left something that it could do now.
    fn step(&self, device: &Virtio) -> bool;
    /// The driver reset the device: everything is forgotten.
    fn reset(&self);
}

/// The device.
pub struct Virtio {
    kind: u32,
    bus: Bus,
    state: RefCell<State>,
    board: Weak<Board>,
    backend: Rc<dyn Backend>,
    /// Device configuration.
    pub config: RefCell<Vec<u8>>,
    /// Features offered.
    pub features: Cell<u64>,
    /// Most entries of a queue.
    pub queue_max: Cell<u16>,
    /// What it decides by.
    pub random: RefCell<Random>,
    /// Whether a reset does anything.
    pub can_reset: Cell<bool>,
    /// It gives back what it likes.
    pub lies: Cell<bool>,
    /// It is gone.
    pub absent: Cell<bool>,
    /// What its registers read as then: ones, but zeroes where nothing was mapped behind them any more.
    pub absent_reads: Cell<u64>,
    /// Times it was notified.
    pub notifications: Cell<u64>,
    /// Times it was reset.
    pub resets: Cell<u32>,
}

impl Virtio {
    /// Attaches a device of this kind to the board.
    pub fn attach(
        board: &Rc<Board>,
        bus: Bus,
        kind: u32,
        features: u64,
        config: Vec<u8>,
        backend: Rc<dyn Backend>,
        seed: u64,
    ) -> (Rc<Virtio>, Rc<Function>) {
        Virtio::attach_as(0, board, (bus, kind), (features, config), backend, seed)
    }

    /// Attaches device number `index`: on what bus, of which kind; what it offers, and its configuration.
    pub fn attach_as(
        index: u8,
        board: &Rc<Board>,
        (bus, kind): (Bus, u32),
        (features, config): (u64, Vec<u8>),
        backend: Rc<dyn Backend>,
        seed: u64,
    ) -> (Rc<Virtio>, Rc<Function>) {
        let state = State { queues: (0..2).map(|_| Queue::default()).collect(), ..State::default() };
        let device = Rc::new(Virtio {
            kind,
            bus,
            state: RefCell::new(state),
            board: Rc::downgrade(board),
            backend,
            config: RefCell::new(config),
            features: Cell::new(features),
            queue_max: Cell::new(256),
            random: RefCell::new(Random(seed)),
            can_reset: Cell::new(true),
            lies: Cell::new(false),
            absent: Cell::new(false),
            absent_reads: Cell::new(u64::MAX),
            notifications: Cell::new(0),
            resets: Cell::new(0),
        });
        let function = Rc::new(Function::new(0x1af4, 0x1040 + kind as u16, 0));
        let bar = BAR + u64::from(index) * BAR_LEN as u64;
        let mmio = MMIO + u64::from(index) * MMIO_LEN as u64;
        function.device.set(function.device.get() + index);
        function.bar(4, bar);
        let capability = |at, kind: u8, offset: usize, len: usize, more: &[u32]| {
            let mut rest = vec![4u32, offset as u32, len as u32];
            rest.extend(more);
            function.capability(at, 9, (16 + more.len() as u16 * 4) | u16::from(kind) << 8, &rest);
        };
        capability(0x40, 1, COMMON_AT, 56, &[]);
        capability(0x50, 2, NOTIFY_AT, 2 * NOTIFY_MULTIPLIER, &[NOTIFY_MULTIPLIER as u32]);
        capability(0x70, 4, CONFIG_AT, 64, &[]);
        function.capability(0x80, 0x11, 0, &[MSIX_AT as u32 | 4]);
        match bus {
            Bus::Pci => board.attach(device.clone(), &[(bar, BAR_LEN)]),
            _ => board.attach(device.clone(), &[(mmio, MMIO_LEN)]),
        }
        (device, function)
    }

    /// Features accepted.
    pub fn accepted(&self) -> u64 {
        self.state.borrow().accepted
    }

    /// Whether nobody drives it.
    pub fn is_reset(&self) -> bool {
        self.state.borrow().status == 0
    }

    /// It asks for a reset.
    pub fn set_needs_reset(&self) {
        self.state.borrow_mut().status |= 0x40;
    }

    fn board(&self) -> Rc<Board> {
        self.board.upgrade().expect("a device is on a board")
    }

    /// Has the device looked at soon.
    pub fn attend(&self) {
        if let Some(board) = self.board.upgrade() {
            board.attend();
        }
    }

    fn parse(&self, queue: &Queue, head: u16) -> Chain {
        let mut chain = Chain { head, ..Chain::default() };
        assert!(head < queue.size);
        let first: [u8; 16] = dma_read(queue.descriptors + u64::from(head) * 16);
        let indirect = first[12] & 4 != 0;
        let (table, len, mut at) = if indirect {
            assert!(self.accepted() & INDIRECT != 0, "indirect only if negotiated");
            assert_eq!(first[12] & 1, 0, "no chain behind an indirect descriptor");
            let len = u32::from_le_bytes(first[8..12].try_into().unwrap());
            assert_eq!(len % 16, 0);
            let table = u64::from_le_bytes(first[..8].try_into().unwrap());
            assert!(self.board().is_dma(table, len as usize));
            chain.descriptors = 1;
            (table, len / 16, 0)
        } else {
            (queue.descriptors, u32::from(queue.size), head)
        };
        let mut count = 0;
        loop {
            count += 1;
            assert!(u32::from(at) < len && count <= len, "chains end");
            let entry: [u8; 16] = dma_read(table + u64::from(at) * 16);
            let bus = u64::from_le_bytes(entry[..8].try_into().unwrap());
            let bytes = u32::from_le_bytes(entry[8..12].try_into().unwrap()) as usize;
            assert!(bytes > 0);
            if entry[12] & 2 != 0 {
                chain.writable.push(Part { bus, len: bytes });
            } else {
                assert!(chain.writable.is_empty(), "readable parts come first");
                chain.readable.push(Part { bus, len: bytes });
            }
            chain.descriptors += usize::from(!indirect);
            if entry[12] & 1 == 0 {
                return chain;
            }
            at = u16::from_le_bytes(entry[14..16].try_into().unwrap());
        }
    }

    /// Next available chain of a queue, whether or not the driver notified; for queues that the device draws from.
    pub fn draw(&self, number: u16) -> Option<Chain> {
        let mut state = self.state.borrow_mut();
        let queue = &mut state.queues[usize::from(number)];
        if !queue.enabled {
            return None;
        }
        let index = u16::from_le_bytes(dma_read(queue.available + 2));
        if self.lies.get() && index.wrapping_sub(queue.seen) > queue.size {
            // It gave back what it had not fetched, and lost count.
            queue.seen = index;
        }
        assert!(index.wrapping_sub(queue.seen) <= queue.size, "no more available than the queue holds");
        if index == queue.seen {
            return None;
        }
        let slot = u64::from(queue.seen % queue.size);
        let head = u16::from_le_bytes(dma_read(queue.available + 4 + slot * 2));
        queue.seen = queue.seen.wrapping_add(1);
        let (event_at, seen) = (queue.used + 4 + u64::from(queue.size) * 8, queue.seen);
        let queue = Queue { size: queue.size, descriptors: queue.descriptors, ..Queue::default() };
        drop(state);
        if self.accepted() & EVENT_IDX != 0 && self.random.borrow_mut().chance(50) {
            dma_write(event_at, &seen.to_le_bytes());
        }
        Some(self.parse(&queue, head))
    }

    /// Gives any id back as used.
    pub fn push_used(&self, number: u16, id: u32, len: u32) {
        let mut state = self.state.borrow_mut();
        let accepted = state.accepted;
        let queue = &mut state.queues[usize::from(number)];
        let old = queue.used_index;
        let at = queue.used + 4 + u64::from(old % queue.size) * 8;
        dma_write(at, &id.to_le_bytes());
        dma_write(at + 4, &len.to_le_bytes());
        queue.used_index = old.wrapping_add(1);
        dma_write(queue.used + 2, &queue.used_index.to_le_bytes());
        let wanted = if accepted & EVENT_IDX != 0 {
            let event = u16::from_le_bytes(dma_read(queue.available + 4 + u64::from(queue.size) * 2));
            event == old
        } else {
            dma_read::<2>(queue.available)[0] & 1 == 0
        };
        let vector = queue.vector;
        if !wanted {
            return;
        }
        match self.bus {
            Bus::Pci if vector == 0xffff || state.msix[3] & 1 != 0 => (),
            Bus::Pci => {
                drop(state);
                self.board().interrupt();
            }
            // Edge triggered: only a line that was down makes an interrupt.
            _ if state.interrupt_status != 0 => (),
            _ => {
                state.interrupt_status = 1;
                self.board().interrupt();
            }
        }
    }

    fn reset(&self) {
        let mut state = self.state.borrow_mut();
        let msix = state.msix;
        *state = State { msix, queues: (0..2).map(|_| Queue::default()).collect(), ..State::default() };
        drop(state);
        self.resets.set(self.resets.get() + 1);
        self.backend.reset();
    }

    fn set_status(&self, value: u8) {
        if value == 0 {
            if self.can_reset.get() {
                self.reset();
            }
            return;
        }
        let mut state = self.state.borrow_mut();
        let mut value = value;
        assert_eq!(state.status & value & 0xf, state.status & 0xf, "status bits are only added");
        let sane = state.accepted & !self.features.get() == 0
            && (self.bus == Bus::MmioLegacy || state.accepted & VERSION_1 != 0);
        if value & 8 != 0 && state.status & 8 == 0 && !sane {
            value &= !8;
        }
        if value & 4 != 0 {
            assert!(self.bus == Bus::MmioLegacy || value & 8 != 0, "features are agreed on before use");
        }
        state.status = value;
    }

    fn notify(&self, queue: usize) {
        let mut state = self.state.borrow_mut();
        assert!(state.status & 4 != 0, "notified only when running");
        assert!(state.queues[queue].enabled);
        state.queues[queue].active = true;
        self.notifications.set(self.notifications.get() + 1);
    }

    fn set_part(part: &mut u64, high: bool, value: u64) {
        *part = if high { *part & 0xffff_ffff | value << 32 } else { *part & !0xffff_ffff | value };
    }

    fn features_word(&self, select: u32) -> u64 {
        match select {
            0 => self.features.get() & 0xffff_ffff,
            1 if self.bus != Bus::MmioLegacy => self.features.get() >> 32,
            _ => 0,
        }
    }

    fn accept_word(state: &mut State, value: u64) {
        let select = state.accepted_select;
        Virtio::set_part(&mut state.accepted, select == 1, value);
    }

    fn config_read(&self, at: usize, width: usize) -> u64 {
        let config = self.config.borrow();
        (0..width).map(|i| u64::from(config.get(at + i).copied().unwrap_or(0)) << (8 * i)).sum()
    }

    /// Past the end of what it has, a device ignores writes and reads as zero.
    fn config_write(&self, at: usize, value: u8) {
        if let Some(byte) = self.config.borrow_mut().get_mut(at) {
            *byte = value;
        }
    }

    fn pci_read(&self, offset: usize) -> u64 {
        let state = self.state.borrow();
        let queue = state.queues.get(usize::from(state.queue_select));
        match offset {
            4 => self.features_word(state.feature_select),
            18 => 2,
            20 => state.status.into(),
            21 => 0,
            24 => queue.map_or(0, |q| if q.size == 0 { self.queue_max.get() } else { q.size }).into(),
            26 => queue.map_or(0xffff, |q| q.vector).into(),
            30 => state.queue_select.into(),
            _ => panic!("read of common configuration at {offset}"),
        }
    }

    fn pci_write(&self, offset: usize, value: u64) {
        if offset == 20 {
            return self.set_status(value as u8);
        }
        let mut state = self.state.borrow_mut();
        let select = usize::from(state.queue_select);
        match offset {
            0 => state.feature_select = value as u32,
            8 => state.accepted_select = value as u32,
            12 => Virtio::accept_word(&mut state, value),
            16 => (),
            22 => state.queue_select = value as u16,
            24 => {
                assert!(value <= self.queue_max.get().into() && value.is_power_of_two());
                state.queues[select].size = value as u16;
            }
            26 => state.queues[select].vector = value as u16,
            28 => {
                assert!(state.status & 8 != 0 && state.status & 4 == 0, "queues are set up before running");
                state.queues[select].enabled = true;
            }
            32 | 36 => Virtio::set_part(&mut state.queues[select].descriptors, offset == 36, value),
            40 | 44 => Virtio::set_part(&mut state.queues[select].available, offset == 44, value),
            48 | 52 => Virtio::set_part(&mut state.queues[select].used, offset == 52, value),
            _ => panic!("write of common configuration at {offset}"),
        }
    }

    fn mmio_read(&self, offset: usize) -> u64 {
        let state = self.state.borrow();
        match offset {
            0x00 => u32::from_le_bytes(*b"virt").into(),
            0x04 => 1 + u64::from(self.bus == Bus::Mmio),
            0x08 => self.kind.into(),
            0x10 => self.features_word(state.feature_select),
            0x34 => self.queue_max.get().into(),
            0x60 => state.interrupt_status.into(),
            0x70 => state.status.into(),
            0xfc => 0,
            _ => panic!("read of MMIO register {offset:#x}"),
        }
    }

    fn mmio_write(&self, offset: usize, value: u64) {
        match offset {
            0x50 => return self.notify(value as usize),
            0x70 => return self.set_status(value as u8),
            _ => (),
        }
        let legacy = self.bus == Bus::MmioLegacy;
        let mut state = self.state.borrow_mut();
        let select = usize::from(state.queue_select);
        match offset {
            0x14 => state.feature_select = value as u32,
            0x20 => Virtio::accept_word(&mut state, value),
            0x24 => state.accepted_select = value as u32,
            0x28 if legacy => assert_eq!(value, 4096),
            0x30 => state.queue_select = value as u16,
            0x38 => state.queues[select].size = value as u16,
            0x3c if legacy => assert_eq!(value, 4096),
            0x40 if legacy => {
                let queue = &mut state.queues[select];
                let base = value * 4096;
                queue.descriptors = base;
                queue.available = base + 16 * u64::from(queue.size);
                queue.used = (queue.available + 6 + 2 * u64::from(queue.size)).next_multiple_of(4096);
                queue.enabled = true;
            }
            0x44 if !legacy => state.queues[select].enabled = value == 1,
            0x64 => state.interrupt_status &= !(value as u32),
            0x80 | 0x84 if !legacy => {
                Virtio::set_part(&mut state.queues[select].descriptors, offset == 0x84, value)
            }
            0x90 | 0x94 if !legacy => {
                Virtio::set_part(&mut state.queues[select].available, offset == 0x94, value)
            }
            0xa0 | 0xa4 if !legacy => Virtio::set_part(&mut state.queues[select].used, offset == 0xa4, value),
            _ => panic!("write of MMIO register {offset:#x}"),
        }
    }

    /// Draws everything from a queue that was notified; sleeps again (asking to be notified) when it is empty. Whether it
    /// left something.
    fn serve(&self, number: u16) -> bool {
        let is_active = |device: &Virtio| {
            let state = device.state.borrow();
            state.queues[usize::from(number)].active && state.status & DRIVER_OK != 0
        };
        if !is_active(self) {
            return false;
        }
        if self.random.borrow_mut().chance(30) {
            return true;
        }
        while let Some(chain) = self.draw(number) {
            self.backend.arrived(self, number, chain);
            if self.random.borrow_mut().chance(5) {
                return true;
            }
        }
        let mut state = self.state.borrow_mut();
        let accepted = state.accepted;
        let queue = &mut state.queues[usize::from(number)];
        if accepted & EVENT_IDX != 0 {
            dma_write(queue.used + 4 + u64::from(queue.size) * 8, &queue.seen.to_le_bytes());
        }
        queue.active = false;
        false
    }
}

impl Model for Virtio {
    fn read(&self, _window: usize, offset: usize, width: usize) -> u64 {
        if self.absent.get() {
            return self.absent_reads.get() & u64::MAX >> (64 - width * 8);
        }
        match (self.bus, offset) {
            (Bus::Pci, COMMON_AT..0x1000) => self.pci_read(offset),
            (Bus::Pci, CONFIG_AT..0x3000) => self.config_read(offset - CONFIG_AT, width),
            (Bus::Pci, MSIX_AT..) => self.state.borrow().msix[(offset - MSIX_AT) / 4].into(),
            (Bus::Pci, _) => panic!("read at {offset:#x}"),
            (_, 0x100..) => self.config_read(offset - 0x100, width),
            (_, _) => self.mmio_read(offset),
        }
    }

    fn write(&self, _window: usize, offset: usize, _width: usize, value: u64) {
        if self.absent.get() {
            return;
        }
        match (self.bus, offset) {
            (Bus::Pci, COMMON_AT..0x1000) => self.pci_write(offset, value),
            (Bus::Pci, NOTIFY_AT..0x2000) => self.notify((offset - NOTIFY_AT) / NOTIFY_MULTIPLIER),
            (Bus::Pci, CONFIG_AT..0x3000) => self.config_write(offset - CONFIG_AT, value as u8),
            (Bus::Pci, _) => self.state.borrow_mut().msix[(offset - MSIX_AT) / 4] = value as u32,
            (_, 0x100..) => self.config_write(offset - 0x100, value as u8),
            (_, _) => self.mmio_write(offset, value),
        }
    }

    fn step(&self) -> bool {
        let runs = |device: &Virtio| device.state.borrow().status & DRIVER_OK != 0 && !device.absent.get();
        if !runs(self) {
            return false;
        }
        let more = self.serve(0) | self.serve(1);
        more | (runs(self) && self.backend.step(self))
    }
}
