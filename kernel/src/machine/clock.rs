//! Time: the time-stamp counter measured against whatever known clock the machine has, the local timer measured with
//! it, and the date from the real-time clock.

use crate::cpu::{self, apic, features};
use core::arch::x86_64::__cpuid;
use core::sync::atomic::{AtomicU64, Ordering};
use kernel_parts::acpi::Tables;
use kernel_parts::date;
use moraine_platform::{info, warn};
use x86_64::instructions::port::Port;

/// How long the counters are compared, as a part of a second: 10 ms.
const WINDOW_PARTS: u64 = 100;
/// Cycles after which a reference clock that does not move is given up on.
const PATIENCE_CYCLES: u64 = 4_000_000_000;
/// Rate of ACPI's timer and of the PIT.
const PM_HZ: u64 = 3_579_545;
const PIT_HZ: u64 = 1_193_182;
/// Rate of the local timer under QEMU and KVM.
const VIRTUAL_TIMER_HZ: u64 = 1_000_000_000;

static START: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds per cycle and local-timer ticks per nanosecond, both times 2^32; 0 until measured.
static NS_PER_CYCLE: AtomicU64 = AtomicU64::new(0);
static TICKS_PER_NS: AtomicU64 = AtomicU64::new(0);
/// Wall clock at [`START`], nanoseconds since 1970.
static WALL_AT_START: AtomicU64 = AtomicU64::new(0);

/// Begins to count; before [`init`] the time stands at zero.
pub(crate) fn begin() {
    START.store(cpu::cycles(), Ordering::Relaxed);
}

/// Nanoseconds since [`begin`].
pub(crate) fn now_ns() -> u64 {
    let cycles = cpu::cycles().wrapping_sub(START.load(Ordering::Relaxed));
    ((cycles as u128 * NS_PER_CYCLE.load(Ordering::Relaxed) as u128) >> 32) as u64
}

/// Wall clock, nanoseconds since 1970; begins at 0 on a machine without a date.
pub(crate) fn wall_ns() -> u64 {
    WALL_AT_START.load(Ordering::Relaxed) + now_ns()
}

/// Local-timer ticks for a span, at least one.
pub(crate) fn timer_ticks(ns: u64) -> u32 {
    ((ns as u128 * TICKS_PER_NS.load(Ordering::Relaxed) as u128) >> 32).clamp(1, u32::MAX as u128) as u32
}

/// Spins for a while.
pub(crate) fn pause_ns(ns: u64) {
    let end = now_ns() + ns;
    while now_ns() < end {
        core::hint::spin_loop();
    }
}

/// Measures the counters and reads the date.
pub(crate) fn init(tables: &Tables) {
    let features = features::get();
    if !features.steady_cycles && !features.virtual_machine {
        warn!("clock", "the time-stamp counter may change its rate; time will be uneven");
    }
    let mut found = None;
    if let Some(port) = tables.timer_port {
        let read = || {
            // SAFETY: ACPI says that this port is its timer; reading it changes nothing.
            unsafe { Port::<u32>::new(port).read() as u64 & 0xff_ffff }
        };
        found = measure(read, 0xff_ffff, PM_HZ).map(|rates| ("ACPI timer", rates));
    }
    if found.is_none() {
        start_pit();
        found = measure(|| 0xffff - read_pit(), 0xffff, PIT_HZ).map(|rates| ("PIT", rates));
    }
    if found.is_none() && features.virtual_machine {
        let read = || (u32::MAX - apic::timer_left()) as u64;
        apic::set_timer(u32::MAX);
        found = measure(read, u32::MAX as u64, VIRTUAL_TIMER_HZ)
            .map(|(cycles, _)| ("local timer", (cycles, VIRTUAL_TIMER_HZ)));
    }
    apic::set_timer(0);
    let (by, (cycles_hz, timer_hz)) = found.unwrap_or_else(|| {
        let mhz = if __cpuid(0).eax >= 0x16 { __cpuid(0x16).eax as u64 & 0xffff } else { 0 };
        warn!("clock", "no reference clock answers; trusting the processor's word");
        let hz = if mhz != 0 { mhz * 1_000_000 } else { 2_000_000_000 };
        ("processor", (hz, 100_000_000))
    });
    NS_PER_CYCLE.store((1_000_000_000_u128 << 32).div_euclid(cycles_hz as u128) as u64, Ordering::Relaxed);
    TICKS_PER_NS.store((timer_hz << 32) / 1_000_000_000, Ordering::Relaxed);
    match read_date() {
        Some(seconds) => {
            WALL_AT_START.store(seconds * 1_000_000_000 - now_ns(), Ordering::Relaxed);
            info!("clock", "{} UTC; {} MHz by the {by}", date::Date::of(seconds), cycles_hz / 1_000_000);
        }
        None => warn!(
            "clock",
            "no date to be had: files will say 1970; {} MHz by the {by}",
            cycles_hz / 1_000_000
        ),
    }
}

