//! A damaged pool in use: mounted, walked, read and changed like any other. Errors are fine, whatever they say.

use super::sample::{CACHE_BYTES, budget, options, pattern, plug, root, world};
use crate::Image;
use moraine_fs::engine::Engine;
use moraine_fs::vfs::*;
use moraine_fs::{CacheBudget, Filesystem};

/// Objects that are looked at: more than a sample has.
const OBJECTS_MAX: usize = 200;
/// Entries asked for at a time.
const LISTING: usize = 16;
/// Listings of one directory: far more than its names need.
const LISTINGS_MAX: usize = 100;
/// Bytes read at each end of a file.
const READ_MAX: u64 = 64 << 10;

/// Mounts an image, walks through it, reads everything, changes a little, and unmounts. Returns what the disk holds then;
/// `Err` says what never ended.
pub fn use_all(image: &Image) -> Result<Image, String> {
    let world = world(4);
    let (disk, disks) = plug(&world, image);
    let platform = world.platform();
    let ended = world.try_run(async {
        let Ok(engine) = Engine::mount(&platform, &disks, &budget()).await else { return Ok(()) };
        let opened = Filesystem::open_with(engine.clone(), CacheBudget::of(CACHE_BYTES), options()).await;
        let Ok(fs) = opened else {
            let _ = engine.unmount().await;
            return Ok(());
        };
        let result = match walk(&fs).await {
            Ok(objects) => {
                change(&fs, &objects).await;
                Ok(())
            }
            Err(e) => Err(e),
        };
        let _ = fs.shutdown().await;
        let _ = fs.engine().unmount().await;
        result
    });
    ended.unwrap_or_else(|stall| Err(format!("using it hangs: {stall}")))?;
    Ok(disk.visible_image())
}

/// A name that was found.
struct Named {
    dir: ObjectId,
    name: Vec<u8>,
    object: ObjectId,
    kind: Kind,
}

async fn walk(fs: &Filesystem) -> Result<Vec<Named>, String> {
    let mut found: Vec<Named> = Vec::new();
    let mut dirs = vec![fs.root()];
    while let Some(dir) = dirs.pop() {
        let (mut cookie, mut listings) = (0, 0);
        while let Ok(listing) = fs.readdir(&root(), dir, cookie, LISTING, WithAttributes::Yes).await {
            listings += 1;
            if listings > LISTINGS_MAX {
                return Err(format!("a listing of directory {} never ends", dir.inode));
            }
            for entry in &listing.entries {
                cookie = entry.cookie;
                if entry.name.starts_with(b".") || found.len() >= OBJECTS_MAX {
                    continue;
                }
                if entry.kind == Kind::Dir && found.iter().all(|n| n.object != entry.object) {
                    dirs.push(entry.object);
                }
                look(fs, entry.object).await;
                let _ = fs.lookup(&root(), dir, &entry.name).await;
                let (name, object, kind) = (entry.name.to_vec(), entry.object, entry.kind);
                found.push(Named { dir, name, object, kind });
            }
            if listing.eof || listing.entries.is_empty() {
                break;
            }
        }
    }
    let _ = fs.statfs().await;
    Ok(found)
}

/// Reads all there is of an object.
async fn look(fs: &Filesystem, object: ObjectId) {
    let Ok(attr) = fs.getattr(object).await else { return };
    let _ = fs.readlink(object).await;
    for name in fs.listxattr(object).await.unwrap_or_default() {
        let _ = fs.getxattr(&root(), object, &name).await;
    }
    let _ = fs.segments(object, 0, u64::MAX).await;
    for at in [0, attr.size.saturating_sub(READ_MAX)] {
        let _ = fs.read(&root(), object, at, READ_MAX as u32).await;
    }
}

/// A little of everything that changes something.
async fn change(fs: &Filesystem, found: &[Named]) {
    let caller = root();
    let mode = SetAttr { mode: Some(0o644), ..SetAttr::default() };
    let dirs = found.iter().filter(|n| n.kind == Kind::Dir).map(|n| n.object).take(2);
    for dir in dirs.chain([fs.root()]) {
        let Ok(made) = fs.create(&caller, dir, b"new", CreateMode::Unchecked, &mode).await else { continue };
        let file = made.value.0;
        if let Ok(data) = WriteData::copy_of(0, &pattern(9, 20_000)) {
            let _ = fs.write(&caller, file, 0, data, Stability::Unstable).await;
        }
        let _ = fs.setxattr(&caller, file, b"user.new", b"value", XattrMode::Either).await;
        let _ = fs.link(&caller, file, dir, b"newer").await;
        let _ = fs.commit(file, 0, 0).await;
    }
    for (n, named) in found.iter().enumerate().filter(|(_, named)| named.kind == Kind::File) {
        match n % 6 {
            0 => {
                if let Ok(data) = WriteData::copy_of(4096, &pattern(n as u64, 6000)) {
                    let _ = fs.write(&caller, named.object, 4096, data, Stability::FileSync).await;
                }
            }
            1 => {
                let size = SetAttr { size: Some(3000), ..SetAttr::default() };
                let _ = fs.setattr(&caller, named.object, &size, None).await;
            }
            2 => drop(fs.punch(&caller, named.object, 0, 8192).await),
            3 => drop(fs.rename(&caller, (named.dir, &named.name), (fs.root(), b"moved")).await),
            4 => drop(fs.remove(&caller, named.dir, &named.name).await),
            _ => {}
        }
    }
    let _ = fs.reap().await;
    let _ = fs.sync_all().await;
}
