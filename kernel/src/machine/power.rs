//! Power: the button, switching off, and resetting.

use crate::cpu::apic::{self, Edge};
use crate::machine::clock;
use crate::memory::paging::{self, Access};
use kernel_parts::acpi::{Power, Register, Tables};
use moraine_platform::{debug, info, warn};
use spin::Once;
use x86_64::instructions::port::Port;

const BUTTON: u16 = 1 << 8;
const CONTROL_IS_OURS: u16 = 1;
const SLEEP_ENABLE: u16 = 1 << 13;
/// Looks at the control register before we give up on firmware handing it over.
const PATIENCE: u32 = 1_000_000;

/// How long switching off may take.
const OFF_NS: u64 = 1_000_000_000;

/// QEMU's micro-VM has its generic event device's selector this far below the sleep control register, and its
/// interrupt here. Its byte code says so; we take it as given for the maker's name.
const GED_BELOW_SLEEP_CONTROL: u64 = 0x200;
const GED_INTERRUPT: u32 = 9;
const GED_BUTTON: u32 = 2;
const GED_MAKER: [u8; 6] = *b"BOCHS ";

struct State {
    power: Option<Power>,
    reset: Option<(Register, u8)>,
    /// Address of the generic event device's selector.
    events: Option<u64>,
}

static STATE: Once<State> = Once::new();

/// Takes the power registers over from the firmware and lets the button interrupt.
pub(crate) fn init(tables: &Tables) {
    let mut events = None;
    for register in
        [tables.reset.map(|(register, _)| register), sleep_control(tables.power)].into_iter().flatten()
    {
        if let Register::Memory(at) = register {
            paging::map(at, 8, Access::Device);
        }
    }
    match tables.power {
        Some(Power::Fixed { event, event_len, control, enable, interrupt, .. }) => {
            // SAFETY: ACPI names these ports as its power registers.
            unsafe {
                let mut owner = Port::<u16>::new(control);
                if owner.read() & CONTROL_IS_OURS == 0 && enable.0 != 0 {
                    Port::<u8>::new(enable.0).write(enable.1);
                    if (0..PATIENCE).all(|_| owner.read() & CONTROL_IS_OURS == 0) {
                        warn!("power", "the firmware keeps the power registers; no power button");
                    }
                }
                Port::<u16>::new(event).write(u16::MAX);
                Port::<u16>::new(event + event_len as u16 / 2).write(BUTTON);
            }
            let over = tables.overrides.iter().find(|o| o.source as u16 == interrupt);
            let (line, edge) = match over {
                Some(o) if o.flags & 3 == 3 => (o.global, Edge::Falling),
                Some(o) => (o.global, Edge::Rising),
                None => (interrupt as u32, Edge::Falling),
            };
            apic::route(line, apic::POWER, edge);
        }
        Some(Power::Reduced { sleep_control: Register::Memory(at), .. }) if tables.maker == GED_MAKER => {
            let selector = at - GED_BELOW_SLEEP_CONTROL;
            paging::map(selector, 4, Access::Device);
            events = Some(selector);
            apic::route(GED_INTERRUPT, apic::POWER, Edge::Rising);
        }
        _ => warn!("power", "no power button"),
    }
    debug!("power", "{:?}, reset by {:?}", tables.power, tables.reset);
    STATE.call_once(|| State { power: tables.power, reset: tables.reset, events });
}

fn sleep_control(power: Option<Power>) -> Option<Register> {
    match power {
        Some(Power::Reduced { sleep_control, .. }) => Some(sleep_control),
        _ => None,
    }
}

/// Whether the power button was pressed since the last call.
pub(crate) fn button_pressed() -> bool {
    let Some(state) = STATE.get() else { return false };
    if let Some(selector) = state.events {
        // SAFETY: the device's register, mapped by `init`; reading clears it.
        return unsafe { (selector as *const u32).read_volatile() } & GED_BUTTON != 0;
    }
    let Some(Power::Fixed { event, .. }) = state.power else { return false };
    // SAFETY: ACPI's event status register; writing a bit clears it.
    unsafe {
        let mut status = Port::<u16>::new(event);
        let pressed = status.read() & BUTTON != 0;
        status.write(u16::MAX);
        pressed
    }
}

/// Switches the machine off; stops it where that is not possible.
pub(crate) fn off() -> ! {
    x86_64::instructions::interrupts::disable();
    match STATE.get().and_then(|state| state.power) {
        // SAFETY: ACPI's control registers; writing them ends the machine.
        Some(Power::Fixed { control, control_b, sleep_type, .. }) => unsafe {
            let value = (sleep_type as u16 & 7) << 10 | SLEEP_ENABLE;
            Port::<u16>::new(control).write(value);
            if control_b != 0 {
                Port::<u16>::new(control_b).write(value);
            }
        },
        Some(Power::Reduced { sleep_control, sleep_type }) => {
            write_register(sleep_control, (sleep_type & 7) << 2 | 1 << 5);
        }
        None => {}
    }
    // An emulator ends a moment after the write.
    clock::pause_ns(OFF_NS);
    info!("power", "it is now safe to switch the machine off");
    crate::cpu::stop()
}

/// Resets the machine, by each of the ways there are.
pub(crate) fn reset() -> ! {
    if let Some((register, value)) = STATE.get().and_then(|state| state.reset) {
        write_register(register, value);
    }
    // SAFETY: the chip set's reset register, then the keyboard controller's reset line; both end the machine.
    unsafe {
        Port::<u8>::new(0xcf9).write(0x06);
        Port::<u8>::new(0x64).write(0xfe);
    }
    reset_processor()
}

/// Resets by the processor alone: an exception without a table to find its handler in is a triple fault.
pub(crate) fn reset_processor() -> ! {
    let nothing = x86_64::structures::DescriptorTablePointer { limit: 0, base: x86_64::VirtAddr::zero() };
    // SAFETY: nothing is to run any more.
    unsafe {
        x86_64::instructions::tables::lidt(&nothing);
        core::arch::asm!("int3");
    }
    crate::cpu::stop()
}

fn write_register(register: Register, value: u8) {
    // SAFETY: ACPI names the register for this purpose; memory registers were mapped by `init`.
    unsafe {
        match register {
            Register::Port(port) => Port::<u8>::new(port).write(value),
            Register::Memory(at) => (at as *mut u8).write_volatile(value),
        }
    }
}
