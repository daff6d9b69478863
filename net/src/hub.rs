//! The state of a stack and its two moves: take a frame in, send what is due.
//!
//! Every connection is found by its tuple, and only those in the queue of `ready` are polled: a frame, a call of its
//! owner or its timer puts it there. Everything that is not TCP lives together in one small socket set, `base`.

use crate::address::{self, Addresses};
use crate::admission::{Budget, Class, HANDSHAKE_MAX, PORTS_MAX, Port};
use crate::config::Config;
use crate::connection::{ConnId, Connection, Phase, PortId, Verdict};
use crate::device::{Card, capabilities};
use crate::flow::{Flow, Opening, Tuple, flow, syn_to_challenge};
use alloc::collections::{BinaryHeap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::net::SocketAddr;
use hashbrown::HashMap;
use moraine_platform::memory::Usage;
use moraine_platform::{Instant, NetError, NicDevice, RxMeta};
use smoltcp::iface::{Interface, PollResult, SocketSet};
use smoltcp::phy::DeviceCapabilities;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpEndpoint, IpListenEndpoint, TcpSeqNumber};

/// Frames taken in before the protocols get their turn.
const RECEIVE_BATCH: usize = 64;
/// Segments one connection may send before the next one gets its turn.
const SEND_BURST: usize = 16;
/// Connections served in one turn before the protocols get theirs.
const SEND_BATCH: usize = 64;

/// What a stack counted since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames received.
    pub frames_in: u64,
    /// Frames dropped for a wrong TCP or UDP checksum.
    pub damaged: u64,
    /// Connections that were established from outside.
    pub accepted: u64,
    /// SYNs dropped for want of places or memory.
    pub syn_dropped: u64,
    /// SYNs for connections that are still held, answered with a challenge.
    pub challenged: u64,
    /// Handshakes that were not completed.
    pub handshakes_failed: u64,
    /// Closed connections whose waiting time was cut short because their place was needed.
    pub recycled: u64,
    /// Times a connection was looked after.
    pub polls: u64,
}

/// See the file's header.
pub(crate) struct Hub {
    pub(crate) nic: Rc<dyn NicDevice>,
    capabilities: DeviceCapabilities,
    /// Whether checksums of received frames are ours to verify when the card does not.
    verify: bool,
    pub(crate) iface: Interface,
    pub(crate) base: SocketSet<'static>,
    base_ready: bool,
    base_due: Option<Instant>,
    addresses: Addresses,
    link_up: bool,
    pub(crate) connections: Vec<Option<Connection>>,
    vacant: Vec<ConnId>,
    by_tuple: HashMap<Tuple, ConnId>,
    pub(crate) ports: Vec<Option<Port>>,
    /// Connections with something to do, each once.
    ready: VecDeque<ConnId>,
    /// When connections want to be looked after; an entry that is not its connection's `timer` is stale.
    timers: BinaryHeap<Reverse<(Instant, ConnId)>>,
    budget: Budget,
    spill: Vec<u8>,
    pub(crate) counters: Counters,
}

/// What a turn of sending left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Egress {
    /// Nothing is left to send now.
    Done,
    /// More could be sent at once.
    More,
    /// The card has no room.
    Full,
}

/// smoltcp's time.
pub(crate) fn smoltcp_time(at: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros(i64::try_from(at.0 / 1000).unwrap_or(i64::MAX))
}

impl Hub {
    pub(crate) fn new(nic: Rc<dyn NicDevice>, config: &Config, seed: u64, now: Instant) -> Hub {
        let capabilities = capabilities(&*nic);
        let mac = nic.mac();
        let mut settings = smoltcp::iface::Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        settings.random_seed = seed;
        let mut spill = Vec::new();
        let mut card =
            Card { nic: &*nic, capabilities: &capabilities, frame: None, full: false, spill: &mut spill };
        let mut iface = Interface::new(settings, &mut card, smoltcp_time(now));
        let mut base = SocketSet::new(Vec::new());
        let addresses = Addresses::install(config, mac, &mut iface, &mut base, now);
        Hub {
            verify: nic.capabilities().rx_checksum,
            link_up: nic.link_up(),
            nic,
            capabilities,
            iface,
            base,
            base_ready: true,
            base_due: None,
            addresses,
            connections: Vec::new(),
            vacant: Vec::new(),
            by_tuple: HashMap::new(),
            ports: Vec::new(),
            ready: VecDeque::new(),
            timers: BinaryHeap::new(),
            budget: Budget::new(config),
            spill,
            counters: Counters::default(),
        }
    }

