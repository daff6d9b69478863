//! DHCP, router adverts, static addresses, UDP.

use super::transfers::{Pair, address, any, config, pair};
use super::wire::{FULL, Held, PLAIN, SUMS, wire};
use super::world::World;
use crate::{Config, Stack};
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use moraine_platform::{Clock, NetError, Network, NicDevice, RxMeta, TxMeta};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Duration as SmolDuration;
use smoltcp::wire::{
    ArpPacket, ArpRepr, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpPacket, DhcpRepr,
    EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, IPV6_LINK_LOCAL_ALL_NODES,
    Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, Ipv6Address, Ipv6Packet,
    Ipv6Repr, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
    UdpPacket, UdpRepr,
};
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

const SERVER: Ipv4Address = Ipv4Address::new(192, 168, 7, 1);
const OFFERED: Ipv4Address = Ipv4Address::new(192, 168, 7, 42);

/// Answers one DHCP message in `frame`, if there is one.
fn dhcp_answer(frame: &[u8]) -> Option<Vec<u8>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    let udp = UdpPacket::new_checked(ip.payload()).ok()?;
    if udp.dst_port() != DHCP_SERVER_PORT {
        return None;
    }
    let message = DhcpPacket::new_checked(udp.payload()).ok()?;
    let asked = DhcpRepr::parse(&message).ok()?;
    let message_type = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request => DhcpMessageType::Ack,
        _ => return None,
    };
    let answer = DhcpRepr {
        message_type,
        your_ip: OFFERED,
        server_ip: SERVER,
        router: Some(SERVER),
        subnet_mask: Some(Ipv4Address::new(255, 255, 255, 0)),
        server_identifier: Some(SERVER),
        lease_duration: Some(600),
        requested_ip: None,
        client_identifier: None,
        parameter_request_list: None,
        max_size: None,
        ..asked
    };
    let caps = ChecksumCapabilities::default();
    let udp_out = UdpRepr { src_port: DHCP_SERVER_PORT, dst_port: DHCP_CLIENT_PORT };
    let ip_out = Ipv4Repr {
        src_addr: SERVER,
        dst_addr: Ipv4Address::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: 8 + answer.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; 14 + 20 + ip_out.payload_len];
    let mut out = EthernetFrame::new_unchecked(&mut bytes[..]);
    out.set_src_addr(EthernetAddress([2, 0, 0, 0, 0, 2]));
    out.set_dst_addr(EthernetAddress::BROADCAST);
    out.set_ethertype(EthernetProtocol::Ipv4);
    let mut packet = Ipv4Packet::new_unchecked(out.payload_mut());
    ip_out.emit(&mut packet, &caps);
    udp_out.emit(
        &mut UdpPacket::new_unchecked(packet.payload_mut()),
        &ip_out.src_addr.into(),
        &ip_out.dst_addr.into(),
        answer.buffer_len(),
        |payload| answer.emit(&mut DhcpPacket::new_unchecked(payload)).unwrap(),
        &caps,
    );
    Some(bytes)
}

#[test]
fn dhcp_gives_an_address_again_after_the_link_was_down_and_takes_it_when_the_server_is_gone() {
    let world = World::new(1);
    let (near, far) = wire(&world, SUMS, PLAIN);
    let stack = Stack::new(&world.platform(), Rc::new(Held(near.clone())), &Config::default()).unwrap();
    world.start(stack.clone().run());
    assert_eq!(stack.addresses(), [] as [IpAddr; 0]);
    // A tiny DHCP server.
    let server = Held(far.clone());
    world.start(async move {
        loop {
            let ticket = server.activity().ticket();
            let mut answer = None;
            while server.receive(&mut |frame, _| answer = answer.take().or_else(|| dhcp_answer(frame))) {}
            if let Some(answer) = answer {
                server.0.put(answer, RxMeta::default());
            }
            server.activity().after(ticket).await;
        }
    });
    let clock = world.clone();
    world.run(async move {
        *near.tap.borrow_mut() = Some(Vec::new());
        assert_eq!(stack.addressed().await, IpAddr::V4(OFFERED));
        clock.sleep(Duration::from_millis(1)).await;
        let mac = EthernetAddress(Held(near.clone()).mac());
        assert_eq!(announced(&near.tap.take().unwrap()), [(IpAddr::V4(OFFERED), mac)]);
        // The lease is renewed as long as the server is there.
        clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!(stack.addresses(), [IpAddr::V4(OFFERED)]);
        near.unplugged.set(true);
        far.unplugged.set(true);
        clock.sleep(Duration::from_secs(900)).await;
        assert_eq!(stack.addresses(), [] as [IpAddr; 0], "the lease ran out");
        near.unplugged.set(false);
        far.unplugged.set(false);
        assert_eq!(stack.addressed().await, IpAddr::V4(OFFERED));
    });
}

