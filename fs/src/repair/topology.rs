//! The structure: the nodes of each level of a tree can be read and cover all positions, each exactly once.
//!
//! From the root down, a parent with its children at a time. A repair puts an empty subtree where a child is damaged,
//! missing, or in the wrong place; what can still be found of its keys is restored afterwards.

use super::walk::is_damage;
use super::{Check, FindingKind};
use crate::btree::{self, Lost, Remains};
use crate::vfs::{FsError, FsResult};
use alloc::format;
use alloc::string::{String, ToString};
use moraine_format::node::NodePointer;
use moraine_format::{Pos, Tree};
use moraine_platform::{error, warn};

/// Fill of the journal, in thousandths, from which on a damaged tree is replaced as a whole: nothing can be written back
/// before all trees are whole, so the journal must hold all that makes them so.
const JOURNAL_FILL_MAX: u64 = 800;

/// Fill of the journal, in thousandths, up to which it takes what replaces a tree: writing back needs the rest.
const JOURNAL_FULL: u64 = 930;

/// What a hole was filled with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filled {
    /// Nothing, or a child.
    Part,
    /// All of the tree is new and whole.
    Tree,
}

/// A part of a parent's range without a good child.
struct Hole {
    min: Pos,
    max: Pos,
    kind: FindingKind,
    why: String,
}

pub(super) async fn check(check: &mut Check<'_>) -> FsResult<()> {
    let unreadable = check.engine.inner.lost_roots.borrow().clone();
    for tree in Tree::ALL {
        root(check, *tree, unreadable.contains(tree)).await?;
        let top = check.engine.inner.state.borrow().table.root(*tree).level;
        for level in (1..=top).rev() {
            let mut at = Some(Pos::MIN);
            while let Some(from) = at {
                at = parent(check, *tree, level, from).await?;
                check.tell_progress();
            }
        }
    }
    Ok(())
}

async fn root(check: &mut Check<'_>, tree: Tree, nonsense: bool) -> FsResult<()> {
    let inner = check.engine.inner.clone();
    let pointer = inner.state.borrow().table.root(tree).pointer.clone();
    let why = match pointer {
        _ if nonsense => "the journal does not say where it is".to_string(),
        None => return Ok(()),
        Some(pointer) => match child(check, tree, &pointer, Pos::MAX).await? {
            None => return Ok(()),
            Some(why) => why,
        },
    };
    check.found(FindingKind::NodeUnreadable, format!("root of {}: {why}", tree.name()));
    if check.repairs() {
        check.begin_mending().await?;
        replace_root(check, tree).await?;
    }
    Ok(())
}

/// Puts an empty tree in the place of one.
async fn replace_root(check: &mut Check<'_>, tree: Tree) -> FsResult<()> {
    let inner = check.engine.inner.clone();
    check.lost.retain(|(lost, ..)| *lost != tree);
    let level = inner.state.borrow().table.root(tree).level;
    let needed = btree::replace_bytes(&inner, tree, level) as u64;
    let journal = &inner.journal;
    if journal.fill_permille() + needed * 1000 / journal.capacity_bytes() > JOURNAL_FULL {
        error!("fs", "the journal has no room for what is to be repaired");
        return Err(FsError::NoSpace);
    }
    let remains = btree::replace(&inner, tree, Lost::Root(level)).await?;
    check.lose(tree, Pos::MIN, Pos::MAX, remains);
    Ok(())
}

