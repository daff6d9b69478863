//! The machine as drivers see it.

use crate::cpu::{apic, features};
use crate::machine::clock;
use crate::memory::paging::{self, Access};
use alloc::rc::Rc;
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};
use moraine_boot::map::RangeSet;
use moraine_drivers::{DmaPages, Hal, MappedRegisters, MsiMessage, PAGE_SIZE, Registers};
use moraine_platform::{Instant, error};

/// Physical addresses end here; registers beyond are not believed.
const HIGHEST: u64 = 1 << 46;

/// The hardware itself.
pub(crate) struct Machine {
    /// All RAM: no device's registers lie there.
    pub(crate) ram: RangeSet,
}

// SAFETY: memory comes zeroed from the heap, which is mapped one to one, so bus address and address are the same and
// what is contiguous for one is contiguous for the other. Registers are mapped where the device has them, and never
// over RAM.
unsafe impl Hal for Machine {
    fn alloc_dma(&self, pages: usize) -> Option<DmaPages> {
        let layout = Layout::from_size_align(pages.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok()?;
        if layout.size() == 0 {
            return None;
        }
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc::alloc::alloc_zeroed(layout) })?;
        Some(DmaPages { memory, bus: memory.as_ptr() as u64, pages })
    }

    unsafe fn free_dma(&self, pages: DmaPages) {
        let layout =
            Layout::from_size_align(pages.pages * PAGE_SIZE, PAGE_SIZE).expect("it was allocated so");
        // SAFETY: as the caller promises, from `alloc_dma` with this layout.
        unsafe { alloc::alloc::dealloc(pages.memory.as_ptr(), layout) };
    }

    fn bus_address(&self, memory: *const u8) -> u64 {
        memory as u64
    }

    fn registers(&self, address: u64, len: usize) -> Option<Rc<dyn Registers>> {
        let end = address.checked_add(len as u64).filter(|end| *end <= HIGHEST)?;
        let over_ram = self.ram.as_slice().iter().any(|r| r.start < end && address < r.end);
        if over_ram || address == 0 {
            error!("hal", "a device claims registers at {address:#x}, where RAM is");
            return None;
        }
        if let Err(why) = paging::try_map(address, len as u64, Access::Device) {
            error!("hal", "registers at {address:#x}: {why}");
            return None;
        }
        let base = NonNull::new(address as *mut u8)?;
        // SAFETY: device registers, mapped uncached just now, for ever.
        Some(Rc::new(unsafe { MappedRegisters::new(base, len) }))
    }

    fn msi(&self, _device: &str) -> Option<MsiMessage> {
        let (address, data) = apic::message(apic::DEVICES);
        Some(MsiMessage { address, data })
    }

    fn order(&self) {
        fence(Ordering::SeqCst);
        if features::get().emulated {
            // QEMU's TCG before version 8 leaves fences out for a machine of one processor. A read of the interrupt
            // controller takes its big lock, which is a fence on the host.
            apic::id();
        }
    }

    fn now(&self) -> Instant {
        Instant(clock::now_ns())
    }

    fn relax(&self) {
        core::hint::spin_loop();
    }
}
