//! A stream with deadlines and turns at sending.
//!
//! A client may be idle between requests for ever, but a message it has begun, and an answer it is sent, must make
//! their way in time: the server's watchdog asks [`Link::stalled`] and aborts.

use alloc::rc::Rc;
use core::cell::Cell;
use core::future::poll_fn;
use core::net::SocketAddr;
use core::time::Duration;
use moraine_fs::vfs::Bytes;
use moraine_platform::sync::{Permit, Semaphore};
use moraine_platform::{Clock, Instant, NetError, Stream};

/// How long a message may take from its first byte to its last; of a payload and of an answer, each piece.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// A connection's stream.
pub(crate) struct Link {
    stream: Rc<dyn Stream>,
    clock: Rc<dyn Clock>,
    receiving: Cell<Option<Instant>>,
    sending: Cell<Option<Instant>>,
    turns: Rc<Semaphore>,
    lost: Cell<bool>,
}

/// The stream ended or failed; there is nobody to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lost;

impl From<NetError> for Lost {
    fn from(_: NetError) -> Lost {
        Lost
    }
}

/// The right to send; whole answers are sent in one turn.
pub(crate) struct Turn<'a> {
    link: &'a Link,
    _permit: Permit,
}

impl Link {
    /// A link over `stream`.
    pub(crate) fn new(stream: Rc<dyn Stream>, clock: Rc<dyn Clock>) -> Link {
        let turns = Semaphore::new(1);
        let (receiving, sending) = (Cell::new(None), Cell::new(None));
        Link { stream, clock, receiving, sending, turns, lost: Cell::new(false) }
    }

    /// The client.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.stream.peer()
    }

    /// Receives all of `out`, in time.
    pub(crate) async fn fill(&self, out: &mut [u8]) -> Result<(), Lost> {
        if out.is_empty() {
            return Ok(());
        }
        self.receiving.set(Some(self.clock.now()));
        let whole = self.stream.recv_exact(out).await;
        self.receiving.set(None);
        if whole? { Ok(()) } else { Err(Lost) }
    }

    /// Receives all of `out`; the first byte may take as long as it likes. `false` if the stream ended before it.
    pub(crate) async fn fill_when_it_comes(&self, out: &mut [u8]) -> Result<bool, Lost> {
        let first = self.stream.recv(out).await?;
        if first == 0 {
            return Ok(false);
        }
        self.fill(&mut out[first..]).await?;
        Ok(true)
    }

    /// Receives `len` bytes and throws them away.
    pub(crate) async fn drain(&self, len: u64) -> Result<(), Lost> {
        let mut left = len;
        while left > 0 {
            self.receiving.set(Some(self.clock.now()));
            let taken = poll_fn(|cx| {
                self.stream
                    .poll_recv(cx, &mut |bytes| bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)))
            })
            .await;
            self.receiving.set(None);
            match taken? {
                0 => return Err(Lost),
                n => left -= n as u64,
            }
        }
        Ok(())
    }

    /// Waits for a turn at sending, first come, first served.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        let permit = self.turns.take(1).await;
        Turn { link: self, _permit: permit }
    }

    /// Sends `head` and then `parts` in one turn.
    pub(crate) async fn send(&self, head: &[u8], parts: &[Bytes]) -> Result<(), Lost> {
        self.turn().await.send(head, parts).await
    }

    /// Whether the client has let a message or an answer stand for too long.
    pub(crate) fn stalled(&self) -> bool {
        let now = self.clock.now();
        let late = |since: &Cell<Option<Instant>>| since.get().is_some_and(|t| now.since(t) > STALL);
        late(&self.receiving) || late(&self.sending)
    }

    /// Whether sending has failed: what is answered now, nobody hears.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Ends the stream after what was sent.
    pub(crate) fn close(&self) {
        self.stream.close();
    }

    /// Drops the stream at once.
    pub(crate) fn abort(&self) {
        self.lost.set(true);
        self.stream.abort();
    }
}

impl Turn<'_> {
    /// Sends `head` and then `parts`, filling the transport's buffers across their borders, so that a short head does
    /// not travel alone.
    pub(crate) async fn send(&self, head: &[u8], parts: &[Bytes]) -> Result<(), Lost> {
        let link = self.link;
        let slice = |n: usize| if n == 0 { Some(head) } else { parts.get(n - 1).map(|p| &**p) };
        let (mut n, mut at) = (0, 0);
        link.sending.set(Some(link.clock.now()));
        loop {
            // Step over what is sent, and over empty parts.
            while slice(n).is_some_and(|s| at == s.len()) {
                (n, at) = (n + 1, 0);
            }
            if slice(n).is_none() {
                break;
            }
            let sent = poll_fn(|cx| {
                link.stream.poll_send(cx, &mut |room| {
                    let mut used = 0;
                    while let Some(s) = slice(n)
                        && used < room.len()
                    {
                        let count = (s.len() - at).min(room.len() - used);
                        room[used..used + count].copy_from_slice(&s[at..at + count]);
                        used += count;
                        at += count;
                        if at == s.len() {
                            (n, at) = (n + 1, 0);
                        }
                    }
                    used
                })
            });
            if sent.await.is_err() {
                link.sending.set(None);
                link.lost.set(true);
                return Err(Lost);
            }
        }
        link.sending.set(None);
        Ok(())
    }
}
