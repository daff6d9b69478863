//! Many connections, limits, resets, silent and stalled peers.

use super::transfers::{Pair, address, any, config, pair};
use super::wire::{FULL, PLAIN, SUMS};
use crate::Config;
use crate::admission::HALF_OPEN_MAX;
use core::net::SocketAddr;
use core::time::Duration;
use moraine_platform::{Clock, NetError, Network, RxMeta, Stream};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

fn server() -> SocketAddr {
    SocketAddr::new(address(false, 2), 2049)
}

/// A connected pair: the client's end, the server's.
async fn join(
    connect: moraine_platform::Connecting,
    listener: &dyn moraine_platform::Listener,
) -> [Rc<dyn Stream>; 2] {
    let client = connect.await.unwrap();
    [client, listener.accept().await.unwrap()]
}

#[test]
fn two_hundred_fifty_connections_work_and_idle_ones_cost_nothing() {
    let Pair { world, stacks: [a, b], .. } = pair(1, [FULL, FULL], [config(1), config(2)]);
    let listener = b.listen(any(2049)).unwrap();
    let inner = world.clone();
    let (client_stack, server_stack) = (a.clone(), b.clone());
    world.run(async move {
        let mut streams = Vec::new();
        for _ in 0..250 {
            streams.push(join(client_stack.connect(server()), &*listener).await);
        }
        assert_eq!(server_stack.connections(), 250);
        for (i, [client, server]) in streams.iter().enumerate() {
            client.send_all(&[i as u8; 9]).await.unwrap();
            let mut got = [0; 9];
            assert!(server.recv_exact(&mut got).await.unwrap());
            assert_eq!(got, [i as u8; 9]);
        }
        inner.sleep(Duration::from_millis(100)).await;
        // One busy connection among 249 idle ones: the idle ones are not looked at.
        let before = server_stack.counters().polls;
        let [client, server] = &streams[100];
        for _ in 0..200 {
            client.send_all(b"question").await.unwrap();
            let mut got = [0; 8];
            assert!(server.recv_exact(&mut got).await.unwrap());
        }
        let polls = server_stack.counters().polls - before;
        assert!(polls < 200 * 5, "{polls} polls for 200 messages");
        // And an idle second costs next to nothing.
        let before = inner.turns();
        inner.sleep(Duration::from_secs(1)).await;
        assert!(inner.turns() - before < 2 * 250 * 3, "{} turns in an idle second", inner.turns() - before);
        drop(streams);
        inner.sleep(Duration::from_secs(30)).await;
        assert_eq!((client_stack.connections(), server_stack.connections()), (0, 0), "all are forgotten");
    });
}

#[test]
fn a_full_stack_refuses_politely_and_serves_again_when_there_is_room() {
    let small = Config { connections_max: 4, buffer_bytes: 4 * (32 << 10), ..config(2) };
    let Pair { world, stacks: [a, b], .. } = pair(2, [PLAIN, PLAIN], [config(1), small]);
    let listener = b.listen(any(2049)).unwrap();
    let stack = b.clone();
    world.run(async move {
        let mut streams = Vec::new();
        for _ in 0..4 {
            streams.push(join(a.connect(server()), &*listener).await);
        }
        assert_eq!(a.connect(server()).await.err(), Some(NetError::Unreachable), "no answer comes");
        assert!(stack.counters().syn_dropped > 0);
        let [client, server_end] = streams.remove(0);
        client.send_all(b"still served").await.unwrap();
        let mut got = [0; 12];
        assert!(server_end.recv_exact(&mut got).await.unwrap());
        drop((client, server_end));
        let [client, _server_end] = join(a.connect(server()), &*listener).await;
        assert_eq!(client.peer(), server());
        assert_eq!(stack.connections(), 4);
    });
}

#[test]
fn a_closed_port_resets_and_a_closed_listener_frees_its_port() {
    let Pair { world, stacks: [a, b], .. } = pair(3, [PLAIN, PLAIN], [config(1), config(2)]);
    let clock = world.clone();
    world.run(async move {
        let start = clock.now();
        assert_eq!(a.connect(server()).await.err(), Some(NetError::Unreachable));
        assert!(clock.now().since(start) < Duration::from_millis(10), "by a reset, not by a timeout");
        let listener = b.listen(any(2049)).unwrap();
        assert_eq!(b.listen(server()).err(), Some(NetError::AddressInUse));
        let waiting = a.connect(server()).await.unwrap();
        drop(listener);
        let mut byte = [0];
        assert_eq!(waiting.recv(&mut byte).await, Err(NetError::Reset), "nobody accepted it");
        let other = b.listen(any(0)).unwrap();
        assert!(other.local().port() >= 49_152);
        assert!(b.listen(any(2049)).is_ok());
    });
}

