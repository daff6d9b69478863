//! Writing nodes back: append what changed, or rewrite into one or several new nodes when there is no room, or merge
//! with neighbours when little is left; a root with a single child makes way for it.
//!
//! In this order, for a batch of nodes at a time: take what changed (synchronous) → write runs and new nodes → one flush
//! that covers them → commit the pointers → once that commit is durable the journal may let go of the entries which
//! held the changes. A pointer commit therefore never refers to anything that is not on media, and adds nothing that
//! somebody's sync would have to wait for.
//!
//! The nodes keep taking updates all the while; these are simply not part of what was taken.

use super::merge::{Merging, is_tiny, look_again, neighbours, only_child};
use super::node::Keys;
use super::table::{Miss, Node, Table, keep_older};
use super::view::Key;
use crate::device::Deps;
use crate::engine::commit::{Obstacle, Proposal, Step};
use crate::engine::{Hold, Inner, Placed, State};
use crate::journal::{Class as JournalClass, Pin};
use crate::planted::{self, Fault};
use crate::space::buckets::Writer;
use crate::tx::Value;
use crate::vfs::{FsError, FsResult};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_format::journal::Seq;
use moraine_format::node::{
    NODE_BLOCK, NodeIdent, NodePlace, NodePointer, RunInfo, entry_bytes, run_bytes, write_run,
};
use moraine_format::{Pos, Tree};
use moraine_platform::{Buf, Fua};
use smallvec::smallvec;

/// Nodes written back side by side.
const BATCH_MAX: usize = 16;
/// The most parts one node is rewritten into at a time.
const PARTS_MAX: usize = 16;
/// Neighbours read in for one write-back, to find one to merge with.
const NEIGHBOURS_READ_MAX: usize = 2;
/// Write-backs in a row that may fail before the pool stops: each is tried again at other places.
const FAILURES_MAX: u32 = 8;

/// What is written for one node (or two that merge), and what then has to be committed.
struct Plan {
    tree: Tree,
    level: u8,
    /// Nodes that this writes back; more than one when they merge.
    nodes: Vec<u64>,
    /// Their positions taken, and the pins of these, to be put back should the write fail.
    taken: Vec<(BTreeSet<Pos>, Option<Pin>)>,
    writes: Vec<(Placed, u64, Buf)>,
    outcome: Outcome,
    /// The node above those that merge.
    above: Option<u64>,
    /// Hardly anything is left of it, and a write under way keeps it from merging: another write-back tries again.
    again: bool,
    _holds: Vec<Hold>,
}

enum Outcome {
    Append(NodeIdent, NodePointer),
    Rewrite {
        olds: Vec<NodeIdent>,
        parts: Vec<(NodeIdent, NodePointer)>,
        root: Option<(NodeIdent, NodePointer)>,
    },
    /// The root goes, its only child takes its place.
    Collapse {
        old: NodeIdent,
        child: u64,
    },
}

/// How a node will be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Append,
    /// This many new nodes.
    Rewrite(usize),
}

