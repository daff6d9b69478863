//! A disk whose writes go nowhere: what is written is kept in memory, laid over the disk below, and gone at the end.
//!
//! A check mounts a pool, and mounting writes. Over this device it does so without one byte of the disk changing; the
//! disk below may be opened for reading only.

use moraine_platform::{BlockDevice, Buf, DeviceInfo, Fua, IoDone, IoError, IoFuture};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Bytes kept at most: far more than mounting writes.
const KEPT_BYTES_MAX: u64 = 256 << 20;

/// A disk with what was written over it.
pub struct Overlay {
    below: Rc<dyn BlockDevice>,
    info: DeviceInfo,
    /// Logical blocks by number.
    kept: Rc<RefCell<BTreeMap<u64, Box<[u8]>>>>,
}

impl Overlay {
    /// Lays an empty overlay over a disk.
    pub fn new(below: Rc<dyn BlockDevice>) -> Overlay {
        let info = DeviceInfo {
            read_only: false,
            volatile_cache: false,
            fua: false,
            discard: false,
            ..below.info().clone()
        };
        Overlay { below, info, kept: Rc::default() }
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let block = u64::from(self.info.logical_block);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.info.size);
        let aligned = offset.is_multiple_of(block) && len.is_multiple_of(block);
        if inside && aligned { Ok(()) } else { Err(IoError::Invalid) }
    }

    fn keep<'b>(&self, offset: u64, blocks: impl Iterator<Item = &'b [u8]>) -> Result<(), IoError> {
        let block = u64::from(self.info.logical_block);
        let mut kept = self.kept.borrow_mut();
        for (number, bytes) in (offset / block..).zip(blocks) {
            if kept.len() as u64 * block >= KEPT_BYTES_MAX && !kept.contains_key(&number) {
                return Err(IoError::Device);
            }
            kept.insert(number, bytes.into());
        }
        Ok(())
    }
}

impl BlockDevice for Overlay {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read(&self, offset: u64, buf: Buf) -> IoFuture<IoDone> {
        let block = u64::from(self.info.logical_block);
        let (kept, reading) = (self.kept.clone(), self.below.read(offset, buf));
        Box::pin(async move {
            let mut done = reading.await;
            let blocks = offset / block..(offset + done.buf.len() as u64) / block;
            let kept = kept.borrow();
            let mut covered = 0;
            for (number, bytes) in kept.range(blocks.clone()) {
                let at = ((number - blocks.start) * block) as usize;
                done.buf[at..at + bytes.len()].copy_from_slice(bytes);
                covered += 1;
            }
            // What cannot be read below does not matter where all of it was written since.
            if done.result != Err(IoError::Invalid)
                && !blocks.is_empty()
                && covered == blocks.end - blocks.start
            {
                done.result = Ok(());
            }
            done
        })
    }

    fn write(&self, offset: u64, buf: Buf, _: Fua) -> IoFuture<IoDone> {
        let checked = self.check(offset, buf.len() as u64);
        let result = checked.and_then(|()| self.keep(offset, buf.chunks(self.info.logical_block as usize)));
        Box::pin(std::future::ready(IoDone { buf, result }))
    }

    fn flush(&self) -> IoFuture<Result<(), IoError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn discard(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        Box::pin(std::future::ready(self.check(offset, len)))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        let zeroes = vec![0; self.info.logical_block as usize];
        let count = (len / u64::from(self.info.logical_block)) as usize;
        let result = self
            .check(offset, len)
            .and_then(|()| self.keep(offset, std::iter::repeat_n(zeroes.as_slice(), count)));
        Box::pin(std::future::ready(result))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::{FileDisk, OpenMode, run};

    #[test]
    fn writes_are_seen_and_never_reach_the_disk() {
        let path = std::env::temp_dir().join(format!("moraine-overlay-{}", std::process::id()));
        std::fs::write(&path, [7; 16384]).unwrap();
        run(async |_| {
            let disk = Overlay::new(Rc::new(FileDisk::open(&path, OpenMode::Read).unwrap()));
            assert!(!disk.info().read_only);
            let written = disk.write(1024, Buf::copy_of(&[9; 1024]).unwrap(), Fua::Yes).await;
            assert_eq!(written.result, Ok(()));
            disk.write_zeroes(4096, 512).await.unwrap();
            disk.discard(0, 4096).await.unwrap();
            disk.flush().await.unwrap();
            let read = disk.read(512, Buf::zeroed(4608).unwrap()).await;
            assert_eq!(read.result, Ok(()));
            let expected = [vec![7; 512], vec![9; 1024], vec![7; 2048], vec![0; 512], vec![7; 512]].concat();
            assert_eq!(read.buf[..], expected);
            for (offset, len) in [(1, 512), (0, 100), (16384, 512), (u64::MAX - 511, 512)] {
                let refused = disk.write(offset, Buf::zeroed(len).unwrap(), Fua::No).await;
                assert_eq!(refused.result, Err(IoError::Invalid));
            }
        })
        .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [7; 16384]);
        std::fs::remove_file(path).unwrap();
    }
}
