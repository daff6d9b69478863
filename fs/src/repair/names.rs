//! Files and names against each other: every name leads to an inode, every inode has as many names as it says, every
//! byte of content matches its checksum.

use super::walk::each_key;
use super::{Check, FindingKind, Repair};
use crate::engine::Placed;
use crate::engine::commit::Proposal;
use crate::journal::Class as JournalClass;
use crate::tx::Value;
use crate::vfs::FsResult;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use moraine_format::dirent::{Dirent, Target};
use moraine_format::extent::{Content, Extent, Pointer};
use moraine_format::inode::{Inode, InodeKind, ROOT_INODE};
use moraine_format::key::ROOT_SNAPSHOT;
use moraine_format::{Pos, Tree};
use moraine_platform::BLOCK_SIZE;

/// What the check keeps of an inode.
struct Known {
    kind: InodeKind,
    nlink: u32,
    used: u64,
    size: u64,
    parent: u64,
    names: u32,
    subdirs: u32,
    counted: u64,
}

type Inodes = BTreeMap<u64, Known>;

pub(super) async fn check(check: &mut Check<'_>) -> FsResult<()> {
    let mut inodes = inodes(check).await?;
    if !inodes.get(&ROOT_INODE).is_some_and(|i| i.kind == InodeKind::Dir) {
        check.report(FindingKind::RootMissing, format!("inode {ROOT_INODE}"), false);
    }
    let parents = dirents(check, &mut inodes).await?;
    reachable(check, &inodes, &parents);
    extents(check, &mut inodes).await?;
    xattrs(check, &inodes).await?;
    links(check, &inodes).await
}

async fn inodes(check: &mut Check<'_>) -> FsResult<Inodes> {
    let mut inodes = Inodes::new();
    each_key(check, Tree::Inodes, 0, |check, pos, value| match Inode::parse(value) {
        Ok(i) => {
            let known = Known {
                kind: i.kind,
                nlink: i.nlink,
                used: i.used,
                size: i.size,
                parent: i.parent,
                names: 0,
                subdirs: 0,
                counted: 0,
            };
            inodes.insert(pos.offset, known);
        }
        Err(e) => check.report(FindingKind::ValueUnreadable, format!("inode {}: {e}", pos.offset), false),
    })
    .await?;
    Ok(inodes)
}

/// Follows every name; returns each directory's parent by name.
async fn dirents(check: &mut Check<'_>, inodes: &mut Inodes) -> FsResult<BTreeMap<u64, u64>> {
    let mut parents = BTreeMap::new();
    each_key(check, Tree::Dirents, 0, |check, pos, value| {
        let dir = pos.inode;
        let entry = match Dirent::parse(value) {
            Ok(Dirent::Entry { name, target }) => (name, target),
            Ok(Dirent::Whiteout) => return,
            Err(e) => {
                return check.report(FindingKind::ValueUnreadable, format!("dirents {pos}: {e}"), false);
            }
        };
        let text = || format!("'{}' in directory {dir}", entry.0.escape_ascii());
        let Target::Inode { inode, kind } = entry.1 else { return };
        if !inodes.get(&dir).is_some_and(|d| d.kind == InodeKind::Dir) {
            check.report(FindingKind::InodeMissing, format!("{}: no such directory", text()), false);
        }
        let Some(known) = inodes.get_mut(&inode) else {
            return check.report(FindingKind::InodeMissing, format!("{} to inode {inode}", text()), false);
        };
        known.names += 1;
        if known.kind != kind {
            check.report(FindingKind::DirentKindWrong, format!("{} to inode {inode}", text()), false);
        }
        if known.kind == InodeKind::Dir {
            if known.parent != dir {
                check.report(
                    FindingKind::ParentWrong,
                    format!("{}: inode {inode} says {}", text(), known.parent),
                    false,
                );
            }
            parents.insert(inode, dir);
            if let Some(parent) = inodes.get_mut(&dir) {
                parent.subdirs += 1;
            }
        }
    })
    .await?;
    Ok(parents)
}

