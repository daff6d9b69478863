//! Putting a tree's structure right: looking at one parent with all its children, and putting an empty subtree in the
//! place of one that is lost.

use super::node::Keys;
use super::read::load;
use super::table::{Miss, Node, Table};
use super::view::Key;
use crate::engine::commit::{Proposal, Step};
use crate::engine::{Hold, Inner, Placed, State};
use crate::journal::Class as JournalClass;
use crate::space::buckets::Writer;
use crate::space::triggers::{self, Reference};
use crate::tx::Value;
use crate::vfs::{FsError, FsResult};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_format::journal::item_bytes;
use moraine_format::node::{
    NODE_BLOCK, NodeIdent, NodePlace, NodePointer, RunInfo, entry_bytes, run_bytes, write_run,
};
use moraine_format::{Pos, Tree};
use moraine_platform::{Buf, Fua};
use smallvec::smallvec;

/// An item with the pointer to a node of one copy takes less.
const POINTER_ITEM_BYTES: usize = 256;
/// Keys changed in one commit, at most.
const KEYS_MAX: usize = 64;

/// A node with children, as the check of the structure sees it.
pub(crate) struct Parent {
    pub(crate) min: Pos,
    pub(crate) max: Pos,
    /// Its keys: each child's greatest position and the pointer to it.
    pub(crate) children: Vec<(Pos, Value)>,
}

/// What was in memory of a subtree that was replaced.
#[derive(Default)]
pub(crate) struct Remains {
    /// Keys of its leaves. The nodes were whole; only their place in the tree was not.
    pub(crate) keys: Vec<(Pos, Value)>,
    /// Positions that the journal knows, with the numbers of their newest entries: nodes that are older know less.
    pub(crate) newer: Vec<(Pos, u64)>,
}

impl Table {
    /// The node at `level` that holds `at`.
    pub(crate) fn parent_at(&self, tree: Tree, level: u8, at: Pos) -> Result<Parent, Miss> {
        let node = self.locate(tree, level, at)?;
        let children = node.keys.iter().map(|(pos, value)| (pos, value.into())).collect();
        Ok(Parent { min: node.ident.min, max: node.ident.max, children })
    }

    /// What the keys refer to that are in memory, in nodes or as what recovery found for nodes that are not.
    pub(crate) fn known_references(&self) -> Vec<Reference> {
        let mut found = Vec::new();
        let mut add = |key: Key, value: &[u8]| {
            // What makes no sense refers to nothing.
            let _ = triggers::references(key, value, self.node_bytes as u32, &mut found);
        };
        for ((tree, level, pos), pending) in &self.overlay {
            pending.value.iter().for_each(|value| add((*tree, *level, *pos), value));
        }
        for node in self.nodes() {
            node.keys.iter().for_each(|(pos, value)| add((node.ident.tree, node.ident.level, pos), value));
        }
        found
    }

    /// Whether the node `id` is in memory as the child that `pointer` at key `max` describes.
    fn is_child(&self, tree: Tree, pointer: &NodePointer, max: Pos) -> Option<bool> {
        let ident = &self.get_node(pointer.node)?.ident;
        let wanted = (tree, pointer.level, pointer.min, max);
        Some((ident.tree, ident.level, ident.min, ident.max) == wanted)
    }

    /// Takes everything out of memory that lies in `min ..= max` of `tree` at `level` or below.
    /// Returns, besides what remains, the keys of its inner nodes that the journal knows.
    fn forget(&mut self, tree: Tree, level: u8, min: Pos, max: Pos) -> (Remains, Vec<Key>) {
        let (mut remains, mut inner) = (Remains::default(), Vec::new());
        let inside = |i: &NodeIdent| i.tree == tree && i.level <= level && i.min <= max && i.max >= min;
        let gone: Vec<u64> = self.nodes().filter(|n| inside(&n.ident)).map(|n| n.ident.node).collect();
        for id in gone {
            let Some(mut node) = self.remove(id) else { continue };
            if node.ident.level == 0 {
                let keys = node.keys.iter_from(min).take_while(|(pos, _)| *pos <= max);
                remains.keys.extend(keys.map(|(pos, value)| (pos, Value::from(value))));
                let changed = node.changed.iter().filter(|p| min <= **p && **p <= max);
                remains.newer.extend(changed.map(|p| (*p, u64::MAX)));
            } else {
                let changed = node.changed.iter().filter(|p| min <= **p && **p <= max);
                inner.extend(changed.map(|p| (tree, node.ident.level, *p)));
            }
            if let Some(pin) = node.pin.take() {
                pin.release();
            }
        }
        for below in 1..=level {
            let range = (tree, below, min)..=(tree, below, max);
            let stale: Vec<_> = self.overlay.range(range).map(|(key, _)| *key).collect();
            stale.iter().for_each(|key| drop(self.overlay.remove(key)));
            inner.extend(stale);
        }
        let newer = self.overlay.range((tree, 0, min)..=(tree, 0, max));
        remains.newer.extend(newer.map(|((_, _, pos), pending)| (*pos, pending.seq.0)));
        (remains, inner)
    }
}