/// Writes back a batch of nodes. Those that are clean by now, or being written, are left alone.
pub(crate) async fn write_back(engine: &Rc<Inner>, nodes: &[u64]) -> FsResult<usize> {
    let mut plans = Vec::new();
    // Leaves first: a node above that is being written keeps those below it from merging.
    let mut batch: Vec<u64> = nodes.iter().take(BATCH_MAX).copied().collect();
    let level = |table: &Table, id: u64| table.get_node(id).map(|node| node.ident.level);
    batch.sort_by_key(|id| level(&engine.state.borrow().table, *id));
    for id in batch {
        match plan(engine, id).await {
            Ok(Some(mut plan)) => {
                if planted::is(Fault::PinReleasedEarly) {
                    plan.taken.iter_mut().filter_map(|(_, pin)| pin.take()).for_each(Pin::release);
                }
                plans.push(plan);
            }
            Ok(None) => {}
            Err(e) if plans.is_empty() => return Err(e),
            Err(_) => break,
        }
    }
    if plans.is_empty() {
        return Ok(0);
    }
    let written = put_on_media(engine, &mut plans).await;
    let count = plans.len();
    let mut result = written;
    for plan in plans {
        let committed = match result {
            Ok(()) => commit(engine, &plan).await,
            Err(e) => Err(e),
        };
        if let Some(above) = plan.above {
            let table = &mut engine.state.borrow_mut().table;
            table.update(above, |parent| parent.merging_below = parent.merging_below.saturating_sub(1));
        }
        match committed {
            Ok(seq) => {
                plan.taken.into_iter().filter_map(|(_, pin)| pin).for_each(|pin| pin.release_after(seq))
            }
            Err(e) => {
                // Nothing was committed.
                give_back(&mut engine.state.borrow_mut().table, &plan.nodes, plan.taken);
                result = Err(e);
            }
        }
    }
    engine.written_back.notify();
    match result {
        Ok(()) => engine.failed_write_backs.set(0),
        // What was not written is as dirty as before and goes elsewhere next time, as long as there is an elsewhere.
        Err(FsError::DeviceWrite)
            if engine.check_running().is_ok() && engine.devices.healthy().next().is_some() =>
        {
            engine.failed_write_backs.set(engine.failed_write_backs.get() + 1);
            if engine.failed_write_backs.get() >= FAILURES_MAX {
                return Err(FsError::DeviceWrite);
            }
        }
        Err(e) => return Err(e),
    }
    Ok(count)
}

/// Writes the plans' runs side by side and flushes them.
async fn put_on_media(engine: &Rc<Inner>, plans: &mut [Plan]) -> FsResult<()> {
    let mut under_way = Vec::new();
    for (n, plan) in plans.iter_mut().enumerate() {
        for (place, skip, buf) in plan.writes.drain(..) {
            let write = engine.devices.write(place.device, place.offset + skip, buf, Fua::No);
            under_way.push(async move {
                let (buf, written) = write.await;
                engine.node_buffers.give(buf);
                (n, place, written)
            });
        }
    }
    let mut deps = Deps::default();
    let mut result = Ok(());
    for (n, place, written) in futures_util::future::join_all(under_way).await {
        match written {
            Ok(dep) => deps.add(dep),
            Err(e) => {
                result = Err(engine.write_failed(&place, e));
                let table = &mut engine.state.borrow_mut().table;
                for id in &plans[n].nodes {
                    table.update(*id, |node| node.unsure = true);
                }
            }
        }
    }
    result?;
    if planted::is(Fault::NodePointerEarly) {
        return Ok(());
    }
    engine.devices.flush_covering(&deps).await.map_err(|_| {
        engine.stop_without_devices();
        FsError::DeviceWrite
    })
}

/// Makes nodes dirty again whose write came to nothing.
fn give_back(table: &mut Table, nodes: &[u64], taken: Vec<(BTreeSet<Pos>, Option<Pin>)>) {
    for (id, (positions, pin)) in nodes.iter().zip(taken) {
        table.update(*id, |node| {
            node.writing = false;
            node.changed.extend(positions);
            if let Some(pin) = pin {
                keep_older(&mut node.pin, pin);
            }
        });
    }
}

/// How many nodes the keys should be on disk.
pub(super) fn parts_for(node_bytes: usize, keys_max: usize, keys: &Keys) -> usize {
    let target = node_bytes * 5 / 8;
    if run_bytes(keys.live_bytes()) <= node_bytes * 7 / 8 && keys.len() <= keys_max {
        return 1;
    }
    let by_bytes = keys.live_bytes().div_ceil(target);
    let by_keys = keys.len().div_ceil((keys_max * 2 / 3).max(2));
    by_bytes.max(by_keys).clamp(2, PARTS_MAX)
}

