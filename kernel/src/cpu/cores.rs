//! Second cores: started one by one, then they run jobs of `Offload` and sleep while there are none. A core's number is 0
//! for the first and counts up in the order of start.

use crate::cpu::{apic, features, traps};
use crate::machine::clock;
use crate::memory::paging::{self, Access};
use crate::memory::{CORE_START_PAGE, direct};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel_parts::acpi::Tables;
use kernel_parts::guards::{Kind, Stack};
use moraine_boot::map::PAGE;
use moraine_platform::{info, warn};
use spin::Mutex;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::Efer;

global_asm!(include_str!("../../../boot/entry/core.S"), options(att_syntax));

/// Cores used, at most, the first among them.
pub(crate) const CORES_MAX: usize = 65;
const _: () = assert!(CORES_MAX <= kernel_parts::guards::CORES_MAX);
/// Pages of a second core's stack.
const STACK_PAGES: usize = 16;
/// Times the Startup message allows, from the processor's manual, and how long a core may take until Rust.
const AFTER_INIT_NS: u64 = 1_000_000;
const BETWEEN_STARTUPS_NS: u64 = 200_000;
const START_NS_MAX: u64 = 200_000_000;
/// How long a core may take to stop when another one panics: an emulated one may have to wait for its turn.
const STOP_CYCLES_MAX: u64 = 4_000_000_000;
/// Jobs that may wait; beyond that the reactor runs them itself.
const JOBS_MAX: usize = 1024;

/// A job, and what to do when it ran.
type Job = Box<dyn FnOnce() + Send>;

static JOBS: Mutex<VecDeque<Job>> = Mutex::new(VecDeque::new());
/// Second cores that run.
static RUNNING: AtomicU32 = AtomicU32::new(0);
/// Set by a core that reached Rust.
static ARRIVED: AtomicBool = AtomicBool::new(false);
/// By number: whether the core sleeps, and its controller's id.
static SLEEPING: [AtomicBool; CORES_MAX] = [const { AtomicBool::new(false) }; CORES_MAX];
static IDS: [AtomicU32; CORES_MAX] = [const { AtomicU32::new(0) }; CORES_MAX];
/// By number: whether the core stopped because another one panicked, and where it was.
static STOPPED: [AtomicBool; CORES_MAX] = [const { AtomicBool::new(false) }; CORES_MAX];
static STOPPED_AT: [AtomicU64; CORES_MAX] = [const { AtomicU64::new(0) }; CORES_MAX];

unsafe extern "C" {
    static core_start: u8;
    static core_tables: u8;
    static core_start_end: u8;
}

/// How many second cores run jobs.
pub(crate) fn count() -> usize {
    RUNNING.load(Ordering::Relaxed) as usize
}

/// This core's number.
pub(crate) fn number() -> usize {
    let id = super::id();
    // One more than there are: the core that is just starting.
    (0..=count()).take(CORES_MAX).find(|n| IDS[*n].load(Ordering::Relaxed) == id).unwrap_or(0)
}

