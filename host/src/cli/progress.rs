//! Progress on standard error: for a person at a terminal, nothing at all otherwise.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// How often it moves.
const TICK: Duration = Duration::from_millis(200);

/// How far a long job is, in bytes.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// For a job that writes its results to standard output: hidden if they would get in each other's way.
    pub(super) fn beside_output() -> Progress {
        Progress::drawn(std::io::stderr().is_terminal() && !std::io::stdout().is_terminal())
    }

    /// For a job that tells its results through [`Progress::print`].
    pub(super) fn new() -> Progress {
        Progress::drawn(std::io::stderr().is_terminal())
    }

    fn drawn(drawn: bool) -> Progress {
        let target = if drawn { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = "{spinner} {msg}: {bytes} of {total_bytes} [{bar:30}] {bytes_per_sec}, {eta} left";
        bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant"));
        if drawn {
            bar.enable_steady_tick(TICK);
        }
        Progress(bar)
    }

    /// Names what is being done.
    pub(super) fn name(&self, what: &'static str) {
        self.0.set_message(what);
    }

    /// Says how many bytes are done, and of how many.
    pub(super) fn at(&self, done: u64, total: u64) {
        self.0.set_length(total.max(done));
        self.0.set_position(done);
    }

    /// Prints a line of results without tearing the bar.
    pub(super) fn print(&self, line: &str) {
        self.0.suspend(|| println!("{line}"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
