//! RocksDB through a handful of functions of its C library: a log that is synced, no compression, ten bits of filter.

use super::{Change, KEY_BYTES, Key, Store, VALUE_BYTES, Value};
use std::ffi::{CStr, CString, c_char, c_int, c_uchar, c_void};
use std::path::Path;
use std::ptr::null_mut;

type Handle = *mut c_void;
type Fault = *mut c_char;

// rocksdb/c.h of Debian's librocksdb-dev.
unsafe extern "C" {
    fn rocksdb_options_create() -> Handle;
    fn rocksdb_options_set_create_if_missing(options: Handle, on: c_uchar);
    fn rocksdb_options_set_compression(options: Handle, kind: c_int);
    fn rocksdb_options_increase_parallelism(options: Handle, threads: c_int);
    fn rocksdb_options_set_write_buffer_size(options: Handle, bytes: usize);
    fn rocksdb_options_set_level_compaction_dynamic_level_bytes(options: Handle, on: c_uchar);
    fn rocksdb_options_set_block_based_table_factory(options: Handle, table: Handle);
    fn rocksdb_block_based_options_create() -> Handle;
    fn rocksdb_block_based_options_set_block_cache(table: Handle, cache: Handle);
    fn rocksdb_block_based_options_set_filter_policy(table: Handle, filter: Handle);
    fn rocksdb_filterpolicy_create_bloom_full(bits: f64) -> Handle;
    fn rocksdb_cache_create_lru(bytes: usize) -> Handle;
    fn rocksdb_open(options: Handle, path: *const c_char, fault: *mut Fault) -> Handle;
    fn rocksdb_close(base: Handle);
    fn rocksdb_writeoptions_create() -> Handle;
    fn rocksdb_writeoptions_set_sync(options: Handle, on: c_uchar);
    fn rocksdb_writeoptions_disable_WAL(options: Handle, on: c_int);
    fn rocksdb_readoptions_create() -> Handle;
    fn rocksdb_flushoptions_create() -> Handle;
    fn rocksdb_flush(base: Handle, options: Handle, fault: *mut Fault);
    fn rocksdb_writebatch_create() -> Handle;
    fn rocksdb_writebatch_clear(batch: Handle);
    fn rocksdb_writebatch_put(batch: Handle, k: *const u8, k_len: usize, v: *const u8, v_len: usize);
    fn rocksdb_writebatch_delete(batch: Handle, k: *const u8, k_len: usize);
    fn rocksdb_write(base: Handle, options: Handle, batch: Handle, fault: *mut Fault);
    fn rocksdb_get_pinned(b: Handle, o: Handle, k: *const u8, k_len: usize, f: *mut Fault) -> Handle;
    fn rocksdb_pinnableslice_value(slice: Handle, len: *mut usize) -> *const u8;
    fn rocksdb_pinnableslice_destroy(slice: Handle);
    fn rocksdb_create_iterator(base: Handle, options: Handle) -> Handle;
    fn rocksdb_iter_seek(iterator: Handle, k: *const u8, k_len: usize);
    fn rocksdb_iter_valid(iterator: Handle) -> c_uchar;
    fn rocksdb_iter_next(iterator: Handle);
    fn rocksdb_iter_key(iterator: Handle, len: *mut usize) -> *const u8;
    fn rocksdb_iter_value(iterator: Handle, len: *mut usize) -> *const u8;
    fn rocksdb_iter_destroy(iterator: Handle);
}

/// Bytes of a table in memory before it is written out.
const WRITE_BUFFER_BYTES: usize = 64 << 20;
/// Entries of the load that are written at once.
const LOAD_BATCH: usize = 10_000;

pub(super) struct RocksDb {
    base: Handle,
    synced: Handle,
    unsynced: Handle,
    unlogged: Handle,
    reading: Handle,
    batch: Handle,
}

/// Calls a function that tells faults through its last parameter.
fn checked<T>(call: impl FnOnce(*mut Fault) -> T) -> T {
    let mut fault = null_mut();
    let result = call(&mut fault);
    if !fault.is_null() {
        // SAFETY: a fault is a C string of the library.
        panic!("RocksDB: {:?}", unsafe { CStr::from_ptr(fault) });
    }
    result
}

