//! Positions of names: hash, probing, whiteouts. Directories and extended attributes share it.
//!
//! A name lies at its home position or, if that is taken, at the next free one. Between home and name no position is
//! empty: removal leaves a whiteout where others may lie behind. So nothing ever moves, and a position is a cookie
//! that stays good for ever.

use super::pos;
use crate::planted::{self, Fault};
use crate::tx::{Tx, Value};
use crate::vfs::{FsError, FsResult};
use core::hash::Hasher;
use moraine_format::dirent::FIRST_POSITION;
use moraine_format::inode::Inode;
use moraine_format::{Pos, Tree};
use siphasher::sip::SipHasher24;

/// How far a name may lie from its home. Only an attacker who knows the directory's secret could get there.
const PROBES_MAX: u64 = 1 << 16;
/// Whiteouts removed when the chain behind them ends.
const WHITEOUTS_DROPPED_MAX: usize = 64;
/// Every whiteout's value, in both trees.
const WHITEOUT: [u8; 1] = [2];

/// A place in a chain.
pub(crate) enum Slot {
    /// The name is here.
    Found(u64, Value),
    /// It is nowhere; here it would go.
    Free(u64),
}

/// The home position of a name made of `parts` in the chains of `owner`.
pub(crate) fn home(owner: &Inode, parts: &[&[u8]]) -> u64 {
    let mut hasher = SipHasher24::new_with_key(&owner.hash_seed);
    for part in parts {
        hasher.write(part);
    }
    FIRST_POSITION + (hasher.finish() >> (64 - owner.hash_bits as u32))
}

/// Looks for the value that `matches`, beginning at `home`.
pub(crate) async fn find(
    tx: &mut Tx,
    tree: Tree,
    inode: u64,
    home: u64,
    mut matches: impl FnMut(Pos, &[u8]) -> FsResult<bool>,
) -> FsResult<Slot> {
    let mut free = None;
    for offset in home..home + PROBES_MAX {
        let at = pos(inode, offset);
        let Some(value) = tx.get(tree, at).await? else { return Ok(Slot::Free(free.unwrap_or(offset))) };
        if is_whiteout(&value) {
            free = free.or(Some(offset));
        } else if matches(at, &value)? {
            return Ok(Slot::Found(offset, value));
        }
    }
    free.map(Slot::Free).ok_or(FsError::NoSpace)
}

/// Takes the value at `offset` out of its chain.
pub(crate) async fn remove(tx: &mut Tx, tree: Tree, inode: u64, offset: u64) -> FsResult<()> {
    if tx.get(tree, pos(inode, offset + 1)).await?.is_some() && !planted::is(Fault::WhiteoutDropped) {
        tx.put(tree, pos(inode, offset), &WHITEOUT[..]);
        return Ok(());
    }
    tx.delete(tree, pos(inode, offset));
    // The chain ends here now: whiteouts that led here lead nowhere.
    for before in (FIRST_POSITION..offset).rev().take(WHITEOUTS_DROPPED_MAX) {
        match tx.get(tree, pos(inode, before)).await? {
            Some(value) if is_whiteout(&value) => tx.delete(tree, pos(inode, before)),
            _ => break,
        }
    }
    Ok(())
}

/// Whether a value only keeps a chain together.
pub(crate) fn is_whiteout(value: &[u8]) -> bool {
    value == WHITEOUT
}
