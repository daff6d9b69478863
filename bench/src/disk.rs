//! A block device whose commands run in the caller's thread, past the system's cache: so that what is measured is the
//! filesystem, not how work goes from thread to thread. The price is that no command overlaps another.

use moraine_platform::{BlockDevice, Buf, DeviceInfo, Fua, IoDone, IoError, IoFuture};
use rustix::fs::OFlags;
use rustix::io::{ReadWriteFlags, pwritev2};
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Largest transfer, in bytes.
const TRANSFER_MAX: u32 = 1 << 20;
/// Smallest transfer, in bytes.
const LOGICAL_BLOCK: u32 = 4096;

pub(crate) struct Inline {
    file: File,
    info: DeviceInfo,
}

impl Inline {
    pub(crate) fn open(path: &Path) -> Inline {
        let direct = OFlags::DIRECT.bits() as i32;
        let mut file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path).unwrap();
        let size = file.seek(SeekFrom::End(0)).unwrap();
        let info = DeviceInfo {
            name: path.display().to_string(),
            identity: String::new(),
            size,
            logical_block: LOGICAL_BLOCK,
            physical_block: LOGICAL_BLOCK,
            max_transfer: TRANSFER_MAX,
            queue_depth: 32,
            volatile_cache: true,
            fua: true,
            discard: false,
            read_only: false,
        };
        Inline { file, info }
    }

    /// Writes a copy of `bytes`.
    pub(crate) fn write_now(&self, offset: u64, bytes: &[u8]) {
        let buf = Buf::copy_of(bytes).expect("memory");
        self.file.write_all_at(&buf, offset).expect("the device works");
    }

    /// Makes what was written durable.
    pub(crate) fn flush_now(&self) {
        self.file.sync_data().expect("the device works");
    }

    fn write_through(&self, buf: &Buf, offset: u64) -> Result<(), IoError> {
        let written = pwritev2(&self.file, &[IoSlice::new(buf)], offset, ReadWriteFlags::DSYNC);
        if written == Ok(buf.len()) { Ok(()) } else { Err(IoError::Device) }
    }
}

fn ready<T: 'static>(value: T) -> IoFuture<T> {
    Box::pin(std::future::ready(value))
}

impl BlockDevice for Inline {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buf: Buf) -> IoFuture<IoDone> {
        let result = self.file.read_exact_at(&mut buf, offset).map_err(|_| IoError::Device);
        ready(IoDone { buf, result })
    }

    fn write(&self, offset: u64, buf: Buf, fua: Fua) -> IoFuture<IoDone> {
        let result = match fua {
            Fua::No => self.file.write_all_at(&buf, offset).map_err(|_| IoError::Device),
            Fua::Yes => self.write_through(&buf, offset),
        };
        ready(IoDone { buf, result })
    }

    fn flush(&self) -> IoFuture<Result<(), IoError>> {
        ready(self.file.sync_data().map_err(|_| IoError::Device))
    }

    fn discard(&self, _: u64, _: u64) -> IoFuture<Result<(), IoError>> {
        ready(Ok(()))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        let mut at = offset;
        while at < offset + len {
            let n = (offset + len - at).min(u64::from(TRANSFER_MAX));
            let zeroes = Buf::zeroed(n as usize).expect("memory");
            if self.file.write_all_at(&zeroes, at).is_err() {
                return ready(Err(IoError::Device));
            }
            at += n;
        }
        ready(Ok(()))
    }
}
