//! A pool from its disks to a filesystem that can be served, and back.

use crate::survey::{Disk, Plan, plan, survey};
use crate::{Config, Memory};
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use moraine_fs::engine::{Budget, Engine, PoolError};
use moraine_fs::superblock::FormatOptions;
use moraine_fs::vfs::FsResult;
use moraine_fs::{CacheBudget, Filesystem};
use moraine_platform::{BlockDevice, Platform, info};

/// The engine's part of the memory budget.
fn engine_budget(memory: &Memory) -> Budget {
    let mut budget = Budget { node_cache_bytes: bytes(memory.nodes), ..Budget::default() };
    budget.journal.dirty_bytes_max = budget.journal.dirty_bytes_max.min(memory.journal);
    budget
}

fn bytes(share: u64) -> usize {
    usize::try_from(share).unwrap_or(usize::MAX)
}

/// A mounted pool.
pub struct Pool {
    engine: Engine,
    files: Rc<Filesystem>,
}

impl Pool {
    /// Makes a pool of `disks`, whatever they hold, with an empty directory tree on it. When this returns it is
    /// durable and not mounted.
    pub async fn make(
        platform: &Platform,
        disks: &[Rc<dyn BlockDevice>],
        options: &FormatOptions,
    ) -> Result<(), PoolError> {
        let engine = Engine::format(platform, disks, options, &Budget::default()).await?;
        Filesystem::format_root(&engine).await?;
        engine.unmount().await?;
        Ok(())
    }

    /// Mounts the pool that `disks` make up.
    pub async fn mount(
        platform: &Platform,
        disks: &[Rc<dyn BlockDevice>],
        memory: &Memory,
    ) -> Result<Pool, PoolError> {
        let engine = Engine::mount(platform, disks, &engine_budget(memory)).await?;
        match Filesystem::open(engine.clone(), CacheBudget::of(bytes(memory.pages))).await {
            Ok(files) => Ok(Pool { engine, files: Rc::new(files) }),
            Err(why) => {
                // Whatever could be recovered is kept; the reason for not mounting is what matters.
                let _ = engine.unmount().await;
                Err(why.into())
            }
        }
    }

    /// Its filesystem.
    pub fn files(&self) -> Rc<Filesystem> {
        self.files.clone()
    }

    /// Writes everything back and ends. Nobody may use the filesystem any more.
    pub async fn unmount(self) -> FsResult<()> {
        let files = self.files.shutdown().await;
        let engine = self.engine.unmount().await;
        files.and(engine)
    }
}

/// Why there is no pool to serve, with every disk that was looked at. Shown as the lines for the console, the first of
/// which is `moraine idle`.
#[derive(Debug)]
pub struct Idle {
    /// What was found.
    pub disks: Vec<Disk>,
    /// Why the pool that was found is not served, if there was one.
    pub reason: Option<String>,
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("moraine idle")?;
        if let Some(reason) = &self.reason {
            write!(f, "\n  the pool cannot be mounted: {reason}")?;
        }
        if self.disks.is_empty() {
            f.write_str("\n  no disks")?;
        }
        for disk in &self.disks {
            write!(f, "\n  {disk}")?;
        }
        Ok(())
    }
}

/// Looks at every disk and mounts the pool it finds; makes one first of blank disks if there is none and the
/// configuration says so.
pub async fn open_pool(
    platform: &Platform,
    devices: &[Rc<dyn BlockDevice>],
    config: &Config,
    memory: &Memory,
) -> Result<Pool, Idle> {
    let disks = survey(devices).await;
    let chosen =
        |which: &[usize]| -> Vec<Rc<dyn BlockDevice>> { which.iter().map(|i| devices[*i].clone()).collect() };
    let members = match plan(&disks, config.blank_disks) {
        Plan::Idle => return Err(Idle { disks, reason: None }),
        Plan::Mount(members) => chosen(&members),
        Plan::Format(blank) => {
            for i in &blank {
                info!("appliance", "making a pool of {}", disks[*i]);
            }
            let members = chosen(&blank);
            if let Err(why) = Pool::make(platform, &members, &FormatOptions::default()).await {
                return Err(Idle { disks, reason: Some(why.to_string()) });
            }
            members
        }
    };
    Pool::mount(platform, &members, memory).await.map_err(|why| Idle { disks, reason: Some(why.to_string()) })
}
