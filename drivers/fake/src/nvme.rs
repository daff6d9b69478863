//! A fake NVMe controller: register file, queues, PRPs, and media in memory. It checks that the host keeps to the
//! specification, and misbehaves when told to.

use crate::board::{Board, Model};
use crate::function::Function;
use crate::medium::{Medium, Order, Outcome};
use crate::memory::{read as dma_read, read_into as dma_read_into, write as dma_write};
use crate::random::Random;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};

/// Where the registers of the first controller are; each further one has its own behind it.
pub const BAR: u64 = 0x10_0000_0000;
const BAR_LEN: usize = 0x4000;
const MSIX_TABLE: usize = 0x3000;
/// Most entries of a queue.
pub const ENTRIES_MAX: usize = 1024;

// Status codes with their type.
const OK: u16 = 0;
const INVALID_OPCODE: u16 = 0x01;
const INTERNAL_ERROR: u16 = 0x06;
const ABORTED: u16 = 0x07;
const INVALID_NAMESPACE: u16 = 0x0b;
const OUT_OF_RANGE: u16 = 0x80;
const WRITE_FAULT: u16 = 0x280;
const UNRECOVERED_READ: u16 = 0x281;

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const ZEROES: u8 = 0x08;
const DATASET: u8 = 0x09;

/// A namespace.
pub struct Media {
    /// Its number.
    pub id: u32,
    /// Its logical block, in bytes.
    pub block: usize,
    /// What it holds, if nothing is behind it.
    pub bytes: Vec<u8>,
    /// What it lies on instead.
    pub medium: Option<Rc<dyn Medium>>,
    /// Bytes of metadata of each block.
    pub metadata: u16,
    /// Whether it refuses writes.
    pub write_protected: bool,
}

impl Media {
    /// A namespace in memory.
    pub fn of_bytes(id: u32, block: usize, bytes: Vec<u8>) -> Media {
        Media { id, block, bytes, medium: None, metadata: 0, write_protected: false }
    }

    /// A namespace on a medium.
    pub fn on(id: u32, block: usize, medium: Rc<dyn Medium>) -> Media {
        Media { medium: Some(medium), ..Media::of_bytes(id, block, Vec::new()) }
    }

    fn size(&self) -> u64 {
        self.medium.as_ref().map_or(self.bytes.len() as u64, |medium| medium.size())
    }
}

/// Decides about each I/O command.
pub type FateOf = Box<dyn FnMut(&Sqe) -> Fate>;

/// What becomes of an I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is carried out.
    Normal,
    /// Fails with this status, without effect.
    Fail(u16),
    /// Never answered, but carried out when the controller is poked with `release`; forgotten by a reset.
    Hang,
}

/// A command as it lies in a submission queue.
#[derive(Clone, Copy, Debug)]
pub struct Sqe(pub [u8; 64]);

impl Sqe {
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap())
    }
    /// What is to be done.
    pub fn opcode(&self) -> u8 {
        self.0[0]
    }
    /// Its number.
    pub fn id(&self) -> u16 {
        (self.u32(0) >> 16) as u16
    }
    /// Its first block.
    pub fn lba(&self) -> u64 {
        self.u64(40)
    }
    /// How many blocks.
    pub fn blocks(&self) -> usize {
        (self.u32(48) & 0xffff) as usize + 1
    }
    /// Whether it must be durable at its end.
    pub fn fua(&self) -> bool {
        self.u32(48) & 1 << 30 != 0
    }
}

#[derive(Clone, Copy, Default)]
struct Sq {
    base: u64,
    entries: u16,
    head: u16,
    tail: u16,
}

#[derive(Clone, Copy, Default)]
struct Cq {
    base: u64,
    entries: u16,
    head: u16,
    tail: u16,
    phase: u16,
    interrupts: bool,
}

#[derive(Default)]
struct State {
    cc: u32,
    ready: bool,
    fatal: bool,
    aqa: u32,
    asq: u64,
    acq: u64,
    sq: [Sq; 2],
    cq: [Cq; 2],
    msix: [u32; 4],
    pending: Vec<Sqe>,
    hung: Vec<Sqe>,
    /// With a medium, and the number of resets when they were begun.
    under_way: Vec<Sqe>,
    generation: u64,
}

