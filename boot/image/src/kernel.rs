//! The kernel's ELF file as the image builder sees it: three segments, an entry for UEFI, code for BIOS.

use object::elf::{PF_W, PF_X, PT_LOAD};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol};
use std::fmt;

/// Where the kernel is linked, and where BIOS and PVH loaders put it.
pub(crate) const LINK_ADDRESS: u64 = 0x20_0000;
/// Bytes of the boot sector in the BIOS code; the second stage follows.
pub(crate) const BOOT_SECTOR: usize = 512;
/// Largest kernel in memory, in bytes: what lies behind it at 16 MiB and above is the log ring's.
const SPAN_MAX: u64 = 14 << 20;

/// Why a file is not our kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum KernelError {
    /// It is no 64-bit ELF file, or a damaged one.
    NotElf(String),
    /// A segment has no place in the kernel's layout.
    BadSegment,
    /// It lacks a symbol or section, perhaps because it was stripped.
    Missing(&'static str),
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KernelError::NotElf(why) => write!(f, "not the kernel: {why}"),
            KernelError::BadSegment => f.write_str("a segment does not fit the kernel's layout"),
            KernelError::Missing(what) => write!(f, "{what} is missing; was it stripped?"),
        }
    }
}

impl std::error::Error for KernelError {}

/// What may be done with a segment's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Read and execute.
    Code,
    /// Read.
    Constants,
    /// Read and write.
    Data,
}

/// A piece of the kernel's memory.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// Offset from [`LINK_ADDRESS`]; a multiple of a page.
    pub(crate) offset: u64,
    /// Its bytes in the file; the rest of its memory is zero.
    pub(crate) bytes: Vec<u8>,
    /// Its length in memory.
    pub(crate) len: u64,
    /// What may be done with it.
    pub(crate) rights: Rights,
}

/// The kernel.
pub(crate) struct Kernel {
    /// By offset, without overlap.
    pub(crate) segments: Vec<Segment>,
    /// Offset of the UEFI entry from [`LINK_ADDRESS`].
    pub(crate) uefi_entry: u64,
    /// Boot sector and second stage.
    pub(crate) bios: Vec<u8>,
}

impl Kernel {
    /// Takes an ELF file apart.
    pub(crate) fn parse(file: &[u8]) -> Result<Kernel, KernelError> {
        let not_elf = |e: object::Error| KernelError::NotElf(e.to_string());
        let elf: ElfFile64<'_, Endianness> = ElfFile64::parse(file).map_err(not_elf)?;
        let endian = elf.endian();
        let mut segments: Vec<Segment> = Vec::new();
        for header in elf.elf_program_headers() {
            if header.p_type(endian) != PT_LOAD {
                continue;
            }
            let bytes = header.data(endian, file).map_err(|()| KernelError::BadSegment)?.to_vec();
            let rights = match header.p_flags(endian) & (PF_W | PF_X) {
                PF_X => Rights::Code,
                PF_W => Rights::Data,
                0 => Rights::Constants,
                _ => return Err(KernelError::BadSegment),
            };
            let offset = header.p_vaddr(endian).checked_sub(LINK_ADDRESS).ok_or(KernelError::BadSegment)?;
            let len = header.p_memsz(endian);
            let begin = segments.last().map_or(0, |s| s.offset + s.len);
            let fits = offset >= begin && offset.is_multiple_of(4096) && len >= bytes.len() as u64;
            if !fits || len > SPAN_MAX || offset > SPAN_MAX {
                return Err(KernelError::BadSegment);
            }
            segments.push(Segment { offset, bytes, len, rights });
        }
        if segments.first().is_none_or(|s| s.offset != 0) {
            return Err(KernelError::BadSegment);
        }
        let entry = elf.symbol_by_name("uefi_entry").ok_or(KernelError::Missing("the symbol uefi_entry"))?;
        let bios = elf.section_by_name(".bios").ok_or(KernelError::Missing("the section .bios"))?;
        let bios = bios.data().map_err(not_elf)?.to_vec();
        if bios.len() <= BOOT_SECTOR || !bios[BOOT_SECTOR..].starts_with(b"MORAINE2") {
            return Err(KernelError::Missing("the second stage's fields"));
        }
        Ok(Kernel { segments, uefi_entry: entry.address() - LINK_ADDRESS, bios })
    }

    /// The memory from [`LINK_ADDRESS`] on as far as the file says anything about it.
    pub(crate) fn flat(&self) -> Vec<u8> {
        let mut flat = Vec::new();
        for segment in &self.segments {
            flat.resize(segment.offset as usize, 0);
            flat.extend_from_slice(&segment.bytes);
        }
        flat
    }

    /// Its length in memory.
    pub(crate) fn span(&self) -> u64 {
        self.segments.last().map_or(0, |s| s.offset + s.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        assert!(matches!(Kernel::parse(b"#!/bin/sh"), Err(KernelError::NotElf(_))));
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(Kernel::parse(&own).is_err(), "an ordinary program is not the kernel");
        assert!(Kernel::parse(&own[..64]).is_err());
    }
}
