//! The PVH start-info page: what a PVH loader (QEMU `-kernel`, other micro-VM monitors) or our own BIOS stage puts
//! into memory and points `%ebx` at. Layout from Xen's public `arch-x86/hvm/start_info.h`; all fields little-endian.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`StartInfo::magic`]: "xEn3" with the high bit of the E.
pub const MAGIC: u32 = 0x336e_c578;

/// [`MapEntry::kind`] of memory the kernel may use; every other kind is left alone.
pub const KIND_RAM: u32 = 1;
/// [`MapEntry::kind`] of memory holding ACPI tables.
pub const KIND_ACPI: u32 = 3;

/// The page itself.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct StartInfo {
    /// [`MAGIC`].
    pub magic: u32,
    /// 1 or more: the memory-map fields are there.
    pub version: u32,
    /// Unused here.
    pub flags: u32,
    /// Number of modules; unused here.
    pub module_count: u32,
    /// Address of the module list; unused here.
    pub modules: u64,
    /// Address of the zero-terminated command line, or 0.
    pub command_line: u64,
    /// Address of the ACPI root pointer, or 0 when the loader does not know it.
    pub rsdp: u64,
    /// Address of the array of [`MapEntry`].
    pub map: u64,
    /// Its length in entries.
    pub map_entries: u32,
    /// Zero.
    pub reserved: u32,
}

/// One range of the memory map; the same numbers as BIOS E820 uses.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct MapEntry {
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is: [`KIND_RAM`], reserved, ACPI, …
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<StartInfo>() == 56 && size_of::<MapEntry>() == 24);
