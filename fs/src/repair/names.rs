//! Names: every entry of a directory lies where a look-up finds it, once, and leads to an inode of its kind. The same
//! for extended attributes, which share the way of placing.

use super::mend::{is_in_view, is_number};
use super::walk::{Found, Keys};
use super::{Check, FindingKind};
use crate::namespace::hash::{self, Slot};
use crate::namespace::pos;
use crate::tx::Value;
use crate::vfs::FsResult;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Ordering;
use moraine_format::dirent::{Dirent, FIRST_POSITION, NAME_MAX, Target};
use moraine_format::inode::{Inode, InodeKind, ROOT_INODE};
use moraine_format::xattr::Xattr;
use moraine_format::{Pos, Tree};

/// The inode whose names are being looked at.
struct Owner {
    number: u64,
    /// None if nothing is known of it: nothing is said of its names then.
    record: Option<Inode>,
    /// Its names cannot stay.
    unwanted: Option<FindingKind>,
    /// First of the occupied positions that lead up to the last one without a gap.
    chain: u64,
    last: u64,
}

impl Owner {
    /// Notes that `position` is occupied.
    fn occupy(&mut self, position: u64) {
        if self.last.checked_add(1) != Some(position) || self.chain == 0 {
            self.chain = position;
        }
        self.last = position;
    }

    /// Whether a name whose home is `home` is found at the last position.
    fn leads_here(&self, home: u64) -> bool {
        (self.chain..=self.last).contains(&home)
    }
}

pub(super) async fn check(check: &mut Check<'_>) -> FsResult<()> {
    let mut owner: Option<Owner> = None;
    let mut keys = Keys::all(Tree::Dirents, 0);
    while let Some((at, value)) = keys.next(check).await? {
        if owner.as_ref().is_none_or(|o| o.number != at.inode) {
            owner = Some(directory(check, at.inode).await?);
        }
        let owner = owner.as_mut().expect("set above");
        if entry(check, owner, at, &value).await? == Place::Changed {
            keys.again_after(at);
        }
    }
    xattrs(check).await
}

/// Whether positions behind the one looked at may have changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Same,
    Changed,
}

async fn directory(check: &mut Check<'_>, number: u64) -> FsResult<Owner> {
    let mut owner = Owner { number, record: None, unwanted: None, chain: 0, last: 0 };
    match check.get(Tree::Inodes, pos(0, number)).await? {
        Found::Unknown => {}
        _ if !is_number(number) => owner.unwanted = Some(FindingKind::KeyForeign),
        Found::Missing => {
            check.found(FindingKind::DirectoryMissing, format!("inode {number}"));
            if check.repairs() {
                check.make_inode(number, InodeKind::Dir, |_| ()).await?;
                super::inodes::raise_cursor(check, number).await?;
                owner.record = check.inode(number).await?;
            }
        }
        Found::Value(value) => match Inode::parse(&value) {
            Ok(inode) if inode.kind == InodeKind::Dir => owner.record = Some(inode),
            Ok(_) => owner.unwanted = Some(FindingKind::NamesOutsideDirectory),
            Err(_) => {}
        },
    }
    Ok(owner)
}

async fn entry(check: &mut Check<'_>, owner: &mut Owner, at: Pos, value: &[u8]) -> FsResult<Place> {
    let dir = at.inode;
    if !is_in_view(at) || at.offset < FIRST_POSITION {
        let why = "no name is there";
        check.drop_key(FindingKind::KeyForeign, Tree::Dirents, at, why).await?;
        return Ok(Place::Same);
    }
    owner.occupy(at.offset);
    if let Some(kind) = owner.unwanted {
        check.drop_key(kind, Tree::Dirents, at, "a name").await?;
        return Ok(Place::Same);
    }
    let (target, name) = match Dirent::parse(value) {
        Ok(Dirent::Whiteout) => return Ok(Place::Same),
        Ok(Dirent::Entry { target: Target::Inode { inode, kind }, name }) => ((inode, kind), name),
        Ok(Dirent::Entry { .. }) => {
            let why = format!("dirents {at}: it leads into a subvolume, of which there are none yet");
            check.found(FindingKind::ValueUnreadable, why);
            return remove(check, Tree::Dirents, at).await;
        }
        Err(e) => {
            check.found(FindingKind::ValueUnreadable, format!("dirents {at}: {e}"));
            return remove(check, Tree::Dirents, at).await;
        }
    };
    let text = format!("'{}' in directory {dir}, to inode {}", name.escape_ascii(), target.0);
    if !leads_somewhere(check, at, target, name, &text).await? {
        return remove(check, Tree::Dirents, at).await;
    }
    let Some(record) = &owner.record else { return Ok(Place::Same) };
    let home = hash::home(record, &[name]);
    if !owner.leads_here(home) {
        check.found(FindingKind::DirentMisplaced, text);
        return move_entry(check, at, target, name).await;
    }
    for before in home..at.offset {
        if let Some(value) = check.get(Tree::Dirents, pos(dir, before)).await?.value()
            && matches!(Dirent::parse(&value), Ok(Dirent::Entry { name: other, .. }) if other == name)
        {
            check.found(FindingKind::NameTwice, text);
            return move_entry(check, at, target, name).await;
        }
    }
    Ok(Place::Same)
}

