//! What only a running machine can show: the boot word `selftest` runs this, prints a line a test and powers off.
//! `tests/boot` reads the lines.

use crate::canary;
use crate::cpu::{self, apic, cores, features, traps};
use crate::machine::{clock, power};
use crate::memory::{self, heap, paging};
use crate::reactor::Reactor;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use moraine_platform::{Buf, info};
use x86_64::instructions::interrupts;

/// Runs all tests and powers off; the first failure panics.
pub(crate) fn run() -> ! {
    let tests: [(&str, fn()); 10] = [
        ("memory copies", copies),
        ("heap", heap_works),
        ("memory budget", buffers_run_out_first),
        ("page rights", page_rights),
        ("clock", clock_runs),
        ("features are remembered", features_are_remembered),
        ("red zone under interrupts", canary::red_zone),
        ("vector registers under interrupts", canary::vector_registers),
        ("spurious interrupts", spurious_interrupts),
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

/// What the processor can do is asked once: under a hypervisor each CPUID is a way out of the guest, and drivers ask before
/// every notification.
fn features_are_remembered() {
    /// Questions of one try.
    const ROUND: usize = 100;
    /// The least cycles of a few tries: an emulator may pause in any of them.
    fn least(mut body: impl FnMut()) -> u64 {
        let mut round = || {
            let begin = cpu::cycles();
            (0..ROUND).for_each(|_| body());
            cpu::cycles() - begin
        };
        (0..100).map(|_| round()).min().expect("there are tries")
    }
    let asked = least(|| {
        // As many as it takes to find out.
        for leaf in 0..6 {
            core::hint::black_box(core::arch::x86_64::__cpuid(leaf));
        }
    });
    let remembered = least(|| {
        core::hint::black_box(features::get());
    });
    assert!(2 * remembered < asked, "{remembered} cycles to look {ROUND} times, {asked} to ask");
}

/// Interrupts that nobody asked for are counted and passed over, and others still come.
fn spurious_interrupts() {
    let own = apic::id();
    let odd = || (0x22..=0xfe_u8).filter(|vector| *vector != apic::DEVICES);
    let before: Vec<u32> = odd().map(traps::count).collect();
    interrupts::enable();
    odd().for_each(|vector| apic::send(own, vector));
    let begin = clock::now_ns();
    let all = || odd().zip(&before).all(|(vector, before)| traps::count(vector) == before.wrapping_add(1));
    while !all() && clock::now_ns() - begin < 2_000_000_000 {
        core::hint::spin_loop();
    }
    // The controller's own vector for interrupts that went away: nothing is to be acknowledged.
    for _ in 0..10 {
        // SAFETY: the handler returns at once, on a stack of its own.
        unsafe { core::arch::asm!("int 0xff") };
    }
    interrupts::disable();
    assert!(all(), "each came once");
    clock_runs();
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
