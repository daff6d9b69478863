//! The memory budget: one table of named shares, decided once, whose sum is all there is.
//!
//! Each owner is told its share and keeps to it by its own means: caches evict, the network answers no SYN, exports read no
//! socket. What a share is used for shows in rows of [`Usage`](moraine_platform::memory::Usage), which each owner gives.
//!
//! | share | whose | how it is kept |
//! |---|---|---|
//! | nodes | nodes of trees | clean ones are evicted; dirty ones make commits wait |
//! | journal | what recovery holds until its nodes are read in; entry buffers | commits wait for the journal's tail |
//! | pages | file content, clean and dirty | clean ones are evicted; writers wait from 60 % of a third |
//! | network | buffers of connections | smaller ones, then no new connection |
//! | nfs, nbd | file data between socket and cache | a socket is not read until its data was granted room |
//! | reserve | everything small: tasks, tables, rings, copies under way | large buffers are refused before it runs out |

use core::fmt;

/// The least memory an appliance can be told to live in, in bytes.
pub const BUDGET_MIN: u64 = 32 << 20;
/// Least and largest share of the journal, in bytes. Recovery must find room for all that an earlier mount left in it, up to
/// the largest share: where there is less, the caches are still empty then, and commits wait until it is written back.
const JOURNAL_MIN: u64 = 4 << 20;
const JOURNAL_MAX: u64 = 12 << 20;
/// The largest share of the network, in bytes: more buffers than this no longer make it faster.
const NETWORK_MAX: u64 = 256 << 20;
/// Least and largest share of file data in flight of each export, in bytes.
const PAYLOAD_MIN: u64 = 4 << 20;
/// The same for NFS: half of it is divided among 256 connections, and a piece is to be worth having.
const NFS_PAYLOAD_MIN: u64 = 8 << 20;
const PAYLOAD_MAX: u64 = 16 << 20;

/// Who may use how much, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it: the sum of the others.
    pub total: u64,
    /// Nodes of trees.
    pub nodes: u64,
    /// The journal, and what recovery holds of it.
    pub journal: u64,
    /// Pages of files.
    pub pages: u64,
    /// Buffers of connections.
    pub network: u64,
    /// File data that NFS has under way.
    pub nfs: u64,
    /// File data that NBD has under way.
    pub nbd: u64,
    /// Everything else.
    pub reserve: u64,
}

impl Memory {
    /// Divides `total` bytes, or [`BUDGET_MIN`] if that is more.
    pub fn of(total: u64) -> Memory {
        let total = total.max(BUDGET_MIN);
        let network = (total / 8).min(NETWORK_MAX);
        let nfs = (total / 12).clamp(NFS_PAYLOAD_MIN, PAYLOAD_MAX);
        let nbd = (total / 8).clamp(PAYLOAD_MIN, PAYLOAD_MAX);
        let reserve = total / 8;
        let journal = (total / 4 - JOURNAL_MIN).clamp(JOURNAL_MIN, JOURNAL_MAX);
        let caches = total - journal - network - nfs - nbd - reserve;
        let nodes = caches * 2 / 5;
        Memory { total, nodes, journal, pages: caches - nodes, network, nfs, nbd, reserve }
    }

    /// Each share with its name.
    pub fn shares(&self) -> [(&'static str, u64); 7] {
        [
            ("nodes", self.nodes),
            ("journal", self.journal),
            ("pages", self.pages),
            ("network", self.network),
            ("nfs", self.nfs),
            ("nbd", self.nbd),
            ("reserve", self.reserve),
        ]
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "budget {} MiB:", self.total >> 20)?;
        for (n, (name, bytes)) in self.shares().iter().enumerate() {
            write!(f, "{} {name} {}", if n > 0 { "," } else { "" }, bytes >> 20)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn the_shares_are_the_whole_and_none_is_too_small_to_work() {
        for total in [
            0,
            BUDGET_MIN,
            (40 << 20) + 1,
            64 << 20,
            100 << 20,
            (108 << 20) + 4095,
            128 << 20,
            512 << 20,
            16 << 30,
            1 << 40,
        ] {
            let memory = Memory::of(total);
            let sum: u64 = memory.shares().iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(sum, memory.total);
            assert_eq!(memory.total, total.max(BUDGET_MIN));
            for (name, bytes) in memory.shares() {
                let least = if name == "nodes" { 3 << 20 } else { 4 << 20 };
                assert!(bytes >= least, "{name} gets {bytes} of {total}");
            }
        }
    }

    #[test]
    fn the_table_is_a_line_that_names_every_share() {
        let line = Memory::of(108 << 20).to_string();
        let want = "budget 108 MiB: nodes 18, journal 12, pages 27, network 13, nfs 9, nbd 13, reserve 13";
        assert_eq!(line, want);
    }
}
