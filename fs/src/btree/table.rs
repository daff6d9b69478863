//! The nodes in memory, the roots of the trees, and look-ups that never wait.

use super::node::Keys;
use crate::journal::{Journal, Pin};
use crate::tx::Value;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::{ControlFlow, RangeInclusive};
use hashbrown::HashMap;
use moraine_format::journal::Seq;
use moraine_format::node::{NodeIdent, NodePointer};
use moraine_format::{Pos, Tree};
use moraine_platform::memory::Meter;

/// A node in memory.
pub(crate) struct Node {
    pub(super) ident: NodeIdent,
    pub(super) keys: Keys,
    /// Where it is on disk; none until it is first written.
    pub(super) pointer: Option<NodePointer>,
    /// Positions changed since the last write began.
    pub(super) changed: BTreeSet<Pos>,
    /// Keeps the oldest journal entry with such a change in the journal until it is written; the node is dirty.
    pub(super) pin: Option<Pin>,
    /// A write of it is under way.
    pub(super) writing: bool,
    /// Merges of its children under way: until they are committed it must not be divided.
    pub(super) merging_below: u32,
    /// A write to its place failed: what lies there behind its last run is anybody's guess, so it moves.
    pub(super) unsure: bool,
    /// Second chance in eviction.
    pub(super) used: Cell<bool>,
    /// Bytes of memory it was charged with.
    charged: usize,
    /// What the table's lists and sums hold of it.
    listed: Listed,
}

/// What the table's lists and sums hold of a node.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Listed {
    /// The oldest entry with a change of it, while it waits to be written back.
    since: Option<u64>,
    /// Among the nodes too large for their place on disk.
    oversize: bool,
    /// Its memory, while it is dirty or being written and so cannot be evicted.
    busy_bytes: Option<usize>,
}

impl Node {
    pub(super) fn new(ident: NodeIdent, keys: Keys, pointer: Option<NodePointer>) -> Node {
        Node {
            ident,
            keys,
            pointer,
            changed: BTreeSet::new(),
            pin: None,
            writing: false,
            unsure: false,
            merging_below: 0,
            used: Cell::new(true),
            charged: 0,
            listed: Listed::default(),
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.pin.is_some()
    }
}

/// Keeps the older of two pins.
pub(super) fn keep_older(have: &mut Option<Pin>, pin: Pin) {
    let newer = match have.take() {
        Some(old) if old.seq() <= pin.seq() => {
            *have = Some(old);
            Some(pin)
        }
        old => {
            *have = Some(pin);
            old
        }
    };
    if let Some(newer) = newer {
        newer.release();
    }
}

/// The root of a tree.
pub(crate) struct Root {
    /// Its node.
    pub(crate) node: u64,
    /// Its level.
    pub(crate) level: u8,
    /// Where it is on disk, as last put into the journal; none while the tree was never written.
    pub(crate) pointer: Option<NodePointer>,
    /// Keeps the newest root item in the journal; it must be logged again before the journal can let go of it.
    pub(crate) logged: Option<Pin>,
}

/// Why a look-up could not answer.
#[derive(Debug)]
pub(crate) enum Miss {
    /// This node of the tree is not in memory; its key, the greatest position it may hold, is the last.
    Node(Tree, NodePointer, Pos),
    /// An interior key does not make sense.
    Corrupt(Tree, Pos),
}

/// One change of the recovered journal that has not reached its node yet.
pub(crate) struct Pending {
    pub(crate) value: Option<Value>,
    pub(crate) seq: Seq,
}

/// Fixed-seed hashing of node ids, so that nothing depends on where memory lies.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl core::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(*b as u64);
        }
    }
    fn write_u64(&mut self, n: u64) {
        let x = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ (x >> 32);
    }
}

type IdMap<V> = HashMap<u64, V, core::hash::BuildHasherDefault<IdHasher>>;

