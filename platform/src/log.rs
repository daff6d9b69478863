//! Leveled log lines. Where they go is the platform's business: serial port and ring, standard error, or a world's
//! trace. The sink is a function pointer set once, so that logging needs no handle and no lock.

use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// Something is broken; a person must act.
    Error = 1,
    /// Something is odd; service goes on.
    Warn = 2,
    /// What a person wants to see at every start.
    Info = 3,
    /// For finding faults.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

impl Level {
    /// All levels with the names used on command lines.
    pub const ALL: [(Level, &'static str); 5] = [
        (Level::Error, "error"),
        (Level::Warn, "warn"),
        (Level::Info, "info"),
        (Level::Debug, "debug"),
        (Level::Trace, "trace"),
    ];

    /// The level called `name`.
    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.iter().find(|(_, n)| *n == name).map(|(l, _)| *l)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Level::ALL[self as usize - 1].1
    }
}

/// Where lines go: level, room (`fs`, `nfs`, …) and text.
pub type Sink = fn(Level, &str, fmt::Arguments<'_>);

static LEVEL: AtomicU8 = AtomicU8::new(Level::Info as u8);
static SINK: spin::Once<Sink> = spin::Once::new();

/// Sets the sink; the first call wins.
pub fn set_sink(sink: Sink) {
    SINK.call_once(|| sink);
}

/// Lines above `level` are dropped from now on.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Writes one line. Use the macros [`error!`](crate::error), [`warn!`](crate::warn), [`info!`](crate::info) and
/// [`debug!`](crate::debug).
pub fn write(level: Level, room: &str, text: fmt::Arguments<'_>) {
    if level as u8 <= LEVEL.load(Ordering::Relaxed)
        && let Some(sink) = SINK.get()
    {
        sink(level, room, text);
    }
}

/// Logs at [`Level::Error`]: `error!("fs", "journal device {name} failed")`.
#[macro_export]
macro_rules! error { ($room:expr, $($t:tt)*) => { $crate::log::write($crate::log::Level::Error, $room, format_args!($($t)*)) } }
/// Logs at [`Level::Warn`].
#[macro_export]
macro_rules! warn { ($room:expr, $($t:tt)*) => { $crate::log::write($crate::log::Level::Warn, $room, format_args!($($t)*)) } }
/// Logs at [`Level::Info`].
#[macro_export]
macro_rules! info { ($room:expr, $($t:tt)*) => { $crate::log::write($crate::log::Level::Info, $room, format_args!($($t)*)) } }
/// Logs at [`Level::Debug`].
#[macro_export]
macro_rules! debug { ($room:expr, $($t:tt)*) => { $crate::log::write($crate::log::Level::Debug, $room, format_args!($($t)*)) } }