/// Compares cycles and local-timer ticks with a clock that counts up at `hz` and wraps at `mask`.
fn measure(mut read: impl FnMut() -> u64, mask: u64, hz: u64) -> Option<(u64, u64)> {
    // The pair read closest together of a few: an emulator may pause between any two instructions.
    let mut sample = || {
        let mut best = (u64::MAX, 0, 0);
        for _ in 0..8 {
            let before = cpu::cycles();
            let count = read();
            let after = cpu::cycles();
            if after - before < best.0 {
                best = (after - before, count, before + (after - before) / 2);
            }
        }
        (best.1, best.2)
    };
    apic::set_timer(u32::MAX);
    let (count_0, cycles_0) = sample();
    let ticks_0 = apic::timer_left();
    loop {
        let (count, cycles) = sample();
        let passed = count.wrapping_sub(count_0) & mask;
        if passed >= hz / WINDOW_PARTS {
            let ticks = (ticks_0 - apic::timer_left()) as u64;
            return Some(((cycles - cycles_0) * hz / passed, ticks * hz / passed));
        }
        if cycles - cycles_0 > PATIENCE_CYCLES {
            return None;
        }
    }
}

/// Lets channel 0 count down from 65536 over and over. Its gate is always open, unlike that of channel 2, which some
/// micro-VMs lack. Its interrupt is masked.
fn start_pit() {
    // SAFETY: the PIT's registers.
    unsafe {
        Port::<u8>::new(0x43).write(0x34);
        Port::<u8>::new(0x40).write(0);
        Port::<u8>::new(0x40).write(0);
    }
}

fn read_pit() -> u64 {
    // SAFETY: the PIT's registers: latch, then low and high byte.
    unsafe {
        Port::<u8>::new(0x43).write(0);
        let mut data = Port::<u8>::new(0x40);
        let low = data.read() as u64;
        low | (data.read() as u64) << 8
    }
}

fn cmos(register: u8) -> u8 {
    // SAFETY: the real-time clock's index and data registers; bit 7 keeps NMI as it is by default.
    unsafe {
        Port::<u8>::new(0x70).write(register);
        Port::<u8>::new(0x71).read()
    }
}

/// Seconds since 1970 by the real-time clock, if there is one with a plausible date.
fn read_date() -> Option<u64> {
    let read = || -> Option<[u8; 6]> {
        // Not amid an update: it takes 2 ms at most.
        (0..100_000).find(|_| cmos(0x0a) & 0x80 == 0)?;
        Some([cmos(0), cmos(2), cmos(4), cmos(7), cmos(8), cmos(9)])
    };
    let mut last = read()?;
    for _ in 0..10 {
        let again = read()?;
        if again == last {
            return date::from_cmos(last, cmos(0x0b));
        }
        last = again;
    }
    None
}
