//! Time: monotonic instants for waiting, wall-clock timestamps for files.

use crate::LocalFuture;
use core::ops::Add;
use core::time::Duration;

/// Nanoseconds since the platform started; never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// Time passed since `earlier`; zero if it lies ahead.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        Instant(self.0.saturating_add(d.as_nanos().min(u64::MAX as u128) as u64))
    }
}

/// Wall-clock time: nanoseconds since 1970-01-01 UTC, which lasts until 2554.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

/// The platform's clocks and timers.
pub trait Clock {
    /// Monotonic time.
    fn now(&self) -> Instant;
    /// Wall-clock time; may jump.
    fn wall(&self) -> Timestamp;
    /// Completes at `deadline` or soon after it.
    fn sleep_until(&self, deadline: Instant) -> LocalFuture<()>;

    /// Completes after `d` or soon after it.
    fn sleep(&self, d: Duration) -> LocalFuture<()> {
        self.sleep_until(self.now() + d)
    }
}
