//! What firmware tells of the machine: its tables, its memory, its clock.

use kernel_parts::acpi;
use kernel_parts::date::{Date, from_cmos};
use moraine_boot::map::{MAX_RANGES, PAGE, RangeSet};

/// Where the memory of the first target begins; the root pointer is there.
const MEMORY_AT: u64 = 0x1000;
/// Bytes of the root pointer that the first checksum covers, and all of it.
const ROOT: (usize, usize) = (20, 36);
/// Header of a table.
const HEADER: usize = 36;

/// The machine's memory, as it is and with the checksums of all tables made right.
pub(super) fn acpi(bytes: &[u8]) {
    look(bytes);
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    look(&sealed);
}

fn look(memory: &[u8]) {
    let reader = |at: u64, len: usize| {
        let at = usize::try_from(at.checked_sub(MEMORY_AT)?).ok()?;
        memory.get(at..at.checked_add(len)?)
    };
    let Some(tables) = acpi::read(MEMORY_AT, &reader) else { return };
    // Each of these takes bytes of a table, and a table may be listed as often as the list has entries.
    let most = memory.len() * memory.len();
    assert!(tables.cores.len() + tables.io_apics.len() + tables.overrides.len() + tables.ecam.len() <= most);
}

fn seal(memory: &mut [u8]) {
    let number = |memory: &[u8], at: usize, len: usize| -> Option<usize> {
        let bytes = memory.get(at..at.checked_add(len)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b))).ok()
    };
    let place = |address: usize| address.checked_sub(MEMORY_AT as usize);
    let fix = |memory: &mut [u8], at: usize, len: usize, sum_at: usize| {
        if let Some(bytes) = at.checked_add(len).and_then(|end| memory.get_mut(at..end))
            && sum_at < len
        {
            bytes[sum_at] = 0;
            bytes[sum_at] = bytes.iter().fold(0, |sum, b| sum.wrapping_sub(*b));
        }
    };
    let (entry_len, list) = match (memory.get(15), number(memory, 24, 8)) {
        (Some(2..), Some(list)) if list != 0 => (8, list),
        _ => (4, number(memory, 16, 4).unwrap_or(0)),
    };
    let mut tables = Vec::new();
    if let Some(at) = place(list)
        && let Some(len) = number(memory, at.saturating_add(4), 4)
    {
        tables.push((at, len));
        let entries = (at + HEADER..at.saturating_add(len).min(memory.len())).step_by(entry_len);
        let places: Vec<usize> = entries.filter_map(|e| place(number(memory, e, entry_len)?)).collect();
        for at in places {
            let Some(len) = number(memory, at.saturating_add(4), 4) else { continue };
            tables.push((at, len));
            let code = [number(memory, at.saturating_add(140), 8), number(memory, at.saturating_add(40), 4)];
            for at in code.into_iter().flatten().filter_map(place) {
                tables.extend(number(memory, at.saturating_add(4), 4).map(|len| (at, len)));
            }
        }
    }
    // What others point at first: a table may lie in another.
    tables.iter().rev().for_each(|(at, len)| fix(memory, *at, *len, 9));
    fix(memory, 0, ROOT.1, 32);
    fix(memory, 0, ROOT.0, 8);
    fix(memory, 0, ROOT.1, 32);
}

/// Ranges as firmware reports them, 17 bytes each: free or not, where, how long. What comes out is what a map of single pages
/// says, as far as one goes.
pub(super) fn memory_map(bytes: &[u8]) {
    /// Pages of the small map.
    const PAGES: usize = 512;
    let (mut set, mut pages) = (RangeSet::new(), [false; PAGES]);
    for range in bytes.chunks_exact(17) {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b));
        let (kind, mut start, mut len) = (range[0], number(&range[1..9]), number(&range[9..17]));
        if kind & 0x80 == 0 {
            // Near enough to meet others.
            (start, len) = (start % (PAGES as u64 * PAGE), len % (64 * PAGE));
        }
        let end = start.saturating_add(len);
        match kind & 1 {
            0 => set.add(start, len),
            _ => set.remove(start, len),
        }
        for (number, page) in pages.iter_mut().enumerate() {
            let (first, last) = (number as u64 * PAGE, (number as u64 + 1) * PAGE);
            match kind & 1 {
                0 if start <= first && last <= end => *page = true,
                1 if len > 0 && start < last && first < end => *page = false,
                _ => {}
            }
        }
    }
    let ranges = set.as_slice();
    assert!(ranges.len() <= MAX_RANGES);
    assert!(
        ranges.iter().all(|r| r.start < r.end && r.start % PAGE == 0 && r.end % PAGE == 0),
        "{ranges:x?}"
    );
    assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:x?}");
    for (number, free) in pages.iter().enumerate().filter(|_| !set.overflowed()) {
        assert_eq!(set.contains(number as u64 * PAGE, PAGE), *free, "page {number} of {ranges:x?}");
    }
    let total = set.total();
    if let Some(place) = set.take(3 * PAGE, 2 * PAGE, u64::MAX) {
        assert!(place % (2 * PAGE) == 0 && (set.overflowed() || set.total() == total - 3 * PAGE));
    }
}

/// Registers of the clock, its status, then a time to print.
pub(super) fn clock(bytes: &[u8]) {
    let Some((registers, rest)) = bytes.split_first_chunk::<6>() else { return };
    let Some((status, rest)) = rest.split_first() else { return };
    if let Some(seconds) = from_cmos(*registers, *status) {
        // From 2000 to 2255: a year is a byte at most.
        assert!((946_684_800..9_025_257_600).contains(&seconds), "{seconds}");
        assert!(Date::of(seconds).to_string().starts_with("2"));
    }
    let seconds = rest.iter().rev().take(8).fold(0, |n, b| n << 8 | u64::from(*b));
    assert!(!Date::of(seconds >> 16).to_string().is_empty());
}
