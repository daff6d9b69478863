//! The system's sockets as the network: listeners, datagrams, outbound connections.

use super::stream::OsStream;
use moraine_platform::{Connecting, Datagram, Listener, NetError, NetFuture, Network, Stream};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Handshakes and connections the system holds for a listener that has not accepted them yet.
const BACKLOG: u32 = 64;
/// The largest UDP payload, in bytes.
const DATAGRAM_MAX: usize = 65_507;

/// The network of this process.
pub struct OsNetwork;

impl Network for OsNetwork {
    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, NetError> {
        let bind = || -> io::Result<TcpListener> {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(BACKLOG)
        };
        let listener = bind().map_err(net_error)?;
        let local = listener.local_addr().map_err(net_error)?;
        Ok(Box::new(OsListener { listener: Rc::new(listener), local }))
    }

    fn bind(&self, address: SocketAddr) -> Result<Box<dyn Datagram>, NetError> {
        let bind = || -> io::Result<UdpSocket> {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        };
        let socket = bind().map_err(net_error)?;
        let local = socket.local_addr().map_err(net_error)?;
        Ok(Box::new(OsDatagram { socket: Rc::new(socket), local }))
    }

    fn connect(&self, peer: SocketAddr) -> Connecting {
        Box::pin(async move {
            let stream = TcpStream::connect(peer).await.map_err(net_error)?;
            Ok(Rc::new(OsStream::start(stream)?) as Rc<dyn Stream>)
        })
    }
}

struct OsListener {
    listener: Rc<TcpListener>,
    local: SocketAddr,
}

impl Listener for OsListener {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn accept(&self) -> NetFuture<Rc<dyn Stream>> {
        let listener = self.listener.clone();
        Box::pin(async move {
            loop {
                let (stream, _) = listener.accept().await.map_err(net_error)?;
                // A connection that died before it was taken is nobody's error.
                if let Ok(stream) = OsStream::start(stream) {
                    return Ok(Rc::new(stream) as Rc<dyn Stream>);
                }
            }
        })
    }
}

struct OsDatagram {
    socket: Rc<UdpSocket>,
    local: SocketAddr,
}

impl Datagram for OsDatagram {
    fn local(&self) -> SocketAddr {
        self.local
    }

    fn recv(&self) -> NetFuture<(Vec<u8>, SocketAddr)> {
        let socket = self.socket.clone();
        Box::pin(async move {
            let mut bytes = vec![0; DATAGRAM_MAX];
            let (len, from) = socket.recv_from(&mut bytes).await.map_err(net_error)?;
            bytes.truncate(len);
            Ok((bytes, from))
        })
    }

    fn send(&self, to: SocketAddr, bytes: Vec<u8>) -> NetFuture<()> {
        let socket = self.socket.clone();
        Box::pin(async move {
            socket.send_to(&bytes, to).await.map_err(net_error)?;
            Ok(())
        })
    }
}

