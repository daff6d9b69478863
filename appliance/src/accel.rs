//! The checksum routines: measured at every start, the fastest is used unless the configuration names one.
//!
//! All of them give the same answers, so a wrong choice costs time and nothing else. Measuring beats asking for features:
//! an emulator may offer an instruction that is slower than tables.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use moraine_accel::{Measured, Routines};
use moraine_platform::{Clock, info, warn};

/// Why these routines are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChosenBy {
    /// They were the fastest.
    Measuring,
    /// The configuration names them.
    Name,
}

/// What was chosen, and out of what.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The routines used from now on.
    pub routines: &'static Routines,
    /// Why.
    pub by: ChosenBy,
    /// Every set this processor can run.
    pub measured: Vec<Measured>,
}

/// Measures all routines, uses the ones called `wanted` or else the fastest from now on, and logs which. A name that this
/// processor has nothing for is named in a warning, and ignored.
pub fn choose_routines(wanted: Option<&str>, clock: &dyn Clock) -> Choice {
    let measured = Routines::calibrate(|| clock.now().0);
    let named = wanted.and_then(Routines::by_name);
    if let (Some(name), None) = (wanted, named) {
        let usable: Vec<&str> = measured.iter().map(|m| m.routines.name()).collect();
        let name: String = name.escape_debug().collect();
        warn!("accel", "accel={name} ignored: this processor has {}", usable.join(", "));
    }
    // Of equally fast ones the later, which the table prefers.
    let fastest = measured.iter().max_by_key(|m| m.crc32c_bytes_per_us).map(|m| m.routines);
    let (routines, by) = match (named, fastest) {
        (Some(routines), _) => (routines, ChosenBy::Name),
        (None, fastest) => (fastest.unwrap_or(Routines::scalar()), ChosenBy::Measuring),
    };
    routines.choose();
    let choice = Choice { routines, by, measured };
    info!("accel", "{choice}");
    choice
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.by {
            ChosenBy::Measuring => "the fastest",
            ChosenBy::Name => "as told",
        };
        write!(f, "checksums by {}, {why}; MB/s:", self.routines.name())?;
        for (n, m) in self.measured.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            write!(f, "{comma} {} {}", m.routines.name(), m.crc32c_bytes_per_us)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use core::cell::Cell;
    use core::time::Duration;
    use moraine_platform::{Instant, LocalFuture, Timestamp};

    /// A clock whose steps between two looks are given.
    struct Steps<'a>(Cell<u64>, &'a [u64], Cell<usize>);

    impl Clock for Steps<'_> {
        fn now(&self) -> Instant {
            let at = self.2.replace(self.2.get() + 1);
            self.0.set(self.0.get() + self.1[at % self.1.len()]);
            Instant(self.0.get())
        }
        fn wall(&self) -> Timestamp {
            Timestamp(0)
        }
        fn sleep_until(&self, _: Instant) -> LocalFuture<()> {
            unreachable!("nobody sleeps")
        }
        fn sleep(&self, _: Duration) -> LocalFuture<()> {
            unreachable!("nobody sleeps")
        }
    }

    #[test]
    fn the_fastest_is_used_unless_one_is_named_that_exists() {
        // Two looks a try, four tries a set: the first set is fast, all others slow.
        let mut looks = std::vec![1000; 8];
        looks.resize(8 * Routines::usable().count(), 900_000);
        let clock = Steps(Cell::new(0), &looks, Cell::new(0));
        let choice = choose_routines(None, &clock);
        assert_eq!((choice.routines.name(), choice.by), ("scalar", ChosenBy::Measuring));
        assert!(choice.to_string().starts_with("checksums by scalar, the fastest; MB/s: scalar 32768"));

        let last = Routines::usable().last().unwrap().name();
        let choice = choose_routines(Some(last), &clock);
        assert_eq!((choice.routines.name(), choice.by), (last, ChosenBy::Name));
        assert_eq!(Routines::current().name(), last);

        let choice = choose_routines(Some("abacus"), &clock);
        assert_eq!((choice.routines.name(), choice.by), ("scalar", ChosenBy::Measuring));
        assert_eq!(choice.measured.len(), Routines::usable().count());
    }
}