#[test]
fn an_abort_reaches_the_peer_and_a_close_is_read_to_the_end() {
    let Pair { world, stacks: [a, b], .. } = pair(4, [FULL, PLAIN], [config(1), config(2)]);
    let listener = b.listen(any(2049)).unwrap();
    world.run(async move {
        let mut byte = [0; 4];
        let [client, server_end] = join(a.connect(server()), &*listener).await;
        client.send_all(b"last").await.unwrap();
        client.close();
        assert_eq!(client.send_all(b"x").await, Err(NetError::Closed));
        assert!(server_end.recv_exact(&mut byte).await.unwrap());
        assert_eq!(server_end.recv(&mut byte).await, Ok(0));
        server_end.send_all(b"half").await.unwrap();
        assert!(client.recv_exact(&mut byte).await.unwrap(), "the other half is still open");
        server_end.abort();
        assert_eq!(server_end.recv(&mut byte).await, Err(NetError::Closed));
        assert_eq!(client.recv(&mut byte).await, Err(NetError::Reset));
        // Dropping a stream with unread data tells the peer that it was not read.
        let [client, server_end] = join(a.connect(server()), &*listener).await;
        client.send_all(b"unread").await.unwrap();
        let mut one = [0];
        assert!(server_end.recv_exact(&mut one).await.unwrap());
        drop(server_end);
        assert_eq!(client.recv(&mut byte).await, Err(NetError::Reset));
    });
}

#[test]
fn a_peer_that_vanishes_or_stalls_loses_its_connection() {
    let Pair { world, stacks: [a, b], cards } = pair(5, [PLAIN, PLAIN], [config(1), config(2)]);
    let listener = b.listen(any(2049)).unwrap();
    let clock = world.clone();
    world.run(async move {
        // Stalled: it answers, but reads nothing.
        let [client, stalled] = join(a.connect(server()), &*listener).await;
        let start = clock.now();
        assert_eq!(stalled.send_all(&vec![1; 1 << 20]).await, Err(NetError::Reset));
        let after = clock.now().since(start);
        assert!((60..75).contains(&after.as_secs()), "{after:?}");
        let mut sink = vec![0; 1 << 20];
        while client.recv(&mut sink).await.is_ok_and(|n| n > 0) {}
        // Idle, but there: it stays.
        let [client, idle] = join(a.connect(server()), &*listener).await;
        clock.sleep(Duration::from_secs(600)).await;
        client.send_all(b"here").await.unwrap();
        let mut got = [0; 4];
        assert!(idle.recv_exact(&mut got).await.unwrap());
        // Vanished without a word.
        cards[0].unplugged.set(true);
        let start = clock.now();
        assert_eq!(idle.recv(&mut got).await, Err(NetError::Reset));
        let after = clock.now().since(start);
        assert!((60..=120).contains(&after.as_secs()), "{after:?}");
    });
}

/// A SYN from `10.0.0.1:port` to the server, as a frame.
fn syn(port: u16) -> Vec<u8> {
    segment(port, TcpControl::Syn, 1000, None)
}

