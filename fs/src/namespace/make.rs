//! Making objects and names: create, make, link.

use super::dir::{Entry, check_name};
use super::record::SGID;
use super::{DirChange, Names, pos};
use crate::access;
use crate::planted::{self, Fault};
use crate::vfs::*;
use moraine_format::Tree;
use moraine_format::inode::{Inode, InodeKind};
use moraine_format::record::{INODE_CURSOR, cursor_value, parse_cursor};

/// Inode numbers are made durable in batches of this many.
pub(crate) const INODE_BATCH: u64 = 1024;

/// Mode of a file, socket, FIFO or device made without one.
const FILE_MODE_DEFAULT: u32 = 0o600;
/// Mode of a directory made without one.
const DIR_MODE_DEFAULT: u32 = 0o700;
/// Mode of a symbolic link made without one.
const SYMLINK_MODE_DEFAULT: u32 = 0o777;

/// What a new inode needs from outside the transaction.
#[derive(Clone, Copy)]
pub(crate) struct Fresh {
    /// Its number, never used before.
    pub(crate) number: u64,
    /// Numbers below this are covered by the stored cursor.
    pub(crate) covered: u64,
    /// Its secret.
    pub(crate) seed: [u8; 16],
    /// Hash width, if it becomes a directory.
    pub(crate) hash_bits: u8,
}

/// What became of a create or a make.
pub(crate) struct Made {
    pub(crate) dir: DirChange,
    pub(crate) number: u64,
    pub(crate) attr: Attr,
    /// The name was there already, and that is fine.
    pub(crate) existed: bool,
    /// All numbers below are covered by the cursor now.
    pub(crate) covered: u64,
}