/// All nodes in memory.
pub(crate) struct Table {
    journal: Rc<Journal>,
    nodes: IdMap<Box<Node>>,
    roots: Vec<Root>,
    /// What recovery found in the journal, until the nodes it belongs to are read in: newest value per key.
    pub(crate) overlay: BTreeMap<(Tree, u8, Pos), Pending>,
    /// Keeps the journal's entries that the overlay came from, until it is empty.
    pub(crate) overlay_pin: Option<Pin>,
    /// Eviction order; holds each node once.
    clock: VecDeque<u64>,
    versions: u64,
    /// When a leaf key of each tree last changed, as a version.
    leaf_versions: Vec<u64>,
    next_node: u64,
    /// Nodes that wait to be written back, with the oldest journal entry each keeps.
    dirty: BTreeSet<(u64, u64)>,
    /// Those of them that are too large for their place on disk.
    oversize: BTreeSet<u64>,
    /// Nodes that are dirty or being written.
    busy_nodes: usize,
    /// Bytes of memory of these.
    busy_bytes: usize,
    /// More dirty nodes than the journal's reserve could write back.
    dirty_nodes_max: usize,
    /// Somebody needs many nodes at once: nothing is evicted.
    keep_all: usize,
    /// Bytes of memory of all nodes, about.
    pub(crate) memory: Meter,
    /// Bytes that nodes should not exceed; dirty ones may.
    pub(crate) memory_limit: usize,
    /// Bytes of a node on disk.
    pub(crate) node_bytes: usize,
    /// The most keys a node may have; far out of reach but in tests.
    pub(crate) keys_max: usize,
}

/// The part of memory that clean nodes have at least: one part in so many.
const CLEAN_SHARE: usize = 4;
/// The part of the journal that write-back can count on: one part in so many.
const RESERVE_SHARE: usize = 5;
/// Journal bytes that writing one node back takes, its share of padding included.
const WRITE_BACK_BYTES: usize = 1536;
/// Dirty nodes that are allowed in any case.
const DIRTY_NODES_MIN: usize = 24;
/// How many nodes eviction looks at before it gives up for now.
const EVICT_LOOK_MAX: usize = 64;

impl Table {
    /// A table with empty trees. `next_node` is the first node id to hand out.
    pub(crate) fn new(
        journal: Rc<Journal>,
        node_bytes: usize,
        keys_max: usize,
        memory_limit: usize,
        next_node: u64,
    ) -> Table {
        let reserve = journal.capacity_bytes() as usize / RESERVE_SHARE;
        let mut table = Table {
            journal,
            dirty: BTreeSet::new(),
            oversize: BTreeSet::new(),
            busy_nodes: 0,
            busy_bytes: 0,
            dirty_nodes_max: (reserve / WRITE_BACK_BYTES).max(DIRTY_NODES_MIN),
            nodes: IdMap::default(),
            roots: Vec::new(),
            overlay: BTreeMap::new(),
            overlay_pin: None,
            clock: VecDeque::new(),
            versions: 0,
            leaf_versions: alloc::vec![0; Tree::ALL.len()],
            next_node,
            keep_all: 0,
            memory: Meter::default(),
            memory_limit,
            node_bytes,
            keys_max,
        };
        for tree in Tree::ALL {
            let node = table.new_node_id();
            table.roots.push(Root { node, level: 0, pointer: None, logged: None });
            let ident = NodeIdent { node, tree: *tree, level: 0, min: Pos::MIN, max: Pos::MAX };
            table.insert(Node::new(ident, Keys::default(), None));
        }
        table
    }

    /// Keeps entry `seq` in the journal.
    pub(super) fn pin(&self, seq: Seq) -> Pin {
        self.journal.pin(seq)
    }

    pub(super) fn new_node_id(&mut self) -> u64 {
        self.next_node += 1;
        self.next_node - 1
    }

    /// Replaces a tree's empty root by one that recovery found.
    pub(crate) fn set_recovered_root(&mut self, tree: Tree, pointer: NodePointer, seq: Seq) {
        let logged = Some(self.journal.pin(seq));
        let root = &mut self.roots[tree as usize];
        let old = root.node;
        *root = Root { node: pointer.node, level: pointer.level, pointer: Some(pointer), logged };
        self.remove(old);
    }

    /// Lays the overlay over a root that has no place on disk yet, and so is never read in.
    pub(crate) fn fold_resident_root(&mut self, tree: Tree) {
        if let Some(node) = self.remove(self.roots[tree as usize].node) {
            self.clock.retain(|id| *id != node.ident.node);
            self.insert(*node);
        }
    }

