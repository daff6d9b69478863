//! Virtio over MMIO (virtio 1.2 §4.2), version 2 and the legacy version 1 which some machine models still default to.

use super::LINE_LOOK_INTERVAL;
use super::transport::{QueueAddresses, Transport, VirtioError};
use crate::hal::{Hal, MmioWindow, PAGE_SIZE, Registers};
use alloc::rc::Rc;
use core::time::Duration;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// The registers before device configuration.
const CONFIG: usize = 0x100;
const WINDOW_MIN: u64 = 0x200;
/// Bytes of a register, and what a window is aligned to.
const REGISTER_BYTES: u64 = 4;

const MAGIC_VALUE: usize = 0x00;
const VERSION: usize = 0x04;
const DEVICE_ID: usize = 0x08;
const FEATURES: usize = 0x10;
const FEATURES_SELECT: usize = 0x14;
const ACCEPTED: usize = 0x20;
const ACCEPTED_SELECT: usize = 0x24;
const LEGACY_PAGE_SIZE: usize = 0x28;
const QUEUE_SELECT: usize = 0x30;
const QUEUE_SIZE_MAX: usize = 0x34;
const QUEUE_SIZE: usize = 0x38;
const LEGACY_QUEUE_ALIGN: usize = 0x3c;
const LEGACY_QUEUE_PAGE: usize = 0x40;
const QUEUE_READY: usize = 0x44;
const QUEUE_NOTIFY: usize = 0x50;
const INTERRUPT_STATUS: usize = 0x60;
const INTERRUPT_ACKNOWLEDGE: usize = 0x64;
const STATUS: usize = 0x70;
const QUEUE_DESCRIPTORS: usize = 0x80;
const QUEUE_AVAILABLE: usize = 0x90;
const QUEUE_USED: usize = 0xa0;
const GENERATION: usize = 0xfc;

/// Why a window is no transport.
pub(crate) enum MmioError {
    /// There is no device there: not worth a word.
    Empty,
    /// There is one that cannot be used.
    Virtio(VirtioError),
}

/// The transport.
pub(crate) struct MmioTransport {
    registers: Rc<dyn Registers>,
    legacy: bool,
}

impl MmioTransport {
    /// The transport of the device in `window`.
    pub(crate) fn new(hal: &dyn Hal, window: &MmioWindow) -> Result<MmioTransport, MmioError> {
        if window.len < WINDOW_MIN {
            return Err(MmioError::Virtio(VirtioError::Unsupported("its window is too short")));
        }
        if !window.address.is_multiple_of(REGISTER_BYTES) {
            return Err(MmioError::Virtio(VirtioError::Unsupported("its window is not aligned")));
        }
        let unmapped = MmioError::Virtio(VirtioError::Unsupported("its registers cannot be mapped"));
        let registers = hal.registers(window.address, window.len as usize).ok_or(unmapped)?;
        if registers.read32(MAGIC_VALUE) != MAGIC || registers.read32(DEVICE_ID) == 0 {
            return Err(MmioError::Empty);
        }
        let legacy = match registers.read32(VERSION) {
            1 => true,
            2 => false,
            _ => return Err(MmioError::Virtio(VirtioError::Unsupported("its version is unknown"))),
        };
        Ok(MmioTransport { registers, legacy })
    }
}

impl Transport for MmioTransport {
    fn kind(&self) -> u32 {
        self.registers.read32(DEVICE_ID)
    }

    fn is_legacy(&self) -> bool {
        self.legacy
    }

    fn features(&self) -> u64 {
        self.registers.write32(FEATURES_SELECT, 0);
        let low = self.registers.read32(FEATURES);
        self.registers.write32(FEATURES_SELECT, 1);
        u64::from(low) | u64::from(self.registers.read32(FEATURES)) << 32
    }

    fn accept(&self, features: u64) {
        if self.legacy {
            self.registers.write32(LEGACY_PAGE_SIZE, PAGE_SIZE as u32);
        }
        self.registers.write32(ACCEPTED_SELECT, 0);
        self.registers.write32(ACCEPTED, features as u32);
        if !self.legacy {
            self.registers.write32(ACCEPTED_SELECT, 1);
            self.registers.write32(ACCEPTED, (features >> 32) as u32);
        }
    }

    fn is_present(&self) -> bool {
        self.registers.read32(MAGIC_VALUE) == MAGIC
    }

    fn status(&self) -> u8 {
        self.registers.read32(STATUS) as u8
    }

    fn set_status(&self, status: u8) {
        self.registers.write32(STATUS, status.into());
    }

    fn queue_size_max(&self, index: u16) -> u16 {
        self.registers.write32(QUEUE_SELECT, index.into());
        self.registers.read32(QUEUE_SIZE_MAX).min(1 << 15) as u16
    }

    fn set_queue(&self, index: u16, addresses: &QueueAddresses) -> Result<(), VirtioError> {
        self.registers.write32(QUEUE_SELECT, index.into());
        self.registers.write32(QUEUE_SIZE, addresses.size.into());
        if self.legacy {
            // The parts follow from the first page's number and the alignment: `queue` lays them out that way.
            let page = u32::try_from(addresses.descriptors / PAGE_SIZE as u64)
                .map_err(|_| VirtioError::Unsupported("its rings lie too high for the legacy interface"))?;
            self.registers.write32(LEGACY_QUEUE_ALIGN, PAGE_SIZE as u32);
            self.registers.write32(LEGACY_QUEUE_PAGE, page);
        } else {
            self.registers.write64(QUEUE_DESCRIPTORS, addresses.descriptors);
            self.registers.write64(QUEUE_AVAILABLE, addresses.available);
            self.registers.write64(QUEUE_USED, addresses.used);
            self.registers.write32(QUEUE_READY, 1);
        }
        Ok(())
    }

    fn notify(&self, index: u16) {
        self.registers.write32(QUEUE_NOTIFY, index.into());
    }

    fn look_interval(&self) -> Option<Duration> {
        Some(LINE_LOOK_INTERVAL)
    }

    fn acknowledge_interrupt(&self) {
        let pending = self.registers.read32(INTERRUPT_STATUS);
        if pending != 0 {
            self.registers.write32(INTERRUPT_ACKNOWLEDGE, pending);
        }
    }

    fn config8(&self, offset: usize) -> u8 {
        let at = CONFIG + offset;
        if at < self.registers.size() { self.registers.read8(at) } else { 0 }
    }

    fn config32(&self, offset: usize) -> u32 {
        let at = CONFIG + offset;
        if at + 4 <= self.registers.size() { self.registers.read32(at) } else { 0 }
    }

    fn set_config8(&self, offset: usize, value: u8) {
        if CONFIG + offset < self.registers.size() {
            self.registers.write8(CONFIG + offset, value);
        }
    }

    fn config_generation(&self) -> u32 {
        if self.legacy { 0 } else { self.registers.read32(GENERATION) }
    }

    fn cut_off(&self) -> bool {
        // The only means is the reset; it is certain when the device says so.
        self.set_status(0);
        self.status() == 0
    }
}
