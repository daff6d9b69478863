//! Telling what a disk holds that is not ours, so that nobody's data is ever taken for blank.

use alloc::vec::Vec;

/// Bytes looked at from each end of a device.
pub(super) const WINDOW_BYTES: usize = 1 << 20;

/// A mark that others leave at a fixed place: name, offset from the start, bytes.
type Signature = (&'static str, usize, &'static [u8]);

/// The more telling first: a boot sector's mark comes last, because many formats carry one.
const SIGNATURES: &[Signature] = &[
    ("a LUKS container", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("an XFS filesystem", 0, b"XFSB"),
    ("an ext2/3/4 filesystem", 1080, b"\x53\xef"),
    ("a btrfs filesystem", 65600, b"_BHRfS_M"),
    ("a bcachefs filesystem", 4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    ("a bcache device", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    ("a Linux RAID member", 0, b"\xfc\x4e\x2b\xa9"),
    ("a Linux RAID member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("Linux swap space", 4086, b"SWAPSPACE2"),
    ("an F2FS filesystem", 1024, b"\x10\x20\xf5\xf2"),
    ("an EROFS filesystem", 1024, b"\xe2\xe1\xf5\xe0"),
    ("a NILFS2 filesystem", 1030, b"\x34\x34"),
    ("an HFS+ filesystem", 1024, b"H+"),
    ("an APFS container", 32, b"NXSB"),
    ("a JFS filesystem", 32768, b"JFS1"),
    ("a ReiserFS filesystem", 65588, b"ReIsEr"),
    ("a SquashFS image", 0, b"hsqs"),
    ("an ISO 9660 image", 32769, b"CD001"),
    ("a QCOW2 image", 0, b"QFI\xfb"),
    ("a VMDK image", 0, b"KDMV"),
    ("a Ceph OSD", 0, b"bluestore block device"),
    ("a VDO volume", 0, b"dmvdo001"),
    ("an NTFS filesystem", 3, b"NTFS    "),
    ("an exFAT filesystem", 3, b"EXFAT   "),
    ("a FAT filesystem", 54, b"FAT1"),
    ("a FAT filesystem", 82, b"FAT32"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
    ("an MBR partition table or boot sector", 510, b"\x55\xaa"),
];

/// ZFS: uberblocks of 1 KiB or more in the second half of each 256 KiB label.
const UBERBLOCKS: core::ops::Range<usize> = 128 << 10..256 << 10;
const UBERBLOCK_MAGICS: [[u8; 8]; 2] = [0x00ba_b10c_u64.to_le_bytes(), 0x00ba_b10c_u64.to_be_bytes()];
/// Linux RAID metadata at the end: version 1.0 8 to 12 KiB before it, version 0.90 64 to 128 KiB.
const RAID_MAGIC: &[u8] = b"\xfc\x4e\x2b\xa9";

/// What the first and the last [`WINDOW_BYTES`] of a device are known to be.
pub(super) fn recognise(start: &[u8], end: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, bytes: &[u8]| start.get(offset..).is_some_and(|rest| rest.starts_with(bytes));
    if let Some((name, ..)) = SIGNATURES.iter().find(|(_, offset, bytes)| at(*offset, bytes)) {
        return Some(name);
    }
    if UBERBLOCKS.step_by(1 << 10).any(|o| UBERBLOCK_MAGICS.iter().any(|magic| at(o, magic))) {
        return Some("a ZFS pool member");
    }
    let from_end = |back: usize| end.len().checked_sub(back).map(|from| &end[from..]);
    let raid = (4 << 10..=128 << 10).step_by(4 << 10).filter_map(from_end);
    if raid.into_iter().any(|rest| rest.starts_with(RAID_MAGIC)) {
        return Some("a Linux RAID member");
    }
    let backup = [512, 4096].into_iter().filter_map(from_end);
    backup
        .into_iter()
        .any(|rest| rest.starts_with(b"EFI PART"))
        .then_some("a GPT partition table (its backup)")
}

/// Where the marks are that [`recognise`] goes by, in a device of which these are the first and the last bytes: offsets
/// from the start (`Ok`) or back from the end (`Err`), and lengths. Without them nobody takes the device for theirs.
pub(super) fn marks(start: &[u8], end: &[u8]) -> Vec<(Result<usize, usize>, usize)> {
    let mut found = Vec::new();
    let at =
        |bytes: &[u8], offset: usize, mark: &[u8]| bytes.get(offset..).is_some_and(|b| b.starts_with(mark));
    for (_, offset, mark) in SIGNATURES {
        if at(start, *offset, mark) {
            found.push((Ok(*offset), mark.len()));
        }
    }
    // Two of the four labels of ZFS are at the end.
    for offset in UBERBLOCKS.step_by(1 << 10) {
        for magic in &UBERBLOCK_MAGICS {
            for label in [0, 256 << 10] {
                if at(start, label + offset, magic) {
                    found.push((Ok(label + offset), magic.len()));
                }
                let back = (512 << 10) - label - offset;
                if end.len() >= back && at(end, end.len() - back, magic) {
                    found.push((Err(back), magic.len()));
                }
            }
        }
    }
    let raid = (4 << 10..=128 << 10).step_by(4 << 10).map(|back| (back, RAID_MAGIC));
    let table = [512, 4096].map(|back| (back, &b"EFI PART"[..]));
    for (back, mark) in raid.chain(table) {
        if end.len() >= back && at(end, end.len() - back, mark) {
            found.push((Err(back), mark.len()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    #[test]
    fn every_signature_is_recognised_alone_and_nothing_in_zeroes() {
        let blank = vec![0; WINDOW_BYTES];
        assert_eq!(recognise(&blank, &blank), None);
        for (name, offset, bytes) in SIGNATURES {
            let mut start = blank.clone();
            start[*offset..offset + bytes.len()].copy_from_slice(bytes);
            assert_eq!(recognise(&start, &blank), Some(*name));
            for (at, len) in marks(&start, &blank) {
                start[at.unwrap()..][..len].fill(0);
            }
            assert_eq!(recognise(&start, &blank), None, "{name} is wiped");
        }
        let mut zfs = blank.clone();
        zfs[(128 << 10) + 5 * 1024..][..8].copy_from_slice(&UBERBLOCK_MAGICS[0]);
        assert_eq!(recognise(&zfs, &blank), Some("a ZFS pool member"));
        let mut raid = blank.clone();
        raid[WINDOW_BYTES - (8 << 10)..][..4].copy_from_slice(RAID_MAGIC);
        assert_eq!(recognise(&blank, &raid), Some("a Linux RAID member"));
        let mut gpt = blank.clone();
        gpt[WINDOW_BYTES - 512..][..8].copy_from_slice(b"EFI PART");
        assert!(recognise(&blank, &gpt).is_some());
        assert_eq!(recognise(&[], &[]), None, "a device too small for anything");
    }
}
