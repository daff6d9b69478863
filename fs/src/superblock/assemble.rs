//! From the superblocks of several disks to one pool: which copy counts, who is missing, who must not be mixed.

use alloc::vec::Vec;
use core::fmt;
use moraine_format::Superblock;
use moraine_format::superblock::{MemberState, Uuid};

/// Whether a pool may be opened without all of its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completeness {
    /// All members must be here.
    Complete,
    /// Members may be missing, but fewer than there are copies of journal entries: more could hide acknowledged ones.
    Degraded,
}

/// Why disks do not make a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssembleError {
    /// No member of any pool.
    NoPool,
    /// Members of more than one pool; their ids.
    SeveralPools([u8; 16], [u8; 16]),
    /// Two of the disks (by position) say they are the same member.
    Twice(usize, usize),
    /// A disk (by position) is not the member that the newest superblock lists.
    NotMember(usize),
    /// Two of the disks (by position) were each written without the other. Either is a pool; together they are not.
    SplitBrain {
        /// The disk with the newest superblock.
        newest: usize,
        /// The disk that was written apart from it.
        other: usize,
    },
    /// Members (by index) are missing.
    Missing(Vec<u8>),
}

impl fmt::Display for AssembleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AssembleError::NoPool => f.write_str("no disk is a member of a pool"),
            AssembleError::SeveralPools(a, b) => {
                write!(f, "the disks belong to several pools: {} and {}", Uuid(a), Uuid(b))
            }
            AssembleError::Twice(a, b) => write!(f, "disks {a} and {b} are copies of the same member"),
            AssembleError::NotMember(disk) => write!(f, "disk {disk} is not a member of the pool any more"),
            AssembleError::SplitBrain { newest, other } => {
                write!(
                    f,
                    "disks {newest} and {other} were each written while the other was away; use one of them"
                )
            }
            AssembleError::Missing(indices) => write!(f, "members {indices:?} of the pool are missing"),
        }
    }
}

impl core::error::Error for AssembleError {}

/// Chooses the superblock that counts out of the newest of each disk; returns the disk's position.
pub fn assemble(found: &[&Superblock], completeness: Completeness) -> Result<usize, AssembleError> {
    let newest = (0..found.len()).max_by_key(|i| found[*i].seq).ok_or(AssembleError::NoPool)?;
    let pool = found[newest];
    for (disk, superblock) in found.iter().enumerate() {
        if superblock.pool_id != pool.pool_id {
            return Err(AssembleError::SeveralPools(pool.pool_id, superblock.pool_id));
        }
        if let Some(other) = found[..disk].iter().position(|s| s.device == superblock.device) {
            return Err(AssembleError::Twice(other, disk));
        }
        let member = pool.members.get(usize::from(superblock.device));
        let member =
            member.filter(|m| m.uuid == superblock.this_member().uuid && m.state != MemberState::Removed);
        let member = member.ok_or(AssembleError::NotMember(disk))?;
        // A copy may be older than the pool recorded (a write under way at the crash), never newer, never another.
        let apart = superblock.seq > member.last_seen_seq
            || superblock.seq == member.last_seen_seq && superblock.epoch != member.last_seen_epoch;
        if apart {
            return Err(AssembleError::SplitBrain { newest, other: disk });
        }
    }
    let listed = pool.members.iter().enumerate().filter(|(_, m)| m.state != MemberState::Removed);
    let missing: Vec<u8> =
        listed.map(|(i, _)| i as u8).filter(|i| found.iter().all(|s| s.device != *i)).collect();
    let bearable = match completeness {
        Completeness::Complete => 0,
        Completeness::Degraded => usize::from(pool.journal_replicas.min(pool.metadata_replicas)) - 1,
    };
    if missing.len() > bearable { Err(AssembleError::Missing(missing)) } else { Ok(newest) }
}