/// The controller. Behaviour is set through its public fields.
pub struct Nvme {
    state: RefCell<State>,
    board: Weak<Board>,
    this: Weak<Nvme>,
    /// What ended behind the controller, by generation.
    ended: RefCell<Vec<(u64, Sqe, Outcome)>>,
    /// Its namespaces.
    pub media: RefCell<Vec<Media>>,
    /// What it decides by.
    pub random: RefCell<Random>,
    /// log2 pages of the largest transfer.
    pub mdts: Cell<u8>,
    /// Whether it says that it has one.
    pub volatile_cache: Cell<bool>,
    /// Optional commands that it has.
    pub oncs: Cell<u16>,
    /// Most entries of a queue, less one.
    pub mqes: Cell<u16>,
    /// Complete in random order and number.
    pub shuffle: Cell<bool>,
    /// What becomes of commands.
    pub fate: RefCell<FateOf>,
    /// Whether Abort works.
    pub can_abort: Cell<bool>,
    /// Whether enabling and disabling work.
    pub can_reset: Cell<bool>,
    /// Junk completions to post: command ids.
    pub junk: RefCell<Vec<u16>>,
    /// It is gone.
    pub absent: Cell<bool>,
    /// What its registers read as then: ones, but zeroes where nothing was mapped behind them any more.
    pub absent_reads: Cell<u64>,
    /// Bytes of Identify data that are overwritten with anything, in percent.
    pub garbled: Cell<u64>,
    /// Whether I/O commands are noted in `log`.
    pub logs: Cell<bool>,
    /// I/O commands seen.
    pub log: RefCell<Vec<Sqe>>,
    /// Times a tail doorbell was rung.
    pub doorbells: Cell<u64>,
    /// Times a head doorbell was rung.
    pub head_doorbells: Cell<u64>,
    /// Times it was disabled.
    pub resets: Cell<u32>,
    /// Most I/O commands at once.
    pub most_in_flight: Cell<usize>,
}

impl Nvme {
    /// Attaches a controller with namespaces to the board.
    pub fn attach(board: &Rc<Board>, media: Vec<Media>, seed: u64) -> (Rc<Nvme>, Rc<Function>) {
        Nvme::attach_as(0, board, media, seed)
    }

    /// Attaches controller number `index`.
    pub fn attach_as(index: u8, board: &Rc<Board>, media: Vec<Media>, seed: u64) -> (Rc<Nvme>, Rc<Function>) {
        let nvme = Rc::new_cyclic(|this| Nvme {
            state: RefCell::default(),
            board: Rc::downgrade(board),
            this: this.clone(),
            ended: RefCell::default(),
            media: RefCell::new(media),
            random: RefCell::new(Random(seed)),
            mdts: Cell::new(7),
            volatile_cache: Cell::new(true),
            oncs: Cell::new(1 << 2 | 1 << 3),
            mqes: Cell::new(ENTRIES_MAX as u16 - 1),
            shuffle: Cell::new(true),
            fate: RefCell::new(Box::new(|_| Fate::Normal)),
            can_abort: Cell::new(true),
            can_reset: Cell::new(true),
            junk: RefCell::default(),
            absent: Cell::new(false),
            absent_reads: Cell::new(u64::MAX),
            garbled: Cell::new(0),
            logs: Cell::new(true),
            log: RefCell::default(),
            doorbells: Cell::new(0),
            head_doorbells: Cell::new(0),
            resets: Cell::new(0),
            most_in_flight: Cell::new(0),
        });
        let function = Rc::new(Function::new(0x1b36, 0x0010, 0x01_08_02));
        let bar = BAR + u64::from(index) * BAR_LEN as u64;
        function.device.set(function.device.get() + index);
        function.bar(0, bar);
        function.capability(0x40, 0x11, 0, &[MSIX_TABLE as u32]);
        board.attach(nvme.clone(), &[(bar, BAR_LEN)]);
        (nvme, function)
    }

