//! UDP endpoints: few, small, and served together with everything else that is not TCP.

use crate::admission::covers;
use crate::hub::free_port;
use crate::stack::Shared;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::net::SocketAddr;
use core::task::Poll;
use moraine_platform::{Datagram, NetError, NetFuture};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp::{self, PacketMetadata, SendError};
use smoltcp::wire::{IpEndpoint, IpListenEndpoint};

/// UDP endpoints at once.
const ENDPOINTS_MAX: usize = 8;
/// Datagrams that wait in each direction of an endpoint.
const DATAGRAMS_MAX: usize = 32;
/// Bytes of datagrams that wait in each direction.
const DATAGRAM_BYTES: usize = 32 << 10;

/// A bound UDP endpoint.
pub(crate) struct UdpDatagram {
    endpoint: Rc<Endpoint>,
}

struct Endpoint {
    shared: Rc<Shared>,
    handle: SocketHandle,
    local: SocketAddr,
}

impl UdpDatagram {
    /// Binds an endpoint; port 0 takes any free one.
    pub(crate) fn bind(shared: Rc<Shared>, mut local: SocketAddr) -> Result<UdpDatagram, NetError> {
        let random = shared.rng.next_u64();
        let handle = {
            let hub = &mut *shared.hub.borrow_mut();
            let bound = &mut *shared.bound.borrow_mut();
            if local.port() == 0 {
                let taken = |port| bound.iter().any(|b: &SocketAddr| b.port() == port);
                local.set_port(free_port(random, taken).ok_or(NetError::Exhausted)?);
            }
            if bound.iter().any(|b| covers(*b, local) || covers(local, *b)) {
                return Err(NetError::AddressInUse);
            }
            if bound.len() == ENDPOINTS_MAX {
                return Err(NetError::Exhausted);
            }
            let buffer = || {
                udp::PacketBuffer::new(vec![PacketMetadata::EMPTY; DATAGRAMS_MAX], vec![0; DATAGRAM_BYTES])
            };
            let mut socket = udp::Socket::new(buffer(), buffer());
            let addr = (!local.ip().is_unspecified()).then(|| local.ip().into());
            socket.bind(IpListenEndpoint { addr, port: local.port() }).map_err(|_| NetError::AddressInUse)?;
            bound.push(local);
            hub.base.add(socket)
        };
        Ok(UdpDatagram { endpoint: Rc::new(Endpoint { shared, handle, local }) })
    }
}

impl Datagram for UdpDatagram {
    fn local(&self) -> SocketAddr {
        self.endpoint.local
    }

    fn recv(&self) -> NetFuture<(Vec<u8>, SocketAddr)> {
        let endpoint = self.endpoint.clone();
        Box::pin(poll_fn(move |cx| {
            let hub = &mut *endpoint.shared.hub.borrow_mut();
            let socket = hub.base.get_mut::<udp::Socket<'_>>(endpoint.handle);
            match socket.recv() {
                Ok((bytes, from)) => Poll::Ready(Ok((bytes.to_vec(), from.endpoint.into()))),
                Err(_) => {
                    socket.register_recv_waker(cx.waker());
                    Poll::Pending
                }
            }
        }))
    }

    fn send(&self, to: SocketAddr, bytes: Vec<u8>) -> NetFuture<()> {
        let endpoint = self.endpoint.clone();
        Box::pin(poll_fn(move |cx| {
            let hub = &mut *endpoint.shared.hub.borrow_mut();
            let socket = hub.base.get_mut::<udp::Socket<'_>>(endpoint.handle);
            if bytes.len() > socket.payload_send_capacity() {
                return Poll::Ready(Err(NetError::Exhausted));
            }
            match socket.send_slice(&bytes, IpEndpoint::from(to)) {
                Ok(()) => {
                    hub.wake_base();
                    endpoint.shared.work.notify();
                    Poll::Ready(Ok(()))
                }
                Err(SendError::BufferFull) => {
                    socket.register_send_waker(cx.waker());
                    Poll::Pending
                }
                Err(SendError::Unaddressable) => Poll::Ready(Err(NetError::Unreachable)),
            }
        }))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.shared.hub.borrow_mut().base.remove(self.handle);
        self.shared.bound.borrow_mut().retain(|bound| *bound != self.local);
    }
}
