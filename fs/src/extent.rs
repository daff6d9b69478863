//! Extents of a file as keys: find, insert, cut out. Bodies of transactions, without effect but through their [`Tx`].
//!
//! An extent key ends at its position; overwriting cuts what was there, and the checksums with it. At no time do two
//! extents of a file overlap.

use crate::namespace::{corrupt, pos};
use crate::tx::Tx;
use crate::vfs::{FsError, FsResult};
use alloc::vec::Vec;
use core::ops::Range;
use moraine_format::extent::{BLOCK, Extent};
use moraine_format::{Pos, Tree};

/// The end of all offsets, on a block boundary.
pub(crate) const END: u64 = u64::MAX / BLOCK * BLOCK;

/// What cutting out took away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cleared {
    /// Bytes that no longer count as used.
    pub(crate) freed: u64,
    /// Everything before is clear; less than the range's end if the limit was reached.
    pub(crate) reached: u64,
}

/// The extents that overlap `range`, at most `limit` of them, whole.
pub(crate) async fn lookup(
    tx: &mut Tx,
    inode: u64,
    range: Range<u64>,
    limit: usize,
) -> FsResult<Vec<Extent>> {
    let mut found = Vec::new();
    let mut from = range.start;
    while from < range.end && found.len() < limit {
        let Some(extent) = next(tx, inode, from).await? else { break };
        if extent.start >= range.end {
            break;
        }
        from = extent.end;
        found.try_reserve(1).map_err(|_| FsError::NoMemory)?;
        found.push(extent);
    }
    Ok(found)
}

/// Puts an extent, cutting what it overlaps. Returns by how much the file's used bytes grow.
pub(crate) async fn insert(tx: &mut Tx, inode: u64, extent: &Extent) -> FsResult<i64> {
    let cleared = clear(tx, inode, extent.start..extent.end, usize::MAX).await?;
    tx.put(Tree::Extents, pos(inode, extent.end), extent.to_value());
    Ok(extent.used() as i64 - cleared.freed as i64)
}

/// Makes `range` (whole blocks) a hole, changing at most `limit` keys.
pub(crate) async fn clear(tx: &mut Tx, inode: u64, range: Range<u64>, limit: usize) -> FsResult<Cleared> {
    let Range { start, end } = range;
    let (mut freed, mut from, mut left) = (0, start, limit);
    while from < end {
        let Some(old) = next(tx, inode, from).await? else { break };
        if old.start >= end {
            break;
        }
        if left == 0 {
            return Ok(Cleared { freed, reached: from });
        }
        left -= 1;
        tx.delete(Tree::Extents, pos(inode, old.end));
        if old.start < start {
            tx.put(Tree::Extents, pos(inode, start), old.cut(old.start, start).to_value());
        }
        if old.end > end {
            tx.put(Tree::Extents, pos(inode, old.end), old.cut(end, old.end).to_value());
        }
        if old.used() > 0 {
            freed += old.end.min(end) - old.start.max(start);
        }
        from = old.end;
    }
    Ok(Cleared { freed, reached: end })
}

/// The first extent that ends after `offset`.
pub(crate) async fn next(tx: &mut Tx, inode: u64, offset: u64) -> FsResult<Option<Extent>> {
    let range = Pos::new(inode, offset + 1, 0)..=Pos::new(inode, u64::MAX, u32::MAX);
    let Some((at, value)) = tx.first(Tree::Extents, range).await? else { return Ok(None) };
    Extent::parse(at, &value).map(Some).map_err(|e| corrupt(Tree::Extents, at, e))
}
