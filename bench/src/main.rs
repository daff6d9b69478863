//! `moraine-bench`: the engine beside other stores of keys, natively, on the same work in the same run.
//!
//! | file | what it measures |
//! |---|---|
//! | `kv.rs` | the engine as a store of keys, beside redb, LMDB, RocksDB and the upper bound of a synced log |
//! | `files.rs` | the filesystem beside the kernel's, on files |
//! | `disk.rs` | a block device whose commands run in the caller's thread |
//! | `meter.rs` | processor time, bytes written, memory |
//! | `random.rs` | random numbers that are the same in every run |
//!
//! `scripts/bench` runs it and writes docs/performance.md.

mod disk;
mod files;
mod kv;
mod meter;
mod random;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "Measures Moraine beside others")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One engine through the key workload; a line of tab-separated values for each phase
    Kv(kv::Arguments),
    /// One filesystem through the work on files; a line of tab-separated values for each phase
    Files(files::Arguments),
    /// Mounts what `files` left without unmounting
    Mount(files::MountArguments),
}

fn main() {
    match Arguments::parse().what {
        What::Kv(arguments) => kv::run(&arguments),
        What::Files(arguments) => files::run(&arguments),
        What::Mount(arguments) => files::mount(&arguments),
    }
}