    // ---- frames in ------------------------------------------------------------------------------------------

    /// Takes in what the card received, up to a batch; how many frames that were.
    pub(crate) fn ingress(&mut self, now: Instant) -> usize {
        let nic = self.nic.clone();
        self.notice_link(now);
        let mut count = 0;
        while count < RECEIVE_BATCH && nic.receive(&mut |frame, meta| self.take(&*nic, frame, meta, now)) {
            count += 1;
        }
        self.counters.frames_in += count as u64;
        count
    }

    fn take(&mut self, nic: &dyn NicDevice, frame: &[u8], meta: RxMeta, now: Instant) {
        match flow(frame, meta.checksum, self.verify) {
            Flow::Damaged => self.counters.damaged += 1,
            Flow::Tcp(tuple, opening) => match self.connection_for(tuple, opening, now) {
                Recipient::Connection(id) => {
                    self.take_for(id, nic, frame, now);
                    self.wake(id);
                }
                Recipient::Challenge(id, acknowledged) => {
                    self.counters.challenged += 1;
                    if let Some(segment) = syn_to_challenge(frame, acknowledged) {
                        self.take_for(id, nic, &segment, now);
                    }
                }
                Recipient::Nobody => self.take_base(nic, frame, now),
                Recipient::Drop => self.counters.syn_dropped += 1,
            },
            Flow::NeighborFound => {
                self.take_base(nic, frame, now);
                for id in 0..self.connections.len() {
                    self.wake(id);
                }
            }
            Flow::RouterAdvert => {
                self.take_base(nic, frame, now);
                self.addresses.hear(&mut self.iface, frame, now);
            }
            Flow::Udp(_) | Flow::Other => self.take_base(nic, frame, now),
        }
    }

    fn take_base(&mut self, nic: &dyn NicDevice, frame: &[u8], now: Instant) {
        let mut card = Card {
            nic,
            capabilities: &self.capabilities,
            frame: Some(frame),
            full: false,
            spill: &mut self.spill,
        };
        self.iface.poll_ingress_single(smoltcp_time(now), &mut card, &mut self.base);
        self.base_ready = true;
    }

    fn take_for(&mut self, id: ConnId, nic: &dyn NicDevice, frame: &[u8], now: Instant) {
        let Some(connection) = &mut self.connections[id] else { return };
        let mut card = Card {
            nic,
            capabilities: &self.capabilities,
            frame: Some(frame),
            full: false,
            spill: &mut self.spill,
        };
        self.iface.poll_ingress_single(smoltcp_time(now), &mut card, &mut connection.set);
    }

