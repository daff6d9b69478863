//! The filesystem itself as a [`Store`]: small constants drawn from the seed, so that rare paths are daily ones.

use crate::Random;
use crate::generate::Profile;
use crate::harness::{Disks, Mounted, Store};
use moraine_fs::engine::{Budget, Engine, FormatOptions, NODE_KEYS_MIN};
use moraine_fs::filesystem::Options;
use moraine_fs::repair::{self, Finding, Repair, Reporter};
use moraine_fs::{CacheBudget, Filesystem};
use moraine_platform::Platform;
use std::rc::Rc;

/// A disk that is quickly full.
const FULL_DISK_BYTES: u64 = 12 << 20;
/// Where power is cut everywhere: a disk that has room for a short workload, and one that has not; and their buckets.
const CUT_DISK_BYTES: u64 = 16 << 20;
const FULL_CUT_DISK_BYTES: u64 = 6 << 20;
const CUT_BUCKET_BYTES: u64 = 64 << 10;

/// A filesystem and how large everything in it is.
#[derive(Clone, Debug)]
pub struct Moraine {
    disks: usize,
    disk_bytes: u64,
    format: FormatOptions,
    budget: Budget,
    cache: CacheBudget,
    options: Options,
}

impl Moraine {
    /// Sizes drawn from `seed`; small disks where they are to be full.
    pub fn for_profile(seed: u64, profile: &Profile) -> Moraine {
        let drawn = Moraine::for_seed(seed);
        match profile.room {
            Some(_) => {
                // With a dozen keys a node, metadata would be most of what there is.
                let budget = Budget { node_keys_max: 1000, ..drawn.budget };
                Moraine { disk_bytes: FULL_DISK_BYTES, budget, ..drawn }
            }
            None => drawn,
        }
    }

    /// As small as everything can be, so that a short workload reaches it: a journal of four buckets, a dozen keys a
    /// node, files cut two extents at a time; if it is to be full, a disk of a few MiB.
    pub fn for_cuts(seed: u64, full: bool) -> Moraine {
        let drawn = Moraine::for_seed(seed);
        let keys = if full { 1000 } else { NODE_KEYS_MIN };
        let format = FormatOptions {
            bucket_bytes: CUT_BUCKET_BYTES,
            journal_bytes: 4 * CUT_BUCKET_BYTES,
            ..drawn.format
        };
        Moraine {
            disks: if full { 1 } else { drawn.disks },
            disk_bytes: if full { FULL_CUT_DISK_BYTES } else { CUT_DISK_BYTES },
            format: FormatOptions {
                journal_replicas: if full { 1 } else { format.journal_replicas },
                metadata_replicas: if full { 1 } else { format.metadata_replicas },
                ..format
            },
            budget: Budget { node_keys_max: keys, ..drawn.budget },
            options: Options { cut_keys: 2, ..drawn.options },
            ..drawn
        }
    }

    /// Sizes drawn from `seed`.
    pub fn for_seed(seed: u64) -> Moraine {
        let mut random = Random::for_purpose(seed, "sizes");
        let disks = *random.pick(&[1, 1, 2]);
        let bucket_bytes = *random.pick(&[64 << 10, 128 << 10]);
        Moraine {
            disks,
            disk_bytes: *random.pick(&[32 << 20, 64 << 20]),
            format: FormatOptions {
                bucket_bytes,
                journal_bytes: bucket_bytes * *random.pick(&[8, 16]),
                node_bytes: 32 << 10,
                journal_replicas: 1 + random.below(disks as u64) as u8,
                metadata_replicas: 1 + random.below(disks as u64) as u8,
                ..FormatOptions::default()
            },
            budget: Budget {
                node_cache_bytes: *random.pick(&[256 << 10, 1 << 20]),
                node_keys_max: *random.pick(&[12, 24, 1000]),
                ..Budget::default()
            },
            cache: CacheBudget::of(*random.pick(&[1 << 20, 4 << 20])),
            options: Options { hash_bits: *random.pick(&[3, 62]), cut_keys: *random.pick(&[2, 256]) },
        }
    }
}

/// Gathers what a check finds.
#[derive(Default)]
struct Findings(Vec<String>);

impl Reporter for Findings {
    fn finding(&mut self, finding: &Finding) {
        self.0.push(format!("{:?}: {}", finding.kind, finding.text));
    }
}

async fn fsck(engine: &Engine) -> Result<(), String> {
    let mut findings = Findings::default();
    repair::check(engine, Repair::No, &mut findings).await.map_err(|e| format!("fsck: {e}"))?;
    match findings.0.is_empty() {
        true => Ok(()),
        false => Err(format!("fsck found {}: {}", findings.0.len(), findings.0.join("; "))),
    }
}

impl Store for Moraine {
    type Fs = Filesystem;

    fn disks(&self) -> (usize, u64) {
        (self.disks, self.disk_bytes)
    }

    async fn format(&self, platform: &Platform, disks: &Disks) -> Result<(), String> {
        let made = Engine::format(platform, disks, &self.format, &self.budget).await;
        let engine = made.map_err(|e| format!("format: {e}"))?;
        Filesystem::format_root(&engine).await.map_err(|e| format!("format: {e}"))?;
        engine.unmount().await.map_err(|e| format!("unmount after format: {e}"))
    }

    async fn mount(&self, platform: &Platform, disks: &Disks) -> Result<Mounted<Filesystem>, String> {
        let mounted = Engine::mount(platform, disks, &self.budget).await;
        let engine = mounted.map_err(|e| format!("mount: {e}"))?;
        let end = Some(engine.last_seq());
        let opened = Filesystem::open_with(engine, self.cache, self.options).await;
        Ok(Mounted { fs: Rc::new(opened.map_err(|e| format!("open: {e}"))?), end })
    }

    async fn unmount(&self, fs: Rc<Filesystem>) -> Result<(), String> {
        fs.shutdown().await.map_err(|e| format!("shutdown: {e}"))?;
        fs.engine().unmount().await.map_err(|e| format!("unmount: {e}"))
    }

    async fn check(&self, platform: &Platform, disks: &Disks) -> Result<(), String> {
        let mounted = Engine::mount(platform, disks, &self.budget).await;
        let engine = mounted.map_err(|e| format!("mount for fsck: {e}"))?;
        fsck(&engine).await?;
        engine.unmount().await.map_err(|e| format!("unmount after fsck: {e}"))
    }
}
