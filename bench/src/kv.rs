//! The same workload of small keys against several stores.
//!
//! Keys are those of a filesystem's extents: 64 bytes an entry, ordered by inode and offset, a hundred to a file.

mod lmdb;
mod moraine;
mod redb;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod wal;

use crate::meter::{self, Meter};
use crate::random::Random;
use std::path::{Path, PathBuf};

/// Bytes of an entry that a user counts, key and value.
const ENTRY_BYTES: u64 = 64;
/// Bytes of a key in the stores that take bytes.
const KEY_BYTES: usize = 20;
/// Bytes of a value.
const VALUE_BYTES: usize = 44;
/// Keys that a file has.
const PER_INODE: u64 = 100;
/// The first file's number.
const FIRST_INODE: u64 = 4096;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// moraine, redb, lmdb, rocksdb or wal
    engine: String,
    /// A directory; what is measured lies in a directory below it, which is emptied before and removed after
    dir: PathBuf,
    /// Entries loaded before the rest
    #[arg(long, default_value_t = 2_000_000)]
    entries: u64,
    /// Cache of the engines that have one of their own, in MiB
    #[arg(long, default_value_t = 512)]
    cache: usize,
    /// Commits of the phases that commit small batches
    #[arg(long, default_value_t = 2000)]
    commits: u64,
    /// Phases to run, separated by commas; the load always runs
    #[arg(long)]
    phases: Option<String>,
    /// The statistics of the device the directory lies on, such as /sys/block/loop0/stat
    #[arg(long)]
    stat: Option<String>,
}

type Key = [u8; KEY_BYTES];
type Value = [u8; VALUE_BYTES];

/// One change.
enum Change {
    Put(Key, Value),
    Delete(Key),
}

/// A store under measurement.
trait Store {
    /// Takes sorted entries in the store's best way; they are durable at the end.
    fn load(&mut self, entries: &mut dyn Iterator<Item = (Key, Value)>);
    /// One atomic batch; durable at the end if asked, else only visible.
    fn apply(&mut self, changes: &[Change], durable: bool);
    /// Values of `keys` at one point of history, shown to `see`; how many there were.
    fn get(&mut self, keys: &[Key], see: &mut dyn FnMut(&[u8])) -> usize;
    /// Up to `count` entries from `from` on, shown to `see`; how many there were.
    fn scan(&mut self, from: &Key, count: usize, see: &mut dyn FnMut(&[u8], &[u8])) -> usize;
    /// A clean end.
    fn close(self: Box<Self>);
}

fn open(name: &str, dir: &Path, cache_bytes: usize) -> Box<dyn Store> {
    match name {
        "moraine" => Box::new(moraine::Moraine::open(dir, cache_bytes)),
        "redb" => Box::new(redb::Redb::open(dir, cache_bytes)),
        "lmdb" => Box::new(lmdb::Lmdb::open(dir)),
        #[cfg(feature = "rocksdb")]
        "rocksdb" => Box::new(rocksdb::RocksDb::open(dir, cache_bytes)),
        "wal" => Box::new(wal::Wal::open(dir)),
        _ => {
            eprintln!(
                "moraine-bench: no engine '{name}': moraine, redb, lmdb, rocksdb (with its feature) or wal"
            );
            std::process::exit(2);
        }
    }
}

fn random_value(random: &mut Random) -> Value {
    let mut value = [0; VALUE_BYTES];
    for part in value.chunks_mut(8) {
        part.copy_from_slice(&random.next().to_le_bytes()[..part.len()]);
    }
    value
}

fn key(inode: u64, offset: u64) -> Key {
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&inode.to_be_bytes());
    key[8..16].copy_from_slice(&offset.to_be_bytes());
    key[16..].copy_from_slice(&u32::MAX.to_be_bytes());
    key
}

/// The key of the `i`-th entry of the load.
fn loaded_key(i: u64) -> Key {
    key(FIRST_INODE + i / PER_INODE, (i % PER_INODE) * 8)
}

/// A key between loaded ones, anywhere.
fn new_key(random: &mut Random, entries: u64) -> Key {
    let i = random.below(entries);
    key(
        FIRST_INODE + i / PER_INODE,
        ((i % PER_INODE) * 8 + 1 + random.below(7)) | (random.below(1 << 40) << 20),
    )
}

/// What a phase did.
struct Done {
    operations: u64,
    entries_written: u64,
}

struct Run<'a> {
    arguments: &'a Arguments,
    dir: PathBuf,
    meter: Meter,
}

