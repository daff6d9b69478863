//! Directory entries: search, enter, leave, list.

use super::hash::{self, Slot};
use super::record::kind_of;
use super::{Names, corrupt, object, pos};
use crate::access::{self, EXEC, READ, WRITE};
use crate::planted::{self, Fault};
use crate::vfs::{Attr, Caller, DirEntry, FsError, FsResult, Kind, NAME_MAX, ObjectId, WithAttributes};
use alloc::vec::Vec;
use moraine_format::dirent::{DIRENT_FIXED, Dirent, FIRST_POSITION, Target};
use moraine_format::inode::{Inode, InodeKind, ROOT_INODE};
use moraine_format::{Pos, Tree};

/// Cookie of `.`.
const COOKIE_SELF: u64 = 1;
/// Cookie of `..`.
const COOKIE_PARENT: u64 = 2;
/// Entries read in one transaction: bounds what a concurrent change makes us read again.
pub(crate) const LIST_CHUNK: usize = 64;

/// Where a name is, or would be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    /// It is there.
    Found {
        /// Its position.
        offset: u64,
        /// What it names.
        inode: u64,
    },
    /// It is not; here it would go.
    Free {
        /// The free position.
        offset: u64,
    },
}

/// Part of a directory.
pub(crate) struct Chunk {
    pub(crate) entries: Vec<DirEntry>,
    pub(crate) eof: bool,
    pub(crate) attr: Attr,
}

/// Whether `name` can name an entry that is made, removed or renamed.
pub(crate) fn check_name(name: &[u8]) -> FsResult<()> {
    if matches!(name, b"." | b"..") { Err(FsError::BadName) } else { check_name_to_find(name) }
}

/// Whether `name` can be looked up; `.` and `..` can.
fn check_name_to_find(name: &[u8]) -> FsResult<()> {
    if name.is_empty() || name.iter().any(|b| matches!(b, b'/' | 0)) {
        Err(FsError::BadName)
    } else if name.len() > NAME_MAX {
        Err(FsError::NameTooLong)
    } else {
        Ok(())
    }
}

fn parse<'a>(at: Pos, value: &'a [u8]) -> FsResult<Dirent<'a>> {
    Dirent::parse(value).map_err(|e| corrupt(Tree::Dirents, at, e))
}

/// The directory above `dir`; the root's is the root.
fn parent_of(number: u64, dir: &Inode) -> u64 {
    if number == ROOT_INODE { ROOT_INODE } else { dir.parent }
}