/// A router advertisement as a frame.
fn advert(hop_limit: u8) -> Vec<u8> {
    let router = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let mac = EthernetAddress([2, 0, 0, 0, 0, 2]);
    let message = Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: SmolDuration::from_secs(1800),
        reachable_time: SmolDuration::from_secs(0),
        retrans_time: SmolDuration::from_secs(0),
        lladdr: Some(HardwareAddress::Ethernet(mac).into()),
        mtu: None,
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ADDRCONF | NdiscPrefixInfoFlags::ON_LINK,
            valid_lifetime: SmolDuration::from_secs(86_400),
            preferred_lifetime: SmolDuration::from_secs(86_400),
            prefix: Ipv6Address::new(0xfd00, 7, 0, 0, 0, 0, 0, 0),
        }),
    });
    let (src_addr, dst_addr) = (router, IPV6_LINK_LOCAL_ALL_NODES);
    let payload_len = message.buffer_len();
    let ip = Ipv6Repr { src_addr, dst_addr, next_header: IpProtocol::Icmpv6, payload_len, hop_limit };
    let mut bytes = vec![0; 14 + 40 + payload_len];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(mac);
    frame.set_dst_addr(EthernetAddress([0x33, 0x33, 0, 0, 0, 1]));
    frame.set_ethertype(EthernetProtocol::Ipv6);
    let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet);
    let mut icmp = Icmpv6Packet::new_unchecked(packet.payload_mut());
    message.emit(&src_addr, &dst_addr, &mut icmp, &ChecksumCapabilities::default());
    bytes
}

/// Addresses that the frames announce, with the card they are said to be at.
fn announced(frames: &[Vec<u8>]) -> Vec<(IpAddr, EthernetAddress)> {
    frames.iter().filter_map(|frame| announcement(frame)).collect()
}

/// What a gratuitous ARP or an unsolicited neighbour advertisement says, checked as a neighbour does.
fn announcement(frame: &[u8]) -> Option<(IpAddr, EthernetAddress)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() == EthernetProtocol::Arp {
        let arp = ArpRepr::parse(&ArpPacket::new_checked(frame.payload()).ok()?).ok()?;
        let ArpRepr::EthernetIpv4 {
            source_hardware_addr, source_protocol_addr, target_protocol_addr, ..
        } = arp
        else {
            return None;
        };
        assert_eq!(source_hardware_addr, frame.src_addr());
        return (source_protocol_addr == target_protocol_addr && frame.dst_addr().is_broadcast())
            .then_some((source_protocol_addr.into(), source_hardware_addr));
    }
    let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
    let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    let (src, dst) = (packet.src_addr(), packet.dst_addr());
    let message = Icmpv6Repr::parse(&src, &dst, &icmp, &ChecksumCapabilities::default()).ok()?;
    let Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert { flags, target_addr, lladdr }) = message else {
        return None;
    };
    assert_eq!((packet.hop_limit(), dst, src), (255, IPV6_LINK_LOCAL_ALL_NODES, target_addr));
    assert_eq!(frame.dst_addr(), EthernetAddress([0x33, 0x33, 0, 0, 0, 1]));
    assert_eq!(flags, NdiscNeighborFlags::OVERRIDE);
    assert_eq!(lladdr, Some(HardwareAddress::Ethernet(frame.src_addr()).into()));
    Some((target_addr.into(), frame.src_addr()))
}

#[test]
fn an_address_is_announced_twice_and_again_after_the_link_was_down() {
    let world = World::new(6);
    let (near, _far) = wire(&world, PLAIN, PLAIN);
    *near.tap.borrow_mut() = Some(Vec::new());
    let stack = Stack::new(&world.platform(), Rc::new(Held(near.clone())), &config(1)).unwrap();
    world.start(stack.run());
    let clock = world.clone();
    world.run(async move {
        let mac = EthernetAddress(Held(near.clone()).mac());
        let both = [(address(false, 1), mac), (address(true, 1), mac)];
        clock.sleep(Duration::from_millis(1)).await;
        assert_eq!(announced(&near.tap.replace(Some(Vec::new())).unwrap()), both, "at once");
        clock.sleep(Duration::from_secs(60)).await;
        assert_eq!(announced(&near.tap.replace(Some(Vec::new())).unwrap()), both, "once more, and no more");
        near.unplugged.set(true);
        Held(near.clone()).activity().notify();
        clock.sleep(Duration::from_secs(1)).await;
        near.unplugged.set(false);
        Held(near.clone()).activity().notify();
        clock.sleep(Duration::from_secs(60)).await;
        let again = announced(&near.tap.take().unwrap());
        assert_eq!(again, [both, both].concat(), "the other end of the link may be another one");
    });
}

