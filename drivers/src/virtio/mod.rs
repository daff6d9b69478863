//! Virtio 1.2 devices (and transitional or legacy ones as far as they go) over PCI and MMIO.
//!
//! | file | what it holds |
//! |---|---|
//! | `transport` | what a device offers over either bus; feature negotiation |
//! | `pci` | the PCI transport |
//! | `mmio` | the MMIO transport, legacy too |
//! | `queue` | the split virtqueue |
//! | `blk` | block devices |
//! | `net` | network cards; `rx` and `tx` are their two directions |

mod blk;
mod mmio;
mod net;
mod pci;
mod queue;
mod rx;
mod transport;
mod tx;

pub(crate) use mmio::{MmioError, MmioTransport};
pub(crate) use pci::PciTransport;

use crate::hal::{Hal, Service};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::time::Duration;
use moraine_platform::{BlockDevice, NicDevice};
use transport::Transport;
pub(crate) use transport::VirtioError;

/// How often a device is looked at that cannot interrupt.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// How often a device is looked at that interrupts by a line. The line tells of an edge only, and one edge that a controller
/// or a monitor loses would silence the device for good.
const LINE_LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What came out of one virtio device.
pub(crate) enum Probed {
    /// A disk.
    Disk(Rc<dyn BlockDevice>, Rc<dyn Service>),
    /// A network card.
    Nic(Rc<dyn NicDevice>, Rc<dyn Service>),
    /// A kind of device that nothing here drives.
    Unknown,
}

/// How many devices of each kind were found, for their names.
#[derive(Default)]
pub(crate) struct Counts {
    disks: usize,
    nics: usize,
}

const KIND_NET: u32 = 1;
const KIND_BLOCK: u32 = 2;

/// Brings up the device behind `transport`.
pub(crate) fn probe(
    hal: &Rc<dyn Hal>,
    transport: Box<dyn Transport>,
    counts: &mut Counts,
) -> Result<Probed, VirtioError> {
    match transport.kind() {
        KIND_BLOCK => {
            counts.disks += 1;
            let device = blk::VirtioBlock::new(hal, transport, counts.disks - 1)?;
            Ok(Probed::Disk(device.clone(), device))
        }
        KIND_NET => {
            counts.nics += 1;
            let device = net::VirtioNet::new(hal, transport, counts.nics - 1)?;
            Ok(Probed::Nic(device.clone(), device))
        }
        _ => Ok(Probed::Unknown),
    }
}
