//! Which edges of the code under test have run, and about how often. The compiler puts a counter of a byte at every edge
//! when it is told to (`-C passes=sancov-module`, LLVM's SanitizerCoverage); `scripts/fuzz` builds so, and sets `guided`.
//! In any other build there are no counters, and nothing is ever new.

/// The counters of a program, and which classes of counts each of them has shown so far.
pub struct Coverage {
    /// A bit for each class, for each counter.
    seen: Vec<u8>,
}

impl Default for Coverage {
    fn default() -> Coverage {
        Coverage::new()
    }
}

impl Coverage {
    /// Nothing seen yet; all counters at zero.
    pub fn new() -> Coverage {
        let mut new = Coverage { seen: vec![0; counters::len()] };
        new.take_all();
        new
    }

    /// Whether the program was built with counters.
    pub fn is_counted(&self) -> bool {
        !self.seen.is_empty()
    }

    /// Counters that were not zero at least once.
    pub fn edges(&self) -> usize {
        self.seen.iter().filter(|classes| **classes != 0).count()
    }

    /// Takes what was counted since the last time; returns how many classes of counts are new.
    pub fn take(&mut self) -> usize {
        let (seen, mut new) = (&mut self.seen, 0);
        counters::take(|index, count| {
            let class = class(count);
            if let Some(seen) = seen.get_mut(index).filter(|seen| **seen & class == 0) {
                *seen |= class;
                new += 1;
            }
        });
        new
    }

    /// Takes what was counted since the last time, as one number for each counter and its class.
    pub fn take_all(&mut self) -> Vec<u32> {
        let mut all = Vec::new();
        counters::take(|index, count| all.push(index as u32 * 8 + class(count).trailing_zeros()));
        all
    }
}

/// Counts in classes: once, twice, thrice, and then by powers of two. More often is something new, a little more is not.
fn class(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        128.. => 128,
    }
}

#[cfg(not(guided))]
mod counters {
    pub(super) fn len() -> usize {
        0
    }

    pub(super) fn take(_: impl FnMut(usize, u8)) {}
}

#[cfg(guided)]
mod counters {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

    /// The counters that one call of the initialiser told of.
    struct Region {
        start: *mut u8,
        len: usize,
    }

    // SAFETY: the counters are in the program's data, there as long as it runs, and looked at as atomics only.
    unsafe impl Send for Region {}

    static REGIONS: Mutex<Vec<Region>> = Mutex::new(Vec::new());

    /// Called by each module of the program before `main` (SanitizerCoverage, "Inline 8bit-counters"). Every module tells of
    /// all counters of the linked program.
    ///
    /// # Safety
    /// `start..stop` are counters that stay where they are.
    #[unsafe(no_mangle)]
    pub(super) unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
        let mut regions = REGIONS.lock().expect("nothing panics while it holds the list");
        if start != stop && regions.iter().all(|r| r.start != start) {
            regions.push(Region { start, len: stop.addr() - start.addr() });
        }
    }

    pub(super) fn len() -> usize {
        REGIONS.lock().expect("nothing panics while it holds the list").iter().map(|r| r.len).sum()
    }

    /// Calls `each` with every counter that is not zero, and makes it zero.
    pub(super) fn take(mut each: impl FnMut(usize, u8)) {
        let regions = REGIONS.lock().expect("nothing panics while it holds the list");
        let mut before = 0;
        for region in regions.iter() {
            let mut at = 0;
            while at < region.len {
                // SAFETY: inside the region; the program only ever adds to these bytes, and a lost count is no harm.
                let byte = unsafe { region.start.add(at) };
                if byte.addr() % 8 == 0 && at + 8 <= region.len {
                    // SAFETY: as above, eight of them, aligned.
                    if unsafe { AtomicU64::from_ptr(byte.cast()) }.load(Relaxed) == 0 {
                        at += 8;
                        continue;
                    }
                }
                // SAFETY: as above.
                let count = unsafe { AtomicU8::from_ptr(byte) }.swap(0, Relaxed);
                if count != 0 {
                    each(before + at, count);
                }
                at += 1;
            }
            before += region.len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_one_bit_and_grows_with_the_count() {
        let classes: Vec<u8> = (0..=255).map(class).collect();
        assert!(classes.is_sorted());
        assert!(classes[1..].iter().all(|class| class.is_power_of_two()));
        assert_eq!(classes[255], 128);
    }

    #[test]
    fn without_counters_nothing_is_new() {
        let mut coverage = Coverage::new();
        assert_eq!((coverage.is_counted(), coverage.edges(), coverage.take()), (false, 0, 0));
    }
}
