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

/// A WRITE in work. Its pieces share it; it is answered when the last of them ends.
struct Pending<V> {
    /// Given up before the answer: the change is over before its client can know of it.
    changing: Cell<Option<Changing<V>>>,
    cookie: Cookie,
    range: Range,
    durability: Durability,
    left: Cell<u64>,
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
            error: Cell::new(None),
            _slot: slot,
        });
        if pending.left.get() == 0 {
            self.start(self.clone().written(pending));
            return Ok(());
        }
        for piece in pieces {
            if pending.error.get().is_some() {
                // The answer is known; the stream must stay in step.
                self.peer.link.drain(piece.len).await?;
                pending.end(None);
                if pending.left.get() == 0 {
                    self.start(self.clone().written(pending.clone()));
                }
                continue;
            }
            let grant = self.budget.take(piece.len).await;
            let skip = (piece.offset % BLOCK_SIZE as u64) as usize;
            let len = piece.len as usize; // at most a piece
            let mut buf = self.buffer(skip + len).await;
            self.peer.link.fill(&mut buf[skip..]).await?;
            let (session, pending) = (self.clone(), pending.clone());
            self.start(async move {
                let error = session.write_piece(&pending, piece, WriteData { buf, skip, len }).await.err();
                drop(grant);
                pending.end(error);
                if pending.left.get() == 0 {
                    session.written(pending).await;
                }
            });
        }
        Ok(())
    }

    /// A buffer within a grant; waits if the heap is short all the same.
    pub(super) async fn buffer(&self, len: usize) -> Buf {
        loop {
            match Buf::zeroed(len) {
                Ok(buf) => return buf,
                Err(_) => {
                    self.vfs.memory_is_short();
                    self.platform.clock.sleep(MEMORY_RETRY).await;
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
        let several = pending.range.pieces(PIECE).nth(1).is_some();
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
