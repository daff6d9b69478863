//! Links: every inode has as many names as its record says; what has none gets one; every directory leads up to the root.

use super::names::another_name;
use super::walk::{Found, Keys};
use super::{Check, FindingKind};
use crate::namespace::dir::Entry;
use crate::namespace::{Names, pos};
use crate::vfs::FsResult;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use moraine_format::dirent::{DIRENT_FIXED, Dirent, Target};
use moraine_format::inode::{Inode, InodeKind, ROOT_INODE};
use moraine_format::record::deleted_value;
use moraine_format::{Pos, Tree};

/// Inodes whose names are counted in one walk over all names.
const RANGE_INODES: usize = 1 << 17;
/// Objects without a name that get one in one check; the next check takes on the rest.
const NAMELESS_MAX: usize = 1 << 16;
/// Directories known to lead to the root that are kept in mind.
const GOOD_MAX: usize = 1 << 17;
/// Where objects go whose directory is lost, in the root.
const LOST_FOUND: &[u8] = b"lost+found";

/// What the pass keeps of an inode.
struct Known {
    kind: InodeKind,
    nlink: u32,
    size: u64,
    names: u32,
    subdirs: u32,
    entry_bytes: u64,
}

pub(super) async fn check(check: &mut Check<'_>) -> FsResult<()> {
    let mut nameless = Vec::new();
    let mut from = Some(Pos::MIN);
    while let Some(start) = from {
        let (mut known, next) = range(check, start).await?;
        count(check, &mut known).await?;
        for (number, inode) in &known {
            compare(check, *number, inode, &mut nameless).await?;
        }
        from = next;
    }
    if check.repairs() {
        for number in nameless {
            check.give_name(number, Home::Old).await?;
        }
    }
    reach_root(check).await
}

/// The next inodes, and where those behind them begin.
async fn range(check: &mut Check<'_>, start: Pos) -> FsResult<(BTreeMap<u64, Known>, Option<Pos>)> {
    let mut known = BTreeMap::new();
    let mut keys = Keys::within(Tree::Inodes, 0, start..=Pos::MAX);
    while let Some((at, value)) = keys.next(check).await? {
        if let Ok(i) = Inode::parse(&value) {
            let inode =
                Known { kind: i.kind, nlink: i.nlink, size: i.size, names: 0, subdirs: 0, entry_bytes: 0 };
            known.insert(at.offset, inode);
        }
        if known.len() == RANGE_INODES {
            return Ok((known, at.successor()));
        }
    }
    Ok((known, None))
}

/// Counts names to and in the inodes of a range.
async fn count(check: &mut Check<'_>, known: &mut BTreeMap<u64, Known>) -> FsResult<()> {
    let mut keys = Keys::all(Tree::Dirents, 0);
    while let Some((at, value)) = keys.next(check).await? {
        let Ok(Dirent::Entry { target: Target::Inode { inode, kind }, name }) = Dirent::parse(&value) else {
            continue;
        };
        if let Some(target) = known.get_mut(&inode) {
            target.names += 1;
        }
        if let Some(dir) = known.get_mut(&at.inode) {
            dir.subdirs += u32::from(kind == InodeKind::Dir);
            dir.entry_bytes += (DIRENT_FIXED + name.len()) as u64;
        }
    }
    Ok(())
}

async fn compare(check: &mut Check<'_>, number: u64, known: &Known, nameless: &mut Vec<u64>) -> FsResult<()> {
    let dir = known.kind == InodeKind::Dir;
    if known.names == 0 && number != ROOT_INODE {
        if known.nlink == 0 {
            return leaving(check, number).await;
        }
        let later = check.will_repair() && nameless.len() == NAMELESS_MAX;
        let text = format!("inode {number}, a {} of {} bytes", known.kind.name(), known.size);
        check.report(FindingKind::InodeUnreferenced, text, check.will_repair() && !later);
        if !later {
            nameless.push(number);
        }
    }
    let deleted = known.nlink == 0
        && number != ROOT_INODE
        && !matches!(check.get(Tree::DeletedInodes, pos(number, 0)).await?, Found::Missing);
    if deleted {
        return Ok(());
    }
    // What has no name yet gets exactly one.
    let should = if dir { 2 + known.subdirs } else { known.names.max(1) };
    if should != known.nlink {
        let text = format!("inode {number}: {}, counted {should}", known.nlink);
        check.found(FindingKind::LinkCountWrong, text);
        check.edit_inode(number, |i| i.nlink = should).await?;
    }
    if dir && known.entry_bytes != known.size {
        let text = format!("inode {number}: {}, counted {}", known.size, known.entry_bytes);
        check.found(FindingKind::DirectorySizeWrong, text);
        let size = known.entry_bytes;
        check.edit_inode(number, |i| i.size = size).await?;
    }
    Ok(())
}

/// An inode without names that counts as deleted waits for the reaper, in its list.
async fn leaving(check: &mut Check<'_>, number: u64) -> FsResult<()> {
    let at = pos(number, 0);
    if let Found::Missing = check.get(Tree::DeletedInodes, at).await? {
        check.found(FindingKind::InodeUnreferenced, format!("inode {number} is deleted and not in the list"));
        let value = deleted_value(check.engine.pool().boot_epoch);
        check.set(Tree::DeletedInodes, at, Some(value)).await?;
    }
    Ok(())
}

