//! A block command from its submission to its answer, and the table of those under way. Shared by NVMe and virtio-blk.
//!
//! A [`Request`] is what a caller asked for; it is cut into *pieces*, each one device command in one [`Slots`] slot.
//! The request owns the caller's buffer from submission until no piece of it is known to the device any more, whether
//! or not anybody still waits for the answer.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use moraine_platform::{Buf, DeviceInfo, Fua, IoDone, IoError, IoFuture};

/// Most commands in flight on one queue: tags hold the slot in their low byte.
pub(crate) const SLOTS_MAX: usize = 256;

/// How often pieces of a request that the device lost or was not ready for begin again before the request fails.
const RETRIES_MAX: u8 = 2;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write(Fua),
    Flush,
    Discard,
    WriteZeroes,
}

/// A part of a request that is one device command; bytes on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// A command of the caller's, possibly in several pieces.
pub(crate) struct Request {
    pub(crate) operation: Operation,
    /// Which of the controller's devices it is for (an NVMe namespace id; 0 elsewhere).
    pub(crate) target: u32,
    /// log2 of the target's logical block.
    pub(crate) block_shift: u8,
    all: Piece,
    piece_max: u64,
    /// Bus address of the buffer's first byte; for emulated zeroes, of a block of zeroes as long as a piece.
    bus: u64,
    issued: Cell<u64>,
    pieces: Cell<u32>,
    retries: Cell<u8>,
    error: Cell<Option<IoError>>,
    done: Cell<bool>,
    buf: RefCell<Option<Buf>>,
    waker: Cell<Option<Waker>>,
}

/// What a new request is made of.
pub(crate) struct Order {
    pub(crate) operation: Operation,
    pub(crate) target: u32,
    pub(crate) block_shift: u8,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    /// Largest piece, in bytes: a multiple of a page.
    pub(crate) piece_max: u64,
    /// The caller's buffer, or zeroes to write.
    pub(crate) buf: Option<Buf>,
    /// Bus address of `buf`.
    pub(crate) bus: u64,
}

impl Request {
    pub(crate) fn new(order: Order) -> Rc<Request> {
        Rc::new(Request {
            operation: order.operation,
            target: order.target,
            block_shift: order.block_shift,
            all: Piece { offset: order.offset, len: order.len },
            piece_max: order.piece_max,
            bus: order.bus,
            issued: Cell::new(0),
            pieces: Cell::new(0),
            retries: Cell::new(0),
            error: Cell::new(None),
            done: Cell::new(false),
            buf: RefCell::new(order.buf),
            waker: Cell::new(None),
        })
    }

    /// Whether more pieces are to be issued.
    fn has_more(&self) -> bool {
        self.issued.get() < self.all.len
            || (self.all.len == 0 && self.issued.get() == 0 && self.pieces.get() == 0)
    }

    /// The next piece; only when `has_more`.
    fn next_piece(&self) -> Piece {
        let issued = self.issued.get();
        let len = (self.all.len - issued).min(self.piece_max);
        self.issued.set(issued + len);
        Piece { offset: self.all.offset + issued, len }
    }

    /// The bus address of a piece's memory.
    pub(crate) fn bus_of(&self, piece: Piece) -> u64 {
        match self.operation {
            Operation::WriteZeroes => self.bus,
            _ => self.bus + (piece.offset - self.all.offset),
        }
    }

    /// Whether a write of zeroes is to be carried out as an ordinary write of a block of zeroes.
    pub(crate) fn emulates_zeroes(&self) -> bool {
        self.operation == Operation::WriteZeroes && self.bus != 0
    }

