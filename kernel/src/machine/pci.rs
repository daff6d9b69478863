//! PCI: finds the functions that are there. Configuration space is reached through memory (ECAM) where the firmware
//! names it, through two ports otherwise. What a function is for is the drivers' business.

use crate::memory::paging::{self, Access};
use alloc::rc::Rc;
use alloc::vec::Vec;
use kernel_parts::acpi::{Ecam, Tables};
use moraine_boot::map::RangeSet;
use moraine_drivers::{PciAddress, PciFunction};
use moraine_platform::{error, info, warn};
use x86_64::instructions::port::Port;

/// Functions looked at, at most.
const FUNCTIONS_MAX: usize = 256;
/// Configuration space of one bus in ECAM, in bytes.
const BUS_BYTES: u64 = 1 << 20;
/// Physical addresses end here; windows beyond are not believed.
const HIGHEST: u64 = 1 << 46;

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;

/// A way to configuration space.
#[derive(Clone, Copy)]
enum Space {
    /// Through ports: segment 0, 256 bytes a function.
    Ports,
    /// Through memory.
    Memory(Ecam),
}

/// One function's configuration space.
struct Function {
    address: PciAddress,
    space: Space,
}

/// All functions that are there. `ram` is where no configuration space can be.
pub(crate) fn functions(tables: &Tables, ram: &RangeSet) -> Vec<Rc<dyn PciFunction>> {
    let mut found = Vec::new();
    if tables.ecam.is_empty() && ports_answer() {
        scan_bus(Space::Ports, 0, 0, &mut found);
    }
    for ecam in &tables.ecam {
        if map(ecam, ram) {
            scan_bus(Space::Memory(*ecam), ecam.segment, ecam.first_bus, &mut found);
        }
    }
    if found.len() >= FUNCTIONS_MAX {
        warn!("pci", "more than {FUNCTIONS_MAX} functions; the rest is left alone");
    }
    for function in &found {
        let (id, class) = (function.read(0), function.read(8) >> 8);
        info!("pci", "{} {:04x}:{:04x} class {class:06x}", function.address(), id & 0xffff, id >> 16);
    }
    found
}

/// Maps all of a window at once, which takes large pages: a table or two for the 256 buses of a segment, and not one for
/// every second bus.
fn map(ecam: &Ecam, ram: &RangeSet) -> bool {
    let Ecam { address, segment, first_bus, last_bus } = *ecam;
    let buses = (u64::from(last_bus) + 1).saturating_sub(u64::from(first_bus));
    let range = (address.checked_add(u64::from(first_bus) * BUS_BYTES))
        .and_then(|start| Some(start..start.checked_add(buses * BUS_BYTES)?))
        .filter(|range| range.end <= HIGHEST && !range.is_empty());
    let Some(range) = range else {
        warn!("pci", "segment {segment}: the firmware's window at {address:#x} makes no sense; left alone");
        return false;
    };
    if ram.as_slice().iter().any(|r| r.start < range.end && range.start < r.end) {
        warn!("pci", "segment {segment}: the firmware's window at {address:#x} lies over RAM; left alone");
        return false;
    }
    if let Err(why) = paging::try_map(range.start, range.end - range.start, Access::Device) {
        error!("pci", "segment {segment} is left alone: {why}");
        return false;
    }
    true
}

/// Scans a bus and, through bridges that firmware set up, those behind it.
fn scan_bus(space: Space, segment: u16, bus: u8, found: &mut Vec<Rc<dyn PciFunction>>) {
    if let Space::Memory(ecam) = space
        && !(ecam.first_bus..=ecam.last_bus).contains(&bus)
    {
        return;
    }
    for device in 0..32 {
        for number in 0..8 {
            let address = PciAddress { segment, bus, device, function: number };
            let function = Function { address, space };
            if function.read(0) as u16 == 0xffff {
                if number == 0 {
                    break;
                }
                continue;
            }
            let header = (function.read(0x0c) >> 16) as u8;
            if header & 0x7f == 1 {
                let secondary = (function.read(0x18) >> 8) as u8;
                // Bus numbers grow downwards in a set-up tree, so this ends.
                if secondary > bus {
                    scan_bus(space, segment, secondary, found);
                }
            } else if found.len() < FUNCTIONS_MAX {
                found.push(Rc::new(function));
            }
            if number == 0 && header & 0x80 == 0 {
                break;
            }
        }
    }
}

/// Whether the address port holds what is written to it, as only a PCI host bridge's does.
fn ports_answer() -> bool {
    // SAFETY: the host bridge's address port; where there is none, nobody listens.
    unsafe {
        let mut port = Port::<u32>::new(ADDRESS_PORT);
        port.write(1 << 31);
        port.read() == 1 << 31
    }
}

impl Function {
    /// Where the double word at `offset` lies: the address port's value, or a memory address.
    fn place(&self, offset: u16) -> Option<u64> {
        let PciAddress { bus, device, function, .. } = self.address;
        let (bus, device, function) = (bus as u64, device as u64, function as u64);
        let offset = offset as u64 & !3;
        match self.space {
            Space::Ports if offset < 256 => Some(1 << 31 | bus << 16 | device << 11 | function << 8 | offset),
            Space::Memory(ecam) if offset < 4096 => {
                Some(ecam.address + (bus << 20 | device << 15 | function << 12 | offset))
            }
            _ => None,
        }
    }
}

impl PciFunction for Function {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn read(&self, offset: u16) -> u32 {
        let Some(place) = self.place(offset) else { return u32::MAX };
        match self.space {
            // SAFETY: the host bridge's ports; only this core uses them.
            Space::Ports => unsafe {
                Port::<u32>::new(ADDRESS_PORT).write(place as u32);
                Port::<u32>::new(DATA_PORT).read()
            },
            // SAFETY: configuration space of a window that `map` mapped.
            Space::Memory(_) => unsafe { (place as *const u32).read_volatile() },
        }
    }

    fn write(&self, offset: u16, value: u32) {
        let Some(place) = self.place(offset) else { return };
        match self.space {
            // SAFETY: as in `read`; drivers answer for what they write.
            Space::Ports => unsafe {
                Port::<u32>::new(ADDRESS_PORT).write(place as u32);
                Port::<u32>::new(DATA_PORT).write(value);
            },
            // SAFETY: as in `read`.
            Space::Memory(_) => unsafe { (place as *mut u32).write_volatile(value) },
        }
    }
}
