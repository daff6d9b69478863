//! What a driver needs of the machine under it, and what the machine may rely on: [`Hal`], [`Registers`],
//! [`PciFunction`] and [`Service`]. The kernel implements the first three over hardware, tests and the simulator
//! over fake devices; the kernel's reactor drives the fourth.

use alloc::rc::Rc;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};
use moraine_platform::Instant;

/// Size of a page of DMA memory, in bytes.
pub const PAGE_SIZE: usize = 4096;

/// Memory shared with devices: `pages` physically contiguous pages.
#[derive(Clone, Copy, Debug)]
pub struct DmaPages {
    /// Where the CPU sees it; aligned to [`PAGE_SIZE`].
    pub memory: NonNull<u8>,
    /// Where devices see it; aligned to [`PAGE_SIZE`].
    pub bus: u64,
    /// How many pages.
    pub pages: usize,
}

/// A message-signalled interrupt: a device raises it by writing `data` to `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Bus address of the write.
    pub address: u64,
    /// The value written.
    pub data: u32,
}

/// The machine under the drivers: memory, registers, interrupts, time.
///
/// Everything is called on the reactor's core only. Devices are taken to be cache-coherent, as they are on x86.
///
/// # Safety
///
/// Implementers promise that
/// - memory from [`alloc_dma`](Hal::alloc_dma) is exclusively the caller's, valid for reads and writes by CPU and
///   devices at the two addresses given, zeroed, and stays so until it is given back;
/// - [`bus_address`](Hal::bus_address) is right for every address inside DMA memory and inside the heap that
///   [`moraine_platform::Buf`] allocates from, and that such a heap allocation is contiguous on the bus too;
/// - [`registers`](Hal::registers) reaches the device and nothing else.
///
/// Callers (the drivers) promise that a device is never told the address of memory that they do not own until the
/// device is done with it or was reset.
pub unsafe trait Hal {
    /// Contiguous zeroed memory for rings and buffers; `None` when there is none left.
    fn alloc_dma(&self, pages: usize) -> Option<DmaPages>;

    /// Gives memory back.
    ///
    /// # Safety
    /// `pages` came from `alloc_dma` of this `Hal`, is given back once, and neither CPU nor device uses it any more.
    unsafe fn free_dma(&self, pages: DmaPages);

    /// The bus address of `memory`, which lies in DMA memory or in the heap.
    fn bus_address(&self, memory: *const u8) -> u64;

    /// Access to `len` bytes of device registers at bus address `address` (any alignment; mapped uncached). Mapping
    /// the same range again is allowed. `None` if it cannot be mapped.
    fn registers(&self, address: u64, len: usize) -> Option<Rc<dyn Registers>>;

    /// A message whose delivery ends the reactor's sleep, so that it calls [`Service::poll`] of everything; `None`
    /// if there are none, and the reactor has to poll by time instead. All devices may share one message.
    fn msi(&self, device: &str) -> Option<MsiMessage>;

    /// Makes every store before it visible to devices before any load after it: a full fence. An implementation has
    /// to do more where the fence instruction does not suffice, as on emulators that leave it out for a machine of
    /// one processor although their devices run beside it.
    fn order(&self) {
        fence(Ordering::SeqCst);
    }

    /// Monotonic time.
    fn now(&self) -> Instant;

    /// Called in loops that wait for a device, at probe time only: a pause instruction, or a step of a fake device.
    fn relax(&self);
}

/// A window of device registers. Offsets are bytes, naturally aligned for the width; an access past the end of the
/// window is a driver's bug and panics. Each call is exactly one access, in program order with all other memory accesses.
pub trait Registers {
    /// Length of the window, in bytes.
    fn size(&self) -> usize;
    /// Reads one byte.
    fn read8(&self, offset: usize) -> u8;
    /// Reads 16 bits.
    fn read16(&self, offset: usize) -> u16;
    /// Reads 32 bits.
    fn read32(&self, offset: usize) -> u32;
    /// Writes one byte.
    fn write8(&self, offset: usize, value: u8);
    /// Writes 16 bits.
    fn write16(&self, offset: usize, value: u16);
    /// Writes 32 bits.
    fn write32(&self, offset: usize, value: u32);

