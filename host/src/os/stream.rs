//! A TCP stream of the system with bounded buffers of our own, so that protocols can work on slices.
//!
//! Receiving: one buffer, filled by a read only when all of it was consumed; a protocol that does not read leaves
//! the bytes in the system's socket, whose window closes. Sending: a ring which a task of the stream's own drains,
//! so that several small pieces leave in one call and nothing waits for the protocol to come back.

use super::net::net_error;
use moraine_platform::{NetError, Stream};
use socket2::{SockRef, TcpKeepalive};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::net::TcpStream;

/// Bytes read from the system at once, at most.
const RECV_BUFFER: usize = 256 << 10;
/// Bytes given by the protocol and not yet taken by the system, at most.
const SEND_BUFFER: usize = 256 << 10;
/// A peer which takes nothing for this long loses its connection.
const SEND_STALL_MAX: Duration = Duration::from_secs(60);
/// Idle time after which the system asks whether the peer is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Time between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// The protocol's handle; the connection ends in good order when it is dropped.
pub(super) struct OsStream {
    shared: Rc<Shared>,
}

struct Shared {
    peer: SocketAddr,
    local: SocketAddr,
    /// `None` once the connection is over, for the reason in `over`.
    socket: RefCell<Option<TcpStream>>,
    over: Cell<NetError>,
    ending: Cell<Ending>,
    received: RefCell<Received>,
    send: RefCell<Ring>,
    /// Tasks waiting: for bytes, for room, and the stream's own for something to do.
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
    drain: Cell<Option<Waker>>,
}

/// How far this side has gone in ending the stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Open,
    /// No more will be given; end our half when all is sent.
    CloseAsked,
    /// Our half is ended; the peer may still send.
    HalfClosed,
    /// The handle is gone; end everything when all is sent.
    Dropped,
}

#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    ended: bool,
}

/// Bytes to send: `len` of them from `start`, wrapping.
#[derive(Default)]
struct Ring {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl OsStream {
    /// Takes over a connected socket and starts its sending task.
    pub(super) fn start(socket: TcpStream) -> Result<OsStream, NetError> {
        let setup = || -> io::Result<(SocketAddr, SocketAddr)> {
            socket.set_nodelay(true)?;
            let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
            SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
            Ok((socket.peer_addr()?, socket.local_addr()?))
        };
        let (peer, local) = setup().map_err(net_error)?;
        let shared = Rc::new(Shared {
            peer,
            local,
            socket: RefCell::new(Some(socket)),
            over: Cell::new(NetError::Closed),
            ending: Cell::new(Ending::Open),
            received: RefCell::default(),
            send: RefCell::default(),
            reader: Cell::default(),
            writer: Cell::default(),
            drain: Cell::default(),
        });
        tokio::task::spawn_local(drain(shared.clone()));
        Ok(OsStream { shared })
    }
}

impl Stream for OsStream {
    fn peer(&self) -> SocketAddr {
        self.shared.peer
    }

    fn local(&self) -> SocketAddr {
        self.shared.local
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        let shared = &*self.shared;
        let mut received = shared.received.borrow_mut();
        if received.start == received.end {
            if received.ended {
                return Poll::Ready(Ok(0));
            }
            let count = match ready!(shared.poll_fill(cx, &mut received)) {
                Ok(count) => count,
                Err(e) => return Poll::Ready(Err(e)),
            };
            if count == 0 {
                received.ended = true;
                return Poll::Ready(Ok(0));
            }
        }
        let unread = &received.bytes[received.start..received.end];
        let taken = take(unread);
        assert!(taken <= unread.len(), "a protocol took more bytes than there are");
        received.start += taken;
        Poll::Ready(Ok(taken))
    }

    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        give: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        let shared = &*self.shared;
        if shared.socket.borrow().is_none() {
            return Poll::Ready(Err(shared.over.get()));
        }
        if shared.ending.get() != Ending::Open {
            return Poll::Ready(Err(NetError::Closed));
        }
        let mut ring = shared.send.borrow_mut();
        let room = ring.room();
        if room.is_empty() {
            shared.writer.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        let given = give(room);
        assert!(given <= room.len(), "a protocol gave more bytes than there is room for");
        ring.len += given;
        wake(&shared.drain);
        Poll::Ready(Ok(given))
    }

    fn close(&self) {
        if self.shared.ending.get() == Ending::Open {
            self.shared.ending.set(Ending::CloseAsked);
            wake(&self.shared.drain);
        }
    }

