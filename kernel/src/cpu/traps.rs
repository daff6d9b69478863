//! Exceptions and interrupts: descriptor tables, a stack for each kind, and what an exception reports.
//!
//! `core` and `alloc` are compiled with a red zone (128 bytes below the stack pointer that leaf functions use without
//! saying so), so every handler runs on a stack of its own: interrupts on IST 1, exceptions on IST 2, and those that
//! may strike inside another handler (NMI, double fault, machine check) on IST 3.

use crate::cpu::cores;
use crate::memory::{self, paging};
use alloc::boxed::Box;
use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kernel_parts::guards::{Guards, Kind, Stack};
use moraine_boot::map::PAGE;
use moraine_platform::warn;
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::port::Port;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

global_asm!(include_str!("traps.S"), options(att_syntax));

/// Stacks of the interrupt stack table, as indices into it.
const INTERRUPT_STACK: u16 = 0;
const EXCEPTION_STACK: u16 = 1;
const EMERGENCY_STACK: u16 = 2;
const STACKS: [(u16, Kind); 3] = [
    (INTERRUPT_STACK, Kind::Interrupts),
    (EXCEPTION_STACK, Kind::Exceptions),
    (EMERGENCY_STACK, Kind::Emergencies),
];
/// Pages of each such stack; one more below is a guard page.
const STACK_PAGES: usize = 4;

/// First vector of interrupts; those below are exceptions.
const FIRST_INTERRUPT: u8 = 32;
/// Exceptions that may strike inside another handler.
const EMERGENCIES: [u8; 3] = [NMI, 8, 18];
const NMI: u8 = 2;
const PAGE_FAULT: u64 = 14;

/// Where chip sets say why there is an NMI, and the bits that blame the machine.
const NMI_REASON_PORT: u16 = 0x61;
const NMI_MEMORY: u8 = 1 << 7;
const NMI_BUS: u8 = 1 << 6;

/// The guard page of every stack of every core.
static GUARDS: Guards<{ cores::CORES_MAX * (STACKS.len() + 1) }> = Guards::new();

/// How often each vector fired. Written by `traps.S`.
#[unsafe(no_mangle)]
static IRQ_COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
/// Address of the local controller's end-of-interrupt register; 0 means x2APIC. Read by `traps.S`.
#[unsafe(no_mangle)]
static APIC_EOI: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static irq_entries: u8;
    static exception_entries: u8;
}

/// Registers at an exception, as `traps.S` and the processor push them.
#[repr(C)]
struct Frame {
    registers: [u64; 15],
    vector: u64,
    code: u64,
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
}

const REGISTERS: [&str; 15] =
    ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8 ", "r9 ", "r10", "r11", "r12", "r13", "r14", "r15"];

const NAMES: [&str; 22] = [
    "division by zero",
    "debug",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range",
    "invalid instruction",
    "no floating point",
    "double fault",
    "coprocessor overrun",
    "invalid TSS",
    "segment not present",
    "stack fault",
    "general protection",
    "page fault",
    "reserved",
    "floating point",
    "alignment",
    "machine check",
    "SIMD floating point",
    "virtualisation",
    "control protection",
];

static IDT: Once<InterruptDescriptorTable> = Once::new();
/// The same, but interrupts run on the stack they strike on: what must not be, for the tests that show why.
static IDT_WITHOUT_STACK: Once<InterruptDescriptorTable> = Once::new();

/// Sets up the tables of this core, whose number is `core`: its own GDT, TSS and stacks, the common IDT.
pub(crate) fn init_core(core: usize) {
    let tss = Box::leak(Box::new(TaskStateSegment::new()));
    for (index, kind) in STACKS {
        let top = guarded_stack(STACK_PAGES, Stack { core, kind });
        tss.interrupt_stack_table[index as usize] = VirtAddr::new(top);
    }
    let gdt = Box::leak(Box::new(GlobalDescriptorTable::new()));
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    gdt.load();
    // SAFETY: the selectors belong to the table just loaded, which lives for ever.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(task);
    }
    // Made only now: its entries name the code segment in force.
    IDT.call_once(|| idt(true)).load();
}

/// Lets interrupts of this core run on the stack they strike on, for the self-tests, or on their own again.
pub(crate) fn set_interrupt_stack(own: bool) {
    match own {
        true => IDT.call_once(|| idt(true)).load(),
        false => IDT_WITHOUT_STACK.call_once(|| idt(false)).load(),
    }
}

/// Makes the page at `page` the guard of `stack`: who overflows it faults, and the report names it.
pub(crate) fn guard(page: u64, stack: Stack) {
    paging::unmap(page, PAGE);
    if !GUARDS.add(page, stack) {
        warn!("traps", "no room to note the guard page of {stack}");
    }
}

/// The lowest address of a core's stack that may be used.
pub(crate) fn bottom_of(stack: Stack) -> Option<u64> {
    GUARDS.page_of(stack).map(|guard| guard + PAGE)
}