    /// Reads 64 bits as two halves, low first.
    fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    /// Writes 64 bits as two halves, low first.
    fn write64(&self, offset: usize, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}

/// [`Registers`] over mapped device memory: what a kernel returns from [`Hal::registers`].
#[derive(Debug)]
pub struct MappedRegisters {
    base: NonNull<u8>,
    len: usize,
}

impl MappedRegisters {
    /// Registers at `base`.
    ///
    /// # Safety
    /// `len` bytes from `base` are device registers, mapped uncached for as long as the value lives.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> MappedRegisters {
        MappedRegisters { base, len }
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        let end = offset.checked_add(size_of::<T>());
        assert!(end.is_some_and(|end| end <= self.len), "register access inside the window");
        // SAFETY: inside the window, as just checked.
        let pointer = unsafe { self.base.as_ptr().add(offset) }.cast::<T>();
        assert!(pointer.is_aligned(), "register access is naturally aligned");
        pointer
    }
}

impl Registers for MappedRegisters {
    fn size(&self) -> usize {
        self.len
    }
    fn read8(&self, offset: usize) -> u8 {
        // SAFETY: `at` checked bounds and alignment; `new`'s caller vouched for the mapping.
        unsafe { self.at::<u8>(offset).read_volatile() }
    }
    fn read16(&self, offset: usize) -> u16 {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u16>(offset).read_volatile() }
    }
    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }
    fn write8(&self, offset: usize, value: u8) {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u8>(offset).write_volatile(value) }
    }
    fn write16(&self, offset: usize, value: u16) {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u16>(offset).write_volatile(value) }
    }
    fn write32(&self, offset: usize, value: u32) {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }
}

/// Where a PCI function sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress {
    /// PCI segment group.
    pub segment: u16,
    /// Bus.
    pub bus: u8,
    /// Device on the bus, 0 ..= 31.
    pub device: u8,
    /// Function of the device, 0 ..= 7.
    pub function: u8,
}

impl core::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment, self.bus, self.device, self.function)
    }
}

/// Configuration space of one present PCI function. The kernel finds functions and makes sure that their memory BARs
/// have addresses; enabling the function, its MSI-X vectors and everything else is done by the drivers through this.
/// Offsets are multiples of 4, below 256 (conventional) or 4096 (ECAM); a read past what exists yields all ones.
pub trait PciFunction {
    /// Where it sits.
    fn address(&self) -> PciAddress;
    /// Reads 32 bits of configuration space.
    fn read(&self, offset: u16) -> u32;
    /// Writes 32 bits of configuration space.
    fn write(&self, offset: u16, value: u32);
}

/// A virtio-mmio window named by the firmware or the command line. Its interrupt line is routed by the kernel (edge
/// triggered) to whatever ends the reactor's sleep; the drivers acknowledge it in the device in [`Service::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioWindow {
    /// Bus address of the registers.
    pub address: u64,
    /// Length in bytes, at least 0x200 for a usable device.
    pub len: u64,
}

/// The side of a device that the reactor drives. A reactor's turn is
///
/// 1. run all ready tasks (they submit commands and frames, which only collect in rings);
/// 2. `poll` every service: it rings each doorbell at most once, takes completions and wakes who waits for them;
/// 3. if no task is ready and no `poll` returned true: `arm` every service; if all returned true, sleep until an
///    interrupt, or the next timer, or the least `deadline`; then 2 again.
///
/// Between `arm` and the sleep no interrupt may get lost (on x86: `cli`, `arm`, `sti; hlt`). Keeping interrupts off
/// while busy is the cheapest: they collapse into one that ends the next sleep at once.
pub trait Service {
    /// How people call the device, for logs.
    fn name(&self) -> &str;

    /// Rings doorbells for what was submitted, takes completions, wakes tasks, goes on with recovery. Returns whether
    /// anything was done, so that tasks may be ready. Bounded work per call. Never called from inside itself.
    fn poll(&self) -> bool;

    /// Asks the device for an interrupt at its next completion. Returns whether sleeping is right: false means that
    /// completions came in meanwhile and `poll` must run again first.
    fn arm(&self) -> bool;

    /// When `poll` must be called at the latest even without an interrupt (command timeouts, recovery steps, devices
    /// without interrupts); `None` while nothing is under way.
    fn deadline(&self) -> Option<Instant>;

    /// Tells the device that power is about to go, and waits for it, within limits, by [`Hal::relax`]. Call it last,
    /// when everything was flushed and nothing is under way: commands given afterwards are not carried out.
    fn shut_down(&self) {}
}
