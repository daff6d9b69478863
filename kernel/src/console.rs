//! Log lines: to the serial port and into the ring that the next boot reads.

use crate::machine::{clock, serial};
use core::fmt::{self, Write};
use kernel_parts::ring::{Ending, Ring};
use moraine_platform::log::Level;
use moraine_platform::{info, warn};
use spin::Mutex;

/// Bytes of the previous boot's log that are shown after it panicked.
const SHOWN_MAX: usize = 3000;
/// Log text from before the ring's memory is known, in bytes.
const EARLY_MAX: usize = 2048;

struct Console {
    ring: Option<Ring<'static>>,
    early: [u8; EARLY_MAX],
    early_len: usize,
    previous: Previous,
}

/// What the last boot left.
struct Previous {
    ending: Option<Ending>,
    tail: [u8; SHOWN_MAX],
    len: usize,
}

static CONSOLE: Mutex<Console> = Mutex::new(Console {
    ring: None,
    early: [0; EARLY_MAX],
    early_len: 0,
    previous: Previous { ending: None, tail: [0; SHOWN_MAX], len: 0 },
});

/// Sets up the serial port and makes the platform's log lines go here.
pub(crate) fn init() {
    clock::begin();
    serial::init();
    moraine_platform::log::set_sink(sink);
}

fn sink(level: Level, room: &str, text: fmt::Arguments<'_>) {
    let ns = clock::now_ns();
    let mut console = CONSOLE.lock();
    let name = level.name();
    let (s, us) = (ns / 1_000_000_000, ns / 1000 % 1_000_000);
    let _ = writeln!(console, "[{s:5}.{us:06}] {name:5} {room}: {text}");
}

/// Writes one line without time and level: what scripts read.
pub(crate) fn plain(text: fmt::Arguments<'_>) {
    let _ = writeln!(CONSOLE.lock(), "{text}");
}

/// Takes the memory the ring lives in; keeps what the last boot left there aside.
pub(crate) fn use_ring(memory: &'static mut [u8]) {
    let mut ring = Ring::over(memory);
    let mut console = CONSOLE.lock();
    if let Some((ending, older, newer)) = ring.previous() {
        let previous = &mut console.previous;
        let skip = (older.len() + newer.len()).saturating_sub(SHOWN_MAX);
        for byte in older.iter().chain(newer).skip(skip) {
            previous.tail[previous.len] = *byte;
            previous.len += 1;
        }
        previous.ending = Some(ending);
    }
    ring.clear();
    ring.write(&console.early[..console.early_len]);
    console.ring = Some(ring);
}

/// Says how the last boot ended if it left word.
pub(crate) fn report_previous() {
    let console = CONSOLE.lock();
    let Previous { ending, tail, len } = &console.previous;
    let (ending, tail, len) = (*ending, *tail, *len);
    drop(console);
    match ending {
        Some(Ending::Panic) => {
            warn!("kernel", "the last boot ended in a panic; the end of its log:");
            for line in tail[..len].split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                plain(format_args!("  | {}", alloc::string::String::from_utf8_lossy(line)));
            }
        }
        Some(Ending::Silent) => info!("kernel", "the last boot ended without a word (reset or power cut)"),
        Some(Ending::Clean) => info!("kernel", "the last boot shut down in order"),
        None => {}
    }
}

/// Notes in the ring how this boot ends.
pub(crate) fn note_ending(ending: Ending) {
    if let Some(ring) = &mut unlocked_console().ring {
        ring.end(ending);
    }
}

/// The console for someone who cannot wait: an exception or a panic. Lines of other cores may mix in.
pub(crate) fn unlocked() -> impl Write {
    struct Unlocked;
    impl Write for Unlocked {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            unlocked_console().write_str(text)
        }
    }
    Unlocked
}

fn unlocked_console() -> spin::MutexGuard<'static, Console> {
    if let Some(console) = CONSOLE.try_lock() {
        return console;
    }
    // SAFETY: whoever held the lock was interrupted by the fault that is being reported and does not come back, or
    // runs on another core, where the worst is a garbled line.
    unsafe { CONSOLE.force_unlock() };
    CONSOLE.lock()
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let bytes = text.as_bytes();
        serial::write(bytes);
        match &mut self.ring {
            Some(ring) => ring.write(bytes),
            None => {
                let count = bytes.len().min(EARLY_MAX - self.early_len);
                self.early[self.early_len..self.early_len + count].copy_from_slice(&bytes[..count]);
                self.early_len += count;
            }
        }
        Ok(())
    }
}
