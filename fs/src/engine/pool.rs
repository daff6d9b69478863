//! Pools: made on disks, mounted, unmounted.

use super::mount::{Budget, RunError};
use super::{Engine, Mode};
use crate::superblock::{
    self, AssembleError, Completeness, FormatOptions, MakeError, NoDevice, Superblocks, Unusable,
};
use crate::vfs::{FsError, FsResult};
use alloc::rc::Rc;
use core::fmt;
use moraine_format::superblock::INCOMPAT_MAKING;
use moraine_platform::{BlockDevice, Platform};

/// Why a pool could not be made or mounted.
#[derive(Debug)]
pub enum PoolError {
    /// The disks cannot be made a pool.
    Make(MakeError),
    /// The disks do not make up a pool.
    Assemble(AssembleError),
    /// The superblock cannot be written.
    Superblock(NoDevice),
    /// The pool they make up must not be used like this.
    Unusable(Unusable),
    /// What the disks hold cannot be mounted.
    Run(RunError),
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolError::Make(e) => e.fmt(f),
            PoolError::Assemble(e) => e.fmt(f),
            PoolError::Superblock(e) => e.fmt(f),
            PoolError::Unusable(e) => e.fmt(f),
            PoolError::Run(e) => e.fmt(f),
        }
    }
}

impl core::error::Error for PoolError {}

impl From<FsError> for PoolError {
    fn from(e: FsError) -> PoolError {
        PoolError::Run(RunError::Fs(e))
    }
}

impl Engine {
    /// Makes an empty pool of `disks`, whatever they hold, and mounts it: the caller has looked at them with
    /// [`superblock::probe`]. The trees are empty but for the free space. Until the first [`Engine::unmount`] the pool is
    /// one that is being made: after a power cut nobody mounts it.
    pub async fn format(
        platform: &Platform,
        disks: &[Rc<dyn BlockDevice>],
        options: &FormatOptions,
        budget: &Budget,
    ) -> Result<Engine, PoolError> {
        let superblocks = superblock::format(platform, disks, options).await.map_err(PoolError::Make)?;
        let engine = Engine::begin(platform, superblocks, budget, Mode::Serving).await?;
        engine.initialise().await?;
        Ok(engine)
    }

    /// Mounts the pool that `disks` make up.
    pub async fn mount(
        platform: &Platform,
        disks: &[Rc<dyn BlockDevice>],
        budget: &Budget,
    ) -> Result<Engine, PoolError> {
        let superblocks = Superblocks::open(platform, disks, Completeness::Complete).await;
        let superblocks = superblocks.map_err(PoolError::Assemble)?;
        superblocks.usable().map_err(PoolError::Unusable)?;
        Engine::begin(platform, superblocks, budget, Mode::Serving).await
    }

    /// Mounts a pool to check and repair it: roots that make no sense are left out, nothing runs in the background, no
    /// bucket is freed. What is wrong with it is for [`crate::repair`] to find.
    pub(crate) async fn mount_to_check(
        platform: &Platform,
        superblocks: Superblocks,
        budget: &Budget,
    ) -> Result<Engine, PoolError> {
        // A repair has to put what makes the trees whole on top of what a crash left, before anything is written back.
        let mut budget = *budget;
        budget.journal.dirty_bytes_max *= 2;
        Engine::begin(platform, superblocks, &budget, Mode::Checking).await
    }

    async fn begin(
        platform: &Platform,
        superblocks: Superblocks,
        budget: &Budget,
        mode: Mode,
    ) -> Result<Engine, PoolError> {
        superblocks.begin_mount().await.map_err(PoolError::Superblock)?;
        Engine::run(platform, superblocks, budget, mode).await.map_err(PoolError::Run)
    }

    /// Writes everything back, makes it durable and ends. Whoever holds the engine gets [`FsError::ShuttingDown`] from
    /// then on.
    pub async fn unmount(&self) -> FsResult<()> {
        self.halt().await?;
        let floor = self.inner.journal.flushed_seq().0;
        let marked = self.inner.superblocks.update(|sb| {
            sb.clean = true;
            sb.incompat &= !INCOMPAT_MAKING;
            sb.journal_floor = floor;
        });
        marked.await.map_err(|_| FsError::DeviceWrite)
    }
}