impl Names<'_> {
    /// LOOKUP.
    pub(crate) async fn lookup(&mut self, caller: &Caller, dir: u64, name: &[u8]) -> FsResult<(u64, Inode)> {
        let record = self.live_dir(dir).await?;
        check_name_to_find(name)?;
        let found = match name {
            b"." | b".." => {
                access::check(&self.attr(dir, &record), caller, EXEC)?;
                if name == b"." { dir } else { parent_of(dir, &record) }
            }
            _ => match self.search(caller, dir, &record, name).await? {
                Entry::Found { inode, .. } => inode,
                Entry::Free { .. } => return Err(FsError::NotFound),
            },
        };
        Ok((found, self.named(found).await?))
    }

    /// The record of an object that an entry names: it must be there.
    pub(crate) async fn named(&mut self, number: u64) -> FsResult<Inode> {
        match self.live(number).await {
            Err(FsError::Stale) => Err(super::inconsistent("named by a directory but gone", number)),
            other => other,
        }
    }

    /// Looks for `name`, after the search permission.
    pub(crate) async fn search(
        &mut self,
        caller: &Caller,
        dir: u64,
        record: &Inode,
        name: &[u8],
    ) -> FsResult<Entry> {
        access::check(&self.attr(dir, record), caller, EXEC)?;
        self.find(dir, record, name).await
    }

    /// Looks for `name`, whoever asks.
    pub(crate) async fn find(&mut self, dir: u64, record: &Inode, name: &[u8]) -> FsResult<Entry> {
        let home = hash::home(record, &[name]);
        let mut target = None;
        let slot = hash::find(self.tx, Tree::Dirents, dir, home, |at, value| match parse(at, value)? {
            Dirent::Entry { target: here, name: other } if other == name => {
                target = Some(here);
                Ok(true)
            }
            _ => Ok(false),
        })
        .await?;
        match (slot, target) {
            (Slot::Free(offset), _) => Ok(Entry::Free { offset }),
            (Slot::Found(offset, _), Some(Target::Inode { inode, .. })) => Ok(Entry::Found { offset, inode }),
            (Slot::Found(..), _) => Err(FsError::Unsupported),
        }
    }

    /// Whether `caller` may add or remove names in `dir`.
    pub(crate) fn check_dir_write(&self, caller: &Caller, dir: u64, record: &Inode) -> FsResult<()> {
        access::check(&self.attr(dir, record), caller, WRITE | EXEC)
    }

    /// Puts an entry at the free position `offset` and notes it in the object's record. The caller stores both records.
    pub(crate) fn enter(
        &mut self,
        dir: (u64, &mut Inode),
        offset: u64,
        name: &[u8],
        child: (u64, &mut Inode),
    ) {
        let target = Target::Inode { inode: child.0, kind: child.1.kind };
        self.tx.put(Tree::Dirents, pos(dir.0, offset), Dirent::Entry { target, name }.to_value());
        dir.1.size += entry_bytes(name);
        if child.1.kind == InodeKind::Dir {
            dir.1.nlink += 1;
        }
        (child.1.parent, child.1.parent_offset) = (dir.0, offset);
    }

    /// Takes the entry at `offset` out of a directory. The caller stores its record, and the object's.
    pub(crate) async fn leave(
        &mut self,
        dir: (u64, &mut Inode),
        offset: u64,
        name: &[u8],
        kind: InodeKind,
    ) -> FsResult<()> {
        hash::remove(self.tx, Tree::Dirents, dir.0, offset).await?;
        dir.1.size = dir.1.size.saturating_sub(entry_bytes(name));
        if kind == InodeKind::Dir {
            dir.1.nlink -= 1;
        }
        Ok(())
    }

    /// Whether a directory has no names in it.
    pub(crate) async fn is_empty(&mut self, dir: u64) -> FsResult<bool> {
        let mut from = FIRST_POSITION;
        while let Some((at, value)) = self.next_entry(dir, from).await? {
            if !hash::is_whiteout(&value) {
                return Ok(false);
            }
            from = at.offset + 1;
        }
        Ok(true)
    }

    async fn next_entry(&mut self, dir: u64, from: u64) -> FsResult<Option<(Pos, crate::tx::Value)>> {
        self.tx.first(Tree::Dirents, Pos::new(dir, from, 0)..=Pos::new(dir, u64::MAX, u32::MAX)).await
    }

    /// Up to `limit` (at most [`LIST_CHUNK`]) entries after `cookie`.
    pub(crate) async fn list(
        &mut self,
        caller: &Caller,
        dir: u64,
        cookie: u64,
        limit: usize,
        attributes: WithAttributes,
    ) -> FsResult<Chunk> {
        let record = self.live_dir(dir).await?;
        let attr = self.attr(dir, &record);
        access::check(&attr, caller, READ)?;
        let limit = limit.min(LIST_CHUNK);
        let mut entries: Vec<DirEntry> = Vec::new();
        entries.try_reserve(limit).map_err(|_| FsError::NoMemory)?;
        let dots = [(COOKIE_SELF, &b"."[..], dir), (COOKIE_PARENT, &b".."[..], parent_of(dir, &record))];
        for (at, name, number) in dots {
            if at > cookie && entries.len() < limit {
                let entry = self.describe(at, name, number, Kind::Dir, attributes).await?;
                entries.push(entry);
            }
        }
        let next = u64::from(!planted::is(Fault::CookieRepeats));
        let mut from = cookie.saturating_add(next).max(FIRST_POSITION);
        let dots_left = cookie < COOKIE_PARENT && entries.len() < (COOKIE_PARENT - cookie) as usize;
        // One entry beyond the limit is looked for, so that `eof` is true exactly when nothing follows.
        let eof = loop {
            if dots_left {
                break false;
            }
            let Some((at, value)) = self.next_entry(dir, from).await? else { break true };
            from = at.offset + 1;
            let Dirent::Entry { target, name } = parse(at, &value)? else { continue };
            if entries.len() == limit {
                break false;
            }
            let Target::Inode { inode, kind } = target else { continue };
            let entry = self.describe(at.offset, name, inode, kind_of(kind), attributes).await?;
            entries.push(entry);
        };
        Ok(Chunk { entries, eof, attr })
    }

    async fn describe(
        &mut self,
        cookie: u64,
        name: &[u8],
        number: u64,
        kind: Kind,
        attributes: WithAttributes,
    ) -> FsResult<DirEntry> {
        let attr = match attributes {
            WithAttributes::No => None,
            WithAttributes::Yes => {
                let record = self.named(number).await?;
                Some(self.attr(number, &record))
            }
        };
        let object: ObjectId = object(number);
        Ok(DirEntry { cookie, name: name.into(), object, kind, attr })
    }
}

/// What an entry adds to its directory's size.
fn entry_bytes(name: &[u8]) -> u64 {
    (DIRENT_FIXED + name.len()) as u64
}