/// Follows every directory up; what is above itself is cut loose.
async fn reach_root(check: &mut Check<'_>) -> FsResult<()> {
    let mut good: BTreeSet<u64> = BTreeSet::from([ROOT_INODE]);
    let mut keys = Keys::all(Tree::Inodes, 0);
    while let Some((at, value)) = keys.next(check).await? {
        if !Inode::parse(&value).is_ok_and(|i| i.kind == InodeKind::Dir && i.nlink > 0) {
            continue;
        }
        let (mut path, mut up) = (BTreeSet::new(), at.offset);
        while !good.contains(&up) {
            if !path.insert(up) {
                check.found(FindingKind::DirectoryLoop, format!("inode {up}"));
                if check.repairs() {
                    check.give_name(up, Home::LostFound).await?;
                }
                break;
            }
            match check.inode(up).await? {
                Some(inode) => up = inode.parent,
                // A directory without a parent has been reported as one without a name.
                None => break,
            }
        }
        if good.len() > GOOD_MAX {
            good = BTreeSet::from([ROOT_INODE]);
        }
        good.extend(path);
    }
    Ok(())
}

/// Where an object gets a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    /// In the directory it was in last, if that is still there.
    Old,
    /// In `/lost+found`.
    LostFound,
}

impl Check<'_> {
    /// Gives an object a name made of its number; a directory loses the one it had.
    async fn give_name(&mut self, number: u64, home: Home) -> FsResult<()> {
        let fresh = self.fresh_number().await?;
        let mut seed = [0; 16];
        self.engine.platform().rng.fill(&mut seed);
        self.rename_by(async |names| {
            let Some(mut inode) = names.load(number).await? else { return Ok(()) };
            let dir = inode.kind == InodeKind::Dir;
            if dir {
                lose_name(names, number, &inode).await?;
                // It may have been its own parent.
                inode = names.load(number).await?.unwrap_or(inode);
            }
            let parent = match names.load(inode.parent).await? {
                Some(p)
                    if home == Home::Old
                        && p.kind == InodeKind::Dir
                        && p.nlink > 0
                        && inode.parent != number =>
                {
                    inode.parent
                }
                _ => lost_found(names, fresh, seed).await?,
            };
            let Some(mut record) = names.load(parent).await? else { return Ok(()) };
            let (offset, name) = free_name(names, parent, &record, format!("#{number}").into_bytes()).await?;
            if !dir {
                inode.nlink = 1;
            }
            names.enter((parent, &mut record), offset, &name, (number, &mut inode));
            names.touch_content(parent, &mut record);
            names.store(parent, &record);
            names.store(number, &inode);
            Ok(())
        })
        .await
    }
}

/// A name that `dir` does not have, as near to `name` as possible, and its position.
async fn free_name(
    names: &mut Names<'_>,
    dir: u64,
    record: &Inode,
    name: Vec<u8>,
) -> FsResult<(u64, Vec<u8>)> {
    let (mut candidate, mut tries) = (name.clone(), 0);
    loop {
        match names.find(dir, record, &candidate).await? {
            Entry::Free { offset } => return Ok((offset, candidate)),
            Entry::Found { inode, .. } => candidate = another_name(&name, inode, tries),
        }
        tries += 1;
    }
}

/// Takes the one name of a directory away.
async fn lose_name(names: &mut Names<'_>, number: u64, inode: &Inode) -> FsResult<()> {
    let at = pos(inode.parent, inode.parent_offset);
    let (Some(value), Some(mut parent)) =
        (names.tx.get(Tree::Dirents, at).await?, names.load(inode.parent).await?)
    else {
        return Ok(());
    };
    if let Ok(Dirent::Entry { target: Target::Inode { inode: named, .. }, name }) = Dirent::parse(&value)
        && named == number
        && parent.kind == InodeKind::Dir
    {
        parent.nlink = parent.nlink.max(1);
        names.leave((inode.parent, &mut parent), inode.parent_offset, name, InodeKind::Dir).await?;
        names.store(inode.parent, &parent);
    }
    Ok(())
}

/// The directory for what is found without a home; made as inode `fresh` if there is none.
async fn lost_found(names: &mut Names<'_>, fresh: u64, seed: [u8; 16]) -> FsResult<u64> {
    let root = |record: Option<Inode>| record.ok_or(crate::vfs::FsError::Corrupt);
    let mut record = root(names.load(ROOT_INODE).await?)?;
    if let Entry::Found { inode, .. } = names.find(ROOT_INODE, &record, LOST_FOUND).await?
        && names.load(inode).await?.is_some_and(|i| i.kind == InodeKind::Dir && i.nlink > 0)
    {
        return Ok(inode);
    }
    let (offset, name) = free_name(names, ROOT_INODE, &record, LOST_FOUND.to_vec()).await?;
    let now = names.now.0;
    let mut made = Inode {
        mode: 0o700,
        nlink: 2,
        atime_ns: now,
        mtime_ns: now,
        ctime_ns: now,
        btime_ns: now,
        change: 1,
        ..Inode::new(InodeKind::Dir, seed)
    };
    names.enter((ROOT_INODE, &mut record), offset, &name, (fresh, &mut made));
    names.touch_content(ROOT_INODE, &mut record);
    names.store(ROOT_INODE, &record);
    names.store(fresh, &made);
    Ok(fresh)
}
