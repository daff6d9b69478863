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

/// This core's id, as its local interrupt controller has it; to be had before that is set up, and amid a panic.
pub(crate) fn id() -> u32 {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    // Leaf 0xb has the whole id, leaf 1 its low byte; a leaf 0xb of zeroes is not there.
    if __cpuid(0).eax >= 0xb && __cpuid_count(0xb, 0).ebx != 0 {
        return __cpuid_count(0xb, 0).edx;
    }
    __cpuid(1).ebx >> 24
}

/// Stops this core for good.
pub(crate) fn stop() -> ! {
    x86_64::instructions::interrupts::disable();
    loop {
        x86_64::instructions::hlt();
    }
}
