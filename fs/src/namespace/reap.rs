//! The reaper: what lost its last name is deleted in bounded commits, its inode key last.
//!
//! Every step is a transaction that can be repeated: a crash anywhere leaves the entry among the deleted inodes, and the
//! next mount goes on.

use super::{Names, pos};
use crate::planted::{self, Fault};
use crate::vfs::FsResult;
use moraine_format::inode::Inode;
use moraine_format::{Pos, Tree};

/// Keys deleted in one commit.
pub(crate) const REAP_KEYS: usize = 64;

/// What a step left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// Call again.
    More,
    /// Nothing is left of the inode.
    All,
}

impl Names<'_> {
    /// The first deleted inode with a number of at least `from`.
    pub(crate) async fn next_deleted(&mut self, from: u64) -> FsResult<Option<u64>> {
        let range = Pos::new(from, 0, 0)..=Pos::MAX;
        Ok(self.tx.first(Tree::DeletedInodes, range).await?.map(|(at, _)| at.inode))
    }

    /// Deletes some of a deleted inode.
    pub(crate) async fn reap(&mut self, number: u64) -> FsResult<Reaped> {
        match self.load(number).await? {
            Some(Inode { nlink: 0, .. }) | None => {}
            Some(_) => {
                // Named after all: the entry is wrong, not the inode.
                self.tx.delete(Tree::DeletedInodes, pos(number, 0));
                return Ok(Reaped::All);
            }
        }
        let mut left = REAP_KEYS;
        for tree in [Tree::Extents, Tree::Xattrs, Tree::Dirents, Tree::LoggedOps] {
            let mut from = Pos::new(number, 0, 0);
            let last = Pos::new(number, u64::MAX, u32::MAX);
            if tree == Tree::Xattrs && planted::is(Fault::XattrsNotReaped) {
                continue;
            }
            while let Some((at, _)) = self.tx.first(tree, from..=last).await? {
                if left == 0 {
                    return Ok(Reaped::More);
                }
                left -= 1;
                self.tx.delete(tree, at);
                match at.successor() {
                    Some(next) => from = next,
                    None => break,
                }
            }
        }
        self.erase(number);
        self.tx.delete(Tree::DeletedInodes, pos(number, 0));
        Ok(Reaped::All)
    }
}