/// Checks the children of the node at `level` that holds `from`; returns where the next node begins.
async fn parent(check: &mut Check<'_>, tree: Tree, level: u8, from: Pos) -> FsResult<Option<Pos>> {
    let inner = check.engine.inner.clone();
    let parent = loop {
        let found = inner.state.borrow().table.parent_at(tree, level, from);
        let miss = match found {
            Ok(parent) => break parent,
            Err(miss) => miss,
        };
        match btree::load(&inner, miss).await {
            Ok(()) => {}
            // Reported with its own parent.
            Err(e) if is_damage(e) && !check.repairs() => return Ok(next_parent(check, tree, level, from)),
            Err(e) => return Err(e),
        }
    };
    let mut expected = Some(parent.min);
    for (max, value) in &parent.children {
        let Some(min) = expected else { break };
        expected = max.successor();
        let (kind, why) = match NodePointer::parse(value) {
            Err(e) => (FindingKind::ValueUnreadable, format!("the pointer to it makes no sense: {e}")),
            Ok(p) if p.level.checked_add(1) != Some(level) || p.min != min => {
                let why = format!("a node of level {} that begins at {} is there", p.level, p.min);
                (FindingKind::NodeRange, why)
            }
            Ok(p) => match child(check, tree, &p, *max).await? {
                Some(why) => (FindingKind::NodeUnreadable, why),
                None => continue,
            },
        };
        if hole(check, tree, level, Hole { min, max: *max, kind, why }).await? == Filled::Tree {
            return Ok(None);
        }
    }
    if let Some(min) = expected.filter(|min| *min <= parent.max) {
        let why = "no node is there".to_string();
        let hole = hole(check, tree, level, Hole { min, max: parent.max, kind: FindingKind::NodeRange, why });
        if hole.await? == Filled::Tree {
            return Ok(None);
        }
    }
    Ok(parent.max.successor())
}

/// Reads a child; says what is wrong with it.
async fn child(
    check: &mut Check<'_>,
    tree: Tree,
    pointer: &NodePointer,
    max: Pos,
) -> FsResult<Option<String>> {
    let inner = check.engine.inner.clone();
    let node_bytes = inner.state.borrow().table.node_bytes as u64;
    check.nodes_done += node_bytes;
    let stray = pointer.places.iter().find(|p| !is_usable(check, p.device, p.offset, node_bytes));
    if let Some(place) = stray {
        return Ok(Some(format!("it would be at {}:{}, where no node can be", place.device, place.offset)));
    }
    match btree::check_child(&inner, tree, pointer, max).await {
        Ok(()) => Ok(None),
        Err(e @ (FsError::Checksum | FsError::DeviceRead | FsError::Corrupt)) => {
            let place = &pointer.places[0];
            Ok(Some(format!("node {:#x} at {}:{}: {e}", pointer.node, place.device, place.offset)))
        }
        Err(e) => Err(e),
    }
}

/// Whether a stretch lies within one bucket that may hold nodes and content.
pub(super) fn is_usable(check: &Check<'_>, device: u8, offset: u64, len: u64) -> bool {
    let inner = &check.engine.inner;
    let bucket = inner.geometry.get(device as usize).and_then(|g| g.bucket_of(offset, len));
    bucket.is_some_and(|bucket| inner.is_usable_bucket(device, bucket))
}

/// Reports a hole below the parent at `level`, and fills it.
async fn hole(check: &mut Check<'_>, tree: Tree, level: u8, hole: Hole) -> FsResult<Filled> {
    let Hole { min, max, kind, why } = hole;
    check.found(kind, format!("{}/{} {min} to {max}: {why}", tree.name(), level - 1));
    if !check.repairs() {
        return Ok(Filled::Part);
    }
    let inner = check.engine.inner.clone();
    check.begin_mending().await?;
    if inner.journal.fill_permille() > JOURNAL_FILL_MAX {
        // One change instead of many: the leaves that are good are found again with what is left of the others.
        warn!("fs", "so much of tree {} is damaged that all of it is made anew of its leaves", tree.name());
        replace_root(check, tree).await?;
        return Ok(Filled::Tree);
    }
    let remains = btree::replace(&inner, tree, Lost::Child(level - 1, min, max)).await?;
    check.lose(tree, min, max, remains);
    Ok(Filled::Part)
}

fn next_parent(check: &Check<'_>, tree: Tree, level: u8, at: Pos) -> Option<Pos> {
    let state = check.engine.inner.state.borrow();
    let top = state.table.root(tree).level;
    let above = (level + 1..=top).find_map(|up| match state.table.first(tree, up, &(at..=Pos::MAX)) {
        Ok(Some((max, _))) => Some(max),
        _ => None,
    });
    above.and_then(|max| max.successor())
}

impl Check<'_> {
    /// Notes that a part of a tree is lost, but for what was left of it in memory.
    fn lose(&mut self, tree: Tree, min: Pos, max: Pos, remains: Remains) {
        self.lost.push((tree, min, max));
        self.remains.push((tree, remains));
    }
}
