//! The kernel as a PE32+ file, which UEFI loads: a header in front of the kernel's own segments, one section each with
//! exactly its rights. There are no relocations for the firmware to apply: the kernel relocates itself.
//! Layout from Microsoft's PE/COFF specification; all fields little-endian.

use crate::kernel::{Kernel, Rights};

/// Memory and file alignment. The header takes one page, then the kernel begins.
const PAGE: usize = 4096;
const PE_AT: u32 = 0x80;
const OPTIONAL_LEN: u16 = 112 + 16 * 8;

const MACHINE_X86_64: u16 = 0x8664;
/// An executable that can live above 2 GiB.
const CHARACTERISTICS: u16 = 0x0002 | 0x0020;
const SUBSYSTEM_EFI_APPLICATION: u16 = 10;
/// May be loaded anywhere; its data is never executed.
const DLL_CHARACTERISTICS: u16 = 0x0040 | 0x0100;

/// Wraps the kernel.
pub(crate) fn wrap(kernel: &Kernel) -> Vec<u8> {
    let mut out = vec![0; PAGE];
    let mut sections = Vec::new();
    let sum = |rights: &[Rights]| {
        let chosen = kernel.segments.iter().filter(|s| rights.contains(&s.rights));
        chosen.map(|s| s.bytes.len().next_multiple_of(PAGE) as u32).sum::<u32>()
    };
    for segment in &kernel.segments {
        let (name, flags): (&[u8; 8], u32) = match segment.rights {
            Rights::Code => (b".text\0\0\0", 0x6000_0020),
            Rights::Constants => (b".rodata\0", 0x4000_0040),
            Rights::Data => (b".data\0\0\0", 0xc000_0040),
        };
        let raw_at = out.len();
        out.extend_from_slice(&segment.bytes);
        out.resize(out.len().next_multiple_of(PAGE), 0);
        sections.extend_from_slice(name);
        put32(&mut sections, segment.len as u32);
        put32(&mut sections, PAGE as u32 + segment.offset as u32);
        put32(&mut sections, (out.len() - raw_at) as u32);
        put32(&mut sections, raw_at as u32);
        // No relocations, no line numbers.
        sections.extend_from_slice(&[0; 12]);
        put32(&mut sections, flags);
    }

    let mut head = Vec::new();
    head.extend_from_slice(b"MZ");
    head.resize(0x3c, 0);
    put32(&mut head, PE_AT);
    head.resize(PE_AT as usize, 0);
    head.extend_from_slice(b"PE\0\0");
    put16(&mut head, MACHINE_X86_64);
    put16(&mut head, kernel.segments.len() as u16);
    head.extend_from_slice(&[0; 12]); // time stamp, symbols: none
    put16(&mut head, OPTIONAL_LEN);
    put16(&mut head, CHARACTERISTICS);

    put16(&mut head, 0x020b); // PE32+
    put16(&mut head, 0);
    put32(&mut head, sum(&[Rights::Code]));
    put32(&mut head, sum(&[Rights::Constants, Rights::Data]));
    put32(&mut head, 0);
    put32(&mut head, PAGE as u32 + kernel.uefi_entry as u32);
    put32(&mut head, PAGE as u32); // base of code
    head.extend_from_slice(&0_u64.to_le_bytes()); // preferred address: none
    put32(&mut head, PAGE as u32);
    put32(&mut head, PAGE as u32);
    head.extend_from_slice(&[0; 16]); // versions; a reserved word
    put32(&mut head, PAGE as u32 + kernel.span().next_multiple_of(PAGE as u64) as u32);
    put32(&mut head, PAGE as u32); // size of headers
    put32(&mut head, 0); // checksum: UEFI asks for none
    put16(&mut head, SUBSYSTEM_EFI_APPLICATION);
    put16(&mut head, DLL_CHARACTERISTICS);
    head.extend_from_slice(&[0; 32 + 4]); // stack and heap sizes, loader flags
    put32(&mut head, 16); // directories, all empty
    head.extend_from_slice(&[0; 16 * 8]);
    head.extend_from_slice(&sections);
    assert!(head.len() <= PAGE, "the header fits its page");
    out[..head.len()].copy_from_slice(&head);
    out
}

fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Segment;
    use object::read::pe::PeFile64;
    use object::{Object, ObjectSection};

    #[test]
    fn the_wrapped_kernel_is_a_pe_file_with_the_same_segments() {
        let segment =
            |offset, bytes: &[u8], len, rights| Segment { offset, bytes: bytes.to_vec(), len, rights };
        let kernel = Kernel {
            segments: vec![
                segment(0, b"code", 4096, Rights::Code),
                segment(0x1000, b"constants", 0x10, Rights::Constants),
                segment(0x2000, b"data", 0x3000, Rights::Data),
            ],
            uefi_entry: 2,
            bios: Vec::new(),
        };
        let file = wrap(&kernel);
        let pe = PeFile64::parse(&*file).unwrap();
        assert_eq!(pe.entry(), 0x1002);
        let found: Vec<_> =
            pe.sections().map(|s| (s.address(), s.size(), s.data().unwrap()[..4].to_vec())).collect();
        assert_eq!(found[0], (0x1000, 0x1000, b"code".to_vec()));
        assert_eq!(found[1], (0x2000, 0x10, b"cons".to_vec()));
        assert_eq!(found[2], (0x3000, 0x3000, b"data".to_vec()));
    }
}
