//! ACPI tables: what the kernel needs of them, read with every length and checksum checked.
//!
//! Only static tables are read. Of the byte code in the DSDT two things are needed, the sleep type of S5 (power off)
//! and the windows of virtio devices, which every firmware writes as the same few bytes; they are searched for.

use crate::words::{WINDOWS_MAX, Window};
use alloc::vec::Vec;

/// Reads physical memory: `len` bytes at an address, or none if that cannot be read.
pub type Reader<'a, 'm> = &'a dyn Fn(u64, usize) -> Option<&'m [u8]>;

/// Longest table believed, in bytes.
const TABLE_MAX: usize = 1 << 20;
/// Length of the header which all tables begin with.
const HEADER: usize = 36;

/// A register as ACPI describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// An I/O port.
    Port(u16),
    /// A memory address.
    Memory(u64),
}

/// How the machine powers off and tells of its power button.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// The classical fixed hardware: status and enable registers, control registers, a system control interrupt.
    Fixed {
        /// PM1a event block: status in its first half, enable in its second.
        event: u16,
        /// Length of the event block in bytes.
        event_len: u8,
        /// PM1a control register.
        control: u16,
        /// PM1b control register, 0 if there is none.
        control_b: u16,
        /// Port and value that hand the registers from firmware to us; 0 if they already are ours.
        enable: (u16, u8),
        /// Interrupt of the power button.
        interrupt: u16,
        /// Sleep type of S5.
        sleep_type: u8,
    },
    /// Hardware-reduced ACPI: one sleep control register.
    Reduced {
        /// Where the sleep type goes.
        sleep_control: Register,
        /// Sleep type of S5.
        sleep_type: u8,
    },
}

/// An interrupt controller for lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Address of its registers.
    pub address: u64,
    /// First global interrupt it serves.
    pub first: u32,
}

/// How a legacy interrupt is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The legacy number.
    pub source: u8,
    /// The global interrupt.
    pub global: u32,
    /// Polarity and trigger as MADT flags.
    pub flags: u16,
}

/// A piece of PCI configuration space in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Address of bus 0's configuration (even if `first_bus` is higher).
    pub address: u64,
    /// PCI segment.
    pub segment: u16,
    /// First bus it covers.
    pub first_bus: u8,
    /// Last bus it covers.
    pub last_bus: u8,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Local interrupt controllers of processors that may be started, by their id.
    pub cores: Vec<u32>,
    /// Address of the local controller's registers.
    pub local_apic: u64,
    /// Line interrupt controllers.
    pub io_apics: Vec<IoApic>,
    /// Legacy interrupts that are wired otherwise than one to one.
    pub overrides: Vec<Override>,
    /// PCI configuration space in memory.
    pub ecam: Vec<Ecam>,
    /// Power off and power button.
    pub power: Option<Power>,
    /// Register and value that reset the machine.
    pub reset: Option<(Register, u8)>,
    /// Port of the 3.579545 MHz timer.
    pub timer_port: Option<u16>,
    /// virtio-mmio devices.
    pub windows: Vec<Window>,
    /// The manufacturer's name in the FADT.
    pub maker: [u8; 6],
}

/// Reads the tables that the root pointer leads to.
pub fn read(rsdp: u64, reader: Reader<'_, '_>) -> Option<Tables> {
    let root = reader(rsdp, 20)?;
    if &root[..8] != b"RSD PTR " || sum(root) != 0 {
        return None;
    }
    let (table, entry_len) = if root[15] >= 2 {
        let long = reader(rsdp, 36)?;
        (if sum(long) == 0 { u64_at(long, 24)? } else { 0 }, 8)
    } else {
        (0, 4)
    };
    let (table, entry_len) = if table == 0 { (u32_at(root, 16)? as u64, 4) } else { (table, entry_len) };
    let list = read_table(table, reader)?;
    let mut tables = Tables::default();
    for entry in list[HEADER..].chunks_exact(entry_len) {
        let at = if entry_len == 8 { u64_at(entry, 0) } else { u32_at(entry, 0).map(u64::from) };
        let Some(table) = at.and_then(|at| read_table(at, reader)) else { continue };
        match &table[..4] {
            b"APIC" => read_madt(table, &mut tables),
            b"MCFG" => read_mcfg(table, &mut tables),
            b"FACP" => {
                read_fadt(table, reader, &mut tables);
            }
            _ => {}
        }
    }
    Some(tables)
}

fn read_table<'m>(at: u64, reader: Reader<'_, 'm>) -> Option<&'m [u8]> {
    let len = u32_at(reader(at, HEADER)?, 4)? as usize;
    if !(HEADER..=TABLE_MAX).contains(&len) {
        return None;
    }
    reader(at, len).filter(|table| sum(table) == 0)
}

