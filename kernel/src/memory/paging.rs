//! Page tables: memory mapped one to one, each page with exactly the rights it needs (never write *and* execute).

use crate::memory::TABLES_BELOW;
use core::alloc::Layout;
use core::ops::Range;
use core::ptr;
use moraine_boot::map::{PAGE, RangeSet};
use spin::Mutex;
use x86_64::instructions::tlb;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr3Flags};
use x86_64::structures::paging::PhysFrame;
use x86_64::{PhysAddr, VirtAddr};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_OFF: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Size of a large page.
const LARGE_PAGE: u64 = 2 << 20;
/// Tables kept ready for mappings made before there is a heap (pieces of RAM, guard pages), in pages. Later ones come from
/// the heap, so that no number of devices uses them up.
const SPARE_TABLES: u64 = 64;

/// What may be done with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read.
    ReadOnly,
    /// Read and write.
    ReadWrite,
    /// Read and execute.
    Execute,
    /// Device registers: read and write, never cached.
    Device,
}

impl Access {
    fn bits(self) -> u64 {
        match self {
            Access::ReadOnly => PRESENT | NO_EXECUTE,
            Access::ReadWrite => PRESENT | WRITE | NO_EXECUTE,
            Access::Execute => PRESENT,
            Access::Device => PRESENT | WRITE | CACHE_OFF | WRITE_THROUGH | NO_EXECUTE,
        }
    }
}

struct Tables {
    root: u64,
    /// Pages for further tables.
    spare: Range<u64>,
}

static TABLES: Mutex<Tables> = Mutex::new(Tables { root: 0, spare: 0..0 });

/// There is no memory for another page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfTables;

impl core::fmt::Display for OutOfTables {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no memory for page tables: give the machine more")
    }
}

/// Makes the kernel's tables out of memory taken from `free`, lets `fill` map what it wants, and switches to them.
pub(crate) fn init(free: &mut RangeSet, fill: impl FnOnce(&mut dyn FnMut(Range<u64>, Access))) {
    let highest = free.as_slice().last().expect("there is memory").end;
    // One directory for each GiB, one more level per 512 GiB, and spares for pieces mapped by small pages.
    let count = highest.div_ceil(1 << 30) + highest.div_ceil(1 << 39) + 1 + SPARE_TABLES;
    let start = free.take(count * PAGE, PAGE, TABLES_BELOW).expect("memory for page tables below 4 GiB");
    {
        let mut tables = TABLES.lock();
        tables.spare = start..start + count * PAGE;
        tables.root = must(tables.new_table());
        fill(&mut |range, access| must(tables.map(range, access.bits())));
    }
    // SAFETY: the tables map the image, the stack and all RAM as before, so that execution goes on. Write protection
    // makes read-only pages read-only for the kernel, too.
    unsafe {
        Cr0::update(|flags| flags.insert(Cr0Flags::WRITE_PROTECT));
        use_tables();
    }
}

/// Switches this core to the kernel's tables.
///
/// # Safety
/// They are complete and map what runs now.
unsafe fn use_tables() {
    let root = PhysFrame::containing_address(PhysAddr::new(root()));
    // SAFETY: as the caller promises.
    unsafe { Cr3::write(root, Cr3Flags::empty()) };
}

/// Address of the top table, for cores that start.
pub(crate) fn root() -> u64 {
    TABLES.lock().root
}

/// Maps a range one to one, rounded out to whole pages. It may be mapped already, with other rights. For what the machine
/// cannot run without.
pub(crate) fn map(start: u64, len: u64, access: Access) {
    must(try_map(start, len, access));
}

/// The same for what can be done without. What was mapped of it when tables ran out stays mapped.
pub(crate) fn try_map(start: u64, len: u64, access: Access) -> Result<(), OutOfTables> {
    let range = start & !(PAGE - 1)..(start + len).next_multiple_of(PAGE);
    let mapped = TABLES.lock().map(range, access.bits());
    tlb::flush_all();
    mapped
}

fn must<T>(result: Result<T, OutOfTables>) -> T {
    result.unwrap_or_else(|why| panic!("{why}"))
}

/// Takes a range out: touching it is a page fault. Other cores may still see it until they switch tables or flush.
pub(crate) fn unmap(start: u64, len: u64) {
    must(TABLES.lock().map(start..start + len, 0));
    for page in (start..start + len).step_by(PAGE as usize) {
        tlb::flush(VirtAddr::new(page));
    }
}

