//! Worlds in which stored bytes rot: what is handed out is right or an error, and nothing panics or hangs.

use crate::disk::{DiskConfig, Image};
use crate::generate::{Generator, Profile};
use crate::harness::{Client, Store, Tally, blank, devices, plug};
use crate::world::World;
use moraine_fs::Vfs;
use moraine_fs::vfs::{Caller, FsResult, Kind, ObjectId};
use moraine_model::tree::{Tree, hash};
use moraine_platform::BLOCK_SIZE;
use std::collections::BTreeMap;

/// Bytes that rot in one world, at most.
const ROT_MAX: u64 = 40;

/// Fills a filesystem, unmounts it, flips bits in what the disks hold, and reads all that can still be read.
pub fn rot_world<S: Store>(store: &S, seed: u64, profile: &Profile, steps: usize) -> Result<Tally, String> {
    let world = World::new(seed);
    let disks = plug(&world, &blank(store), &DiskConfig::default());
    let (platform, seen) = (world.platform(), devices(&disks));
    let expected = world.run(async {
        store.format(&platform, &seen).await?;
        let fs = store.mount(&platform, &seen).await?.fs;
        let generator = Generator::new(profile.clone(), world.random("workload"));
        let mut client = Client::alone(&*fs, Some(generator)).await?;
        client.work(&*fs, world.trace(), steps).await?;
        store.unmount(fs).await?;
        Ok::<Tree, String>(client.expected())
    })?;
    let mut random = world.random("rot");
    for disk in &disks {
        let used = disk.visible_image().difference(&Image::new(disk.visible_image().size()));
        for _ in 0..random.below(ROT_MAX) {
            let block = *random.pick(&used) * BLOCK_SIZE as u64;
            disk.rot(block, BLOCK_SIZE as u64, 1, &mut random);
        }
    }
    let images: Vec<Image> = disks.iter().map(|disk| disk.visible_image()).collect();
    let rotten = World::new(seed ^ 1 << 50);
    let (disks, platform) = (plug(&rotten, &images, &DiskConfig::default()), rotten.platform());
    let seen = devices(&disks);
    let outcome = rotten.try_run(async {
        // Not mounting what is damaged is an honest answer.
        let Ok(mounted) = store.mount(&platform, &seen).await else { return Ok(()) };
        let checked = read_what_can_be(&*mounted.fs, &expected).await;
        // So is not being able to end in good order.
        let _ = store.unmount(mounted.fs).await;
        checked
    });
    outcome.map_err(|stall| stall.to_string())??;
    let hash = crate::trace::mix(world.trace().hash(), rotten.trace().hash());
    Ok(Tally { worlds: 1, steps: steps as u64, cuts: 0, hash })
}

/// Reads every path of the model: attributes, targets and blocks are as they were, or reading them is an error.
async fn read_what_can_be<V: Vfs>(fs: &V, expected: &Tree) -> Result<(), String> {
    let root = Caller::root();
    for (path, object) in &expected.paths {
        let name = String::from_utf8_lossy(path);
        let found: FsResult<ObjectId> = async {
            let mut at = fs.root();
            for part in path.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
                at = fs.lookup(&root, at, part).await?.0;
            }
            Ok(at)
        }
        .await;
        let at = match found {
            Ok(at) => at,
            Err(error) if is_honest(error) => continue,
            Err(error) => return Err(format!("/{name} is there, but looking it up says: {error}")),
        };
        let Ok(attr) = fs.getattr(at).await else { continue };
        if (attr.kind, attr.mode, attr.uid, attr.gid) != (object.kind, object.mode, object.uid, object.gid) {
            return Err(format!("/{name} was {object}, now {attr:?}"));
        }
        if attr.kind != Kind::File {
            continue;
        }
        if attr.size != object.size {
            return Err(format!("/{name} had {} bytes, now {}", object.size, attr.size));
        }
        let blocks: BTreeMap<u64, u64> = object.blocks.clone();
        for block in 0..attr.size.div_ceil(BLOCK_SIZE as u64).min(600) {
            let Ok(read) = fs.read(&root, at, block * BLOCK_SIZE as u64, BLOCK_SIZE as u32).await else {
                continue;
            };
            let wanted = blocks.get(&block).copied().unwrap_or_else(|| hash(&[]));
            if hash(&read.to_vec()) != wanted {
                return Err(format!("/{name}: block {block} is handed out with wrong bytes"));
            }
        }
    }
    Ok(())
}

/// Errors that say that something is damaged. To deny that it is there would be a lie.
pub(crate) fn is_honest(error: moraine_fs::FsError) -> bool {
    use moraine_fs::FsError::*;
    matches!(error, Checksum | DeviceRead | DeviceWrite | Corrupt | Stopped)
}
