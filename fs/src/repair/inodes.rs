//! Inodes: records that make sense, the cursor above all of them, and the lists of those that are going.

use super::mend::{is_in_view, is_number};
use super::walk::{Found, Keys};
use super::{Check, FindingKind};
use crate::namespace::make::INODE_BATCH;
use crate::namespace::pos;
use crate::vfs::FsResult;
use alloc::format;
use moraine_format::Tree;
use moraine_format::inode::{FIRST_FREE_INODE, Inode, InodeKind, ROOT_INODE, VOLUMES_INODE};
use moraine_format::record::{INODE_CURSOR, LoggedOp, cursor_value, parse_cursor, parse_deleted};

/// Permission bits of a file that is made anew, and of a directory.
const FILE_MODE: u16 = 0o600;
const DIR_MODE: u16 = 0o700;
/// Permission bits of the directories that come with a pool.
const PUBLIC_MODE: u16 = 0o755;

pub(super) async fn check(check: &mut Check<'_>) -> FsResult<()> {
    let mut greatest = VOLUMES_INODE;
    let mut keys = Keys::all(Tree::Inodes, 0);
    while let Some((at, value)) = keys.next(check).await? {
        if at.inode != 0 || !is_in_view(at) || !is_number(at.offset) {
            check.drop_key(FindingKind::KeyForeign, Tree::Inodes, at, "no inode has that number").await?;
            continue;
        }
        if let Err(e) = Inode::parse(&value) {
            let why = format!("{e}");
            check.drop_key(FindingKind::ValueUnreadable, Tree::Inodes, at, &why).await?;
            continue;
        }
        greatest = greatest.max(at.offset);
    }
    root(check).await?;
    deleted(check).await?;
    operations(check).await?;
    cursor(check, greatest).await
}

/// The pool has its root directory.
async fn root(check: &mut Check<'_>) -> FsResult<()> {
    for number in [ROOT_INODE, VOLUMES_INODE] {
        let is_dir = match check.get(Tree::Inodes, pos(0, number)).await? {
            Found::Unknown => true,
            found => {
                let inode = found.value().and_then(|v| Inode::parse(&v).ok());
                inode.is_some_and(|i| i.kind == InodeKind::Dir)
            }
        };
        if is_dir {
            continue;
        }
        let kind = if number == ROOT_INODE { FindingKind::RootMissing } else { FindingKind::VolumesMissing };
        check.found(kind, format!("inode {number}"));
        if check.repairs() {
            check.make_inode(number, InodeKind::Dir, |inode| inode.mode = PUBLIC_MODE).await?;
        }
    }
    Ok(())
}

async fn deleted(check: &mut Check<'_>) -> FsResult<()> {
    let mut keys = Keys::all(Tree::DeletedInodes, 0);
    while let Some((at, value)) = keys.next(check).await? {
        let why = match check.get(Tree::Inodes, pos(0, at.inode)).await? {
            _ if at != pos(at.inode, 0) || parse_deleted(&value).is_err() => "the entry makes no sense",
            Found::Missing => "there is no such inode",
            Found::Value(v) if Inode::parse(&v).is_ok_and(|i| i.nlink > 0) => "it is not deleted",
            Found::Value(_) | Found::Unknown => continue,
        };
        check.drop_key(FindingKind::DeletedEntryWrong, Tree::DeletedInodes, at, why).await?;
    }
    Ok(())
}

async fn operations(check: &mut Check<'_>) -> FsResult<()> {
    let mut keys = Keys::all(Tree::LoggedOps, 0);
    while let Some((at, value)) = keys.next(check).await? {
        let kind = match (LoggedOp::parse(&value), check.get(Tree::Inodes, pos(0, at.inode)).await?) {
            (Err(_), _) => FindingKind::ValueUnreadable,
            (_, Found::Missing) => FindingKind::LoggedOpStray,
            (_, Found::Value(v)) if Inode::parse(&v).is_ok_and(|i| i.kind != InodeKind::File) => {
                FindingKind::LoggedOpStray
            }
            _ => continue,
        };
        check.drop_key(kind, Tree::LoggedOps, at, "it cannot be resumed").await?;
    }
    Ok(())
}

/// No number is used twice: the cursor is above all of them.
async fn cursor(check: &mut Check<'_>, greatest: u64) -> FsResult<()> {
    let found = check.get(Tree::Settings, INODE_CURSOR).await?;
    if let Found::Unknown = found {
        return Ok(());
    }
    let cursor = found.value().and_then(|v| parse_cursor(&v).ok());
    if !cursor.is_some_and(|c| c > greatest && c >= FIRST_FREE_INODE && is_number(c)) {
        check.found(FindingKind::CursorLow, format!("{cursor:?}, inode {greatest} exists"));
        let should = (greatest + 1).max(FIRST_FREE_INODE) + INODE_BATCH;
        check.set(Tree::Settings, INODE_CURSOR, Some(cursor_value(should))).await?;
    }
    Ok(())
}

/// Raises the cursor above an inode that was made anew.
pub(super) async fn raise_cursor(check: &mut Check<'_>, number: u64) -> FsResult<()> {
    let value = check.get(Tree::Settings, INODE_CURSOR).await?.value();
    match value.and_then(|v| parse_cursor(&v).ok()) {
        Some(cursor) if cursor > number => Ok(()),
        _ => check.set(Tree::Settings, INODE_CURSOR, Some(cursor_value(number + 1 + INODE_BATCH))).await,
    }
}

impl Check<'_> {
    /// Makes an inode of which nothing is known but its number and kind.
    pub(super) async fn make_inode(
        &mut self,
        number: u64,
        kind: InodeKind,
        edit: impl FnOnce(&mut Inode),
    ) -> FsResult<()> {
        let platform = self.engine.platform();
        let mut seed = [0; 16];
        platform.rng.fill(&mut seed);
        let now = platform.clock.wall().0;
        let dir = kind == InodeKind::Dir;
        let mut inode = Inode {
            mode: if dir { DIR_MODE } else { FILE_MODE },
            // What the number of names is will be counted; one that counts as deleted would be reaped.
            nlink: if dir { 2 } else { 1 },
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            btime_ns: now,
            change: 1,
            ..Inode::new(kind, seed)
        };
        edit(&mut inode);
        self.set(Tree::Inodes, pos(0, number), Some(inode.to_value())).await
    }

    /// A number that no inode has had; the same one until it is used.
    pub(super) async fn fresh_number(&mut self) -> FsResult<u64> {
        if let Some(number) = self.fresh
            && let Found::Missing = self.get(Tree::Inodes, pos(0, number)).await?
        {
            return Ok(number);
        }
        let value = self.get(Tree::Settings, INODE_CURSOR).await?.value();
        let cursor = value.and_then(|v| parse_cursor(&v).ok()).unwrap_or(FIRST_FREE_INODE);
        // The rest of the batch is given away: numbers below the cursor may have been used.
        let next = cursor.saturating_add(INODE_BATCH);
        self.set(Tree::Settings, INODE_CURSOR, Some(cursor_value(next))).await?;
        self.fresh = Some(cursor);
        Ok(cursor)
    }
}