impl Run<'_> {
    fn phase(&self, name: &str, work: impl FnOnce() -> Done) {
        let wanted = self.arguments.phases.as_deref().is_none_or(|p| p.split(',').any(|p| p == name));
        if !wanted && name != "load" {
            return;
        }
        let mark = self.meter.mark(&self.dir);
        let done = work();
        let cost = self.meter.since(&mark, &self.dir);
        let amplification = match done.entries_written {
            0 => 0.0,
            n => cost.written as f64 / (n * ENTRY_BYTES) as f64,
        };
        let n = done.operations as f64;
        println!(
            "{}\t{name}\t{}\t{:.3}\t{:.0}\t{:.3}\t{:.1}\t{amplification:.2}\t{:.1}\t{}",
            self.arguments.engine,
            done.operations,
            cost.seconds,
            n / cost.seconds,
            cost.cpu * 1e6 / n,
            cost.written as f64 / 1e6,
            meter::stored_bytes(&self.dir) as f64 / 1e6,
            meter::peak_mib(),
        );
    }
}

pub(crate) fn run(arguments: &Arguments) {
    let dir = arguments.dir.join(&arguments.engine);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("a directory for the store");
    println!("engine\tphase\tops\tseconds\tops/s\tcpu_us/op\twritten_MB\twrite_amp\tstored_MB\tpeak_MiB");
    let run = Run { arguments, dir: dir.clone(), meter: Meter::new(arguments.stat.as_deref()) };
    phases(&run, open(&arguments.engine, &dir, arguments.cache << 20));
    let _ = std::fs::remove_dir_all(&dir);
}

fn phases(run: &Run<'_>, mut store: Box<dyn Store>) {
    const GET_BATCH: u64 = 1000;
    let n = run.arguments.entries;
    let commits = run.arguments.commits;
    let mut random = Random(42);
    let mut sum = 0_u64;
    run.phase("load", || {
        let mut random = Random(1);
        store.load(&mut (0..n).map(|i| (loaded_key(i), random_value(&mut random))));
        Done { operations: n, entries_written: n }
    });
    for (batch, count) in [(1, commits), (100, commits), (10_000, n / 10_000)] {
        run.phase(&format!("put_{batch}"), || {
            for _ in 0..count {
                let changes: Vec<Change> = (0..batch)
                    .map(|_| Change::Put(new_key(&mut random, n), random_value(&mut random)))
                    .collect();
                store.apply(&changes, true);
            }
            Done { operations: batch * count, entries_written: batch * count }
        });
    }
    run.phase("get", || {
        for _ in 0..500 {
            let keys: Vec<Key> = (0..GET_BATCH).map(|_| loaded_key(random.below(n))).collect();
            assert_eq!(store.get(&keys, &mut |v| sum += u64::from(v[0])), keys.len(), "all are there");
        }
        Done { operations: 500 * GET_BATCH, entries_written: 0 }
    });
    run.phase("get_missing", || {
        for _ in 0..500 {
            let keys: Vec<Key> = (0..GET_BATCH).map(|_| new_key(&mut random, n)).collect();
            store.get(&keys, &mut |v| sum += u64::from(v[0]));
        }
        Done { operations: 500 * GET_BATCH, entries_written: 0 }
    });
    run.phase("scan", || {
        let seen =
            store.scan(&[0; KEY_BYTES], usize::MAX, &mut |k, v| sum += u64::from(k[15]) + u64::from(v[0]));
        assert!(seen as u64 >= n, "all are there");
        Done { operations: seen as u64, entries_written: 0 }
    });
    run.phase("scan_100", || {
        let mut seen = 0;
        for _ in 0..20_000 {
            let from = loaded_key(random.below(n));
            seen += store.scan(&from, 100, &mut |k, v| sum += u64::from(k[15]) + u64::from(v[0]));
        }
        Done { operations: seen as u64, entries_written: 0 }
    });
    run.phase("mixed", || {
        // Ninety-five reads to five writes, durable every two hundred steps.
        for step in 0..4_000 {
            let keys: Vec<Key> = (0..95).map(|_| loaded_key(random.below(n))).collect();
            store.get(&keys, &mut |v| sum += u64::from(v[0]));
            let changes: Vec<Change> =
                (0..5).map(|_| Change::Put(loaded_key(random.below(n)), random_value(&mut random))).collect();
            store.apply(&changes, step % 200 == 199);
        }
        Done { operations: 400_000, entries_written: 20_000 }
    });
    run.phase("delete_1000", || {
        for _ in 0..500 {
            let changes: Vec<Change> =
                (0..1000).map(|_| Change::Delete(loaded_key(random.below(n)))).collect();
            store.apply(&changes, true);
        }
        Done { operations: 500_000, entries_written: 500_000 }
    });
    run.phase("close", || {
        store.close();
        Done { operations: 1, entries_written: 0 }
    });
    std::hint::black_box(sum);
}
