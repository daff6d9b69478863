//! Names and attributes: every operation on inodes, directories and extended attributes, as the body of a transaction.
//!
//! [`Names`] wraps a [`Tx`] for the time of one body. Its methods read, check permissions and queue updates; they have
//! no other effect, so the transaction may run them again. What only memory knows (sizes and times of unsynced
//! writes) comes in through [`PendingAttrs`] and is never written here: write-back does that, with the data.
//!
//! | file | what it holds |
//! |---|---|
//! | [`record`] | inode records: load, check, stamp, store; attributes of records |
//! | [`hash`] | positions of names, probing, whiteouts: shared by directories and extended attributes |
//! | [`dir`] | entries: search, enter, leave, list |
//! | [`make`] | create, make, link |
//! | [`take`] | remove, rmdir, rename |
//! | [`attr`] | setattr and its permissions |
//! | [`xattr`] | extended attributes |
//! | [`reap`] | deleting what lost its last name, in bounded commits |

pub(crate) mod attr;
pub(crate) mod dir;
pub(crate) mod hash;
pub(crate) mod make;
pub(crate) mod reap;
pub(crate) mod record;
pub(crate) mod take;
pub(crate) mod xattr;

use crate::tx::Tx;
use crate::vfs::{Attr, Change, Seq};
use crate::vfs::{FsError, FsResult, ObjectId, PreAttr};
use moraine_format::key::ROOT_SNAPSHOT;
use moraine_format::{FormatError, Pos, Tree};
use moraine_platform::Timestamp;

pub(crate) use record::{Pending, PendingAttrs};

/// The pool's root subvolume, the only one so far.
pub(crate) const ROOT_SUBVOLUME: u32 = 1;

/// One body of a transaction on names and attributes.
pub(crate) struct Names<'a> {
    pub(crate) tx: &'a mut Tx,
    /// Wall clock at the start of the body.
    pub(crate) now: Timestamp,
    /// What memory knows beyond the trees.
    pub(crate) pending: &'a dyn PendingAttrs,
    /// This mount's epoch, written into entries of deleted inodes.
    pub(crate) boot_epoch: u64,
}

/// What a directory was and is: computed in the body, true at the commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirChange {
    pub(crate) pre: PreAttr,
    pub(crate) post: Attr,
}

impl DirChange {
    /// Nothing changed.
    pub(crate) fn none(attr: Attr) -> DirChange {
        DirChange { pre: attr.pre(), post: attr }
    }

    pub(crate) fn at<T>(self, seq: Seq, value: T) -> Change<T> {
        Change { pre: self.pre, post: self.post, seq, value }
    }
}

/// The inode number of an object, if it is in a subvolume that exists.
pub(crate) fn inode_of(object: ObjectId) -> FsResult<u64> {
    if object.subvolume == ROOT_SUBVOLUME && object.inode != 0 {
        Ok(object.inode)
    } else {
        Err(FsError::Stale)
    }
}

/// The name of an inode for the outside.
pub(crate) fn object(inode: u64) -> ObjectId {
    ObjectId { subvolume: ROOT_SUBVOLUME, inode }
}

/// Position of a versioned key in the only view there is.
pub(crate) fn pos(inode: u64, offset: u64) -> Pos {
    Pos::new(inode, offset, ROOT_SNAPSHOT)
}

/// A stored value was refused: says which, once, and becomes the façade's error.
pub(crate) fn corrupt(tree: Tree, at: Pos, error: FormatError) -> FsError {
    moraine_platform::error!("fs", "{} {at}: {error}; run fsck", tree.name());
    FsError::Corrupt
}

/// A broken invariant between keys.
pub(crate) fn inconsistent(what: &str, inode: u64) -> FsError {
    moraine_platform::error!("fs", "inode {inode}: {what}; run fsck");
    FsError::Corrupt
}
