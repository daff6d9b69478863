//! WRITE: the payload is received piece by piece into block-aligned buffers and each piece goes to the filesystem while
//! the next one arrives; the last to end answers.

use super::PIECE;
use super::connection::{Changing, Session};
use super::link::Lost;
use crate::session::{Asked, Durability, Range};
use crate::wire::{Cookie, Errno, Request};
use alloc::rc::Rc;
use core::cell::Cell;
use core::time::Duration;
use moraine_fs::Vfs;
use moraine_fs::vfs::{Caller, Stability, WriteData};
use moraine_platform::sync::Permit;
use moraine_platform::{BLOCK_SIZE, Buf};

/// How long to wait for memory that the heap could not give.
const MEMORY_RETRY: Duration = Duration::from_millis(5);
/// Times memory for a whole piece is asked for before less will do.
const WHOLE_TRIES: u32 = 10;

/// A WRITE in work. Its pieces share it; it is answered when the last of them ends.
struct Pending<V> {
    /// Given up before the answer: the change is over before its client can know of it.
    changing: Cell<Option<Changing<V>>>,
    cookie: Cookie,
    range: Range,
    durability: Durability,
    /// How many parts have not ended.
    left: Cell<u64>,
    /// Whether a piece was divided further.
    divided: Cell<bool>,
    error: Cell<Option<Errno>>,
    _slot: Permit,
}

impl<V: Vfs + 'static> Session<V> {
    /// Receives the payload of a WRITE and starts its pieces. [`Lost`] if the stream ended amid it: then what arrived
    /// is written or not, and nobody is answered.
    pub(super) async fn write(
        self: &Rc<Self>,
        request: Request,
        range: Range,
        durability: Durability,
        slot: Permit,
    ) -> Result<(), Lost> {
        let pieces = range.pieces(PIECE);
        let pending = Rc::new(Pending {
            changing: Cell::new(Some(self.changing())),
            cookie: request.cookie,
            range,
            durability,
            left: Cell::new(pieces.count() as u64),
            divided: Cell::new(false),
            error: Cell::new(None),
            _slot: slot,
        });
        if pending.left.get() == 0 {
            self.start(self.clone().written(pending));
            return Ok(());
        }
        for mut rest in pieces {
            while rest.len > 0 {
                if pending.error.get().is_some() {
                    // The answer is known; the stream must stay in step.
                    self.peer.link.drain(rest.len).await?;
                    pending.end(None);
                    if pending.left.get() == 0 {
                        self.start(self.clone().written(pending.clone()));
                    }
                    break;
                }
                let grant = self.budget.take(rest.len).await;
                let skip = (rest.offset % BLOCK_SIZE as u64) as usize;
                let mut buf = self.buffer(skip, rest.len as usize).await; // at most a piece
                let len = buf.len() - skip;
                let piece = Range { offset: rest.offset, len: len as u64 };
                rest = Range { offset: rest.offset + piece.len, len: rest.len - piece.len };
                if rest.len > 0 {
                    pending.left.set(pending.left.get() + 1);
                    pending.divided.set(true);
                }
                self.peer.link.fill(&mut buf[skip..]).await?;
                let (session, pending) = (self.clone(), pending.clone());
                self.start(async move {
                    let error =
                        session.write_piece(&pending, piece, WriteData { buf, skip, len }).await.err();
                    drop(grant);
                    pending.end(error);
                    if pending.left.get() == 0 {
                        session.written(pending).await;
                    }
                });
            }
        }
        Ok(())
    }

    /// A buffer within a grant for `len` bytes from `skip` on; waits if the heap is short all the same. If what is free
    /// stays in pieces that are too small, it is for fewer bytes, but for one at least.
    pub(super) async fn buffer(&self, skip: usize, len: usize) -> Buf {
        let (mut bytes, mut refused) = (skip + len, 0);
        loop {
            match Buf::zeroed(bytes) {
                Ok(buf) => return buf,
                Err(_) => {
                    self.vfs.memory_is_short();
                    self.platform.clock.sleep(MEMORY_RETRY).await;
                    refused += 1;
                    if refused >= WHOLE_TRIES {
                        bytes = Buf::less_than(bytes);
                    }
                }
            }
        }
    }

    async fn write_piece(&self, pending: &Pending<V>, piece: Range, data: WriteData) -> Result<(), Errno> {
        // A write in one piece is made durable on its way; several share one commit at the end.
        let alone = piece == pending.range && pending.durability == Durability::Now;
        let stability = if alone { Stability::DataSync } else { Stability::Unstable };
        self.write_data(piece.offset, data, stability).await
    }

    /// Writes `data` whole.
    pub(super) async fn write_data(
        &self,
        offset: u64,
        data: WriteData,
        stability: Stability,
    ) -> Result<(), Errno> {
        let len = data.len;
        let written = self.vfs.write(&Caller::root(), self.object(), offset, data, stability).await;
        match written {
            Ok(change) if change.value.count as usize == len => Ok(()),
            Ok(_) => Err(self.failed(Asked::Write, "fewer bytes were taken than given")),
            Err(error) => Err(self.final_error(Asked::Write, error)),
        }
    }

    /// The last piece has ended.
    async fn written(self: Rc<Self>, pending: Rc<Pending<V>>) {
        let mut result = pending.error.get().map_or(Ok(()), Err);
        let several = pending.divided.get() || pending.range.pieces(PIECE).nth(1).is_some();
        if result.is_ok() && several && pending.durability == Durability::Now {
            result = self.commit(pending.range).await;
        }
        drop(pending.changing.take());
        self.answer(pending.cookie, result).await;
    }
}

impl<V> Pending<V> {
    fn end(&self, error: Option<Errno>) {
        self.left.set(self.left.get() - 1);
        if self.error.get().is_none() {
            self.error.set(error);
        }
    }
}