/// Whether an address can be read. Called while reporting a panic, so it waits for nobody.
pub(crate) fn is_mapped(address: u64) -> bool {
    TABLES.try_lock().is_some_and(|tables| tables.entry(address) & PRESENT != 0)
}

/// Whether a page can be read, written, executed.
pub(crate) fn rights(address: u64) -> (bool, bool, bool) {
    let entry = TABLES.lock().entry(address);
    let present = entry & PRESENT != 0;
    (present, present && entry & WRITE != 0, present && entry & NO_EXECUTE == 0)
}

/// Pages that can be both written and executed: there must be none.
pub(crate) fn count_writable_code() -> usize {
    let tables = TABLES.lock();
    count_below(tables.root, 3)
}

fn count_below(table: u64, level: u32) -> usize {
    let mut count = 0;
    for i in 0..512 {
        // SAFETY: `table` is one of our tables.
        let entry = unsafe { (table as *const u64).add(i).read() };
        if entry & PRESENT == 0 {
            continue;
        }
        if level > 0 && entry & LARGE == 0 {
            count += count_below(entry & ADDRESS, level - 1);
        } else if entry & WRITE != 0 && entry & NO_EXECUTE == 0 {
            count += 1;
        }
    }
    count
}

impl Tables {
    fn new_table(&mut self) -> Result<u64, OutOfTables> {
        let table = self.spare.start;
        if table < self.spare.end {
            self.spare.start += PAGE;
            // SAFETY: the page is ours and mapped (by the boot loader's tables or our own).
            unsafe { ptr::write_bytes(table as *mut u8, 0, PAGE as usize) };
            return Ok(table);
        }
        let layout =
            Layout::new::<[u64; 512]>().align_to(PAGE as usize).expect("a page is aligned to itself");
        // The heap is mapped one to one, so this is a physical address. A table is never given back.
        // SAFETY: the layout is not empty.
        let table = unsafe { alloc::alloc::alloc_zeroed(layout) };
        if table.is_null() { Err(OutOfTables) } else { Ok(table as u64) }
    }

    fn map(&mut self, range: Range<u64>, bits: u64) -> Result<(), OutOfTables> {
        let mut at = range.start;
        while at < range.end {
            let large = at.is_multiple_of(LARGE_PAGE) && range.end - at >= LARGE_PAGE;
            let level = if large { 1 } else { 0 };
            let slot = self.slot(at, level)?;
            let entry = if bits == 0 { 0 } else { at | bits | if large { LARGE } else { 0 } };
            // SAFETY: `slot` is an entry of one of our tables.
            unsafe { slot.write_volatile(entry) };
            at += if large { LARGE_PAGE } else { PAGE };
        }
        Ok(())
    }

    /// The entry for `address` at `level` (0: small page, 1: large page), making the tables above it.
    fn slot(&mut self, address: u64, level: u32) -> Result<*mut u64, OutOfTables> {
        let mut table = self.root;
        for above in (level + 1..4).rev() {
            let slot = entry_at(table, address, above);
            // SAFETY: `slot` is an entry of one of our tables.
            let entry = unsafe { slot.read() };
            table = if entry & PRESENT == 0 {
                let new = self.new_table()?;
                // SAFETY: as above.
                unsafe { slot.write_volatile(new | PRESENT | WRITE) };
                new
            } else if entry & LARGE != 0 {
                let new = self.new_table()?;
                for i in 0..512 {
                    // SAFETY: the new table has 512 entries.
                    unsafe { (new as *mut u64).add(i).write((entry & !LARGE) + i as u64 * PAGE) };
                }
                // SAFETY: as above.
                unsafe { slot.write_volatile(new | PRESENT | WRITE) };
                new
            } else {
                entry & ADDRESS
            };
        }
        Ok(entry_at(table, address, level))
    }

    /// The entry that maps `address`, or 0.
    fn entry(&self, address: u64) -> u64 {
        let mut table = self.root;
        for level in (0..4).rev() {
            // SAFETY: `table` is one of our tables.
            let entry = unsafe { entry_at(table, address, level).read() };
            if entry & PRESENT == 0 || level == 0 || entry & LARGE != 0 {
                return entry;
            }
            table = entry & ADDRESS;
        }
        0
    }
}

fn entry_at(table: u64, address: u64, level: u32) -> *mut u64 {
    let index = (address >> (12 + 9 * level)) & 511;
    (table + index * 8) as *mut u64
}
