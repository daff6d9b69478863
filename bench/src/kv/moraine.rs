//! Moraine's engine, through the same door as the filesystem's rooms, on a file.

use super::{Change, Key, Store, Value};
use moraine_format::{Pos, Tree};
use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::tx::{Class, Tx};
use moraine_fs::vfs::Seq;
use moraine_host::os::{FileDisk, OpenMode, Reactor};
use moraine_platform::BlockDevice;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

/// A tree whose keys have no triggers, so that the work is that of the others.
const TREE: Tree = Tree::Xattrs;
/// Size of the file; sparse.
const DISK_BYTES: u64 = 16 << 30;
/// Changes in one commit, which must fit half a journal entry. The largest batches take several, and one flush.
const BATCH_MAX: usize = 250;
/// Entries seen at one point of history in a long scan.
const SCAN_PART: usize = 10_000;

pub(super) struct Moraine {
    reactor: Reactor,
    engine: Engine,
}

fn pos(key: &[u8]) -> Pos {
    Pos::from_bytes(key.try_into().expect("a key's length"))
}

impl Moraine {
    pub(super) fn open(dir: &Path, cache_bytes: usize) -> Moraine {
        let path = dir.join("disk");
        FileDisk::make_missing(&path, DISK_BYTES).unwrap();
        let disk: Rc<dyn BlockDevice> = Rc::new(FileDisk::open(&path, OpenMode::Write).unwrap());
        let reactor = Reactor::new().unwrap();
        let budget = Budget { node_cache_bytes: cache_bytes, ..Budget::default() };
        let platform = reactor.platform();
        let options = FormatOptions::default();
        let engine = reactor.block_on(Engine::format(&platform, &[disk], &options, &budget)).unwrap();
        Moraine { reactor, engine }
    }

    /// Commits in as few transactions as the engine takes.
    async fn commit(engine: &Engine, changes: &[Change]) -> Seq {
        let mut last = Seq::default();
        for changes in changes.chunks(BATCH_MAX) {
            let body = async |tx: &mut Tx| {
                for change in changes {
                    match change {
                        Change::Put(key, value) => tx.put(TREE, pos(key), &value[..]),
                        Change::Delete(key) => tx.delete(TREE, pos(key)),
                    }
                }
                Ok(())
            };
            ((), last) = engine.transact(Class::Normal, body).await.unwrap();
        }
        last
    }
}

impl Store for Moraine {
    fn load(&mut self, entries: &mut dyn Iterator<Item = (Key, Value)>) {
        self.reactor.block_on(async {
            let mut last = Seq::default();
            loop {
                let batch: Vec<Change> =
                    (&mut *entries).take(BATCH_MAX).map(|(k, v)| Change::Put(k, v)).collect();
                if batch.is_empty() {
                    break;
                }
                last = Moraine::commit(&self.engine, &batch).await;
            }
            self.engine.durable(last).await.unwrap();
        });
    }

    fn apply(&mut self, changes: &[Change], durable: bool) {
        self.reactor.block_on(async {
            let seq = Moraine::commit(&self.engine, changes).await;
            if durable {
                self.engine.durable(seq).await.unwrap();
            }
        });
    }

    fn get(&mut self, keys: &[Key], see: &mut dyn FnMut(&[u8])) -> usize {
        let look = self.engine.look(|look| {
            let mut found = 0;
            for key in keys {
                if let Some(value) = look.get(TREE, pos(key))? {
                    see(value);
                    found += 1;
                }
            }
            Ok(found)
        });
        self.reactor.block_on(look).unwrap()
    }

    fn scan(&mut self, from: &Key, count: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> usize {
        self.reactor.block_on(async {
            let (mut seen, mut from) = (0, pos(from));
            while seen < count {
                let part = SCAN_PART.min(count - seen);
                let (n, last) = self
                    .engine
                    .look(|look| {
                        let (mut n, mut last) = (0, None);
                        look.scan(TREE, from..=Pos::MAX, |pos, value| {
                            see(&pos.to_bytes(), value);
                            (n, last) = (n + 1, Some(pos));
                            if n < part { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                        })?;
                        Ok((n, last))
                    })
                    .await
                    .unwrap();
                seen += n;
                match last.and_then(Pos::successor) {
                    Some(next) if n == part => from = next,
                    _ => break,
                }
            }
            seen
        })
    }

    fn close(self: Box<Self>) {
        self.reactor.block_on(self.engine.unmount()).unwrap();
    }
}
