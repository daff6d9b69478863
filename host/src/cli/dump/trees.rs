//! Trees read from disk by the format alone: nodes by their pointers, the journal's newer keys laid over them.

use super::Failure;
use moraine_format::journal::ItemKind;
use moraine_format::node::{NODE_BLOCK, NodePointer, Run};
use moraine_format::space::DeviceUsage;
use moraine_format::{Pos, Superblock, Tree};
use moraine_fs::device::Devices;
use moraine_fs::journal::History;
use moraine_platform::Buf;
use std::cell::Cell;
use std::collections::BTreeMap;

/// A key's value, or the mark that it is gone.
type Value = Option<Vec<u8>>;
type Keys = BTreeMap<Pos, Value>;

/// Every tree of a pool as its disks and its journal tell.
pub(super) struct Trees<'a> {
    devices: &'a Devices,
    pool_tag: u64,
    node_bytes: usize,
    /// Bytes of nodes read.
    read: Cell<u64>,
    roots: BTreeMap<Tree, NodePointer>,
    /// Newer than what the nodes hold.
    overlay: BTreeMap<(Tree, u8), Keys>,
}

/// A node of a tree.
pub(super) struct Node {
    pub(super) pointer: NodePointer,
    pub(super) min: Pos,
    pub(super) max: Pos,
    /// Keys in it with the journal's laid over.
    pub(super) keys: usize,
}

