//! What a virtio device offers over either bus, and how its life begins (virtio 1.2 §3.1).

use crate::hal::Hal;
use core::time::Duration;
use moraine_platform::OutOfMemory;

pub(crate) const STATUS_ACKNOWLEDGE: u8 = 1;
pub(crate) const STATUS_DRIVER: u8 = 2;
pub(crate) const STATUS_DRIVER_OK: u8 = 4;
pub(crate) const STATUS_FEATURES_OK: u8 = 8;
pub(crate) const STATUS_NEEDS_RESET: u8 = 0x40;

/// Feature bits common to all devices.
pub(crate) mod feature {
    /// Descriptors may live in a table of their own.
    pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
    /// Each side says at which index it wants to be notified.
    pub(crate) const EVENT_IDX: u64 = 1 << 29;
    /// The device is a modern one.
    pub(crate) const VERSION_1: u64 = 1 << 32;
    /// The device goes through the platform's translation, which is the identity here.
    pub(crate) const ACCESS_PLATFORM: u64 = 1 << 33;
}

/// Wanted of every device.
const COMMON: u64 =
    feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1 | feature::ACCESS_PLATFORM;

/// How long a device may take to reset.
pub(crate) const RESET_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a device cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VirtioError {
    /// It did not reset.
    Reset,
    /// It refused the features chosen from its own offer.
    Features,
    /// Something about it is missing or senseless.
    Unsupported(&'static str),
    /// No memory for its rings.
    Memory,
}

impl core::fmt::Display for VirtioError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            VirtioError::Reset => "it did not reset",
            VirtioError::Features => "it refused features that it offers",
            VirtioError::Unsupported(what) => what,
            VirtioError::Memory => "out of memory",
        })
    }
}

impl From<OutOfMemory> for VirtioError {
    fn from(_: OutOfMemory) -> VirtioError {
        VirtioError::Memory
    }
}

/// Bus addresses of a virtqueue's three parts, and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueAddresses {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// A bus under a virtio device.
pub(crate) trait Transport {
    /// Which kind of device: virtio's device id.
    fn kind(&self) -> u32;
    /// Whether the device speaks the interface from before virtio 1.0.
    fn is_legacy(&self) -> bool;
    /// Features offered.
    fn features(&self) -> u64;
    /// Features accepted.
    fn accept(&self, features: u64);
    /// Whether the device was not taken away.
    fn is_present(&self) -> bool;
    /// Device status.
    fn status(&self) -> u8;
    /// Sets device status; 0 asks for a reset, which is through once `status` reads 0.
    fn set_status(&self, status: u8);
    /// Largest size of queue `index`; 0 if there is no such queue.
    fn queue_size_max(&self, index: u16) -> u16;
    /// Hands a queue over.
    fn set_queue(&self, index: u16, addresses: &QueueAddresses) -> Result<(), VirtioError>;
    /// Tells the device that queue `index` has new buffers.
    fn notify(&self, index: u16);
    /// How often the device must be looked at while something is expected of it; none if its interrupts suffice.
    fn look_interval(&self) -> Option<Duration>;
    /// Takes the interrupt line down where there is one that has to be.
    fn acknowledge_interrupt(&self);
    /// Reads a byte of device configuration; zero past its end.
    fn config8(&self, offset: usize) -> u8;
    /// Reads 32 bits of device configuration; zero past its end.
    fn config32(&self, offset: usize) -> u32;
    /// Writes a byte of device configuration.
    fn set_config8(&self, offset: usize, value: u8);
    /// Changes whenever the configuration does.
    fn config_generation(&self) -> u32;
    /// Makes sure that the device does not touch memory any more; whether that is certain.
    fn cut_off(&self) -> bool;

    /// Reads 16 bits of device configuration.
    fn config16(&self, offset: usize) -> u16 {
        u16::from(self.config8(offset)) | u16::from(self.config8(offset + 1)) << 8
    }

    /// Reads 64 bits of device configuration, in one state of it.
    fn config64(&self, offset: usize) -> u64 {
        let mut generation = self.config_generation();
        // A configuration that changes at each look is a broken device's; the last look is as good as any.
        for _ in 0..16 {
            let value = u64::from(self.config32(offset)) | u64::from(self.config32(offset + 4)) << 32;
            let after = self.config_generation();
            if after == generation {
                return value;
            }
            generation = after;
        }
        u64::from(self.config32(offset)) | u64::from(self.config32(offset + 4)) << 32
    }
}

/// Resets the device, waiting for it.
pub(crate) fn reset(hal: &dyn Hal, transport: &dyn Transport) -> Result<(), VirtioError> {
    transport.set_status(0);
    let deadline = hal.now() + RESET_TIMEOUT;
    while transport.status() != 0 {
        if hal.now() >= deadline {
            return Err(VirtioError::Reset);
        }
        hal.relax();
    }
    Ok(())
}

/// After a reset: accepts those of the device's features that are in `wanted` or common to all; which they are.
/// The caller sets up its queues next, then says [`drive`].
pub(crate) fn negotiate(transport: &dyn Transport, wanted: u64) -> Result<u64, VirtioError> {
    transport.set_status(STATUS_ACKNOWLEDGE);
    transport.set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    let mut features = transport.features() & (wanted | COMMON);
    if transport.is_legacy() {
        features &= u64::from(u32::MAX);
        transport.accept(features);
        return Ok(features);
    }
    if features & feature::VERSION_1 == 0 {
        return Err(VirtioError::Unsupported("it does not speak virtio 1.0"));
    }
    transport.accept(features);
    let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
    transport.set_status(status);
    if transport.status() & STATUS_FEATURES_OK == 0 {
        return Err(VirtioError::Features);
    }
    Ok(features)
}

/// Lets the device run.
pub(crate) fn drive(transport: &dyn Transport) {
    let features_ok = if transport.is_legacy() { 0 } else { STATUS_FEATURES_OK };
    transport.set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER | features_ok | STATUS_DRIVER_OK);
}
