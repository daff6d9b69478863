//! What can be chosen, and the bounds of everything a client can make the server hold.

use crate::portmap::Ports;
use crate::rpc::Identities;
use crate::v3::Transfer;
use crate::v3::procedures::TRANSFER_MAX;
use core::time::Duration;

/// The longest record: a WRITE of the largest size with its head.
pub(super) const RECORD_MAX: u32 = TRANSFER_MAX + 8 * 1024;
/// Bytes of a record that are kept of anything but a WRITE's data. The longest honest call is a SYMLINK.
pub(super) const CALL_MAX: usize = 8 * 1024;
/// Calls of one connection in work at once, their unsent replies included.
pub(super) const CONNECTION_CALLS_MAX: u64 = 64;
/// Connections open at once, unless told otherwise.
const CONNECTIONS_MAX: usize = 256;
/// The most connections that can be asked for. Each has a call of its own, and every call in work must have its place in the
/// duplicate request cache.
const CONNECTIONS_LIMIT: usize = 512;
/// Calls in work at once over all connections, beside one for each.
pub(super) const CALLS_MAX: u64 = 1024;
/// File data that one connection may have in work, in bytes.
pub(super) const CONNECTION_PAYLOAD_MAX: u64 = 2 << 20;
/// The least useful budget for file data, in bytes: one half is shared, every client can have half of that, and that must
/// hold a WRITE.
const PAYLOAD_MIN: u64 = 8 << 20;
/// The least useful piece of a connection's own, in bytes: an unaligned block and more.
pub(super) const PIECE_MIN: u64 = 2 * moraine_platform::BLOCK_SIZE as u64;
/// How long a peer may take over one record, or over taking the next byte of a reply.
pub(super) const STALL_MAX: Duration = Duration::from_secs(60);
/// How often stalled peers are looked for.
pub(super) const REAP_INTERVAL: Duration = Duration::from_secs(5);
/// How long calls in work may take when the server stops.
pub(super) const STOP_GRACE: Duration = Duration::from_secs(5);
/// At most one line about misbehaving peers in so much time.
pub(super) const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);
/// The pause after a connection that failed before it was there.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(10);
/// The first pause before a call that found no memory runs again; each further one is twice as long.
pub(super) const MEMORY_PAUSE: Duration = Duration::from_millis(5);
/// The longest such pause.
pub(super) const MEMORY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Times memory for all of a WRITE's data is asked for before less will do.
pub(super) const WHOLE_TRIES: u32 = 10;

const _: () = assert!(
    CALLS_MAX + (CONNECTIONS_LIMIT as u64) < crate::drc::ENTRIES_MAX as u64,
    "running calls always fit the cache"
);
const _: () =
    assert!(RECORD_MAX as u64 <= CONNECTION_PAYLOAD_MAX && CONNECTION_PAYLOAD_MAX <= PAYLOAD_MIN / 4);

/// What the server is told to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the port mapper answers.
    pub ports: Ports,
    /// How credentials become callers; root squash is off by default.
    pub identities: Identities,
    /// Transfer sizes offered.
    pub transfer: Transfer,
    /// File data in work at once over all connections, in bytes; raised to 8 MiB if less.
    pub payload_max: u64,
    /// Connections open at once; at least 1 and at most 512, whatever it says.
    pub connections_max: usize,
}

impl Config {
    /// The defaults for a machine with `memory` bytes that serves at `ports`, with `payload_max` bytes of them for file data.
    pub fn new(ports: Ports, memory: u64, payload_max: u64) -> Config {
        Config {
            ports,
            identities: Identities::default(),
            transfer: Transfer::for_memory(memory),
            payload_max,
            connections_max: CONNECTIONS_MAX,
        }
    }

    /// Connections open at once, within what can be served.
    pub(super) fn connections(&self) -> usize {
        self.connections_max.clamp(1, CONNECTIONS_LIMIT)
    }

    pub(super) fn payload(bytes: u64) -> u64 {
        bytes.max(PAYLOAD_MIN)
    }
}