    /// Carries out and answers what hangs.
    pub fn release(&self) {
        let mut state = self.state.borrow_mut();
        for command in std::mem::take(&mut state.hung) {
            self.execute(&mut state, &command, Fate::Normal);
        }
    }

    /// How many commands hang.
    pub fn hung(&self) -> usize {
        self.state.borrow().hung.len()
    }

    /// Whether it was told that the power goes.
    pub fn was_shut_down(&self) -> bool {
        self.state.borrow().cc >> 14 & 3 == 1
    }

    /// It fails for good.
    pub fn set_fatal(&self) {
        self.state.borrow_mut().fatal = true;
    }

    fn board(&self) -> Rc<Board> {
        self.board.upgrade().expect("a device is on a board")
    }

    fn post(&self, state: &mut State, queue: usize, id: u16, status: u16, result: u32) {
        let sq_head = state.sq[queue].head;
        let cq = &mut state.cq[queue];
        assert_ne!((cq.tail + 1) % cq.entries, cq.head, "the host never lets the completion queue overflow");
        let mut entry = [0; 16];
        entry[..4].copy_from_slice(&result.to_le_bytes());
        entry[8..10].copy_from_slice(&sq_head.to_le_bytes());
        entry[10..12].copy_from_slice(&(queue as u16).to_le_bytes());
        entry[12..14].copy_from_slice(&id.to_le_bytes());
        entry[14..16].copy_from_slice(&(status << 1 | cq.phase).to_le_bytes());
        dma_write(cq.base + u64::from(cq.tail) * 16, &entry);
        cq.tail = (cq.tail + 1) % cq.entries;
        if cq.tail == 0 {
            cq.phase ^= 1;
        }
        if cq.interrupts && state.msix[3] & 1 == 0 {
            self.board().interrupt();
        }
    }

    fn fetch(&self, state: &mut State, queue: usize) -> Vec<Sqe> {
        let mut commands = Vec::new();
        let sq = &mut state.sq[queue];
        while sq.head != sq.tail {
            commands.push(Sqe(dma_read(sq.base + u64::from(sq.head) * 64)));
            sq.head = (sq.head + 1) % sq.entries;
        }
        commands
    }

    /// The pages of a transfer, by the rules of PRPs.
    fn pages(&self, command: &Sqe, len: usize) -> Vec<(u64, usize)> {
        let (first, second) = (command.u64(24), command.u64(32));
        assert_eq!(first % 4, 0, "PRP 1 is dword-aligned");
        let mut pages = vec![(first, len.min(4096 - first as usize % 4096))];
        let mut left = len - pages[0].1;
        if left > 0 && left <= 4096 {
            assert_eq!(second % 4096, 0, "PRP 2 is page-aligned");
            pages.push((second, left));
        } else if left > 0 {
            let entries = left.div_ceil(4096);
            assert_eq!(second % 8, 0);
            assert!(second as usize % 4096 + entries * 8 <= 4096, "a PRP list stays in its page");
            assert!(self.board().is_dma(second, entries * 8), "a PRP list is DMA memory");
            for i in 0..entries {
                let page = u64::from_le_bytes(dma_read(second + i as u64 * 8));
                assert_eq!(page % 4096, 0, "PRP list entries are page-aligned");
                pages.push((page, left.min(4096)));
                left -= left.min(4096);
            }
        }
        pages
    }

    fn identify(&self, command: &Sqe) -> Option<[u8; 4096]> {
        let mut data = [0; 4096];
        let media = self.media.borrow();
        match command.u32(40) {
            0 => {
                let media = media.iter().find(|m| m.id == command.u32(4))?;
                let blocks = media.size() / media.block as u64;
                data[..8].copy_from_slice(&blocks.to_le_bytes());
                data[8..16].copy_from_slice(&blocks.to_le_bytes());
                data[99] = media.write_protected.into();
                data[128..130].copy_from_slice(&media.metadata.to_le_bytes());
                data[130] = media.block.trailing_zeros() as u8;
            }
            1 => {
                data[4..24].copy_from_slice(b"SERIAL 1            ");
                data[24..64].copy_from_slice(b"Fake controller                         ");
                data[77] = self.mdts.get();
                data[520..522].copy_from_slice(&self.oncs.get().to_le_bytes());
                data[525] = self.volatile_cache.get().into();
            }
            2 => {
                let after = command.u32(4);
                for (i, media) in media.iter().filter(|m| m.id > after).enumerate() {
                    data[i * 4..i * 4 + 4].copy_from_slice(&media.id.to_le_bytes());
                }
            }
            _ => return None,
        }
        let mut random = self.random.borrow_mut();
        for byte in data.iter_mut().filter(|_| self.garbled.get() > 0) {
            if random.chance(self.garbled.get()) {
                *byte = random.next() as u8;
            }
        }
        Some(data)
    }

