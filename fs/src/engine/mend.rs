//! The engine under repair.
//!
//! What derives from other keys (free space first of all) cannot be trusted while the keys it derives from are being
//! put right, and cannot be kept up to date against them. So while [`Mode::Mending`] lasts, commits change what they
//! say and nothing else; new space comes from buckets that the repair found to be free by reading everything; no bucket
//! is freed. At the end everything derived is recounted. Until then the superblock says that only a repair may write:
//! a crash anywhere leaves a pool that the next repair begins with anew.

use super::{Engine, Inner, Mode, cleaner};
use crate::space::buckets::Spare;
use crate::vfs::{FsError, FsResult};
use moraine_format::superblock::INCOMPAT_REPAIR;

impl Engine {
    /// Begins a repair, with the buckets that are free for sure. Durable when it returns.
    pub(crate) async fn begin_mending(&self, spare: Spare) -> FsResult<()> {
        let inner = &self.inner;
        assert!(inner.mode.get() == Mode::Checking, "a repair begins on a pool mounted for it, once");
        inner.mark_under_repair(true).await?;
        inner.mode.set(Mode::Mending);
        inner.state.borrow_mut().buckets.begin_spare(spare);
        Ok(())
    }

    /// Lets nodes be written back from now on: every node that the journal has changes for can be read.
    pub(crate) fn begin_write_back(&self) {
        cleaner::start(&self.inner);
    }

    /// Ends a repair: from this step on what derives from keys is kept up to date again, so it must be right now.
    pub(crate) async fn end_mending(&self) -> FsResult<()> {
        let inner = &self.inner;
        inner.mode.set(Mode::Checking);
        inner.state.borrow_mut().buckets.end_spare();
        inner.make_durable(inner.newest_seq()).await?;
        inner.mark_under_repair(false).await
    }

    /// Lets go of a pool that was only looked at: whatever is left under way comes to nothing.
    pub(crate) fn abandon(&self) {
        let inner = &self.inner;
        inner.closing.set(true);
        inner.stop_quietly();
    }

    /// Whether it was mounted to be checked and repaired, and serves nobody.
    pub(crate) fn is_mounted_to_check(&self) -> bool {
        self.inner.mode.get() != Mode::Serving
    }

    /// Whether a repair began and did not end.
    pub(crate) fn is_under_repair(&self) -> bool {
        self.inner.superblocks.current().incompat & INCOMPAT_REPAIR != 0
    }
}

impl Inner {
    fn stop_quietly(&self) {
        self.stopped.set(Some(FsError::ShuttingDown));
        self.cleaner_wanted.notify();
        self.buckets_changed.notify();
    }

    async fn mark_under_repair(&self, under_repair: bool) -> FsResult<()> {
        let marked = self.superblocks.update(|sb| match under_repair {
            true => sb.incompat |= INCOMPAT_REPAIR,
            false => sb.incompat &= !INCOMPAT_REPAIR,
        });
        marked.await.map_err(|_| FsError::DeviceWrite)
    }
}
