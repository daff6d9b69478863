//! What protocols hold: a stream or a listener, as an index into the stack's state.

use crate::connection::{ConnId, Phase, PortId};
use crate::stack::Shared;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::future::poll_fn;
use core::net::SocketAddr;
use core::task::{Context, Poll};
use core::time::Duration;
use moraine_platform::{Connecting, Listener, NetError, NetFuture, Stream};
use smoltcp::socket::tcp::{RecvError, State};

/// How long an outbound handshake may take.
const CONNECT_MAX: Duration = Duration::from_secs(20);

/// A TCP connection. Dropping it ends the connection in good order.
pub(crate) struct TcpStream {
    shared: Rc<Shared>,
    id: ConnId,
    peer: SocketAddr,
    local: SocketAddr,
    /// Whether this side aborted.
    aborted: core::cell::Cell<bool>,
}

impl TcpStream {
    /// Takes over a connection whose phase is [`Phase::Owned`] or [`Phase::Connecting`].
    fn adopt(shared: Rc<Shared>, id: ConnId) -> TcpStream {
        let tuple = shared.hub.borrow().connections[id].as_ref().map(|c| c.tuple);
        let tuple = tuple.expect("a connection lives as long as somebody holds it");
        let aborted = core::cell::Cell::new(false);
        TcpStream { shared, id, peer: tuple.remote, local: tuple.local, aborted }
    }

    /// Why nothing can be sent or received any more.
    fn ending(&self) -> NetError {
        if self.aborted.get() { NetError::Closed } else { NetError::Reset }
    }
}

impl Stream for TcpStream {
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
        let hub = &mut *self.shared.hub.borrow_mut();
        let Some(connection) = &mut hub.connections[self.id] else { return Poll::Ready(Err(self.ending())) };
        let socket = connection.socket();
        if self.aborted.get() {
            return Poll::Ready(Err(NetError::Closed));
        }
        if socket.can_recv() {
            let taken = socket.recv(|bytes| {
                let taken = take(bytes);
                assert!(taken <= bytes.len(), "a protocol took more bytes than there are");
                (taken, taken)
            });
            let Ok(taken) = taken else { return Poll::Ready(Err(self.ending())) };
            // The window may have opened enough to tell the peer.
            hub.wake(self.id);
            self.shared.work.notify();
            return Poll::Ready(Ok(taken));
        }
        match socket.recv(|_| (0, ())) {
            Err(RecvError::Finished) => Poll::Ready(Ok(0)),
            Err(RecvError::InvalidState) if socket.state() != State::SynSent => {
                Poll::Ready(Err(self.ending()))
            }
            _ => {
                socket.register_recv_waker(cx.waker());
                Poll::Pending
            }
        }
    }

    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        give: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        let hub = &mut *self.shared.hub.borrow_mut();
        let Some(connection) = &mut hub.connections[self.id] else { return Poll::Ready(Err(self.ending())) };
        let socket = connection.socket();
        if !socket.may_send() {
            let closed_here = socket.state() != State::Closed;
            return Poll::Ready(Err(if closed_here { NetError::Closed } else { self.ending() }));
        }
        if !socket.can_send() {
            socket.register_send_waker(cx.waker());
            return Poll::Pending;
        }
        let given = socket.send(|room| {
            let given = give(room);
            assert!(given <= room.len(), "a protocol gave more bytes than there is room for");
            (given, given)
        });
        let Ok(given) = given else { return Poll::Ready(Err(self.ending())) };
        connection.given += given as u64;
        hub.wake(self.id);
        self.shared.work.notify();
        Poll::Ready(Ok(given))
    }

    fn close(&self) {
        let hub = &mut *self.shared.hub.borrow_mut();
        if let Some(connection) = &mut hub.connections[self.id] {
            connection.socket().close();
            hub.wake(self.id);
            self.shared.work.notify();
        }
    }

    fn abort(&self) {
        let hub = &mut *self.shared.hub.borrow_mut();
        if let Some(connection) = &mut hub.connections[self.id] {
            self.aborted.set(true);
            connection.socket().abort();
            hub.wake(self.id);
            self.shared.work.notify();
        }
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.shared.hub.borrow_mut().orphan(self.id, self.shared.clock.now());
        self.shared.work.notify();
    }
}

/// Connects to `peer`; dropping the future gives up.
pub(crate) fn connect(shared: Rc<Shared>, peer: SocketAddr) -> Connecting {
    Box::pin(async move {
        let now = shared.clock.now();
        let random = shared.rng.next_u64();
        let id = shared.hub.borrow_mut().connect(peer, random, now + CONNECT_MAX, now)?;
        shared.work.notify();
        let stream = TcpStream::adopt(shared.clone(), id);
        poll_fn(|cx| {
            let hub = &mut *shared.hub.borrow_mut();
            let Some(connection) = &mut hub.connections[id] else {
                return Poll::Ready(Err(NetError::Unreachable));
            };
            let socket = connection.socket();
            match socket.state() {
                State::SynSent | State::SynReceived => {
                    // Every change of state wakes both sides; a protocol has not registered any yet.
                    socket.register_send_waker(cx.waker());
                    Poll::Pending
                }
                State::Closed => Poll::Ready(Err(NetError::Unreachable)),
                _ => {
                    connection.phase = Phase::Owned;
                    Poll::Ready(Ok(()))
                }
            }
        })
        .await?;
        Ok(Rc::new(stream) as Rc<dyn Stream>)
    })
}

/// A listening port; closed with its last holder.
pub(crate) struct TcpListener {
    port: Rc<OpenPort>,
}

struct OpenPort {
    shared: Rc<Shared>,
    id: PortId,
    local: SocketAddr,
}

impl TcpListener {
    /// Opens a port.
    pub(crate) fn open(shared: Rc<Shared>, address: SocketAddr) -> Result<TcpListener, NetError> {
        let random = shared.rng.next_u64();
        let (id, local) = {
            let mut hub = shared.hub.borrow_mut();
            let id = hub.open_port(address, random)?;
            let local = hub.ports[id].as_ref().map_or(address, |port| port.local);
            (id, local)
        };
        Ok(TcpListener { port: Rc::new(OpenPort { shared, id, local }) })
    }
}

impl Listener for TcpListener {
    fn local(&self) -> SocketAddr {
        self.port.local
    }

    fn accept(&self) -> NetFuture<Rc<dyn Stream>> {
        let port = self.port.clone();
        Box::pin(async move {
            let arrived = port.shared.hub.borrow().ports[port.id].as_ref().map(|p| p.arrived.clone());
            let arrived = arrived.ok_or(NetError::Closed)?;
            let id = arrived.until(|| port.next()).await;
            Ok(Rc::new(TcpStream::adopt(port.shared.clone(), id)) as Rc<dyn Stream>)
        })
    }
}

impl OpenPort {
    /// The connection that has waited longest.
    fn next(&self) -> Option<ConnId> {
        let hub = &mut *self.shared.hub.borrow_mut();
        let id = hub.ports[self.id].as_mut()?.waiting.pop_front()?;
        hub.connections[id].as_mut()?.phase = Phase::Owned;
        Some(id)
    }
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        self.shared.hub.borrow_mut().close_port(self.id, self.shared.clock.now());
        self.shared.work.notify();
    }
}
