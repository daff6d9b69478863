//! Space for data: promised, placed, written, read, and kept from reuse while somebody needs it.

use super::{Engine, Inner, Mode};
use crate::btree;
use crate::device::{Deps, DeviceError};
use crate::planted::{self, Fault};
use crate::space::buckets::{Short, Writer};
use crate::space::{collect, discard};
use crate::vfs::{FsError, FsResult};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use moraine_platform::{BLOCK_SIZE, Buf, Fua, IoError, warn};

/// Buckets collected in a row without a free one more before a writer is told that there is no room.
const FRUITLESS_MAX: usize = 32;
/// Buckets of one device a write into which may fail before the device is not believed any more.
const QUARANTINE_MAX: usize = 32;
/// Places at which a piece of data is tried.
const PLACES_MAX: usize = 3;

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

    fn consume(&mut self, bytes: u64) {
        drop(self.split(bytes));
    }
}

impl Drop for SpaceReservation {
    fn drop(&mut self) {
        self.owner.state.borrow_mut().buckets.reserved -= self.bytes;
    }
}

/// New space being got.
pub(crate) type Carving<'a> = Pin<Box<dyn Future<Output = FsResult<(Hold, Placed)>> + 'a>>;

/// Data on a device, not yet referred to by a key. Make it durable with [`Engine::make_data_durable`], then hand `dep` to
/// [`crate::tx::Tx::data_written`] in the transaction that inserts the extent keys.
pub struct WrittenData {
    /// Where it lies, in order of the data; more than one if it did not fit one bucket.
    pub places: Vec<Placed>,
    /// What must be flushed before a commit refers to it. The space stays claimed while this or a clone lives.
    pub dep: DataDep,
}

/// Data as it was put on devices.
struct Put {
    places: Vec<Placed>,
    deps: Deps,
    holds: Vec<Hold>,
}

/// Data writes that a commit depends on.
#[derive(Clone)]
pub struct DataDep(pub(crate) Rc<DataDepInner>);

pub(crate) struct DataDepInner {
    pub(crate) deps: Deps,
    _holds: Vec<Hold>,
}

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

/// Keeps a bucket from being discarded and reused.
pub(crate) struct Hold {
    owner: Rc<Inner>,
    device: u8,
    bucket: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let awaited = {
            let buckets = &mut self.owner.state.borrow_mut().buckets;
            buckets.release(self.device, self.bucket);
            buckets.waiting_for_discard() > 0
        };
        if awaited {
            self.owner.buckets_changed.notify();
        }
    }
}

impl Engine {
    /// Promises `bytes` of space for data, or [`FsError::NoSpace`]; with no device left to write to that is
    /// [`FsError::DeviceWrite`], since no removing would help.
    pub fn reserve(&self, bytes: u64) -> FsResult<SpaceReservation> {
        let buckets = &mut self.inner.state.borrow_mut().buckets;
        if !buckets.can_grow() {
            return Err(FsError::DeviceWrite);
        }
        if buckets.available() < bytes {
            return Err(FsError::NoSpace);
        }
        buckets.reserved += bytes;
        Ok(SpaceReservation { owner: self.inner.clone(), bytes })
    }

    /// Allocates space for `data` (whole blocks) out of `reservation` and writes it there.
    pub async fn write_data(
        &self,
        kind: DataKind,
        data: Buf,
        reservation: &mut SpaceReservation,
    ) -> FsResult<WrittenData> {
        assert!(data.len().is_multiple_of(BLOCK_SIZE), "data is written in whole blocks");
        assert!(reservation.bytes >= data.len() as u64, "data is written from a reservation that covers it");
        self.place(kind, data, Some(reservation)).await
    }

    /// As [`Engine::write_data`], for background work that frees more than it takes and has a reserve of its own.
    pub(crate) async fn write_unreserved(&self, kind: DataKind, data: Buf) -> FsResult<WrittenData> {
        self.place(kind, data, None).await
    }

    async fn place(
        &self,
        kind: DataKind,
        data: Buf,
        reservation: Option<&mut SpaceReservation>,
    ) -> FsResult<WrittenData> {
        let Put { places, deps, holds } = self.put(kind, data, reservation, PLACES_MAX).await?;
        Ok(WrittenData { places, dep: DataDep(Rc::new(DataDepInner { deps, _holds: holds })) })
    }

