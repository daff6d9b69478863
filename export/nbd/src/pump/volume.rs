//! Volumes: files below `/volumes`, found by name, and what the connections to one of them share.

use super::flush::Flushes;
use alloc::collections::BTreeMap;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use moraine_fs::FsError;
use moraine_fs::Vfs;
use moraine_fs::vfs::{Attr, Caller, FsResult, Kind, NAME_MAX, ObjectId, Seq, WithAttributes};
use moraine_platform::sync::Event;

/// The folder of the pool's root in which files are volumes.
const FOLDER: &[u8] = b"volumes";
/// The deepest a volume may lie below it.
const DEPTH_MAX: usize = 16;
/// The most volumes that LIST names.
const LISTED_MAX: usize = 4096;
/// The most bytes their names have together.
const LISTED_BYTES_MAX: usize = 192 << 10;
/// What the answer to a LIST takes of the common payload while it is made and sent, in bytes: the names, and the
/// replies with them.
pub(crate) const LIST_PAYLOAD: u64 = 512 << 10;
/// The most directory entries LIST looks at.
const VISITED_MAX: usize = 65_536;
/// Entries asked of the filesystem at a time.
const LISTING: usize = 256;

/// Finds the volume called `name`.
pub(crate) async fn find<V: Vfs>(vfs: &V, name: &[u8]) -> FsResult<(ObjectId, Attr)> {
    let caller = Caller::root();
    let (mut object, mut attr) = vfs.lookup(&caller, vfs.root(), FOLDER).await?;
    for (depth, part) in name.split(|&b| b == b'/').enumerate() {
        if depth >= DEPTH_MAX || part.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        if part.is_empty() || part == b"." || part == b".." || part.contains(&0) {
            return Err(FsError::BadName);
        }
        if attr.kind != Kind::Dir {
            return Err(FsError::NotDir);
        }
        (object, attr) = vfs.lookup(&caller, object, part).await?;
    }
    if attr.kind == Kind::File { Ok((object, attr)) } else { Err(FsError::BadType) }
}

/// Whether writes to a volume are refused: nobody may write the file.
pub(crate) fn read_only(attr: &Attr) -> bool {
    attr.mode & 0o222 == 0
}

/// Names of all volumes, as many as the bounds allow; a pool without the folder has none.
pub(crate) async fn list<V: Vfs>(vfs: &V) -> FsResult<Vec<Vec<u8>>> {
    let caller = Caller::root();
    let folder = match vfs.lookup(&caller, vfs.root(), FOLDER).await {
        Ok((folder, attr)) if attr.kind == Kind::Dir => folder,
        Ok(_) | Err(FsError::NotFound) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    let (mut visited, mut bytes) = (0, 0);
    let mut folders = Vec::from([(folder, Vec::new(), 1)]);
    while let Some((folder, path, depth)) = folders.pop() {
        let mut cookie = 0;
        loop {
            let listing = match vfs.readdir(&caller, folder, cookie, LISTING, WithAttributes::No).await {
                Ok(listing) => listing,
                // Removed since its parent was read.
                Err(FsError::Stale | FsError::NotFound) => break,
                Err(error) => return Err(error),
            };
            for entry in &listing.entries {
                cookie = entry.cookie;
                let dots = matches!(&*entry.name, b"." | b"..");
                visited += 1;
                // The protocol's names are UTF-8; a volume with another name is served but not listed.
                if dots || core::str::from_utf8(&entry.name).is_err() {
                    continue;
                }
                let mut name = path.clone();
                name.extend_from_slice(&entry.name);
                match entry.kind {
                    Kind::File => {
                        bytes += name.len();
                        names.push(name);
                    }
                    Kind::Dir if depth < DEPTH_MAX => {
                        name.push(b'/');
                        folders.push((entry.object, name, depth + 1));
                    }
                    _ => {}
                }
            }
            if visited >= VISITED_MAX || names.len() >= LISTED_MAX || bytes >= LISTED_BYTES_MAX {
                moraine_platform::warn!("nbd", "too many volumes to list them all");
                return Ok(names);
            }
            if listing.eof || listing.entries.is_empty() {
                break;
            }
        }
    }
    names.sort();
    Ok(names)
}

/// What all connections to one volume share.
#[derive(Default)]
pub(crate) struct Volume {
    /// Its flushes.
    pub(crate) flushes: Flushes,
    latest: Cell<Seq>,
    ghosts: Cell<u64>,
    settled: Event,
}

impl Volume {
    /// The newest change other than a write that has returned: a flush must reach it too.
    pub(crate) fn latest(&self) -> Seq {
        self.latest.get()
    }

    /// A change other than a write has returned.
    pub(crate) fn changed(&self, seq: Seq) {
        self.latest.set(self.latest.get().max(seq));
    }

    /// A client is gone with `count` changes under way. They end before a client that comes after it may begin, lest
    /// one of them lands on top of what that client writes again.
    pub(crate) fn orphaned(&self, count: u64) {
        self.ghosts.set(self.ghosts.get() + count);
    }

    /// A change whose client is gone has ended.
    pub(crate) fn orphan_ended(&self) {
        self.ghosts.set(self.ghosts.get() - 1);
        self.settled.notify();
    }

    /// Waits until no change of a client that is gone is under way.
    pub(crate) async fn without_ghosts(&self) {
        self.settled.until(|| (self.ghosts.get() == 0).then_some(())).await
    }
}

/// The volumes in use.
#[derive(Default)]
pub(crate) struct Volumes {
    volumes: RefCell<BTreeMap<ObjectId, Weak<Volume>>>,
}

impl Volumes {
    /// The one of this object, shared with whoever uses it already.
    pub(crate) fn of(&self, object: ObjectId) -> Rc<Volume> {
        let mut volumes = self.volumes.borrow_mut();
        volumes.retain(|_, volume| volume.strong_count() > 0);
        if let Some(volume) = volumes.get(&object).and_then(Weak::upgrade) {
            return volume;
        }
        let volume = Rc::new(Volume::default());
        volumes.insert(object, Rc::downgrade(&volume));
        volume
    }
}