impl RocksDb {
    pub(super) fn open(dir: &Path, cache_bytes: usize) -> RocksDb {
        let path = CString::new(dir.to_str().expect("a plain path")).expect("no zero in a path");
        // SAFETY: handles go only where the library's header says, and live as long as the process.
        unsafe {
            let options = rocksdb_options_create();
            rocksdb_options_set_create_if_missing(options, 1);
            rocksdb_options_set_compression(options, 0);
            rocksdb_options_increase_parallelism(options, 2);
            rocksdb_options_set_write_buffer_size(options, WRITE_BUFFER_BYTES);
            rocksdb_options_set_level_compaction_dynamic_level_bytes(options, 1);
            let table = rocksdb_block_based_options_create();
            rocksdb_block_based_options_set_block_cache(table, rocksdb_cache_create_lru(cache_bytes));
            rocksdb_block_based_options_set_filter_policy(
                table,
                rocksdb_filterpolicy_create_bloom_full(10.0),
            );
            rocksdb_options_set_block_based_table_factory(options, table);
            let base = checked(|fault| rocksdb_open(options, path.as_ptr(), fault));
            let [synced, unsynced, unlogged] = [(); 3].map(|()| rocksdb_writeoptions_create());
            rocksdb_writeoptions_set_sync(synced, 1);
            rocksdb_writeoptions_disable_WAL(unlogged, 1);
            let (reading, batch) = (rocksdb_readoptions_create(), rocksdb_writebatch_create());
            RocksDb { base, synced, unsynced, unlogged, reading, batch }
        }
    }

    fn queue(&mut self, change: &Change) {
        // SAFETY: the library copies keys and values.
        unsafe {
            match change {
                Change::Put(k, v) => {
                    rocksdb_writebatch_put(self.batch, k.as_ptr(), KEY_BYTES, v.as_ptr(), VALUE_BYTES);
                }
                Change::Delete(k) => rocksdb_writebatch_delete(self.batch, k.as_ptr(), KEY_BYTES),
            }
        }
    }

    fn write(&mut self, options: Handle) {
        // SAFETY: all handles are this store's own.
        unsafe {
            checked(|fault| rocksdb_write(self.base, options, self.batch, fault));
            rocksdb_writebatch_clear(self.batch);
        }
    }

    fn flush(&mut self) {
        // SAFETY: the handle is this store's own.
        checked(|fault| unsafe { rocksdb_flush(self.base, rocksdb_flushoptions_create(), fault) });
    }
}

impl Store for RocksDb {
    fn load(&mut self, entries: &mut dyn Iterator<Item = (Key, Value)>) {
        for (i, (key, value)) in entries.enumerate() {
            self.queue(&Change::Put(key, value));
            if i % LOAD_BATCH == LOAD_BATCH - 1 {
                self.write(self.unlogged);
            }
        }
        self.write(self.unlogged);
        self.flush();
    }

    fn apply(&mut self, changes: &[Change], durable: bool) {
        changes.iter().for_each(|change| self.queue(change));
        self.write(if durable { self.synced } else { self.unsynced });
    }

    fn get(&mut self, keys: &[Key], see: &mut dyn FnMut(&[u8])) -> usize {
        let mut found = 0;
        for key in keys {
            // SAFETY: a pinned value is good until it is destroyed.
            unsafe {
                let slice =
                    checked(|f| rocksdb_get_pinned(self.base, self.reading, key.as_ptr(), KEY_BYTES, f));
                if slice.is_null() {
                    continue;
                }
                let mut len = 0;
                let value = rocksdb_pinnableslice_value(slice, &mut len);
                see(std::slice::from_raw_parts(value, len));
                rocksdb_pinnableslice_destroy(slice);
            }
            found += 1;
        }
        found
    }

    fn scan(&mut self, from: &Key, count: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> usize {
        let mut seen = 0;
        // SAFETY: key and value of an iterator are good until it moves on.
        unsafe {
            let iterator = rocksdb_create_iterator(self.base, self.reading);
            rocksdb_iter_seek(iterator, from.as_ptr(), KEY_BYTES);
            while seen < count && rocksdb_iter_valid(iterator) != 0 {
                let (mut k_len, mut v_len) = (0, 0);
                let key = rocksdb_iter_key(iterator, &mut k_len);
                let value = rocksdb_iter_value(iterator, &mut v_len);
                see(std::slice::from_raw_parts(key, k_len), std::slice::from_raw_parts(value, v_len));
                rocksdb_iter_next(iterator);
                seen += 1;
            }
            rocksdb_iter_destroy(iterator);
        }
        seen
    }

    fn close(mut self: Box<Self>) {
        self.flush();
        // SAFETY: nothing uses the handle after this.
        unsafe { rocksdb_close(self.base) }
    }
}