    fn admin(&self, state: &mut State, command: &Sqe) {
        let (id, dw10, dw11) = (command.id(), command.u32(40), command.u32(44));
        let queue = (dw10 & 0xffff) as usize;
        let (status, result) = match command.opcode() {
            0x01 => {
                assert_eq!(dw11, 1 << 16 | 1, "contiguous, completing into queue 1");
                assert_eq!(state.cq[1].base % 4096, 0);
                assert_ne!(state.cq[1].entries, 0, "the completion queue comes first");
                state.sq[queue] =
                    Sq { base: command.u64(24), entries: (dw10 >> 16) as u16 + 1, ..Sq::default() };
                (0, 0)
            }
            0x05 => {
                let entries = (dw10 >> 16) as u16 + 1;
                assert!(entries - 1 <= self.mqes.get());
                let interrupts = dw11 & 2 != 0;
                state.cq[queue] =
                    Cq { base: command.u64(24), entries, phase: 1, interrupts, ..Cq::default() };
                (0, 0)
            }
            0x06 => match self.identify(command) {
                Some(data) => {
                    dma_write(command.u64(24), &data);
                    (0, 0)
                }
                None => (INVALID_NAMESPACE, 0),
            },
            0x08 => {
                let victim = (dw10 >> 16) as u16;
                let found = state.hung.iter().position(|c| c.id() == victim);
                match found.filter(|_| self.can_abort.get()) {
                    Some(at) => {
                        let command = state.hung.remove(at);
                        self.post(state, 1, command.id(), ABORTED, 0);
                        (0, 0)
                    }
                    None => (0, 1),
                }
            }
            0x09 => (0, 0x003f_003f),
            other => panic!("unknown admin command {other:#x}"),
        };
        self.post(state, 0, id, status, result);
    }

    fn execute(&self, state: &mut State, command: &Sqe, fate: Fate) {
        match fate {
            Fate::Hang => state.hung.push(*command),
            Fate::Fail(status) => self.post(state, 1, command.id(), status, 0),
            Fate::Normal => {
                let (order, medium) = {
                    let media = self.media.borrow();
                    let Some(media) = media.iter().find(|m| m.id == command.u32(4)) else {
                        return self.post(state, 1, command.id(), INVALID_NAMESPACE, 0);
                    };
                    (self.order(command, media), media.medium.clone())
                };
                let result = match (order, medium) {
                    (Ok(order), Some(medium)) => return self.begin(state, *command, order, &*medium),
                    (Ok(order), None) => {
                        self.transfer(command, order);
                        OK
                    }
                    (Err(status), _) => status,
                };
                self.post(state, 1, command.id(), result, 0);
            }
        }
    }

    /// What a command wants of its namespace.
    fn order(&self, command: &Sqe, media: &Media) -> Result<Order, u16> {
        if command.opcode() == FLUSH {
            return Ok(Order::Flush);
        }
        let block = media.block as u64;
        let (at, len) = if command.opcode() == DATASET {
            assert_eq!(command.u32(44), 1 << 2, "deallocate");
            assert_eq!(command.u32(40), 0, "one range");
            let range: [u8; 16] = dma_read(command.u64(24));
            let (_, blocks, lba) = fields(&range);
            (lba * block, u64::from(blocks) * block)
        } else {
            (command.lba() * block, command.blocks() as u64 * block)
        };
        if at + len > media.size() {
            return Err(OUT_OF_RANGE);
        }
        if matches!(command.opcode(), READ | WRITE) {
            assert!(self.mdts.get() == 0 || len <= 4096 << self.mdts.get(), "MDTS is kept");
        }
        match command.opcode() {
            WRITE => {
                let mut bytes = Vec::new();
                for (page, len) in self.pages(command, len as usize) {
                    let start = bytes.len();
                    bytes.resize(start + len, 0);
                    dma_read_into(page, &mut bytes[start..]);
                }
                Ok(Order::Write { at, bytes, fua: command.fua() })
            }
            READ => Ok(Order::Read { at, len: len as usize }),
            ZEROES => Ok(Order::Zero { at, len }),
            DATASET => Ok(Order::Discard { at, len }),
            _ => Err(INVALID_OPCODE),
        }
    }

