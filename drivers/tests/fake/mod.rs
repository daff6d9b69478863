//! A machine of memory and fake devices under the drivers: a `Hal`, PCI functions, and a clock that only tests move.
#![allow(dead_code, unreachable_pub)]

pub mod nvme;
pub mod virtio;

use moraine_drivers::{
    DmaPages, Found, Hal, MmioWindow, MsiMessage, PAGE_SIZE, PciAddress, PciFunction, Registers, Service,
};
use moraine_platform::Instant;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A device's registers and behaviour.
pub trait Model {
    /// A register read of `width` bytes in window `window` (a BAR).
    fn read(&self, window: usize, offset: usize, width: usize) -> u64;
    /// A register write.
    fn write(&self, window: usize, offset: usize, width: usize, value: u64);
    /// Does some of what it has to do.
    fn step(&self);
}

struct Window {
    address: u64,
    len: usize,
    number: usize,
    model: Rc<dyn Model>,
}

/// The machine.
pub struct World {
    now_ns: Cell<u64>,
    windows: RefCell<Vec<Window>>,
    models: RefCell<Vec<Rc<dyn Model>>>,
    dma: RefCell<BTreeMap<usize, usize>>,
    /// Interrupt messages delivered since the test last looked.
    pub interrupts: Cell<u32>,
    /// DMA pages that may still be allocated.
    pub dma_pages_left: Cell<usize>,
    pub has_msi: Cell<bool>,
    /// How often a driver asked for a full fence.
    pub orders: Cell<u32>,
}

pub const MSI: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x41 };

impl World {
    pub fn new() -> Rc<World> {
        Rc::new(World {
            now_ns: Cell::new(1),
            windows: RefCell::default(),
            models: RefCell::default(),
            dma: RefCell::default(),
            interrupts: Cell::new(0),
            dma_pages_left: Cell::new(usize::MAX),
            has_msi: Cell::new(true),
            orders: Cell::new(0),
        })
    }

    /// Adds a device with windows at the given addresses.
    pub fn attach(&self, model: Rc<dyn Model>, windows: &[(u64, usize)]) {
        for (number, &(address, len)) in windows.iter().enumerate() {
            self.windows.borrow_mut().push(Window { address, len, number, model: model.clone() });
        }
        self.models.borrow_mut().push(model);
    }

    pub fn advance(&self, time: Duration) {
        self.now_ns.set(self.now_ns.get() + time.as_nanos() as u64);
    }

    /// Lets every device do something.
    pub fn step(&self) {
        for model in self.models.borrow().iter() {
            model.step();
        }
        self.advance(Duration::from_micros(10));
    }

    /// Pages of DMA memory not given back.
    pub fn dma_pages_in_use(&self) -> usize {
        self.dma.borrow().values().sum()
    }

    /// Whether an address range lies in DMA memory.
    pub fn is_dma(&self, address: u64, len: usize) -> bool {
        let (dma, address) = (self.dma.borrow(), from_bus(address));
        dma.range(..=address)
            .next_back()
            .is_some_and(|(base, pages)| address + len <= base + pages * PAGE_SIZE)
    }

    /// Runs `future` with the services and devices until it is done.
    pub fn run<T>(
        &self,
        services: &[Rc<dyn Service>],
        mut future: Pin<Box<dyn Future<Output = T> + '_>>,
    ) -> T {
        for _ in 0..10_000_000 {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return value;
            }
            services.iter().for_each(|s| {
                s.poll();
            });
            self.step();
        }
        panic!("the device never answered");
    }
}

/// Bits of an address that are the same on the bus. What is above them is a number of 4 bits there, so that bus
/// addresses differ from pointers and fit what the legacy interface can say.
const REGION_SHIFT: u32 = 40;

