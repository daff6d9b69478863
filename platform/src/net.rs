//! Network endpoints: byte streams, listeners, datagrams and outbound connections.

use crate::LocalFuture;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;
use core::task::{Context, Poll};

/// A network operation under way.
pub type NetFuture<T> = LocalFuture<Result<T, NetError>>;
/// An outbound connection being made.
pub type Connecting = NetFuture<Rc<dyn Stream>>;

/// Why a network operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// The peer reset the connection or it timed out.
    Reset,
    /// This side closed or aborted it.
    Closed,
    /// The address is in use or cannot be bound.
    AddressInUse,
    /// No route, no address yet, or the peer refused.
    Unreachable,
    /// A bound (sockets, buffers) was reached; try again later.
    Exhausted,
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NetError::Reset => "connection reset",
            NetError::Closed => "connection closed",
            NetError::AddressInUse => "address in use",
            NetError::Unreachable => "unreachable",
            NetError::Exhausted => "out of network buffers",
        })
    }
}

/// A reliable, ordered byte stream (TCP). Data is handed over by closure, so that a protocol can parse from and
/// write into the transport's own buffers without a copy in between.
pub trait Stream {
    /// The other end.
    fn peer(&self) -> SocketAddr;
    /// This end.
    fn local(&self) -> SocketAddr;

    /// Waits until unread bytes are there, then calls `take` once with a non-empty slice of them (not necessarily
    /// all that arrived); it returns how many it consumed, at most the slice's length. `Ready(Ok(0))` without a call
    /// of `take` means end of stream. Not reading is back-pressure: the window closes and the peer waits.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Poll<Result<usize, NetError>>;

    /// Waits until there is room, then calls `give` once with a non-empty slice to fill; it returns how many bytes
    /// it put there. They leave soon, without a further call.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        give: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Poll<Result<usize, NetError>>;

    /// Ends this side's half of the stream after what was sent; the peer reads to the end and sees it.
    fn close(&self);

    /// Drops the connection at once (RST).
    fn abort(&self);
}

impl dyn Stream {
    /// Receives at least one byte into `out` and returns how many; 0 at the end of the stream.
    pub async fn recv(&self, out: &mut [u8]) -> Result<usize, NetError> {
        core::future::poll_fn(|cx| {
            self.poll_recv(cx, &mut |bytes| {
                let n = bytes.len().min(out.len());
                out[..n].copy_from_slice(&bytes[..n]);
                n
            })
        })
        .await
    }

    /// Fills `out`; `Ok(false)` if the stream ended before its first byte, [`NetError::Reset`] if it ended amid it.
    pub async fn recv_exact(&self, out: &mut [u8]) -> Result<bool, NetError> {
        let mut at = 0;
        while at < out.len() {
            match self.recv(&mut out[at..]).await? {
                0 if at == 0 => return Ok(false),
                0 => return Err(NetError::Reset),
                n => at += n,
            }
        }
        Ok(true)
    }

    /// Sends all of `bytes`.
    pub async fn send_all(&self, bytes: &[u8]) -> Result<(), NetError> {
        let mut at = 0;
        while at < bytes.len() {
            at += core::future::poll_fn(|cx| {
                self.poll_send(cx, &mut |room| {
                    let n = room.len().min(bytes.len() - at);
                    room[..n].copy_from_slice(&bytes[at..at + n]);
                    n
                })
            })
            .await?;
        }
        Ok(())
    }
}

/// Accepts streams on a port.
pub trait Listener {
    /// The address it listens on, with the real port when 0 was asked for.
    fn local(&self) -> SocketAddr;
    /// Waits for the next connection.
    fn accept(&self) -> NetFuture<Rc<dyn Stream>>;
}

/// An unconnected datagram socket (UDP).
pub trait Datagram {
    /// The address it is bound to.
    fn local(&self) -> SocketAddr;
    /// Waits for the next datagram and who sent it.
    fn recv(&self) -> NetFuture<(Vec<u8>, SocketAddr)>;
    /// Sends one datagram; it may be lost like any other.
    fn send(&self, to: SocketAddr, bytes: Vec<u8>) -> NetFuture<()>;
}

/// The machine's network.
pub trait Network {
    /// Listens for streams on `address`; the unspecified address means all, port 0 any free one.
    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, NetError>;
    /// Binds a datagram socket, with the same meaning of `address`.
    fn bind(&self, address: SocketAddr) -> Result<Box<dyn Datagram>, NetError>;
    /// Connects to `peer`.
    fn connect(&self, peer: SocketAddr) -> Connecting;
}
