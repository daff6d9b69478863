//! No store but the upper bound of one: a map in memory and a log that is synced. It does what a journal must do for
//! each commit and nothing else.

use super::{Change, Key, Store, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Length, number and checksum of a batch.
const HEADER_BYTES: usize = 16;
/// Bytes of the load that are written at once.
const CHUNK_BYTES: usize = 1 << 20;

pub(super) struct Wal {
    map: BTreeMap<Key, Value>,
    log: File,
    buffer: Vec<u8>,
}

impl Wal {
    pub(super) fn open(dir: &Path) -> Wal {
        Wal { map: BTreeMap::new(), log: File::create(dir.join("log")).unwrap(), buffer: Vec::new() }
    }

    fn write(&mut self, durable: bool) {
        self.log.write_all(&self.buffer).unwrap();
        self.buffer.clear();
        if durable {
            self.log.sync_data().unwrap();
        }
    }

    fn put(&mut self, key: Key, value: Value) {
        self.buffer.extend_from_slice(&key);
        self.buffer.extend_from_slice(&value);
        self.map.insert(key, value);
    }
}

impl Store for Wal {
    fn load(&mut self, entries: &mut dyn Iterator<Item = (Key, Value)>) {
        for (key, value) in entries {
            self.put(key, value);
            if self.buffer.len() > CHUNK_BYTES {
                self.write(false);
            }
        }
        self.write(true);
    }

    fn apply(&mut self, changes: &[Change], durable: bool) {
        self.buffer.extend_from_slice(&[0; HEADER_BYTES]);
        for change in changes {
            match change {
                Change::Put(key, value) => self.put(*key, *value),
                Change::Delete(key) => {
                    self.buffer.extend_from_slice(key);
                    self.map.remove(key);
                }
            }
        }
        self.write(durable);
    }

    fn get(&mut self, keys: &[Key], see: &mut dyn FnMut(&[u8])) -> usize {
        keys.iter().filter(|key| self.map.get(*key).map(|v| see(v)).is_some()).count()
    }

    fn scan(&mut self, from: &Key, count: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> usize {
        self.map.range::<Key, _>(from..).take(count).map(|(k, v)| see(k, v)).count()
    }

    fn close(self: Box<Self>) {}
}
