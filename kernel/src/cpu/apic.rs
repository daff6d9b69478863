//! Interrupt controllers: the local one of each core (timer, messages between cores, acknowledgement) and the I/O
//! controllers that lines end in. The old pair of 8259s is silenced.

use crate::cpu::traps;
use crate::memory::paging::{self, Access};
use core::sync::atomic::{AtomicU64, Ordering};
use kernel_parts::acpi::{IoApic, Tables};
use moraine_platform::{info, warn};
use spin::Once;
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;

/// Vector of the local timer.
pub(crate) const TIMER: u8 = 0x20;
/// Vector by which one core wakes another.
pub(crate) const WAKE: u8 = 0x21;
/// Vector of the power button.
pub(crate) const POWER: u8 = 0x22;
/// Vector that all devices share: it ends the reactor's sleep.
pub(crate) const DEVICES: u8 = 0x30;
/// Vector of interrupts that turned out to be none.
const SPURIOUS: u8 = 0xff;

const BASE: Msr = Msr::new(0x1b);
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2: u64 = 1 << 10;

/// Registers of the local controller: offset in memory; its model-specific register is `0x800 + offset / 16`.
const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const ACKNOWLEDGE: u32 = 0xb0;
const SPURIOUS_VECTOR: u32 = 0xf0;
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER_ENTRY: u32 = 0x320;
const LINT0: u32 = 0x350;
const LINT1: u32 = 0x360;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_CURRENT: u32 = 0x390;
const TIMER_DIVIDE: u32 = 0x3e0;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_1: u32 = 0b1011;
const ENABLED: u32 = 1 << 8;

/// Address of the local controller's registers; 0 in x2APIC mode.
static LOCAL: AtomicU64 = AtomicU64::new(0);
static IO: Once<alloc::vec::Vec<IoApic>> = Once::new();

/// On which edge of a line an interrupt comes. Always an edge, even where the line is a level: the handler only takes
/// note, and a level that stays would interrupt again before anybody can look at the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    /// Low to high.
    Rising,
    /// High to low.
    Falling,
}

/// Sets up this core's controller and the I/O controllers (all lines masked).
pub(crate) fn init(tables: &Tables) {
    silence_8259();
    // SAFETY: every x86-64 processor has this register.
    let base = unsafe { BASE.read() };
    if base & BASE_X2 == 0 {
        let address = base & 0x000f_ffff_ffff_f000;
        paging::map(address, 4096, Access::Device);
        LOCAL.store(address, Ordering::Relaxed);
        traps::set_acknowledge(address + ACKNOWLEDGE as u64);
    } else {
        info!("apic", "x2APIC mode, as the firmware left it");
    }
    init_core();
    for io in &tables.io_apics {
        paging::map(io.address, 4096, Access::Device);
        for line in 0..lines(io) {
            io_write(io, 0x10 + 2 * line, MASKED);
        }
    }
    IO.call_once(|| tables.io_apics.clone());
}

/// Enables this core's local controller.
pub(crate) fn init_core() {
    let mut base = BASE;
    // SAFETY: enables the controller where the firmware left it.
    unsafe { base.write(base.read() | BASE_ENABLE) };
    write(SPURIOUS_VECTOR, ENABLED | SPURIOUS as u32);
    write(TASK_PRIORITY, 0);
    write(LINT0, MASKED);
    write(LINT1, 0x400); // NMI
    write(TIMER_DIVIDE, DIVIDE_BY_1);
    write(TIMER_ENTRY, TIMER as u32);
}

/// This core's id.
pub(crate) fn id() -> u32 {
    if LOCAL.load(Ordering::Relaxed) == 0 { read(ID) } else { read(ID) >> 24 }
}

/// Interrupts this core with [`TIMER`] once, after `ticks`; 0 takes it back.
pub(crate) fn set_timer(ticks: u32) {
    write(TIMER_INITIAL, ticks);
}

/// Whether the timer starts anew each time it fired.
pub(crate) fn set_periodic(periodic: bool) {
    write(TIMER_ENTRY, TIMER as u32 | if periodic { PERIODIC } else { 0 });
}

