//! Virtio over PCI (virtio 1.2 §4.1): modern devices, and transitional ones through their modern interface.

use super::LOOK_INTERVAL;
use super::transport::{QueueAddresses, Transport, VirtioError};
use crate::hal::{Hal, PciFunction, Registers};
use crate::pci::{self, CAPABILITY_VENDOR, MSIX_VECTOR, Msix};
use alloc::rc::Rc;
use core::cell::Cell;
use core::time::Duration;

const VENDOR: u16 = 0x1af4;
const TRANSITIONAL: core::ops::RangeInclusive<u16> = 0x1000..=0x103f;
const MODERN: core::ops::RangeInclusive<u16> = 0x1040..=0x107f;
const SUBSYSTEM: u16 = 0x2c;

const STRUCTURE_COMMON: u8 = 1;
const STRUCTURE_NOTIFY: u8 = 2;
const STRUCTURE_DEVICE: u8 = 4;

// The common configuration structure.
const FEATURE_SELECT: usize = 0;
const FEATURE: usize = 4;
const ACCEPTED_SELECT: usize = 8;
const ACCEPTED: usize = 12;
const CONFIG_VECTOR: usize = 16;
const STATUS: usize = 20;
const GENERATION: usize = 21;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE: usize = 24;
const QUEUE_VECTOR: usize = 26;
const QUEUE_ENABLE: usize = 28;
const QUEUE_NOTIFY: usize = 30;
const QUEUE_DESCRIPTORS: usize = 32;
const QUEUE_AVAILABLE: usize = 40;
const QUEUE_USED: usize = 48;
const COMMON_LEN: u32 = 56;

/// What the structures are aligned to (virtio 1.2 §4.1.4), so that each access to a register is.
const COMMON_ALIGN: u64 = 4;
const NOTIFY_ALIGN: u64 = 2;
const DEVICE_ALIGN: u64 = 4;

/// Queues whose notification addresses are remembered: receive and transmit are the most that any driver here uses.
const QUEUES_MAX: usize = 2;

/// The transport.
pub(crate) struct PciTransport {
    function: Rc<dyn PciFunction>,
    kind: u32,
    common: Rc<dyn Registers>,
    notify: Rc<dyn Registers>,
    notify_multiplier: u32,
    notify_at: Cell<[usize; QUEUES_MAX]>,
    device: Option<Rc<dyn Registers>>,
    /// Kept so that its table entry stays mapped.
    msix: Option<Msix>,
}

/// The kind of virtio device behind a function, if it is one.
fn kind_of(function: &dyn PciFunction, identity: pci::Identity) -> Option<u32> {
    match identity.device {
        _ if identity.vendor != VENDOR => None,
        device if MODERN.contains(&device) => Some(u32::from(device - MODERN.start())),
        device if TRANSITIONAL.contains(&device) => Some(function.read(SUBSYSTEM) >> 16),
        _ => None,
    }
}

/// One structure named by a capability: where, how long, and (notify only) its multiplier.
struct Structure {
    address: u64,
    len: u32,
    at: u16,
}

fn structure(function: &dyn PciFunction, kind: u8) -> Option<Structure> {
    pci::capabilities(function, CAPABILITY_VENDOR).into_iter().find_map(|at| {
        let header = function.read(at);
        if (header >> 24) as u8 != kind {
            return None;
        }
        let bar = pci::memory_bar(function, function.read(at + 4) as u8)?;
        let address = bar.checked_add(u64::from(function.read(at + 8)))?;
        Some(Structure { address, len: function.read(at + 12), at })
    })
}

impl PciTransport {
    /// The transport of `function`; `None` if it is no virtio device.
    pub(crate) fn new(
        hal: &dyn Hal,
        function: &Rc<dyn PciFunction>,
        identity: pci::Identity,
    ) -> Option<Result<PciTransport, VirtioError>> {
        let kind = kind_of(&**function, identity)?;
        Some(PciTransport::map(hal, function, kind))
    }

