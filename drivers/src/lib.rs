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
//! | `virtio/` | virtio-blk and virtio-net over PCI and MMIO |
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
mod virtio;

pub use hal::{
    DmaPages, Hal, MappedRegisters, MmioWindow, MsiMessage, PAGE_SIZE, PciAddress, PciFunction, Registers,
    Service,
};

use alloc::boxed::Box;
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
    let mut found = Found::default();
    let mut controllers = 0;
    let mut counts = virtio::Counts::default();
    for function in functions {
        let identity = pci::identity(&**function);
        if nvme::wants(identity) {
            match nvme::probe(&hal, function, controllers) {
                Ok(probed) => {
                    let disks = probed.namespaces.into_iter().map(|n| Rc::new(n) as Rc<dyn BlockDevice>);
                    found.disks.extend(disks);
                    found.services.push(probed.controller);
                    found.failures.extend(probed.failures);
                }
                Err(why) => found.failures.push(format!("NVMe controller {}: {why}", function.address())),
            }
            controllers += 1;
        } else if let Some(transport) = virtio::PciTransport::new(&*hal, function, identity) {
            let probed = transport.and_then(|t| virtio::probe(&hal, Box::new(t), &mut counts));
            found.add(probed, &function.address());
        }
    }
    for window in windows {
        let probed = match virtio::MmioTransport::new(&*hal, window) {
            Ok(transport) => virtio::probe(&hal, Box::new(transport), &mut counts),
            Err(virtio::MmioError::Empty) => continue,
            Err(virtio::MmioError::Virtio(error)) => Err(error),
        };
        found.add(probed, &format_args!("at {:#x}", window.address));
    }
    found
}

impl Found {
    fn add(&mut self, probed: Result<virtio::Probed, virtio::VirtioError>, place: &dyn core::fmt::Display) {
        match probed {
            Ok(virtio::Probed::Disk(disk, service)) => {
                self.disks.push(disk);
                self.services.push(service);
            }
            Ok(virtio::Probed::Nic(nic, service)) => {
                self.nics.push(nic);
                self.services.push(service);
            }
            Ok(virtio::Probed::Unknown) => (),
            Err(why) => self.failures.push(format!("virtio device {place}: {why}")),
        }
    }
}