thread_local! {
    static REGIONS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// The bus address of memory.
fn to_bus(address: usize) -> u64 {
    let high = address >> REGION_SHIFT;
    let number = REGIONS.with_borrow_mut(|regions| {
        regions.iter().position(|&r| r == high).unwrap_or_else(|| {
            regions.push(high);
            regions.len() - 1
        })
    });
    assert!(number < 15);
    (address & ((1 << REGION_SHIFT) - 1)) as u64 | (number as u64 + 1) << REGION_SHIFT
}

fn from_bus(bus: u64) -> usize {
    let number = (bus >> REGION_SHIFT) as usize;
    let high = REGIONS.with_borrow(|regions| number.checked_sub(1).and_then(|n| regions.get(n).copied()));
    let high = high.expect("a device is only told of memory");
    bus as usize & ((1 << REGION_SHIFT) - 1) | high << REGION_SHIFT
}

/// Reads device-visible memory, as a device does.
pub fn dma_read<const N: usize>(address: u64) -> [u8; N] {
    let mut out = [0; N];
    dma_read_into(address, &mut out);
    out
}

pub fn dma_read_into(address: u64, out: &mut [u8]) {
    // SAFETY: drivers only tell devices of memory they own (that they do is what these tests are about; a violation
    // would be found by a crash or the address checks of the models).
    unsafe { std::ptr::copy(from_bus(address) as *const u8, out.as_mut_ptr(), out.len()) }
}

/// Writes device-visible memory.
pub fn dma_write(address: u64, bytes: &[u8]) {
    // SAFETY: as in `dma_read_into`.
    unsafe { std::ptr::copy(bytes.as_ptr(), from_bus(address) as *mut u8, bytes.len()) }
}

struct FakeRegisters {
    model: Rc<dyn Model>,
    window: usize,
    start: usize,
    len: usize,
}

impl FakeRegisters {
    fn at(&self, offset: usize, width: usize) -> usize {
        assert!(offset + width <= self.len, "register access inside the window");
        assert_eq!((self.start + offset) % width, 0, "register access is aligned");
        self.start + offset
    }
    fn get(&self, offset: usize, width: usize) -> u64 {
        self.model.read(self.window, self.at(offset, width), width)
    }
    fn set(&self, offset: usize, width: usize, value: u64) {
        self.model.write(self.window, self.at(offset, width), width, value);
    }
}

impl Registers for FakeRegisters {
    fn size(&self) -> usize {
        self.len
    }
    fn read8(&self, offset: usize) -> u8 {
        self.get(offset, 1) as u8
    }
    fn read16(&self, offset: usize) -> u16 {
        self.get(offset, 2) as u16
    }
    fn read32(&self, offset: usize) -> u32 {
        self.get(offset, 4) as u32
    }
    fn write8(&self, offset: usize, value: u8) {
        self.set(offset, 1, value.into());
    }
    fn write16(&self, offset: usize, value: u16) {
        self.set(offset, 2, value.into());
    }
    fn write32(&self, offset: usize, value: u32) {
        self.set(offset, 4, value.into());
    }
}

fn pages_layout(pages: usize) -> Layout {
    Layout::from_size_align(pages * PAGE_SIZE, PAGE_SIZE).unwrap()
}

// SAFETY: memory comes from the global allocator, bus addresses are made of its pointers, registers lead to models.
unsafe impl Hal for World {
    fn alloc_dma(&self, pages: usize) -> Option<DmaPages> {
        let left = self.dma_pages_left.get().checked_sub(pages)?;
        self.dma_pages_left.set(left);
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(pages_layout(pages)) }).unwrap();
        self.dma.borrow_mut().insert(memory.addr().get(), pages);
        Some(DmaPages { memory, bus: to_bus(memory.addr().get()), pages })
    }
    unsafe fn free_dma(&self, pages: DmaPages) {
        let known = self.dma.borrow_mut().remove(&pages.memory.addr().get());
        assert_eq!(known, Some(pages.pages), "memory is given back as it was taken");
        // SAFETY: taken with this layout, given back once.
        unsafe { dealloc(pages.memory.as_ptr(), pages_layout(pages.pages)) }
    }
    fn bus_address(&self, memory: *const u8) -> u64 {
        to_bus(memory.addr())
    }
    fn registers(&self, address: u64, len: usize) -> Option<Rc<dyn Registers>> {
        let windows = self.windows.borrow();
        let window = windows
            .iter()
            .find(|w| address >= w.address && address - w.address + len as u64 <= w.len as u64)?;
        let start = (address - window.address) as usize;
        Some(Rc::new(FakeRegisters { model: window.model.clone(), window: window.number, start, len }))
    }
    fn msi(&self, _device: &str) -> Option<MsiMessage> {
        self.has_msi.get().then_some(MSI)
    }
    fn now(&self) -> Instant {
        Instant(self.now_ns.get())
    }
    fn order(&self) {
        self.orders.set(self.orders.get() + 1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
    fn relax(&self) {
        self.step();
        self.advance(Duration::from_millis(1));
    }
}

/// Configuration space in an array, where only the command register and the MSI-X control can be written.
pub struct FakeFunction {
    pub words: RefCell<[u32; 64]>,
}

impl FakeFunction {
    pub fn new(vendor: u16, device: u16, class: u32) -> FakeFunction {
        let mut words = [0; 64];
        words[0] = u32::from(vendor) | u32::from(device) << 16;
        words[2] = class << 8;
        FakeFunction { words: RefCell::new(words) }
    }

    /// A 64-bit memory BAR.
    pub fn bar(&self, index: usize, address: u64) {
        let mut words = self.words.borrow_mut();
        words[4 + index] = address as u32 | 0b100;
        words[5 + index] = (address >> 32) as u32;
    }

    /// Adds a capability of whole words at `at`, in front of the list.
    pub fn capability(&self, at: u8, id: u8, high: u16, rest: &[u32]) {
        let mut words = self.words.borrow_mut();
        words[1] |= 1 << 20;
        let next = words[13];
        words[13] = u32::from(at);
        let first = usize::from(at) / 4;
        words[first] = u32::from(id) | next << 8 | u32::from(high) << 16;
        words[first + 1..][..rest.len()].copy_from_slice(rest);
    }

    pub fn is_bus_master(&self) -> bool {
        self.words.borrow()[1] & 1 << 2 != 0
    }
}

impl PciFunction for FakeFunction {
    fn address(&self) -> PciAddress {
        PciAddress { segment: 0, bus: 0, device: 3, function: 0 }
    }
    fn read(&self, offset: u16) -> u32 {
        self.words.borrow().get(usize::from(offset) / 4).copied().unwrap_or(u32::MAX)
    }
    fn write(&self, offset: u16, value: u32) {
        let mut words = self.words.borrow_mut();
        match offset {
            0x04 => words[1] = words[1] & 0xffff_0000 | value & 0xffff,
            _ if words[usize::from(offset) / 4] as u8 == 0x11 => {
                let word = &mut words[usize::from(offset) / 4];
                *word = *word & 0x3fff_ffff | value & 0xc000_0000;
            }
            _ => panic!("unexpected write of configuration space at {offset:#x}"),
        }
    }
}

/// Probes a world with these functions.
pub fn probe(world: &Rc<World>, functions: &[Rc<FakeFunction>], windows: &[MmioWindow]) -> Found {
    let functions: Vec<Rc<dyn PciFunction>> =
        functions.iter().map(|f| f.clone() as Rc<dyn PciFunction>).collect();
    moraine_drivers::probe(world.clone(), &functions, windows)
}

/// A small random generator for scenarios (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
