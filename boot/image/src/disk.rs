//! The disk: boot sector and GPT, a BIOS boot partition with the second stage and the kernel's memory as it is, and a
//! FAT partition which UEFI reads and people edit.
//!
//! | from | what |
//! |---|---|
//! | sector 0 | boot sector: 440 bytes of code, the protective partition table |
//! | sector 1 | GPT |
//! | 1 MiB | BIOS boot partition: second stage (4 KiB), kernel |
//! | next MiB | FAT16 partition: `MORAINE.TXT`, `EFI/BOOT/BOOTX64.EFI` |
//! | the end | GPT again |

use crate::kernel::{BOOT_SECTOR, Kernel};
use crate::pe;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use gpt::GptConfig;
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition_types;
use std::error::Error;
use std::io::{Cursor, Write};

const SECTOR: usize = 512;
const MIB: usize = 1 << 20;
const BIOS_AT: usize = MIB;
/// FAT16 with clusters of 4 KiB needs 4085 of them at least; the second stage relies on both.
const FAT_BYTES: usize = 20 * MIB;
const CLUSTER: u32 = 4096;
/// Code in the boot sector; what follows is the disk's signature and the partition table.
const BOOT_CODE: usize = 440;
/// Largest text file that the second stage reads.
const TEXT_MAX: usize = 4095;
/// Serial number of the FAT volume: images of the same kernel and words are the same, bit for bit.
const VOLUME_ID: u32 = 0x4d4f_5241;

/// Bytes of the image for `kernel` and its command line.
pub(crate) fn build(kernel: &Kernel, words: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let flat = kernel.flat();
    let stage_2 = &kernel.bios[BOOT_SECTOR..];
    let bios_len = (stage_2.len() + flat.len()).next_multiple_of(MIB);
    let fat_at = BIOS_AT + bios_len;
    let len = fat_at + FAT_BYTES + MIB;
    let mut image = Cursor::new(vec![0; len]);

    ProtectiveMBR::with_lb_size((len / SECTOR - 1) as u32).overwrite_lba0(&mut image)?;
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut table = config.create_from_device(image, Some(uuid(0)))?;
    let sectors = |bytes: usize| (bytes / SECTOR) as u64;
    for (name, at, len, kind) in [
        ("moraine-bios", BIOS_AT, bios_len, partition_types::BIOS),
        ("moraine-boot", fat_at, FAT_BYTES, partition_types::EFI),
    ] {
        table.add_partition_at(
            name,
            if at == BIOS_AT { 1 } else { 2 },
            sectors(at),
            sectors(len),
            kind,
            0,
        )?;
    }
    let mut partitions = table.partitions().clone();
    for (id, partition) in &mut partitions {
        partition.part_guid = uuid(*id as u128);
    }
    table.update_partitions(partitions)?;
    let mut image = table.write()?.into_inner();

    image[..BOOT_CODE].copy_from_slice(&kernel.bios[..BOOT_CODE]);
    let mut fields = stage_2.to_vec();
    let kernel_at = BIOS_AT + stage_2.len();
    let values = [
        kernel_at / SECTOR,
        flat.len().div_ceil(SECTOR),
        flat.len(),
        kernel.span() as usize,
        fat_at / SECTOR,
    ];
    for (i, value) in values.into_iter().enumerate() {
        fields[8 + 4 * i..][..4].copy_from_slice(&u32::try_from(value)?.to_le_bytes());
    }
    image[packet_sector(&kernel.bios)?..][..8].copy_from_slice(&((BIOS_AT / SECTOR) as u64).to_le_bytes());
    image[BIOS_AT..][..fields.len()].copy_from_slice(&fields);
    image[kernel_at..][..flat.len()].copy_from_slice(&flat);
    image[fat_at..][..FAT_BYTES].copy_from_slice(&fat(&pe::wrap(kernel), &text(words)?)?);
    Ok(image)
}

/// Where in the boot sector the second stage's sector number goes: the last field of the disk-address packet, which
/// begins with its own length (16), a zero, and the count of 8 sectors to 0:7e00.
fn packet_sector(bios: &[u8]) -> Result<usize, Box<dyn Error>> {
    let packet = [16, 0, 8, 0, 0x00, 0x7e, 0, 0];
    let at = bios[..BOOT_CODE].windows(8).position(|w| w == packet).ok_or("the boot sector has no packet")?;
    Ok(at + packet.len())
}

