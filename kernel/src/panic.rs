//! A panic: says where and why, keeps the log for the next boot, and reboots or halts by policy.

use crate::machine::power;
use crate::{console, cpu, memory};
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering};
use kernel_parts::ring::Ending;

/// Return addresses shown at most.
const TRACE_MAX: usize = 16;
/// Bytes of stack searched for them.
const TRACE_BYTES: u64 = 4096;
/// Cycles before the reset, so that a person sees the text go by: about two seconds.
const PAUSE_CYCLES: u64 = 4_000_000_000;

static HALT: AtomicBool = AtomicBool::new(false);
static ENDING: AtomicBool = AtomicBool::new(false);

/// Whether a panic leads to standing still, so that someone can look, instead of a reboot.
pub(crate) fn set_halt(halt: bool) {
    HALT.store(halt, Ordering::Relaxed);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    x86_64::instructions::interrupts::disable();
    let stack: u64;
    // SAFETY: reads the stack pointer.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack)) };
    if !ENDING.load(Ordering::Acquire) {
        let _ = writeln!(console::unlocked(), "\nmoraine panic: {info}");
    }
    end(stack)
}

/// The common end of panics and exceptions: what the stack tells, then the policy.
pub(crate) fn end(stack: u64) -> ! {
    if ENDING.swap(true, Ordering::AcqRel) {
        // A second fault while reporting the first, or another core's: enough was said.
        cpu::stop();
    }
    let mut text = console::unlocked();
    let (image, code_end) = (memory::image(), memory::image_text_end());
    let _ = write!(text, "return addresses on the stack, from the image's start:");
    let mut shown = 0;
    for at in (stack & !7..).step_by(8).take(TRACE_BYTES as usize / 8) {
        if shown == TRACE_MAX || !memory::paging::is_mapped(at) {
            break;
        }
        // SAFETY: the word is mapped and aligned.
        let word = unsafe { (at as *const u64).read_volatile() };
        if (image.start..code_end).contains(&word) {
            let _ = write!(text, " +{:#x}", word - image.start);
            shown += 1;
        }
    }
    let halt = HALT.load(Ordering::Relaxed);
    let _ = writeln!(text, "\nmoraine panicked; {}", if halt { "halting (panic=halt)" } else { "rebooting" });
    console::note_ending(Ending::Panic);
    if halt {
        cpu::stop();
    }
    let from = cpu::cycles();
    while cpu::cycles().wrapping_sub(from) < PAUSE_CYCLES {
        core::hint::spin_loop();
    }
    power::reset()
}
