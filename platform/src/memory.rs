//! Memory as a budget: who may use how much, what each uses, and when large buffers are no longer to be had.
//!
//! Every owner of much memory keeps its own bound and counts what it holds in a [`Meter`]; whoever wires the owners
//! together decides the bounds, once, and shows all of it as rows of [`Usage`]. What no owner counts (tasks, tables, copies
//! under way) lives in a reserve, which [`set_gate`] defends: large buffers are refused before small things run out.

use core::cell::Cell;
use core::fmt;

/// Bytes one owner holds, and the most it ever held.
#[derive(Debug, Default)]
pub struct Meter {
    bytes: Cell<usize>,
    peak: Cell<usize>,
    refused: Cell<u64>,
}

impl Meter {
    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Counts bytes more.
    pub fn add(&self, bytes: usize) {
        self.set(self.bytes.get() + bytes);
    }

    /// Counts bytes less.
    pub fn sub(&self, bytes: usize) {
        let left = self.bytes.get().checked_sub(bytes);
        self.bytes.set(left.expect("an owner gives back what it took"));
    }

    /// What is held is `bytes` now.
    pub fn set(&self, bytes: usize) {
        self.bytes.set(bytes);
        self.peak.set(self.peak.get().max(bytes));
    }

    /// Somebody was refused, or had to wait, because of the bound.
    pub fn refuse(&self) {
        self.refused.set(self.refused.get() + 1);
    }

    /// A row of the table, for the owner `name` whose bound is `limit` bytes.
    pub fn usage(&self, name: &'static str, limit: u64) -> Usage {
        Usage {
            name,
            limit,
            used: self.bytes.get() as u64,
            peak: self.peak.get() as u64,
            refused: self.refused.get(),
        }
    }
}

/// A named share and how it is used, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Whose it is.
    pub name: &'static str,
    /// Its bound.
    pub limit: u64,
    /// Held now.
    pub used: u64,
    /// The most ever held.
    pub peak: u64,
    /// How often the bound was met: somebody was refused, or waited.
    pub refused: u64,
}

impl fmt::Display for Usage {
    /// `network 3.2 of 13 MiB, at most 12.9, refused 4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = |bytes: u64| ((bytes * 10) >> 20) / 10;
        let rest = |bytes: u64| ((bytes * 10) >> 20) % 10;
        let (used, peak) = (self.used, self.peak);
        write!(f, "{} {}.{} of {} MiB", self.name, tenths(used), rest(used), self.limit >> 20)?;
        write!(f, ", at most {}.{}, refused {}", tenths(peak), rest(peak), self.refused)
    }
}

/// Whether a buffer of so many bytes may be made now.
pub type Gate = fn(bytes: usize) -> bool;

static GATE: spin::Once<Gate> = spin::Once::new();

/// Asks `gate` before each [`Buf`](crate::Buf) from now on; the first call wins. A platform without a gate refuses nothing
/// but what its allocator refuses.
pub fn set_gate(gate: Gate) {
    GATE.call_once(|| gate);
}

/// Whether a buffer of so many bytes may be made now.
pub(crate) fn open(bytes: usize) -> bool {
    GATE.get().is_none_or(|gate| gate(bytes))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::{Buf, OutOfMemory};
    use std::string::ToString;

    #[test]
    fn a_meter_remembers_its_peak_and_its_refusals() {
        let meter = Meter::default();
        meter.add(3 << 20);
        meter.sub(2 << 20);
        meter.refuse();
        let row = meter.usage("network", 8 << 20);
        assert_eq!((row.used, row.peak, row.refused), (1 << 20, 3 << 20, 1));
        assert_eq!(row.to_string(), "network 1.0 of 8 MiB, at most 3.0, refused 1");
    }

    #[test]
    fn a_closed_gate_refuses_buffers() {
        set_gate(|bytes| bytes <= 1 << 30);
        assert_eq!(Buf::zeroed((1 << 30) + 1).err(), Some(OutOfMemory));
        assert!(Buf::zeroed(4096).is_ok());
    }
}
