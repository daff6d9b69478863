//! Which addresses and routes the interface has: given by hand, leased by DHCP, or formed from router adverts.

use crate::announce::{Announcer, send_ndisc};
use crate::config::{Addressing, Config};
use crate::hub::smoltcp_time;
use crate::slaac::{Advert, Slaac, Todo};
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;
use moraine_platform::{Instant, NicDevice, info, warn};
use smoltcp::iface::{Interface, Route, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, HardwareAddress, IPV6_LINK_LOCAL_ALL_ROUTERS, Icmpv6Packet, Icmpv6Repr,
    IpAddress, IpCidr, IpProtocol, Ipv4Cidr, Ipv6Address, Ipv6Cidr, Ipv6Packet, NdiscRepr,
};

/// The sources of addresses and what they gave.
pub(crate) struct Addresses {
    mac: EthernetAddress,
    fixed: Vec<(IpCidr, Option<IpAddress>)>,
    dhcp: Option<SocketHandle>,
    lease: Option<(Ipv4Cidr, Option<IpAddress>)>,
    slaac: Option<Slaac>,
    announcer: Announcer,
}

impl Addresses {
    /// Installs what is known from the start, and what will find out the rest into `base`.
    pub(crate) fn install(
        config: &Config,
        mac: [u8; 6],
        iface: &mut Interface,
        base: &mut SocketSet<'static>,
        now: Instant,
    ) -> Addresses {
        let mac = EthernetAddress(mac);
        let link = Ipv6Cidr::new(Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64);
        let mut fixed = Vec::new();
        if let Some(own) = Ipv6Cidr::from_link_prefix(&link, HardwareAddress::Ethernet(mac)) {
            fixed.push((IpCidr::Ipv6(own), None));
        }
        let (mut dhcp, mut slaac) = (None, None);
        match &config.addressing {
            Addressing::Automatic => {
                dhcp = Some(base.add(dhcpv4::Socket::new()));
                slaac = Some(Slaac::new(HardwareAddress::Ethernet(mac), now));
            }
            Addressing::Static(given) => fixed.extend(
                given
                    .iter()
                    .map(|a| (IpCidr::new(a.address.into(), a.prefix), a.gateway.map(IpAddress::from))),
            ),
        }
        let announcer = Announcer::default();
        let mut addresses = Addresses { mac, fixed, dhcp, lease: None, slaac, announcer };
        addresses.apply(iface, now);
        addresses
    }

