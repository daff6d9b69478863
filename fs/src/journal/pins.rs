//! Which journal entries are still needed: entries whose keys are not yet in nodes on media.
//!
//! A pin on `seq` says "a key of that entry lives in memory and in the journal only". When the key has been written
//! back, the pin is not simply let go: the write-back counts only once the entry that publishes it (the node's new
//! pointer) is durable. So a pin is released *after* another seq, and until that one is durable it still holds.

use alloc::collections::BTreeMap;
use moraine_format::journal::Seq;

/// All pins of a journal.
#[derive(Default)]
pub(super) struct Pins {
    /// Pins held by somebody, by pinned seq.
    held: BTreeMap<Seq, u64>,
    /// Pins let go, by (seq whose durability releases them, pinned seq).
    releasing: BTreeMap<(Seq, Seq), u64>,
    /// Both together, by pinned seq.
    needed: BTreeMap<Seq, u64>,
}

impl Pins {
    pub(super) fn hold(&mut self, seq: Seq) {
        *self.held.entry(seq).or_default() += 1;
        *self.needed.entry(seq).or_default() += 1;
    }

    /// Lets one pin on `seq` go, once `after` is durable; at once if `flushed` says it is.
    pub(super) fn release(&mut self, seq: Seq, after: Seq, flushed: Seq) {
        subtract(&mut self.held, seq, 1);
        if after > flushed {
            *self.releasing.entry((after, seq)).or_default() += 1;
        } else {
            subtract(&mut self.needed, seq, 1);
        }
    }

    /// Forgets the released pins whose condition holds now.
    pub(super) fn flushed(&mut self, flushed: Seq) {
        while let Some(first) = self.releasing.first_entry() {
            if first.key().0 > flushed {
                break;
            }
            let ((_, seq), count) = first.remove_entry();
            subtract(&mut self.needed, seq, count);
        }
    }

    /// The oldest entry that somebody must still write back.
    pub(super) fn oldest_held(&self) -> Option<Seq> {
        self.held.keys().next().copied()
    }

    /// The oldest entry that is still needed, releases under way included.
    pub(super) fn oldest_needed(&self) -> Option<Seq> {
        self.needed.keys().next().copied()
    }

    /// The seq whose durability would release something next.
    pub(super) fn next_release(&self) -> Option<Seq> {
        self.releasing.keys().next().map(|(after, _)| *after)
    }
}

fn subtract(counts: &mut BTreeMap<Seq, u64>, seq: Seq, count: u64) {
    let held = counts.get_mut(&seq).expect("a pin is held until it is released");
    *held -= count;
    if *held == 0 {
        counts.remove(&seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_pin_holds_until_its_condition_is_durable() {
        let mut pins = Pins::default();
        assert_eq!(pins.oldest_needed(), None);
        pins.hold(Seq(5));
        pins.hold(Seq(5));
        pins.hold(Seq(9));
        pins.release(Seq(5), Seq(12), Seq(10));
        assert_eq!((pins.oldest_held(), pins.oldest_needed()), (Some(Seq(5)), Some(Seq(5))));
        pins.release(Seq(5), Seq(11), Seq(10));
        assert_eq!((pins.oldest_held(), pins.oldest_needed()), (Some(Seq(9)), Some(Seq(5))));
        assert_eq!(pins.next_release(), Some(Seq(11)));
        pins.flushed(Seq(11));
        assert_eq!(pins.oldest_needed(), Some(Seq(5)), "the other release waits for 12");
        pins.flushed(Seq(12));
        assert_eq!(pins.oldest_needed(), Some(Seq(9)));
        pins.release(Seq(9), Seq(3), Seq(12));
        assert_eq!((pins.oldest_needed(), pins.next_release()), (None, None));
    }
}