/// Checks what an entry leads to; says whether it can stay.
async fn leads_somewhere(
    check: &mut Check<'_>,
    at: Pos,
    (number, kind): (u64, InodeKind),
    name: &[u8],
    text: &str,
) -> FsResult<bool> {
    let inode = match check.get(Tree::Inodes, pos(0, number)).await? {
        Found::Unknown => return Ok(true),
        Found::Missing if kind == InodeKind::Dir && is_number(number) && has_names(check, number).await? => {
            // A directory whose record is lost: its names are there, so it stays where it is.
            check.found(FindingKind::DirectoryMissing, String::from(text));
            if check.repairs() {
                let (parent, offset) = (at.inode, at.offset);
                let under = |i: &mut Inode| (i.parent, i.parent_offset) = (parent, offset);
                check.make_inode(number, kind, under).await?;
                super::inodes::raise_cursor(check, number).await?;
            }
            return Ok(true);
        }
        Found::Missing => {
            check.found(FindingKind::InodeMissing, String::from(text));
            return Ok(false);
        }
        Found::Value(value) => match Inode::parse(&value) {
            Ok(inode) => inode,
            // Reported with the inodes; only a check that mends nothing sees it again.
            Err(_) => return Ok(true),
        },
    };
    if inode.nlink == 0 && matches!(check.get(Tree::DeletedInodes, pos(number, 0)).await?, Found::Value(_)) {
        check.found(FindingKind::NameOfDeleted, String::from(text));
        return Ok(false);
    }
    if inode.kind == InodeKind::Dir {
        if number == ROOT_INODE {
            check.found(FindingKind::DirectoryLinkedTwice, String::from(text));
            return Ok(false);
        }
        if (inode.parent, inode.parent_offset) != (at.inode, at.offset) {
            let there = check.get(Tree::Dirents, pos(inode.parent, inode.parent_offset)).await?;
            let named_there = match &there {
                Found::Value(value) => matches!(Dirent::parse(value),
                    Ok(Dirent::Entry { target: Target::Inode { inode, .. }, .. }) if inode == number),
                Found::Missing => false,
                Found::Unknown => return Ok(true),
            };
            if named_there {
                check.found(FindingKind::DirectoryLinkedTwice, String::from(text));
                return Ok(false);
            }
            check.found(FindingKind::ParentWrong, format!("{text}, which says {}", inode.parent));
            check.edit_inode(number, |i| (i.parent, i.parent_offset) = (at.inode, at.offset)).await?;
        }
    }
    if inode.kind != kind {
        check.found(FindingKind::DirentKindWrong, format!("{text}, a {}", inode.kind.name()));
        let target = Target::Inode { inode: number, kind: inode.kind };
        check.set(Tree::Dirents, at, Some(Dirent::Entry { target, name }.to_value())).await?;
    }
    Ok(true)
}

