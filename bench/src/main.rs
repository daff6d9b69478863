//! `moraine-bench`: the engine beside other stores of keys, natively, on the same work in the same run.
//!
//! | file | what it measures |
//! |---|---|
//! | `kv.rs` | the engine as a store of keys, beside redb, LMDB, RocksDB and the upper bound of a synced log |
//! | `meter.rs` | processor time, bytes written, memory |
//!
//! `scripts/bench` runs it and writes docs/performance.md.

mod kv;
mod meter;

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
}

fn main() {
    match Arguments::parse().what {
        What::Kv(arguments) => kv::run(&arguments),
    }
}
