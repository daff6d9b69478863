//! One TCP connection, from its first SYN to its last timer: the socket, who owns it, and what it is waiting for.

use crate::flow::Tuple;
use alloc::vec::Vec;
use core::time::Duration;
use moraine_platform::Instant;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, CongestionControl, State};
use smoltcp::wire::TcpSeqNumber;

/// Idle time after which the peer is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A peer from which nothing was heard for this long, answers to such questions included, is gone.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// A peer which answers but takes no data for this long loses its connection.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(60);
/// How long a connection may take to end after nobody holds it any more.
pub(crate) const ORPHAN_MAX: Duration = Duration::from_secs(60);

/// Index of a connection.
pub(crate) type ConnId = usize;
/// Index of a listening port.
pub(crate) type PortId = usize;

/// See the file's header. Each connection is a socket set of its own, so that the interface can be pointed at
/// exactly one.
pub(crate) struct Connection {
    pub(crate) set: SocketSet<'static>,
    handle: SocketHandle,
    pub(crate) tuple: Tuple,
    /// Bytes of its buffers, both ways.
    pub(crate) buffer_bytes: usize,
    pub(crate) phase: Phase,
    /// Whether it stands in the queue of those with something to send.
    pub(crate) queued: bool,
    /// The earliest timer set for it.
    pub(crate) timer: Option<Instant>,
    /// What the peer acknowledged last, as it says.
    pub(crate) acknowledged: TcpSeqNumber,
    /// Bytes ever given to the socket to send.
    pub(crate) given: u64,
    /// How many of them the peer had acknowledged when that last changed, and when.
    progress: (u64, Instant),
}

/// Who answers for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A SYN arrived at a port; the handshake has to end by the deadline.
    Handshake(PortId, Instant),
    /// Established and waiting to be accepted.
    Waiting(PortId),
    /// A SYN was sent; the handshake has to end by the deadline.
    Connecting(Instant),
    /// A protocol holds it.
    Owned,
    /// Nobody holds it; it ends by itself, at the deadline by force.
    Orphan(Instant),
}

/// What is to become of a connection after it was looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes on.
    Keep,
    /// It is established: put it in the queue of its port.
    Arrived(PortId),
    /// The handshake failed: the port has one half-open connection less, and this one goes.
    Refused(PortId),
    /// It was reset while it waited to be accepted.
    LostInQueue(PortId),
    /// It is over.
    Over,
}

/// A zeroed ring of `bytes`, if there is memory.
fn ring(bytes: usize) -> Option<Vec<u8>> {
    let mut ring = Vec::new();
    ring.try_reserve_exact(bytes).ok()?;
    ring.resize(bytes, 0);
    Some(ring)
}

impl Connection {
    /// A connection with a closed socket and rings of `ring_bytes` each way; `None` without memory.
    pub(crate) fn new(tuple: Tuple, ring_bytes: usize, phase: Phase, now: Instant) -> Option<Connection> {
        let receive = tcp::SocketBuffer::new(ring(ring_bytes)?);
        let send = tcp::SocketBuffer::new(ring(ring_bytes)?);
        let mut socket = tcp::Socket::new(receive, send);
        // Protocols give whole messages; holding the tail of one back until the last is acknowledged only hurts.
        socket.set_nagle_enabled(false);
        // Acknowledgements leave at the end of the turn in which data came, one for the whole burst and together with
        // the reply if there is one already; a timer on top would stall senders whose bursts arrive merged into one.
        socket.set_ack_delay(None);
        socket.set_congestion_control(CongestionControl::Reno);
        socket.set_keep_alive(Some(KEEP_ALIVE.into()));
        socket.set_timeout(Some(SILENCE_MAX.into()));
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Some(Connection {
            set,
            handle,
            tuple,
            buffer_bytes: 2 * ring_bytes,
            phase,
            queued: false,
            timer: None,
            acknowledged: TcpSeqNumber::default(),
            given: 0,
            progress: (0, now),
        })
    }

    /// Its socket.
    pub(crate) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    /// Whether both ends know of it, so that a SYN says that the peer has forgotten it.
    pub(crate) fn is_synchronized(&mut self) -> bool {
        !matches!(self.socket().state(), State::Closed | State::Listen | State::SynSent | State::SynReceived)
    }

    /// Whether nobody would miss it if its place were needed.
    pub(crate) fn is_expendable(&mut self) -> bool {
        matches!(self.phase, Phase::Orphan(_))
            && matches!(self.socket().state(), State::TimeWait | State::Closed)
    }

    /// Applies the rules of its phase after something happened to it or its time came.
    pub(crate) fn look_after(&mut self, now: Instant) -> Verdict {
        let state = self.socket().state();
        match self.phase {
            Phase::Handshake(port, deadline) => match state {
                State::SynReceived if now < deadline => Verdict::Keep,
                State::SynReceived | State::Closed | State::Listen => Verdict::Refused(port),
                _ => {
                    self.phase = Phase::Waiting(port);
                    Verdict::Arrived(port)
                }
            },
            Phase::Waiting(port) if state == State::Closed => Verdict::LostInQueue(port),
            Phase::Waiting(_) => Verdict::Keep,
            Phase::Connecting(deadline) => {
                if state == State::SynSent && now >= deadline {
                    self.socket().abort();
                }
                Verdict::Keep
            }
            Phase::Owned => {
                self.drop_if_stalled(now);
                Verdict::Keep
            }
            Phase::Orphan(deadline) => {
                self.drop_if_stalled(now);
                let socket = self.socket();
                // Data for nobody: the peer learns it by a reset, as from any system.
                if socket.recv_queue() > 0 {
                    socket.abort();
                }
                // An aborted socket forgets its peer once the reset is sent.
                let over = socket.state() == State::Closed && socket.remote_endpoint().is_none();
                if over || now >= deadline {
                    return Verdict::Over;
                }
                Verdict::Keep
            }
        }
    }

    /// Aborts the connection when the peer has acknowledged nothing for too long although there is something to.
    fn drop_if_stalled(&mut self, now: Instant) {
        let unacknowledged = self.socket().send_queue() as u64;
        let acknowledged = self.given - unacknowledged;
        if acknowledged != self.progress.0 || unacknowledged == 0 {
            self.progress = (acknowledged, now);
        } else if now.since(self.progress.1) >= STALL_MAX {
            moraine_platform::warn!("net", "{} takes nothing, connection dropped", self.tuple.remote);
            self.progress = (acknowledged, now);
            self.socket().abort();
        }
    }

    /// When [`Connection::look_after`] has to be called by the clock.
    pub(crate) fn deadline(&mut self) -> Option<Instant> {
        let stalls = (self.socket().send_queue() > 0).then_some(self.progress.1 + STALL_MAX);
        match self.phase {
            Phase::Handshake(_, deadline) | Phase::Connecting(deadline) => Some(deadline),
            Phase::Waiting(_) => None,
            Phase::Owned => stalls,
            Phase::Orphan(deadline) => Some(stalls.map_or(deadline, |at| at.min(deadline))),
        }
    }
}
