//! Disks that may be anybody's: what is on them is told, nobody's data is called blank, and who asks for it gets a pool.

use core::cell::RefCell;
use moraine_appliance::{BlankDisks, Disk, Plan, plan};
use moraine_format::superblock::slot_offsets;
use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::superblock::{Found, probe as look};
use moraine_platform::BlockDevice;
use moraine_sim::{DiskConfig, Image, World, WorldConfig};
use std::rc::Rc;

/// Size of the disk: its ends, as they are looked at, are all of it.
const DISK_BYTES: u64 = 2 << 20;
/// Polls that one input may cost.
const POLLS_MAX: u64 = 200_000;

/// The first byte says whether a pool is made of the disk afterwards; then pieces of bytes: three bytes of a place (the
/// topmost bit: from the end; the next: in the slot of a superblock), one of a length, the bytes.
pub(super) fn probe(bytes: &[u8]) {
    let Some((how, mut rest)) = bytes.split_first() else { return };
    let mut image = Image::new(DISK_BYTES);
    while let Some(([high, middle, low, len], behind)) = rest.split_first_chunk() {
        let (piece, behind) = behind.split_at(behind.len().min(usize::from(*len)));
        rest = behind;
        let place = u64::from(u32::from_be_bytes([0, high & 0x3f, *middle, *low])) % (DISK_BYTES / 2);
        let place = match high >> 6 {
            0 => place,
            1 => slot_offsets(DISK_BYTES)[place as usize % 4] + place / 4 % 8192,
            _ => DISK_BYTES - 1 - place,
        };
        let piece = &piece[..piece.len().min((DISK_BYTES - place) as usize)];
        image.write(place, piece);
        if high >> 6 == 1 {
            seal(&mut image, place);
        }
    }
    let untouched = image.difference(&Image::new(DISK_BYTES)).is_empty();
    let world = World::with(WorldConfig { poll_limit: POLLS_MAX, ..WorldConfig::new(6) });
    let disk = world.disk_with(image.clone(), DiskConfig::default());
    let platform = world.platform();
    let found = RefCell::new(None);
    let ended = world.try_run(async {
        let first = look(&*disk).await;
        assert!(!first.to_string().is_empty());
        assert_eq!(first == Found::Blank, untouched, "{first:?}");
        let disks = [Disk { name: "disk".into(), size: DISK_BYTES, found: first.clone() }];
        let chosen = plan(&disks, BlankDisks::Format);
        let unfinished = matches!(&first, Found::Ours(superblock) if superblock.is_being_made());
        assert_eq!(chosen == Plan::Format(vec![0]), untouched || unfinished, "{chosen:?}");
        *found.borrow_mut() = Some(first);
        if how & 1 != 0 {
            let disks: Vec<Rc<dyn BlockDevice>> = vec![disk.clone()];
            let options =
                FormatOptions { bucket_bytes: 64 << 10, node_bytes: 32 << 10, ..FormatOptions::default() };
            let engine = Engine::format(&platform, &disks, &options, &Budget::default()).await;
            let engine = engine.expect("the disk is large enough");
            engine.unmount().await.expect("the disk works");
            let now = look(&*disk).await;
            assert!(matches!(now, Found::Ours(_)), "{now:?}");
        }
    });
    if let Err(stall) = ended {
        panic!("a probe hangs: {stall}");
    }
    if how & 1 == 0 {
        assert_eq!(disk.visible_image().hash(), image.hash(), "looking at a disk does not change it");
    }
}

/// Makes the checksum of the superblock right that `place` may lie in.
fn seal(image: &mut Image, place: u64) {
    let slot = place / (64 << 10) * (64 << 10);
    let mut bytes = vec![0; 16 << 10];
    image.read(slot, &mut bytes);
    let used = u32::from_le_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]) as usize;
    if (64..=bytes.len()).contains(&used) {
        let sum = moraine_accel::crc32c_append(moraine_accel::crc32c(&bytes[..56]), &bytes[64..used]);
        image.write(slot + 56, &u64::from(sum).to_le_bytes());
    }
}