fn shape(table: &Table, node: &Node) -> Shape {
    let parts = parts_for(table.node_bytes, table.keys_max, &node.keys);
    if parts > 1 {
        return Shape::Rewrite(parts);
    }
    let Some(pointer) = &node.pointer else { return Shape::Rewrite(1) };
    let written = pointer.blocks_written as usize * NODE_BLOCK;
    let room = written + run_bytes(changed_bytes(node)) <= table.node_bytes;
    // A run of mostly outdated entries costs every later read; rewriting takes a new place once in a while.
    if room && pointer.runs < u16::MAX { Shape::Append } else { Shape::Rewrite(1) }
}

/// Whether the place of a node can be added to.
fn is_trusted(engine: &Inner, node: &Node) -> bool {
    let healthy = |p: &NodePlace| engine.devices.is_healthy(p.device);
    !node.unsure && node.pointer.as_ref().is_some_and(|p| p.places.iter().all(healthy))
}

fn changed_bytes(node: &Node) -> usize {
    node.changed.iter().map(|p| entry_bytes(node.keys.get(*p).map_or(0, |v| v.len()))).sum()
}

/// Decides how a node is written, gets the space, and takes what changed.
async fn plan(engine: &Rc<Inner>, id: u64) -> FsResult<Option<Plan>> {
    let mut holds: Vec<(Hold, Placed)> = Vec::new();
    let mut neighbours_read = 0;
    loop {
        let wanted = {
            let mut state = engine.state.borrow_mut();
            let table = &mut state.table;
            let due = |node: &&Node| !node.writing && node.is_dirty() && node.merging_below == 0;
            let Some(node) = table.get_node(id).filter(due) else { return Ok(None) };
            let shape = match shape(table, node) {
                Shape::Append if !is_trusted(engine, node) => Shape::Rewrite(1),
                shape => shape,
            };
            let is_root = table.root(node.ident.tree).node == id;
            if is_root && let Some(child) = only_child(table, node) {
                return Ok(Some(collapse(table, id, child)));
            }
            let many = matches!(shape, Shape::Rewrite(2..));
            let merging = if is_root || many { Ok(Merging::default()) } else { neighbours(table, node) };
            match (shape, merging) {
                (_, Err(miss)) if neighbours_read < NEIGHBOURS_READ_MAX => Err(miss),
                (shape, merging) => {
                    let Merging { nodes: merging, hindered } = merging.unwrap_or_default();
                    match shape {
                        Shape::Append if merging.is_empty() => {
                            let again = hindered && is_tiny(table, node);
                            return append(engine, table, id, again).map(Some);
                        }
                        Shape::Append | Shape::Rewrite(_) => {
                            let parts = if let Shape::Rewrite(parts) = shape { parts } else { 1 };
                            let needed = parts + usize::from(is_root && parts > 1);
                            if holds.len() >= needed {
                                return rewrite(engine, table, id, merging, parts, &mut holds).map(Some);
                            }
                            Ok(needed)
                        }
                    }
                }
            }
        };
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(miss) => {
                neighbours_read += 1;
                super::load(engine, miss).await?;
                continue;
            }
        };
        while holds.len() < wanted {
            let node_bytes = engine.state.borrow().table.node_bytes as u64;
            holds.push(engine.carve(Writer::Nodes, node_bytes).await?);
        }
    }
}

/// Both are kept from being written meanwhile; what changed in the child stays with it.
fn collapse(table: &mut Table, root: u64, child: u64) -> Plan {
    let old = table.get_node(root).expect("planned in the same step").ident;
    let taken = table.update(root, take_changes).expect("planned in the same step");
    table.update(child, |node| node.writing = true);
    Plan {
        tree: old.tree,
        level: old.level,
        nodes: alloc::vec![root, child],
        taken: alloc::vec![taken, (BTreeSet::new(), None)],
        writes: Vec::new(),
        outcome: Outcome::Collapse { old, child },
        above: None,
        again: false,
        _holds: Vec::new(),
    }
}