    /// Whose segment it is; a SYN for a listening port makes a connection.
    fn connection_for(&mut self, tuple: Tuple, opening: Opening, now: Instant) -> Recipient {
        if let Some(&id) = self.by_tuple.get(&tuple) {
            let Some(connection) = &mut self.connections[id] else { return Recipient::Nobody };
            match opening {
                Opening::No(acknowledges) => {
                    connection.acknowledged = acknowledges.unwrap_or(connection.acknowledged);
                    return Recipient::Connection(id);
                }
                // The peer uses its port again before we forgot the last connection from it.
                Opening::Yes if connection.is_expendable() => self.remove(id),
                Opening::Yes if connection.is_synchronized() => {
                    return Recipient::Challenge(id, connection.acknowledged);
                }
                Opening::Yes => return Recipient::Connection(id),
            }
        }
        if opening != Opening::Yes || !self.iface.has_ip_addr(tuple.local.ip()) {
            return Recipient::Nobody;
        }
        let hears = |port: &Option<Port>| port.as_ref().is_some_and(|port| port.hears(tuple.local));
        let Some(port_id) = self.ports.iter().position(hears) else { return Recipient::Nobody };
        let Some(port) = &self.ports[port_id] else { return Recipient::Nobody };
        if !port.has_room() {
            return Recipient::Drop;
        }
        let class = port.class();
        let phase = Phase::Handshake(port_id, now + HANDSHAKE_MAX);
        let Some(id) = self.insert(tuple, class, phase, now) else { return Recipient::Drop };
        let local = IpListenEndpoint { addr: Some(tuple.local.ip().into()), port: tuple.local.port() };
        let listening = self.connections[id].as_mut().map(|c| c.socket().listen(local));
        if !matches!(listening, Some(Ok(()))) {
            self.remove(id);
            return Recipient::Nobody;
        }
        if let Some(port) = &mut self.ports[port_id] {
            port.half_open += 1;
        }
        Recipient::Connection(id)
    }

    // ---- frames out -----------------------------------------------------------------------------------------

    /// Sends what is due, for a batch of connections.
    pub(crate) fn egress(&mut self, now: Instant) -> Egress {
        while let Some(&Reverse((at, id))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            if let Some(connection) = &mut self.connections[id]
                && connection.timer == Some(at)
            {
                connection.timer = None;
                self.wake(id);
            }
        }
        if (self.base_ready || self.base_due.is_some_and(|due| due <= now)) && !self.send_base(now) {
            return Egress::Full;
        }
        for _ in 0..SEND_BATCH.min(self.ready.len()) {
            let Some(id) = self.ready.pop_front() else { break };
            if !self.send_for(id, now) {
                return Egress::Full;
            }
        }
        if self.ready.is_empty() { Egress::Done } else { Egress::More }
    }

    /// Serves everything that is not TCP; whether the card had room.
    fn send_base(&mut self, now: Instant) -> bool {
        let nic = self.nic.clone();
        loop {
            let mut card = Card {
                nic: &*nic,
                capabilities: &self.capabilities,
                frame: None,
                full: false,
                spill: &mut self.spill,
            };
            let sent = self.iface.poll_egress(smoltcp_time(now), &mut card, &mut self.base);
            if card.full {
                self.base_ready = true;
                return false;
            }
            let changed = self.addresses.poll(&mut self.iface, &mut self.base, &*nic, now);
            if sent == PollResult::None && !changed {
                break;
            }
        }
        self.base_ready = false;
        let sockets = address::base_due(&mut self.iface, &self.base, now).filter(|due| *due > now);
        self.base_due = sockets.into_iter().chain(self.addresses.due()).min();
        true
    }

    /// Looks after one connection; whether the card had room for all it may send now.
    fn send_for(&mut self, id: ConnId, now: Instant) -> bool {
        let Some(connection) = &mut self.connections[id] else { return true };
        connection.queued = false;
        self.counters.polls += 1;
        let mut left = SEND_BURST;
        let mut card = Card {
            nic: &*self.nic,
            capabilities: &self.capabilities,
            frame: None,
            full: false,
            spill: &mut self.spill,
        };
        while left > 0
            && self.iface.poll_egress(smoltcp_time(now), &mut card, &mut connection.set) != PollResult::None
        {
            left -= 1;
        }
        let full = card.full;
        let verdict = connection.look_after(now);
        if verdict == Verdict::Keep || matches!(verdict, Verdict::Arrived(_)) {
            let socket = self.iface.poll_at(smoltcp_time(now), &connection.set);
            let socket = socket.map(|at| Instant(u64::try_from(at.total_micros()).unwrap_or(0) * 1000));
            let due = socket.into_iter().chain(connection.deadline()).min();
            if full || left == 0 || due.is_some_and(|due| due <= now) {
                connection.queued = true;
            } else if let Some(due) = due
                && connection.timer.is_none_or(|at| due < at)
            {
                connection.timer = Some(due);
                self.timers.push(Reverse((due, id)));
            }
            // Whoever found no room is first when there is some again.
            match (connection.queued, full) {
                (true, true) => self.ready.push_front(id),
                (true, false) => self.ready.push_back(id),
                (false, _) => {}
            }
        }
        self.carry_out(verdict, id);
        !full
    }

