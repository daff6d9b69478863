//! The least processor: x86-64-v2 of the System V ABI, as far as it goes beyond what every 64-bit processor has.
//!
//! Compilers may use all of it without asking, so a processor without is told apart before anything else runs.

use core::fmt;

/// What CPUID says, as far as the baseline is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    /// ECX of leaf 1.
    pub one: u32,
    /// ECX of leaf 0x8000_0001; 0 where there is no such leaf.
    pub extended: u32,
}

/// Bits of ECX of leaf 1.
const ONE: [(u32, &str); 6] =
    [(0, "SSE3"), (9, "SSSE3"), (13, "CMPXCHG16B"), (19, "SSE4.1"), (20, "SSE4.2"), (23, "POPCNT")];
/// Bits of ECX of leaf 0x8000_0001.
const EXTENDED: [(u32, &str); 1] = [(0, "LAHF")];

/// What a processor lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing(Leaves);

/// What the processor with these leaves lacks; none if it will do.
pub fn missing(leaves: Leaves) -> Option<Missing> {
    let missing = Missing(leaves);
    missing.names().next().is_some().then_some(missing)
}

impl Missing {
    /// The names of all that is missing.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let of = |list: &'static [(u32, &'static str)], word: u32| {
            list.iter().filter(move |(bit, _)| word & 1 << bit == 0).map(|(_, name)| *name)
        };
        of(&ONE, self.0.one).chain(of(&EXTENDED, self.0.extended))
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.names().enumerate() {
            write!(f, "{}{name}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn each_part_of_the_baseline_is_missed_by_name() {
        let full = Leaves { one: u32::MAX, extended: u32::MAX };
        assert_eq!(missing(full), None);
        // The x86-64 psABI's table of micro-architecture levels, level 2.
        for (bit, name) in
            [(0, "SSE3"), (9, "SSSE3"), (13, "CMPXCHG16B"), (19, "SSE4.1"), (20, "SSE4.2"), (23, "POPCNT")]
        {
            assert_eq!(missing(Leaves { one: !(1 << bit), ..full }).unwrap().to_string(), name);
        }
        assert_eq!(missing(Leaves { extended: !1, ..full }).unwrap().to_string(), "LAHF");
        let little = missing(Leaves { one: u32::MAX & !(1 << 13) & !(1 << 23), extended: 0 }).unwrap();
        assert_eq!(little.to_string(), "CMPXCHG16B, POPCNT, LAHF");
    }
}
