//! What only a running machine can show: the boot word `selftest` runs this, prints a line a test and powers off.
//! `tests/boot` reads the lines.

use crate::cpu::{apic, cores, features, traps};
use crate::machine::{clock, power};
use crate::memory::{self, heap, paging};
use crate::reactor::Reactor;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::arch::asm;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use moraine_platform::{Buf, info};
use x86_64::instructions::interrupts;

/// How long the red-zone canary is kept under fire, and the gap between interrupts.
const CANARY_NS: u64 = 300_000_000;
const CANARY_GAP_NS: u64 = 10_000;
/// Interrupts it must see to mean anything.
const CANARY_INTERRUPTS: u32 = 200;

/// Runs all tests and powers off; the first failure panics.
pub(crate) fn run() -> ! {
    let tests: [(&str, fn()); 8] = [
        ("memory copies", copies),
        ("heap", heap_works),
        ("memory budget", buffers_run_out_first),
        ("page rights", page_rights),
        ("clock", clock_runs),
        ("red zone under interrupts", red_zone),
        ("vector registers under interrupts", vector_registers),
        ("reactor", reactor),
    ];
    for (name, test) in tests {
        test();
        info!("selftest", "{name}: ok");
    }
    crate::console::plain(format_args!("moraine selftest passed, {} tests", tests.len()));
    crate::console::note_ending(kernel_parts::ring::Ending::Clean);
    power::off()
}

/// Large buffers are refused while small things still find memory, and are to be had again afterwards.
fn buffers_run_out_first() {
    const LARGE: usize = 1 << 20;
    let budget = memory::budget::Budget::new(None);
    let mut held = Vec::with_capacity(heap::usage().free / LARGE);
    while held.len() < held.capacity()
        && let Ok(buf) = Buf::zeroed(LARGE)
    {
        held.push(buf);
    }
    let left = budget.memory.reserve as usize / 8;
    assert!(heap::usage().free >= left, "a part of the reserve is closed to buffers");
    let apart = heap::usage().total / 8 + (2 << 20);
    assert!(heap::usage().free < apart.max(4 * left), "the rest is not");
    let small: Vec<_> = (0..left / 4096).map(|_| alloc::vec![0_u8; 2048]).collect();
    assert!(Buf::zeroed(LARGE).is_err());
    drop((held, small));
    assert!(Buf::zeroed(LARGE).is_ok());
}

/// Reads where nothing is, to see the report.
pub(crate) fn fault() -> ! {
    // SAFETY: none: address 16 is never mapped, and that is the point; the exception does not return.
    let value = unsafe { (16 as *const u64).read_volatile() };
    panic!("read {value} where nothing is mapped")
}

/// `mem*` against byte loops, both ways of copying, all small lengths, offsets and overlaps.
fn copies() {
    let pattern: Vec<u8> = (0..6000_u32).map(|i| (i * 7 + i / 251) as u8).collect();
    for by_string in [false, true] {
        memory::copy::choose(features::get(), Some(by_string));
        for len in (0..200).chain([1023, 1024, 1025, 2048, 4096, 4099]) {
            for (from, to) in [(0, 1), (3, 0), (8, 64), (100, 101), (101, 100), (500, 517), (517, 500)] {
                let mut moved = pattern.clone();
                moved.copy_within(from..from + len, to);
                let right = |i: usize| {
                    if (to..to + len).contains(&i) { pattern[i - to + from] } else { pattern[i] }
                };
                assert!(
                    (0..moved.len()).all(|i| moved[i] == right(i)),
                    "memmove {from} -> {to}, {len} bytes"
                );
                let mut set = pattern.clone();
                set[to..to + len].fill(0x5a);
                let right = |i: usize| if (to..to + len).contains(&i) { 0x5a } else { pattern[i] };
                assert!((0..set.len()).all(|i| set[i] == right(i)), "memset {to}, {len} bytes");
                let copy = pattern[from..from + len].to_vec();
                assert!((0..len).all(|i| copy[i] == pattern[from + i]), "memcpy {from}, {len} bytes");
                assert!(copy == pattern[from..from + len], "memcmp {from}, {len} bytes");
                if len > 0 {
                    let mut other = copy.clone();
                    other[len - 1] = other[len - 1].wrapping_add(1);
                    assert!(
                        other != copy && (other > copy) == (other[len - 1] > copy[len - 1]),
                        "memcmp {len} bytes"
                    );
                }
            }
        }
    }
    memory::copy::choose(features::get(), None);
}

/// Buffers are aligned and where devices see them; running out is an answer; everything comes back.
fn heap_works() {
    let before = heap::usage().free;
    let bufs: Vec<Buf> = (1..100).map(|i| Buf::zeroed(i * 1000).expect("there is memory")).collect();
    assert!(bufs.iter().all(|buf| (buf.as_ptr() as usize).is_multiple_of(4096)), "buffers begin on pages");
    drop(bufs);
    assert!(Buf::zeroed(1 << 46).is_err(), "too much is refused");
    let mut hoard = Vec::new();
    // Firmware may leave memory in pieces, so smaller and smaller ones.
    for size in [1 << 20, 64 << 10, 4 << 10] {
        while hoard.try_reserve(1).is_ok()
            && let Ok(buf) = Buf::zeroed(size)
        {
            hoard.push(buf);
        }
    }
    // An eighth stays for those who cannot do without (`parts/pages.rs`).
    let left = heap::usage();
    assert!(left.free < left.total / 8 + (2 << 20), "all other memory can be had: {left:?}");
    info!("selftest", "{} pieces take all memory but {} MiB", hoard.len(), left.free >> 20);
    drop(hoard);
    assert!(before - heap::usage().free < 1 << 20, "and comes back");
}