/// Starts every core that the firmware reports.
pub(crate) fn start(tables: &Tables) {
    let own = apic::id();
    IDS[0].store(own, Ordering::Relaxed);
    let others: alloc::vec::Vec<u32> = tables.cores.iter().copied().filter(|id| *id != own).collect();
    if others.is_empty() {
        return;
    }
    JOBS.lock().reserve(JOBS_MAX);
    // SAFETY: the symbols delimit the start code; its page is RAM below 1 MiB that nobody else uses, and is mapped.
    let (code, fields, page) = unsafe {
        let start = &raw const core_start as u64;
        let len = &raw const core_start_end as u64 - start;
        paging::map(CORE_START_PAGE, PAGE, Access::ReadWrite);
        let fields = (&raw const core_tables as u64 - start) as usize;
        (direct::bytes(start, len as usize), fields, direct::bytes_mut(CORE_START_PAGE, PAGE as usize))
    };
    page[..code.len()].copy_from_slice(code);
    if others.len() >= CORES_MAX {
        warn!("cores", "{} cores; {CORES_MAX} are used", others.len() + 1);
    }
    for id in others.into_iter().take(CORES_MAX - 1) {
        let number = count() + 1;
        let stack = traps::guarded_stack(STACK_PAGES, Stack { core: number, kind: Kind::Own });
        // Long mode becomes active by itself once paging is on; the bit is not ours to write.
        let efer = Efer::read_raw() & !(1 << 10);
        paging::map(CORE_START_PAGE, PAGE, Access::ReadWrite);
        for (i, value) in [paging::root(), efer, stack, run as *const () as u64].into_iter().enumerate() {
            page[fields + 8 * i..][..8].copy_from_slice(&value.to_le_bytes());
        }
        paging::map(CORE_START_PAGE, PAGE, Access::Execute);
        IDS[number].store(id, Ordering::Relaxed);
        ARRIVED.store(false, Ordering::Release);
        apic::send_init(id);
        clock::pause_ns(AFTER_INIT_NS);
        apic::send_startup(id, CORE_START_PAGE);
        clock::pause_ns(BETWEEN_STARTUPS_NS);
        if !ARRIVED.load(Ordering::Acquire) {
            apic::send_startup(id, CORE_START_PAGE);
        }
        let end = clock::now_ns() + START_NS_MAX;
        while !ARRIVED.load(Ordering::Acquire) && clock::now_ns() < end {
            core::hint::spin_loop();
        }
        if !ARRIVED.load(Ordering::Acquire) {
            warn!("cores", "core {id} did not start");
            // It may yet wake up in the start page, so that page must stay as it is: no more cores.
            return;
        }
        RUNNING.fetch_add(1, Ordering::AcqRel);
    }
    paging::unmap(CORE_START_PAGE, PAGE);
    info!("cores", "{} second cores run offloaded work", count());
}

/// A second core's life. Called by `core.S`.
extern "C" fn run() -> ! {
    features::enable_extensions();
    let number = count() + 1;
    traps::init_core(number);
    apic::init_core();
    ARRIVED.store(true, Ordering::Release);
    loop {
        let job = JOBS.lock().pop_front();
        if let Some(job) = job {
            job();
            continue;
        }
        // A job queued after the look above finds this core marked as sleeping and sends it an interrupt, which with
        // interrupts off waits for the `sti; hlt`.
        interrupts::disable();
        SLEEPING[number].store(true, Ordering::SeqCst);
        if JOBS.lock().is_empty() {
            interrupts::enable_and_hlt();
        }
        interrupts::disable();
        SLEEPING[number].store(false, Ordering::SeqCst);
    }
}

/// Queues a job for any second core; gives it back if there are none or the queue is full.
pub(crate) fn submit(job: Job) -> Result<(), Job> {
    {
        let mut jobs = JOBS.lock();
        if count() == 0 || jobs.len() >= JOBS_MAX {
            return Err(job);
        }
        jobs.push_back(job);
    }
    let sleeper = (1..=count()).find(|n| SLEEPING[*n].swap(false, Ordering::SeqCst));
    if let Some(number) = sleeper {
        apic::send(IDS[number].load(Ordering::Relaxed), apic::WAKE);
    }
    Ok(())
}

/// Stops all other cores, because this one panics: what they would log is not the reason, and what they would do may rest
/// on what is broken. Waits for them, but not for ever.
pub(crate) fn stop_others() {
    let own = number();
    let others = || (0..=count()).filter(|n| *n != own);
    for other in others() {
        apic::send_nmi(IDS[other].load(Ordering::Relaxed));
    }
    let begin = super::cycles();
    while !others().all(|n| STOPPED[n].load(Ordering::Acquire))
        && super::cycles().wrapping_sub(begin) < STOP_CYCLES_MAX
    {
        core::hint::spin_loop();
    }
}

/// Ends this core, which was at `rip` (0: not known), because another one panics.
pub(crate) fn stop_for_panic(rip: u64) -> ! {
    let own = number();
    // It may come here twice: by a panic of its own, out of which the other core's message takes it.
    if !STOPPED[own].load(Ordering::Relaxed) {
        STOPPED_AT[own].store(rip, Ordering::Relaxed);
        STOPPED[own].store(true, Ordering::Release);
    }
    super::stop()
}

/// The other cores' numbers, and where each was stopped; none for one that did not stop.
pub(crate) fn stopped() -> impl Iterator<Item = (usize, Option<u64>)> {
    let own = number();
    (0..=count()).filter(move |n| *n != own).map(|n| {
        let at = STOPPED_AT[n].load(Ordering::Relaxed);
        (n, STOPPED[n].load(Ordering::Acquire).then_some(at))
    })
}
