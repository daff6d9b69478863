//! Second cores: started one by one, then they run jobs of `Offload` and sleep while there are none.

use crate::cpu::{apic, features, traps};
use crate::machine::clock;
use crate::memory::paging::{self, Access};
use crate::memory::{CORE_START_PAGE, direct};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use kernel_parts::acpi::Tables;
use moraine_boot::map::PAGE;
use moraine_platform::{info, warn};
use spin::Mutex;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::Efer;

global_asm!(include_str!("../../../boot/entry/core.S"), options(att_syntax));

/// Cores used, at most.
const CORES_MAX: usize = 64;
/// Pages of a second core's stack.
const STACK_PAGES: usize = 16;
/// Times the Startup message allows, from the processor's manual, and how long a core may take until Rust.
const AFTER_INIT_NS: u64 = 1_000_000;
const BETWEEN_STARTUPS_NS: u64 = 200_000;
const START_NS_MAX: u64 = 200_000_000;
/// Jobs that may wait; beyond that the reactor runs them itself.
const JOBS_MAX: usize = 1024;

/// A job, and what to do when it ran.
type Job = Box<dyn FnOnce() + Send>;

static JOBS: Mutex<VecDeque<Job>> = Mutex::new(VecDeque::new());
/// Second cores that run.
static RUNNING: AtomicU32 = AtomicU32::new(0);
/// Set by a core that reached Rust.
static ARRIVED: AtomicBool = AtomicBool::new(false);
/// Whether each second core sleeps, and its controller's id; by order of start.
static SLEEPING: [AtomicBool; CORES_MAX] = [const { AtomicBool::new(false) }; CORES_MAX];
static IDS: [AtomicU32; CORES_MAX] = [const { AtomicU32::new(0) }; CORES_MAX];

unsafe extern "C" {
    static core_start: u8;
    static core_tables: u8;
    static core_start_end: u8;
}

/// How many second cores run jobs.
pub(crate) fn count() -> usize {
    RUNNING.load(Ordering::Relaxed) as usize
}

/// Starts every core that the firmware reports.
pub(crate) fn start(tables: &Tables) {
    let own = apic::id();
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
    for id in others.into_iter().take(CORES_MAX) {
        let index = count();
        let stack = traps::guarded_stack(STACK_PAGES);
        // Long mode becomes active by itself once paging is on; the bit is not ours to write.
        let efer = Efer::read_raw() & !(1 << 10);
        paging::map(CORE_START_PAGE, PAGE, Access::ReadWrite);
        for (i, value) in [paging::root(), efer, stack, run as *const () as u64].into_iter().enumerate() {
            page[fields + 8 * i..][..8].copy_from_slice(&value.to_le_bytes());
        }
        paging::map(CORE_START_PAGE, PAGE, Access::Execute);
        IDS[index].store(id, Ordering::Relaxed);
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
    traps::init_core();
    apic::init_core();
    let index = count();
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
        SLEEPING[index].store(true, Ordering::SeqCst);
        if JOBS.lock().is_empty() {
            interrupts::enable_and_hlt();
        }
        interrupts::disable();
        SLEEPING[index].store(false, Ordering::SeqCst);
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
    let sleeper = (0..count()).find(|i| SLEEPING[*i].swap(false, Ordering::SeqCst));
    if let Some(index) = sleeper {
        apic::send(IDS[index].load(Ordering::Relaxed), apic::WAKE);
    }
    Ok(())
}