    /// One piece is through. Answers the request when it was the last one.
    fn piece_done(&self, result: Result<(), IoError>) {
        self.pieces.set(self.pieces.get() - 1);
        if let Err(error) = result {
            self.error.set(self.error.get().or(Some(error)));
            self.issued.set(self.all.len);
        }
        if self.pieces.get() == 0 && self.issued.get() == self.all.len {
            self.done.set(true);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }

    /// Answers a request none of whose pieces is with the device.
    fn fail(&self, error: IoError) {
        assert!(self.pieces.get() == 0, "a request fails only when the device knows none of it");
        self.pieces.set(1);
        self.piece_done(Err(error));
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<(), IoError>> {
        if self.done.get() {
            return Poll::Ready(self.error.get().map_or(Ok(()), Err));
        }
        self.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

/// The answer to a read or write.
pub(crate) struct Transfer(pub(crate) Rc<Request>);

impl Future for Transfer {
    type Output = IoDone;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoDone> {
        self.0.poll(cx).map(|result| {
            let buf = self.0.buf.take().expect("a transfer is answered once and holds its buffer until then");
            IoDone { buf, result }
        })
    }
}

/// The answer to a command without a buffer.
pub(crate) struct Plain(pub(crate) Rc<Request>);

impl Future for Plain {
    type Output = Result<(), IoError>;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx)
    }
}

/// A transfer answered before it began.
pub(crate) fn answered(buf: Buf, result: Result<(), IoError>) -> IoFuture<IoDone> {
    Box::pin(core::future::ready(IoDone { buf, result }))
}

/// A plain command answered before it began.
pub(crate) fn answered_plain(result: Result<(), IoError>) -> IoFuture<Result<(), IoError>> {
    Box::pin(core::future::ready(result))
}

/// Whether a range lies on the device and on its blocks.
pub(crate) fn check_range(info: &DeviceInfo, offset: u64, len: u64) -> Result<(), IoError> {
    let block = u64::from(info.logical_block) - 1;
    let end = offset.checked_add(len);
    if (offset | len) & block == 0 && end.is_some_and(|end| end <= info.size) {
        Ok(())
    } else {
        Err(IoError::Invalid)
    }
}

/// Names a slot in one use of it: the slot in the low byte, its generation in the high one, so that a late or
/// invented completion is not taken for another command's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag(pub(crate) u16);

impl Tag {
    pub(crate) fn slot(self) -> usize {
        usize::from(self.0 & 0xff)
    }
}

#[derive(Default)]
struct Slot {
    request: Option<Rc<Request>>,
    piece: Piece,
    generation: u8,
    /// Timer ticks survived.
    age: u8,
}

/// A piece that was just given a slot, to be turned into a device command.
pub(crate) struct Begun {
    pub(crate) tag: Tag,
    pub(crate) piece: Piece,
    pub(crate) request: Rc<Request>,
}

/// All commands of one queue: those in flight, and those that wait for a slot.
///
/// The waiting ones are bounded by whoever submits: each brings its own buffer.
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u8>,
    waiting: VecDeque<Rc<Request>>,
    /// Pieces that are to begin again.
    retry: VecDeque<(Rc<Request>, Piece)>,
}

impl Slots {
    pub(crate) fn new(count: usize) -> Slots {
        assert!((1..=SLOTS_MAX).contains(&count), "a queue has 1 to 256 slots");
        let mut slots = Vec::new();
        slots.resize_with(count, Slot::default);
        let free = (0..count).rev().map(|i| i as u8).collect();
        Slots { slots, free, waiting: VecDeque::new(), retry: VecDeque::new() }
    }

    /// Commands that the device knows.
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether anything waits for a slot.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty() || !self.retry.is_empty()
    }

    /// Queues a new request.
    pub(crate) fn push(&mut self, request: Rc<Request>) {
        self.waiting.push_back(request);
    }

    /// Gives the next piece a slot, if there are both. Requests of many pieces take turns with the others.
    pub(crate) fn begin(&mut self) -> Option<Begun> {
        if self.free.is_empty() {
            return None;
        }
        let (request, piece) = match self.retry.pop_front() {
            Some(interrupted) => interrupted,
            None => loop {
                let request = self.waiting.pop_front()?;
                // An error in an earlier piece ended it.
                if !request.has_more() {
                    continue;
                }
                let piece = request.next_piece();
                request.pieces.set(request.pieces.get() + 1);
                if request.issued.get() < request.all.len {
                    self.waiting.push_back(request.clone());
                }
                break (request, piece);
            },
        };
        let index = self.free.pop().expect("checked above");
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = slot.generation.wrapping_add(1);
        slot.request = Some(request.clone());
        slot.piece = piece;
        slot.age = 0;
        Some(Begun { tag: Tag(u16::from(slot.generation) << 8 | u16::from(index)), piece, request })
    }

    /// Takes a begun piece back that the device was not told of after all; it is the first to begin again.
    pub(crate) fn put_back(&mut self, tag: Tag) {
        let (request, piece) = self.take(tag).expect("a piece just begun").into_parts();
        self.retry.push_front((request, piece));
    }

    /// The command behind a tag that the device returned, if there is one.
    pub(crate) fn take(&mut self, tag: Tag) -> Option<Ended> {
        let slot = self.slots.get_mut(tag.slot())?;
        if u16::from(slot.generation) != tag.0 >> 8 {
            return None;
        }
        let request = slot.request.take()?;
        self.free.push(tag.slot() as u8);
        Some(Ended { request, piece: slot.piece, timed_out: slot.age >= AGE_LIMIT })
    }

