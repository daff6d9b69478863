//! LMDB through heed.

use super::{Change, Key, Store, Value};
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, FlagSetMode, PutFlags};
use std::ops::Bound;
use std::path::Path;

/// Address space for the map; sparse.
const MAP_BYTES: usize = 16 << 30;

pub(super) struct Lmdb {
    env: Env,
    base: Database<Bytes, Bytes>,
    synced: bool,
}

impl Lmdb {
    pub(super) fn open(dir: &Path) -> Lmdb {
        // SAFETY: nobody else has this directory's files, which this process has just made.
        let env = unsafe { EnvOpenOptions::new().map_size(MAP_BYTES).open(dir).unwrap() };
        let mut write = env.write_txn().unwrap();
        let base = env.create_database(&mut write, None).unwrap();
        write.commit().unwrap();
        Lmdb { env, base, synced: true }
    }

    fn set_synced(&mut self, synced: bool) {
        if self.synced != synced {
            let mode = if synced { FlagSetMode::Disable } else { FlagSetMode::Enable };
            // SAFETY: no transaction is open, and no other thread uses the environment.
            unsafe { self.env.set_flags(EnvFlags::NO_SYNC, mode).unwrap() };
            self.synced = synced;
        }
    }
}

impl Store for Lmdb {
    fn load(&mut self, entries: &mut dyn Iterator<Item = (Key, Value)>) {
        self.set_synced(true);
        let mut write = self.env.write_txn().unwrap();
        for (key, value) in entries {
            self.base.put_with_flags(&mut write, PutFlags::APPEND, &key, &value).unwrap();
        }
        write.commit().unwrap();
    }

    fn apply(&mut self, changes: &[Change], durable: bool) {
        self.set_synced(durable);
        let mut write = self.env.write_txn().unwrap();
        for change in changes {
            match change {
                Change::Put(key, value) => self.base.put(&mut write, key, value).unwrap(),
                Change::Delete(key) => drop(self.base.delete(&mut write, key).unwrap()),
            }
        }
        write.commit().unwrap();
    }

    fn get(&mut self, keys: &[Key], see: &mut dyn FnMut(&[u8])) -> usize {
        let read = self.env.read_txn().unwrap();
        keys.iter().filter(|key| self.base.get(&read, *key).unwrap().map(&mut *see).is_some()).count()
    }

    fn scan(&mut self, from: &Key, count: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> usize {
        let read = self.env.read_txn().unwrap();
        let range = (Bound::Included(&from[..]), Bound::<&[u8]>::Unbounded);
        let entries = self.base.range(&read, &range).unwrap().take(count);
        entries.map(|entry| entry.map(|(k, v)| see(k, v)).unwrap()).count()
    }

    fn close(mut self: Box<Self>) {
        self.set_synced(true);
        self.env.force_sync().unwrap();
    }
}