/// The FAT partition.
fn fat(boot_file: &[u8], text: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut volume = Cursor::new(vec![0; FAT_BYTES]);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat16)
        .bytes_per_cluster(CLUSTER)
        .max_root_dir_entries(512)
        .volume_id(VOLUME_ID)
        .volume_label(*b"MORAINE    ");
    format_volume(&mut volume, options)?;
    {
        let files = FileSystem::new(&mut volume, FsOptions::new())?;
        let root = files.root_dir();
        root.create_file("MORAINE.TXT")?.write_all(text.as_bytes())?;
        let folder = root.create_dir("EFI")?.create_dir("BOOT")?;
        folder.create_file("BOOTX64.EFI")?.write_all(boot_file)?;
    }
    Ok(volume.into_inner())
}

/// The text file: what it is for, then the words.
fn text(words: &str) -> Result<String, Box<dyn Error>> {
    let text = format!(
        "# Moraine's boot command line: words between spaces or on lines of their own.\r\n\
         # Everything after a # is a remark. At most {TEXT_MAX} bytes.\r\n\
         #   format=blank            make a pool of disks that are entirely blank\r\n\
         #   ip=dhcp                 or ip=ADDRESS/PREFIX,GATEWAY\r\n\
         #   panic=reboot            or panic=halt\r\n\
         {words}\r\n"
    );
    if text.len() > TEXT_MAX {
        return Err(format!(
            "the command line is too long: {} bytes with its head, at most {TEXT_MAX}",
            text.len()
        )
        .into());
    }
    Ok(text)
}

/// Ids that are the same each time: the image is for flashing many machines, nothing looks a disk up by them.
fn uuid(number: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(0x4d6f_7261_696e_6500_8000_0000_0000_0000 + number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Rights, Segment};
    use std::io::Read;

    fn kernel() -> Kernel {
        let mut bios = vec![0; BOOT_SECTOR + 4096];
        bios[100..108].copy_from_slice(&[16, 0, 8, 0, 0x00, 0x7e, 0, 0]);
        bios[BOOT_SECTOR..BOOT_SECTOR + 8].copy_from_slice(b"MORAINE2");
        let code = Segment { offset: 0, bytes: vec![0x90; 3000], len: 4096, rights: Rights::Code };
        let data = Segment { offset: 4096, bytes: vec![7; 100], len: 9000, rights: Rights::Data };
        Kernel { segments: vec![code, data], uefi_entry: 0, bios }
    }

    #[test]
    fn the_image_has_a_valid_table_and_both_ways_to_the_kernel() {
        let image = build(&kernel(), "ip=dhcp").unwrap();
        assert!(image.len() <= 40 * MIB);
        assert_eq!(image[510..512], [0x55, 0xaa]);
        assert_eq!(image[108..116], 2048_u64.to_le_bytes());
        let fields: Vec<u32> =
            image[MIB + 8..MIB + 28].chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
        assert_eq!(fields, [2048 + 8, 9, 4196, 4096 + 9000, 4096]);
        assert_eq!(image[MIB + 4096 + 4096..][..100], [7; 100]);
        let disk = GptConfig::new().writable(false).open_from_device(Cursor::new(image.clone())).unwrap();
        let names: Vec<_> = disk.partitions().values().map(|p| p.name.clone()).collect();
        assert_eq!(names, ["moraine-bios", "moraine-boot"]);

        let volume = Cursor::new(image[2 * MIB..2 * MIB + FAT_BYTES].to_vec());
        let files = FileSystem::new(volume, FsOptions::new()).unwrap();
        assert_eq!((files.fat_type(), files.cluster_size()), (FatType::Fat16, CLUSTER));
        let mut text = String::new();
        files.root_dir().open_file("MORAINE.TXT").unwrap().read_to_string(&mut text).unwrap();
        assert!(text.ends_with("\r\nip=dhcp\r\n"));
        assert!(files.root_dir().open_file("EFI/BOOT/BOOTX64.EFI").is_ok());
    }

    #[test]
    fn the_same_input_gives_the_same_image() {
        assert!(build(&kernel(), "a").unwrap() == build(&kernel(), "a").unwrap());
        assert!(
            build(&kernel(), &"a ".repeat(3000)).is_err(),
            "a line the second stage would cut is refused"
        );
    }
}
