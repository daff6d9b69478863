//! Timers: who is to be woken when, in order.

use alloc::collections::BTreeMap;
use core::task::Waker;

/// Names a timer until it fired or was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimerKey {
    deadline_ns: u64,
    number: u64,
}

/// All timers of a reactor.
#[derive(Default)]
pub struct Timers {
    waiting: BTreeMap<TimerKey, Waker>,
    made: u64,
}

impl Timers {
    /// No timers.
    pub const fn new() -> Timers {
        Timers { waiting: BTreeMap::new(), made: 0 }
    }

    /// Wakes `waker` at `deadline_ns`.
    pub fn add(&mut self, deadline_ns: u64, waker: Waker) -> TimerKey {
        self.made += 1;
        let key = TimerKey { deadline_ns, number: self.made };
        self.waiting.insert(key, waker);
        key
    }

    /// Replaces who is woken.
    pub fn update(&mut self, key: TimerKey, waker: &Waker) {
        if let Some(old) = self.waiting.get_mut(&key) {
            old.clone_from(waker);
        }
    }

    /// Forgets a timer; nothing happens if it fired already.
    pub fn remove(&mut self, key: TimerKey) {
        self.waiting.remove(&key);
    }

    /// Takes one timer that is due, the earliest first.
    pub fn take_due(&mut self, now_ns: u64) -> Option<Waker> {
        let first = self.waiting.first_entry()?;
        (first.key().deadline_ns <= now_ns).then(|| first.remove())
    }

    /// When the next one is due.
    pub fn next_ns(&self) -> Option<u64> {
        self.waiting.first_key_value().map(|(key, _)| key.deadline_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_and_not_early_nor_after_removal() {
        let mut timers = Timers::new();
        let late = timers.add(30, Waker::noop().clone());
        timers.add(10, Waker::noop().clone());
        timers.add(10, Waker::noop().clone());
        assert_eq!(timers.next_ns(), Some(10));
        assert!(timers.take_due(9).is_none());
        assert!(timers.take_due(10).is_some() && timers.take_due(10).is_some());
        assert!(timers.take_due(29).is_none());
        timers.remove(late);
        assert!(timers.take_due(100).is_none() && timers.next_ns().is_none());
    }
}