/// Every directory leads up to the root.
fn reachable(check: &mut Check<'_>, inodes: &Inodes, parents: &BTreeMap<u64, u64>) {
    let mut good: BTreeSet<u64> = BTreeSet::from([ROOT_INODE]);
    for (inode, known) in inodes {
        if known.kind != InodeKind::Dir || known.nlink == 0 {
            continue;
        }
        let (mut path, mut at) = (Vec::new(), *inode);
        while !good.contains(&at) && !path.contains(&at) {
            path.push(at);
            match parents.get(&at) {
                Some(parent) => at = *parent,
                None => break,
            }
        }
        if good.contains(&at) {
            good.extend(path);
        } else {
            check.report(FindingKind::DirectoryUnreachable, format!("inode {inode}"), false);
        }
    }
}

async fn extents(check: &mut Check<'_>, inodes: &mut Inodes) -> FsResult<()> {
    let mut last = (0u64, 0u64);
    let mut from = Some(Pos::MIN);
    // In slices, so that content is verified while its keys cannot change: nobody else uses the pool.
    while let Some(start) = from {
        let mut slice: Vec<(Pos, Extent)> = Vec::new();
        from = None;
        let mut budget = 64usize;
        let inner = check.engine.inner.clone();
        let mut at = start;
        loop {
            let step = {
                let state = inner.state.borrow();
                match state.table.first(Tree::Extents, 0, &(at..=Pos::MAX)) {
                    Ok(found) => Ok(found.map(|(pos, value)| (pos, Extent::parse(pos, value)))),
                    Err(miss) => Err(miss),
                }
            };
            match step {
                Ok(Some((pos, parsed))) => {
                    check.summary.keys += 1;
                    match parsed {
                        Ok(extent) => slice.push((pos, extent)),
                        Err(e) => {
                            check.report(FindingKind::ValueUnreadable, format!("extents {pos}: {e}"), false)
                        }
                    }
                    budget -= 1;
                    match pos.successor() {
                        Some(next) if budget > 0 => at = next,
                        next => {
                            from = next;
                            break;
                        }
                    }
                }
                Ok(None) => break,
                Err(miss) => match crate::btree::load(&inner, miss).await {
                    Ok(()) => {}
                    // Reported by the topology pass; what lies behind is read when the range after it is.
                    Err(_) => {
                        from = super::walk::next_node(check, Tree::Extents, at);
                        break;
                    }
                },
            }
        }
        for (pos, extent) in slice {
            one_extent(check, inodes, &mut last, pos, &extent).await?;
        }
        check.reporter.progress(check.summary.keys);
    }
    Ok(())
}

async fn one_extent(
    check: &mut Check<'_>,
    inodes: &mut Inodes,
    last: &mut (u64, u64),
    pos: Pos,
    extent: &Extent,
) -> FsResult<()> {
    let text = format!("inode {}, {extent}", pos.inode);
    if last.0 == pos.inode && extent.start < last.1 {
        check.report(FindingKind::ExtentsOverlap, text.clone(), false);
    }
    *last = (pos.inode, extent.end);
    match inodes.get_mut(&pos.inode) {
        Some(known) => known.counted += extent.used(),
        None => check.report(FindingKind::ExtentWithoutInode, text.clone(), false),
    }
    if let Content::Stored(stored) = &extent.content
        && !stored.pointers.is_empty()
    {
        let mut good = false;
        for pointer in &stored.pointers {
            good |= verify(check, pointer, &stored.checksums).await?;
        }
        if !good {
            check.report(FindingKind::DataDamaged, text, false);
        }
    }
    Ok(())
}

