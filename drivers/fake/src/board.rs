//! The board under drivers and devices: memory, register windows, interrupt messages, and a clock that only tests move or
//! that is somebody else's.

use crate::memory;
use moraine_drivers::{DmaPages, Hal, MsiMessage, PAGE_SIZE, Registers, Service};
use moraine_platform::{Clock, Instant};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// The message that all devices send.
pub const MSI: MsiMessage = MsiMessage { address: 0xfee0_0000, data: 0x41 };
/// Turns after which a future that does not end is given up.
const TURNS_MAX: usize = 10_000_000;
/// What a turn of the devices takes on the board's own clock.
const STEP: Duration = Duration::from_micros(10);
/// What a pause takes on it.
const RELAX: Duration = Duration::from_millis(1);

/// A device's registers and behaviour.
pub trait Model {
    /// A register read of `width` bytes in window `window` (a BAR).
    fn read(&self, window: usize, offset: usize, width: usize) -> u64;
    /// A register write.
    fn write(&self, window: usize, offset: usize, width: usize, value: u64);
    /// Does some of what it has to do; whether it left something that it could do now.
    fn step(&self) -> bool;
}

struct Window {
    address: u64,
    len: usize,
    number: usize,
    model: Rc<dyn Model>,
}

type Hook = RefCell<Option<Box<dyn Fn()>>>;

fn call(hook: &Hook) {
    if let Some(hook) = &*hook.borrow() {
        hook();
    }
}

/// The board.
pub struct Board {
    this: Weak<Board>,
    now_ns: Cell<u64>,
    clock: Option<Rc<dyn Clock>>,
    windows: RefCell<Vec<Window>>,
    models: RefCell<Vec<Rc<dyn Model>>>,
    dma: RefCell<BTreeMap<usize, usize>>,
    on_attention: Hook,
    on_interrupt: Hook,
    /// Interrupt messages delivered since the test last looked.
    pub interrupts: Cell<u32>,
    /// DMA pages that may still be allocated.
    pub dma_pages_left: Cell<usize>,
    /// Whether devices can interrupt by messages.
    pub has_msi: Cell<bool>,
    /// How often a driver asked for a full fence.
    pub orders: Cell<u32>,
}

impl Board {
    /// A board with a clock of its own.
    pub fn new() -> Rc<Board> {
        Board::with(None)
    }

    /// A board whose clock is `clock`.
    pub fn on_clock(clock: Rc<dyn Clock>) -> Rc<Board> {
        Board::with(Some(clock))
    }

    fn with(clock: Option<Rc<dyn Clock>>) -> Rc<Board> {
        Rc::new_cyclic(|this| Board {
            this: this.clone(),
            now_ns: Cell::new(1),
            clock,
            windows: RefCell::default(),
            models: RefCell::default(),
            dma: RefCell::default(),
            on_attention: RefCell::default(),
            on_interrupt: RefCell::default(),
            interrupts: Cell::new(0),
            dma_pages_left: Cell::new(usize::MAX),
            has_msi: Cell::new(true),
            orders: Cell::new(0),
        })
    }

    /// Calls `hook` whenever devices may have something to do: a register was written, or something ended behind them.
    pub fn on_attention(&self, hook: impl Fn() + 'static) {
        *self.on_attention.borrow_mut() = Some(Box::new(hook));
    }

    /// Calls `hook` at each interrupt message.
    pub fn on_interrupt(&self, hook: impl Fn() + 'static) {
        *self.on_interrupt.borrow_mut() = Some(Box::new(hook));
    }

    /// A device has something to do.
    pub(crate) fn attend(&self) {
        call(&self.on_attention);
    }

    /// A device interrupts.
    pub(crate) fn interrupt(&self) {
        self.interrupts.set(self.interrupts.get() + 1);
        call(&self.on_interrupt);
    }

    /// Adds a device with windows at the given addresses.
    pub fn attach(&self, model: Rc<dyn Model>, windows: &[(u64, usize)]) {
        for (number, &(address, len)) in windows.iter().enumerate() {
            self.windows.borrow_mut().push(Window { address, len, number, model: model.clone() });
        }
        self.models.borrow_mut().push(model);
    }

    /// Moves the board's own clock.
    pub fn advance(&self, time: Duration) {
        self.now_ns.set(self.now_ns.get() + time.as_nanos() as u64);
    }

    /// Lets every device do something; whether one could go on.
    pub fn step(&self) -> bool {
        let models = self.models.borrow().clone();
        let more = models.iter().fold(false, |more, model| model.step() | more);
        self.advance(STEP);
        more
    }

    /// Pages of DMA memory not given back.
    pub fn dma_pages_in_use(&self) -> usize {
        self.dma.borrow().values().sum()
    }

    /// Whether an address range lies in DMA memory.
    pub fn is_dma(&self, bus: u64, len: usize) -> bool {
        let (dma, address) = (self.dma.borrow(), memory::from_bus(bus));
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
        for _ in 0..TURNS_MAX {
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

/// A window of a device, or a part of one.
struct View {
    model: Rc<dyn Model>,
    window: usize,
    start: usize,
    len: usize,
    board: Weak<Board>,
}

impl View {
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
        if let Some(board) = self.board.upgrade() {
            board.attend();
        }
    }
}

impl Registers for View {
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

// SAFETY: memory comes from the global allocator and is kept as `alloc_dma` says, bus addresses are made of its pointers
// (and of those of the heap, which is contiguous for a device that goes by pointers), registers lead to models.
unsafe impl Hal for Board {
    fn alloc_dma(&self, pages: usize) -> Option<DmaPages> {
        let left = self.dma_pages_left.get().checked_sub(pages)?;
        self.dma_pages_left.set(left);
        let memory = memory::alloc(pages);
        self.dma.borrow_mut().insert(memory.addr().get(), pages);
        Some(DmaPages { memory, bus: memory::to_bus(memory.as_ptr()), pages })
    }
    unsafe fn free_dma(&self, pages: DmaPages) {
        let known = self.dma.borrow_mut().remove(&pages.memory.addr().get());
        assert_eq!(known, Some(pages.pages), "memory is given back as it was taken");
        // SAFETY: from `alloc_dma`, as just checked, given back once and not used any more, says the caller.
        unsafe { memory::free(pages.memory, pages.pages) }
    }
    fn bus_address(&self, memory: *const u8) -> u64 {
        memory::to_bus(memory)
    }
    fn registers(&self, address: u64, len: usize) -> Option<Rc<dyn Registers>> {
        let windows = self.windows.borrow();
        let window = windows
            .iter()
            .find(|w| address >= w.address && address - w.address + len as u64 <= w.len as u64)?;
        let start = (address - window.address) as usize;
        let (model, board) = (window.model.clone(), self.this.clone());
        Some(Rc::new(View { model, window: window.number, start, len, board }))
    }
    fn msi(&self, _device: &str) -> Option<MsiMessage> {
        self.has_msi.get().then_some(MSI)
    }
    fn now(&self) -> Instant {
        self.clock.as_ref().map_or(Instant(self.now_ns.get()), |clock| clock.now())
    }
    fn order(&self) {
        self.orders.set(self.orders.get() + 1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
    fn relax(&self) {
        self.step();
        self.advance(RELAX);
    }
}
