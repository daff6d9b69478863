//! The engine: the database under the filesystem. Trees of keys, transactions over them, space for data.
//!
//! Everything above (namespace, extents, page cache) sees this door only:
//!
//! - [`Engine::transact`] runs a body that reads and queues updates, and commits it atomically;
//! - [`Engine::durable`] waits until a commit is on media;
//! - [`Engine::reserve`], [`Engine::write_data`], [`Engine::read_data`] place and fetch the bytes of files.

use crate::tx::{Class, Tx};
use crate::vfs::{FsError, FsResult, PoolInfo, Seq};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use moraine_platform::{BLOCK_SIZE, Buf, Platform};

mod memory;

/// A handle on the engine; clones share it.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Rc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) platform: Platform,
    pool: PoolInfo,
    pub(crate) state: RefCell<memory::State>,
}

/// A place on a device where data lies, as extent keys refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Device index in the pool.
    pub device: u8,
    /// Generation of the bucket when it was claimed.
    pub generation: u32,
    /// Byte offset on the device; a multiple of the block size.
    pub offset: u64,
    /// Bytes; a multiple of the block size. All of them lie in one bucket.
    pub len: u32,
}

/// What kind of data is placed: each kind fills buckets of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// File content written by users.
    User,
    /// Content moved by background work.
    Moved,
}

/// Space promised to a writer: allocation from it never answers `NoSpace`. What is not used goes back on drop.
pub struct SpaceReservation {
    owner: Rc<Inner>,
    bytes: u64,
}

impl SpaceReservation {
    /// Bytes left in it.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Splits `bytes` off into a reservation of their own; fewer if fewer are left.
    pub fn split(&mut self, bytes: u64) -> SpaceReservation {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        SpaceReservation { owner: self.owner.clone(), bytes }
    }

    /// Adds another reservation to this one.
    pub fn merge(&mut self, mut other: SpaceReservation) {
        self.bytes += core::mem::take(&mut other.bytes);
    }
}

impl Drop for SpaceReservation {
    fn drop(&mut self) {
        self.owner.state.borrow_mut().reserved -= self.bytes;
    }
}

/// Data on a device, not yet referred to by a key. Hand `dep` to [`Tx::data_written`] in the transaction that
/// inserts the extent keys: the commit is durable only after the data is.
pub struct WrittenData {
    /// Where it lies, in order of the data; more than one if it did not fit one bucket.
    pub places: Vec<Placed>,
    /// What a durable commit that refers to it must wait for.
    pub dep: DataDep,
}

/// Data writes that a commit depends on.
#[derive(Clone, Debug, Default)]
pub struct DataDep;

/// Space of the pool in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Usable for data and metadata.
    pub total: u64,
    /// Not in use.
    pub free: u64,
    /// Free and not reserved: what a writer can still get.
    pub available: u64,
}

impl Engine {
    /// Runs `body` and commits what it queued: all of it or nothing, at one point of the pool's history.
    ///
    /// The body may run several times: it is started again when something it read has changed before the commit. So
    /// it must have no side effect but through its [`Tx`]. An error from the body queues nothing and is returned,
    /// once what it read is known to be still true.
    ///
    /// There is no await between the commit point and the return of this function: the caller continues in the same
    /// synchronous step, and may update state in memory that must change together with the keys.
    pub async fn transact<T>(
        &self,
        class: Class,
        mut body: impl AsyncFnMut(&mut Tx) -> FsResult<T>,
    ) -> FsResult<(T, Seq)> {
        loop {
            let mut tx = Tx::new(self.clone(), class);
            let result = body(&mut tx).await;
            match tx.finish(result).await? {
                Some(done) => return Ok(done),
                None => continue,
            }
        }
    }

    /// Waits until the commit `seq` and all before it are on media, with the data they refer to.
    pub async fn durable(&self, _seq: Seq) -> FsResult<()> {
        Ok(())
    }

    /// The number of the last commit.
    pub fn last_seq(&self) -> Seq {
        Seq(self.inner.state.borrow().seq)
    }

    /// Promises `bytes` of space for data, or [`FsError::NoSpace`].
    pub fn reserve(&self, bytes: u64) -> FsResult<SpaceReservation> {
        let mut state = self.inner.state.borrow_mut();
        if state.free.saturating_sub(state.reserved) < bytes {
            return Err(FsError::NoSpace);
        }
        state.reserved += bytes;
        Ok(SpaceReservation { owner: self.inner.clone(), bytes })
    }

    /// Allocates space for `data` (whole blocks) out of `reservation` and writes it there.
    pub async fn write_data(
        &self,
        _kind: DataKind,
        data: Buf,
        reservation: &mut SpaceReservation,
    ) -> FsResult<WrittenData> {
        assert!(data.len().is_multiple_of(BLOCK_SIZE), "data is written in whole blocks");
        assert!(reservation.bytes >= data.len() as u64, "data is written from a reservation that covers it");
        let mut state = self.inner.state.borrow_mut();
        reservation.bytes -= data.len() as u64;
        state.reserved -= data.len() as u64;
        state.free -= data.len() as u64;
        let offset = state.place(&data);
        let place = Placed { device: 0, generation: 0, offset, len: data.len() as u32 };
        Ok(WrittenData { places: alloc::vec![place], dep: DataDep })
    }

    /// Reads `len` bytes at `place.offset + skip` (whole blocks) as they are on the device; the caller verifies them.
    ///
    /// The place must come from a key read *in the same synchronous step* as this call: from the call on the bucket
    /// is protected against reuse until the read ends.
    pub async fn read_data(&self, place: Placed, skip: u32, len: u32) -> FsResult<Buf> {
        assert!(skip + len <= place.len, "a read lies within its extent");
        self.inner.state.borrow().fetch(place.offset, skip as usize, len as usize)
    }

    /// Space of the pool.
    pub fn space(&self) -> Space {
        let state = self.inner.state.borrow();
        Space { total: state.total, free: state.free, available: state.free - state.reserved }
    }

    /// What the pool is.
    pub fn pool(&self) -> &PoolInfo {
        &self.inner.pool
    }

    /// The world it runs in.
    pub fn platform(&self) -> &Platform {
        &self.inner.platform
    }

    /// An engine without a disk, for tests of what is above it: nothing survives it.
    pub fn in_memory(platform: Platform, total: u64) -> Engine {
        let pool = PoolInfo { pool_id: [7; 16], handle_key: [9; 16], boot_epoch: 1 };
        let state = RefCell::new(memory::State::new(total));
        Engine { inner: Rc::new(Inner { platform, pool, state }) }
    }
}