    fn map(hal: &dyn Hal, function: &Rc<dyn PciFunction>, kind: u32) -> Result<PciTransport, VirtioError> {
        let legacy = VirtioError::Unsupported("it has only the legacy interface");
        let unmapped = VirtioError::Unsupported("its registers cannot be mapped");
        let common = structure(&**function, STRUCTURE_COMMON).ok_or(legacy)?;
        let notify = structure(&**function, STRUCTURE_NOTIFY).ok_or(legacy)?;
        let device = structure(&**function, STRUCTURE_DEVICE);
        if common.len < COMMON_LEN {
            return Err(VirtioError::Unsupported("its common configuration is too short"));
        }
        let aligned = |s: &Structure, to: u64| s.address.is_multiple_of(to);
        if !aligned(&common, COMMON_ALIGN)
            || !aligned(&notify, NOTIFY_ALIGN)
            || device.as_ref().is_some_and(|d| !aligned(d, DEVICE_ALIGN))
        {
            return Err(VirtioError::Unsupported("its registers are not aligned"));
        }
        pci::enable(&**function);
        let common = hal.registers(common.address, common.len as usize).ok_or(unmapped)?;
        let notify_multiplier = function.read(notify.at + 16);
        let notify = hal.registers(notify.address, notify.len as usize).ok_or(unmapped)?;
        let device = device.and_then(|d| hal.registers(d.address, d.len as usize));
        let msix = hal.msi("virtio").and_then(|message| Msix::enable(hal, &**function, message));
        Ok(PciTransport {
            function: function.clone(),
            kind,
            common,
            notify,
            notify_multiplier,
            notify_at: Cell::new([0; QUEUES_MAX]),
            device,
            msix,
        })
    }
}

impl Transport for PciTransport {
    fn kind(&self) -> u32 {
        self.kind
    }

    fn is_legacy(&self) -> bool {
        false
    }

    fn features(&self) -> u64 {
        self.common.write32(FEATURE_SELECT, 0);
        let low = self.common.read32(FEATURE);
        self.common.write32(FEATURE_SELECT, 1);
        u64::from(low) | u64::from(self.common.read32(FEATURE)) << 32
    }

    fn accept(&self, features: u64) {
        self.common.write32(ACCEPTED_SELECT, 0);
        self.common.write32(ACCEPTED, features as u32);
        self.common.write32(ACCEPTED_SELECT, 1);
        self.common.write32(ACCEPTED, (features >> 32) as u32);
    }

    fn status(&self) -> u8 {
        self.common.read8(STATUS)
    }

    fn set_status(&self, status: u8) {
        self.common.write8(STATUS, status);
    }

    fn queue_size_max(&self, index: u16) -> u16 {
        self.common.write16(QUEUE_SELECT, index);
        self.common.read16(QUEUE_SIZE)
    }

    fn set_queue(&self, index: u16, addresses: &QueueAddresses) -> Result<(), VirtioError> {
        self.common.write16(QUEUE_SELECT, index);
        self.common.write16(QUEUE_SIZE, addresses.size);
        if self.msix.is_some() {
            self.common.write16(CONFIG_VECTOR, MSIX_VECTOR);
            self.common.write16(QUEUE_VECTOR, MSIX_VECTOR);
            if self.common.read16(QUEUE_VECTOR) != MSIX_VECTOR {
                return Err(VirtioError::Unsupported("it has no interrupt vector for a queue"));
            }
        }
        self.common.write64(QUEUE_DESCRIPTORS, addresses.descriptors);
        self.common.write64(QUEUE_AVAILABLE, addresses.available);
        self.common.write64(QUEUE_USED, addresses.used);
        let at = u64::from(self.common.read16(QUEUE_NOTIFY)) * u64::from(self.notify_multiplier);
        if at + 2 > self.notify.size() as u64 || !at.is_multiple_of(2) {
            return Err(VirtioError::Unsupported("a queue's notification lies outside its window"));
        }
        let mut notify_at = self.notify_at.get();
        notify_at[usize::from(index)] = at as usize;
        self.notify_at.set(notify_at);
        self.common.write16(QUEUE_ENABLE, 1);
        Ok(())
    }

    fn notify(&self, index: u16) {
        self.notify.write16(self.notify_at.get()[usize::from(index)], index);
    }

    fn is_present(&self) -> bool {
        pci::is_present(&*self.function)
    }

    fn look_interval(&self) -> Option<Duration> {
        self.msix.is_none().then_some(LOOK_INTERVAL)
    }

    fn acknowledge_interrupt(&self) {}

    fn config8(&self, offset: usize) -> u8 {
        self.device.as_ref().filter(|d| offset < d.size()).map_or(0, |d| d.read8(offset))
    }

    fn config32(&self, offset: usize) -> u32 {
        self.device.as_ref().filter(|d| offset + 4 <= d.size()).map_or(0, |d| d.read32(offset))
    }

    fn set_config8(&self, offset: usize, value: u8) {
        if let Some(device) = self.device.as_ref().filter(|d| offset < d.size()) {
            device.write8(offset, value);
        }
    }

    fn config_generation(&self) -> u32 {
        self.common.read8(GENERATION).into()
    }

    fn cut_off(&self) -> bool {
        self.set_status(0);
        pci::disable_dma(&*self.function);
        true
    }
}
