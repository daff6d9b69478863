//! The ways into the kernel from a boot loader, and what each tells: memory, command line, ACPI's root.

use crate::memory::direct;
use core::arch::global_asm;
use moraine_boot::map::RangeSet;
use moraine_boot::pvh;
use zerocopy::FromBytes;

global_asm!(include_str!("../../boot/entry/pvh.S"), options(att_syntax));
global_asm!(include_str!("../../boot/entry/uefi.S"), options(att_syntax));
global_asm!(include_str!("../../boot/entry/bios.S"), options(att_syntax));

/// Longest command line, in bytes; the rest is cut off.
pub(crate) const COMMAND_LINE_MAX: usize = 4096;
/// Most entries of a boot loader's memory map that are read.
const MAP_ENTRIES_MAX: u32 = 1024;

/// What a boot loader told, the same for all of them.
pub(crate) struct BootInfo {
    /// Which way the machine came.
    pub(crate) path: &'static str,
    /// Memory that is free RAM as far as the firmware says.
    pub(crate) ram: RangeSet,
    /// The part of it that is still in use until the kernel has page tables of its own.
    pub(crate) busy: RangeSet,
    /// Physical address of ACPI's root pointer; 0 if the loader does not know.
    pub(crate) rsdp: u64,
    /// The command line.
    pub(crate) command_line: CommandLine,
}

/// A copy of the command line, from before there is a heap.
pub(crate) struct CommandLine {
    bytes: [u8; COMMAND_LINE_MAX],
    len: usize,
}

impl CommandLine {
    pub(crate) fn new() -> CommandLine {
        CommandLine { bytes: [0; COMMAND_LINE_MAX], len: 0 }
    }

    /// Appends as much of `bytes` as there is room for.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let count = bytes.len().min(COMMAND_LINE_MAX - self.len);
        self.bytes[self.len..self.len + count].copy_from_slice(&bytes[..count]);
        self.len += count;
    }
}

impl core::ops::Deref for CommandLine {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Called by `pvh.S` with the address of the start-info page.
#[unsafe(no_mangle)]
extern "C" fn pvh_main(start_info: u64) -> ! {
    // SAFETY: the loader's structures lie below 4 GiB, which the entry stub mapped; nothing writes to them.
    let info = unsafe { direct::bytes(start_info, size_of::<pvh::StartInfo>()) };
    let info = pvh::StartInfo::read_from_bytes(info).expect("the slice has the structure's size");
    assert!(info.magic == pvh::MAGIC && info.version >= 1, "the loader's start info is version 1 or later");
    let mut ram = RangeSet::new();
    for i in 0..info.map_entries.min(MAP_ENTRIES_MAX) {
        let at = info.map + i as u64 * size_of::<pvh::MapEntry>() as u64;
        // SAFETY: as above.
        let entry = unsafe { direct::bytes(at, size_of::<pvh::MapEntry>()) };
        let entry = pvh::MapEntry::read_from_bytes(entry).expect("the slice has the structure's size");
        if entry.kind == pvh::KIND_RAM {
            ram.add(entry.start, entry.len);
        }
    }
    let mut command_line = CommandLine::new();
    if info.command_line != 0 {
        // SAFETY: as above; the loader ends it with a zero, and the length is bounded whatever it did.
        let bytes = unsafe { direct::bytes(info.command_line, COMMAND_LINE_MAX) };
        command_line.push(bytes.split(|b| *b == 0).next().unwrap_or(&[]));
    }
    let path = if info.flags & BIOS_FLAG != 0 { "BIOS" } else { "PVH" };
    crate::start(BootInfo { path, ram, busy: RangeSet::new(), rsdp: info.rsdp, command_line })
}

/// Our BIOS stage marks its start info with this flag (PVH defines none for kernels).
const BIOS_FLAG: u32 = 1 << 31;
