//! The controller's register file (NVMe Base 2.0 §3.1.3).

use crate::hal::Registers;
use core::time::Duration;

pub(crate) const CAP: usize = 0x00;
pub(crate) const VS: usize = 0x08;
pub(crate) const CC: usize = 0x14;
pub(crate) const CSTS: usize = 0x1c;
pub(crate) const AQA: usize = 0x24;
pub(crate) const ASQ: usize = 0x28;
pub(crate) const ACQ: usize = 0x30;
/// First doorbell.
pub(crate) const DOORBELLS: usize = 0x1000;

/// Enable.
pub(crate) const CC_EN: u32 = 1;
/// Enabled with 64-byte submission and 16-byte completion entries, 4 KiB pages, round robin, NVM command set.
pub(crate) const CC_RUN: u32 = CC_EN | 6 << 16 | 4 << 20;

/// Announces a normal shutdown.
pub(crate) const CC_SHUTDOWN: u32 = 1 << 14;

/// A read of a device that is no longer there.
const ALL_ONES: u32 = u32::MAX;

/// The capabilities register, as far as it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Most entries of an I/O queue.
    pub(crate) queue_entries_max: u32,
    /// Bytes between doorbells.
    pub(crate) doorbell_stride: usize,
    /// Longest wait for ready to change.
    pub(crate) ready_timeout: Duration,
    /// Smallest page the controller can use, in bytes.
    pub(crate) page_min: u64,
    /// Whether the NVM command set is there.
    pub(crate) nvm_commands: bool,
}

/// Least time given to a controller whatever it claims: an emulated one may not get the CPU for seconds.
const READY_TIMEOUT_MIN: Duration = Duration::from_secs(10);

impl Capabilities {
    pub(crate) fn read(registers: &dyn Registers) -> Capabilities {
        let cap = registers.read64(CAP);
        Capabilities {
            queue_entries_max: (cap & 0xffff) as u32 + 1,
            doorbell_stride: 4 << (cap >> 32 & 0xf),
            ready_timeout: (Duration::from_millis(500) * (cap >> 24 & 0xff) as u32).max(READY_TIMEOUT_MIN),
            page_min: 1 << (12 + (cap >> 48 & 0xf)),
            nvm_commands: cap >> 37 & 1 != 0,
        }
    }
}

/// The status register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ControllerStatus {
    NotReady,
    Ready,
    /// A fatal error: only a reset helps.
    Failed,
    /// Reads answer with all ones.
    Gone,
}

impl ControllerStatus {
    pub(crate) fn read(registers: &dyn Registers) -> ControllerStatus {
        match registers.read32(CSTS) {
            ALL_ONES => ControllerStatus::Gone,
            status if status & 2 != 0 => ControllerStatus::Failed,
            status if status & 1 != 0 => ControllerStatus::Ready,
            _ => ControllerStatus::NotReady,
        }
    }
}

/// Whether an announced shutdown is complete, or the device is gone.
pub(crate) fn is_shut_down(registers: &dyn Registers) -> bool {
    let status = registers.read32(CSTS);
    status == ALL_ONES || status >> 2 & 3 == 2
}
