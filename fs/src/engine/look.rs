//! Looking at keys without a transaction: one synchronous step, so one point of history, and nothing to keep or check.

use super::Engine;
use crate::btree::{self, Miss, Table};
use crate::vfs::FsResult;
use core::ops::{ControlFlow, RangeInclusive};
use moraine_format::{Pos, Tree};

/// The trees as they are in this step.
pub struct Look<'t>(&'t Table);

/// A node has to be read in before the look can go on; it begins again then.
pub struct Absent(Miss);

impl Engine {
    /// Calls `body` with the trees as they are now. It is called again from its start whenever a node it needs had to be
    /// read in, so what it gives out must not count before it returns.
    pub async fn look<T>(&self, mut body: impl FnMut(&Look<'_>) -> Result<T, Absent>) -> FsResult<T> {
        loop {
            self.inner.check_running()?;
            let Absent(miss) = match body(&Look(&self.inner.state.borrow().table)) {
                Ok(done) => return Ok(done),
                Err(absent) => absent,
            };
            btree::load(&self.inner, miss).await?;
        }
    }
}

impl Look<'_> {
    /// The value at `pos`.
    pub fn get(&self, tree: Tree, pos: Pos) -> Result<Option<&[u8]>, Absent> {
        self.0.get(tree, 0, pos).map_err(Absent)
    }

    /// Shows the keys in `range` to `see`, in order, until it breaks. What was seen before an [`Absent`] is seen again.
    pub fn scan(
        &self,
        tree: Tree,
        range: RangeInclusive<Pos>,
        mut see: impl FnMut(Pos, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Absent> {
        self.0.scan(tree, 0, range, &mut see).map_err(Absent)
    }
}
