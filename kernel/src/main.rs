//! The kernel: from the boot loader's hand-over to the appliance, on a bare machine.
//!
//! | folder | idea |
//! |---|---|
//! | `entry.rs`, `uefi.rs` | the ways in: each fills a [`entry::BootInfo`] and ends in [`start`] |
//! | `memory/` | `copy` (mem* routines), `paging` (who may do what with which page), `heap` |
//! | `cpu/` | `features`, `traps` (GDT, IDT, IST stacks), `apic`, `cores` (second cores) |
//! | `machine/` | `acpi`, `pci`, `power`, `clock` (TSC, RTC), `serial` |
//! | `console.rs` | log lines to the serial port and to the ring that outlives a reset |
//! | `reactor.rs` | one core's tasks, timers and interrupts; sleeps when idle; implements `platform` |
//! | `selftest.rs` | what only a running machine can show |
//! | `panic.rs` | says where and why, keeps the log, reboots |
#![no_std]
#![no_main]

extern crate alloc;

mod console;
mod cpu;
mod entry;
mod machine;
mod memory;
mod panic;
mod selftest;
mod uefi;

use entry::BootInfo;
use kernel_parts::words::{Mode, Words};
use moraine_platform::{error, info, warn};

/// Brings the machine up and runs the appliance. Every boot path ends here, on a stack of the kernel's own, with the
/// first 4 GiB (at least) mapped one to one.
fn start(boot: BootInfo) -> ! {
    memory::heap::init_early();
    console::init();
    let words = Words::parse(&boot.command_line);
    moraine_platform::log::set_level(words.level);
    panic::set_policy(words.panic);
    info!("kernel", "Moraine {} booting by {}", env!("CARGO_PKG_VERSION"), boot.path);
    let cpu = cpu::features::init_first();
    memory::copy::choose(cpu, words.copy_by_string);
    memory::init(&boot);
    cpu::traps::init_first();
    let tables = machine::acpi::init(boot.rsdp);
    cpu::apic::init(&tables);
    machine::clock::init(&tables);
    console::report_previous();
    machine::power::init(&tables);
    machine::pci::init(&tables);
    cpu::cores::start(&tables);
    for word in &words.wrong {
        error!("kernel", "boot word {word:?} has a value that is not known; it is ignored");
    }
    match words.mode {
        Mode::SelfTest => selftest::run(),
        Mode::Panic => panic!("asked for by the boot word selftest=panic"),
        Mode::Appliance => {}
    }
    for word in &words.others {
        warn!("kernel", "boot word {word:?} is not known");
    }
    loop {
        x86_64::instructions::interrupts::enable_and_hlt();
    }
}