/// Makes sure that the child that `pointer` at key `max` of `tree` describes is there and whole.
pub(crate) async fn check_child(engine: &Inner, tree: Tree, pointer: &NodePointer, max: Pos) -> FsResult<()> {
    load(engine, Miss::Node(tree, pointer.clone(), max)).await?;
    match engine.state.borrow().table.is_child(tree, pointer, max) {
        Some(false) => Err(FsError::Corrupt),
        // Whole, if pushed out again already.
        Some(true) | None => Ok(()),
    }
}

/// What of a tree is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// Its root, of this level.
    Root(u8),
    /// A child of this level, with its range.
    Child(u8, Pos, Pos),
}

/// Bytes of the journal that replacing the root of `tree` takes, about, at most: a pointer a level, and a word about each
/// key of an inner node that it knows.
pub(crate) fn replace_bytes(engine: &Inner, tree: Tree, level: u8) -> usize {
    let state = engine.state.borrow();
    let overlay = state.table.overlay.range((tree, 1, Pos::MIN)..=(tree, level.max(1), Pos::MAX)).count();
    let inner = state.table.nodes().filter(|n| n.ident.tree == tree && n.ident.level > 0);
    let known = overlay + inner.map(|n| n.changed.len()).sum::<usize>();
    known * item_bytes(0) + (level as usize + 1) * POINTER_ITEM_BYTES
}

/// Puts an empty subtree of as many levels in the place of what is lost of `tree`.
pub(crate) async fn replace(engine: &Rc<Inner>, tree: Tree, lost: Lost) -> FsResult<Remains> {
    let (level, min, max) = match lost {
        Lost::Root(level) => (level, Pos::MIN, Pos::MAX),
        Lost::Child(level, min, max) => (level, min, max),
    };
    let mut chain = Chain::default();
    for level in 0..=level {
        chain.grow(engine, NodeIdent { node: 0, tree, level, min, max }).await?;
    }
    chain.put_on_media(engine).await?;
    let top = chain.pointers.last().expect("there is a level at least").clone();
    let propose = |_: &State| {
        let mut proposal = Proposal::default();
        match lost {
            Lost::Root(_) => proposal.roots.push((tree, top.clone())),
            Lost::Child(..) => {
                proposal.updates.insert((tree, level + 1, max), Some(top.to_bytes().into()));
            }
        }
        Ok(Some((proposal, ())))
    };
    let mut forgotten = (Remains::default(), Vec::new());
    let mut nodes: Vec<Option<Node>> = chain.nodes.into_iter().map(Some).collect();
    let around = |state: &mut State, step: Step, _, _: &()| {
        if step == Step::After {
            forgotten = state.table.forget(tree, level, min, max);
            nodes.iter_mut().filter_map(Option::take).for_each(|node| state.table.insert(node));
            if let Lost::Root(_) = lost {
                let root = state.table.root_mut(tree);
                (root.node, root.level) = (top.node, level);
            }
        }
    };
    engine.commit(JournalClass::Interior, propose, around).await?;
    let (remains, stale) = forgotten;
    // What the journal says of the lost nodes would be laid over the new ones at the next mount: it says otherwise now.
    let mut updates: BTreeMap<Key, Option<Value>> = stale.into_iter().map(|key| (key, None)).collect();
    for pointer in &chain.pointers[..chain.pointers.len() - 1] {
        updates.insert((tree, pointer.level + 1, max), Some(pointer.to_bytes().into()));
    }
    let updates: Vec<_> = updates.into_iter().collect();
    for part in updates.chunks(KEYS_MAX) {
        let propose = |_: &State| {
            let updates = part.iter().cloned().collect();
            Ok(Some((Proposal { updates, ..Proposal::default() }, ())))
        };
        engine.commit(JournalClass::Interior, propose, |_, _, _, _| ()).await?;
    }
    Ok(remains)
}