    fn abort(&self) {
        if let Some(socket) = &*self.shared.socket.borrow() {
            // Closing a socket that lingers for no time sends a reset.
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
        }
        *self.shared.received.borrow_mut() = Received::default();
        self.shared.finish(NetError::Closed);
    }
}

impl Drop for OsStream {
    fn drop(&mut self) {
        self.shared.ending.set(Ending::Dropped);
        wake(&self.shared.drain);
    }
}

impl Shared {
    /// Reads what is there into the empty receive buffer; 0 at the end of the stream.
    fn poll_fill(&self, cx: &mut Context<'_>, received: &mut Received) -> Poll<Result<usize, NetError>> {
        let result = loop {
            let socket = self.socket.borrow();
            let Some(socket) = &*socket else { return Poll::Ready(Err(self.over.get())) };
            match socket.poll_read_ready(cx) {
                Poll::Pending => {
                    self.reader.set(Some(cx.waker().clone()));
                    return Poll::Pending;
                }
                Poll::Ready(Err(e)) => break Err(e),
                Poll::Ready(Ok(())) => {}
            }
            if received.bytes.is_empty() {
                received.bytes = vec![0; RECV_BUFFER];
            }
            match socket.try_read(&mut received.bytes) {
                Ok(count) => {
                    (received.start, received.end) = (0, count);
                    break Ok(count);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => break Err(e),
            }
        };
        Poll::Ready(result.map_err(|e| self.finish(net_error(e))))
    }

    /// Hands what waits to the system. Ready when the connection is over; otherwise the caller's task is woken when
    /// there is more to do. `Progress` says whether bytes moved and whether some are left.
    fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<Progress> {
        let mut moved = false;
        let error = loop {
            let socket = self.socket.borrow();
            let Some(socket) = &*socket else { return Poll::Ready(Progress::Over) };
            let mut ring = self.send.borrow_mut();
            if ring.len == 0 {
                match self.ending.get() {
                    Ending::Open | Ending::HalfClosed => {}
                    Ending::CloseAsked => {
                        self.ending.set(Ending::HalfClosed);
                        let _ = SockRef::from(socket).shutdown(Shutdown::Write);
                    }
                    Ending::Dropped => break NetError::Closed,
                }
                self.drain.set(Some(cx.waker().clone()));
                return Poll::Ready(Progress::Idle);
            }
            match socket.poll_write_ready(cx) {
                Poll::Pending => {
                    self.drain.set(Some(cx.waker().clone()));
                    return if moved { Poll::Ready(Progress::Moved) } else { Poll::Pending };
                }
                Poll::Ready(Err(e)) => break net_error(e),
                Poll::Ready(Ok(())) => {}
            }
            let (first, second) = ring.filled();
            match socket.try_write_vectored(&[IoSlice::new(first), IoSlice::new(second)]) {
                Ok(count) => {
                    ring.drop_front(count);
                    moved = true;
                    wake(&self.writer);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => break net_error(e),
            }
        };
        self.finish(error);
        Poll::Ready(Progress::Over)
    }

    /// Ends the connection for `reason`; whoever waits learns it.
    fn finish(&self, reason: NetError) -> NetError {
        if self.socket.borrow().is_some() {
            self.over.set(reason);
            *self.socket.borrow_mut() = None;
        }
        for waiting in [&self.reader, &self.writer, &self.drain] {
            wake(waiting);
        }
        self.over.get()
    }
}

/// What a turn of the sending task came to.
enum Progress {
    /// Nothing is left to send; woken when there is.
    Idle,
    /// Some bytes went, some are left; woken when the system takes more.
    Moved,
    /// The connection is over.
    Over,
}

/// The stream's own task: sends what the protocol gave until the connection is over.
async fn drain(shared: Rc<Shared>) {
    let mut deadline = pin!(tokio::time::sleep(SEND_STALL_MAX));
    let mut idle = true;
    std::future::poll_fn(|cx| {
        match shared.poll_drain(cx) {
            Poll::Ready(Progress::Over) => return Poll::Ready(()),
            Poll::Ready(Progress::Idle) => {
                idle = true;
                return Poll::Pending;
            }
            Poll::Ready(Progress::Moved) => {
                deadline.as_mut().reset(tokio::time::Instant::now() + SEND_STALL_MAX);
                idle = false;
            }
            Poll::Pending if idle => {
                deadline.as_mut().reset(tokio::time::Instant::now() + SEND_STALL_MAX);
                idle = false;
            }
            Poll::Pending => {}
        }
        if Pin::as_mut(&mut deadline).poll(cx).is_ready() {
            moraine_platform::warn!("host", "{} takes nothing, connection dropped", shared.peer);
            shared.finish(NetError::Reset);
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await
}

fn wake(waiting: &Cell<Option<Waker>>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}

impl Ring {
    /// The free stretch behind what is filled; empty only when the ring is full.
    fn room(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = vec![0; SEND_BUFFER];
        }
        if self.len == 0 {
            self.start = 0;
        }
        let size = self.bytes.len();
        let end = self.start + self.len;
        if end < size { &mut self.bytes[end..] } else { &mut self.bytes[end - size..self.start] }
    }

    /// What is filled, in order, in two parts.
    fn filled(&self) -> (&[u8], &[u8]) {
        let size = self.bytes.len();
        let end = self.start + self.len;
        if end <= size {
            (&self.bytes[self.start..end], &[])
        } else {
            (&self.bytes[self.start..], &self.bytes[..end - size])
        }
    }

    fn drop_front(&mut self, count: usize) {
        assert!(count <= self.len, "the system took more bytes than it was given");
        self.start = (self.start + count) % self.bytes.len();
        self.len -= count;
    }
}