    /// Writes `data` somewhere; what cannot be written there goes elsewhere, at so many places in all.
    async fn put(
        &self,
        kind: DataKind,
        data: Buf,
        mut reservation: Option<&mut SpaceReservation>,
        tries: usize,
    ) -> FsResult<Put> {
        let inner = &self.inner;
        let (mut holds, mut places) = (Vec::new(), Vec::new());
        let mut left = data.len() as u64;
        while left > 0 {
            let (hold, place) = inner.carve(Writer::Data(kind), left).await?;
            if let Some(reservation) = &mut reservation {
                reservation.consume(place.len as u64);
            }
            left -= place.len as u64;
            holds.push(hold);
            places.push(place);
        }
        let mut done = Put { places: Vec::new(), deps: Deps::default(), holds };
        let (mut whole, pieces) = (Some(data), places.len());
        let mut at = 0;
        for place in places {
            let len = place.len as usize;
            let piece = if pieces == 1 {
                whole.take().expect("a single piece is the whole")
            } else {
                let all = whole.as_ref().expect("pieces are copied from the whole");
                Buf::copy_of(&all[at..at + len]).map_err(|_| FsError::NoMemory)?
            };
            at += len;
            let (piece, result) = inner.devices.write(place.device, place.offset, piece, Fua::No).await;
            match result.map_err(|e| inner.write_failed(&place, e)) {
                Ok(dep) => {
                    done.deps.add(dep);
                    done.places.push(place);
                }
                Err(FsError::DeviceWrite) if tries > 1 => {
                    let elsewhere = Box::pin(self.put(kind, piece, None, tries - 1)).await;
                    // Whatever stood in the way of that, the reason is that a write failed.
                    let elsewhere = elsewhere.map_err(|_| FsError::DeviceWrite)?;
                    done.deps.merge(&elsewhere.deps);
                    done.places.extend(elsewhere.places);
                    done.holds.extend(elsewhere.holds);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Puts written data on media. A commit refers to data only after this: so no commit ever waits for what strangers
    /// wrote, and whoever holds the data in memory lets go of it only when it is safe. Shares flushes with others.
    pub async fn make_data_durable<'d>(&self, data: impl Iterator<Item = &'d DataDep>) -> FsResult<()> {
        let deps: Deps = data.flat_map(|d| d.0.deps.iter()).collect();
        if planted::is(Fault::DataNotFlushed) {
            return Ok(());
        }
        self.inner.devices.flush_covering(&deps).await.map_err(|(device, e)| {
            warn!("fs", "data on device {device} could not be flushed: {e}");
            self.inner.stop_without_devices();
            FsError::DeviceWrite
        })
    }

    /// Reads `len` bytes at `place.offset + skip` (whole blocks) as they are on the device; the caller verifies them.
    ///
    /// The place must come from a key read *in the same synchronous step* as this call: from the call on the bucket
    /// is protected against reuse until the read ends.
    pub fn read_data(
        &self,
        place: Placed,
        skip: u32,
        len: u32,
    ) -> impl Future<Output = FsResult<Buf>> + use<> {
        assert!(skip + len <= place.len, "a read lies within its extent");
        let inner = self.inner.clone();
        // Whatever this holds, it holds until the future is gone.
        let hold = (!planted::is(Fault::ReaderNotHeld)).then(|| inner.hold_place(&place)).transpose();
        async move {
            let _hold = hold?;
            let buf = Buf::zeroed(len as usize).map_err(|_| FsError::NoMemory)?;
            let (buf, result) = inner.devices.read(place.device, place.offset + skip as u64, buf).await;
            match result {
                Ok(()) => Ok(buf),
                Err(e) => {
                    warn!("fs", "data read at {}:{}: {e}", place.device, place.offset);
                    Err(FsError::DeviceRead)
                }
            }
        }
    }

    /// Tries to make room for `bytes` more: waits for buckets on their way to free and for what is being deleted, and
    /// collects fragmented ones. Says
    /// whether it got anywhere, so that asking [`Engine::reserve`] again makes sense.
    pub async fn make_room(&self, bytes: u64) -> FsResult<bool> {
        let inner = &self.inner;
        let before = inner.state.borrow().buckets.available();
        let mut fruitless = 0;
        loop {
            let ticket = inner.buckets_changed.ticket();
            inner.check_running()?;
            if inner.state.borrow().buckets.available() >= bytes {
                return Ok(true);
            }
            let unclaimed = inner.state.borrow().buckets.unclaimed();
            let waiting = inner.state.borrow().buckets.waiting_for_discard() > 0;
            if waiting {
                inner.make_durable(inner.newest_seq()).await?;
                if discard::free_empty_buckets(inner).await? > 0 {
                    continue;
                }
            }
            let collected = collect::collect_if_room(inner).await?;
            inner.make_durable(inner.newest_seq()).await?;
            discard::free_empty_buckets(inner).await?;
            // Several buckets may have to be emptied before one more is free.
            fruitless = if inner.state.borrow().buckets.unclaimed() > unclaimed { 0 } else { fruitless + 1 };
            if (!collected || fruitless > FRUITLESS_MAX) && inner.freeing.get() > 0 {
                fruitless = 0;
                inner.buckets_changed.after(ticket).await;
            } else if !collected || fruitless > FRUITLESS_MAX {
                // A pool that stopped meanwhile frees nothing, and is not full for that.
                inner.check_running()?;
                return Ok(inner.state.borrow().buckets.available() > before);
            }
        }
    }

    /// Space of the pool.
    pub fn space(&self) -> Space {
        let state = self.inner.state.borrow();
        let (total, free) = state.buckets.totals();
        Space { total, free, available: state.buckets.available().min(free) }
    }
}

impl Inner {
    /// Holds a bucket until the result is dropped.
    pub(crate) fn hold(self: &Rc<Self>, device: u8, bucket: u64) -> Hold {
        self.state.borrow_mut().buckets.hold(device, bucket);
        Hold { owner: self.clone(), device, bucket }
    }

    fn hold_place(self: &Rc<Self>, place: &Placed) -> FsResult<Hold> {
        let geometry = self.geometry.get(place.device as usize).ok_or(FsError::Corrupt)?;
        let bucket = geometry.bucket_of(place.offset, place.len as u64).ok_or(FsError::Corrupt)?;
        Ok(self.hold(place.device, bucket))
    }

    /// A write at `place` failed. Something of it may be there, or still get there: nothing else is put into its bucket
    /// before the next mount. Too many of that, and the device is not believed any more.
    pub(crate) fn write_failed(self: &Rc<Self>, place: &Placed, error: DeviceError) -> FsError {
        warn!("fs", "write at {}:{}: {error}", place.device, place.offset);
        if error == DeviceError::OutOfMemory {
            return FsError::NoMemory;
        }
        if error == DeviceError::Io(IoError::Gone) {
            self.devices.fail(place.device, "it is gone");
        } else if let DeviceError::Io(_) = error
            && let Ok(hold) = self.hold_place(&Placed { len: 1, ..*place })
        {
            self.state.borrow_mut().buckets.close(hold.device, hold.bucket);
            let mut quarantined = self.quarantined.borrow_mut();
            if !quarantined.iter().any(|h| (h.device, h.bucket) == (hold.device, hold.bucket)) {
                quarantined.push(hold);
            }
            if quarantined.iter().filter(|h| h.device == place.device).count() > QUARANTINE_MAX {
                self.devices.fail(place.device, "too many writes failed");
            }
        }
        self.stop_without_devices();
        FsError::DeviceWrite
    }

    /// Stops if there is nowhere left to write to.
    pub(crate) fn stop_without_devices(&self) {
        if self.devices.healthy().next().is_none() {
            self.stop("no device is left that can be written to");
        }
    }

    /// Gets up to `len` bytes of new space (all of them for nodes), waiting for buckets to be freed if need be.
    pub(crate) fn carve<'a>(self: &'a Rc<Self>, writer: Writer, len: u64) -> Carving<'a> {
        Box::pin(async move {
            let mut refilled = None;
            loop {
                self.check_running()?;
                let short = {
                    let buckets = &mut self.state.borrow_mut().buckets;
                    if !buckets.believe_only(|device| self.devices.is_healthy(device)) {
                        return Err(FsError::DeviceWrite);
                    }
                    match buckets.carve(writer, len) {
                        Ok(place) => {
                            let bucket = buckets.bucket_of(&place);
                            return Ok((Hold { owner: self.clone(), device: place.device, bucket }, place));
                        }
                        Err(short) => short,
                    }
                };
                match short {
                    // With several devices the next one to be short may be another.
                    Short::Window(device) if refilled != Some(device) => {
                        self.refill(device).await?;
                        refilled = Some(device);
                    }
                    Short::Window(_) | Short::Full => {
                        self.wait_for_buckets().await?;
                        refilled = None;
                    }
                }
            }
        })
    }

    async fn refill(&self, device: u8) -> FsResult<()> {
        loop {
            let result = {
                let state = &mut *self.state.borrow_mut();
                state.buckets.refill(&state.table, device)
            };
            match result {
                Ok(()) => return Ok(()),
                Err(miss) => btree::load(self, miss).await?,
            }
        }
    }

    /// Frees buckets, or waits for those that hold them; [`FsError::NoSpace`] when nothing can come of waiting.
    async fn wait_for_buckets(self: &Rc<Self>) -> FsResult<()> {
        self.check_running()?;
        // Those that are held for good will not come.
        let lost = self.quarantined.borrow().len() as u64;
        if self.mode.get() != Mode::Serving || self.state.borrow().buckets.waiting_for_discard() <= lost {
            return Err(FsError::NoSpace);
        }
        let ticket = self.buckets_changed.ticket();
        self.make_durable(self.newest_seq()).await?;
        if discard::free_empty_buckets(self).await? == 0 {
            self.buckets_changed.after(ticket).await;
        }
        Ok(())
    }
}
