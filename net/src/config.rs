//! What a stack is told: its addresses and its limits.

use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use smoltcp::wire::IpAddress;

/// Buffers of a connection of the small class, each way, in bytes: portmap and discovery.
pub(crate) const SMALL_RING: usize = 16 << 10;
/// Least and largest buffers of a connection of the large class, each way, in bytes.
const LARGE_RING_MIN: usize = 64 << 10;
const LARGE_RING_MAX: usize = 1 << 20;

/// Addresses and limits of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where addresses come from.
    pub addressing: Addressing,
    /// Bytes for the buffers of all connections. Every connection gets small buffers at least; as long as those
    /// of the others are not touched it gets large ones.
    pub buffer_bytes: usize,
    /// Connections at once, half-open and closing ones included.
    pub connections_max: usize,
}

/// Where addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// DHCP for IPv4, router advertisements for IPv6.
    Automatic,
    /// These and no others (beside IPv6's link-local address).
    Static(Vec<StaticAddress>),
}

/// One address given by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of it that name the network.
    pub prefix: u8,
    /// Where packets for other networks go.
    pub gateway: Option<IpAddr>,
}

/// Why a configuration cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// An address or a gateway is not one that a single host can have, or its prefix is too long.
    NotAHost(StaticAddress),
    /// More addresses than the interface can hold.
    TooMany,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::NotAHost(a) => write!(f, "{}/{} cannot be a host's address", a.address, a.prefix),
            ConfigError::TooMany => f.write_str("too many addresses"),
        }
    }
}

impl Default for Config {
    /// For 128 MiB of memory.
    fn default() -> Config {
        Config { addressing: Addressing::Automatic, buffer_bytes: 16 << 20, connections_max: 256 }
    }
}

impl Config {
    /// Buffers of a connection of the large class, each way.
    pub(crate) fn large_ring(&self) -> usize {
        (self.buffer_bytes / 128).next_power_of_two().clamp(LARGE_RING_MIN, LARGE_RING_MAX)
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let Addressing::Static(addresses) = &self.addressing else { return Ok(()) };
        if addresses.len() > 4 {
            return Err(ConfigError::TooMany);
        }
        for a in addresses {
            let host = |ip: IpAddr| IpAddress::from(ip).is_unicast() && !ip.is_loopback();
            let gateway = a.gateway.is_none_or(|g| host(g) && g.is_ipv4() == a.address.is_ipv4());
            let prefix = a.prefix <= if a.address.is_ipv4() { 32 } else { 128 };
            if !host(a.address) || !gateway || !prefix {
                return Err(ConfigError::NotAHost(*a));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_no_host_can_have_are_refused() {
        let with = |address: [u8; 4], prefix, gateway: Option<IpAddr>| Config {
            addressing: Addressing::Static(
                [StaticAddress { address: address.into(), prefix, gateway }].into(),
            ),
            ..Config::default()
        };
        assert_eq!(with([10, 0, 0, 1], 8, Some([10, 0, 0, 2].into())).check(), Ok(()));
        for bad in [
            with([0; 4], 8, None),
            with([224, 0, 0, 1], 8, None),
            with([255; 4], 8, None),
            with([127, 0, 0, 1], 8, None),
            with([10, 0, 0, 1], 33, None),
            with([10, 0, 0, 1], 8, Some([0; 4].into())),
            with([10, 0, 0, 1], 8, Some("fd00::1".parse().unwrap())),
        ] {
            assert!(matches!(bad.check(), Err(ConfigError::NotAHost(_))), "{bad:?}");
        }
    }
}
