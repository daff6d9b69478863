//! Which files lost content: by path, since that is what people know them by.

use super::walk::Keys;
use super::{Check, Damage};
use crate::namespace::pos;
use crate::vfs::FsResult;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use moraine_format::Tree;
use moraine_format::dirent::{Dirent, Target};
use moraine_format::inode::ROOT_INODE;

/// Stretches that are told one by one; of more only the number is known.
const STRETCHES_MAX: usize = 1 << 16;
/// Directories above a file that are named.
const DEPTH_MAX: usize = 4096;

/// A stretch of a file.
pub(super) struct Stretch {
    inode: u64,
    start: u64,
    end: u64,
}

impl Check<'_> {
    /// Notes that content of a file is lost.
    pub(super) fn note_lost(&mut self, inode: u64, start: u64, end: u64) {
        self.summary.lost += 1;
        if let Some(last) = self.stretches.last_mut()
            && last.inode == inode
            && last.end == start
        {
            last.end = end;
        } else if self.stretches.len() < STRETCHES_MAX {
            self.stretches.push(Stretch { inode, start, end });
        }
    }
}

pub(super) async fn report(check: &mut Check<'_>) -> FsResult<()> {
    let stretches = core::mem::take(&mut check.stretches);
    if stretches.is_empty() {
        return Ok(());
    }
    // Of a file with several names its record may hold one that is gone: all names are looked through once.
    let wanted: BTreeSet<u64> = stretches.iter().map(|s| s.inode).collect();
    let mut names: BTreeMap<u64, (u64, Vec<u8>)> = BTreeMap::new();
    let mut keys = Keys::all(Tree::Dirents, 0);
    while let Some((at, value)) = keys.next(check).await? {
        if let Ok(Dirent::Entry { target: Target::Inode { inode, .. }, name }) = Dirent::parse(&value)
            && wanted.contains(&inode)
        {
            names.entry(inode).or_insert_with(|| (at.inode, name.to_vec()));
        }
    }
    for Stretch { inode, start, end } in stretches {
        let path = match names.get(&inode) {
            Some((dir, name)) => path(check, *dir, name).await?,
            None => Vec::new(),
        };
        check.reporter.damage(&Damage { inode, path, start, end });
    }
    Ok(())
}

/// The path of the name `name` in `dir`; empty if the directory cannot be reached.
async fn path(check: &mut Check<'_>, dir: u64, name: &[u8]) -> FsResult<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = alloc::vec![name.to_vec()];
    let mut at = dir;
    while at != ROOT_INODE {
        let Some(inode) = check.inode(at).await? else { return Ok(Vec::new()) };
        let value = check.get(Tree::Dirents, pos(inode.parent, inode.parent_offset)).await?.value();
        match value.as_deref().map(Dirent::parse) {
            Some(Ok(Dirent::Entry { name, .. })) if parts.len() < DEPTH_MAX => parts.push(name.to_vec()),
            _ => return Ok(Vec::new()),
        }
        at = inode.parent;
    }
    let mut path = Vec::new();
    for part in parts.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    Ok(path)
}
