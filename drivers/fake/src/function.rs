//! Configuration space of a PCI function, and how drivers find what is on a board.

use crate::board::Board;
use moraine_drivers::{Found, MmioWindow, PciAddress, PciFunction};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

const COMMAND: u16 = 0x04;
const BUS_MASTER: u32 = 1 << 2;
const HAS_CAPABILITIES: u32 = 1 << 20;
const CAPABILITY_MSIX: u8 = 0x11;

/// Configuration space in an array, where only the command register and the MSI-X control can be written.
pub struct Function {
    /// The space.
    pub words: RefCell<[u32; 64]>,
    /// Its number on the bus.
    pub device: Cell<u8>,
    /// It was taken away.
    pub unplugged: Cell<bool>,
}

impl Function {
    /// A function of this identity.
    pub fn new(vendor: u16, device: u16, class: u32) -> Function {
        let mut words = [0; 64];
        words[0] = u32::from(vendor) | u32::from(device) << 16;
        words[2] = class << 8;
        Function { words: RefCell::new(words), device: Cell::new(3), unplugged: Cell::new(false) }
    }

    /// A 64-bit memory BAR.
    pub fn bar(&self, index: usize, address: u64) {
        let mut words = self.words.borrow_mut();
        words[4 + index] = address as u32 | 0b100;
        words[5 + index] = (address >> 32) as u32;
    }

    /// Adds a capability of whole words at `at`, in front of the list.
    pub fn capability(&self, at: u8, id: u8, high: u16, rest: &[u32]) {
        let mut words = self.words.borrow_mut();
        words[1] |= HAS_CAPABILITIES;
        let next = words[13];
        words[13] = u32::from(at);
        let first = usize::from(at) / 4;
        words[first] = u32::from(id) | next << 8 | u32::from(high) << 16;
        words[first + 1..][..rest.len()].copy_from_slice(rest);
    }

    /// Whether it may reach memory.
    pub fn is_bus_master(&self) -> bool {
        self.words.borrow()[1] & BUS_MASTER != 0
    }
}

impl PciFunction for Function {
    fn address(&self) -> PciAddress {
        PciAddress { segment: 0, bus: 0, device: self.device.get(), function: 0 }
    }
    fn read(&self, offset: u16) -> u32 {
        if self.unplugged.get() {
            return u32::MAX;
        }
        self.words.borrow().get(usize::from(offset) / 4).copied().unwrap_or(u32::MAX)
    }
    fn write(&self, offset: u16, value: u32) {
        if self.unplugged.get() {
            return;
        }
        let mut words = self.words.borrow_mut();
        match offset {
            COMMAND => words[1] = words[1] & 0xffff_0000 | value & 0xffff,
            _ if words[usize::from(offset) / 4] as u8 == CAPABILITY_MSIX => {
                let word = &mut words[usize::from(offset) / 4];
                *word = *word & 0x3fff_ffff | value & 0xc000_0000;
            }
            _ => panic!("unexpected write of configuration space at {offset:#x}"),
        }
    }
}

/// What the drivers find of these functions and windows.
pub fn probe(board: &Rc<Board>, functions: &[Rc<Function>], windows: &[MmioWindow]) -> Found {
    let functions: Vec<Rc<dyn PciFunction>> =
        functions.iter().map(|f| f.clone() as Rc<dyn PciFunction>).collect();
    moraine_drivers::probe(board.clone(), &functions, windows)
}
