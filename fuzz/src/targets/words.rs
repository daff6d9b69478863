//! What people type before a boot, and what the boot before left in memory.

use kernel_parts::ring::Ring;
use kernel_parts::words::{WINDOWS_MAX, Words};
use moraine_appliance::Config;

/// A command line, or the text file on a flashed image: the same words.
pub(super) fn words(bytes: &[u8]) {
    let words = Words::parse(bytes);
    assert!(words.windows.len() <= WINDOWS_MAX);
    let (config, complaints) = Config::parse(&words.others);
    assert!(complaints.len() <= words.others.split_ascii_whitespace().count().max(bytes.len()));
    for complaint in &complaints {
        assert!(!complaint.to_string().contains('\u{1b}'), "nothing on the console steers it");
    }
    let again = Config::parse(&words.others);
    assert_eq!((config, complaints), again);
}

/// The log ring, as any memory may look at power-on.
pub(super) fn last_log(bytes: &[u8]) {
    let mut memory = bytes.to_vec();
    memory.resize(memory.len().max(256), 0);
    let len = memory.len();
    let mut ring = Ring::over(&mut memory);
    if let Some((_, older, newer)) = ring.previous() {
        assert!(older.len() + newer.len() <= len);
    }
    ring.write(b"a line\n");
    assert!(ring.previous().is_none_or(|(_, older, newer)| older.len() + newer.len() <= len));
}