/// Nothing is taken from the node unless there is memory for the run.
fn append(engine: &Inner, table: &mut Table, id: u64, again: bool) -> FsResult<Plan> {
    let seq = engine.journal.open_seq().0;
    let node = table.get_node(id).expect("planned in the same step");
    let old = node.pointer.clone().expect("an append extends a written node");
    let entries = node.changed.iter().map(|p| (*p, node.keys.get(*p)));
    let size = run_bytes(entries.clone().map(|(_, v)| entry_bytes(v.map_or(0, |v| v.len()))).sum());
    let mut buf = engine.node_buffers.take(size)?;
    let info = RunInfo { index: old.runs, epoch: engine.epoch, seq, previous: old.last_hash };
    let last_hash = write_run(&mut buf, engine.pool_tag, &node.ident, &info, entries);
    let ident = node.ident;
    let taken = table.update(id, take_changes).expect("planned in the same step");
    let skip = old.blocks_written as u64 * NODE_BLOCK as u64;
    let place = old.places[0];
    let place = Placed { device: place.device, generation: place.generation, offset: place.offset, len: 0 };
    let pointer = NodePointer {
        blocks_written: old.blocks_written + (size / NODE_BLOCK) as u32,
        runs: old.runs + 1,
        last_hash,
        ..old
    };
    Ok(Plan {
        tree: ident.tree,
        level: ident.level,
        nodes: alloc::vec![id],
        taken: alloc::vec![taken],
        writes: alloc::vec![(place, skip, buf)],
        outcome: Outcome::Append(ident, pointer),
        above: None,
        again,
        _holds: Vec::new(),
    })
}

/// From here on a node is being written, and what changes is left for the next time.
fn take_changes(node: &mut Node) -> (BTreeSet<Pos>, Option<Pin>) {
    node.writing = true;
    (core::mem::take(&mut node.changed), node.pin.take())
}

