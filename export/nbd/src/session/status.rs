//! Which extents a block status reply tells: the filesystem's segments, merged, within the request, bounded.

use super::Range;
use super::transmission::Extents;
use crate::wire::{Extent, ExtentState};
use alloc::vec::Vec;
use moraine_fs::vfs::Segment;

/// The most extents in one reply; a client asks again from where they end.
const EXTENTS_MAX: usize = 1024;

/// A block status under way.
#[derive(Debug)]
pub(crate) struct Status {
    left: Range,
    limit: usize,
    extents: Vec<Extent>,
}

impl Status {
    /// For `range`, whose length fits 32 bits.
    pub(crate) fn new(range: Range, how_many: Extents) -> Status {
        assert!(range.len > 0 && range.len <= u64::from(u32::MAX), "requests are checked before");
        // One more than is told: merging shows only at the next extent that the last one is complete.
        let limit = match how_many {
            Extents::One => 1,
            Extents::Many => EXTENTS_MAX,
        };
        Status { left: range, limit, extents: Vec::new() }
    }

    /// What is still to be asked of the filesystem; `None` when enough is known.
    pub(crate) fn wants(&self) -> Option<Range> {
        (self.left.len > 0 && self.extents.len() <= self.limit).then_some(self.left)
    }

    /// Takes the segments of a part that [`Status::wants`] named. `false` if they do not go on where the ones before
    /// ended: then nothing of them may be told.
    #[must_use]
    pub(crate) fn take(&mut self, segments: &[Segment]) -> bool {
        let before = self.left.len;
        for segment in segments {
            if self.wants().is_none() {
                return true;
            }
            if segment.offset != self.left.offset || segment.len == 0 {
                return false;
            }
            let len = segment.len.min(self.left.len);
            self.left = Range { offset: self.left.offset + len, len: self.left.len - len };
            let len = len as u32; // within the request, whose length fits
            let state = if segment.hole { ExtentState::all() } else { ExtentState::empty() };
            match self.extents.last_mut() {
                Some(last) if last.state == state => last.len += len,
                _ => self.extents.push(Extent { len, state }),
            }
        }
        self.left.len < before
    }

    /// The extents to tell.
    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents[..self.extents.len().min(self.limit)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, len: u64, hole: bool) -> Segment {
        Segment { offset, len, hole }
    }

    #[test]
    fn segments_are_merged_and_cut_at_the_request() {
        let mut status = Status::new(Range { offset: 100, len: 1000 }, Extents::Many);
        assert_eq!(status.wants(), Some(Range { offset: 100, len: 1000 }));
        assert!(status.take(&[segment(100, 200, false), segment(300, 50, false)]));
        assert_eq!(status.wants(), Some(Range { offset: 350, len: 750 }));
        assert!(status.take(&[segment(350, 50, true), segment(400, 9000, false)]));
        assert_eq!(status.wants(), None);
        let told: Vec<_> = status.extents().iter().map(|e| (e.len, e.state.bits())).collect();
        assert_eq!(told, [(250, 0), (50, 3), (700, 0)]);
    }

    #[test]
    fn one_extent_is_told_whole() {
        let mut status = Status::new(Range { offset: 0, len: 1000 }, Extents::One);
        assert!(status.take(&[segment(0, 10, true)]));
        assert!(status.wants().is_some(), "the first extent may go on");
        assert!(status.take(&[segment(10, 10, true), segment(20, 10, false), segment(30, 10, true)]));
        assert_eq!(status.wants(), None);
        assert_eq!(status.extents().len(), 1);
        assert_eq!(status.extents()[0].len, 20);
    }

    #[test]
    fn gaps_and_standstill_are_noticed_and_replies_bounded() {
        let range = Range { offset: 0, len: 1 << 20 };
        assert!(!Status::new(range, Extents::Many).take(&[]));
        assert!(!Status::new(range, Extents::Many).take(&[segment(1, 5, true)]));
        assert!(!Status::new(range, Extents::Many).take(&[segment(0, 0, true)]));
        let mut status = Status::new(range, Extents::Many);
        for n in 0..5000 {
            if status.wants().is_some() {
                assert!(status.take(&[segment(n * 10, 10, n % 2 == 0)]));
            }
        }
        assert_eq!(status.extents().len(), EXTENTS_MAX);
    }
}