/// No page may be written and executed; nothing is at address 0; code cannot be written.
fn page_rights() {
    assert!(!paging::is_mapped(0), "address 0 is not mapped");
    let image = memory::image();
    let (read, write, execute) = paging::rights(image.start);
    assert!(read && !write && execute, "code can be executed, not written");
    let on_stack = 0_u8;
    let in_heap = alloc::boxed::Box::new(0_u8);
    for address in [&raw const on_stack as u64, &raw const *in_heap as u64, image.end - 1] {
        let (read, write, execute) = paging::rights(address);
        assert!(read && write && !execute, "data can be written, not executed ({address:#x})");
    }
    let both = paging::count_writable_code();
    assert!(both == 0, "{both} pages can be both written and executed");
}

/// Time goes on, at about the rate of the timer interrupt, and the date is later than this program.
fn clock_runs() {
    let begin = clock::now_ns();
    let count = traps::count(apic::TIMER);
    interrupts::enable();
    apic::set_timer(clock::timer_ticks(20_000_000));
    while traps::count(apic::TIMER) == count && clock::now_ns() - begin < 2_000_000_000 {
        core::hint::spin_loop();
    }
    interrupts::disable();
    let took = clock::now_ns() - begin;
    assert!((15_000_000..500_000_000).contains(&took), "20 ms took {took} ns");
    assert!(clock::wall_ns() > 1_735_689_600_000_000_000, "it is 2025 or later");
}

/// Interrupts fire all the time while `body` runs for a while; how many there were.
fn under_fire(mut body: impl FnMut()) -> u32 {
    let ticks = clock::timer_ticks(CANARY_GAP_NS);
    apic::set_periodic(true);
    apic::set_timer(ticks);
    let (begin, count) = (clock::now_ns(), traps::count(apic::TIMER));
    interrupts::enable();
    // An emulator on a busy host may deliver few a second: then go on until there were enough.
    let enough = || traps::count(apic::TIMER).wrapping_sub(count) >= CANARY_INTERRUPTS;
    while clock::now_ns() - begin < CANARY_NS || !enough() {
        body();
        assert!(clock::now_ns() - begin < 20_000_000_000, "interrupts come");
    }
    interrupts::disable();
    apic::set_timer(0);
    apic::set_periodic(false);
    traps::count(apic::TIMER).wrapping_sub(count)
}

/// The 128 bytes below the stack pointer belong to whoever runs: no interrupt may touch them.
fn red_zone() {
    let count = under_fire(|| {
        let broken: u64;
        // SAFETY: writes and reads the red zone only, which is this function's while it makes no calls.
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
                "3: dec rcx",
                "jnz 3b",
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
        assert!(broken == 0, "an interrupt wrote into the red zone");
    });
    info!("selftest", "red zone intact after {count} interrupts");
}

/// Interrupts leave vector registers alone.
fn vector_registers() {
    under_fire(|| {
        let (low, high): (u64, u64);
        // SAFETY: uses two registers, declared as changed.
        unsafe {
            asm!(
                "movq xmm0, {value}",
                "movq xmm15, {value}",
                "mov ecx, 20000",
                "2: dec rcx",
                "jnz 2b",
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

/// Tasks, timers and offloaded jobs.
fn reactor() {
    let reactor = Reactor::new(Vec::new(), false);
    let platform = reactor.platform();
    let ran = Rc::new(Cell::new(0));
    let jobs = Arc::new(AtomicU32::new(0));
    let (count, counted) = (ran.clone(), jobs.clone());
    let took = reactor.run(
        async move {
            let begin = platform.clock.now();
            for i in 0..100_u64 {
                let (count, clock) = (count.clone(), platform.clock.clone());
                let task = async move {
                    clock.sleep(Duration::from_micros(i % 7 * 500)).await;
                    count.set(count.get() + 1);
                };
                platform.spawn.spawn("selftest", alloc::boxed::Box::pin(task));
            }
            for _ in 0..200 {
                let counted = counted.clone();
                let job = move || {
                    counted.fetch_add(1, Ordering::Relaxed);
                };
                platform.offload.run(alloc::boxed::Box::new(job)).await;
            }
            platform.clock.sleep(Duration::from_millis(50)).await;
            let (a, b) = (platform.rng.next_u64(), platform.rng.next_u64());
            assert!(a != b && a != 0, "random numbers differ");
            platform.clock.now().since(begin)
        },
        || {},
    );
    assert!(ran.get() == 100, "all tasks ran");
    assert!(jobs.load(Ordering::Relaxed) == 200, "all jobs ran");
    assert!(took >= Duration::from_millis(50), "a sleep lasts");
    info!("selftest", "100 tasks, 200 jobs on {} second cores", cores::count());
}
