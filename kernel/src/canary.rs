//! Do interrupts harm who they strike? The 128 bytes below the stack pointer (the red zone) and the vector registers are
//! held with a pattern under fire: by the local timer in the self-tests, by disks and network cards for the boot word
//! `selftest=canary`. Each time it is also shown that interrupts without a stack of their own would be noticed.

use crate::cpu::{apic, traps};
use crate::machine::{clock, power};
use alloc::vec::Vec;
use core::arch::asm;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use moraine_drivers::Found;
use moraine_platform::{BLOCK_SIZE, Buf, IoDone, IoFuture, info};
use x86_64::instructions::interrupts;

/// How long the canary is kept under the timer's fire, and the gap between interrupts.
const TIMER_NS: u64 = 300_000_000;
const TIMER_GAP_NS: u64 = 10_000;
/// Interrupts, reads of each disk and frames that it must see to mean anything.
const INTERRUPTS: u32 = 200;
const READS: u64 = 200;
const FRAMES: u64 = 200;
/// How long that may take: an emulator on a busy host may deliver few a second.
const PATIENCE_NS: u64 = 30_000_000_000;
/// Reads under way on each disk.
const DEPTH: usize = 4;

/// What was seen under fire.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    interrupts: u32,
    holds: u32,
    broken: u32,
}

impl Seen {
    fn hold(&mut self) {
        self.holds += 1;
        self.broken += u32::from(!hold_red_zone());
    }
}

/// Fills the red zone, holds it with interrupts on for some ten thousand instructions, and looks; whether it was whole.
fn hold_red_zone() -> bool {
    let broken: u64;
    // SAFETY: writes and reads the red zone only, which is this function's while it makes no calls. Interrupts are off
    // before and after, as everywhere.
    unsafe {
        asm!(
            "mov rax, 0x5aa5c33c0ff01234",
            "mov ecx, 16",
            "2: neg rcx",
            "mov [rsp + rcx * 8], rax",
            "neg rcx",
            "dec rcx",
            "jnz 2b",
            "mov ecx, 20000",
            "sti",
            "3: dec rcx",
            "jnz 3b",
            "cli",
            "xor edx, edx",
            "mov ecx, 16",
            "4: neg rcx",
            "mov r8, [rsp + rcx * 8]",
            "xor r8, rax",
            "or rdx, r8",
            "neg rcx",
            "dec rcx",
            "jnz 4b",
            out("rax") _, out("rcx") _, out("rdx") broken, out("r8") _,
        );
    }
    broken == 0
}

/// The local timer fires all the time while `body`, which lets interrupts in, runs for a while; how often it fired.
fn under_timer(mut body: impl FnMut()) -> u32 {
    let ticks = clock::timer_ticks(TIMER_GAP_NS);
    apic::set_periodic(true);
    apic::set_timer(ticks);
    let (begin, count) = (clock::now_ns(), traps::count(apic::TIMER));
    let fired = || traps::count(apic::TIMER).wrapping_sub(count);
    while clock::now_ns() - begin < TIMER_NS || fired() < INTERRUPTS {
        body();
        assert!(clock::now_ns() - begin < PATIENCE_NS, "interrupts come");
    }
    apic::set_timer(0);
    apic::set_periodic(false);
    fired()
}

/// No interrupt of the timer touches the red zone; without a stack of its own it would.
pub(crate) fn red_zone() {
    let on_stack = |own| {
        traps::set_interrupt_stack(own);
        let mut seen = Seen::default();
        seen.interrupts = under_timer(|| seen.hold());
        traps::set_interrupt_stack(true);
        seen
    };
    judge("timer", on_stack(true), on_stack(false));
}

fn judge(by: &str, own: Seen, shared: Seen) {
    assert!(own.broken == 0, "an interrupt wrote into the red zone: {own:?}");
    assert!(shared.broken > 0, "the canary notices interrupts on the stack they strike on: {shared:?}");
    let (count, broken, holds) = (own.interrupts, shared.broken, shared.holds);
    info!(
        "canary",
        "{by}: red zone intact after {count} interrupts; without their stack {broken} of {holds} holds break"
    );
}

