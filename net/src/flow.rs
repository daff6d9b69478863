//! What a received frame is about, read from its headers before the stack sees it, so that it goes straight to the
//! one connection it belongs to. Anything odd is [`Flow::Other`]: the stack proper decides what to do with it.

use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use moraine_platform::RxChecksum;
use smoltcp::wire::{
    ArpOperation, ArpPacket, EthernetFrame, EthernetProtocol, Icmpv6Message, Icmpv6Packet, IpAddress,
    IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber, UdpPacket,
};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_HEADER: usize = 14;

/// The two ends of a TCP connection, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

/// What a frame is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// A TCP segment.
    Tcp(Tuple, Opening),
    /// A UDP datagram to this port.
    Udp(SocketAddr),
    /// Somebody's link-layer address: connections that wait for one can go on.
    NeighborFound,
    /// A router advertisement.
    RouterAdvert,
    /// Anything else.
    Other,
    /// Its TCP or UDP checksum is wrong: to be dropped.
    Damaged,
}

/// Whether a segment asks for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// SYN without ACK or RST.
    Yes,
    /// Anything else, with what it acknowledges.
    No(Option<TcpSeqNumber>),
}

/// Reads `frame`. If `verify` and nobody vouched for it (`checksum`), a TCP or UDP checksum is verified here.
pub(crate) fn flow(frame: &[u8], checksum: RxChecksum, verify: bool) -> Flow {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return Flow::Other };
    let verify = verify && checksum == RxChecksum::Unknown;
    match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let Ok(packet) = Ipv4Packet::new_checked(ethernet.payload()) else { return Flow::Other };
            if packet.more_frags() || packet.frag_offset() != 0 {
                return Flow::Other;
            }
            let ends = (packet.src_addr().into(), packet.dst_addr().into());
            transport(packet.next_header(), ends, packet.payload(), verify)
        }
        EthernetProtocol::Ipv6 => {
            let Ok(packet) = Ipv6Packet::new_checked(ethernet.payload()) else { return Flow::Other };
            let ends = (packet.src_addr().into(), packet.dst_addr().into());
            transport(packet.next_header(), ends, packet.payload(), verify)
        }
        EthernetProtocol::Arp => match ArpPacket::new_checked(ethernet.payload()) {
            Ok(arp) if arp.operation() == ArpOperation::Reply => Flow::NeighborFound,
            _ => Flow::Other,
        },
        _ => Flow::Other,
    }
}

fn transport(protocol: IpProtocol, (src, dst): (IpAddress, IpAddress), payload: &[u8], verify: bool) -> Flow {
    let end = |address: IpAddress, port| SocketAddr::new(IpAddr::from(address), port);
    match protocol {
        IpProtocol::Tcp => {
            let Ok(tcp) = TcpPacket::new_checked(payload) else { return Flow::Other };
            if verify && !tcp.verify_checksum(&src, &dst) {
                return Flow::Damaged;
            }
            let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
            let tuple = Tuple { local: end(dst, tcp.dst_port()), remote: end(src, tcp.src_port()) };
            let acknowledges = tcp.ack().then(|| tcp.ack_number());
            Flow::Tcp(tuple, if opens { Opening::Yes } else { Opening::No(acknowledges) })
        }
        IpProtocol::Udp => {
            let Ok(udp) = UdpPacket::new_checked(payload) else { return Flow::Other };
            if verify && udp.checksum() != 0 && !udp.verify_checksum(&src, &dst) {
                return Flow::Damaged;
            }
            Flow::Udp(end(dst, udp.dst_port()))
        }
        IpProtocol::Icmpv6 => match Icmpv6Packet::new_checked(payload).map(|p| p.msg_type()) {
            Ok(Icmpv6Message::NeighborAdvert) => Flow::NeighborFound,
            Ok(Icmpv6Message::RouterAdvert) => Flow::RouterAdvert,
            _ => Flow::Other,
        },
        _ => Flow::Other,
    }
}

/// Further than any socket's buffer reaches, and less than half of all sequence numbers.
const NEVER_SENT: usize = 1 << 30;

/// The SYN in `frame`, for a connection that we still hold, as a segment to which smoltcp answers as it should to the SYN:
/// with a challenge ACK (RFC 5961 §4, at most one a second), which has a peer that was rebooted reset the connection. SYNs
/// themselves are dropped by smoltcp 0.14. The segment acknowledges what was never sent, so it changes nothing else;
/// `acknowledged` is what the peer acknowledged last.
pub(crate) fn syn_to_challenge(frame: &[u8], acknowledged: TcpSeqNumber) -> Option<Vec<u8>> {
    let start = tcp_headers(frame)?.start;
    let mut segment = frame.to_vec();
    let mut tcp = TcpPacket::new_unchecked(&mut segment[start..]);
    tcp.set_syn(false);
    tcp.set_ack(true);
    tcp.set_ack_number(acknowledged + NEVER_SENT);
    fill_tcp_checksum(&mut segment, start);
    Some(segment)
}

/// Fills in the checksum of the TCP segment that starts at `start` of `frame`.
pub(crate) fn fill_tcp_checksum(frame: &mut [u8], start: usize) {
    let (ip, segment) = frame[ETHERNET_HEADER..].split_at_mut(start - ETHERNET_HEADER);
    let (src, dst): (IpAddress, IpAddress) = if ip[0] >> 4 == 6 {
        let ip = Ipv6Packet::new_unchecked(&*ip);
        (ip.src_addr().into(), ip.dst_addr().into())
    } else {
        let ip = Ipv4Packet::new_unchecked(&*ip);
        (ip.src_addr().into(), ip.dst_addr().into())
    };
    TcpPacket::new_unchecked(segment).fill_checksum(&src, &dst);
}

/// Where the transport header of a finished TCP frame starts and ends, and the sum of its pseudo header; `None` if
/// the frame is not TCP over IP without extension headers. Offsets count from the start of the frame.
pub(crate) fn tcp_headers(frame: &[u8]) -> Option<TcpHeaders> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let (ip_header, addresses_sum, tcp_len) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            if packet.next_header() != IpProtocol::Tcp {
                return None;
            }
            let header = usize::from(packet.header_len());
            (header, sum(&ethernet.payload()[12..20]), usize::from(packet.total_len()) - header)
        }
        EthernetProtocol::Ipv6 => {
            let packet = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            if packet.next_header() != IpProtocol::Tcp {
                return None;
            }
            (40, sum(&ethernet.payload()[8..40]), usize::from(packet.payload_len()))
        }
        _ => return None,
    };
    let start = ETHERNET_HEADER + ip_header;
    let tcp = TcpPacket::new_checked(frame.get(start..)?).ok()?;
    let pseudo = addresses_sum + u32::from(u8::from(IpProtocol::Tcp)) + tcp_len as u32;
    Some(TcpHeaders { start, end: start + usize::from(tcp.header_len()), pseudo_sum: fold(pseudo) })
}

/// See [`tcp_headers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpHeaders {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) pseudo_sum: u16,
}

/// Ones' complement sum of an even number of bytes, not folded.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