fn rewrite(
    engine: &Inner,
    table: &mut Table,
    id: u64,
    merging: Vec<u64>,
    parts: usize,
    holds: &mut Vec<(Hold, Placed)>,
) -> FsResult<Plan> {
    let seq = engine.journal.open_seq().0;
    let mut nodes = alloc::vec![id];
    nodes.extend(merging);
    nodes.sort_by_key(|id| table.get_node(*id).map(|n| n.ident.min));
    let olds: Vec<NodeIdent> = nodes.iter().map(|id| table.get_node(*id).expect("resident").ident).collect();
    let (first, last) = (olds[0], olds[olds.len() - 1]);
    let neighbours = olds.windows(2).all(|two| two[0].max.successor() == Some(two[1].min));
    assert!(neighbours, "nodes that merge are neighbours");
    let cuts = if parts > 1 { table.get_node(id).expect("resident").keys.cuts(parts) } else { Vec::new() };
    let mut bounds: Vec<(Pos, Pos)> = Vec::new();
    let mut min = first.min;
    for cut in cuts {
        bounds.push((min, cut));
        min = cut.successor().expect("a cut is not the last position");
    }
    bounds.push((min, last.max));
    let is_root = table.root(first.tree).node == id;
    let mut free = holds.iter().map(|(_, place)| *place);
    let (mut writes, mut new) = (Vec::new(), Vec::new());
    for (min, max) in &bounds {
        let ident = NodeIdent { node: table.new_node_id(), min: *min, max: *max, ..first };
        let place = free.next().expect("space for each part was carved");
        let entries = || {
            nodes
                .iter()
                .flat_map(|id| table.get_node(*id).expect("resident").keys.iter_from(*min))
                .take_while(|(p, _)| p <= max)
        };
        let size = run_bytes(entries().map(|(_, v)| entry_bytes(v.len())).sum());
        assert!(size <= table.node_bytes, "a part of a split fits a node");
        let mut buf = engine.node_buffers.take(size)?;
        let info = RunInfo { index: 0, epoch: engine.epoch, seq, previous: 0 };
        let entries = entries().map(|(p, v)| (p, Some(v)));
        let last_hash = write_run(&mut buf, engine.pool_tag, &ident, &info, entries);
        new.push((ident, pointer_to(&ident, &place, size, last_hash)));
        writes.push((place, 0, buf));
    }
    let mut root = None;
    if is_root && new.len() > 1 {
        let ident = NodeIdent {
            node: table.new_node_id(),
            level: first.level + 1,
            min: Pos::MIN,
            max: Pos::MAX,
            ..first
        };
        let place = free.next().expect("space for the root was carved");
        let children: Vec<(Pos, Vec<u8>)> = new.iter().map(|(i, p)| (i.max, p.to_bytes())).collect();
        let size = run_bytes(children.iter().map(|(_, v)| entry_bytes(v.len())).sum());
        let mut buf = engine.node_buffers.take(size)?;
        let info = RunInfo { index: 0, epoch: engine.epoch, seq, previous: 0 };
        let entries = children.iter().map(|(p, v)| (*p, Some(v.as_slice())));
        let last_hash = write_run(&mut buf, engine.pool_tag, &ident, &info, entries);
        writes.push((place, 0, buf));
        root = Some((ident, pointer_to(&ident, &place, size, last_hash)));
    }
    let taken = nodes.iter().map(|id| table.update(*id, take_changes).expect("resident")).collect();
    // Keys may not divide into as many parts as they should; what is left over is released with the plan.
    let holds = holds.drain(..).map(|(hold, _)| hold).collect();
    let above = match nodes.len() {
        0 | 1 => None,
        _ => table.locate(first.tree, first.level + 1, last.max).ok().map(|parent| parent.ident.node),
    };
    above.and_then(|id| table.update(id, |parent| parent.merging_below += 1));
    let outcome = Outcome::Rewrite { olds, parts: new, root };
    Ok(Plan {
        tree: first.tree,
        level: first.level,
        nodes,
        taken,
        writes,
        outcome,
        above,
        again: false,
        _holds: holds,
    })
}

fn pointer_to(ident: &NodeIdent, place: &Placed, size: usize, last_hash: u64) -> NodePointer {
    NodePointer {
        node: ident.node,
        level: ident.level,
        blocks_written: (size / NODE_BLOCK) as u32,
        runs: 1,
        last_hash,
        min: ident.min,
        places: smallvec![NodePlace {
            device: place.device,
            generation: place.generation,
            offset: place.offset
        }],
    }
}

