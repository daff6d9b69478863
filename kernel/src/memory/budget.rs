//! The memory budget: every byte of the heap belongs to a named share, decided once at boot.
//!
//! The shares are not walls in the allocator; each owner keeps its own bound. The reserve is what small things take:
//! tasks, tables, and the copies under way between the owners.

use core::fmt;
use moraine_platform::info;

/// Largest share of the network, in bytes: more buffers than this no longer make it faster.
const NETWORK_MAX: u64 = 256 << 20;
/// Least share of the network, in bytes.
const NETWORK_MIN: u64 = 4 << 20;

/// Who may use how much, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// All of it.
    pub(crate) total: u64,
    /// Buffers of connections.
    pub(crate) network: u64,
    /// Requests that the exports have under way.
    pub(crate) exports: u64,
    /// Page cache, nodes, journal.
    pub(crate) filesystem: u64,
    /// Rings of the drivers, tasks, everything small.
    pub(crate) reserve: u64,
}

impl Budget {
    /// Divides the heap, or `limit` of it.
    pub(crate) fn new(heap: u64, limit: Option<u64>) -> Budget {
        let total = limit.map_or(heap, |limit| limit.min(heap));
        let network = (total / 8).clamp(NETWORK_MIN.min(total / 4), NETWORK_MAX);
        let exports = total / 8;
        let reserve = total / 8;
        Budget { total, network, exports, filesystem: total - network - exports - reserve, reserve }
    }

    /// Prints the table.
    pub(crate) fn report(&self) {
        info!("memory", "budget {self}");
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(
            f,
            "{} MiB: filesystem {}, network {}, exports {}, reserve {}",
            mib(self.total),
            mib(self.filesystem),
            mib(self.network),
            mib(self.exports),
            mib(self.reserve)
        )
    }
}