    /// Lets a command begin again that the device asked to be given once more; it comes back if that was too often.
    pub(crate) fn again(&mut self, ended: Ended) -> Option<Ended> {
        let retries = ended.request.retries.get() + 1;
        if ended.timed_out || retries > RETRIES_MAX {
            return Some(ended);
        }
        ended.request.retries.set(retries);
        self.retry.push_back(ended.into_parts());
        None
    }

    /// One timer tick ([`TICK`]); the tag of a command that has by now been under way for too long.
    pub(crate) fn tick(&mut self) -> Option<Tag> {
        let mut late = None;
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, s)| s.request.is_some()) {
            slot.age = slot.age.saturating_add(1).min(AGE_LIMIT);
            if slot.age == AGE_LIMIT {
                late = Some(Tag(u16::from(slot.generation) << 8 | index as u16));
            }
        }
        late
    }

    /// Whether a command timed out and is still with the device.
    pub(crate) fn has_late(&self) -> bool {
        self.slots.iter().any(|s| s.request.is_some() && s.age >= AGE_LIMIT)
    }

    /// The device was reset and has forgotten everything: what timed out (or was interrupted too often) is to be
    /// answered, which the caller does after letting go of this table; everything else begins again.
    #[must_use]
    pub(crate) fn interrupted(&mut self) -> Vec<Ended> {
        let mut failed = Vec::new();
        for index in 0..self.slots.len() {
            let tag = Tag(u16::from(self.slots[index].generation) << 8 | index as u16);
            let Some(ended) = self.take(tag) else { continue };
            let retries = ended.request.retries.get() + 1;
            ended.request.retries.set(retries);
            if ended.timed_out || retries > RETRIES_MAX {
                failed.push(Ended { timed_out: true, ..ended });
            } else {
                self.retry.push_back(ended.into_parts());
            }
        }
        failed
    }

    /// The device is gone, and can no longer touch memory: everything is to be answered by the caller.
    #[must_use]
    pub(crate) fn abandon(&mut self) -> Abandoned {
        let mut pieces: Vec<_> = self.interrupted();
        pieces.extend(self.retry.drain(..).map(|(request, piece)| Ended { request, piece, timed_out: true }));
        Abandoned { pieces, waiting: core::mem::take(&mut self.waiting) }
    }
}

/// Everything that was under way when a device went away.
pub(crate) struct Abandoned {
    pieces: Vec<Ended>,
    waiting: VecDeque<Rc<Request>>,
}

impl Abandoned {
    /// Keeps every buffer for ever, because the device may still use it; callers get another of equal length.
    pub(crate) fn lose_buffers(&self) {
        let requests = self.pieces.iter().map(|p| &p.request);
        for request in requests {
            if let Some(buf) = request.buf.borrow_mut().as_mut() {
                let other =
                    Buf::zeroed(buf.len()).or_else(|_| Buf::zeroed(0)).expect("nothing needs no memory");
                core::mem::forget(core::mem::replace(buf, other));
            }
        }
    }

    /// Answers everything with `error`.
    pub(crate) fn fail(self, error: IoError) {
        for piece in self.pieces {
            piece.finish(Err(error));
        }
        for request in self.waiting {
            if !request.done.get() && request.pieces.get() == 0 {
                request.fail(error);
            }
        }
    }
}

/// A command that the device is done with.
pub(crate) struct Ended {
    request: Rc<Request>,
    piece: Piece,
    /// Whether it took longer than the limit.
    pub(crate) timed_out: bool,
}

impl Ended {
    fn into_parts(self) -> (Rc<Request>, Piece) {
        (self.request, self.piece)
    }

    /// What the command transferred.
    pub(crate) fn piece(&self) -> Piece {
        self.piece
    }

    /// Which operation it was part of.
    pub(crate) fn operation(&self) -> Operation {
        self.request.operation
    }

    /// Answers it. May wake tasks: the caller holds no borrow.
    pub(crate) fn finish(self, result: Result<(), IoError>) {
        self.request.piece_done(result);
    }
}

/// Time between two ticks of [`Slots::tick`].
pub(crate) const TICK: core::time::Duration = core::time::Duration::from_secs(1);
/// Ticks after which a command has timed out: 30 seconds, as disks need for their own error recovery.
pub(crate) const AGE_LIMIT: u8 = 30;
