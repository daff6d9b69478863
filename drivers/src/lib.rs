//! Device drivers: NVMe, virtio-blk and virtio-net as `BlockDevice`s and `NicDevice`s over one small [`Hal`].
//!
//! | file | what it holds |
//! |---|---|
//! | `hal` | what a driver needs of the machine; what the reactor calls |
//! | `pci` | configuration space: BARs, capabilities, MSI-X |
//! | `dma` | memory shared with a device |
//! | `request` | a block command from submission to answer; the table of those in flight |
//! | `disk` | checks and limits common to all disks |
//! | `nvme/` | NVMe controllers and their namespaces |
//!
//! The kernel finds PCI functions and virtio-mmio windows and calls [`probe`] once; it then drives every
//! [`Service`] in its reactor's loop as described there.
#![no_std]

extern crate alloc;

mod disk;
mod dma;
pub mod hal;
mod nvme;
mod pci;
mod request;

pub use hal::{
    DmaPages, Hal, MappedRegisters, MmioWindow, MsiMessage, PAGE_SIZE, PciAddress, PciFunction, Registers,
    Service,
};

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use moraine_platform::{BlockDevice, NicDevice};

/// What [`probe`] found, in the order of discovery.
#[derive(Default)]
pub struct Found {
    /// Every disk: one for each NVMe namespace and each virtio-blk device.
    pub disks: Vec<Rc<dyn BlockDevice>>,
    /// Every network card.
    pub nics: Vec<Rc<dyn NicDevice>>,
    /// What the reactor has to drive from now on.
    pub services: Vec<Rc<dyn Service>>,
    /// Devices that a driver claimed but could not bring up, and why: one line each, for a person.
    pub failures: Vec<String>,
}

/// Brings up every device that a driver here knows. Unknown functions are left alone. It waits for devices, within
/// their own time limits, by calling [`Hal::relax`]; no reactor has to run yet, and interrupts may be off.
pub fn probe(hal: Rc<dyn Hal>, functions: &[Rc<dyn PciFunction>], windows: &[MmioWindow]) -> Found {
    let _ = windows;
    let mut found = Found::default();
    let mut controllers = 0;
    for function in functions {
        if nvme::wants(pci::identity(&**function)) {
            match nvme::probe(&hal, function, controllers) {
                Ok(probed) => {
                    found
                        .disks
                        .extend(probed.namespaces.into_iter().map(|n| Rc::new(n) as Rc<dyn BlockDevice>));
                    found.services.push(probed.controller);
                    found.failures.extend(probed.failures);
                }
                Err(why) => found.failures.push(format!("NVMe controller {}: {why}", function.address())),
            }
            controllers += 1;
        }
    }
    found
}
