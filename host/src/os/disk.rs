//! A file or a block device as a disk.
//!
//! Commands run as positioned reads and writes on the pool of blocking threads. Completed writes sit in the
//! system's page cache, which is this device's volatile cache: `flush` is `fdatasync`, and a forced write carries
//! `RWF_DSYNC`. An image is locked while it is open, so that no two processes work on one pool.

use moraine_platform::{BlockDevice, Buf, DeviceInfo, Fua, IoDone, IoError, IoFuture};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Smallest transfer on a plain file, in bytes.
const FILE_BLOCK: u32 = 512;
/// What a plain file's filesystem writes without reading first, in bytes.
const FILE_PHYSICAL_BLOCK: u32 = 4096;
/// Largest transfer, in bytes.
const TRANSFER_MAX: u32 = 1 << 20;
/// Commands that are worth having in flight.
const QUEUE_DEPTH: u32 = 32;
/// Zeroes are written in pieces of this many bytes where the file cannot make them itself.
const ZERO_CHUNK: usize = 1 << 20;

/// What a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading only; others may read too.
    Read,
    /// Reading and writing; nobody else may have it open.
    Write,
}

/// Why a disk could not be opened.
#[derive(Debug)]
pub struct DiskError {
    /// Which one.
    pub path: PathBuf,
    /// What went wrong.
    pub kind: DiskErrorKind,
}

/// What can be wrong with a disk.
#[derive(Debug)]
pub enum DiskErrorKind {
    /// Another process has it open.
    InUse,
    /// It is a directory, a socket or something else that stores no blocks.
    NotADisk,
    /// The system said no.
    System(io::Error),
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        match &self.kind {
            DiskErrorKind::InUse => f.write_str("in use by another process"),
            DiskErrorKind::NotADisk => f.write_str("neither a file nor a block device"),
            DiskErrorKind::System(e) => write!(f, "{e}"),
        }
    }
}

impl std::error::Error for DiskError {}

/// An open, locked file or block device.
pub struct FileDisk {
    file: Arc<File>,
    info: DeviceInfo,
}

impl FileDisk {
    /// Opens `path` and locks it.
    pub fn open(path: &Path, mode: OpenMode) -> Result<FileDisk, DiskError> {
        let fail = |kind| DiskError { path: path.to_owned(), kind };
        FileDisk::try_open(path, mode).map_err(fail)
    }

