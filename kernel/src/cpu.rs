//! The processor: what it can do, traps and interrupts, its local interrupt controller, second cores.

pub(crate) mod apic;
pub(crate) mod cores;
pub(crate) mod features;
pub(crate) mod traps;

/// Cycles by the time-stamp counter.
pub(crate) fn cycles() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and nothing forbids it to us.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Stops this core for good.
pub(crate) fn stop() -> ! {
    x86_64::instructions::interrupts::disable();
    loop {
        x86_64::instructions::hlt();
    }
}