fn read_madt(table: &[u8], out: &mut Tables) {
    out.local_apic = u32_at(table, 36).unwrap_or(0) as u64;
    let mut rest = table.get(44..).unwrap_or(&[]);
    while let [kind, len, ..] = *rest {
        let len = len as usize;
        if len < 2 || len > rest.len() {
            return;
        }
        let (entry, tail) = rest.split_at(len);
        rest = tail;
        // Bit 0: the processor is enabled; bit 1: it may be brought online later, which we do not.
        match (kind, len) {
            (0, 8) if entry[4] & 1 != 0 => out.cores.push(entry[3] as u32),
            (9, 16) if entry[8] & 1 != 0 => out.cores.extend(u32_at(entry, 4)),
            (1, 12) => out.io_apics.extend(
                u32_at(entry, 4).zip(u32_at(entry, 8)).map(|(a, first)| IoApic { address: a as u64, first }),
            ),
            (2, 10) => {
                out.overrides.extend(u32_at(entry, 4).zip(u16_at(entry, 8)).map(|(global, flags)| Override {
                    source: entry[3],
                    global,
                    flags,
                }))
            }
            (5, 12) => out.local_apic = u64_at(entry, 4).unwrap_or(out.local_apic),
            _ => {}
        }
    }
}

fn read_mcfg(table: &[u8], out: &mut Tables) {
    for entry in table.get(44..).unwrap_or(&[]).chunks_exact(16) {
        if let (Some(address), Some(segment)) = (u64_at(entry, 0), u16_at(entry, 8)) {
            out.ecam.push(Ecam { address, segment, first_bus: entry[10], last_bus: entry[11] });
        }
    }
}

fn read_fadt(table: &[u8], reader: Reader<'_, '_>, out: &mut Tables) -> Option<()> {
    out.maker = core::array::from_fn(|i| table[10 + i]);
    let flags = u32_at(table, 112)?;
    if flags & 1 << 10 != 0 {
        out.reset = register(table, 116).zip(table.get(128).copied());
    }
    let dsdt = match u64_at(table, 140) {
        Some(at) if at != 0 => at,
        _ => u32_at(table, 40)? as u64,
    };
    let code = read_table(dsdt, reader).map_or(&[][..], |table| &table[HEADER..]);
    out.windows = virtio_windows(code);
    let sleep_type = sleep_type_of_s5(code);
    if flags & 1 << 20 != 0 {
        let sleep_control = register(table, 244)?;
        // The hardware-reduced machines known to us use 5; some leave the object out.
        out.power = Some(Power::Reduced { sleep_control, sleep_type: sleep_type.unwrap_or(5) });
        return Some(());
    }
    out.timer_port = Some(u32_at(table, 76)? as u16).filter(|port| *port != 0);
    out.power = Some(Power::Fixed {
        event: u32_at(table, 56)? as u16,
        event_len: table[88],
        control: u32_at(table, 64)? as u16,
        control_b: u32_at(table, 68)? as u16,
        enable: (u32_at(table, 48)? as u16, table[52]),
        interrupt: u16_at(table, 46)?,
        sleep_type: sleep_type?,
    });
    Some(())
}

/// Finds `Name (_S5, Package { type, … })` in byte code.
fn sleep_type_of_s5(code: &[u8]) -> Option<u8> {
    let at = code.windows(4).position(|name| name == b"_S5_")? + 4;
    let rest = code.get(at..)?;
    // PackageOp, a length of one to four bytes (the two high bits of the first say how many follow), the count.
    if *rest.first()? != 0x12 {
        return None;
    }
    let rest = rest.get(1 + 1 + (rest.get(1)? >> 6) as usize + 1..)?;
    match *rest.first()? {
        0x0a => rest.get(1).copied(),
        small @ (0 | 1) => Some(small),
        _ => None,
    }
}

/// Finds devices of virtio's hardware id, and in the bytes after it their resources: one fixed stretch of memory and
/// one interrupt (ACPI 6.5 §6.4.3.4, §6.4.3.6).
fn virtio_windows(code: &[u8]) -> Vec<Window> {
    const ID: &[u8] = b"LNRO0005\0";
    /// Bytes from the id to the end of the resources.
    const REACH: usize = 96;
    let ids = code.windows(ID.len()).enumerate().filter(|(_, bytes)| *bytes == ID).map(|(at, _)| at);
    let windows = ids.filter_map(|at| {
        let body = &code[at + ID.len()..];
        let body = &body[..body.len().min(REACH)];
        // Memory32Fixed: tag, length 9, access, base, length.
        let memory = body.windows(12).find(|b| b[..3] == [0x86, 9, 0])?;
        // Extended interrupt: tag, length 6, flags, one interrupt.
        let line = body.windows(9).find(|b| b[..3] == [0x89, 6, 0] && b[4] == 1)?;
        let (address, len) = (u32_at(memory, 4)?, u32_at(memory, 8)?);
        Some(Window { address: address.into(), len: len.into(), interrupt: u32_at(line, 5)? })
    });
    windows.take(WINDOWS_MAX).collect()
}

