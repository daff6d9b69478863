//! redb, with its cache as large as the others'.

use super::{Change, KEY_BYTES, Key, Store, VALUE_BYTES, Value};
use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use std::path::Path;

const TABLE: TableDefinition<'_, &[u8; KEY_BYTES], &[u8; VALUE_BYTES]> = TableDefinition::new("keys");

pub(super) struct Redb(Database);

impl Redb {
    pub(super) fn open(dir: &Path, cache_bytes: usize) -> Redb {
        let base = Database::builder().set_cache_size(cache_bytes).create(dir.join("redb")).unwrap();
        let write = base.begin_write().unwrap();
        write.open_table(TABLE).unwrap();
        write.commit().unwrap();
        Redb(base)
    }
}

impl Store for Redb {
    fn load(&mut self, entries: &mut dyn Iterator<Item = (Key, Value)>) {
        let write = self.0.begin_write().unwrap();
        let mut table = write.open_table(TABLE).unwrap();
        for (key, value) in entries {
            table.insert(&key, &value).unwrap();
        }
        drop(table);
        write.commit().unwrap();
    }

    fn apply(&mut self, changes: &[Change], durable: bool) {
        let mut write = self.0.begin_write().unwrap();
        write.set_durability(if durable { Durability::Immediate } else { Durability::None }).unwrap();
        let mut table = write.open_table(TABLE).unwrap();
        for change in changes {
            match change {
                Change::Put(key, value) => drop(table.insert(key, value).unwrap()),
                Change::Delete(key) => drop(table.remove(key).unwrap()),
            }
        }
        drop(table);
        write.commit().unwrap();
    }

    fn get(&mut self, keys: &[Key], see: &mut dyn FnMut(&[u8])) -> usize {
        let read = self.0.begin_read().unwrap();
        let table = read.open_table(TABLE).unwrap();
        keys.iter().filter(|key| table.get(*key).unwrap().map(|v| see(v.value())).is_some()).count()
    }

    fn scan(&mut self, from: &Key, count: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> usize {
        let read = self.0.begin_read().unwrap();
        let table = read.open_table(TABLE).unwrap();
        let range = table.range::<&Key>(from..).unwrap().take(count);
        range.map(|entry| entry.map(|(k, v)| see(k.value(), v.value())).unwrap()).count()
    }

    fn close(self: Box<Self>) {}
}