/// A new stack for that purpose with a guard page below it; its top. It lives for ever.
pub(crate) fn guarded_stack(pages: usize, stack: Stack) -> u64 {
    #[derive(Clone)]
    #[repr(align(4096))]
    struct Page([u8; PAGE as usize]);
    let memory = Box::leak(alloc::vec![Page([0; PAGE as usize]); pages + 1].into_boxed_slice());
    let bottom = (&raw const memory[0].0) as u64;
    guard(bottom, stack);
    bottom + (pages as u64 + 1) * PAGE
}

/// Sets where interrupts are acknowledged; 0 for x2APIC.
pub(crate) fn set_acknowledge(register: u64) {
    APIC_EOI.store(register, Ordering::Relaxed);
}

/// How often `vector` fired so far (wraps).
pub(crate) fn count(vector: u8) -> u32 {
    IRQ_COUNTS[vector as usize].load(Ordering::Acquire)
}

fn idt(interrupt_stack: bool) -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    // Entries are 16 bytes apart.
    let (exceptions, interrupts) = (&raw const exception_entries as u64, &raw const irq_entries as u64);
    let exception = |vector: u8| VirtAddr::new(exceptions + 16 * vector as u64);
    let stack = |vector: u8| if EMERGENCIES.contains(&vector) { EMERGENCY_STACK } else { EXCEPTION_STACK };
    macro_rules! set {
        ($($vector:literal $field:ident),*) => { $(
            // SAFETY: the entry fits the vector, and its stack exists on every core before the table is loaded.
            unsafe { idt.$field.set_handler_addr(exception($vector)).set_stack_index(stack($vector)); }
        )* };
    }
    set!(0 divide_error, 1 debug, 2 non_maskable_interrupt, 3 breakpoint, 4 overflow, 5 bound_range_exceeded,
        6 invalid_opcode, 7 device_not_available, 8 double_fault, 10 invalid_tss, 11 segment_not_present,
        12 stack_segment_fault, 13 general_protection_fault, 14 page_fault, 16 x87_floating_point, 17 alignment_check,
        18 machine_check, 19 simd_floating_point, 20 virtualization, 21 cp_protection_exception);
    for vector in FIRST_INTERRUPT..=255 {
        let entry = VirtAddr::new(interrupts + 16 * (vector - FIRST_INTERRUPT) as u64);
        // SAFETY: as above.
        unsafe {
            let options = idt[vector].set_handler_addr(entry);
            if interrupt_stack {
                options.set_stack_index(INTERRUPT_STACK);
            }
        }
    }
    idt
}

/// Reports an exception and ends in the panic policy. Called by `traps.S`.
#[unsafe(no_mangle)]
extern "C" fn exception(frame: &Frame) -> ! {
    use core::fmt::Write;
    crate::panic::begin(Some((frame.vector, frame.rip)));
    let mut text = crate::console::unlocked();
    let name = NAMES.get(frame.vector as usize).unwrap_or(&"unknown");
    let image = memory::image();
    let _ = writeln!(text, "\nexception {} ({name}), code {:#x}", frame.vector, frame.code);
    if frame.vector == u64::from(NMI) {
        let _ = writeln!(text, "moraine panic: {}", nmi_reason());
    }
    if frame.vector == PAGE_FAULT {
        let address = x86_64::registers::control::Cr2::read_raw();
        let what = match (frame.code & 16 != 0, frame.code & 2 != 0) {
            (true, _) => "executing",
            (_, true) => "writing",
            _ => "reading",
        };
        let why = if frame.code & 1 != 0 { "not allowed" } else { "not mapped" };
        let _ = writeln!(text, "{what} {address:#x}: {why}");
        if let Some(stack) = GUARDS.find(address) {
            let _ = writeln!(text, "{stack} overflowed");
        }
    }
    let _ = write!(text, "at {:#x}", frame.rip);
    if image.contains(&frame.rip) {
        let _ = write!(text, " = image + {:#x}", frame.rip - image.start);
    }
    let _ = writeln!(text, ", stack {:#x}, flags {:#x}", frame.rsp, frame.flags);
    for (i, (name, value)) in REGISTERS.iter().zip(frame.registers).enumerate() {
        let _ = write!(text, "{name} {value:016x}{}", if i % 4 == 3 { "\n" } else { "  " });
    }
    let _ = writeln!(text);
    crate::panic::end(frame.rsp)
}

/// Why there is an NMI that no core of ours sent. A person who asks for one wants to see what a machine does that does not
/// answer any more; hardware that raises one has lost data. So it is a panic either way.
fn nmi_reason() -> &'static str {
    // SAFETY: a status port of the chip set; reading it changes nothing, and where it is not all ones are read.
    let reason = unsafe { Port::<u8>::new(NMI_REASON_PORT).read() };
    match reason {
        u8::MAX => "an NMI from outside",
        _ if reason & NMI_MEMORY != 0 => "an NMI: the machine reports a memory error",
        _ if reason & NMI_BUS != 0 => "an NMI: the machine reports an error on a bus",
        _ => "an NMI from outside: somebody asks for a report",
    }
}
