//! Which SYN becomes a connection: listening ports with bounded half-open and waiting connections, and buffers out
//! of one budget.
//!
//! smoltcp has no backlog: each of its listening sockets becomes the connection itself. Here a port is only an entry
//! in a table; a socket is made when a SYN arrives for it, so that an idle port holds no buffers.

use crate::config::{Config, SMALL_RING};
use crate::connection::ConnId;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::net::SocketAddr;
use core::time::Duration;
use moraine_platform::memory::{Meter, Usage};
use moraine_platform::sync::Event;

/// Handshakes under way at one port.
pub(crate) const HALF_OPEN_MAX: usize = 16;
/// How long a handshake may take.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Established connections that wait to be accepted at one port.
pub(crate) const BACKLOG_MAX: usize = 64;
/// Listening ports.
pub(crate) const PORTS_MAX: usize = 16;
/// Ports whose connections carry small questions only.
const SMALL_PORTS: &[u16] = &[111];

/// A port somebody listens on.
pub(crate) struct Port {
    pub(crate) local: SocketAddr,
    pub(crate) half_open: usize,
    pub(crate) waiting: VecDeque<ConnId>,
    /// Notified when a connection was put into `waiting`.
    pub(crate) arrived: Rc<Event>,
}

impl Port {
    pub(crate) fn new(local: SocketAddr) -> Port {
        Port { local, half_open: 0, waiting: VecDeque::new(), arrived: Rc::new(Event::new()) }
    }

    /// Whether a connection to `address` is for this port.
    pub(crate) fn hears(&self, address: SocketAddr) -> bool {
        covers(self.local, address)
    }

    /// Whether it can take one more SYN.
    pub(crate) fn has_room(&self) -> bool {
        self.half_open < HALF_OPEN_MAX && self.half_open + self.waiting.len() < BACKLOG_MAX
    }

    pub(crate) fn class(&self) -> Class {
        if SMALL_PORTS.contains(&self.local.port()) { Class::Small } else { Class::Large }
    }
}

/// Whether an endpoint bound to `bound` gets what is sent to `address`.
pub(crate) fn covers(bound: SocketAddr, address: SocketAddr) -> bool {
    bound.port() == address.port() && (bound.ip().is_unspecified() || bound.ip() == address.ip())
}

/// How much a connection is going to carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Questions and answers of a few hundred bytes.
    Small,
    /// Data.
    Large,
}

/// Memory and places for connections.
pub(crate) struct Budget {
    bytes_max: usize,
    connections_max: usize,
    large_ring: usize,
    meter: Meter,
    connections: usize,
}

impl Budget {
    pub(crate) fn new(config: &Config) -> Budget {
        Budget {
            bytes_max: config.buffer_bytes,
            connections_max: config.connections_max,
            large_ring: config.large_ring(),
            meter: Meter::default(),
            connections: 0,
        }
    }

    /// Bytes each way for one more connection, or `None` if there is no place for it. Large buffers are given out
    /// only while small ones are left for every connection that may still come.
    pub(crate) fn ring(&self, class: Class) -> Option<usize> {
        let others = self.connections_max.checked_sub(self.connections + 1)?;
        let left = self.bytes_max.saturating_sub(self.meter.bytes());
        let large = 2 * self.large_ring + others * 2 * SMALL_RING;
        if class == Class::Large && large <= left {
            return Some(self.large_ring);
        }
        (2 * SMALL_RING <= left).then_some(SMALL_RING)
    }

    pub(crate) fn take(&mut self, bytes: usize) {
        self.meter.add(bytes);
        self.connections += 1;
    }

    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.meter.sub(bytes);
        self.connections -= 1;
    }

    /// A newcomer found no place.
    pub(crate) fn refuse(&self) {
        self.meter.refuse();
    }

    /// What buffers of connections take of memory.
    pub(crate) fn usage(&self) -> Usage {
        self.meter.usage("network", self.bytes_max as u64)
    }

    /// Connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.connections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_up_to_the_limit_gets_buffers_within_the_budget() {
        let config = Config::default();
        let mut budget = Budget::new(&config);
        let mut large = 0;
        for i in 0..config.connections_max {
            let ring = budget.ring(Class::Large).unwrap_or_else(|| panic!("connection {i} gets nothing"));
            large += usize::from(ring > SMALL_RING);
            budget.take(2 * ring);
        }
        assert!(budget.meter.bytes() <= config.buffer_bytes);
        assert!((30..=48).contains(&large), "{large}");
        assert_eq!(budget.ring(Class::Small), None, "no place is left");
        budget.give_back(2 * SMALL_RING);
        assert_eq!(budget.ring(Class::Large), Some(SMALL_RING));
    }
}
