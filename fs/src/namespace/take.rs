//! Taking names away and moving them: remove, rmdir, rename.

use super::dir::{Entry, check_name};
use super::{DirChange, Names, inconsistent};
use crate::access::{self, WRITE};
use crate::planted::{self, Fault};
use crate::vfs::*;
use moraine_format::inode::{Inode, InodeKind, ROOT_INODE};

/// Directories above one another, at most: a longer chain can only be a loop made by damage.
const DEPTH_MAX: usize = 1 << 16;

/// Which kind of object a name may be taken from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taking {
    /// REMOVE: anything but a directory.
    NonDirectory,
    /// RMDIR: an empty directory.
    EmptyDirectory,
}

/// A name was taken.
pub(crate) struct Taken {
    pub(crate) dir: DirChange,
    pub(crate) number: u64,
    /// It was the last one.
    pub(crate) gone: bool,
}

/// A name was moved.
pub(crate) struct Renamed {
    pub(crate) from: DirChange,
    pub(crate) to: DirChange,
    /// The object, with its new record.
    pub(crate) source: (u64, Option<Inode>),
    /// The object whose name was replaced, and whether that was its last.
    pub(crate) replaced: Option<(u64, bool)>,
}

impl Names<'_> {
    /// Takes `name` away.
    pub(crate) async fn take(
        &mut self,
        caller: &Caller,
        dir: u64,
        name: &[u8],
        taking: Taking,
    ) -> FsResult<Taken> {
        let mut parent = self.live_dir(dir).await?;
        check_name(name)?;
        let Entry::Found { offset, inode: number } = self.search(caller, dir, &parent, name).await? else {
            return Err(FsError::NotFound);
        };
        let record = self.named(number).await?;
        self.check_take(caller, (dir, &parent), (number, &record))?;
        match (taking, record.kind) {
            (Taking::NonDirectory, InodeKind::Dir) => return Err(FsError::IsDir),
            (Taking::EmptyDirectory, InodeKind::Dir) if !self.is_empty(number).await? => {
                return Err(FsError::NotEmpty);
            }
            (Taking::EmptyDirectory, kind) if kind != InodeKind::Dir => return Err(FsError::NotDir),
            _ => {}
        }
        let pre = self.attr(dir, &parent).pre();
        self.leave((dir, &mut parent), offset, name, record.kind).await?;
        let gone = self.drop_link(number, record);
        self.touch_content(dir, &mut parent);
        self.store(dir, &parent);
        Ok(Taken { dir: DirChange { pre, post: self.attr(dir, &parent) }, number, gone })
    }

    /// Whether `caller` may take an object's name out of a directory.
    fn check_take(&self, caller: &Caller, dir: (u64, &Inode), object: (u64, &Inode)) -> FsResult<()> {
        self.check_dir_write(caller, dir.0, dir.1)?;
        access::check_sticky(&self.attr(dir.0, dir.1), &self.attr(object.0, object.1), caller)
    }

    /// Renames, replacing a compatible target.
    pub(crate) async fn rename(
        &mut self,
        caller: &Caller,
        (from_dir, from): (u64, &[u8]),
        (to_dir, to): (u64, &[u8]),
    ) -> FsResult<Renamed> {
        let from_record = self.live_dir(from_dir).await?;
        let to_record = self.live_dir(to_dir).await?;
        check_name(from)?;
        check_name(to)?;
        let source = self.search(caller, from_dir, &from_record, from).await?;
        let target = self.search(caller, to_dir, &to_record, to).await?;
        let Entry::Found { offset: source_at, inode: source } = source else { return Err(FsError::NotFound) };
        let source_record = self.named(source).await?;
        let moves_dir = source_record.kind == InodeKind::Dir;
        if moves_dir && self.is_above(source, to_dir).await? {
            return Err(FsError::Invalid);
        }
        let target = match target {
            Entry::Free { .. } => None,
            Entry::Found { offset, inode } => Some((offset, inode, self.named(inode).await?)),
        };
        if let Some((_, target, record)) = &target {
            if record.kind == InodeKind::Dir && self.is_above(*target, from_dir).await? {
                return Err(FsError::NotEmpty);
            }
            if *target == source {
                let from = DirChange::none(self.attr(from_dir, &from_record));
                let to = DirChange::none(self.attr(to_dir, &to_record));
                return Ok(Renamed { from, to, source: (source, None), replaced: None });
            }
        }
        self.check_take(caller, (from_dir, &from_record), (source, &source_record))?;
        match &target {
            None => self.check_dir_write(caller, to_dir, &to_record)?,
            Some((_, number, record)) => {
                self.check_take(caller, (to_dir, &to_record), (*number, record))?;
                match (moves_dir, record.kind == InodeKind::Dir) {
                    (true, false) => return Err(FsError::NotDir),
                    (false, true) => return Err(FsError::IsDir),
                    _ => {}
                }
            }
        }
        if moves_dir && from_dir != to_dir {
            // Its `..` changes: that is a write to the directory itself.
            access::check(&self.attr(source, &source_record), caller, WRITE)?;
        }
        if let Some((_, number, record)) = &target
            && record.kind == InodeKind::Dir
            && !self.is_empty(*number).await?
        {
            return Err(FsError::NotEmpty);
        }
        self.move_entry(
            (from_dir, from_record, from),
            (to_dir, to_record, to),
            (source_at, source, source_record),
            target,
        )
        .await
    }

    /// The change itself, after all checks.
    async fn move_entry(
        &mut self,
        (from_dir, mut from_record, from): (u64, Inode, &[u8]),
        (to_dir, to_record, to): (u64, Inode, &[u8]),
        (source_at, source, mut source_record): (u64, u64, Inode),
        target: Option<(u64, u64, Inode)>,
    ) -> FsResult<Renamed> {
        let pre_from = self.attr(from_dir, &from_record).pre();
        let pre_to = self.attr(to_dir, &to_record).pre();
        let kind = source_record.kind;
        if !planted::is(Fault::OldNameStays) {
            self.leave((from_dir, &mut from_record), source_at, from, kind).await?;
        }
        // Within one directory both changes go to one record.
        let mut other = (from_dir != to_dir).then_some(to_record);
        let mut replaced = None;
        if let Some((at, number, record)) = target {
            let to_record = other.as_mut().unwrap_or(&mut from_record);
            self.leave((to_dir, to_record), at, to, record.kind).await?;
            replaced = Some((number, self.drop_link(number, record)));
        }
        let to_record = other.as_mut().unwrap_or(&mut from_record);
        let Entry::Free { offset } = self.find(to_dir, to_record, to).await? else {
            return Err(inconsistent("a name is in its directory twice", to_dir));
        };
        self.enter((to_dir, to_record), offset, to, (source, &mut source_record));
        self.touch(source, &mut source_record);
        self.store(source, &source_record);
        self.touch_content(from_dir, &mut from_record);
        self.store(from_dir, &from_record);
        let post_from = self.attr(from_dir, &from_record);
        let post_to = match &mut other {
            None => post_from,
            Some(record) => {
                self.touch_content(to_dir, record);
                self.store(to_dir, record);
                self.attr(to_dir, record)
            }
        };
        Ok(Renamed {
            from: DirChange { pre: pre_from, post: post_from },
            to: DirChange { pre: pre_to, post: post_to },
            source: (source, Some(source_record)),
            replaced,
        })
    }

    /// Whether directory `ancestor` is `dir` or lies above it. What is walked is part of the read set: two renames that
    /// together would make a loop conflict.
    async fn is_above(&mut self, ancestor: u64, mut dir: u64) -> FsResult<bool> {
        for _ in 0..DEPTH_MAX {
            if dir == ancestor {
                return Ok(true);
            }
            if dir == ROOT_INODE {
                return Ok(false);
            }
            dir = self.named(dir).await?.parent;
        }
        Err(inconsistent("directories form a loop", dir))
    }
}