    /// Takes news from DHCP and from the clock; whether anything changed.
    pub(crate) fn poll(
        &mut self,
        iface: &mut Interface,
        base: &mut SocketSet<'static>,
        nic: &dyn NicDevice,
        now: Instant,
    ) -> bool {
        let mut changed = false;
        if let Some(dhcp) = self.dhcp {
            let lease = match base.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
                None => self.lease,
                Some(dhcpv4::Event::Deconfigured) => None,
                Some(dhcpv4::Event::Configured(config)) => {
                    let router = config.router.map(IpAddress::Ipv4).filter(|r| r.is_unicast());
                    let usable = IpAddress::Ipv4(config.address.address()).is_unicast();
                    usable.then_some((config.address, router))
                }
            };
            match (self.lease, lease) {
                (old, new) if old == new => {}
                (_, Some((address, _))) => info!("net", "address {address} by DHCP"),
                (_, None) => warn!("net", "the DHCP lease is lost"),
            }
            changed |= self.lease != lease;
            self.lease = lease;
        }
        while let Some(slaac) = &mut self.slaac {
            match slaac.poll(now) {
                Todo::Nothing => break,
                Todo::Solicit => self.solicit(nic),
                Todo::Apply => changed = true,
            }
        }
        if changed {
            self.apply(iface, now);
        }
        self.announcer.poll(self.mac, nic, now);
        changed
    }

    /// When [`Addresses::poll`] is due by its own clock.
    pub(crate) fn due(&self) -> Option<Instant> {
        let slaac = self.slaac.as_ref().and_then(Slaac::due);
        slaac.into_iter().chain(self.announcer.due()).min()
    }

    /// The link came up: whatever was learned may be wrong.
    pub(crate) fn link_up(&mut self, base: &mut SocketSet<'static>, now: Instant) {
        if let Some(dhcp) = self.dhcp {
            base.get_mut::<dhcpv4::Socket<'_>>(dhcp).reset();
        }
        if let Some(slaac) = &mut self.slaac {
            slaac.restart(now);
        }
        self.announcer.restart(now);
    }

    /// Takes a frame that holds a router advertisement; whether anything changed.
    pub(crate) fn hear(&mut self, iface: &mut Interface, frame: &[u8], now: Instant) -> bool {
        let Some(slaac) = &mut self.slaac else { return false };
        let changed = parse_advert(frame).is_some_and(|advert| slaac.hear(&advert, now));
        if changed {
            for address in slaac.addresses() {
                info!("net", "address {address} by router advertisement");
            }
            self.apply(iface, now);
        }
        changed
    }

    /// Makes the interface have exactly these addresses and routes, and the new ones known to neighbours.
    fn apply(&mut self, iface: &mut Interface, now: Instant) {
        let lease = self.lease.map(|(address, router)| (IpCidr::Ipv4(address), router));
        let formed = self.slaac.iter().flat_map(|slaac| {
            let router = slaac.router().map(IpAddress::Ipv6);
            slaac.addresses().map(move |address| (IpCidr::Ipv6(address), router))
        });
        let all: Vec<_> = self.fixed.iter().copied().chain(lease).chain(formed).collect();
        iface.update_ip_addrs(|addresses| {
            addresses.clear();
            for (address, _) in &all {
                // The limits of the configuration, one lease and the prefixes together fit.
                let _ = addresses.push(*address);
            }
        });
        self.announcer.follow(all.iter().map(|(address, _)| address.address()), now);
        iface.routes_mut().update(|routes| {
            routes.clear();
            for router in all.iter().filter_map(|(_, router)| *router) {
                let route = match router {
                    IpAddress::Ipv4(router) => Route::new_ipv4_gateway(router),
                    IpAddress::Ipv6(router) => Route::new_ipv6_gateway(router),
                };
                if !routes.iter().any(|r| r.cidr == route.cidr) {
                    let _ = routes.push(route);
                }
            }
        });
    }

    /// Sends a router solicitation. If the card has no room it is lost; the next one follows.
    fn solicit(&self, nic: &dyn NicDevice) {
        let own = self.fixed.iter().find_map(|(cidr, _)| match cidr {
            IpCidr::Ipv6(own) => Some(own.address()),
            IpCidr::Ipv4(_) => None,
        });
        let Some(own) = own else { return };
        let lladdr = Some(HardwareAddress::Ethernet(self.mac).into());
        let message = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr });
        send_ndisc(&message, own, IPV6_LINK_LOCAL_ALL_ROUTERS, self.mac, nic);
    }
}

/// A valid router advertisement (RFC 4861 §6.1.2) in an Ethernet frame.
fn parse_advert(frame: &[u8]) -> Option<Advert> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = Ipv6Packet::new_checked(frame.payload()).ok()?;
    let (src, dst) = (packet.src_addr(), packet.dst_addr());
    if packet.hop_limit() != 255 || !src.is_unicast_link_local() || packet.next_header() != IpProtocol::Icmpv6
    {
        return None;
    }
    let icmp = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    match Icmpv6Repr::parse(&src, &dst, &icmp, &ChecksumCapabilities::default()).ok()? {
        Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert { router_lifetime, prefix_info, .. }) => Some(Advert {
            router: src,
            router_lifetime: Duration::from_micros(router_lifetime.total_micros()),
            prefix: prefix_info,
        }),
        _ => None,
    }
}

/// The interface's addresses that others can use: not link-local.
pub(crate) fn reachable(iface: &Interface) -> impl Iterator<Item = IpAddr> {
    iface.ip_addrs().iter().map(|cidr| IpAddr::from(cidr.address())).filter(|address| match address {
        IpAddr::V4(a) => !a.is_link_local(),
        IpAddr::V6(a) => !a.is_unicast_link_local(),
    })
}

/// Whether DHCP has something to do now, or when.
pub(crate) fn base_due(iface: &mut Interface, base: &SocketSet<'static>, now: Instant) -> Option<Instant> {
    let at = iface.poll_at(smoltcp_time(now), base)?;
    Some(Instant(u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000)))
}
