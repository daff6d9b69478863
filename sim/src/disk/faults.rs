//! What may go wrong with a disk while it has power.

use moraine_platform::IoError;
use std::collections::{BTreeMap, VecDeque};

/// How a write goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// It completes well and never lands.
    Lost,
    /// It completes well and lands elsewhere: its offset and this many bytes, wrapped and aligned to 512.
    Misdirected {
        /// Distance in bytes.
        by: u64,
    },
    /// It times out, and lands this much later.
    Zombie {
        /// Nanoseconds after the time-out.
        after_ns: u64,
    },
}

/// Planned faults of one disk. Counts are of commands from now on: 0 is the next one.
#[derive(Clone, Debug, Default)]
pub struct DiskFaults {
    /// Every command takes this many times as long; 0 and 1 mean normal.
    pub slow_factor: u64,
    /// Flushes complete well and do nothing.
    pub ignore_flush: bool,
    /// Every command fails: the disk is gone.
    pub vanished: bool,
    vanish_at: Option<u64>,
    commands: VecDeque<(u64, IoError)>,
    writes: BTreeMap<u64, WriteFault>,
    flushes: BTreeMap<u64, bool>,
    unreadable: Vec<(u64, u64)>,
    command_count: u64,
    write_count: u64,
    flush_count: u64,
}

impl DiskFaults {
    /// The disk is gone from the command `after` the next ones on.
    pub fn vanish(&mut self, after: u64) {
        self.vanish_at = Some(self.command_count + after);
    }

    /// Fails the command `after` the next ones with `error`. A write that fails may have landed, in part, or not.
    pub fn fail_command(&mut self, after: u64, error: IoError) {
        self.commands.push_back((self.command_count + after, error));
    }

    /// Makes the write `after` the next ones go wrong.
    pub fn fail_write(&mut self, after: u64, fault: WriteFault) {
        self.writes.insert(self.write_count + after, fault);
    }

    /// Fails the flush `after` the next ones; what it covered stays in the cache.
    pub fn fail_flush(&mut self, after: u64) {
        self.flushes.insert(self.flush_count + after, false);
    }

    /// Fails the flush `after` the next ones, and what it covered is lost, also for readers.
    pub fn fail_flush_and_lose(&mut self, after: u64) {
        self.flushes.insert(self.flush_count + after, true);
    }

    /// Makes reads that touch the range fail with a media error.
    pub fn make_unreadable(&mut self, offset: u64, len: u64) {
        self.unreadable.push((offset, len));
    }

    pub(crate) fn next_command(&mut self) -> Option<IoError> {
        let number = self.command_count;
        self.command_count += 1;
        if self.vanished || self.vanish_at.is_some_and(|at| number >= at) {
            return Some(IoError::Gone);
        }
        let at = self.commands.iter().position(|(n, _)| *n == number)?;
        self.commands.remove(at).map(|(_, error)| error)
    }

    pub(crate) fn next_read(&self, offset: u64, len: u64) -> Option<IoError> {
        let hit = self.unreadable.iter().any(|(at, n)| *at < offset + len && offset < at + n);
        hit.then_some(IoError::Media)
    }

    pub(crate) fn next_write(&mut self) -> Option<WriteFault> {
        self.write_count += 1;
        self.writes.remove(&(self.write_count - 1))
    }

    pub(crate) fn next_flush(&mut self) -> Option<bool> {
        self.flush_count += 1;
        self.flushes.remove(&(self.flush_count - 1))
    }
}
