//! What a controller tells about itself and its commands (NVMe Base 2.0 §4.6, §5.17; NVM Command Set 1.0 §4.1.5).
//! All of it is bytes from outside: nothing here trusts a value before it was checked.

use alloc::string::String;
use alloc::vec::Vec;
use moraine_platform::IoError;

/// Bytes of an Identify data structure.
pub(crate) const IDENTIFY_LEN: usize = 4096;
/// Entries of an active namespace list.
pub(crate) const NAMESPACE_LIST_MAX: usize = 1024;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Padded ASCII as printable text.
fn text(bytes: &[u8]) -> String {
    let all: String =
        bytes.iter().map(|&b| if (0x20..0x7f).contains(&b) { b as char } else { ' ' }).collect();
    String::from(all.trim())
}

/// What is used of Identify Controller (CNS 01h).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ControllerInfo {
    pub(crate) serial: String,
    pub(crate) model: String,
    /// Largest data transfer of one command in bytes; `None` if there is no limit.
    pub(crate) transfer_max: Option<u64>,
    pub(crate) dataset_management: bool,
    pub(crate) write_zeroes: bool,
    pub(crate) volatile_cache: bool,
    /// Whether a write that asks for it reaches the media before it is answered.
    pub(crate) fua: bool,
}

/// Model of QEMU's emulation (hw/nvme). It takes the FUA bit of a write and does nothing about it (seen with 7.2: none
/// of them reaches the disk's backend as one), so a write that was to be durable is not before the next Flush.
const MODEL_WITHOUT_FUA: &str = "QEMU NVMe Ctrl";

impl ControllerInfo {
    /// Parses the 4096 bytes of the structure; `page` is the unit of MDTS: the controller's minimum page size.
    pub(crate) fn parse(bytes: &[u8; IDENTIFY_LEN], page: u64) -> ControllerInfo {
        let mdts = bytes[77];
        let oncs = u16_at(bytes, 520);
        let model = text(&bytes[24..64]);
        ControllerInfo {
            serial: text(&bytes[4..24]),
            fua: model != MODEL_WITHOUT_FUA,
            model,
            transfer_max: (mdts != 0).then(|| page.checked_shl(u32::from(mdts)).unwrap_or(u64::MAX)),
            dataset_management: oncs & 1 << 2 != 0,
            write_zeroes: oncs & 1 << 3 != 0,
            volatile_cache: bytes[525] & 1 != 0,
        }
    }
}

/// What is used of Identify Namespace (CNS 00h).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamespaceInfo {
    /// Capacity in bytes.
    pub(crate) size: u64,
    /// log2 of the logical block in bytes: 9 ..= 12.
    pub(crate) block_shift: u8,
    /// Unit that is written without read-modify-write, in bytes.
    pub(crate) physical_block: u32,
    pub(crate) read_only: bool,
}

/// Why a namespace cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Not there, or of no size.
    Empty,
    /// Its logical block is not 512 ..= 4096 bytes.
    BlockSize(u8),
    /// Its blocks carry metadata or protection information.
    Metadata,
    /// Its size does not fit 64 bits of bytes.
    Size,
}

impl core::fmt::Display for Unusable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Unusable::Empty => f.write_str("it is empty"),
            Unusable::BlockSize(shift) => write!(f, "its logical block is 2^{shift} bytes"),
            Unusable::Metadata => f.write_str("its blocks carry metadata; format it without"),
            Unusable::Size => f.write_str("its size makes no sense"),
        }
    }
}

/// Largest physical block believed; some devices report their erase unit.
const PHYSICAL_BLOCK_MAX: u32 = 64 * 1024;

impl NamespaceInfo {
    /// Parses the 4096 bytes of the structure.
    pub(crate) fn parse(bytes: &[u8; IDENTIFY_LEN]) -> Result<NamespaceInfo, Unusable> {
        let blocks = u64_at(bytes, 0);
        if blocks == 0 {
            return Err(Unusable::Empty);
        }
        let flbas = bytes[26];
        let format = usize::from(flbas & 0xf) | usize::from(flbas >> 5 & 0b11) << 4;
        let format = u32_at(bytes, 128 + 4 * format);
        if format as u16 != 0 {
            return Err(Unusable::Metadata);
        }
        let block_shift = (format >> 16) as u8;
        if !(9..=12).contains(&block_shift) {
            return Err(Unusable::BlockSize(block_shift));
        }
        let size = blocks.checked_mul(1 << block_shift).ok_or(Unusable::Size)?;
        let block = 1u32 << block_shift;
        // NSFEAT bit 4: the preferred write granularity is told, in blocks less one.
        let granularity = if bytes[24] & 1 << 4 != 0 { u32::from(u16_at(bytes, 64)) + 1 } else { 1 };
        let physical = granularity.saturating_mul(block);
        let physical_block =
            if physical.is_power_of_two() && physical <= PHYSICAL_BLOCK_MAX { physical } else { block };
        Ok(NamespaceInfo { size, block_shift, physical_block, read_only: bytes[99] & 1 != 0 })
    }
}

