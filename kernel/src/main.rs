//! The kernel: from the boot loader's hand-over to the appliance, on a bare machine.
//!
//! | folder | idea |
//! |---|---|
//! | `entry.rs`, `uefi.rs` | the ways in: each fills a [`entry::BootInfo`] and ends in [`start`] |
//! | `memory/` | `copy` (mem* routines), `paging` (who may do what with which page), `heap` |
//! | `cpu/` | `features`, `traps` (GDT, IDT, IST stacks), `apic`, `cores` (second cores) |
//! | `machine/` | `acpi`, `pci`, `power`, `clock` (TSC, RTC), `serial` |
//! | `console.rs` | log lines to the serial port and to the ring that outlives a reset |
//! | `hal.rs` | the machine as drivers see it |
//! | `random.rs` | random numbers |
//! | `reactor.rs` | one core's tasks, timers and interrupts; sleeps when idle; implements `platform` |
//! | `serve.rs` | the appliance on this machine: network, pool, exports |
//! | `selftest.rs`, `canary.rs`, `diskbench.rs` | what only a running machine can show: that it works, that interrupts harm nobody, how fast disks are |
//! | `panic.rs`, `mishaps.rs` | says where and why, keeps the log, reboots; ways to fail on purpose |
#![no_std]
#![no_main]

extern crate alloc;

mod canary;
mod console;
mod cpu;
mod diskbench;
mod entry;
mod hal;
mod machine;
mod memory;
mod mishaps;
mod panic;
mod random;
mod reactor;
mod selftest;
mod serve;
mod uefi;

use alloc::rc::Rc;
use alloc::vec::Vec;
use cpu::apic;
use entry::BootInfo;
use kernel_parts::acpi::Tables;
use kernel_parts::words::{Mode, Window, Words};
use memory::budget::Budget;
use moraine_appliance::{Config, OnPanic, Stop, choose_routines};
use moraine_drivers::{Found, Hal, MmioWindow};
use moraine_platform::{error, info, warn};
use reactor::Reactor;

/// Brings the machine up and runs the appliance. Every boot path ends here, on a stack of the kernel's own, with the
/// image, the stack and free memory mapped one to one by somebody else's page tables.
fn start(boot: BootInfo) -> ! {
    memory::heap::init_early();
    console::init();
    let words = Words::parse(&boot.command_line);
    let (config, complaints) = Config::parse(&words.others);
    moraine_platform::log::set_level(config.log);
    panic::set_halt(config.on_panic == OnPanic::Halt);
    info!("kernel", "Moraine {} booting by {}", env!("CARGO_PKG_VERSION"), boot.path);
    let cpu = cpu::features::init_first();
    memory::copy::choose(cpu, words.copy_by_string);
    memory::init(&boot);
    cpu::traps::init_core(0);
    let tables = machine::acpi::init(boot.rsdp);
    apic::init(&tables);
    machine::clock::init(&tables);
    console::report_previous();
    machine::power::init(&tables);
    cpu::cores::start(&tables);
    for word in &words.wrong {
        error!("kernel", "boot word {word:?} has a value that is not known; it is ignored");
    }
    for complaint in &complaints {
        warn!("kernel", "{complaint}");
    }
    match words.mode {
        Mode::SelfTest => selftest::run(),
        Mode::Mishap(mishap) => mishaps::run(mishap),
        Mode::Appliance | Mode::Canary | Mode::Disks | Mode::Memory => {}
    }
    let found = find_devices(&boot, &words, &tables);
    match words.mode {
        Mode::Canary => canary::run(&found),
        Mode::Disks => diskbench::run(found.disks, found.services),
        _ => {}
    }
    run_appliance(found, config, words.mode)
}

/// Finds and brings up disks and network cards.
fn find_devices(boot: &BootInfo, words: &Words, tables: &Tables) -> Found {
    let functions = machine::pci::functions(tables, &boot.ram);
    let mut windows = Vec::new();
    // The command line's, and those of the firmware's that it does not name.
    let told = |w: &&Window| !words.windows.iter().any(|other| other.address == w.address);
    for window in words.windows.iter().chain(tables.windows.iter().filter(told)) {
        apic::route(window.interrupt, apic::DEVICES, apic::Edge::Rising);
        windows.push(MmioWindow { address: window.address, len: window.len });
    }
    let hal: Rc<dyn Hal> = Rc::new(hal::Machine { ram: boot.ram.clone() });
    let found = moraine_drivers::probe(hal, &functions, &windows);
    for failure in &found.failures {
        error!("drivers", "{failure}");
    }
    for disk in &found.disks {
        let d = disk.info();
        info!("drivers", "disk {}: {} MiB, {}", d.name, d.size >> 20, d.identity);
    }
    found
}

/// Serves until the power button, then switches off.
fn run_appliance(found: Found, config: Config, mode: Mode) -> ! {
    let budget = Budget::new(config.budget);
    let services = found.services;
    let reactor = Reactor::new(services.clone(), false);
    let platform = reactor.platform();
    choose_routines(config.accel.as_deref(), &*platform.clock);
    let stop = Stop::new();
    let asked = stop.clone();
    let (disks, nics) = (found.disks, found.nics);
    let main = async move {
        let stack = serve::start_network(&platform, nics, &config, &budget);
        if let (Mode::Memory, Some(stack)) = (mode, &stack) {
            warn!("kernel", "selftest=memory: serving from memory, everything is lost at the end");
            let model = moraine_model::Model::new(platform.clock.clone(), platform.rng.clone());
            let model = Rc::new(model);
            serve::serve(&platform, model, stack.clone(), &budget, &config, &stop, Vec::new).await;
            return;
        }
        serve::pool(&platform, &disks, stack, &config, &budget, &stop).await;
    };
    reactor.run(main, move || {
        info!("kernel", "power button: shutting down");
        asked.ask();
    });
    services.iter().for_each(|service| service.shut_down());
    console::plain(format_args!("moraine stopped"));
    console::note_ending(kernel_parts::ring::Ending::Clean);
    machine::power::off()
}
