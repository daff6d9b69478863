//! Which stack the guard page at an address belongs to, so that a report of an overflow can name it.
//!
//! Written while cores start, read amid an exception on any of them, so it has no lock: an entry is one word, written
//! once.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

/// Size of a guard page.
const PAGE: u64 = 4096;
/// Cores that an entry can name: what is left of the low bits of a page's address.
pub const CORES_MAX: usize = 1 << 10;

/// A core's stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    /// The one it runs on.
    Own,
    /// For interrupts.
    Interrupts,
    /// For exceptions.
    Exceptions,
    /// For what may strike amid those: NMI, double fault, machine check.
    Emergencies,
}

/// One stack of one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The core's number; 0 is the first.
    pub core: usize,
    /// Which of its stacks.
    pub kind: Kind,
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = self.core;
        match self.kind {
            Kind::Own => write!(f, "the stack of core {core}"),
            Kind::Interrupts => write!(f, "the stack for interrupts of core {core}"),
            Kind::Exceptions => write!(f, "the stack for exceptions of core {core}"),
            Kind::Emergencies => write!(f, "the stack for emergencies of core {core}"),
        }
    }
}

/// The guard pages of up to `N` stacks.
pub struct Guards<const N: usize> {
    /// A page's address, its core's number from bit 2 on, its kind below; 0 is no entry.
    entries: [AtomicU64; N],
}

impl<const N: usize> Default for Guards<N> {
    fn default() -> Self {
        Guards::new()
    }
}

impl<const N: usize> Guards<N> {
    /// No guard pages.
    pub const fn new() -> Guards<N> {
        Guards { entries: [const { AtomicU64::new(0) }; N] }
    }

    /// Notes that the page at `page` guards `stack`; whether there was room.
    pub fn add(&self, page: u64, stack: Stack) -> bool {
        assert!(page != 0 && page.is_multiple_of(PAGE), "a guard is a whole page");
        assert!(stack.core < CORES_MAX, "a core's number fits its bits");
        let entry = page | (stack.core as u64) << 2 | stack.kind as u64;
        self.entries
            .iter()
            .any(|slot| slot.compare_exchange(0, entry, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// The stack whose guard page holds `address`.
    pub fn find(&self, address: u64) -> Option<Stack> {
        let page = address & !(PAGE - 1);
        let entries = self.entries.iter().map(|slot| slot.load(Ordering::Acquire));
        let entry = entries.take_while(|entry| *entry != 0).find(|entry| entry & !(PAGE - 1) == page)?;
        let kind = match entry & 3 {
            0 => Kind::Own,
            1 => Kind::Interrupts,
            2 => Kind::Exceptions,
            _ => Kind::Emergencies,
        };
        Some(Stack { core: (entry >> 2) as usize & (CORES_MAX - 1), kind })
    }

    /// The guard page of `stack`.
    pub fn page_of(&self, stack: Stack) -> Option<u64> {
        let entries = self.entries.iter().map(|slot| slot.load(Ordering::Acquire));
        let mut pages = entries.take_while(|entry| *entry != 0).map(|entry| entry & !(PAGE - 1));
        pages.find(|page| self.find(*page) == Some(stack))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    const KINDS: [Kind; 4] = [Kind::Own, Kind::Interrupts, Kind::Exceptions, Kind::Emergencies];

    #[test]
    fn every_stack_of_every_core_is_found_by_its_page_and_by_no_other() {
        let guards = Guards::<16>::new();
        let stack = |i: usize| Stack { core: [0, 1, 511, CORES_MAX - 1][i / 4], kind: KINDS[i % 4] };
        let page = |i: usize| (i as u64 + 1) * 2 * PAGE | 1 << 45;
        for i in 0..16 {
            assert!(guards.add(page(i), stack(i)));
        }
        for i in 0..16 {
            assert_eq!(guards.find(page(i)), Some(stack(i)));
            assert_eq!(guards.find(page(i) + PAGE - 1), Some(stack(i)));
            assert_eq!(guards.find(page(i) + PAGE), None);
            assert_eq!(guards.find(page(i) - 1), None);
            assert_eq!(guards.page_of(stack(i)), Some(page(i)));
        }
        assert_eq!(guards.find(0), None, "nothing is no entry");
        assert!(!guards.add(PAGE, stack(0)), "a full table says so");
    }

    #[test]
    fn a_person_reads_which_stack_it_was() {
        let names = KINDS.map(|kind| Stack { core: 3, kind }.to_string());
        assert_eq!(
            names,
            [
                "the stack of core 3",
                "the stack for interrupts of core 3",
                "the stack for exceptions of core 3",
                "the stack for emergencies of core 3"
            ]
        );
    }
}