    pub(crate) fn root(&self, tree: Tree) -> &Root {
        &self.roots[tree as usize]
    }

    pub(crate) fn root_mut(&mut self, tree: Tree) -> &mut Root {
        &mut self.roots[tree as usize]
    }

    pub(super) fn get_node(&self, id: u64) -> Option<&Node> {
        self.nodes.get(&id).map(|n| &**n)
    }

    /// Changes a node, and with it what the table's lists and sums hold of it.
    pub(super) fn update<T>(&mut self, id: u64, change: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let result = change(self.nodes.get_mut(&id)?);
        self.list(id);
        Some(result)
    }

    /// Brings lists and sums up to date with a node.
    fn list(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).expect("the caller has just seen it");
        let bytes = node.keys.memory_bytes() + size_of::<Node>();
        self.memory.set(self.memory.bytes() + bytes - node.charged);
        node.charged = bytes;
        let since = node.pin.as_ref().filter(|_| !node.writing).map(|pin| pin.seq().0);
        let now = Listed {
            since,
            oversize: since.is_some()
                && super::write::parts_for(self.node_bytes, self.keys_max, &node.keys) > 1,
            busy_bytes: (node.pin.is_some() || node.writing).then_some(bytes),
        };
        let was = core::mem::replace(&mut node.listed, now);
        self.relist(id, was, now);
    }

    fn relist(&mut self, id: u64, was: Listed, now: Listed) {
        if was.since != now.since {
            was.since.map(|seq| self.dirty.remove(&(seq, id)));
            now.since.map(|seq| self.dirty.insert((seq, id)));
        }
        match (was.oversize, now.oversize) {
            (false, true) => drop(self.oversize.insert(id)),
            (true, false) => drop(self.oversize.remove(&id)),
            _ => {}
        }
        self.busy_nodes =
            self.busy_nodes + usize::from(now.busy_bytes.is_some()) - usize::from(was.busy_bytes.is_some());
        self.busy_bytes = self.busy_bytes + now.busy_bytes.unwrap_or(0) - was.busy_bytes.unwrap_or(0);
    }

    /// The nodes with the oldest changes that are not being written, oldest first.
    pub(crate) fn oldest_dirty(&self, count: usize) -> Vec<u64> {
        self.dirty.iter().take(count).map(|(_, id)| *id).collect()
    }

    /// Dirty nodes too large for their place on disk.
    pub(crate) fn oversize(&self, count: usize) -> Vec<u64> {
        self.oversize.iter().take(count).copied().collect()
    }

    pub(crate) fn is_resident(&self, id: u64) -> bool {
        self.nodes.contains_key(&id)
    }

    /// Adds a node, laying what recovery found for its range over it.
    pub(super) fn insert(&mut self, mut node: Node) {
        let (tree, level) = (node.ident.tree, node.ident.level);
        let range = (tree, level, node.ident.min)..=(tree, level, node.ident.max);
        if self.overlay.range(range.clone()).next().is_some() {
            let found: Vec<(Tree, u8, Pos)> = self.overlay.range(range).map(|(k, _)| *k).collect();
            for key in found {
                let pending = self.overlay.remove(&key).expect("just seen");
                if node.keys.get(key.2) != pending.value.as_deref() {
                    node.keys.set(key.2, pending.value);
                    node.changed.insert(key.2);
                    keep_older(&mut node.pin, self.journal.pin(pending.seq));
                }
            }
        }
        if self.overlay.is_empty()
            && let Some(pin) = self.overlay_pin.take()
        {
            pin.release();
        }
        let id = node.ident.node;
        (node.charged, node.listed) = (0, Listed::default());
        let old = self.nodes.insert(id, Box::new(node));
        assert!(old.is_none(), "a node is in memory once");
        self.list(id);
        self.clock.push_back(id);
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Box<Node>> {
        let node = self.nodes.remove(&id)?;
        self.memory.sub(node.charged);
        self.relist(id, node.listed, Listed::default());
        Some(node)
    }

    /// Drops clean nodes other than `keep` until memory is within its limit, least recently used first.
    pub(super) fn evict(&mut self, keep: u64) {
        let mut looked = 0;
        if self.memory.bytes() <= self.memory_limit || self.keep_all > 0 {
            return;
        }
        // Dirty nodes are the cleaner's business; a share of memory is for clean ones even if there are many of them.
        let mut clean_bytes = self.memory.bytes() - self.busy_bytes;
        while self.memory.bytes() > self.memory_limit
            && clean_bytes > self.memory_limit / CLEAN_SHARE
            && looked < EVICT_LOOK_MAX
        {
            let Some(id) = self.clock.pop_front() else { return };
            looked += 1;
            let Some(node) = self.nodes.get(&id) else { continue };
            let root = self.roots[node.ident.tree as usize].node == id;
            let busy = node.is_dirty() || node.writing || node.pointer.is_none() || root || id == keep;
            if busy || node.used.replace(false) {
                self.clock.push_back(id);
            } else {
                clean_bytes -= node.charged.min(clean_bytes);
                self.remove(id);
            }
        }
    }

    /// Whether so much is dirty that nodes must be written to make room for others.
    pub(crate) fn is_crowded(&self) -> bool {
        self.memory.bytes() > self.memory_limit * 3 / 4 && self.busy_bytes > self.memory_limit / 2
    }

    /// Whether so many nodes are dirty that the cleaner should begin.
    pub(crate) fn is_dirty(&self) -> bool {
        self.busy_nodes > self.dirty_nodes_max / 2
    }

    /// Whether so many nodes are dirty that writing them back takes all of the journal's reserve: others wait.
    pub(crate) fn is_too_dirty(&self) -> bool {
        self.busy_nodes > self.dirty_nodes_max
    }

    /// Stops eviction until as many calls of [`Table::evict_again`] were made: for a commit whose nodes push each other out.
    pub(crate) fn keep_all(&mut self) {
        self.keep_all += 1;
    }

    pub(crate) fn evict_again(&mut self) {
        self.keep_all -= 1;
    }

    /// The node of `tree` at `level` whose range holds `pos`.
    pub(super) fn locate(&self, tree: Tree, level: u8, pos: Pos) -> Result<&Node, Miss> {
        let root = &self.roots[tree as usize];
        let Some(mut node) = self.nodes.get(&root.node) else {
            let pointer = root.pointer.clone().ok_or(Miss::Corrupt(tree, pos))?;
            return Err(Miss::Node(tree, pointer, Pos::MAX));
        };
        while node.ident.level > level {
            node.used.set(true);
            let (at, value) = node.keys.first_from(pos).ok_or(Miss::Corrupt(tree, pos))?;
            let id = NodePointer::node_of(value).ok_or(Miss::Corrupt(tree, at))?;
            match self.nodes.get(&id) {
                // A pointer that leads elsewhere must not lead in circles.
                Some(child) if child.ident.tree != tree || child.ident.level + 1 != node.ident.level => {
                    return Err(Miss::Corrupt(tree, at));
                }
                Some(child) => node = child,
                None => {
                    let pointer = NodePointer::parse(value).map_err(|_| Miss::Corrupt(tree, at))?;
                    if pointer.level.checked_add(1) != Some(node.ident.level) {
                        return Err(Miss::Corrupt(tree, at));
                    }
                    return Err(Miss::Node(tree, pointer, at));
                }
            }
        }
        if node.ident.level != level || pos < node.ident.min || pos > node.ident.max {
            return Err(Miss::Corrupt(tree, pos));
        }
        node.used.set(true);
        Ok(node)
    }

    /// The value at `pos`.
    pub(crate) fn get(&self, tree: Tree, level: u8, pos: Pos) -> Result<Option<&[u8]>, Miss> {
        if level > self.roots[tree as usize].level {
            return Ok(None);
        }
        Ok(self.locate(tree, level, pos)?.keys.get(pos))
    }

    /// The first key in `range`.
    pub(crate) fn first(
        &self,
        tree: Tree,
        level: u8,
        range: &RangeInclusive<Pos>,
    ) -> Result<Option<(Pos, &[u8])>, Miss> {
        let mut from = *range.start();
        while from <= *range.end() {
            let node = self.locate(tree, level, from)?;
            if let Some((pos, value)) = node.keys.first_from(from) {
                return Ok((pos <= *range.end()).then_some((pos, value)));
            }
            match node.ident.max.successor() {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(None)
    }

    /// Shows the keys in `range` to `see`, in order, until it breaks.
    pub(crate) fn scan(
        &self,
        tree: Tree,
        level: u8,
        range: RangeInclusive<Pos>,
        see: &mut impl FnMut(Pos, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Miss> {
        let mut from = *range.start();
        while from <= *range.end() {
            let node = self.locate(tree, level, from)?;
            for (pos, value) in node.keys.iter_from(from) {
                if pos > *range.end() || see(pos, value).is_break() {
                    return Ok(());
                }
            }
            match node.ident.max.successor() {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(())
    }

    /// The last key in `range`.
    pub(crate) fn last(
        &self,
        tree: Tree,
        level: u8,
        range: &RangeInclusive<Pos>,
    ) -> Result<Option<(Pos, &[u8])>, Miss> {
        let mut to = *range.end();
        while to >= *range.start() {
            let node = self.locate(tree, level, to)?;
            if let Some((pos, value)) = node.keys.last_to(to) {
                return Ok((pos >= *range.start()).then_some((pos, value)));
            }
            match node.ident.min.predecessor() {
                Some(next) => to = next,
                None => break,
            }
        }
        Ok(None)
    }

    /// Whether the node at `pos` has outgrown what the journal alone should carry: updates wait for its write-back.
    pub(crate) fn is_swollen(&self, tree: Tree, level: u8, pos: Pos) -> Result<bool, Miss> {
        let node = self.locate(tree, level, pos)?;
        Ok(node.keys.live_bytes() > 4 * self.node_bytes || node.keys.len() > 8 * self.keys_max)
    }

    /// Applies one update, which the journal holds in entry `seq`. The node must be in memory.
    pub(crate) fn apply(&mut self, key: (Tree, u8, Pos), value: Option<Value>, seq: Seq) {
        let (tree, level, pos) = key;
        let id = match self.locate(tree, level, pos) {
            Ok(node) => node.ident.node,
            Err(_) => panic!("a commit's nodes are in memory before it applies anything"),
        };
        self.versions += 1;
        if level == 0 {
            self.leaf_versions[tree as usize] = self.versions;
        }
        let node = self.nodes.get_mut(&id).expect("just located");
        node.keys.set(pos, value);
        node.changed.insert(pos);
        if node.pin.is_none() {
            node.pin = Some(self.journal.pin(seq));
        }
        self.list(id);
    }

    /// A mark of now, to compare with [`Table::changed`].
    pub(crate) fn version(&self) -> u64 {
        self.versions
    }

    /// When a key of the tree was last changed: if not after a mark, everything read then would be read again.
    pub(crate) fn changed(&self, tree: Tree) -> u64 {
        self.leaf_versions[tree as usize]
    }

    /// All nodes, in no order that means anything but the same in each run.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.clock.iter().filter_map(|id| self.get_node(*id))
    }
}

impl core::fmt::Display for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let dirty = self.nodes().filter(|n| n.is_dirty()).count();
        let writing = self.nodes().filter(|n| n.writing).count();
        writeln!(
            f,
            "nodes: {} in memory ({} of {} bytes), {dirty} dirty, {writing} being written, {} keys to fold, kept since {:?}",
            self.nodes.len(),
            self.memory.bytes(),
            self.memory_limit,
            self.overlay.len(),
            self.overlay_pin.as_ref().map(|p| p.seq().0)
        )?;
        for tree in Tree::ALL {
            let root = self.root(*tree);
            if root.level > 0 || root.pointer.is_some() {
                let logged = root.logged.as_ref().map(|p| p.seq().0);
                writeln!(f, "  {}: level {}, logged in {logged:?}", tree.name(), root.level)?;
            }
        }
        let mut oldest: Vec<_> = self.nodes().filter_map(|n| Some((n.pin.as_ref()?.seq(), n))).collect();
        oldest.sort_by_key(|(seq, n)| (*seq, n.ident.node));
        for (seq, node) in oldest.iter().take(8) {
            let i = &node.ident;
            let (keys, changed) = (node.keys.len(), node.changed.len());
            writeln!(
                f,
                "  dirty since {seq}: {}/{} {:#x}: {keys} keys, {changed} changes, writing {}",
                i.tree.name(),
                i.level,
                i.node,
                node.writing
            )?;
        }
        Ok(())
    }
}