/// Whether there are names in a directory, whatever is known of it.
async fn has_names(check: &mut Check<'_>, number: u64) -> FsResult<bool> {
    let range = Pos::new(number, 0, 0)..=Pos::new(number, u64::MAX, u32::MAX);
    let mut keys = Keys::within(Tree::Dirents, 0, range);
    while let Some((_, value)) = keys.next(check).await? {
        if matches!(Dirent::parse(&value), Ok(Dirent::Entry { .. })) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes a name away so that others are still found.
async fn remove(check: &mut Check<'_>, tree: Tree, at: Pos) -> FsResult<Place> {
    if check.repairs() {
        check.rename_by(async |names| hash::remove(names.tx, tree, at.inode, at.offset).await).await?;
    }
    Ok(Place::Changed)
}

/// Puts an entry where a look-up finds it. If its name is taken there it gets another one, or goes if it leads to the
/// same inode.
async fn move_entry(
    check: &mut Check<'_>,
    at: Pos,
    (number, kind): (u64, InodeKind),
    name: &[u8],
) -> FsResult<Place> {
    if !check.repairs() {
        return Ok(Place::Same);
    }
    let dir = at.inode;
    check
        .rename_by(async |names| {
            let Some(record) = names.load(dir).await? else { return Ok(()) };
            hash::remove(names.tx, Tree::Dirents, dir, at.offset).await?;
            let (mut name, mut tries) = (Vec::from(name), 0);
            let offset = loop {
                use crate::namespace::dir::Entry;
                match names.find(dir, &record, &name).await? {
                    Entry::Free { offset } => break offset,
                    Entry::Found { inode, .. } if inode == number => return Ok(()),
                    Entry::Found { .. } => {
                        name = another_name(&name, number, tries);
                        tries += 1;
                    }
                }
            };
            let target = Target::Inode { inode: number, kind };
            let value = Dirent::Entry { target, name: &name }.to_value();
            names.tx.put(Tree::Dirents, pos(dir, offset), value);
            if let Some(mut inode) = names.load(number).await?
                && (inode.parent, inode.parent_offset) == (dir, at.offset)
            {
                inode.parent_offset = offset;
                names.store(number, &inode);
            }
            Ok(())
        })
        .await?;
    Ok(Place::Changed)
}

/// A name for an object whose own is taken.
pub(super) fn another_name(name: &[u8], number: u64, tries: u32) -> Vec<u8> {
    let end = if tries == 0 { format!("~{number}") } else { format!("~{number}.{tries}") };
    let mut out = name[..name.len().min(NAME_MAX - end.len())].to_vec();
    out.extend_from_slice(end.as_bytes());
    out
}

async fn xattrs(check: &mut Check<'_>) -> FsResult<()> {
    let mut owner: Option<Owner> = None;
    let mut keys = Keys::all(Tree::Xattrs, 0);
    while let Some((at, value)) = keys.next(check).await? {
        if owner.as_ref().is_none_or(|o| o.number != at.inode) {
            let mut new = Owner { number: at.inode, record: None, unwanted: None, chain: 0, last: 0 };
            match check.get(Tree::Inodes, pos(0, at.inode)).await? {
                Found::Missing => new.unwanted = Some(FindingKind::XattrWithoutInode),
                found => new.record = found.value().and_then(|v| Inode::parse(&v).ok()),
            }
            owner = Some(new);
        }
        let owner = owner.as_mut().expect("set above");
        if !is_in_view(at) || at.offset < FIRST_POSITION {
            check.drop_key(FindingKind::KeyForeign, Tree::Xattrs, at, "no attribute is there").await?;
            continue;
        }
        owner.occupy(at.offset);
        if let Some(kind) = owner.unwanted {
            check.drop_key(kind, Tree::Xattrs, at, "an attribute").await?;
            continue;
        }
        if xattr(check, owner, at, &value).await? == Place::Changed {
            keys.again_after(at);
        }
    }
    Ok(())
}

async fn xattr(check: &mut Check<'_>, owner: &Owner, at: Pos, value: &Value) -> FsResult<Place> {
    let (namespace, name) = match Xattr::parse(value) {
        Ok(Xattr::Whiteout) => return Ok(Place::Same),
        Ok(Xattr::Entry { namespace, name, .. }) => (namespace, name),
        Err(e) => {
            check.found(FindingKind::ValueUnreadable, format!("xattrs {at}: {e}"));
            return remove(check, Tree::Xattrs, at).await;
        }
    };
    let Some(record) = &owner.record else { return Ok(Place::Same) };
    let home = hash::home(record, &[&[namespace as u8], name]);
    let same = |other: &[u8]| {
        matches!(Xattr::parse(other),
            Ok(Xattr::Entry { namespace: ns, name: n, .. }) if ns == namespace && n.cmp(name) == Ordering::Equal)
    };
    let mut right = owner.leads_here(home);
    for before in home..if right { at.offset } else { home } {
        let other = check.get(Tree::Xattrs, pos(at.inode, before)).await?.value();
        right &= !other.is_some_and(|v| same(&v));
    }
    if right {
        return Ok(Place::Same);
    }
    check.found(FindingKind::XattrMisplaced, format!("'{}' of inode {}", name.escape_ascii(), at.inode));
    if check.repairs() {
        check
            .rename_by(async |names| {
                hash::remove(names.tx, Tree::Xattrs, at.inode, at.offset).await?;
                let slot = hash::find(names.tx, Tree::Xattrs, at.inode, home, |_, v| Ok(same(v))).await?;
                // The first of two of one name counts: it is the one that was found.
                if let Slot::Free(offset) = slot {
                    names.tx.put(Tree::Xattrs, pos(at.inode, offset), value.clone());
                }
                Ok(())
            })
            .await?;
    }
    Ok(Place::Changed)
}
