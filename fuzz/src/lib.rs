//! A target for every decoder of bytes from outside: a plain `fn(&[u8])` that must end without a panic, within its bounds of
//! work and memory, whatever the bytes are.
//!
//! | file | idea |
//! |---|---|
//! | `targets.rs` | [`TARGETS`]: all of them, each with its bound on memory |
//! | `targets/disk.rs` | superblock, journal entry, node run, values of keys |
//! | `targets/pool.rs` | a whole pool, changed under right checksums: mounted, used, checked, repaired |
//! | `targets/probe.rs` | disks that may be anybody's |
//! | `targets/rpc.rs` | records, calls, arguments of procedures, the port mapper |
//! | `targets/serve.rs` | the servers, as clients reach them: NFS with MOUNT and portmap, over TCP and UDP; NBD |
//! | `targets/frame.rs` | Ethernet frames into the network stack: ARP, DHCP, router advertisements, TCP |
//! | `targets/devices.rs` | disks and network cards that answer their drivers as they like |
//! | `targets/machine.rs` | what firmware tells: ACPI tables, memory map, clock |
//! | `targets/words.rs` | the boot command line and the configuration file; the log of the boot before |
//! | `mutate.rs` | changed bytes out of good ones, from a seed |
//! | `served.rs` | a server in a simulated world |
//! | `seeds.rs` | good ones to begin with, beside those in `corpus/` |
//! | `campaign.rs` | a target fed for a while, by coverage if that is counted (`base/`) |
//!
//! `tests/targets.rs` runs every target over its seeds, its corpus and mutations of both, in CI. `moraine-fuzz` (`main.rs`)
//! does the same for as long as asked. `tests/hostile.rs` holds what honest clients keep beside hostile ones. `libfuzzer/` guides by coverage; see its README.
#![forbid(unsafe_code)]

pub mod mutate;
pub mod seeds;
pub mod served;
mod targets;

pub use targets::{TARGETS, Target};

use std::path::PathBuf;

/// Where the inputs kept for `target` are.
pub fn corpus_folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Good inputs of a target, and those kept.
pub fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let kept = corpus(target.name).into_iter().map(|(_, bytes)| bytes);
    seeds::of(target.name).into_iter().chain(kept).collect()
}

/// Every input kept for `target`, in the order of their names.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = corpus_folder(target);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("the corpus can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, std::fs::read(path).expect("the corpus can be read"))
        })
        .collect();
    found.sort();
    found
}
