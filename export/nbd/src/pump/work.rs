//! What requests other than WRITE ask for, and how every request is answered.

use super::PIECE;
use super::connection::{Changing, Session};
use super::link::Turn;
use crate::session::{Answer, Asked, Durability, Extents, Provision, Range, Status, Work, answer};
use crate::wire::*;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::time::Duration;
use moraine_fs::vfs::{Bytes, Caller, FsResult, Stability, WriteData};
use moraine_fs::{FsError, Vfs};
use moraine_platform::sync::Permit;
use moraine_platform::{BLOCK_SIZE, debug, warn};

/// A read that may be cut is sent in chunks of this many bytes.
const READ_PIECE: u64 = 256 << 10;
/// A read that must not be cut is looked at this far before its answer begins, in bytes.
const READ_WHOLE: u64 = 1 << 20;
/// How much one CACHE request reads ahead, in bytes; it is a hint.
const CACHE_MAX: u64 = 32 << 20;
/// How long an answer is held before the filesystem is asked again.
const HOLD: Duration = Duration::from_millis(10);
/// Calls one block status makes before it tells what it has.
const STATUS_CALLS_MAX: usize = 256;

/// The sending end is lost, or was closed because the stream cannot be kept in step.
struct Closed;

impl<V: Vfs + 'static> Session<V> {
    /// Does what an admitted request asks, and answers it. A request that changes something is `changing` until then.
    pub(super) async fn work(
        self: Rc<Self>,
        cookie: Cookie,
        work: Work,
        changing: Option<Changing<V>>,
        _slot: Permit,
    ) {
        match work {
            Work::Write(..) => unreachable!("writes are begun by the receive loop"),
            Work::ReadChunks(range) => self.read_chunks(cookie, range).await,
            Work::ReadWhole(range) => {
                // Whatever went wrong, the link is closed already.
                let _: Result<(), Closed> = self.read_whole(cookie, range).await;
            }
            Work::Zero(range, provision, durability) => {
                let result = self.zero(range, provision, durability).await;
                drop(changing); // the change is over before its client can know of it
                self.answer(cookie, result).await;
            }
            Work::Flush => {
                let result = self.held(Asked::Flush, async || self.flush().await).await;
                self.answer(cookie, result).await;
            }
            Work::Cache(range) => {
                let result = self.cache(range).await;
                self.answer(cookie, result).await;
            }
            Work::Status(range, extents) => self.status(cookie, range, extents).await,
        }
    }

    async fn read_chunks(&self, cookie: Cookie, range: Range) {
        let link = &self.peer.link;
        if range.len == 0 {
            let _ = link.send(&none_chunk(cookie), &[]).await; // a lost link ends the receive loop
            return;
        }
        let mut left = range;
        while left.len > 0 {
            let next = left.pieces(READ_PIECE).next().map_or(0, |piece| piece.len);
            let grant = self.budget.take(next).await;
            let piece = Range { offset: left.offset, len: next.min(grant.bytes) };
            left = Range { offset: left.offset + piece.len, len: left.len - piece.len };
            let parts = match self.read(piece).await {
                Ok(parts) => parts,
                Err(error) => return self.answer_error(cookie, error, true).await,
            };
            let last = if left.len == 0 { Last::Yes } else { Last::No };
            let head = data_chunk(cookie, last, piece.offset, piece.len as u32); // at most a piece
            if link.send(&head, &parts).await.is_err() {
                return;
            }
        }
    }

    /// Sends a range as one chunk or one simple reply. Its first part is read before the answer begins; a longer
    /// one goes on within its grant while it holds its turn, so it never waits for memory that others hold.
    async fn read_whole(&self, cookie: Cookie, range: Range) -> Result<(), Closed> {
        let structured = self.terms.structured;
        let link = &self.peer.link;
        let grant = self.budget.take(range.len.min(READ_WHOLE)).await;
        let first = Range { offset: range.offset, len: range.len.min(grant.bytes) };
        let parts = match self.read(first).await {
            Ok(parts) => parts,
            Err(error) => {
                self.answer_error(cookie, error, structured).await;
                return Ok(());
            }
        };
        let turn = link.turn().await;
        let sent = if structured && range.len == 0 {
            turn.send(&none_chunk(cookie), &[]).await
        } else if structured {
            let last = if first.len == range.len { Last::Yes } else { Last::No };
            // A request's length fits 32 bits.
            turn.send(&data_chunk(cookie, last, range.offset, range.len as u32), &parts).await
        } else {
            turn.send(&simple_reply(cookie, Ok(())), &parts).await
        };
        sent.map_err(|_| Closed)?;
        drop(parts);
        let rest = Range { offset: first.offset + first.len, len: range.len - first.len };
        if rest.len == 0 {
            return Ok(());
        }
        let outcome = self.read_rest(&turn, rest, first.len).await?;
        match (structured, outcome) {
            (true, Ok(())) => turn.send(&none_chunk(cookie), &[]).await.map_err(|_| Closed),
            (true, Err(error)) => turn.send(&error_chunk(cookie, error), &[]).await.map_err(|_| Closed),
            (false, Ok(())) => Ok(()),
            (false, Err(_)) => {
                // Success was announced: all that is left is to hang up.
                link.abort();
                Err(Closed)
            }
        }
    }

    /// Sends the rest of a chunk in steps. After an error the chunk is filled up with zeroes if that can be told.
    async fn read_rest(&self, turn: &Turn<'_>, rest: Range, step: u64) -> Result<Result<(), Errno>, Closed> {
        let mut outcome = Ok(());
        for piece in rest.pieces(step) {
            let parts = match (outcome, self.terms.structured) {
                (Ok(()), _) => match self.read(piece).await {
                    Ok(parts) => parts,
                    Err(error) => {
                        outcome = Err(error);
                        zeroes(piece.len)
                    }
                },
                (Err(_), true) => zeroes(piece.len),
                (Err(_), false) => break,
            };
            if outcome.is_err() && !self.terms.structured {
                break;
            }
            turn.send(&[], &parts).await.map_err(|_| Closed)?;
        }
        Ok(outcome)
    }

    /// Reads a range of at most a few pieces; all of it or an error.
    async fn read(&self, range: Range) -> Result<Vec<Bytes>, Errno> {
        if range.len == 0 {
            return Ok(Vec::new());
        }
        let (caller, len) = (Caller::root(), range.len as u32);
        let read = async || self.vfs.read(&caller, self.object(), range.offset, len).await;
        let data = self.held(Asked::Read, read).await?;
        if data.len() as u64 != range.len {
            return Err(self.failed(Asked::Read, "the volume is shorter than it was"));
        }
        Ok(data.parts)
    }

    async fn zero(&self, range: Range, provision: Provision, durability: Durability) -> Result<(), Errno> {
        if range.len == 0 {
            return Ok(());
        }
        let caller = Caller::root();
        match provision {
            Provision::MayBeHole => {
                let punch = async || self.vfs.punch(&caller, self.object(), range.offset, range.len).await;
                let change = self.held(Asked::Punch, punch).await?;
                self.volume.changed(change.seq);
                match durability {
                    Durability::Later => Ok(()),
                    Durability::Now => {
                        self.held(Asked::Punch, async || self.vfs.durable(change.seq).await).await
                    }
                }
            }
            Provision::Keep => {
                for mut rest in range.pieces(PIECE) {
                    while rest.len > 0 {
                        let _grant = self.budget.take(rest.len).await;
                        let skip = (rest.offset % BLOCK_SIZE as u64) as usize;
                        let buf = self.buffer(skip, rest.len as usize).await; // at most a piece
                        let len = buf.len() - skip;
                        let data = WriteData { buf, skip, len };
                        self.write_data(rest.offset, data, Stability::Unstable).await?;
                        rest = Range { offset: rest.offset + len as u64, len: rest.len - len as u64 };
                    }
                }
                match durability {
                    Durability::Later => Ok(()),
                    Durability::Now => self.commit(range).await,
                }
            }
        }
    }

    /// Makes a range that was written durable.
    pub(super) async fn commit(&self, range: Range) -> Result<(), Errno> {
        let commit = async || self.vfs.commit(self.object(), range.offset, range.len).await;
        self.held(Asked::Commit, commit).await.map(|_| ())
    }

    async fn cache(&self, range: Range) -> Result<(), Errno> {
        let wanted = Range { len: range.len.min(CACHE_MAX), ..range };
        for piece in wanted.pieces(PIECE) {
            let _grant = self.budget.take(piece.len).await;
            self.read(piece).await?;
        }
        Ok(())
    }

    async fn status(&self, cookie: Cookie, range: Range, extents: Extents) {
        let mut status = Status::new(range, extents);
        for _ in 0..STATUS_CALLS_MAX {
            let Some(part) = status.wants() else { break };
            let segments = async || self.vfs.segments(self.object(), part.offset, part.len).await;
            match self.held(Asked::Segments, segments).await {
                Ok(segments) if status.take(&segments) => {}
                Ok(_) => {
                    let error = self.failed(Asked::Segments, "they do not cover the volume");
                    return self.answer_error(cookie, error, true).await;
                }
                Err(error) => return self.answer_error(cookie, error, true).await,
            }
        }
        let reply = status_chunk(cookie, BASE_ALLOCATION_ID, status.extents());
        let _ = self.peer.link.send(&reply, &[]).await; // a lost link ends the receive loop
    }

    /// Makes a call until it is neither in conflict nor short of memory, and translates its error. Only for calls that
    /// may be repeated.
    async fn held<T>(&self, asked: Asked, call: impl AsyncFn() -> FsResult<T>) -> Result<T, Errno> {
        loop {
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            match answer(asked, error) {
                Answer::Error(_) => return Err(self.final_error(asked, error)),
                Answer::Hold if self.peer.link.is_lost() => return Err(Errno::Io),
                Answer::Hold => {
                    if error == FsError::NoMemory {
                        self.vfs.memory_is_short();
                    }
                    self.platform.clock.sleep(HOLD).await;
                }
            }
        }
    }

    /// The answer to a call that is not made again.
    pub(super) fn final_error(&self, asked: Asked, error: FsError) -> Errno {
        match answer(asked, error) {
            Answer::Error(Errno::Io) | Answer::Hold => self.failed(asked, error),
            Answer::Error(errno) => {
                debug!("nbd", "{}: {asked}: {error}", self.peer.link.peer());
                errno
            }
        }
    }

    /// Something failed that is no client's fault.
    pub(super) fn failed(&self, asked: Asked, why: impl core::fmt::Display) -> Errno {
        if self.peer.may_log() {
            warn!("nbd", "{}: {asked}: {why}", self.peer.link.peer());
        }
        Errno::Io
    }

    /// Answers a request that has no data to return.
    pub(super) async fn answer(&self, cookie: Cookie, result: Result<(), Errno>) {
        let _ = self.peer.link.send(&simple_reply(cookie, result), &[]).await; // a lost link ends the receive loop
        if result == Err(Errno::Shutdown) {
            self.peer.stop();
        }
    }

    /// Answers with an error: as a chunk where the request's answers are `chunked`.
    pub(super) async fn answer_error(&self, cookie: Cookie, error: Errno, chunked: bool) {
        if !chunked {
            return self.answer(cookie, Err(error)).await;
        }
        let _ = self.peer.link.send(&error_chunk(cookie, error), &[]).await; // a lost link ends the receive loop
        if error == Errno::Shutdown {
            self.peer.stop();
        }
    }
}

fn zeroes(len: u64) -> Vec<Bytes> {
    static ZEROES: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
    let block: Rc<dyn AsRef<[u8]>> = Rc::new(&ZEROES[..]);
    let blocks = Range { offset: 0, len }.pieces(BLOCK_SIZE as u64);
    blocks.map(|piece| Bytes::new(block.clone(), 0, piece.len as usize)).collect()
}
