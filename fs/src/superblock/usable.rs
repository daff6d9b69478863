//! Whether this build may serve and write a pool: what its superblock says that must be obeyed.

use core::fmt;
use moraine_format::Superblock;
use moraine_format::superblock::{INCOMPAT_REPAIR, MemberState};

/// Features without which a pool may be read but not written, as far as this build knows them: none yet.
const RO_COMPAT_KNOWN: u64 = 0;

/// Why a whole pool must not be served by this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Its making began and did not end, so nothing is in it.
    BeingMade,
    /// A repair of it began and did not end.
    UnderRepair,
    /// It uses features (bits) that only a newer version may write.
    NewerFeatures(u64),
    /// A member (by index) must not be written. Doing without it is for a newer version.
    Member(u8, MemberState),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::BeingMade => f.write_str(
                "its making did not end, so nothing is in it: make it again, with mkfs --force or format=blank",
            ),
            Unusable::UnderRepair => {
                f.write_str("a repair of the pool began and did not end; run fsck with --repair")
            }
            Unusable::NewerFeatures(bits) => {
                write!(f, "it uses features {bits:#x} that this version must not write: use a newer one")
            }
            Unusable::Member(index, state) => {
                write!(f, "its member {index} is {state:?}, which this version cannot obey: use a newer one")
            }
        }
    }
}

impl core::error::Error for Unusable {}

/// See [`Superblocks::usable`](super::Superblocks::usable).
pub(super) fn usable(superblock: &Superblock) -> Result<(), Unusable> {
    repairable(superblock, true)?;
    match superblock.incompat & INCOMPAT_REPAIR {
        0 => Ok(()),
        _ => Err(Unusable::UnderRepair),
    }
}

/// See [`Superblocks::repairable`](super::Superblocks::repairable).
pub(super) fn repairable(superblock: &Superblock, writes: bool) -> Result<(), Unusable> {
    if superblock.is_being_made() {
        return Err(Unusable::BeingMade);
    }
    if writes { may_be_written(superblock) } else { Ok(()) }
}

fn may_be_written(superblock: &Superblock) -> Result<(), Unusable> {
    let newer = superblock.ro_compat & !RO_COMPAT_KNOWN;
    if newer != 0 {
        return Err(Unusable::NewerFeatures(newer));
    }
    let obeyed = |state| matches!(state, MemberState::ReadWrite | MemberState::Removed);
    match superblock.members.iter().position(|m| !obeyed(m.state)) {
        Some(index) => Err(Unusable::Member(index as u8, superblock.members[index].state)),
        None => Ok(()),
    }
}
