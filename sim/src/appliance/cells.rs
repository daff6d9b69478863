//! What a cell of a file or volume, and what a file's size may be, after everything that was answered, and after a power
//! cut.

/// One value a cell was given.
#[derive(Clone, Copy, Debug)]
struct Version {
    /// What fills the cell; 0 are zeroes.
    stamp: u64,
    /// The mark before it was sent, which tells it from others: two may both be zeroes.
    since: u64,
    /// The boot that answered; none did yet, or an earlier one than the oracle cares for.
    boot: Option<u64>,
    /// A flush failed since: a later one says nothing about it.
    doubtful: bool,
}

/// A cell: the last value that is stable, and those it was given later, any of which a power cut may leave.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    versions: Vec<Version>,
}

impl Cell {
    /// Zeroes, stable.
    pub(super) fn new() -> Cell {
        Cell { versions: vec![Version { stamp: 0, since: 0, boot: None, doubtful: false }] }
    }

    /// It is about to be written.
    pub(super) fn sent(&mut self, stamp: u64, since: u64) {
        self.versions.push(Version { stamp, since, boot: None, doubtful: false });
    }

    /// The last write, sent after the mark `since`, was answered by `boot`.
    pub(super) fn answered(&mut self, since: u64, boot: u64) {
        let last = self.versions.last_mut().expect("a cell always has a value");
        assert_eq!(last.since, since, "writes of one cell come one after the other");
        last.boot = Some(boot);
    }

    /// What it was given after the mark `since` is on media: nothing older comes back. Whether that is news.
    pub(super) fn stable(&mut self, since: u64) -> bool {
        let at = self.versions.iter().position(|version| version.since == since).unwrap_or(0);
        self.versions.drain(..at);
        at > 0
    }

    /// The newest value answered by `boot` that is not known to be stable, by the mark before it was sent.
    pub(super) fn loose_in(&self, boot: u64) -> Option<u64> {
        let newer = &self.versions[1..];
        newer.iter().rfind(|v| v.boot == Some(boot) && !v.doubtful).map(|v| v.since)
    }

    /// The last stable value and all that may have taken its place by now, and the mark before the first was sent.
    pub(super) fn stable_or_later(&self) -> (Vec<u64>, u64) {
        (self.versions.iter().map(|version| version.stamp).collect(), self.versions[0].since)
    }

    /// A flush failed: a later one says nothing about what was answered so far.
    pub(super) fn flush_failed(&mut self) {
        self.versions.iter_mut().for_each(|version| version.doubtful = true);
    }

    /// Whether a power cut before `boot` has left one of several values.
    pub(super) fn is_open(&self, boot: u64) -> bool {
        self.versions.len() > 1 && self.versions[1..].iter().all(|version| version.boot != Some(boot))
    }

    /// It was read, with an answer of `boot`, while no write of it was under way.
    pub(super) fn seen(&mut self, stamp: u64, boot: u64) -> Result<(), String> {
        let last = self.versions.last().expect("a cell always has a value");
        let touched = self.versions[1..].iter().any(|version| version.boot == Some(boot));
        let right = match last.boot == Some(boot) {
            true => last.stamp == stamp,
            false => self.versions.iter().any(|version| version.stamp == stamp),
        };
        if !right {
            let allowed: Vec<String> = self.versions.iter().map(|v| format!("{:x}", v.stamp)).collect();
            return Err(format!("holds {stamp:x}, may hold {}", allowed.join(", ")));
        }
        // What an earlier boot left has been decided by the power cut.
        if !touched {
            self.versions = vec![Version { stamp, since: 0, boot: None, doubtful: false }];
        }
        Ok(())
    }
}

/// The sizes from the one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Between(u64, u64);

impl Between {
    /// After a write up to `end`.
    fn reaching(self, end: u64) -> Between {
        Between(self.0.max(end), self.1.max(end))
    }

    /// After it or not, or a part of it.
    fn maybe_reaching(self, end: u64) -> Between {
        Between(self.0, self.1.max(end))
    }
}

/// A file's size: what it may be now, and what it may be after a power cut, which can leave any part of a write.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    now: Between,
    after_cut: Between,
    boot: u64,
}

impl Sizes {
    /// Of a new file that is on media, by an answer of `boot`.
    pub(super) fn new(boot: u64) -> Sizes {
        Sizes { now: Between(0, 0), after_cut: Between(0, 0), boot }
    }

    fn in_boot(&mut self, boot: u64) {
        if boot != self.boot {
            self.now = self.after_cut;
            self.boot = boot;
        }
    }

    /// A write up to `end` is about to be sent.
    pub(super) fn write_sent(&mut self, end: u64) {
        self.after_cut = self.after_cut.maybe_reaching(end);
    }

    /// It was answered; `stable` if its content, and so the size that shows it, is on media.
    pub(super) fn written(&mut self, end: u64, stable: bool, boot: u64) {
        self.in_boot(boot);
        self.now = self.now.reaching(end);
        if stable {
            self.after_cut = self.after_cut.reaching(end);
        }
    }

    /// All that was written is on media, by an answer of `boot`.
    pub(super) fn committed(&mut self, boot: u64) {
        self.in_boot(boot);
        self.after_cut = self.now;
    }

    /// It is about to be set.
    pub(super) fn set_sent(&mut self, size: u64) {
        let Between(least, most) = self.after_cut;
        self.after_cut = Between(least.min(size), most.max(size));
    }

    /// It was set, and that is on media.
    pub(super) fn set(&mut self, size: u64, boot: u64) {
        self.boot = boot;
        (self.now, self.after_cut) = (Between(size, size), Between(size, size));
    }

    /// It was seen in an answer of `boot`, while no write was under way.
    pub(super) fn seen(&mut self, size: u64, boot: u64) -> Result<(), String> {
        self.in_boot(boot);
        let Between(least, most) = self.now;
        if !(least..=most).contains(&size) {
            return Err(format!("has {size} bytes, may have from {least} to {most}"));
        }
        if self.now == self.after_cut {
            self.after_cut = Between(size, size);
        }
        self.now = Between(size, size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_holds_the_last_write_of_its_boot_and_any_loose_one_after_a_cut() {
        let mut cell = Cell::new();
        for stamp in [1, 2, 3] {
            cell.sent(stamp, stamp * 10);
            cell.answered(stamp * 10, 0);
        }
        assert!(cell.clone().seen(2, 0).is_err());
        assert!(cell.seen(3, 0).is_ok());
        assert!(cell.stable(20));
        assert!(cell.clone().seen(1, 1).is_err(), "older than what is stable");
        assert!(cell.seen(2, 1).is_ok());
        assert!(cell.seen(3, 1).is_err(), "once seen in a boot, that is what it is");
    }

    #[test]
    fn a_size_is_exact_in_its_boot_and_one_of_several_after_a_cut() {
        let mut sizes = Sizes::new(0);
        sizes.write_sent(10);
        sizes.written(10, false, 0);
        assert!(sizes.clone().seen(0, 0).is_err());
        assert!(sizes.clone().seen(0, 1).is_ok());
        sizes.committed(0);
        assert!(sizes.clone().seen(0, 1).is_err());
        assert!(sizes.seen(10, 1).is_ok());
    }
}
