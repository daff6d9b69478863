//! PCI configuration space (PCI Local Bus 3.0 chapter 6, PCIe 5.0 §7.5, §7.7): identity, BARs, capabilities, MSI-X.

use crate::hal::{Hal, MsiMessage, PciFunction, Registers};
use alloc::rc::Rc;
use alloc::vec::Vec;

const COMMAND: u16 = 0x04;
const COMMAND_MEMORY: u32 = 1 << 1;
const COMMAND_BUS_MASTER: u32 = 1 << 2;
const COMMAND_INTX_DISABLE: u32 = 1 << 10;
const STATUS_CAPABILITIES: u32 = 1 << 20;
const CAPABILITIES_POINTER: u16 = 0x34;
const BAR0: u16 = 0x10;
const BAR_COUNT: u8 = 6;

/// Capabilities in conventional configuration space: each takes at least 4 of its 192 bytes.
const CAPABILITIES_MAX: usize = 48;

const CAPABILITY_MSIX: u8 = 0x11;
/// Vendor-specific: virtio's.
pub(crate) const CAPABILITY_VENDOR: u8 = 0x09;

const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASK_ALL: u32 = 1 << 30;
const MSIX_ENTRY_MASKED: u32 = 1;
/// Bytes of one entry of the MSI-X table.
const MSIX_ENTRY: usize = 16;

/// Vendor, device and class of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    /// Base class, subclass and programming interface: `0xbbsspp`.
    pub(crate) class: u32,
}

/// Reads a function's identity.
pub(crate) fn identity(function: &dyn PciFunction) -> Identity {
    let id = function.read(0);
    Identity { vendor: id as u16, device: (id >> 16) as u16, class: function.read(8) >> 8 }
}

/// Whether the function is still there: configuration reads of one that was taken away give all ones (PCI Local Bus 3.0
/// §6.1), while its registers may read as anything, zeroes included.
pub(crate) fn is_present(function: &dyn PciFunction) -> bool {
    function.read(0) as u16 != u16::MAX
}

/// The address of memory BAR `index`; `None` for an I/O BAR, one without an address, or a bad index.
pub(crate) fn memory_bar(function: &dyn PciFunction, index: u8) -> Option<u64> {
    if index >= BAR_COUNT {
        return None;
    }
    let at = BAR0 + u16::from(index) * 4;
    let low = function.read(at);
    let address = match low & 7 {
        0b000 | 0b010 => u64::from(low & !0xf),
        0b100 if index + 1 < BAR_COUNT => u64::from(low & !0xf) | u64::from(function.read(at + 4)) << 32,
        _ => return None,
    };
    (address != 0).then_some(address)
}

/// The offsets of all capabilities called `id`, in the order of the list.
pub(crate) fn capabilities(function: &dyn PciFunction, id: u8) -> Vec<u16> {
    let mut found = Vec::new();
    if function.read(COMMAND) & STATUS_CAPABILITIES == 0 {
        return found;
    }
    let mut at = function.read(CAPABILITIES_POINTER) as u8 & 0xfc;
    // The list is the device's: a loop in it must not become ours.
    for _ in 0..CAPABILITIES_MAX {
        if at < 0x40 {
            break;
        }
        let header = function.read(u16::from(at));
        if header as u8 == id {
            found.push(u16::from(at));
        }
        at = (header >> 8) as u8 & 0xfc;
    }
    found
}

/// Lets the function answer to memory accesses and reach memory itself, and silences its interrupt pin.
pub(crate) fn enable(function: &dyn PciFunction) {
    let command = function.read(COMMAND) & 0xffff;
    function.write(COMMAND, command | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE);
}

/// Keeps the function from reaching memory: afterwards no DMA of its can arrive (PCIe 5.0 §7.5.1.1.3; the read back
/// is ordered behind writes already on their way).
pub(crate) fn disable_dma(function: &dyn PciFunction) {
    let command = function.read(COMMAND) & 0xffff;
    function.write(COMMAND, command & !COMMAND_BUS_MASTER);
    let _ = function.read(COMMAND);
}

/// MSI-X of one function with all of its interrupts on table entry 0.
pub(crate) struct Msix {
    entry: Rc<dyn Registers>,
}

/// The only table entry in use.
pub(crate) const MSIX_VECTOR: u16 = 0;

impl Msix {
    /// Points entry 0 at `message` and turns MSI-X on. `None` if the function has no (usable) MSI-X.
    pub(crate) fn enable(hal: &dyn Hal, function: &dyn PciFunction, message: MsiMessage) -> Option<Msix> {
        let at = *capabilities(function, CAPABILITY_MSIX).first()?;
        let table = function.read(at + 4);
        let address = memory_bar(function, (table & 7) as u8)?.checked_add(u64::from(table & !7))?;
        let entry = hal.registers(address, MSIX_ENTRY)?;
        let control = function.read(at);
        function.write(at, control | MSIX_ENABLE | MSIX_MASK_ALL);
        entry.write32(0, message.address as u32);
        entry.write32(4, (message.address >> 32) as u32);
        entry.write32(8, message.data);
        entry.write32(12, entry.read32(12) & !MSIX_ENTRY_MASKED);
        function.write(at, (control | MSIX_ENABLE) & !MSIX_MASK_ALL);
        Some(Msix { entry })
    }

    /// Holds the interrupt back; the device notes that it is pending.
    pub(crate) fn mask(&self) {
        self.entry.write32(12, MSIX_ENTRY_MASKED);
    }

    /// Lets the interrupt through, at once if it is pending.
    pub(crate) fn unmask(&self) {
        self.entry.write32(12, 0);
    }
}
