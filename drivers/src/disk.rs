//! What every disk does with a command before it reaches a queue: check it, and know its limits.

use crate::hal::Hal;
use crate::request::{Operation, Order, Plain, Request, Transfer, answered, answered_plain, check_range};
use alloc::boxed::Box;
use alloc::rc::Rc;
use moraine_platform::{Buf, DeviceInfo, Fua, IoDone, IoError, IoFuture};

/// Least `max_transfer` that a `BlockDevice` may report; a device of less gets larger transfers in pieces.
const TRANSFER_PROMISED: u64 = 128 * 1024;

/// The `max_transfer` to report for a device whose commands move `transfer_max` bytes.
pub(crate) fn reported_transfer_max(transfer_max: u64) -> u32 {
    transfer_max.max(TRANSFER_PROMISED) as u32
}

/// What takes requests: a controller or a virtio device.
pub(crate) trait Engine {
    /// Queues a request.
    fn submit(&self, request: Rc<Request>);
    /// The machine.
    fn hal(&self) -> &dyn Hal;
}

/// One disk's properties and limits.
pub(crate) struct Disk {
    pub(crate) info: DeviceInfo,
    /// The request's `target`.
    pub(crate) target: u32,
    pub(crate) block_shift: u8,
    /// Largest transfer of one command in bytes; a multiple of a page.
    pub(crate) transfer_max: u64,
    /// Largest range discarded by one command.
    pub(crate) discard_max: u64,
    /// Largest range zeroed by one command; `None` if zeroes have to be written.
    pub(crate) zeroes_max: Option<u64>,
}

impl Disk {
    pub(crate) fn read(&self, engine: &dyn Engine, offset: u64, buf: Buf) -> IoFuture<IoDone> {
        self.transfer(engine, Operation::Read, offset, buf)
    }

    pub(crate) fn write(&self, engine: &dyn Engine, offset: u64, buf: Buf, fua: Fua) -> IoFuture<IoDone> {
        if self.info.read_only || (fua == Fua::Yes && !self.info.fua) {
            return answered(buf, Err(IoError::Invalid));
        }
        // Without a volatile cache every write is through anyway.
        let fua = if self.info.volatile_cache { fua } else { Fua::No };
        self.transfer(engine, Operation::Write(fua), offset, buf)
    }

    fn transfer(
        &self,
        engine: &dyn Engine,
        operation: Operation,
        offset: u64,
        mut buf: Buf,
    ) -> IoFuture<IoDone> {
        let len = buf.len() as u64;
        match check_range(&self.info, offset, len) {
            Ok(()) if len > 0 => (),
            result => return answered(buf, result),
        }
        let bus = engine.hal().bus_address(buf.as_mut_ptr());
        let order = self.order(operation, offset, len, self.transfer_max);
        let request = Request::new(Order { buf: Some(buf), bus, ..order });
        engine.submit(request.clone());
        Box::pin(Transfer(request))
    }

    fn order(&self, operation: Operation, offset: u64, len: u64, piece_max: u64) -> Order {
        let (target, block_shift) = (self.target, self.block_shift);
        Order { operation, target, block_shift, offset, len, piece_max, buf: None, bus: 0 }
    }

    fn plain(&self, engine: &dyn Engine, order: Order) -> IoFuture<Result<(), IoError>> {
        let request = Request::new(order);
        engine.submit(request.clone());
        Box::pin(Plain(request))
    }

    pub(crate) fn flush(&self, engine: &dyn Engine) -> IoFuture<Result<(), IoError>> {
        if !self.info.volatile_cache {
            return answered_plain(Ok(()));
        }
        self.plain(engine, self.order(Operation::Flush, 0, 0, u64::MAX))
    }

    pub(crate) fn discard(
        &self,
        engine: &dyn Engine,
        offset: u64,
        len: u64,
    ) -> IoFuture<Result<(), IoError>> {
        match check_range(&self.info, offset, len) {
            _ if self.info.read_only => answered_plain(Err(IoError::Invalid)),
            Ok(()) if self.info.discard && len > 0 => {
                self.plain(engine, self.order(Operation::Discard, offset, len, self.discard_max))
            }
            // A hint that nobody takes is fulfilled.
            result => answered_plain(result),
        }
    }

    pub(crate) fn write_zeroes(
        &self,
        engine: &dyn Engine,
        offset: u64,
        len: u64,
    ) -> IoFuture<Result<(), IoError>> {
        match check_range(&self.info, offset, len) {
            _ if self.info.read_only => return answered_plain(Err(IoError::Invalid)),
            Ok(()) if len > 0 => (),
            result => return answered_plain(result),
        }
        let order = match self.zeroes_max {
            Some(piece_max) => self.order(Operation::WriteZeroes, offset, len, piece_max),
            None => {
                let piece_max = self.transfer_max.min(TRANSFER_PROMISED);
                let Ok(mut zeroes) = Buf::zeroed(len.min(piece_max) as usize) else {
                    return answered_plain(Err(IoError::Device));
                };
                let bus = engine.hal().bus_address(zeroes.as_mut_ptr());
                let order = self.order(Operation::WriteZeroes, offset, len, piece_max);
                Order { buf: Some(zeroes), bus, ..order }
            }
        };
        self.plain(engine, order)
    }
}