async fn verify(check: &mut Check<'_>, pointer: &Pointer, checksums: &[u32]) -> FsResult<bool> {
    let place = Placed {
        device: pointer.device,
        generation: pointer.generation,
        offset: pointer.offset_bytes,
        len: pointer.len_bytes,
    };
    let Ok(bytes) = check.engine.read_data(place, 0, place.len).await else { return Ok(false) };
    check.summary.bytes_verified += bytes.len() as u64;
    Ok(bytes.chunks(BLOCK_SIZE).zip(checksums).all(|(block, sum)| moraine_accel::crc32c(block) == *sum))
}

async fn xattrs(check: &mut Check<'_>, inodes: &Inodes) -> FsResult<()> {
    each_key(check, Tree::Xattrs, 0, |check, pos, _| {
        if !inodes.contains_key(&pos.inode) {
            check.report(FindingKind::XattrWithoutInode, format!("inode {}", pos.inode), false);
        }
    })
    .await
}

/// Link counts, nameless inodes and used bytes, once everything was counted.
async fn links(check: &mut Check<'_>, inodes: &Inodes) -> FsResult<()> {
    let mut leaving = BTreeSet::new();
    each_key(check, Tree::DeletedInodes, 0, |_, pos, _| {
        leaving.insert(pos.inode);
    })
    .await?;
    let repair = check.repair == Repair::Yes;
    for (inode, known) in inodes {
        let dir = known.kind == InodeKind::Dir;
        if known.nlink == 0 {
            if !leaving.contains(inode) {
                check.report(FindingKind::InodeUnreferenced, format!("inode {inode}"), repair);
                fix(check, (Tree::DeletedInodes, Pos::new(*inode, 0, ROOT_SNAPSHOT)), |_| {
                    Some([0u8; 8].as_slice().into())
                })
                .await?;
            }
            continue;
        }
        if known.names == 0 && *inode != ROOT_INODE {
            check.report(
                FindingKind::InodeUnreferenced,
                format!("inode {inode}, {} bytes", known.size),
                false,
            );
            continue;
        }
        let should = if dir { 2 + known.subdirs } else { known.names };
        if should != known.nlink {
            let text = format!("inode {inode}: {}, counted {should}", known.nlink);
            check.report(FindingKind::LinkCountWrong, text, repair);
            fix_inode(check, *inode, |i| i.nlink = should).await?;
        }
        // Of a file whose last write-back is not done yet only the keys count; nothing is pending here.
        if known.kind == InodeKind::File && known.counted != known.used {
            let text = format!("inode {inode}: {}, counted {}", known.used, known.counted);
            check.report(FindingKind::UsedWrong, text, repair);
            let counted = known.counted;
            fix_inode(check, *inode, |i| i.used = counted).await?;
        }
    }
    Ok(())
}

async fn fix_inode(check: &Check<'_>, inode: u64, edit: impl Fn(&mut Inode)) -> FsResult<()> {
    let edit = |value: Option<&[u8]>| {
        let mut record = Inode::parse(value?).ok()?;
        edit(&mut record);
        Some(record.to_value().into())
    };
    fix(check, (Tree::Inodes, Pos::new(0, inode, ROOT_SNAPSHOT)), edit).await
}

/// Replaces one key's value, if repairs are wanted.
async fn fix(
    check: &Check<'_>,
    at: (Tree, Pos),
    edit: impl Fn(Option<&[u8]>) -> Option<Value>,
) -> FsResult<()> {
    if check.repair == Repair::No {
        return Ok(());
    }
    let propose = |state: &crate::engine::State| {
        let value = edit(state.table.get(at.0, 0, at.1)?);
        let updates = BTreeMap::from([((at.0, 0, at.1), value)]);
        Ok(Some((Proposal { updates, ..Proposal::default() }, ())))
    };
    // The journal moves only while the background works: a long list of repairs would fill it.
    check.engine.resume();
    let done = check.engine.inner.commit(JournalClass::Interior, propose, |_, _, _, _| ()).await;
    check.engine.pause().await;
    done.map(|_| ())
}
