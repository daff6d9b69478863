//! Log lines on standard error: `level room: text`.

use moraine_platform::log::{self, Level};
use std::fmt;

/// Sends log lines at `level` and more important ones to standard error.
pub fn log_to_stderr(level: Level) {
    log::set_level(level);
    log::set_sink(write_line);
}

fn write_line(level: Level, room: &str, text: fmt::Arguments<'_>) {
    // Standard error is unbuffered: build the line first, so that it leaves in one piece.
    let line = format!("{:<5} {room}: {text}\n", level.name());
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}