/// What a walk comes by.
pub(super) enum Visit<'a> {
    Key(Pos, &'a [u8]),
    Node(&'a Node),
    /// A node that cannot be read, and why. What is below it is left out.
    Damaged(&'a str),
}

/// A run of a node as it lies on disk.
pub(super) struct RunText {
    pub(super) tree: Tree,
    pub(super) level: u8,
    pub(super) min: Pos,
    pub(super) max: Pos,
    pub(super) index: u16,
    pub(super) epoch: u64,
    pub(super) seq: u64,
    pub(super) hash: u64,
    pub(super) entries: Vec<(Pos, Value)>,
}

impl<'a> Trees<'a> {
    /// The trees after `history`.
    pub(super) fn new(devices: &'a Devices, superblock: &Superblock, history: &History) -> Trees<'a> {
        let mut roots = BTreeMap::new();
        for (_, item) in history.roots() {
            if let (Some(tree), Ok(pointer)) = (Tree::from_id(item.tree), NodePointer::parse(item.value)) {
                roots.insert(tree, pointer);
            }
        }
        let mut overlay: BTreeMap<(Tree, u8), Keys> = BTreeMap::new();
        for (_, item) in history.items() {
            let Some(tree) = Tree::from_id(item.tree) else { continue };
            let value = match item.kind {
                ItemKind::Put => Some(item.value.to_vec()),
                ItemKind::Delete => None,
                _ => continue,
            };
            overlay.entry((tree, item.level)).or_default().insert(item.pos, value);
        }
        let node_bytes = superblock.node_bytes as usize;
        Trees { devices, pool_tag: superblock.pool_tag(), node_bytes, read: Cell::new(0), roots, overlay }
    }

    /// Bytes of nodes read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.read.get()
    }

    /// Bytes of all nodes, as the counters say.
    pub(super) async fn bytes(&self) -> Result<u64, Failure> {
        let mut bytes = 0u64;
        let mut add = |visit: Visit<'_>| {
            if let Visit::Key(_, value) = visit {
                let usage = DeviceUsage::parse(value).unwrap_or_default();
                bytes = bytes.saturating_add(usage.btree_bytes.max(0) as u64);
            }
        };
        let devices = Pos::new(DeviceUsage::pos(0).inode, 0, 0);
        let mut of_devices = |visit: Visit<'_>| match visit {
            Visit::Key(pos, _) if pos.inode != devices.inode => {}
            visit => add(visit),
        };
        self.walk(Tree::Accounting, &mut of_devices).await?;
        Ok(bytes)
    }

    /// Walks a tree in order, parents before children.
    pub(super) async fn walk(&self, tree: Tree, visit: &mut dyn FnMut(Visit<'_>)) -> Result<(), Failure> {
        let Some(root) = self.roots.get(&tree) else {
            // A tree without a root on disk is one leaf, all of which the journal holds.
            let keys = self.overlaid(tree, 0, Keys::new(), Pos::MIN, Pos::MAX);
            visit_keys(&keys, visit);
            return Ok(());
        };
        // The nodes still to be visited, the next one last.
        let mut ahead = vec![(root.clone(), Pos::MAX)];
        while let Some((pointer, max)) = ahead.pop() {
            let mut found = Keys::new();
            match self.runs(&pointer).await {
                Ok(runs) => runs.into_iter().for_each(|run| found.extend(run.entries)),
                Err(Failure(why)) => {
                    visit(Visit::Damaged(&why));
                    continue;
                }
            }
            let (level, min) = (pointer.level, pointer.min);
            let keys = self.overlaid(tree, level, found, min, max);
            let count = keys.values().flatten().count();
            visit(Visit::Node(&Node { pointer, min, max, keys: count }));
            if level == 0 {
                visit_keys(&keys, visit);
                continue;
            }
            for (pos, value) in keys.iter().rev() {
                let Some(value) = value else { continue };
                match NodePointer::parse(value) {
                    Ok(child) if child.level.checked_add(1) == Some(level) => ahead.push((child, *pos)),
                    Ok(_) => visit(Visit::Damaged(&format!("the pointer at {pos} leads to the wrong level"))),
                    Err(e) => visit(Visit::Damaged(&format!("the pointer at {pos}: {e}"))),
                }
            }
        }
        Ok(())
    }

    /// The runs of the node called `id`, looked for in every tree.
    pub(super) async fn find(&self, id: u64) -> Result<Option<Vec<RunText>>, Failure> {
        for tree in self.roots.keys() {
            let mut found = None;
            let mut look = |visit: Visit<'_>| {
                if let Visit::Node(node) = visit
                    && node.pointer.node == id
                {
                    found = Some(node.pointer.clone());
                }
            };
            self.walk(*tree, &mut look).await?;
            if let Some(pointer) = found {
                return self.runs(&pointer).await.map(Some);
            }
        }
        Ok(None)
    }

    /// A node's keys with the journal's newer ones of its range.
    fn overlaid(&self, tree: Tree, level: u8, mut keys: Keys, min: Pos, max: Pos) -> Keys {
        if let Some(newer) = self.overlay.get(&(tree, level)) {
            keys.extend(newer.range(min..=max).map(|(pos, value)| (*pos, value.clone())));
        }
        keys
    }

    /// Reads the runs that a pointer counts, from the first copy that is whole.
    async fn runs(&self, pointer: &NodePointer) -> Result<Vec<RunText>, Failure> {
        let mut why = String::from("it has no copy");
        if pointer.blocks_written as usize * NODE_BLOCK > self.node_bytes {
            return Err(Failure(format!("node {} would be longer than a node", pointer.node)));
        }
        self.read.set(self.read.get() + self.node_bytes as u64);
        for place in &pointer.places {
            let bytes = pointer.blocks_written as usize * NODE_BLOCK;
            let buf = Buf::zeroed(bytes).map_err(|_| Failure("out of memory".to_owned()))?;
            let (buf, result) = self.devices.read(place.device, place.offset, buf).await;
            let parsed = match result {
                Ok(()) => self.parse(&buf, pointer.runs),
                Err(e) => Err(e.to_string()),
            };
            match parsed {
                Ok(runs) => return Ok(runs),
                Err(e) => why = format!("device {} offset {}: {e}", place.device, place.offset),
            }
        }
        Err(Failure(format!("node {} cannot be read: {why}", pointer.node)))
    }

    fn parse(&self, mut bytes: &[u8], count: u16) -> Result<Vec<RunText>, String> {
        let mut runs = Vec::new();
        for _ in 0..count {
            let run = Run::parse(bytes, self.pool_tag).map_err(|e| e.to_string())?;
            runs.push(RunText {
                tree: run.ident.tree,
                level: run.ident.level,
                min: run.ident.min,
                max: run.ident.max,
                index: run.info.index,
                epoch: run.info.epoch,
                seq: run.info.seq,
                hash: run.hash,
                entries: run.entries().map(|(pos, value)| (pos, value.map(<[u8]>::to_vec))).collect(),
            });
            bytes = bytes.get(run.disk_bytes..).ok_or("a run is longer than its node")?;
        }
        Ok(runs)
    }
}

fn visit_keys(keys: &Keys, visit: &mut dyn FnMut(Visit<'_>)) {
    for (pos, value) in keys {
        if let Some(value) = value {
            visit(Visit::Key(*pos, value));
        }
    }
}