/// Nodes of one range, each the only child of the next.
#[derive(Default)]
struct Chain {
    nodes: Vec<Node>,
    pointers: Vec<NodePointer>,
    writes: Vec<(u8, u64, Buf)>,
    holds: Vec<Hold>,
}

impl Chain {
    /// Adds a node above those there are.
    async fn grow(&mut self, engine: &Rc<Inner>, ident: NodeIdent) -> FsResult<()> {
        let node_bytes = engine.state.borrow().table.node_bytes as u64;
        let (hold, place) = engine.carve(Writer::Nodes, node_bytes).await?;
        self.holds.push(hold);
        let node = engine.state.borrow_mut().table.new_node_id();
        let ident = NodeIdent { node, ..ident };
        let key: Option<Vec<u8>> = self.pointers.last().map(NodePointer::to_bytes);
        let size = run_bytes(key.iter().map(|v| entry_bytes(v.len())).sum());
        let mut buf = Buf::zeroed(size).map_err(|_| FsError::NoMemory)?;
        let seq = engine.journal.open_seq().0;
        let info = RunInfo { index: 0, epoch: engine.epoch, seq, previous: 0 };
        let entries = key.iter().map(|v| (ident.max, Some(v.as_slice())));
        let last_hash = write_run(&mut buf, engine.pool_tag, &ident, &info, entries);
        self.writes.push((place.device, place.offset, buf));
        let Placed { device, generation, offset, .. } = place;
        let pointer = NodePointer {
            node,
            level: ident.level,
            blocks_written: (size / NODE_BLOCK) as u32,
            runs: 1,
            last_hash,
            min: ident.min,
            places: smallvec![NodePlace { device, generation, offset }],
        };
        let keys = Keys::from_sorted(key.iter().map(|v| (ident.max, v.as_slice())));
        self.nodes.push(Node::new(ident, keys, Some(pointer.clone())));
        self.pointers.push(pointer);
        Ok(())
    }

    async fn put_on_media(&mut self, engine: &Inner) -> FsResult<()> {
        let writes = self.writes.drain(..);
        let under_way: Vec<_> =
            writes.map(|(device, offset, buf)| engine.devices.write(device, offset, buf, Fua::No)).collect();
        let results = futures_util::future::join_all(under_way).await;
        let deps: Result<_, _> = results.into_iter().map(|(_, result)| result).collect();
        let deps = deps.map_err(|_| FsError::DeviceWrite)?;
        engine.devices.flush_covering(&deps).await.map_err(|_| FsError::DeviceWrite)
    }
}

/// Changes the pointer to a node: of a root (`level` is then above the tree's top), or of the child whose key is at
/// `max` of `level`.
pub(crate) async fn edit_pointer(
    engine: &Rc<Inner>,
    (tree, level, max): (Tree, u8, Pos),
    edit: impl Fn(&mut NodePointer),
) -> FsResult<()> {
    let new_pointer = |state: &State| -> Result<Option<NodePointer>, Miss> {
        let old = match level > state.table.root(tree).level {
            true => state.table.root(tree).pointer.clone(),
            false => state.table.get(tree, level, max)?.and_then(|v| NodePointer::parse(v).ok()),
        };
        Ok(old.map(|mut pointer| {
            edit(&mut pointer);
            pointer
        }))
    };
    let propose = |state: &State| {
        let Some(pointer) = new_pointer(state)? else { return Ok(None) };
        let proposal = match level > state.table.root(tree).level {
            true => Proposal { roots: alloc::vec![(tree, pointer.clone())], ..Proposal::default() },
            false => {
                let updates = BTreeMap::from([((tree, level, max), Some(pointer.to_bytes().into()))]);
                Proposal { updates, ..Proposal::default() }
            }
        };
        Ok(Some((proposal, pointer)))
    };
    let around = |state: &mut State, step: Step, _, pointer: &NodePointer| {
        if step == Step::After {
            state.table.update(pointer.node, |node| node.pointer = Some(pointer.clone()));
        }
    };
    engine.commit(JournalClass::Interior, propose, around).await?;
    Ok(())
}
