//! Inode records: load, check, stamp, store, and the attributes they make together with unsynced writes.

use super::{Names, ROOT_SUBVOLUME, corrupt, pos};
use crate::planted::{self, Fault};
use crate::vfs::{Attr, Caller, FsError, FsResult, Kind};
use moraine_format::inode::{Inode, InodeKind};
use moraine_format::record::deleted_value;
use moraine_format::{Pos, Tree};
use moraine_platform::{BLOCK_SIZE, Timestamp};

/// set-user-id bit.
pub(crate) const SUID: u32 = 0o4000;
/// set-group-id bit.
pub(crate) const SGID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

/// What unsynced writes changed of a file. Its record in the tree does not say so until write-back puts data, size and
/// times there together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Size.
    pub(crate) size: u64,
    /// Last write.
    pub(crate) mtime: Timestamp,
    /// Later than every ctime handed out.
    pub(crate) ctime: Timestamp,
    /// Greater than every change counter handed out.
    pub(crate) change: u64,
    /// Somebody but root wrote: set-user-id and the like are gone.
    pub(crate) drops_privileges: bool,
    /// Bytes in dirty pages.
    pub(crate) dirty_bytes: u64,
}

/// Where [`Pending`] is found.
pub(crate) trait PendingAttrs {
    /// What unsynced writes changed of `inode`, if there are any.
    fn pending(&self, inode: u64) -> Option<Pending>;
}

pub(crate) fn kind_of(kind: InodeKind) -> Kind {
    match kind {
        InodeKind::File => Kind::File,
        InodeKind::Dir => Kind::Dir,
        InodeKind::Symlink => Kind::Symlink,
        InodeKind::Block => Kind::Block,
        InodeKind::Char => Kind::Char,
        InodeKind::Socket => Kind::Socket,
        InodeKind::Fifo => Kind::Fifo,
    }
}

/// Attributes of a record, with what is pending.
pub(crate) fn attr_of(number: u64, inode: &Inode, pending: Option<&Pending>) -> Attr {
    let mut attr = Attr {
        kind: kind_of(inode.kind),
        mode: inode.mode as u32,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        size: inode.size,
        used: inode.used,
        rdev: inode.rdev,
        fsid: ROOT_SUBVOLUME as u64,
        fileid: number,
        atime: Timestamp(inode.atime_ns),
        mtime: Timestamp(inode.mtime_ns),
        ctime: Timestamp(inode.ctime_ns),
        btime: Timestamp(inode.btime_ns),
        change: inode.change,
    };
    if let Some(p) = pending {
        attr.size = p.size;
        attr.mtime = p.mtime;
        attr.ctime = attr.ctime.max(p.ctime);
        attr.change = attr.change.max(p.change);
        if p.drops_privileges {
            attr.mode = without_privileges(attr.mode);
        }
        // Dirty pages will take space: without them a copying tool would take a fresh file for a hole.
        let whole = p.size.next_multiple_of(BLOCK_SIZE as u64);
        attr.used = attr.used.max(whole.min(attr.used + p.dirty_bytes));
    }
    attr
}

/// The mode without set-user-id, and without set-group-id unless that bit means mandatory locking (no group execute).
pub(crate) fn without_privileges(mode: u32) -> u32 {
    let drop_group = if mode & GROUP_EXEC != 0 { SGID } else { 0 };
    mode & !SUID & !drop_group
}

/// Takes privileges from the record's mode when anybody but root changes content.
pub(crate) fn drop_privileges(inode: &mut Inode, caller: &Caller) {
    if caller.uid != 0 {
        inode.mode = without_privileges(inode.mode as u32) as u16;
    }
}

fn key(number: u64) -> Pos {
    pos(0, number)
}

impl Names<'_> {
    /// The record of `number`, deleted or not.
    pub(crate) async fn load(&mut self, number: u64) -> FsResult<Option<Inode>> {
        let Some(value) = self.tx.get(Tree::Inodes, key(number)).await? else { return Ok(None) };
        Inode::parse(&value).map(Some).map_err(|e| corrupt(Tree::Inodes, key(number), e))
    }

    /// The record of a live object, else [`FsError::Stale`].
    pub(crate) async fn live(&mut self, number: u64) -> FsResult<Inode> {
        match self.load(number).await? {
            Some(inode) if inode.nlink > 0 => Ok(inode),
            _ => Err(FsError::Stale),
        }
    }

    /// The record of a live directory, else [`FsError::Stale`] or [`FsError::NotDir`].
    pub(crate) async fn live_dir(&mut self, number: u64) -> FsResult<Inode> {
        let inode = self.live(number).await?;
        if inode.kind == InodeKind::Dir { Ok(inode) } else { Err(FsError::NotDir) }
    }

    /// The record of a live regular file, else [`FsError::Stale`], [`FsError::IsDir`] or [`FsError::Invalid`].
    pub(crate) async fn live_file(&mut self, number: u64) -> FsResult<Inode> {
        let inode = self.live(number).await?;
        match inode.kind {
            InodeKind::File => Ok(inode),
            InodeKind::Dir => Err(FsError::IsDir),
            _ => Err(FsError::Invalid),
        }
    }

    /// Queues a record.
    pub(crate) fn store(&mut self, number: u64, inode: &Inode) {
        self.tx.put(Tree::Inodes, key(number), inode.to_value());
    }

    /// Queues the removal of a record.
    pub(crate) fn erase(&mut self, number: u64) {
        self.tx.delete(Tree::Inodes, key(number));
    }

    /// Attributes as everybody sees them.
    pub(crate) fn attr(&self, number: u64, inode: &Inode) -> Attr {
        let pending = if inode.kind == InodeKind::File { self.pending.pending(number) } else { None };
        attr_of(number, inode, pending.as_ref())
    }

    /// Marks a change of attributes: ctime strictly rises, whatever the clock says, and so does the change counter.
    pub(crate) fn touch(&self, number: u64, inode: &mut Inode) {
        let seen = self.attr(number, inode);
        inode.ctime_ns = self.now.0.max(seen.ctime.0.saturating_add(1));
        inode.change = seen.change + 1;
    }

    /// Marks a change of content.
    pub(crate) fn touch_content(&self, number: u64, inode: &mut Inode) {
        self.touch(number, inode);
        inode.mtime_ns = inode.ctime_ns;
    }

    /// Takes one name from an object. Without names it is noted among the deleted, in the same commit. Returns whether
    /// it is gone.
    pub(crate) fn drop_link(&mut self, number: u64, mut inode: Inode) -> bool {
        inode.nlink = if inode.kind == InodeKind::Dir { 0 } else { inode.nlink - 1 };
        self.touch(number, &mut inode);
        self.store(number, &inode);
        let gone = inode.nlink == 0;
        if gone && !planted::is(Fault::OrphanForgotten) {
            self.tx.put(Tree::DeletedInodes, pos(number, 0), deleted_value(self.boot_epoch));
        }
        gone
    }
}
