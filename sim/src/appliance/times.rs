//! Change times as a client sees them: within a boot they never go back, whatever the clock on the wall does, and a change
//! makes them later. A client tells by them whether what it remembers of an object still holds.

use std::cell::RefCell;
use std::collections::BTreeMap;

/// Looks kept of each object: more are under way at once never.
const LOOKS_MAX: usize = 8;

/// What one answer told.
#[derive(Clone, Copy)]
struct Look {
    /// The last mark of the log when it was received.
    received: u64,
    ctime: u64,
}

/// What one client saw.
#[derive(Default)]
pub(super) struct Times {
    /// By number of the object and boot: what a power cut takes back takes its times back.
    looks: RefCell<BTreeMap<(u64, u64), Vec<Look>>>,
}

/// An answer about an object: the mark before it was asked for, the last one now, and the boot that gave it.
#[derive(Clone, Copy)]
pub(super) struct When {
    pub(super) since: u64,
    pub(super) received: u64,
    pub(super) boot: u64,
}

impl Times {
    /// The object has this change time, says an answer to a call that did (`changed`) or did not change it.
    pub(super) fn look(&self, object: u64, ctime: u64, when: When, changed: bool) -> Result<(), String> {
        let mut all = self.looks.borrow_mut();
        let looks = all.entry((object, when.boot)).or_default();
        let known = looks.iter().filter(|look| look.received < when.since).map(|look| look.ctime).max();
        if let Some(known) = known.filter(|known| ctime < *known || (changed && ctime == *known)) {
            let what = if changed { "was changed" } else { "was looked at" };
            return Err(format!("object {object} {what}, and its change time is {ctime:x} after {known:x}"));
        }
        looks.push(Look { received: when.received, ctime });
        if looks.len() > LOOKS_MAX {
            looks.remove(0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_known_before_the_call_binds_its_answer() {
        let times = Times::default();
        let at = |since, received| When { since, received, boot: 1 };
        assert!(times.look(7, 100, at(1, 4), true).is_ok());
        assert!(times.look(7, 90, at(2, 5), true).is_ok(), "it was under way at the same time");
        assert!(times.look(7, 100, at(6, 7), false).is_ok());
        assert!(times.look(7, 100, at(8, 9), true).is_err(), "a change that cannot be seen");
        assert!(times.look(7, 99, at(8, 9), false).is_err(), "back");
        assert!(times.look(8, 99, at(8, 9), false).is_ok(), "another object");
        assert!(times.look(7, 99, When { boot: 2, ..at(8, 9) }, true).is_ok(), "another boot");
    }
}