    fn carry_out(&mut self, verdict: Verdict, id: ConnId) {
        let port_of = |ports: &mut Vec<Option<Port>>, port: PortId, f: &mut dyn FnMut(&mut Port)| {
            if let Some(port) = ports[port].as_mut() {
                f(port);
            }
        };
        match verdict {
            Verdict::Keep => {}
            Verdict::Arrived(port) => {
                self.counters.accepted += 1;
                port_of(&mut self.ports, port, &mut |port| {
                    port.half_open -= 1;
                    port.waiting.push_back(id);
                    port.arrived.notify();
                });
            }
            Verdict::Refused(port) => {
                self.counters.handshakes_failed += 1;
                port_of(&mut self.ports, port, &mut |port| port.half_open -= 1);
                self.remove(id);
            }
            Verdict::LostInQueue(port) => {
                port_of(&mut self.ports, port, &mut |port| port.waiting.retain(|waiting| *waiting != id));
                self.remove(id);
            }
            Verdict::Over => self.remove(id),
        }
    }

    /// When [`Hub::egress`] is due by the clock.
    pub(crate) fn due(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        timer.into_iter().chain(self.base_due).min()
    }

    fn notice_link(&mut self, now: Instant) {
        let up = self.nic.link_up();
        if up && !self.link_up {
            self.addresses.link_up(&mut self.base, now);
            self.base_ready = true;
        }
        self.link_up = up;
    }

    // ---- connections ----------------------------------------------------------------------------------------

