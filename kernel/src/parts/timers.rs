//! Timers: who is to be woken when, in order, and what the hardware's own timer was told of it.

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

/// What a hardware timer that fires once was last told. Setting it costs, most of all under an emulator, so one that will
/// fire a little before it is needed is left alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alarm {
    until_ns: u64,
    fired: u32,
}

impl Alarm {
    /// Whether the timer must be set for `until_ns`, which then counts as done, or will fire by then anyway. `fired` says
    /// how often it fired so far, and wraps: its rate is measured, so it may have fired before the time it was set for,
    /// and will not fire again.
    pub fn must_be_set(&mut self, now_ns: u64, until_ns: u64, fired: u32) -> bool {
        let ahead = self.fired == fired && now_ns < self.until_ns && self.until_ns <= until_ns;
        if !ahead {
            *self = Alarm { until_ns, fired };
        }
        !ahead
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

    #[test]
    fn an_alarm_is_set_once_unless_it_is_late_over_or_fired() {
        let mut alarm = Alarm::default();
        assert!(alarm.must_be_set(100, 1000, 7));
        assert!(!alarm.must_be_set(200, 1000, 7) && !alarm.must_be_set(999, 5000, 7));
        assert!(alarm.must_be_set(300, 900, 7), "it would fire too late");
        assert!(alarm.must_be_set(900, 2000, 7), "its time is over");
        assert!(alarm.must_be_set(1999, 2000, 8), "it fired a little early");
        assert!(!alarm.must_be_set(1999, 2000, 8));
    }
}
