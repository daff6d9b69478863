//! Announcing addresses: a neighbour that remembers another card for an address of ours (the machine that had it before, or
//! our own before its card was changed) is told where it is now, by a gratuitous ARP (RFC 5227 §2.3) or an unsolicited
//! neighbour advertisement (RFC 4861 §7.2.6). Without this it sends to the old card until its memory of it expires.

use alloc::vec::Vec;
use core::time::Duration;
use moraine_platform::{Instant, NicDevice, TxMeta};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress,
    IPV6_LINK_LOCAL_ALL_NODES, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, Ipv4Address, Ipv6Address,
    Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
};

/// Times an address is announced (RFC 5227's ANNOUNCE_NUM): the first may be lost, or come too soon after the neighbour's
/// last word from the old card to be believed.
const ANNOUNCEMENTS: u8 = 2;
/// Time between them (RFC 5227's ANNOUNCE_INTERVAL).
const INTERVAL: Duration = Duration::from_secs(2);

/// Which addresses are still to be announced, and when.
#[derive(Default)]
pub(crate) struct Announcer {
    known: Vec<Announced>,
}

struct Announced {
    address: IpAddress,
    left: u8,
    next: Instant,
}

impl Announcer {
    /// The interface has exactly these addresses since `now`: those that are new will be announced.
    pub(crate) fn follow(&mut self, addresses: impl Iterator<Item = IpAddress> + Clone, now: Instant) {
        self.known.retain(|known| addresses.clone().any(|address| address == known.address));
        for address in addresses {
            if !self.known.iter().any(|known| known.address == address) {
                self.known.push(Announced { address, left: ANNOUNCEMENTS, next: now });
            }
        }
    }

    /// Everything is announced again: the link came up, and its other end may be another one.
    pub(crate) fn restart(&mut self, now: Instant) {
        for known in &mut self.known {
            (known.left, known.next) = (ANNOUNCEMENTS, now);
        }
    }

    /// Sends what is due. An announcement for which the card has no room is lost like one on the wire.
    pub(crate) fn poll(&mut self, mac: EthernetAddress, nic: &dyn NicDevice, now: Instant) {
        for known in self.known.iter_mut().filter(|known| known.left > 0 && known.next <= now) {
            (known.left, known.next) = (known.left - 1, now + INTERVAL);
            match known.address {
                IpAddress::Ipv4(address) => gratuitous_arp(address, mac, nic),
                // Link-local addresses are made of the card's own: nobody can remember another card for one.
                IpAddress::Ipv6(address) if address.is_unicast_link_local() => known.left = 0,
                IpAddress::Ipv6(address) => neighbor_advert(address, mac, nic),
            }
        }
    }

    /// When [`Announcer::poll`] is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.known.iter().filter(|known| known.left > 0).map(|known| known.next).min()
    }
}

fn gratuitous_arp(address: Ipv4Address, mac: EthernetAddress, nic: &dyn NicDevice) {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: mac,
        source_protocol_addr: address,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: address,
    };
    nic.transmit(EthernetFrame::<&[u8]>::buffer_len(arp.buffer_len()), &mut |buffer| {
        let mut frame = EthernetFrame::new_unchecked(buffer);
        frame.set_src_addr(mac);
        frame.set_dst_addr(EthernetAddress::BROADCAST);
        frame.set_ethertype(EthernetProtocol::Arp);
        arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        TxMeta::default()
    });
}

fn neighbor_advert(address: Ipv6Address, mac: EthernetAddress, nic: &dyn NicDevice) {
    let advert = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::OVERRIDE,
        target_addr: address,
        lladdr: Some(HardwareAddress::Ethernet(mac).into()),
    });
    send_ndisc(&advert, address, IPV6_LINK_LOCAL_ALL_NODES, mac, nic);
}

/// Sends a message of neighbour discovery to a multicast group.
pub(crate) fn send_ndisc(
    message: &Icmpv6Repr<'_>,
    src_addr: Ipv6Address,
    dst_addr: Ipv6Address,
    mac: EthernetAddress,
    nic: &dyn NicDevice,
) {
    let ip = Ipv6Repr {
        src_addr,
        dst_addr,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        // Receivers see by it that no router passed the message on.
        hop_limit: 255,
    };
    let [.., a, b, c, d] = dst_addr.octets();
    let len = EthernetFrame::<&[u8]>::buffer_len(ip.buffer_len() + message.buffer_len());
    nic.transmit(len, &mut |buffer| {
        let mut frame = EthernetFrame::new_unchecked(buffer);
        frame.set_src_addr(mac);
        // RFC 2464 §7: the group's last four bytes.
        frame.set_dst_addr(EthernetAddress([0x33, 0x33, a, b, c, d]));
        frame.set_ethertype(EthernetProtocol::Ipv6);
        let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet);
        let mut icmp = Icmpv6Packet::new_unchecked(packet.payload_mut());
        message.emit(&src_addr, &dst_addr, &mut icmp, &ChecksumCapabilities::default());
        TxMeta::default()
    });
}