/// The ids of an active namespace list (CNS 02h): strictly growing ones only, so that following the list ends.
pub(crate) fn parse_namespace_list(bytes: &[u8; IDENTIFY_LEN], after: u32) -> Vec<u32> {
    let mut last = after;
    let mut ids = Vec::new();
    for i in 0..NAMESPACE_LIST_MAX {
        let id = u32_at(bytes, 4 * i);
        if id <= last || id >= 0xffff_fffe {
            break;
        }
        ids.push(id);
        last = id;
    }
    ids
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    /// Command-specific result.
    pub(crate) result: u32,
    /// Which command it answers.
    pub(crate) command_id: u16,
    pub(crate) status: Status,
}

/// The status field without its phase bit: code in bits 7:0, code type in bits 10:8, "do not retry" in bit 14.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u16);

impl core::fmt::Debug for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "type {} code {:#04x}", self.code_type(), self.0 as u8)
    }
}

const DO_NOT_RETRY: u16 = 1 << 14;

impl Status {
    fn code_type(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Whether the same command may well succeed if it is given again: it was interrupted, or the namespace is not
    /// ready yet, and the bit "do not retry" is not set.
    pub(crate) fn is_transient(self) -> bool {
        self.code_type() == 0 && matches!(self.0 as u8, 0x21 | 0x22 | 0x82) && self.0 & DO_NOT_RETRY == 0
    }

    /// What it means to the caller.
    pub(crate) fn to_result(self) -> Result<(), IoError> {
        match (self.code_type(), self.0 as u8) {
            (0, 0x00) => Ok(()),
            // Invalid opcode or field; LBA out of range.
            (0, 0x01 | 0x02 | 0x80) | (1, 0x82) => Err(IoError::Invalid),
            // Namespace write protected.
            (0, 0x20) => Err(IoError::Invalid),
            (2, _) => Err(IoError::Media),
            _ => Err(IoError::Device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identify(edit: impl FnOnce(&mut [u8; IDENTIFY_LEN])) -> [u8; IDENTIFY_LEN] {
        let mut bytes = [0; IDENTIFY_LEN];
        edit(&mut bytes);
        bytes
    }

    #[test]
    fn a_controller_without_mdts_has_no_limit_and_a_huge_one_does_not_overflow() {
        let none = ControllerInfo::parse(&identify(|_| ()), 4096);
        assert_eq!(none.transfer_max, None);
        let huge = ControllerInfo::parse(&identify(|b| b[77] = 255), 4096);
        assert_eq!(huge.transfer_max, Some(u64::MAX));
        let usual = ControllerInfo::parse(&identify(|b| b[77] = 7), 4096);
        assert_eq!(usual.transfer_max, Some(512 * 1024));
    }

    #[test]
    fn a_model_that_ignores_fua_is_not_asked_for_it() {
        let called = |model: &str| {
            let padded = alloc::format!("{model:40}");
            ControllerInfo::parse(&identify(|b| b[24..64].copy_from_slice(padded.as_bytes())), 4096)
        };
        assert!(!called("QEMU NVMe Ctrl").fua);
        assert!(called("Samsung SSD 990 PRO 2TB").fua);
    }

    #[test]
    fn namespaces_that_cannot_be_used_are_named() {
        let format = |shift: u8, metadata: u8| {
            identify(|b| {
                b[0] = 100;
                b[26] = 1;
                b[132] = metadata;
                b[134] = shift;
            })
        };
        assert_eq!(NamespaceInfo::parse(&format(9, 0)).map(|n| n.size), Ok(51200));
        assert_eq!(NamespaceInfo::parse(&format(13, 0)), Err(Unusable::BlockSize(13)));
        assert_eq!(NamespaceInfo::parse(&format(12, 8)), Err(Unusable::Metadata));
        assert_eq!(NamespaceInfo::parse(&identify(|_| ())), Err(Unusable::Empty));
        let mut vast = format(12, 0);
        vast[..8].fill(0xff);
        assert_eq!(NamespaceInfo::parse(&vast), Err(Unusable::Size));
    }

    #[test]
    fn a_namespace_list_that_does_not_grow_ends() {
        let list = identify(|b| {
            b[0] = 1;
            b[4] = 5;
            b[8] = 5;
            b[12] = 9;
        });
        assert_eq!(parse_namespace_list(&list, 0), [1, 5]);
        assert!(parse_namespace_list(&list, 1).is_empty());
    }
}
