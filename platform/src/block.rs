//! Block devices: what the filesystem asks of a disk, and what a disk promises in return.

use crate::Buf;
use alloc::boxed::Box;
use alloc::string::String;
use core::fmt;
use core::future::Future;
use core::pin::Pin;

/// A device command under way. Dropping it *detaches*: the command still runs and the device keeps the buffer
/// until it is complete.
pub type IoFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// A finished transfer: the buffer comes back whatever the result.
#[derive(Debug)]
pub struct IoDone {
    /// The buffer handed in with the command.
    pub buf: Buf,
    /// What became of the command.
    pub result: Result<(), IoError>,
}

/// Whether a write must be on media, past the volatile cache, when it completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fua {
    /// Completion says nothing about durability; a later flush does.
    No,
    /// Force unit access: this write (and nothing else) is durable on completion. Only where [`DeviceInfo::fua`].
    Yes,
}

/// Why a device command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoError {
    /// The device reported a media error: the data there cannot be read or written.
    Media,
    /// The command was malformed: past the end, misaligned or not supported by this device.
    Invalid,
    /// The device did not answer in time. A write may still land later; its range is quarantined by the driver
    /// until the controller was reset.
    Timeout,
    /// The device is gone.
    Gone,
    /// Anything else the device reported.
    Device,
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IoError::Media => "media error",
            IoError::Invalid => "invalid command",
            IoError::Timeout => "command timed out",
            IoError::Gone => "device is gone",
            IoError::Device => "device error",
        })
    }
}

/// What a device is and can do. Lengths are bytes.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// How people find it: `nvme0n1`, `vda`, a file's path.
    pub name: String,
    /// Model and serial number as the device tells them; may be empty.
    pub identity: String,
    /// Capacity.
    pub size: u64,
    /// Smallest unit of transfer; a power of two, 512 ..= 4096.
    pub logical_block: u32,
    /// Unit the device writes without read-modify-write; a power of two ≥ `logical_block`.
    pub physical_block: u32,
    /// Largest single transfer; at least 128 KiB. Callers split above it.
    pub max_transfer: u32,
    /// Commands the device can have in flight.
    pub queue_depth: u32,
    /// Whether completed writes may still be lost at a power cut until a flush. Without it `flush` is a no-op.
    pub volatile_cache: bool,
    /// Whether writes with [`Fua::Yes`] are supported natively.
    pub fua: bool,
    /// Whether `discard` does something.
    pub discard: bool,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// A disk. All commands are submitted when called (not when first polled) and may complete in any order.
///
/// The durability contract: completion of a write is not durability. A flush covers exactly the writes which had
/// *completed before the flush was submitted*. [`Fua::Yes`] covers its own write only.
///
/// Offsets and lengths are bytes, multiples of [`DeviceInfo::logical_block`]; a command that is not, or that goes
/// past the end, fails with [`IoError::Invalid`] and has no effect.
pub trait BlockDevice {
    /// What it is; constant while the device lives.
    fn info(&self) -> &DeviceInfo;

    /// Reads `buf.len()` bytes at `offset` into `buf`.
    fn read(&self, offset: u64, buf: Buf) -> IoFuture<IoDone>;

    /// Writes all of `buf` at `offset`. A power cut may tear it at any logical block.
    fn write(&self, offset: u64, buf: Buf, fua: Fua) -> IoFuture<IoDone>;

    /// Makes every write that completed before this call durable. After an error nothing written since the last
    /// successful flush may be believed.
    fn flush(&self) -> IoFuture<Result<(), IoError>>;

    /// Says that the range's content is no longer needed; reading it afterwards yields anything.
    fn discard(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>>;

    /// Makes the range read as zeroes.
    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>>;
}