/// A segment from `10.0.0.1:port` to the server, as a frame.
fn segment(port: u16, control: TcpControl, sequence: i32, acknowledges: Option<TcpSeqNumber>) -> Vec<u8> {
    let max_seg_size = (control == TcpControl::Syn).then_some(1460);
    let header_len = if max_seg_size.is_some() { 24 } else { 20 };
    let ip = Ipv4Repr {
        src_addr: [10, 0, 0, 1].into(),
        dst_addr: [10, 0, 0, 2].into(),
        next_header: IpProtocol::Tcp,
        payload_len: header_len,
        hop_limit: 64,
    };
    let tcp = TcpRepr {
        src_port: port,
        dst_port: 2049,
        control,
        seq_number: TcpSeqNumber(sequence),
        ack_number: acknowledges,
        window_len: 1000,
        window_scale: None,
        max_seg_size,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut bytes = vec![0; 14 + 20 + header_len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(EthernetAddress([2, 0, 0, 0, 0, 1]));
    frame.set_dst_addr(EthernetAddress([2, 0, 0, 0, 0, 2]));
    frame.set_ethertype(EthernetProtocol::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &ChecksumCapabilities::default());
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    tcp.emit(&mut segment, &ip.src_addr.into(), &ip.dst_addr.into(), &ChecksumCapabilities::default());
    bytes
}

#[test]
fn a_flood_of_syns_holds_a_bounded_number_of_places_and_passes() {
    let Pair { world, stacks: [a, b], cards } = pair(6, [PLAIN, PLAIN], [config(1), config(2)]);
    let listener = b.listen(any(2049)).unwrap();
    let clock = world.clone();
    world.run(async move {
        // The client's stack would answer with resets; a flooding host does not.
        cards[1].unplugged.set(true);
        for port in 1..=200 {
            cards[0].put(syn(port), RxMeta::default());
        }
        clock.sleep(Duration::from_secs(1)).await;
        assert_eq!(b.connections(), HALF_OPEN_MAX);
        assert_eq!(b.counters().syn_dropped, 200 - HALF_OPEN_MAX as u64);
        cards[1].unplugged.set(false);
        clock.sleep(Duration::from_secs(10)).await;
        assert_eq!(b.connections(), 0, "half-open connections are given up");
        let [client, _server_end] = join(a.connect(server()), &*listener).await;
        assert_eq!(client.peer(), server());
    });
}

/// The last TCP segment among the frames.
fn last_segment(frames: &[Vec<u8>]) -> Option<TcpRepr<'_>> {
    frames.iter().rev().find_map(|frame| {
        let ip =
            Ipv4Packet::new_checked(EthernetFrame::new_checked(&frame[..]).ok()?.into_inner().get(14..)?);
        let ip = ip.ok().filter(|ip| ip.next_header() == IpProtocol::Tcp)?;
        let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
        let segment = TcpPacket::new_checked(ip.into_inner().get(20..)?).ok()?;
        Some(TcpRepr::parse(&segment, &src, &dst, &ChecksumCapabilities::default()).expect("it is sound"))
    })
}

/// A client by hand which uses its port again after a reboot while the server still holds its connection, at rest or with
/// data on its way.
fn a_client_reboots(treatment: impl AsyncFnOnce(&Rc<dyn Stream>) + 'static) {
    let Pair { world, stacks: [_, b], cards: [ours, theirs] } =
        pair(8, [SUMS, PLAIN], [config(3), config(2)]);
    let listener = b.listen(any(2049)).unwrap();
    let clock = world.clone();
    world.run(async move {
        let heard = async || {
            *theirs.tap.borrow_mut() = Some(Vec::new());
            clock.sleep(Duration::from_millis(1)).await;
            theirs.tap.replace(None).expect("it was set")
        };
        let send = |control, sequence, ack| {
            ours.put(segment(700, control, sequence, ack), RxMeta::default());
        };
        // The server learns the card of the client that has no stack of its own.
        ours.put(arp_request(), RxMeta::default());
        send(TcpControl::Syn, 1000, None);
        let greeted = heard().await;
        let theirs_first = last_segment(&greeted).expect("the server answers").seq_number;
        send(TcpControl::None, 1001, Some(theirs_first + 1));
        let old = listener.accept().await.unwrap();
        treatment(&old).await;
        clock.sleep(Duration::from_secs(1)).await;
        // The reboot: the same port, another sequence, within the old window and without.
        for sequence in [1500, 500_000_000, -1_500_000_000] {
            send(TcpControl::Syn, sequence, None);
            let answered = heard().await;
            let challenge = last_segment(&answered).expect("a challenge");
            assert_eq!(
                (challenge.control, challenge.ack_number),
                (TcpControl::None, Some(TcpSeqNumber(1001)))
            );
            assert_eq!(challenge.payload, b"");
            clock.sleep(Duration::from_secs(2)).await;
        }
        assert_eq!(b.counters().challenged, 3);
        // Not more than one a second.
        send(TcpControl::Syn, 1500, None);
        assert!(last_segment(&heard().await).is_some());
        send(TcpControl::Syn, 1500, None);
        let acks = heard().await;
        assert!(last_segment(&acks).is_none_or(|s| !s.payload.is_empty()), "no flood of challenges");
        // The client knows of no such connection; then it tries again.
        send(TcpControl::Rst, 1001, None);
        let mut byte = [0];
        assert_eq!(old.recv(&mut byte).await, Err(NetError::Reset));
        drop(old);
        send(TcpControl::Syn, 77_000, None);
        let answered = heard().await;
        let greeting = last_segment(&answered).expect("a new connection");
        assert_eq!((greeting.control, greeting.ack_number), (TcpControl::Syn, Some(TcpSeqNumber(77_001))));
        send(TcpControl::None, 77_001, Some(greeting.seq_number + 1));
        listener.accept().await.unwrap();
    });
}

/// Who has 10.0.0.2? Tell 10.0.0.1.
fn arp_request() -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress([2, 0, 0, 0, 0, 1]),
        source_protocol_addr: [10, 0, 0, 1].into(),
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: [10, 0, 0, 2].into(),
    };
    let mut bytes = vec![0; 14 + arp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(EthernetAddress([2, 0, 0, 0, 0, 1]));
    frame.set_dst_addr(EthernetAddress::BROADCAST);
    frame.set_ethertype(EthernetProtocol::Arp);
    arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

#[test]
fn a_rebooted_client_that_uses_its_port_again_is_challenged_and_gets_a_new_connection() {
    a_client_reboots(async |_| ());
    // The same with data that the client never acknowledged.
    a_client_reboots(async |old| old.send_all(b"a reply to whom it may concern").await.unwrap());
}

#[test]
fn garbage_frames_change_nothing() {
    let Pair { world, stacks: [a, b], cards } = pair(7, [PLAIN, PLAIN], [config(1), config(2)]);
    let listener = b.listen(any(2049)).unwrap();
    let clock = world.clone();
    world.run(async move {
        let [client, server_end] = join(a.connect(server()), &*listener).await;
        let valid = syn(77);
        for cut in 0..valid.len() {
            cards[0].put(valid[..cut].to_vec(), RxMeta::default());
            for bit in [0, 3, 7] {
                let mut damaged = valid.clone();
                damaged[cut] ^= 1 << bit;
                cards[0].put(damaged, RxMeta::default());
            }
            clock.sleep(Duration::from_millis(1)).await;
        }
        client.send_all(b"still").await.unwrap();
        let mut got = [0; 5];
        assert!(server_end.recv_exact(&mut got).await.unwrap());
    });
}
