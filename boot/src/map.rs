//! The memory map as the kernel uses it: which whole pages are free RAM, whatever order, overlaps and odd edges the
//! firmware reported. It lives in a fixed array because it is needed before there is a heap.

use core::ops::Range;

/// Size of a page of memory, in bytes.
pub const PAGE: u64 = 4096;
/// Ranges a map can hold; what firmware reports beyond that is left unused, loudly.
pub const MAX_RANGES: usize = 256;

/// Sorted, disjoint, page-aligned ranges of physical addresses.
#[derive(Clone)]
pub struct RangeSet {
    ranges: [Range<u64>; MAX_RANGES],
    len: usize,
    overflowed: bool,
}

impl Default for RangeSet {
    fn default() -> RangeSet {
        RangeSet { ranges: [const { 0..0 }; MAX_RANGES], len: 0, overflowed: false }
    }
}

impl RangeSet {
    /// An empty set.
    pub fn new() -> RangeSet {
        RangeSet::default()
    }

    /// The ranges, lowest first.
    pub fn as_slice(&self) -> &[Range<u64>] {
        &self.ranges[..self.len]
    }

    /// Whether ranges were lost because there were more than [`MAX_RANGES`].
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// Bytes in all ranges.
    pub fn total(&self) -> u64 {
        self.as_slice().iter().map(|r| r.end - r.start).sum()
    }

    /// Adds the whole pages of `start .. start + len`; joins what touches.
    pub fn add(&mut self, start: u64, len: u64) {
        let mut end = start.saturating_add(len) & !(PAGE - 1);
        let Some(mut start) = start.checked_next_multiple_of(PAGE).filter(|start| *start < end) else {
            return;
        };
        let first = self.as_slice().iter().take_while(|r| r.end < start).count();
        let last = first + self.ranges[first..self.len].iter().take_while(|r| r.start <= end).count();
        if first < last {
            start = start.min(self.ranges[first].start);
            end = end.max(self.ranges[last - 1].end);
        }
        self.replace(first, last, core::slice::from_ref(&(start..end)));
    }

    /// Takes every page touched by `start .. start + len` out.
    pub fn remove(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (cut_start, cut_end) = (start & !(PAGE - 1), outer_end(start, len));
        let mut at = 0;
        while at < self.len {
            let r = self.ranges[at].clone();
            if r.end <= cut_start || r.start >= cut_end {
                at += 1;
                continue;
            }
            let left = r.start..cut_start.max(r.start).min(r.end);
            let right = cut_end.min(r.end).max(r.start)..r.end;
            match (left.is_empty(), right.is_empty()) {
                (true, true) => {
                    self.replace(at, at + 1, &[]);
                    continue;
                }
                (false, true) => self.replace(at, at + 1, &[left]),
                (true, false) => self.replace(at, at + 1, &[right]),
                (false, false) => self.replace(at, at + 1, &[left, right]),
            }
            at += 1;
        }
    }

    /// Whether all of `start .. start + len` is in one range.
    pub fn contains(&self, start: u64, len: u64) -> bool {
        self.as_slice().iter().any(|r| r.start <= start && len <= r.end.saturating_sub(start))
    }

    /// Takes `len` bytes (rounded up to pages) out, aligned to `align` and ending at or below `limit`; the highest
    /// place that fits, so that low memory stays free for who needs it.
    pub fn take(&mut self, len: u64, align: u64, limit: u64) -> Option<u64> {
        let len = len.next_multiple_of(PAGE);
        let place = self.as_slice().iter().rev().find_map(|r| {
            let start = r.end.min(limit).checked_sub(len)? / align * align;
            (start >= r.start).then_some(start)
        })?;
        self.remove(place, len);
        Some(place)
    }

    fn replace(&mut self, first: usize, last: usize, with: &[Range<u64>]) {
        let new_len = self.len - (last - first) + with.len();
        if new_len > MAX_RANGES {
            self.overflowed = true;
            return;
        }
        move_tail(&mut self.ranges, first + with.len(), last, self.len);
        self.ranges[first..first + with.len()].clone_from_slice(with);
        self.len = new_len;
    }
}

/// Moves `ranges[from .. end]` so that it starts at `to`.
fn move_tail(ranges: &mut [Range<u64>], to: usize, from: usize, end: usize) {
    if to <= from {
        (0..end - from).for_each(|i| ranges[to + i] = ranges[from + i].clone());
    } else {
        (0..end - from).rev().for_each(|i| ranges[to + i] = ranges[from + i].clone());
    }
}

/// End of the last page that `start .. start + len` touches.
fn outer_end(start: u64, len: u64) -> u64 {
    start.saturating_add(len).checked_next_multiple_of(PAGE).unwrap_or(!(PAGE - 1))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn shown(set: &RangeSet) -> Vec<(u64, u64)> {
        set.as_slice().iter().map(|r| (r.start / PAGE, r.end / PAGE)).collect()
    }

    fn set(ranges: &[(u64, u64)]) -> RangeSet {
        let mut set = RangeSet::new();
        for (a, b) in ranges {
            set.add(a * PAGE, (b - a) * PAGE);
        }
        set
    }

    #[test]
    fn ranges_join_whatever_the_order_firmware_reports() {
        assert_eq!(shown(&set(&[(8, 10), (1, 3), (3, 5), (4, 9)])), [(1, 10)]);
        assert_eq!(shown(&set(&[(5, 6), (1, 2), (8, 9)])), [(1, 2), (5, 6), (8, 9)]);
    }

    #[test]
    fn odd_edges_shrink_free_memory_and_grow_holes() {
        let mut map = RangeSet::new();
        map.add(PAGE + 1, 3 * PAGE);
        assert_eq!(shown(&map), [(2, 4)], "a page that is free only in part is not free");
        let mut map = set(&[(0, 10)]);
        map.remove(3 * PAGE + 1, 1);
        assert_eq!(shown(&map), [(0, 3), (4, 10)]);
        map.remove(0, 20 * PAGE);
        assert_eq!(map.total(), 0);
        let mut map = set(&[(0, 10)]);
        map.remove(3 * PAGE, 0);
        map.remove(4 * PAGE + 1, 0);
        assert_eq!(shown(&map), [(0, 10)], "no bytes are no hole");
        map.remove(0, 20 * PAGE);
        map.add(u64::MAX - 10, 100);
        map.add(1, 10);
        assert_eq!(map.total(), 0);
    }

    #[test]
    fn taking_prefers_high_addresses_below_the_limit() {
        let mut map = set(&[(0, 100), (200, 300)]);
        assert_eq!(map.take(PAGE, PAGE, u64::MAX), Some(299 * PAGE));
        assert_eq!(map.take(10 * PAGE, 16 * PAGE, 90 * PAGE), Some(80 * PAGE));
        assert!(!map.contains(80 * PAGE, PAGE) && map.contains(90 * PAGE, 10 * PAGE));
        assert_eq!(map.take(1000 * PAGE, PAGE, u64::MAX), None);
    }

    #[test]
    fn too_many_ranges_are_noticed_not_written_past_the_end() {
        let mut map = RangeSet::new();
        for i in 0..2 * MAX_RANGES as u64 {
            map.add(i * 2 * PAGE, PAGE);
        }
        assert!(map.overflowed());
        assert_eq!(map.as_slice().len(), MAX_RANGES);
    }
}
