//! Physical region pages (NVMe Base 2.0 §4.1.1): where a command's data lies.
//!
//! A `Buf` is page-aligned and contiguous, so its pages are counted, not looked up; the list goes into memory
//! that belongs to the command's slot and never crosses a page.

use crate::dma::Dma;
use crate::hal::PAGE_SIZE;

/// The two entries in a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prp {
    pub(crate) first: u64,
    pub(crate) second: u64,
}

const PAGE: u64 = PAGE_SIZE as u64;

/// Bytes of list that a transfer of up to `transfer_max` bytes can need: a power of two, at most a page, so that
/// lists side by side in a page-aligned array never cross a page.
pub(crate) fn list_len(transfer_max: u64) -> usize {
    let entries = transfer_max.div_ceil(PAGE).saturating_sub(1) as usize;
    (entries * 8).next_power_of_two().clamp(LIST_LEN_MIN, PAGE_SIZE)
}

/// Room for one range of Dataset Management too.
const LIST_LEN_MIN: usize = 16;

/// Largest transfer that one page of list describes.
pub(crate) const TRANSFER_MAX: u64 = (PAGE_SIZE / 8) as u64 * PAGE;

/// Describes `len` bytes at `bus`, using the list memory at `offset` of `lists` where two entries are too few.
pub(crate) fn describe(bus: u64, len: u64, lists: &Dma, offset: usize) -> Prp {
    debug_assert!(bus.is_multiple_of(PAGE), "buffers are page-aligned");
    let pages = len.div_ceil(PAGE);
    let second = match pages {
        0 | 1 => 0,
        2 => bus + PAGE,
        _ => {
            for page in 1..pages {
                lists.write(offset + (page as usize - 1) * 8, bus + page * PAGE);
            }
            lists.bus(offset)
        }
    };
    Prp { first: bus, second }
}