/// The system's error as the platform's.
pub(super) fn net_error(e: io::Error) -> NetError {
    use io::ErrorKind as K;
    match e.kind() {
        K::AddrInUse | K::AddrNotAvailable | K::PermissionDenied => NetError::AddressInUse,
        K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => {
            NetError::Unreachable
        }
        K::OutOfMemory | K::QuotaExceeded => NetError::Exhausted,
        K::NotConnected => NetError::Closed,
        _ => match e.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE | rustix::io::Errno::NOBUFS) => {
                NetError::Exhausted
            }
            _ => NetError::Reset,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::run;
    use moraine_platform::sync::Event;
    use std::cell::Cell;
    use std::net::Ipv4Addr;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    async fn pair() -> (Rc<dyn Stream>, Rc<dyn Stream>) {
        let listener = OsNetwork.listen(ANY).unwrap();
        let client = OsNetwork.connect(listener.local()).await.unwrap();
        (client, listener.accept().await.unwrap())
    }

    #[test]
    fn megabytes_pass_both_ways_and_both_ends_see_the_end() {
        const LEN: usize = 5 << 20;
        run(async |platform| {
            let (a, b) = pair().await;
            let (ended, both) = (Rc::new(Cell::new(0)), Rc::new(Event::new()));
            for stream in [&a, &b] {
                let (reader, ended, both) = (stream.clone(), ended.clone(), both.clone());
                platform.spawn.spawn(
                    "reader",
                    Box::pin(async move {
                        let mut expect = 0_usize;
                        let mut chunk = vec![0; 7001];
                        loop {
                            let n = reader.recv(&mut chunk).await.unwrap();
                            if n == 0 {
                                break;
                            }
                            for &byte in &chunk[..n] {
                                assert_eq!(byte, ((expect * 31) >> 3) as u8);
                                expect += 1;
                            }
                        }
                        assert_eq!(expect, LEN);
                        ended.set(ended.get() + 1);
                        both.notify();
                    }),
                );
            }
            let data: Vec<u8> = (0..LEN).map(|i| ((i * 31) >> 3) as u8).collect();
            for stream in [&a, &b] {
                stream.send_all(&data).await.unwrap();
                stream.close();
            }
            both.until(|| (ended.get() == 2).then_some(())).await;
        })
        .unwrap();
    }

    #[test]
    fn a_reader_that_stalls_stops_the_writer_and_an_abort_ends_both() {
        run(async |platform| {
            let (a, b) = pair().await;
            let sent = Rc::new(Cell::new(0_usize));
            let (writer, count) = (a.clone(), sent.clone());
            let failed = Rc::new(Event::new());
            let (why, signal) = (Rc::new(Cell::new(None)), failed.clone());
            let result = why.clone();
            platform.spawn.spawn(
                "writer",
                Box::pin(async move {
                    let chunk = [5; 64 << 10];
                    let e = loop {
                        match writer.send_all(&chunk).await {
                            Ok(()) => count.set(count.get() + chunk.len()),
                            Err(e) => break e,
                        }
                    };
                    result.set(Some(e));
                    signal.notify();
                }),
            );
            // One byte read proves that the connection works; then nothing is read, and the writer gets stuck.
            let mut byte = [0];
            assert!(b.recv_exact(&mut byte).await.unwrap());
            let (mut before, mut turns_without_progress) = (0, 0);
            while turns_without_progress < 5_000 {
                turns_without_progress = if before == sent.get() { turns_without_progress + 1 } else { 0 };
                before = sent.get();
                tokio::task::yield_now().await;
            }
            assert!(before < 64 << 20, "bounded by the buffers of both ends");
            assert_eq!(why.get(), None, "still waiting");
            b.abort();
            assert_eq!(failed.until(|| why.get()).await, NetError::Reset);
            assert_eq!(b.recv(&mut byte).await, Err(NetError::Closed));
            assert_eq!(b.send_all(&byte).await, Err(NetError::Closed));
        })
        .unwrap();
    }

    #[test]
    fn bytes_given_just_before_the_last_handle_goes_arrive() {
        run(async |_| {
            let (a, b) = pair().await;
            a.send_all(b"farewell").await.unwrap();
            drop(a);
            let mut got = [0; 8];
            assert!(b.recv_exact(&mut got).await.unwrap());
            assert_eq!(&got, b"farewell");
            assert_eq!(b.recv(&mut got).await, Ok(0));
        })
        .unwrap();
    }

    #[test]
    fn datagrams_pass_and_a_taken_port_is_named() {
        run(async |_| {
            let (a, b) = (OsNetwork.bind(ANY).unwrap(), OsNetwork.bind(ANY).unwrap());
            a.send(b.local(), b"ping".to_vec()).await.unwrap();
            assert_eq!(b.recv().await.unwrap(), (b"ping".to_vec(), a.local()));
            assert_eq!(OsNetwork.bind(a.local()).err(), Some(NetError::AddressInUse));
            let listener = OsNetwork.listen(ANY).unwrap();
            assert_eq!(OsNetwork.listen(listener.local()).err(), Some(NetError::AddressInUse));
            let gone = listener.local();
            drop(listener);
            assert_eq!(OsNetwork.connect(gone).await.err(), Some(NetError::Unreachable));
        })
        .unwrap();
    }
}