    /// Carries an order out on bytes in memory.
    fn transfer(&self, command: &Sqe, order: Order) {
        let mut media = self.media.borrow_mut();
        let media = media.iter_mut().find(|m| m.id == command.u32(4)).expect("it was found before");
        let (at, len) = order.range();
        let range = at as usize..(at + len) as usize;
        match order {
            Order::Read { .. } => self.give(command, &media.bytes[range]),
            Order::Write { bytes, .. } => media.bytes[range].copy_from_slice(&bytes),
            Order::Zero { .. } => media.bytes[range].fill(0),
            Order::Discard { .. } => media.bytes[range].fill(0xdd),
            Order::Flush => {}
        }
    }

    /// Puts what was read where the command wants it.
    fn give(&self, command: &Sqe, mut bytes: &[u8]) {
        for (page, len) in self.pages(command, bytes.len()) {
            dma_write(page, &bytes[..len]);
            bytes = &bytes[len..];
        }
    }

    /// Hands an order to the medium behind the namespace.
    fn begin(&self, state: &mut State, command: Sqe, order: Order, medium: &dyn Medium) {
        state.under_way.push(command);
        let (this, generation) = (self.this.clone(), state.generation);
        let end = move |outcome| {
            if let Some(this) = this.upgrade() {
                this.ended.borrow_mut().push((generation, command, outcome));
                if let Some(board) = this.board.upgrade() {
                    board.attend();
                }
            }
        };
        medium.begin(order, Box::new(end));
    }

    /// Answers what ended behind it since the last look.
    fn end_orders(&self, state: &mut State) {
        for (generation, command, outcome) in self.ended.take() {
            // What a reset caught is not answered.
            if generation != state.generation {
                continue;
            }
            state.under_way.retain(|other| other.id() != command.id());
            let status = match outcome {
                Outcome::Done(bytes) => {
                    if command.opcode() == READ {
                        self.give(&command, &bytes);
                    }
                    OK
                }
                Outcome::MediumError if command.opcode() == READ => UNRECOVERED_READ,
                Outcome::MediumError => WRITE_FAULT,
                Outcome::DeviceError => INTERNAL_ERROR,
                Outcome::Never => {
                    state.hung.push(command);
                    continue;
                }
                Outcome::Gone => {
                    self.absent.set(true);
                    return;
                }
            };
            self.post(state, 1, command.id(), status, 0);
        }
    }

    fn disable(&self, state: &mut State) {
        let msix = state.msix;
        let (aqa, asq, acq) = (state.aqa, state.asq, state.acq);
        let generation = state.generation + 1;
        *state = State { msix, aqa, asq, acq, generation, ..State::default() };
        self.resets.set(self.resets.get() + 1);
        self.media
            .borrow()
            .iter()
            .filter_map(|media| media.medium.as_ref())
            .for_each(|medium| medium.reset());
    }
}

impl Model for Nvme {
    fn read(&self, _window: usize, offset: usize, width: usize) -> u64 {
        if self.absent.get() {
            return self.absent_reads.get() & u64::MAX >> (64 - width * 8);
        }
        let state = self.state.borrow();
        match (offset, width) {
            (0x00, 4) => u64::from(self.mqes.get()) | 20 << 24,
            (0x04, 4) => 1 << 5,
            (0x08, 4) => 0x0001_0400,
            (0x14, 4) => state.cc.into(),
            (0x1c, 4) => {
                let shut = if state.cc >> 14 & 3 == 1 { 2 << 2 } else { 0 };
                u64::from(state.ready) | u64::from(state.fatal) << 1 | shut
            }
            (MSIX_TABLE.., 4) => state.msix[(offset - MSIX_TABLE) / 4].into(),
            _ => panic!("read of {width} bytes at {offset:#x}"),
        }
    }

