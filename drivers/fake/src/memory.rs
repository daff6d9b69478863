//! Memory as devices see it: by bus addresses, which are not pointers.

use moraine_drivers::PAGE_SIZE;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::ptr::NonNull;

/// Bits of an address that are the same on the bus. What is above them is a number of 4 bits there, so that bus
/// addresses differ from pointers and fit what virtio's legacy interface can say.
const REGION_SHIFT: u32 = 40;
const REGION_MASK: usize = (1 << REGION_SHIFT) - 1;
const REGIONS_MAX: usize = 15;

thread_local! {
    static REGIONS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// The bus address of memory.
pub(crate) fn to_bus(memory: *const u8) -> u64 {
    let address = memory.expose_provenance();
    let high = address >> REGION_SHIFT;
    let number = REGIONS.with_borrow_mut(|regions| {
        regions.iter().position(|&r| r == high).unwrap_or_else(|| {
            regions.push(high);
            regions.len() - 1
        })
    });
    assert!(number < REGIONS_MAX);
    (address & REGION_MASK) as u64 | (number as u64 + 1) << REGION_SHIFT
}

/// The address behind a bus address.
pub(crate) fn from_bus(bus: u64) -> usize {
    let number = (bus >> REGION_SHIFT) as usize;
    let high = REGIONS.with_borrow(|regions| number.checked_sub(1).and_then(|n| regions.get(n).copied()));
    let high = high.expect("a device is only told of memory");
    bus as usize & REGION_MASK | high << REGION_SHIFT
}

/// Reads memory, as a device does.
pub(crate) fn read<const N: usize>(bus: u64) -> [u8; N] {
    let mut out = [0; N];
    read_into(bus, &mut out);
    out
}

/// Reads memory, as a device does.
pub(crate) fn read_into(bus: u64, out: &mut [u8]) {
    let from = std::ptr::with_exposed_provenance::<u8>(from_bus(bus));
    // SAFETY: the address is one that a driver told a device in a ring or a register; drivers tell devices only of memory
    // that they own, until the device is reset (`Hal`), and devices here are their models.
    unsafe { std::ptr::copy(from, out.as_mut_ptr(), out.len()) }
}

/// Writes memory, as a device does.
pub(crate) fn write(bus: u64, bytes: &[u8]) {
    let to = std::ptr::with_exposed_provenance_mut::<u8>(from_bus(bus));
    // SAFETY: as in `read_into`.
    unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) }
}

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).expect("less than all there is")
}

/// Zeroed pages, at least one.
pub(crate) fn alloc(pages: usize) -> NonNull<u8> {
    assert!(pages > 0, "no memory needs no allocation");
    // SAFETY: the layout is not empty.
    NonNull::new(unsafe { alloc_zeroed(layout(pages)) }).expect("the host has memory")
}

/// Frees pages.
///
/// # Safety
/// They are from [`alloc`], as many, freed once, and nobody uses them any more.
pub(crate) unsafe fn free(memory: NonNull<u8>, pages: usize) {
    // SAFETY: taken with this layout, given back once, says the caller.
    unsafe { dealloc(memory.as_ptr(), layout(pages)) }
}
