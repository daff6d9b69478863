//! What the processor can do: the baseline is checked, extensions are switched on.

use core::arch::x86_64::{__cpuid, __cpuid_count};
use kernel_parts::baseline::{self, Leaves, Missing};
use moraine_platform::{error, info};
use spin::Once;
use x86_64::registers::control::{Cr4, Cr4Flags};
use x86_64::registers::xcontrol::{XCr0, XCr0Flags};

/// What the rest of the kernel asks about the processor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Features {
    /// String instructions are fast (ERMS).
    pub(crate) fast_strings: bool,
    /// A software emulator runs us.
    pub(crate) emulated: bool,
    /// Some hypervisor or emulator runs us.
    pub(crate) virtual_machine: bool,
    /// It makes random numbers.
    pub(crate) random: bool,
    /// The time-stamp counter runs at one rate whatever the core does.
    pub(crate) steady_cycles: bool,
}

/// What was found at boot: under a hypervisor each CPUID is a way out of the guest, dearer than an I/O.
static FOUND: Once<Features> = Once::new();

/// Checks the baseline, enables extensions on the first core, and tells what was found.
pub(crate) fn init_first() -> Features {
    if let Some(missing) = missing() {
        error!(
            "cpu",
            "Moraine needs an x86-64-v2 processor (2009 or later); this one lacks {missing}; stopping"
        );
        super::stop();
    }
    enable_extensions();
    let found = *FOUND.call_once(detect);
    let mut name = [0; 48];
    if __cpuid(0x8000_0000).eax >= 0x8000_0004 {
        for (i, part) in name.chunks_exact_mut(16).enumerate() {
            let leaf = __cpuid(0x8000_0002 + i as u32);
            for (word, bytes) in [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].iter().zip(part.chunks_exact_mut(4))
            {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
    }
    let name = core::str::from_utf8(&name).unwrap_or("").trim_matches(['\0', ' ']);
    let kind = match (found.emulated, found.virtual_machine) {
        (true, _) => ", emulated",
        (_, true) => ", virtual",
        _ => "",
    };
    info!("cpu", "{name}{kind}");
    found
}

/// What this processor lacks of the baseline.
pub(crate) fn missing() -> Option<Missing> {
    let extended = if __cpuid(0x8000_0000).eax > 0x8000_0000 { __cpuid(0x8000_0001).ecx } else { 0 };
    baseline::missing(Leaves { one: __cpuid(1).ecx, extended })
}

/// Enables what the assembly of the entry left off: AVX state, so that routines chosen at run time may use it. On
/// every core.
pub(crate) fn enable_extensions() {
    let leaf = __cpuid(1);
    let (xsave, avx) = (leaf.ecx & 1 << 26 != 0, leaf.ecx & 1 << 28 != 0);
    if xsave {
        // SAFETY: the processor has XSAVE; enabling state components it reports changes no running code's state.
        unsafe {
            Cr4::update(|flags| flags.insert(Cr4Flags::OSXSAVE));
            let mut state = XCr0Flags::X87 | XCr0Flags::SSE;
            if avx {
                state |= XCr0Flags::AVX;
            }
            XCr0::write(state);
        }
    }
}

fn detect() -> Features {
    let one = __cpuid(1);
    let virtual_machine = one.ecx & 1 << 31 != 0;
    let seven = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).ebx } else { 0 };
    let emulated = virtual_machine && {
        let leaf = __cpuid(0x4000_0000);
        [leaf.ebx, leaf.ecx, leaf.edx]
            == [u32::from_le_bytes(*b"TCGT"), u32::from_le_bytes(*b"CGTC"), u32::from_le_bytes(*b"GTCG")]
    };
    let steady = __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & 1 << 8 != 0;
    Features {
        fast_strings: seven & 1 << 9 != 0,
        emulated,
        virtual_machine,
        random: one.ecx & 1 << 30 != 0,
        steady_cycles: steady,
    }
}

/// What this processor can do. Costs next to nothing.
pub(crate) fn get() -> Features {
    FOUND.get().copied().unwrap_or_else(detect)
}