/// Ticks left of the timer.
pub(crate) fn timer_left() -> u32 {
    read(TIMER_CURRENT)
}

/// Interrupts the core `target` with `vector`.
pub(crate) fn send(target: u32, vector: u8) {
    command(target, 0x4000 | vector as u32);
}

/// Interrupts the core `target` whatever it does.
pub(crate) fn send_nmi(target: u32) {
    command(target, 0x4400);
}

/// Lets no NMI from outside through to this core any more.
pub(crate) fn mask_nmi() {
    // Before the controllers are set up there is no telling how this one is reached.
    if IO.is_completed() {
        write(LINT1, MASKED);
    }
}

/// Resets the core `target` so that it waits for [`send_startup`].
pub(crate) fn send_init(target: u32) {
    command(target, 0xc500);
    command(target, 0x8500);
}

/// Starts the core `target` in real mode at `page`.
pub(crate) fn send_startup(target: u32, page: u64) {
    command(target, 0x4600 | (page >> 12) as u32);
}

/// What a device writes where, to raise `vector` on this core.
pub(crate) fn message(vector: u8) -> (u64, u32) {
    (0xfee0_0000 | (id() as u64) << 12, vector as u32)
}

/// Lets the global interrupt `line` raise `vector` on this core.
pub(crate) fn route(line: u32, vector: u8, edge: Edge) {
    let io = IO.get().into_iter().flatten().find(|io| (io.first..io.first + lines(io)).contains(&line));
    let Some(io) = io else {
        warn!("apic", "no controller serves interrupt {line}");
        return;
    };
    let at = 0x10 + 2 * (line - io.first);
    let bits = match edge {
        Edge::Rising => 0,
        Edge::Falling => 1 << 13,
    };
    io_write(io, at + 1, id() << 24);
    io_write(io, at, bits | vector as u32);
}

fn command(target: u32, what: u32) {
    if LOCAL.load(Ordering::Relaxed) == 0 {
        // SAFETY: the x2APIC command register; it interrupts a core.
        unsafe { Msr::new(0x830).write((target as u64) << 32 | what as u64) };
        return;
    }
    write(COMMAND_HIGH, target << 24);
    write(COMMAND, what);
    while read(COMMAND) & 1 << 12 != 0 {
        core::hint::spin_loop();
    }
}

fn read(register: u32) -> u32 {
    match LOCAL.load(Ordering::Relaxed) {
        // SAFETY: x2APIC mode is on, so the register exists.
        0 => unsafe { Msr::new(0x800 + register / 16).read() as u32 },
        // SAFETY: mapped by `init`.
        base => unsafe { ((base + register as u64) as *const u32).read_volatile() },
    }
}

fn write(register: u32, value: u32) {
    match LOCAL.load(Ordering::Relaxed) {
        // SAFETY: as in `read`; the registers written touch no memory.
        0 => unsafe { Msr::new(0x800 + register / 16).write(value as u64) },
        // SAFETY: as in `read`.
        base => unsafe { ((base + register as u64) as *mut u32).write_volatile(value) },
    }
}

fn lines(io: &IoApic) -> u32 {
    (io_read(io, 1) >> 16 & 0xff) + 1
}

fn io_read(io: &IoApic, register: u32) -> u32 {
    // SAFETY: an I/O controller's select and window registers, mapped by `init`.
    unsafe {
        (io.address as *mut u32).write_volatile(register);
        ((io.address + 0x10) as *const u32).read_volatile()
    }
}

fn io_write(io: &IoApic, register: u32, value: u32) {
    // SAFETY: as in `io_read`.
    unsafe {
        (io.address as *mut u32).write_volatile(register);
        ((io.address + 0x10) as *mut u32).write_volatile(value);
    }
}

/// Moves the old controllers' vectors out of the exceptions' way and masks all their lines.
fn silence_8259() {
    for (port, value) in [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, 0xe0),
        (0xa1, 0xe8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
        (0x21, 0xff),
        (0xa1, 0xff),
    ] {
        // SAFETY: the 8259s' registers; where there are none, nobody listens.
        unsafe { Port::<u8>::new(port).write(value) };
    }
}