    fn try_open(path: &Path, mode: OpenMode) -> Result<FileDisk, DiskErrorKind> {
        let write = mode == OpenMode::Write;
        let mut file =
            OpenOptions::new().read(true).write(write).open(path).map_err(DiskErrorKind::System)?;
        let kind = file.metadata().map_err(DiskErrorKind::System)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskErrorKind::NotADisk);
        }
        let locked = if write { file.try_lock() } else { file.try_lock_shared() };
        locked.map_err(|e| match e {
            TryLockError::WouldBlock => DiskErrorKind::InUse,
            TryLockError::Error(e) => DiskErrorKind::System(e),
        })?;
        let size = file.seek(SeekFrom::End(0)).map_err(DiskErrorKind::System)?;
        let (logical, physical) = if kind.is_block_device() {
            let system = |e: Errno| DiskErrorKind::System(e.into());
            (
                rustix::fs::ioctl_blksszget(&file).map_err(system)?,
                rustix::fs::ioctl_blkpbszget(&file).map_err(system)?,
            )
        } else {
            (FILE_BLOCK, FILE_PHYSICAL_BLOCK)
        };
        let info = DeviceInfo {
            name: path.display().to_string(),
            identity: String::new(),
            size: size - size % u64::from(logical),
            logical_block: logical,
            physical_block: physical.max(logical),
            max_transfer: TRANSFER_MAX,
            queue_depth: QUEUE_DEPTH,
            volatile_cache: true,
            fua: true,
            discard: true,
            read_only: !write,
        };
        Ok(FileDisk { file: Arc::new(file), info })
    }

    /// Makes the file at `path` if it is missing, `size` bytes long and without any block of its own.
    pub fn make_missing(path: &Path, size: u64) -> Result<(), DiskError> {
        let made = match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => file.set_len(size),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) => Err(e),
        };
        made.map_err(|e| DiskError { path: path.to_owned(), kind: DiskErrorKind::System(e) })
    }

    /// Whether a command may be sent to the disk as it is.
    fn check(&self, offset: u64, len: u64, kind: Command) -> Result<(), IoError> {
        let block = u64::from(self.info.logical_block);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.info.size);
        let aligned = offset.is_multiple_of(block) && len.is_multiple_of(block);
        let fits = kind.is_range() || len <= u64::from(self.info.max_transfer);
        let allowed = kind == Command::Read || !self.info.read_only;
        if inside && aligned && fits && allowed { Ok(()) } else { Err(IoError::Invalid) }
    }

    /// Runs `command` on the pool, starting now.
    fn start<T: Send + 'static>(
        &self,
        command: impl FnOnce(&File) -> T + Send + 'static,
        if_lost: impl FnOnce() -> T + 'static,
    ) -> IoFuture<T> {
        let file = self.file.clone();
        let running = tokio::task::spawn_blocking(move || command(&file));
        Box::pin(async move {
            match running.await {
                Ok(value) => value,
                Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                // Only when the runtime shuts down with the command still queued.
                Err(_) => if_lost(),
            }
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    Read,
    Write,
    Discard,
    WriteZeroes,
}

impl Command {
    /// Whether it only names a range and carries no data.
    fn is_range(self) -> bool {
        matches!(self, Command::Discard | Command::WriteZeroes)
    }
}

impl BlockDevice for FileDisk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, mut buf: Buf) -> IoFuture<IoDone> {
        if let Err(e) = self.check(offset, buf.len() as u64, Command::Read) {
            return done(buf, Err(e));
        }
        self.start(
            move |file| {
                let result = file.read_exact_at(&mut buf, offset).map_err(io_error);
                IoDone { buf, result }
            },
            lost,
        )
    }

    fn write(&self, offset: u64, buf: Buf, fua: Fua) -> IoFuture<IoDone> {
        if let Err(e) = self.check(offset, buf.len() as u64, Command::Write) {
            return done(buf, Err(e));
        }
        self.start(
            move |file| {
                let result = match fua {
                    Fua::No => file.write_all_at(&buf, offset).map_err(io_error),
                    Fua::Yes => write_through(file, &buf, offset),
                };
                IoDone { buf, result }
            },
            lost,
        )
    }

    fn flush(&self) -> IoFuture<Result<(), IoError>> {
        if self.info.read_only {
            return Box::pin(std::future::ready(Ok(())));
        }
        self.start(|file| file.sync_data().map_err(io_error), || Err(IoError::Gone))
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        if let Err(e) = self.check(offset, len, Command::Discard) {
            return Box::pin(std::future::ready(Err(e)));
        }
        self.start(
            move |file| {
                // A file that cannot have holes keeps its content: that is a legal discard.
                match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len) {
                    Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
                    Err(_) if len == 0 => Ok(()),
                    Err(e) => Err(io_error(e.into())),
                }
            },
            || Err(IoError::Gone),
        )
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        if let Err(e) = self.check(offset, len, Command::WriteZeroes) {
            return Box::pin(std::future::ready(Err(e)));
        }
        self.start(move |file| zero(file, offset, len), || Err(IoError::Gone))
    }
}

/// A command that never ran: its buffer went down with the runtime.
fn lost() -> IoDone {
    let buf = Buf::zeroed(0).expect("an empty buffer needs no memory");
    IoDone { buf, result: Err(IoError::Gone) }
}

fn done(buf: Buf, result: Result<(), IoError>) -> IoFuture<IoDone> {
    Box::pin(std::future::ready(IoDone { buf, result }))
}

/// Writes so that completion means durability, in one call where the file supports it.
fn write_through(file: &File, bytes: &[u8], offset: u64) -> Result<(), IoError> {
    let mut at = 0;
    while at < bytes.len() {
        let parts = [IoSlice::new(&bytes[at..])];
        match pwritev2(file, &parts, offset + at as u64, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(IoError::Device),
            Ok(n) => at += n,
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                file.write_all_at(&bytes[at..], offset + at as u64).map_err(io_error)?;
                return file.sync_data().map_err(io_error);
            }
            Err(e) => return Err(io_error(e.into())),
        }
    }
    Ok(())
}

