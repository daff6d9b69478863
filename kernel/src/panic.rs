//! A panic: stops the other cores, says where and why, keeps the log for the next boot, and reboots or halts by policy.
//!
//! One core reports, the first that comes to [`begin`]. Whatever goes wrong while it does is told in one line without
//! the console, and ends the machine at once; so a report that is itself at fault cannot go round in circles.

use crate::cpu::{apic, cores};
use crate::machine::{power, serial};
use crate::{console, cpu, memory};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use kernel_parts::ring::Ending;

/// Return addresses shown at most.
const TRACE_MAX: usize = 16;
/// Bytes of stack searched for them.
const TRACE_BYTES: u64 = 4096;
/// Cycles before the reset, so that a person sees the text go by: about two seconds.
const PAUSE_CYCLES: u64 = 4_000_000_000;

static HALT: AtomicBool = AtomicBool::new(false);
/// The number of the core that reports, plus one; 0 while nobody does.
static REPORTER: AtomicUsize = AtomicUsize::new(0);
/// How often something went wrong while it reported.
static FAULTS: AtomicUsize = AtomicUsize::new(0);

/// Whether a panic leads to standing still, so that someone can look, instead of a reboot.
pub(crate) fn set_halt(halt: bool) {
    HALT.store(halt, Ordering::Relaxed);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    begin(None);
    let stack: u64;
    // SAFETY: reads the stack pointer.
    unsafe { core::arch::asm!("mov {}, rsp", out(reg) stack, options(nomem, nostack)) };
    let _ = writeln!(console::unlocked(), "\nmoraine panic: {info}");
    end(stack)
}

/// Makes this core the one that reports, and stops the others. Comes back once only: another core ends here, and so does a
/// second fault, an exception if its vector and place are given.
pub(crate) fn begin(exception: Option<(u64, u64)>) {
    x86_64::instructions::interrupts::disable();
    let own = cores::number() + 1;
    match REPORTER.compare_exchange(0, own, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            apic::mask_nmi();
            cores::stop_others();
        }
        Err(reporter) if reporter == own => cut_short(exception),
        Err(_) => cores::stop_for_panic(exception.map_or(0, |(_, rip)| rip)),
    }
}

/// The serial port without anything between.
struct Bare;

impl Write for Bare {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        serial::write(text.as_bytes());
        Ok(())
    }
}

/// Something went wrong while the report was written: each time less is tried before the end.
fn cut_short(exception: Option<(u64, u64)>) -> ! {
    match FAULTS.fetch_add(1, Ordering::Relaxed) {
        0 => {
            let _ = match exception {
                Some((vector, rip)) => {
                    let at = rip.wrapping_sub(memory::image().start);
                    writeln!(Bare, "\nmoraine panic: exception {vector} at image + {at:#x} amid the report")
                }
                None => writeln!(Bare, "\nmoraine panic: another one amid the report"),
            };
            let _ = writeln!(Bare, "moraine panicked; {}", policy());
            console::note_ending(Ending::Panic);
            leave()
        }
        1 => leave(),
        _ if HALT.load(Ordering::Relaxed) => cpu::stop(),
        _ => power::reset_processor(),
    }
}

/// The end of panics and exceptions that [`begin`] came back from: what the stack tells, then the policy.
pub(crate) fn end(stack: u64) -> ! {
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
    let _ = writeln!(text);
    if cores::count() > 0 {
        let _ = writeln!(text, "this was core {}", cores::number());
    }
    for (core, at) in cores::stopped() {
        let _ = match at {
            Some(at) if image.contains(&at) => {
                writeln!(text, "core {core} was at image + {:#x}", at - image.start)
            }
            Some(at) => writeln!(text, "core {core} was at {at:#x}"),
            None => writeln!(text, "core {core} does not stop"),
        };
    }
    let _ = writeln!(text, "moraine panicked; {}", policy());
    console::note_ending(Ending::Panic);
    leave()
}

fn policy() -> &'static str {
    if HALT.load(Ordering::Relaxed) { "halting (panic=halt)" } else { "rebooting" }
}

/// Halts or resets, as told.
fn leave() -> ! {
    if HALT.load(Ordering::Relaxed) {
        cpu::stop();
    }
    let from = cpu::cycles();
    while cpu::cycles().wrapping_sub(from) < PAUSE_CYCLES {
        core::hint::spin_loop();
    }
    // Once more: a core that did not stop may have logged since, which takes the mark away.
    if FAULTS.load(Ordering::Relaxed) == 0 {
        console::note_ending(Ending::Panic);
    }
    power::reset()
}