/// Makes what was written reachable.
async fn commit(engine: &Rc<Inner>, plan: &Plan) -> FsResult<Seq> {
    let is_root = |state: &State, id: u64| state.table.root(plan.tree).node == id;
    let propose = |state: &State| -> Result<Option<(Proposal, ())>, Obstacle> {
        let mut updates: BTreeMap<Key, Option<Value>> = BTreeMap::new();
        let mut roots = Vec::new();
        let parent = plan.level + 1;
        match &plan.outcome {
            Outcome::Append(ident, pointer) if is_root(state, ident.node) => {
                roots.push((plan.tree, pointer.clone()))
            }
            Outcome::Append(ident, pointer) => {
                updates.insert((plan.tree, parent, ident.max), Some(pointer.to_bytes().into()));
            }
            Outcome::Rewrite { olds, parts, root } => {
                let old_root = is_root(state, olds[0].node);
                for old in olds.iter().filter(|_| !old_root) {
                    updates.insert((plan.tree, parent, old.max), None);
                }
                if old_root && root.is_none() {
                    roots.push((plan.tree, parts[0].1.clone()));
                } else {
                    for (ident, pointer) in parts {
                        updates.insert((plan.tree, parent, ident.max), Some(pointer.to_bytes().into()));
                    }
                }
                if let Some((_, pointer)) = root {
                    roots.push((plan.tree, pointer.clone()));
                }
            }
            Outcome::Collapse { old, .. } => {
                let at = (plan.tree, old.level, Pos::MAX);
                let value = state.table.get(at.0, at.1, at.2)?.ok_or(Miss::Corrupt(at.0, at.2))?;
                let pointer = NodePointer::parse(value).map_err(|_| Miss::Corrupt(at.0, at.2))?;
                updates.insert(at, None);
                roots.push((plan.tree, pointer));
            }
        }
        Ok(Some((Proposal { updates, roots, takes_space: false }, ())))
    };
    let around = |state: &mut State, step: Step, seq, _: &()| match (step, &plan.outcome) {
        (Step::Before, Outcome::Rewrite { root: Some((ident, pointer)), .. }) => {
            state.table.insert(Node::new(*ident, Keys::default(), Some(pointer.clone())));
            let root = state.table.root_mut(plan.tree);
            root.node = ident.node;
            root.level = ident.level;
        }
        (Step::Before, _) => {}
        (Step::After, Outcome::Append(ident, pointer)) => {
            let again = plan.again.then(|| state.table.pin(seq));
            let done = state.table.update(ident.node, |node| {
                node.pointer = Some(pointer.clone());
                node.writing = false;
                again.into_iter().for_each(|pin| keep_older(&mut node.pin, pin));
            });
            done.expect("a node being written stays in memory");
        }
        (Step::After, Outcome::Rewrite { olds, parts, root }) => {
            replace(state, olds, parts, seq);
            if let Some((ident, _)) = root {
                // Its image on disk already holds the children that were just applied to it.
                let pin = state.table.update(ident.node, |node| {
                    node.changed.clear();
                    node.pin.take()
                });
                if let Some(pin) = pin.expect("inserted in this commit") {
                    pin.release_after(seq);
                }
            } else if state.table.root(plan.tree).node == olds[0].node {
                state.table.root_mut(plan.tree).node = parts[0].0.node;
            }
        }
        (Step::After, Outcome::Collapse { old, child }) => {
            let root = state.table.root_mut(plan.tree);
            root.node = *child;
            root.level = old.level - 1;
            let old = state.table.remove(old.node).expect("a node being written stays in memory");
            old.pin.into_iter().for_each(Pin::release);
            if state.table.is_resident(*child) {
                let pin = state.table.pin(seq);
                state.table.update(*child, |node| {
                    node.writing = false;
                    // It may be the next to go.
                    keep_older(&mut node.pin, pin);
                });
            }
        }
    };
    let (_, seq) = engine
        .commit(JournalClass::Interior, propose, around)
        .await?
        .expect("a write-back always proposes something");
    Ok(seq)
}

/// Replaces nodes by the ones they were rewritten into, with what changed since as their changes.
fn replace(state: &mut State, olds: &[NodeIdent], parts: &[(NodeIdent, NodePointer)], seq: Seq) {
    let old: Vec<_> = olds
        .iter()
        .map(|ident| state.table.remove(ident.node).expect("a node being written stays in memory"))
        .collect();
    for (ident, pointer) in parts {
        let inside = |pos: &Pos| ident.min <= *pos && *pos <= ident.max;
        let entries =
            old.iter().flat_map(|n| n.keys.iter_from(ident.min)).take_while(|(p, _)| *p <= ident.max);
        let mut node = Node::new(*ident, Keys::from_sorted(entries), Some(pointer.clone()));
        for n in &old {
            let before = node.changed.len();
            node.changed.extend(n.changed.iter().filter(|p| inside(p)));
            if let (true, Some(pin)) = (node.changed.len() > before, &n.pin) {
                keep_older(&mut node.pin, state.table.pin(pin.seq()));
            }
        }
        if old.len() > 1 {
            look_again(state, &mut node, seq);
        }
        state.table.insert(node);
    }
    old.into_iter().filter_map(|node| node.pin).for_each(Pin::release);
}
