//! Our filesystem behind its façade, on a device whose commands run in the caller's thread.

use super::{BLOCK, DEPTH, Files, PER_DIR, block};
use crate::disk;
use crate::random::Random;
use futures_util::stream::{FuturesUnordered, StreamExt};
use moraine_format::{Pos, Tree};
use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::tx::Class;
use moraine_fs::vfs::*;
use moraine_fs::{CacheBudget, Filesystem};
use moraine_host::os::Reactor;
use moraine_platform::BlockDevice;
use std::path::Path;
use std::rc::Rc;

/// Bytes of a write when a file is prepared.
const LARGE: usize = 1 << 20;
/// Memory for nodes and for pages.
const NODES: usize = 512 << 20;
const PAGES: usize = 1 << 30;

pub(super) struct Moraine {
    reactor: Reactor,
    files: Filesystem,
    object: Option<ObjectId>,
}

fn budget() -> Budget {
    Budget { node_cache_bytes: NODES, ..Budget::default() }
}

fn data(offset: u64, bytes: &[u8]) -> WriteData {
    WriteData::copy_of(offset, bytes).unwrap()
}

async fn create(files: &Filesystem, dir: ObjectId, name: &str) -> ObjectId {
    let how = CreateMode::Guarded;
    files.create(&Caller::root(), dir, name.as_bytes(), how, &SetAttr::default()).await.unwrap().value.0
}

async fn make_dir(files: &Filesystem, dir: ObjectId, name: &str) -> ObjectId {
    let made = files.make(&Caller::root(), dir, name.as_bytes(), NewNode::Dir, &SetAttr::default()).await;
    made.unwrap().value.0
}

impl Moraine {
    /// Makes a pool of `device`.
    pub(super) fn make(device: &Path) -> Moraine {
        let disk: Rc<dyn BlockDevice> = Rc::new(disk::Inline::open(device));
        let reactor = Reactor::new().unwrap();
        let platform = reactor.platform();
        let files = reactor.block_on(async {
            let engine =
                Engine::format(&platform, &[disk], &FormatOptions::default(), &budget()).await.unwrap();
            Filesystem::format_root(&engine).await.unwrap();
            Filesystem::open(engine, CacheBudget::of(PAGES)).await.unwrap()
        });
        Moraine { reactor, files, object: None }
    }

    fn write(
        &self,
        object: ObjectId,
        offset: u64,
        bytes: &[u8],
        how: Stability,
    ) -> impl Future<Output = Seq> + use<> {
        let (files, data) = (self.files.clone(), data(offset, bytes));
        async move { files.write(&Caller::root(), object, offset, data, how).await.unwrap().seq }
    }
}

impl Files for Moraine {
    fn commit(&mut self, count: u64, random: &mut Random) {
        let engine = self.files.engine();
        self.reactor.block_on(async {
            for n in 0..count {
                let value = block(random)[..44].to_vec();
                let body = async |tx: &mut moraine_fs::tx::Tx| {
                    tx.put(Tree::Xattrs, Pos { inode: 1 << 40, offset: n, snapshot: u32::MAX }, &value[..]);
                    Ok(())
                };
                let ((), seq) = engine.transact(Class::Normal, body).await.unwrap();
                engine.durable(seq).await.unwrap();
            }
        });
    }

    fn prepare(&mut self, bytes: u64) {
        let object = self.reactor.block_on(async {
            let object = create(&self.files, self.files.root(), "overwritten").await;
            for offset in (0..bytes).step_by(LARGE) {
                self.write(object, offset, &vec![1; LARGE], Stability::Unstable).await;
            }
            self.files.sync_all().await.unwrap();
            object
        });
        self.object = Some(object);
    }

    fn overwrite(&mut self, bytes: u64, count: u64, random: &mut Random) {
        let object = self.object.expect("prepared");
        self.reactor.block_on(async {
            let mut under_way = FuturesUnordered::new();
            for _ in 0..count {
                let at = random.below(bytes / BLOCK as u64) * BLOCK as u64;
                under_way.push(self.write(object, at, &block(random), Stability::Unstable));
                if under_way.len() == DEPTH {
                    under_way.next().await;
                }
            }
            while under_way.next().await.is_some() {}
            let change = self.files.commit(object, 0, 0).await.unwrap();
            self.files.durable(change.seq).await.unwrap();
        });
    }

    fn overwrite_direct(&mut self, _: u64, _: u64) -> bool {
        false
    }

    fn synced(&mut self, bytes: u64, count: u64, random: &mut Random) {
        let object = self.object.expect("prepared");
        self.reactor.block_on(async {
            for _ in 0..count {
                let at = random.below(bytes / BLOCK as u64) * BLOCK as u64;
                let seq = self.write(object, at, &block(random), Stability::DataSync).await;
                self.files.durable(seq).await.unwrap();
            }
        });
    }

    fn create(&mut self, name: &str, count: u64) {
        let mut random = Random(3);
        self.reactor.block_on(async {
            let top = make_dir(&self.files, self.files.root(), name).await;
            let mut dir = top;
            for number in 0..count {
                if number % PER_DIR == 0 {
                    dir = make_dir(&self.files, top, &format!("d{}", number / PER_DIR)).await;
                }
                let file = create(&self.files, dir, &format!("file{number}")).await;
                self.write(file, 0, &block(&mut random), Stability::Unstable).await;
            }
            self.files.sync_all().await.unwrap();
        });
    }

    fn create_synced(&mut self, name: &str, count: u64) {
        self.reactor.block_on(async {
            let dir = make_dir(&self.files, self.files.root(), name).await;
            for number in 0..count {
                let file = create(&self.files, dir, &format!("file{number}")).await;
                let seq = self.write(file, 0, &[1; BLOCK], Stability::FileSync).await;
                self.files.durable(seq).await.unwrap();
            }
        });
    }

    fn sync(&mut self) {
        self.reactor.block_on(self.files.sync_all()).unwrap();
    }
}

/// Mounts `device` and lists a directory; how many entries it has.
pub(super) fn mount(device: &Path) -> usize {
    let disk: Rc<dyn BlockDevice> = Rc::new(disk::Inline::open(device));
    let reactor = Reactor::new().unwrap();
    let platform = reactor.platform();
    reactor.block_on(async {
        let engine = Engine::mount(&platform, &[disk], &budget()).await.unwrap();
        let files = Filesystem::open(engine, CacheBudget::of(PAGES)).await.unwrap();
        let root = Caller::root();
        let (fill, _) = files.lookup(&root, files.root(), b"fill").await.unwrap();
        let (dir, _) = files.lookup(&root, fill, b"d0").await.unwrap();
        let (mut cookie, mut entries) = (0, 0);
        loop {
            let listing = files.readdir(&root, dir, cookie, 1000, WithAttributes::No).await.unwrap();
            entries += listing.entries.len();
            match listing.entries.last() {
                Some(last) if !listing.eof => cookie = last.cookie,
                // `.` and `..` are not counted.
                _ => return entries - 2,
            }
        }
    })
}