/// A generic address structure.
fn register(table: &[u8], at: usize) -> Option<Register> {
    let address = u64_at(table, at + 4)?;
    match *table.get(at)? {
        0 if address != 0 => Some(Register::Memory(address)),
        1 => Some(Register::Port(u16::try_from(address).ok()?)),
        _ => None,
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec;

    fn table(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
        let mut t = vec![0; HEADER];
        t[..4].copy_from_slice(name);
        t[10..16].copy_from_slice(b"MAKER ");
        t.extend_from_slice(body);
        let len = t.len() as u32;
        t[4..8].copy_from_slice(&len.to_le_bytes());
        t[9] = 0_u8.wrapping_sub(sum(&t));
        t
    }

    /// A machine's memory from address 0x1000 on: RSDP, RSDT and the tables.
    fn machine(tables: &[Vec<u8>]) -> Vec<u8> {
        let mut memory = vec![0; 20];
        memory[..8].copy_from_slice(b"RSD PTR ");
        memory[16..20].copy_from_slice(&0x1014_u32.to_le_bytes());
        memory[8] = 0_u8.wrapping_sub(sum(&memory));
        let mut at = 0x1014 + HEADER as u32 + 4 * tables.len() as u32;
        let mut list = Vec::new();
        for t in tables {
            list.extend_from_slice(&at.to_le_bytes());
            at += t.len() as u32;
        }
        memory.extend(table(b"RSDT", &list));
        tables.iter().for_each(|t| memory.extend_from_slice(t));
        memory
    }

    fn parse(memory: Vec<u8>) -> Option<Tables> {
        read(0x1000, &|at, len| memory.get(at.checked_sub(0x1000)? as usize..)?.get(..len))
    }

    fn madt() -> Vec<u8> {
        let mut body = vec![0, 0, 0xe0, 0xfe, 1, 0, 0, 0];
        body.extend_from_slice(&[0, 8, 0, 0, 1, 0, 0, 0]);
        body.extend_from_slice(&[0, 8, 1, 1, 1, 0, 0, 0]);
        body.extend_from_slice(&[0, 8, 2, 2, 0, 0, 0, 0]);
        body.extend_from_slice(&[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        body.extend_from_slice(&[2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0]);
        table(b"APIC", &body)
    }

    #[test]
    fn cores_controllers_and_overrides_are_found() {
        let tables = parse(machine(&[madt()])).unwrap();
        assert_eq!(tables.cores, [0, 1], "a disabled processor is not started");
        assert_eq!(tables.local_apic, 0xfee0_0000);
        assert_eq!(tables.io_apics, [IoApic { address: 0xfec0_0000, first: 0 }]);
        assert_eq!(tables.overrides, [Override { source: 9, global: 9, flags: 0x0d }]);
    }

    #[test]
    fn damaged_tables_are_left_out() {
        let mut bad = madt();
        bad[50] ^= 1;
        assert!(parse(machine(&[bad])).unwrap().cores.is_empty());
        let mut memory = machine(&[madt()]);
        memory[3] = b'X';
        assert!(parse(memory).is_none());
    }

    #[test]
    fn every_truncation_is_survived() {
        let whole = machine(&[madt(), table(b"MCFG", &[0; 24]), table(b"FACP", &[0xff; 230])]);
        for len in 0..whole.len() {
            let _ = parse(whole[..len].to_vec());
        }
    }

    #[test]
    fn the_sleep_type_is_read_in_both_spellings() {
        assert_eq!(sleep_type_of_s5(b"\x08_S5_\x12\x06\x04\x0a\x05\x00\x00\x00"), Some(5));
        assert_eq!(sleep_type_of_s5(b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00"), Some(0));
        assert_eq!(sleep_type_of_s5(b"\x08_S5_\x12\x06"), None);
        assert_eq!(sleep_type_of_s5(b"nothing here"), None);
    }
    #[test]
    fn virtio_windows_are_found_in_byte_code() {
        let device = |base: u32, line: u32| {
            let mut code = b"\x5b\x82\x3eVR00\x08_HID\x0dLNRO0005\0\x08_UID\x0a\x07\x08_CCA\x01".to_vec();
            code.extend(b"\x08_CRS\x11\x1a\x0a\x17\x86\x09\x00\x01");
            code.extend(base.to_le_bytes());
            code.extend(0x200_u32.to_le_bytes());
            code.extend(b"\x89\x06\x00\x01\x01");
            code.extend(line.to_le_bytes());
            code.extend(b"\x79\x00");
            code
        };
        let mut code = device(0xfeb0_0e00, 31);
        code.extend(device(0xfeb0_0c00, 30));
        code.extend(b"\x0dLNRO0005\0 and nothing more");
        let window = |address, interrupt| Window { address, len: 0x200, interrupt };
        assert_eq!(virtio_windows(&code), [window(0xfeb0_0e00, 31), window(0xfeb0_0c00, 30)]);
        (0..code.len()).for_each(|len| assert!(virtio_windows(&code[..len]).len() <= 2));
    }
}