    /// Puts a connection into the queue of those with something to do.
    pub(crate) fn wake(&mut self, id: ConnId) {
        if let Some(connection) = &mut self.connections[id]
            && !connection.queued
        {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Something other than TCP has something to send.
    pub(crate) fn wake_base(&mut self) {
        self.base_ready = true;
    }

    /// Makes a connection with a closed socket, if there is a place and memory for it.
    pub(crate) fn insert(
        &mut self,
        tuple: Tuple,
        class: Class,
        phase: Phase,
        now: Instant,
    ) -> Option<ConnId> {
        let ring = match self.budget.ring(class) {
            Some(ring) => ring,
            None => {
                let recycled = self.recycle().and_then(|()| self.budget.ring(class));
                if recycled.is_none() {
                    self.budget.refuse();
                }
                recycled?
            }
        };
        let connection = Connection::new(tuple, ring, phase, now)?;
        self.budget.take(connection.buffer_bytes);
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.connections[id] = Some(connection);
        self.by_tuple.insert(tuple, id);
        Some(id)
    }

    /// Forgets a connection that only waits for its time to end.
    fn recycle(&mut self) -> Option<()> {
        let expendable = |c: &mut Option<Connection>| c.as_mut().is_some_and(Connection::is_expendable);
        let id = self.connections.iter_mut().position(expendable)?;
        self.counters.recycled += 1;
        self.remove(id);
        Some(())
    }

    pub(crate) fn remove(&mut self, id: ConnId) {
        if let Some(connection) = self.connections[id].take() {
            self.by_tuple.remove(&connection.tuple);
            self.budget.give_back(connection.buffer_bytes);
            self.vacant.push(id);
            if connection.queued {
                self.ready.retain(|ready| *ready != id);
            }
        }
    }

    /// What buffers take of memory.
    pub(crate) fn memory(&self) -> Usage {
        self.budget.usage()
    }

    /// Connections there are, in whatever state.
    pub(crate) fn connections_now(&self) -> usize {
        self.budget.connections()
    }

    // ---- listening and connecting ---------------------------------------------------------------------------

    /// Opens a port; 0 takes any free one.
    pub(crate) fn open_port(&mut self, mut local: SocketAddr, random: u64) -> Result<PortId, NetError> {
        if local.port() == 0 {
            let taken = |port| self.ports.iter().flatten().any(|p| p.local.port() == port);
            local.set_port(free_port(random, taken).ok_or(NetError::Exhausted)?);
        }
        if self.ports.iter().flatten().any(|port| overlap(port.local, local)) {
            return Err(NetError::AddressInUse);
        }
        if self.ports.iter().flatten().count() == PORTS_MAX {
            return Err(NetError::Exhausted);
        }
        let id = self.ports.iter().position(Option::is_none).unwrap_or_else(|| {
            self.ports.push(None);
            self.ports.len() - 1
        });
        self.ports[id] = Some(Port::new(local));
        Ok(id)
    }

    /// Closes a port; connections that nobody accepted are reset.
    pub(crate) fn close_port(&mut self, port: PortId, now: Instant) {
        self.ports[port] = None;
        for id in 0..self.connections.len() {
            let Some(connection) = &mut self.connections[id] else { continue };
            if matches!(connection.phase, Phase::Handshake(p, _) | Phase::Waiting(p) if p == port) {
                self.orphan(id, now);
            }
        }
    }

    /// Nobody holds the connection any more: it ends in good order, or at once if there is data nobody will read.
    pub(crate) fn orphan(&mut self, id: ConnId, now: Instant) {
        let Some(connection) = &mut self.connections[id] else { return };
        let accepted = matches!(connection.phase, Phase::Owned);
        connection.phase = Phase::Orphan(now + crate::connection::ORPHAN_MAX);
        let socket = connection.socket();
        if accepted && socket.recv_queue() == 0 {
            socket.close();
        } else {
            socket.abort();
        }
        self.wake(id);
    }

    /// Starts a connection to `peer` from a free local port.
    pub(crate) fn connect(
        &mut self,
        peer: SocketAddr,
        random: u64,
        deadline: Instant,
        now: Instant,
    ) -> Result<ConnId, NetError> {
        let remote = IpEndpoint::from(peer);
        if !remote.addr.is_unicast() || peer.port() == 0 {
            return Err(NetError::Unreachable);
        }
        let source = self.iface.get_source_address(&remote.addr).filter(|a| a.is_unicast());
        let ip = source.ok_or(NetError::Unreachable)?.into();
        let tuple_at = |port| Tuple { local: SocketAddr::new(ip, port), remote: peer };
        let port = free_port(random, |port| self.by_tuple.contains_key(&tuple_at(port)));
        let tuple = tuple_at(port.ok_or(NetError::Exhausted)?);
        let id =
            self.insert(tuple, Class::Large, Phase::Connecting(deadline), now).ok_or(NetError::Exhausted)?;
        let Some(connection) = &mut self.connections[id] else { return Err(NetError::Exhausted) };
        let local = IpEndpoint::from(tuple.local);
        if connection.socket().connect(self.iface.context(), remote, local).is_err() {
            self.remove(id);
            return Err(NetError::Unreachable);
        }
        self.wake(id);
        Ok(id)
    }
}

/// Who gets a segment.
enum Recipient {
    Connection(ConnId),
    /// A connection that the peer seems to have forgotten, having acknowledged this much: it is to say so.
    Challenge(ConnId, TcpSeqNumber),
    /// The stack proper, which answers with a reset.
    Nobody,
    /// Nobody, and no answer: the peer will try again.
    Drop,
}

/// Whether two endpoints cannot both be bound.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    crate::admission::covers(a, b) || crate::admission::covers(b, a)
}

/// A port of the dynamic range that is not `taken`, beginning the search at a random one.
pub(crate) fn free_port(random: u64, taken: impl Fn(u16) -> bool) -> Option<u16> {
    const FIRST: u16 = 49_152;
    const COUNT: u16 = u16::MAX - FIRST;
    let start = (random % u64::from(COUNT)) as u16;
    (0..COUNT).map(|i| FIRST + (start + i) % COUNT).find(|port| !taken(*port))
}