    fn write(&self, _window: usize, offset: usize, width: usize, value: u64) {
        if self.absent.get() {
            return;
        }
        assert_eq!(width, 4);
        let value = value as u32;
        let mut state = self.state.borrow_mut();
        match offset {
            0x14 => {
                let was = state.cc;
                if value & 1 == 0 && was & 1 != 0 && self.can_reset.get() {
                    self.disable(&mut state);
                }
                state.cc = value;
            }
            0x24 => state.aqa = value,
            0x28 => state.asq = state.asq & !0xffff_ffff | u64::from(value),
            0x2c => state.asq = state.asq & 0xffff_ffff | u64::from(value) << 32,
            0x30 => state.acq = state.acq & !0xffff_ffff | u64::from(value),
            0x34 => state.acq = state.acq & 0xffff_ffff | u64::from(value) << 32,
            0x1000..0x1010 => {
                assert!(state.ready, "doorbells only of a ready controller");
                let queue = (offset - 0x1000) / 8;
                let entries =
                    if offset.is_multiple_of(8) { state.sq[queue].entries } else { state.cq[queue].entries };
                assert!(value < u32::from(entries), "doorbell value inside the queue");
                if offset.is_multiple_of(8) {
                    state.sq[queue].tail = value as u16;
                    self.doorbells.set(self.doorbells.get() + 1);
                } else {
                    state.cq[queue].head = value as u16;
                    self.head_doorbells.set(self.head_doorbells.get() + 1);
                }
            }
            MSIX_TABLE.. => state.msix[(offset - MSIX_TABLE) / 4] = value,
            _ => panic!("write at {offset:#x}"),
        }
    }

    fn step(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if state.cc & 1 != 0 && !state.ready && self.can_reset.get() {
            assert_eq!(state.cc, 1 | 6 << 16 | 4 << 20);
            let entries = (state.aqa & 0xfff) as u16 + 1;
            state.sq[0] = Sq { base: state.asq, entries, ..Sq::default() };
            state.cq[0] = Cq { base: state.acq, entries, phase: 1, ..Cq::default() };
            state.ready = true;
            return true;
        }
        if !state.ready || state.fatal || self.absent.get() {
            return false;
        }
        for command in self.fetch(state, 0) {
            self.admin(state, &command);
        }
        if state.sq[1].entries == 0 {
            return false;
        }
        self.end_orders(state);
        for command in self.fetch(state, 1) {
            let ids: BTreeSet<u16> = known(state).map(Sqe::id).collect();
            assert!(!ids.contains(&command.id()), "command ids in flight are unique");
            if self.logs.get() {
                self.log.borrow_mut().push(command);
            }
            state.pending.push(command);
        }
        self.most_in_flight.set(self.most_in_flight.get().max(known(state).count()));
        for id in self.junk.take() {
            self.post(state, 1, id, 0, 0);
        }
        let mut random = self.random.borrow_mut();
        let mut count = state.pending.len();
        if self.shuffle.get() && count > 0 {
            count = random.below(count as u64 + 1) as usize;
        }
        for _ in 0..count {
            let at = if self.shuffle.get() { random.below(state.pending.len() as u64) as usize } else { 0 };
            let command = state.pending.remove(at);
            let fate = (self.fate.borrow_mut())(&command);
            self.execute(state, &command, fate);
        }
        !state.pending.is_empty()
    }
}

/// All I/O commands that have no answer yet.
fn known(state: &State) -> impl Iterator<Item = &Sqe> {
    state.pending.iter().chain(&state.hung).chain(&state.under_way)
}

/// A range of a dataset command: attributes, blocks, first block.
fn fields(range: &[u8; 16]) -> (u32, u32, u64) {
    let word = |at: usize| u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]]);
    (word(0), word(4), u64::from(word(8)) | u64::from(word(12)) << 32)
}
