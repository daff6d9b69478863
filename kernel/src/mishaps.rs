//! Mishaps on purpose, each by a boot word `selftest=…`, to see the report and what follows. `tests/boot` reads them.

use crate::cpu::{cores, traps};
use crate::machine::clock;
use crate::memory;
use alloc::boxed::Box;
use core::arch::asm;
use core::hint::black_box;
use core::sync::atomic::{AtomicUsize, Ordering};
use kernel_parts::guards::{Kind, Stack};
use kernel_parts::words::Mishap;
use moraine_boot::map::PAGE;
use moraine_platform::{info, warn};

/// Lines that other cores log before the panic amid them.
const STORM_LINES: usize = 20;
/// How long they may take.
const STORM_NS_MAX: u64 = 20_000_000_000;

/// Brings it about.
pub(crate) fn run(mishap: Mishap) -> ! {
    match mishap {
        Mishap::Panic => panic!("asked for by the boot word selftest=panic"),
        Mishap::Fault => fault(),
        Mishap::Storm => storm(),
        Mishap::Twice => twice(),
        Mishap::Hang => hang(),
        Mishap::Overflow(Kind::Own) => {
            overflow(0);
            hang()
        }
        Mishap::Overflow(kind) => overflow_on(Stack { core: 0, kind }),
        Mishap::OverflowSecond => {
            submit(|| overflow(0));
            hang()
        }
    }
}

/// Runs a job on a second core.
fn submit(job: impl FnOnce() + Send + 'static) {
    assert!(cores::submit(Box::new(job)).is_ok(), "this mishap needs a second core (-smp 2)");
}

/// Reads where nothing is.
fn fault() -> ! {
    // SAFETY: none: address 16 is never mapped, and that is the point; the exception does not return.
    let value = unsafe { (16 as *const u64).read_volatile() };
    panic!("read {value} where nothing is mapped")
}

/// Panics while all other cores log as fast as they can.
fn storm() -> ! {
    static LINES: AtomicUsize = AtomicUsize::new(0);
    for _ in 0..cores::count() {
        submit(|| {
            loop {
                info!("storm", "line {}", LINES.fetch_add(1, Ordering::Relaxed));
            }
        });
    }
    let begin = clock::now_ns();
    while LINES.load(Ordering::Relaxed) < STORM_LINES && clock::now_ns() - begin < STORM_NS_MAX {
        core::hint::spin_loop();
    }
    panic!("asked for by the boot word selftest=storm")
}

/// Panics with a console whose every line is a fault.
fn twice() -> ! {
    memory::lose_ring();
    panic!("asked for by the boot word selftest=twice")
}

/// Does nothing any more, with interrupts off: what somebody sends an NMI for.
fn hang() -> ! {
    warn!("kernel", "this core hangs now");
    loop {
        core::hint::spin_loop();
    }
}

/// Calls itself until its stack is used up.
#[inline(never)]
extern "C" fn overflow(depth: u64) {
    let frame = black_box([depth; 32]);
    if black_box(true) {
        overflow(depth + 1);
    }
    black_box(frame);
}

/// The same on another stack.
fn overflow_on(stack: Stack) -> ! {
    let bottom = traps::bottom_of(stack).expect("every stack of the first core has a guard page");
    // SAFETY: the stack is this core's and has room for the call; nothing that was on it is needed any more, because this
    // ends in a fault.
    unsafe {
        asm!(
            "mov rsp, {top}",
            "xor edi, edi",
            "call {overflow}",
            "ud2",
            top = in(reg) bottom + PAGE,
            overflow = sym overflow,
            options(noreturn),
        )
    }
}