#[test]
fn a_neighbour_that_remembers_another_card_sends_to_the_new_one_at_once() {
    let Pair { world, stacks: [a, b], cards: [first, _] } = pair(7, [PLAIN, PLAIN], [config(1), config(2)]);
    let clock = world.clone();
    world.run(async move {
        let (ours, to) = (a.bind(any(111)).unwrap(), SocketAddr::new(address(true, 1), 111));
        let theirs = b.bind(any(0)).unwrap();
        theirs.send(to, b"who?".to_vec()).await.unwrap();
        assert_eq!(ours.recv().await.unwrap().0, b"who?");
        // Another machine takes the address over.
        let second = first.replace(3);
        let next = Stack::new(&clock.platform(), Rc::new(Held(second)), &config(1)).unwrap();
        clock.start(next.clone().run());
        let ours = next.bind(any(111)).unwrap();
        clock.sleep(Duration::from_millis(1)).await;
        theirs.send(to, b"still there?".to_vec()).await.unwrap();
        let before = clock.now();
        assert_eq!(ours.recv().await.unwrap().0, b"still there?");
        assert!(clock.now().since(before) < Duration::from_millis(10));
    });
}

#[test]
fn a_router_is_asked_for_and_its_prefix_becomes_an_address() {
    let world = World::new(2);
    let (near, far) = wire(&world, PLAIN, PLAIN);
    *near.tap.borrow_mut() = Some(Vec::new());
    let stack = Stack::new(&world.platform(), Rc::new(Held(near.clone())), &Config::default()).unwrap();
    world.start(stack.clone().run());
    let clock = world.clone();
    world.run(async move {
        clock.sleep(Duration::from_millis(1)).await;
        let asked = near.tap.take().unwrap().into_iter().any(|frame| {
            let solicit = EthernetFrame::new_checked(&frame[..]).unwrap();
            let all_routers = EthernetAddress([0x33, 0x33, 0, 0, 0, 2]);
            solicit.dst_addr() == all_routers && frame.get(54) == Some(&133)
        });
        assert!(asked, "a router solicitation goes out at once");
        far.put(advert(64), RxMeta::default());
        clock.sleep(Duration::from_millis(1)).await;
        assert_eq!(stack.addresses(), [] as [IpAddr; 0], "an advert from beyond a router is forged");
        far.put(advert(255), RxMeta::default());
        let formed = "fd00:7::ff:fe00:1".parse::<IpAddr>().unwrap();
        *near.tap.borrow_mut() = Some(Vec::new());
        assert_eq!(stack.addressed().await, formed);
        clock.sleep(Duration::from_millis(1)).await;
        let mac = EthernetAddress(Held(near.clone()).mac());
        assert_eq!(announced(&near.tap.take().unwrap()), [(formed, mac)]);
    });
}

#[test]
fn without_servers_and_routers_the_stack_asks_seldom() {
    let world = World::new(3);
    let (near, _far) = wire(&world, PLAIN, PLAIN);
    let stack = Stack::new(&world.platform(), Rc::new(Held(near.clone())), &Config::default()).unwrap();
    world.start(stack.run());
    let clock = world.clone();
    let turns = world.run(async move {
        clock.sleep(Duration::from_secs(60)).await;
        let before = clock.turns();
        clock.sleep(Duration::from_secs(600)).await;
        clock.turns() - before
    });
    assert!(turns < 600, "{turns} turns in ten minutes");
    assert!(near.sent.get() < 200, "{} frames", near.sent.get());
}

#[test]
fn datagrams_pass_both_ways_and_ports_are_kept_apart() {
    for kinds in [[PLAIN, PLAIN], [FULL, SUMS]] {
        let Pair { world, stacks: [a, b], .. } = pair(4, kinds, [config(1), config(2)]);
        world.run(async move {
            let asking = a.bind(any(0)).unwrap();
            let answering = b.bind(any(111)).unwrap();
            assert_eq!(b.bind(any(111)).err(), Some(NetError::AddressInUse));
            for v6 in [false, true] {
                let to = SocketAddr::new(address(v6, 2), 111);
                asking.send(to, b"where is mountd?".to_vec()).await.unwrap();
                let (question, from) = answering.recv().await.unwrap();
                assert_eq!((&question[..], from.ip()), (&b"where is mountd?"[..], address(v6, 1)));
                answering.send(from, b"here".to_vec()).await.unwrap();
                assert_eq!(asking.recv().await.unwrap(), (b"here".to_vec(), to));
            }
            let too_long = vec![0; 70_000];
            let to = SocketAddr::new(address(false, 2), 111);
            assert_eq!(asking.send(to, too_long).await, Err(NetError::Exhausted));
            drop(answering);
            assert!(b.bind(any(111)).is_ok(), "the port is free again");
        });
    }
}

#[test]
fn a_card_keeps_what_the_contract_says() {
    // The fake card itself: frames that are too many are refused, not lost silently.
    let world = World::new(5);
    let (near, _far) = wire(&world, PLAIN, PLAIN);
    let held = Held(near);
    let mut sent = 0;
    while held.transmit(60, &mut |_| TxMeta::default()) {
        sent += 1;
        assert!(sent < 10_000, "a card has an end");
    }
    assert!(!held.can_transmit());
}