impl Names<'_> {
    /// Makes a regular file, or finds the one that `how` accepts.
    pub(crate) async fn create(
        &mut self,
        caller: &Caller,
        dir: u64,
        name: &[u8],
        how: CreateMode,
        set: &SetAttr,
        fresh: &Fresh,
    ) -> FsResult<Made> {
        let parent = self.live_dir(dir).await?;
        check_name(name)?;
        if set.size.is_some_and(|size| size > FILE_SIZE_MAX) {
            return Err(FsError::TooBig);
        }
        match self.search(caller, dir, &parent, name).await? {
            Entry::Found { inode: number, .. } => {
                let record = self.named(number).await?;
                match how {
                    CreateMode::Unchecked if record.kind == InodeKind::File => {}
                    CreateMode::Exclusive(verifier) if record.create_verifier == Some(verifier) => {}
                    _ => return Err(FsError::Exists),
                }
                let dir = DirChange::none(self.attr(dir, &parent));
                let attr = self.attr(number, &record);
                Ok(Made { dir, number, attr, existed: true, covered: fresh.covered })
            }
            Entry::Free { offset } => {
                self.check_dir_write(caller, dir, &parent)?;
                let mut record =
                    self.new_record(caller, (dir, &parent), InodeKind::File, FILE_MODE_DEFAULT, set, fresh)?;
                record.size = set.size.unwrap_or(0);
                if let CreateMode::Exclusive(verifier) = how {
                    record.create_verifier = Some(verifier);
                }
                self.put_new((dir, parent), (offset, name), record, fresh).await
            }
        }
    }

    /// Makes a directory, a symbolic link or a special file.
    pub(crate) async fn make(
        &mut self,
        caller: &Caller,
        dir: u64,
        name: &[u8],
        new: &NewNode<'_>,
        set: &SetAttr,
        fresh: &Fresh,
    ) -> FsResult<Made> {
        let parent = self.live_dir(dir).await?;
        check_name(name)?;
        let (kind, mode) = match *new {
            NewNode::Dir => (InodeKind::Dir, DIR_MODE_DEFAULT),
            NewNode::Symlink(target) if target.is_empty() || target.contains(&0) => {
                return Err(FsError::Invalid);
            }
            NewNode::Symlink(target) if target.len() > SYMLINK_MAX => return Err(FsError::NameTooLong),
            NewNode::Symlink(_) => (InodeKind::Symlink, SYMLINK_MODE_DEFAULT),
            NewNode::Block(..) => (InodeKind::Block, FILE_MODE_DEFAULT),
            NewNode::Char(..) => (InodeKind::Char, FILE_MODE_DEFAULT),
            NewNode::Socket => (InodeKind::Socket, FILE_MODE_DEFAULT),
            NewNode::Fifo => (InodeKind::Fifo, FILE_MODE_DEFAULT),
        };
        let Entry::Free { offset } = self.search(caller, dir, &parent, name).await? else {
            return Err(FsError::Exists);
        };
        self.check_dir_write(caller, dir, &parent)?;
        if matches!(kind, InodeKind::Block | InodeKind::Char) && caller.uid != 0 {
            return Err(FsError::NotPermitted);
        }
        let mut record = self.new_record(caller, (dir, &parent), kind, mode, set, fresh)?;
        match *new {
            NewNode::Symlink(target) => {
                record.target = target.into();
                record.size = target.len() as u64;
            }
            NewNode::Block(major, minor) | NewNode::Char(major, minor) => record.rdev = (major, minor),
            _ => {}
        }
        self.put_new((dir, parent), (offset, name), record, fresh).await
    }

    /// Gives a non-directory another name.
    pub(crate) async fn link(
        &mut self,
        caller: &Caller,
        number: u64,
        dir: u64,
        name: &[u8],
    ) -> FsResult<(DirChange, Inode)> {
        let mut record = self.live(number).await?;
        let mut parent = self.live_dir(dir).await?;
        if record.kind == InodeKind::Dir {
            return Err(FsError::IsDir);
        }
        check_name(name)?;
        let Entry::Free { offset } = self.search(caller, dir, &parent, name).await? else {
            return Err(FsError::Exists);
        };
        self.check_dir_write(caller, dir, &parent)?;
        if record.nlink >= LINK_MAX {
            return Err(FsError::TooManyLinks);
        }
        let pre = self.attr(dir, &parent).pre();
        self.enter((dir, &mut parent), offset, name, (number, &mut record));
        record.nlink += u32::from(!planted::is(Fault::NlinkWrong));
        self.touch(number, &mut record);
        self.store(number, &record);
        self.touch_content(dir, &mut parent);
        self.store(dir, &parent);
        Ok((DirChange { pre, post: self.attr(dir, &parent) }, record))
    }

    /// A record as `caller` would make it in a directory: its own, in its own group or, where the directory has
    /// set-group-id, the directory's. Only root may ask for another owner; others may ask for a group of theirs.
    fn new_record(
        &self,
        caller: &Caller,
        (dir, parent): (u64, &Inode),
        kind: InodeKind,
        mode_default: u32,
        set: &SetAttr,
        fresh: &Fresh,
    ) -> FsResult<Inode> {
        let parent = self.attr(dir, parent);
        let inherited = if parent.mode & SGID != 0 { parent.gid } else { caller.gid };
        let (uid, gid) = (set.uid.unwrap_or(caller.uid), set.gid.unwrap_or(inherited));
        let group_ok = gid == inherited || access::in_group(caller, gid);
        if caller.uid != 0 && (uid != caller.uid || !group_ok) {
            return Err(FsError::NotPermitted);
        }
        let mut mode = set.mode.unwrap_or(mode_default) & 0o7777;
        if kind == InodeKind::Dir {
            mode |= parent.mode & SGID;
        } else if caller.uid != 0 && !access::in_group(caller, gid) {
            mode &= !SGID;
        }
        let now = self.now.0;
        let at = |time: Option<SetTime>| match time {
            Some(SetTime::To(time)) => time.0,
            Some(SetTime::Now) | None => now,
        };
        Ok(Inode {
            mode: mode as u16,
            uid,
            gid,
            nlink: if kind == InodeKind::Dir { 2 } else { 1 },
            atime_ns: at(set.atime),
            mtime_ns: at(set.mtime),
            ctime_ns: now,
            btime_ns: now,
            change: 1,
            hash_bits: fresh.hash_bits,
            ..Inode::new(kind, fresh.seed)
        })
    }

    async fn put_new(
        &mut self,
        (dir, mut parent): (u64, Inode),
        (offset, name): (u64, &[u8]),
        mut record: Inode,
        fresh: &Fresh,
    ) -> FsResult<Made> {
        let covered = self.cover(fresh).await?;
        let pre = self.attr(dir, &parent).pre();
        self.enter((dir, &mut parent), offset, name, (fresh.number, &mut record));
        self.store(fresh.number, &record);
        self.touch_content(dir, &mut parent);
        self.store(dir, &parent);
        let dir = DirChange { pre, post: self.attr(dir, &parent) };
        let attr = self.attr(fresh.number, &record);
        Ok(Made { dir, number: fresh.number, attr, existed: false, covered })
    }

    /// Makes sure that the stored cursor lies above the new number: no crash can hand it out again.
    async fn cover(&mut self, fresh: &Fresh) -> FsResult<u64> {
        if fresh.number < fresh.covered {
            return Ok(fresh.covered);
        }
        let cursor = match self.tx.get(Tree::Settings, INODE_CURSOR).await? {
            Some(value) => {
                parse_cursor(&value).map_err(|e| super::corrupt(Tree::Settings, INODE_CURSOR, e))?
            }
            None => return Err(super::inconsistent("no inode cursor in the settings", fresh.number)),
        };
        if fresh.number < cursor {
            return Ok(cursor);
        }
        let cursor = fresh.number + INODE_BATCH;
        if !planted::is(Fault::CursorNotStored) {
            self.tx.put(Tree::Settings, INODE_CURSOR, cursor_value(cursor));
        }
        // A cursor that damage set back must not cost an inode.
        let batch = pos(0, fresh.number)..=pos(0, cursor - 1);
        if let Some((at, _)) = self.tx.first(Tree::Inodes, batch).await? {
            return Err(super::inconsistent("its number was not handed out yet", at.offset));
        }
        Ok(cursor)
    }
}
