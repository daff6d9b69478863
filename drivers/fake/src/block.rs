//! virtio-blk in front of a [`Medium`] (virtio 1.2 §5.2).

use crate::board::Board;
use crate::function::Function;
use crate::medium::{Medium, Order, Outcome};
use crate::virtio::{Backend, Bus, Chain, EVENT_IDX, INDIRECT, VERSION_1, Virtio};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

const KIND: u32 = 2;
const SECTOR: u64 = 512;
const SEG_MAX: u64 = 1 << 2;
const BLOCK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
const CACHE_MODE: u64 = 1 << 11;
const DISCARD: u64 = 1 << 13;
const ZEROES: u64 = 1 << 14;
const FEATURES: u64 = SEG_MAX | BLOCK_SIZE | FLUSH | TOPOLOGY | CACHE_MODE | DISCARD | ZEROES;

const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_ZEROES: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;

const HEADER: usize = 16;
/// Segments of a request, and sectors of a range, at most.
const SEGMENTS_MAX: u32 = 126;
const RANGE_MAX: u32 = 1 << 20;

/// A disk.
pub struct VirtioDisk {
    this: Weak<VirtioDisk>,
    medium: Rc<dyn Medium>,
    /// What the device was attached as; for those who end orders.
    device: RefCell<Weak<Virtio>>,
    /// Chains of this number of resets are answered.
    generation: Cell<u64>,
    ended: RefCell<Vec<(u64, Chain, Outcome)>>,
    /// Requests that are never answered, but by a reset.
    hung: RefCell<Vec<Chain>>,
}

impl VirtioDisk {
    /// Attaches a disk as device number `index`.
    pub fn attach(
        index: u8,
        board: &Rc<Board>,
        bus: Bus,
        medium: Rc<dyn Medium>,
        seed: u64,
    ) -> (Rc<Virtio>, Rc<Function>) {
        let mut config = vec![0; 64];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(medium.size() / SECTOR).to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        // Eight sectors are a physical block; the cache writes back if there is one.
        put(24, &[3]);
        put(32, &[u8::from(medium.has_cache())]);
        put(36, &RANGE_MAX.to_le_bytes());
        put(40, &1u32.to_le_bytes());
        put(48, &RANGE_MAX.to_le_bytes());
        put(52, &1u32.to_le_bytes());
        let disk = Rc::new_cyclic(|this| VirtioDisk {
            this: this.clone(),
            medium,
            device: RefCell::default(),
            generation: Cell::new(0),
            ended: RefCell::default(),
            hung: RefCell::default(),
        });
        let features = FEATURES | VERSION_1 | EVENT_IDX | INDIRECT;
        let attached = Virtio::attach_as(index, board, (bus, KIND), (features, config), disk.clone(), seed);
        *disk.device.borrow_mut() = Rc::downgrade(&attached.0);
        attached
    }

    /// What a request wants; the status if that cannot be.
    fn order(&self, chain: &Chain) -> Result<Order, u8> {
        let request = chain.read();
        let (header, data) = request.split_first_chunk::<HEADER>().expect("a request has a header");
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let range = || {
            let (range, rest) = data.split_first_chunk::<16>().expect("a range");
            assert!(rest.is_empty() && range[12..] == [0; 4], "one range without flags");
            let at = u64::from_le_bytes(range[..8].try_into().expect("eight bytes")) * SECTOR;
            let sectors = u32::from_le_bytes(range[8..12].try_into().expect("four bytes"));
            assert!(sectors <= RANGE_MAX, "the limit is kept");
            (at, u64::from(sectors) * SECTOR)
        };
        let order = match kind {
            TYPE_IN => Order::Read { at: sector * SECTOR, len: chain.writable_len() - 1 },
            TYPE_OUT => Order::Write { at: sector * SECTOR, bytes: data.to_vec(), fua: false },
            TYPE_FLUSH => Order::Flush,
            TYPE_DISCARD => {
                let (at, len) = range();
                Order::Discard { at, len }
            }
            TYPE_ZEROES => {
                let (at, len) = range();
                Order::Zero { at, len }
            }
            _ => return Err(STATUS_UNSUPPORTED),
        };
        let (at, len) = order.range();
        match at.checked_add(len).is_some_and(|end| end <= self.medium.size()) {
            true => Ok(order),
            false => Err(STATUS_ERROR),
        }
    }

    fn answer(device: &Virtio, chain: &Chain, status: u8, data: &[u8]) {
        if !data.is_empty() {
            chain.write(data);
        }
        chain.writable.last().expect("a request has room for its status").write(&[status]);
        device.push_used(0, chain.head.into(), data.len() as u32 + 1);
    }
}

impl Backend for VirtioDisk {
    fn arrived(&self, device: &Virtio, _queue: u16, chain: Chain) {
        if chain.read().first() == Some(&(TYPE_ID as u8)) {
            return Self::answer(device, &chain, STATUS_OK, b"simulated\0");
        }
        let order = match self.order(&chain) {
            Ok(order) => order,
            Err(status) => return Self::answer(device, &chain, status, &[]),
        };
        let (this, generation) = (self.this.clone(), self.generation.get());
        let end = move |outcome| {
            if let Some(this) = this.upgrade() {
                this.ended.borrow_mut().push((generation, chain, outcome));
                if let Some(device) = this.device.borrow().upgrade() {
                    device.attend();
                }
            }
        };
        self.medium.begin(order, Box::new(end));
    }

    fn step(&self, device: &Virtio) -> bool {
        for (generation, chain, outcome) in self.ended.take() {
            // What a reset caught is not answered.
            if generation != self.generation.get() {
                continue;
            }
            match outcome {
                Outcome::Done(bytes) => Self::answer(device, &chain, STATUS_OK, &bytes),
                Outcome::MediumError | Outcome::DeviceError => {
                    Self::answer(device, &chain, STATUS_ERROR, &[])
                }
                Outcome::Never => self.hung.borrow_mut().push(chain),
                Outcome::Gone => device.absent.set(true),
            }
        }
        false
    }

    fn reset(&self) {
        self.generation.set(self.generation.get() + 1);
        self.hung.borrow_mut().clear();
        self.medium.reset();
    }
}
