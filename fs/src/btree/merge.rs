//! Which nodes should merge: neighbours of which little is left, and a root with a single child.

use super::table::{Miss, Node, Table, keep_older};
use crate::engine::State;
use alloc::vec::Vec;
use moraine_format::Pos;
use moraine_format::journal::Seq;
use moraine_format::node::{NodeIdent, NodePointer};

/// The most nodes that merge at a time.
const MERGE_MAX: usize = 16;

/// Whether so little is left of a node that it should merge.
fn is_small(table: &Table, node: &Node) -> bool {
    node.keys.live_bytes() < table.node_bytes / 4 && node.keys.len() < (table.keys_max / 3).max(2)
}

/// Whether hardly anything is left of it: then a neighbour is worth being read in for the merge.
pub(super) fn is_tiny(table: &Table, node: &Node) -> bool {
    node.keys.live_bytes() < table.node_bytes / 16 && node.keys.len() <= (table.keys_max / 12).max(1)
}

/// What a node could merge with.
#[derive(Default)]
pub(super) struct Merging {
    /// Their numbers.
    pub(super) nodes: Vec<u64>,
    /// There might be more, but something is being written.
    pub(super) hindered: bool,
}

/// Neighbours below the same parent that this node could merge with; or one that would have to be read in to know.
pub(super) fn neighbours(table: &Table, node: &Node) -> Result<Merging, Miss> {
    let (mut found, mut hindered) = (Vec::new(), false);
    let NodeIdent { tree, level, min, max, .. } = node.ident;
    let Ok(parent) = table.locate(tree, level + 1, max) else { return Ok(Merging::default()) };
    // A node above that is being divided may get its border in the middle of a merge.
    if !is_small(table, node) || parent.writing {
        return Ok(Merging { nodes: found, hindered: parent.writing });
    }
    let (mut bytes, mut count) = (node.keys.live_bytes(), node.keys.len());
    let count_max = (table.keys_max * 2 / 3).max(2);
    let mut missing = None;
    // Says whether the neighbour goes along.
    let mut fits = |key: Pos, value: &[u8]| -> Option<NodeIdent> {
        let Some(other) = NodePointer::node_of(value).and_then(|id| table.get_node(id)) else {
            let pointer = NodePointer::parse(value).ok();
            missing = missing.take().or(pointer.map(|pointer| Miss::Node(tree, pointer, key)));
            return None;
        };
        hindered |= other.writing;
        let good = !other.writing
            && other.pointer.is_some()
            && found.len() + 1 < MERGE_MAX
            && bytes + other.keys.live_bytes() < table.node_bytes / 2
            && count + other.keys.len() <= count_max;
        if !good {
            return None;
        }
        (bytes, count) = (bytes + other.keys.live_bytes(), count + other.keys.len());
        found.push(other.ident.node);
        Some(other.ident)
    };
    let mut at = max.successor().filter(|p| *p <= parent.ident.max);
    while let Some(next) = at
        && let Some(ident) = parent.keys.first_from(next).and_then(|(key, value)| fits(key, value))
    {
        at = ident.max.successor().filter(|p| *p <= parent.ident.max);
    }
    let mut at = min.predecessor().filter(|p| *p >= parent.ident.min);
    while let Some(before) = at
        && let Some(ident) = parent.keys.last_to(before).and_then(|(key, value)| fits(key, value))
    {
        at = ident.min.predecessor().filter(|p| *p >= parent.ident.min);
    }
    match missing {
        Some(miss) if found.is_empty() && is_tiny(table, node) => Err(miss),
        _ => Ok(Merging { nodes: found, hindered }),
    }
}

/// The node below a root that has no other, if it can take its place now.
pub(super) fn only_child(table: &Table, root: &Node) -> Option<u64> {
    if root.ident.level == 0 || root.keys.len() != 1 || root.pointer.is_none() {
        return None;
    }
    let (_, value) = root.keys.first_from(Pos::MIN)?;
    let child = NodePointer::node_of(value)?;
    table.get_node(child).is_none_or(|node| !node.writing).then_some(child)
}

/// After a merge: if still hardly anything is there, or if children of different parents have become neighbours, another
/// write-back merges on.
pub(super) fn look_again(state: &mut State, node: &mut Node, seq: Seq) {
    if is_tiny(&state.table, node) {
        keep_older(&mut node.pin, state.table.pin(seq));
    }
    if node.ident.level == 0 {
        return;
    }
    let children: Vec<u64> = node.keys.iter().filter_map(|(_, value)| NodePointer::node_of(value)).collect();
    for id in children {
        if state.table.get_node(id).is_some_and(|child| is_tiny(&state.table, child)) {
            let pin = state.table.pin(seq);
            state.table.update(id, |child| keep_older(&mut child.pin, pin));
        }
    }
}