fn zero(file: &File, mut offset: u64, mut len: u64) -> Result<(), IoError> {
    if len == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, offset, len) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(e) => return Err(io_error(e.into())),
    }
    let zeroes = vec![0; ZERO_CHUNK.min(usize::try_from(len).unwrap_or(ZERO_CHUNK))];
    while len > 0 {
        let n = len.min(zeroes.len() as u64);
        file.write_all_at(&zeroes[..n as usize], offset).map_err(io_error)?;
        offset += n;
        len -= n;
    }
    Ok(())
}

fn io_error(e: io::Error) -> IoError {
    match e.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::IO) => IoError::Media,
        Some(Errno::INVAL | Errno::BADF) => IoError::Invalid,
        Some(Errno::NODEV | Errno::NXIO) => IoError::Gone,
        Some(Errno::TIMEDOUT) => IoError::Timeout,
        _ => IoError::Device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::run;

    fn scratch(name: &str, size: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("moraine-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        FileDisk::make_missing(&path, size).unwrap();
        path
    }

    #[test]
    fn what_is_written_is_read_back_and_discarded_ranges_stay_readable() {
        let path = scratch("disk", 1 << 20);
        run(async |_| {
            let disk = FileDisk::open(&path, OpenMode::Write).unwrap();
            assert_eq!(disk.info().size, 1 << 20);
            for (offset, fua) in [(0, Fua::No), (8192, Fua::Yes)] {
                let wrote = disk.write(offset, Buf::copy_of(&[7; 4096]).unwrap(), fua).await;
                assert_eq!(wrote.result, Ok(()));
            }
            assert_eq!(disk.flush().await, Ok(()));
            assert_eq!(disk.write_zeroes(8192, 512).await, Ok(()));
            assert_eq!(disk.discard(4096, 4096).await, Ok(()));
            let read = disk.read(0, Buf::zeroed(12288).unwrap()).await;
            assert_eq!(read.result, Ok(()));
            assert!(read.buf[..4096].iter().all(|&b| b == 7));
            assert!(read.buf[8192..8704].iter().all(|&b| b == 0));
            assert!(read.buf[8704..].iter().all(|&b| b == 7));
        })
        .unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn commands_past_the_end_or_misaligned_are_refused_without_effect() {
        let path = scratch("bounds", 8192);
        run(async |_| {
            let disk = FileDisk::open(&path, OpenMode::Write).unwrap();
            for (offset, len) in [(4096, 8192), (u64::MAX - 511, 512), (100, 512), (0, 100)] {
                let wrote = disk.write(offset, Buf::copy_of(&vec![1; len]).unwrap(), Fua::No).await;
                assert_eq!(wrote.result, Err(IoError::Invalid), "{offset}+{len}");
                assert_eq!(wrote.buf.len(), len, "the buffer comes back");
            }
            assert!(std::fs::read(&path).unwrap().iter().all(|&b| b == 0));
            drop(disk);
            let disk = FileDisk::open(&path, OpenMode::Read).unwrap();
            let wrote = disk.write(0, Buf::zeroed(512).unwrap(), Fua::No).await;
            assert_eq!(wrote.result, Err(IoError::Invalid), "opened for reading");
        })
        .unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_image_opens_once() {
        let path = scratch("lock", 8192);
        let first = FileDisk::open(&path, OpenMode::Write).unwrap();
        for mode in [OpenMode::Write, OpenMode::Read] {
            let second = FileDisk::open(&path, mode);
            assert!(matches!(second, Err(DiskError { kind: DiskErrorKind::InUse, .. })));
        }
        drop(first);
        let readers = [FileDisk::open(&path, OpenMode::Read), FileDisk::open(&path, OpenMode::Read)];
        assert!(readers.iter().all(Result::is_ok));
        let kind = FileDisk::open(&std::env::temp_dir(), OpenMode::Read).err().unwrap().kind;
        assert!(matches!(kind, DiskErrorKind::NotADisk), "{kind:?}");
        std::fs::remove_file(path).unwrap();
    }
}
