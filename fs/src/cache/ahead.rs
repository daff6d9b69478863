//! Read-ahead: a file's sequential readers are recognised by where their last read ended; each has a window that doubles
//! up to a bound, and is forgotten when others push it out.

use core::ops::Range;
use moraine_platform::BLOCK_SIZE;

/// Sequential readers remembered for a file: clients, threads of one client, connections.
const STREAMS: usize = 4;
/// The first window, in pages.
const WINDOW_PAGES_MIN: u64 = 16;
/// The largest window, in pages: 1 MiB.
const WINDOW_PAGES_MAX: u64 = 256;
/// How far behind its end a stream's next read may begin (requests of one reader arrive out of order), in pages.
const SLACK_PAGES: u64 = 64;

#[derive(Clone, Copy, Default)]
struct Stream {
    /// Page after the last read.
    next: u64,
    /// Page after what was asked ahead.
    asked: u64,
    window: u64,
    used: u64,
}

/// The readers of one file.
#[derive(Default)]
pub(crate) struct Streams {
    streams: [Stream; STREAMS],
    clock: u64,
}

impl Streams {
    /// Notes a read of `pages` in a file of `size` bytes; says which pages to bring next, if any.
    pub(crate) fn read(&mut self, pages: Range<u64>, size: u64, window_max: u64) -> Option<Range<u64>> {
        self.clock += 1;
        let file_end = size.div_ceil(BLOCK_SIZE as u64);
        let known = self.streams.iter_mut().find(|s| {
            s.window > 0 && pages.start <= s.next && pages.start + SLACK_PAGES >= s.next && pages.end > s.next
        });
        let Some(stream) = known else {
            let already = self
                .streams
                .iter()
                .any(|s| s.window > 0 && pages.end <= s.next && pages.end + SLACK_PAGES >= s.next);
            if !already {
                // A new place: a stream only if it goes on from here; the start of a file always may.
                let window = if pages.start == 0 { WINDOW_PAGES_MIN / 2 } else { 1 };
                let oldest = self.streams.iter_mut().min_by_key(|s| s.used)?;
                *oldest = Stream { next: pages.end, asked: pages.end, window, used: self.clock };
            }
            return None;
        };
        stream.used = self.clock;
        stream.next = pages.end;
        stream.asked = stream.asked.max(pages.end);
        if stream.asked - pages.end > stream.window / 2 {
            return None;
        }
        stream.window = (stream.window * 2).clamp(WINDOW_PAGES_MIN, WINDOW_PAGES_MAX).min(window_max);
        let start = stream.asked;
        let end = (pages.end + stream.window).min(file_end);
        if start >= end {
            return None;
        }
        stream.asked = end;
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    #[test]
    fn sequential_reads_widen_the_window_and_random_ones_bring_nothing() {
        let mut streams = Streams::default();
        assert_eq!(streams.read(0..16, SIZE, 256), None);
        assert_eq!(streams.read(16..32, SIZE, 256), Some(32..48));
        let mut ahead = 48;
        let mut at = 32;
        while at < 2048 {
            if let Some(range) = streams.read(at..at + 16, SIZE, 256) {
                assert_eq!(range.start, ahead, "nothing is asked twice");
                ahead = range.end;
            }
            at += 16;
            assert!(ahead >= at, "the reader never overtakes it");
        }
        assert!(ahead - at >= 128, "the window has grown");
        for at in [9000, 5000, 7000, 3000, 100_000] {
            assert_eq!(streams.read(at..at + 1, SIZE, 256), None);
        }
    }

    #[test]
    fn nothing_is_asked_past_the_end() {
        let mut streams = Streams::default();
        let size = 40 * 4096 + 1;
        streams.read(0..16, size, 256);
        assert_eq!(streams.read(16..32, size, 256), Some(32..41));
        assert_eq!(streams.read(32..41, size, 256), None);
    }
}
