//! A connection in memory: two pipes with bounded buffers, that can be cut, and that hand bytes over in pieces as small
//! as a test wants.

use moraine_platform::{Datagram, NetError, NetFuture, Stream};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// How a connection behaves.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Bytes a pipe holds.
    pub buffer: usize,
    /// Bytes handed over at once, either way.
    pub piece: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { buffer: 256 << 10, piece: usize::MAX }
    }
}

#[derive(Default)]
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    ended: Cell<bool>,
    reset: Cell<bool>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

impl Pipe {
    fn wake(&self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

/// One end of a connection.
pub struct End {
    from: Rc<Pipe>,
    to: Rc<Pipe>,
    local: SocketAddr,
    peer: SocketAddr,
    limits: Limits,
}

/// A connection: the client's end and the server's.
pub fn duplex(client: SocketAddr, server: SocketAddr, limits: Limits) -> (Rc<End>, Rc<End>) {
    let (up, down) = (Rc::new(Pipe::default()), Rc::new(Pipe::default()));
    let ours = End { from: down.clone(), to: up.clone(), local: client, peer: server, limits };
    let theirs = End { from: up, to: down, local: server, peer: client, limits };
    (Rc::new(ours), Rc::new(theirs))
}

impl End {
    /// Bytes sent that the other end has not taken.
    pub fn untaken(&self) -> usize {
        self.to.bytes.borrow().len()
    }
}

impl Stream for End {
    fn peer(&self) -> SocketAddr {
        self.peer
    }
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        if self.from.reset.get() {
            return Poll::Ready(Err(NetError::Reset));
        }
        let mut bytes = self.from.bytes.borrow_mut();
        if bytes.is_empty() {
            if self.from.ended.get() {
                return Poll::Ready(Ok(0));
            }
            self.from.reader.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        let piece = bytes.as_slices().0;
        let piece = &piece[..piece.len().min(self.limits.piece)];
        let used = take(piece);
        assert!(used <= piece.len(), "more was taken than was there");
        bytes.drain(..used);
        drop(bytes);
        self.from.wake();
        Poll::Ready(Ok(used))
    }

    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        give: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        if self.to.reset.get() || self.to.ended.get() {
            return Poll::Ready(Err(NetError::Reset));
        }
        let mut bytes = self.to.bytes.borrow_mut();
        let room = (self.limits.buffer - bytes.len().min(self.limits.buffer)).min(self.limits.piece);
        if room == 0 {
            self.to.writer.set(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        let mut buffer = vec![0xee; room];
        let given = give(&mut buffer);
        assert!(0 < given && given <= room, "something is given, and no more than there is room for");
        bytes.extend(&buffer[..given]);
        drop(bytes);
        self.to.wake();
        Poll::Ready(Ok(given))
    }

    fn close(&self) {
        self.to.ended.set(true);
        self.to.wake();
    }

    fn abort(&self) {
        for pipe in [&self.from, &self.to] {
            pipe.reset.set(true);
            pipe.bytes.borrow_mut().clear();
            pipe.wake();
        }
    }
}

/// A datagram socket and the network behind it: what was put in is received, what is sent is kept.
#[derive(Default)]
pub struct Datagrams {
    incoming: RefCell<VecDeque<(Vec<u8>, SocketAddr)>>,
    waiting: Cell<Option<Waker>>,
    outgoing: RefCell<VecDeque<(SocketAddr, Vec<u8>)>>,
}

impl Datagrams {
    pub fn put(&self, from: &str, bytes: &[u8]) {
        self.incoming.borrow_mut().push_back((bytes.to_vec(), from.parse().unwrap()));
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    pub fn sent(&self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outgoing.borrow_mut().pop_front()
    }
}

/// The socket's end of [`Datagrams`].
pub struct Socket(pub Rc<Datagrams>);

impl Datagram for Socket {
    fn local(&self) -> SocketAddr {
        "10.0.0.9:111".parse().unwrap()
    }
    fn recv(&self) -> NetFuture<(Vec<u8>, SocketAddr)> {
        let all = self.0.clone();
        Box::pin(poll_fn(move |cx| match all.incoming.borrow_mut().pop_front() {
            Some(datagram) => Poll::Ready(Ok(datagram)),
            None => {
                all.waiting.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        }))
    }
    fn send(&self, to: SocketAddr, bytes: Vec<u8>) -> NetFuture<()> {
        self.0.outgoing.borrow_mut().push_back((to, bytes));
        Box::pin(std::future::ready(Ok(())))
    }
}
