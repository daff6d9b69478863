//! Memory: the loader's map becomes page tables, guard pages, the log ring's place and the heap.
//!
//! All RAM is mapped one to one, never executable; so a heap address *is* a physical address, and DMA needs no
//! translation. The kernel image is the only executable memory, and that part of it is not writable.

pub(crate) mod budget;
pub(crate) mod copy;
pub(crate) mod direct;
pub(crate) mod heap;
pub(crate) mod paging;

use crate::console;
use crate::cpu::traps;
use crate::entry::BootInfo;
use kernel_parts::guards::{Kind, Stack};
use moraine_boot::map::PAGE;
use moraine_platform::{error, info};
use paging::Access;

/// Below this lie firmware tables, option ROMs and the page second cores start in; the heap stays out.
const LOW_MEMORY: u64 = 1 << 20;
/// Page second cores start in.
pub(crate) const CORE_START_PAGE: u64 = 0x8000;
/// Where the log ring lies, the same at each boot, so that the next one finds it.
const RING_AT: u64 = 0x0180_0000;
const RING_LEN: u64 = 64 << 10;
/// Page tables must be reachable by a core that starts in 32-bit mode.
const TABLES_BELOW: u64 = 4 << 30;

unsafe extern "C" {
    static image_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
    static boot_stack: u8;
}

/// Address of a symbol of the linker script.
fn symbol(symbol: &'static u8) -> u64 {
    &raw const *symbol as u64
}

/// Where the kernel image lies.
pub(crate) fn image() -> core::ops::Range<u64> {
    // SAFETY: the linker script defines these symbols; only their addresses are used.
    unsafe { symbol(&image_start)..symbol(&image_end) }
}

/// End of the image's executable part, which begins at its start.
pub(crate) fn image_text_end() -> u64 {
    // SAFETY: as in `image`.
    unsafe { symbol(&text_end) }
}

/// Takes the log ring's memory away, so that whoever logs faults.
pub(crate) fn lose_ring() {
    paging::unmap(RING_AT, RING_LEN);
}

/// Sets up paging, guard pages, the log ring and the heap from the loader's map.
pub(crate) fn init(boot: &BootInfo) {
    let mut free = boot.ram.clone();
    let all = boot.ram.total();
    if free.overflowed() {
        error!("memory", "the firmware's memory map has too many ranges; some memory stays unused");
    }
    let image = image();
    free.remove(0, LOW_MEMORY);
    free.remove(image.start, image.end - image.start);
    let ring_fits = free.contains(RING_AT, RING_LEN);
    free.remove(RING_AT, RING_LEN);
    for range in boot.busy.as_slice() {
        free.remove(range.start, range.end - range.start);
    }

    paging::init(&mut free, |map| {
        for range in boot.ram.as_slice() {
            map(range.clone(), Access::ReadWrite);
        }
        // SAFETY: as in `image`.
        let (text, rodata) = unsafe { (symbol(&text_end), symbol(&rodata_end)) };
        map(image.start..text, Access::Execute);
        map(text..rodata, Access::ReadOnly);
        map(rodata..image.end, Access::ReadWrite);
    });
    paging::unmap(0, PAGE);
    // SAFETY: as in `image`.
    let lowest = unsafe { symbol(&boot_stack) };
    traps::guard(lowest, Stack { core: 0, kind: Kind::Own });
    if ring_fits {
        // SAFETY: the range is RAM, mapped writable just now, and was taken out of what the heap gets.
        console::use_ring(unsafe { direct::bytes_mut(RING_AT, RING_LEN as usize) });
    }

    for range in boot.busy.as_slice() {
        free.add(range.start, range.end - range.start);
    }
    free.remove(0, LOW_MEMORY);
    free.remove(RING_AT, RING_LEN);
    let tables = all - free.total();
    heap::init(&mut free);
    let used = heap::usage();
    info!(
        "memory",
        "{} MiB: kernel image {} KiB, heap {} MiB, page tables and low memory {} KiB",
        all >> 20,
        (image.end - image.start) >> 10,
        used.total >> 20,
        tables.saturating_sub(image.end - image.start) >> 10,
    );
}