/// Interrupts leave vector registers alone.
pub(crate) fn vector_registers() {
    under_timer(|| {
        let (low, high): (u64, u64);
        // SAFETY: uses two registers, declared as changed; interrupts are off before and after.
        unsafe {
            asm!(
                "movq xmm0, {value}",
                "movq xmm15, {value}",
                "mov ecx, 20000",
                "sti",
                "2: dec rcx",
                "jnz 2b",
                "cli",
                "movq {low}, xmm0",
                "movq {high}, xmm15",
                value = in(reg) 0x1122_3344_5566_7788_u64,
                low = out(reg) low, high = out(reg) high,
                out("xmm0") _, out("xmm15") _, out("rcx") _,
            );
        }
        assert!(low == 0x1122_3344_5566_7788 && high == low, "vector registers hold");
    });
}

/// Holds the red zone while every disk is read and every card receives, then powers off.
pub(crate) fn run(found: &Found) -> ! {
    interrupts::disable();
    crate::console::plain(format_args!("moraine canary waits for frames"));
    let mut load = Load::new(found);
    let own = load.fire();
    traps::set_interrupt_stack(false);
    let shared = load.fire();
    traps::set_interrupt_stack(true);
    judge("devices", own, shared);
    load.drain();
    crate::console::plain(format_args!("moraine canary passed"));
    crate::console::note_ending(kernel_parts::ring::Ending::Clean);
    power::off()
}

/// Reads under way on all disks, and frames taken in.
struct Load<'a> {
    found: &'a Found,
    /// Under way: the disk's place, and the read.
    reads: Vec<(usize, IoFuture<IoDone>)>,
    /// Reads done, by disk; frames received, by card.
    done: Vec<u64>,
    frames: Vec<u64>,
    at: u64,
}

impl Load<'_> {
    fn new(found: &Found) -> Load<'_> {
        let (done, frames) = (alloc::vec![0; found.disks.len()], alloc::vec![0; found.nics.len()]);
        let mut load = Load { found, reads: Vec::new(), done, frames, at: 0 };
        for disk in (0..found.disks.len()).flat_map(|disk| [disk; DEPTH]) {
            let read = load.read(disk);
            load.reads.push((disk, read));
        }
        load
    }

    fn read(&mut self, disk: usize) -> IoFuture<IoDone> {
        let disk = &self.found.disks[disk];
        self.at = (self.at + 37) % (disk.info().size / BLOCK_SIZE as u64);
        disk.read(self.at * BLOCK_SIZE as u64, Buf::zeroed(BLOCK_SIZE).expect("there is memory"))
    }

    /// Drives the devices once: what is through begins again.
    fn turn(&mut self) {
        for service in &self.found.services {
            service.poll();
        }
        for i in 0..self.reads.len() {
            let (disk, read) = &mut self.reads[i];
            let disk = *disk;
            if let Some(result) = poll(read.as_mut()) {
                assert!(result.is_ok(), "{} is read: {result:?}", self.found.disks[disk].info().name);
                self.done[disk] += 1;
                self.reads[i].1 = self.read(disk);
            }
        }
        for (nic, frames) in self.found.nics.iter().zip(&mut self.frames) {
            while nic.receive(&mut |_, _| *frames += 1) {}
        }
        for service in &self.found.services {
            service.poll();
        }
    }

    /// Holds the red zone until every device did its part.
    fn fire(&mut self) -> Seen {
        self.done.fill(0);
        self.frames.fill(0);
        let (begin, count) = (clock::now_ns(), traps::count(apic::DEVICES));
        let mut seen = Seen::default();
        while seen.interrupts < INTERRUPTS
            || self.done.iter().any(|n| *n < READS)
            || self.frames.iter().any(|n| *n < FRAMES)
        {
            let late = clock::now_ns() - begin > PATIENCE_NS;
            assert!(!late, "devices interrupt: {seen:?}, reads {:?}, frames {:?}", self.done, self.frames);
            self.turn();
            for service in &self.found.services {
                service.arm();
            }
            seen.hold();
            seen.interrupts = traps::count(apic::DEVICES).wrapping_sub(count);
        }
        info!("canary", "{seen:?}, reads {:?}, frames {:?}", self.done, self.frames);
        seen
    }

    /// Waits for what is under way.
    fn drain(mut self) {
        while let Some((_, read)) = self.reads.last_mut() {
            match poll(read.as_mut()) {
                Some(_) => drop(self.reads.pop()),
                None => {
                    for service in &self.found.services {
                        service.poll();
                    }
                }
            }
        }
    }
}

/// The result of a read that is through.
fn poll(
    read: Pin<&mut (dyn Future<Output = IoDone> + 'static)>,
) -> Option<Result<(), moraine_platform::IoError>> {
    match read.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done.result),
        Poll::Pending => None,
    }
}
