//! Restoring lost parts of trees from what nodes on disk still hold.
//!
//! Every place where a node can be is looked at. The pool's tag in the magic keeps images of other pools apart, the
//! chain of hashes tells how far a node's runs go. Of the leaves whose range meets a lost part the newest counts: a node
//! that is in use is always newer than any outdated image of the same positions. What comes out may be older than what
//! was lost, and the passes that follow fit it in; what was lost has been reported.
//!
//! Trees that derive from others are not restored: the recount makes them anew.

use super::Check;
use super::mend::{BucketSet, Changes};
use super::topology::is_usable;
use crate::space::triggers::{self, Reference};
use crate::tx::Value;
use crate::vfs::{FsError, FsResult};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::vec::Vec;
use moraine_format::node::{NODE_BLOCK, NodeIdent, RUN_MAGIC, Run};
use moraine_format::{Pos, Tree};
use moraine_platform::{Buf, warn};

/// Leaves kept in mind at a time; with more, the oldest are forgotten.
const LEAVES_MAX: usize = 1 << 18;
/// Keys put back at a time.
const BATCH_KEYS: usize = 512;

/// An image of a leaf on disk.
struct Leaf {
    seq: u64,
    epoch: u64,
    node: u64,
    device: u8,
    offset: u64,
    min: Pos,
    max: Pos,
}

type Ranges = Vec<(Pos, Pos)>;

pub(super) async fn restore(check: &mut Check<'_>) -> FsResult<()> {
    let lost = core::mem::take(&mut check.lost);
    let remains = core::mem::take(&mut check.remains);
    check.restored = lost.clone();
    let mut newer: BTreeMap<(Tree, Pos), u64> = BTreeMap::new();
    let mut keys: BTreeMap<(Tree, Pos), Value> = BTreeMap::new();
    for (tree, remains) in remains {
        newer.extend(remains.newer.iter().map(|(at, seq)| ((tree, *at), *seq)));
        keys.extend(remains.keys.into_iter().map(|(at, value)| ((tree, at), value)));
    }
    let keys: Changes =
        keys.into_iter().filter(|((tree, _), _)| !is_derived(*tree)).map(|(k, v)| (k, Some(v))).collect();
    newer.extend(keys.iter().map(|(at, _)| (*at, u64::MAX)));
    check.change(&keys).await?;
    // What derives from other keys is made anew. What the journal says of it would be back at the next mount, so the
    // journal says otherwise now.
    let forgotten: Changes =
        newer.keys().filter(|(tree, _)| is_derived(*tree)).map(|(tree, at)| ((*tree, *at), None)).collect();
    check.change(&forgotten).await?;
    let mut wanted: BTreeMap<Tree, Ranges> = BTreeMap::new();
    for (tree, min, max) in lost.into_iter().filter(|(tree, ..)| !is_derived(*tree)) {
        wanted.entry(tree).or_default().push((min, max));
    }
    if wanted.is_empty() {
        return Ok(());
    }
    check.pass("salvage");
    let mut leaves = scan(check, &wanted).await?;
    // The newest first; of images of one age, which cannot be of one place in the tree, in any fixed order.
    leaves.sort_by_key(|(tree, l)| (*tree, core::cmp::Reverse((l.seq, l.epoch, l.node, l.offset))));
    for (tree, leaf) in leaves {
        let ranges = wanted.entry(tree).or_default();
        put_back(check, tree, &leaf, ranges, &newer).await?;
        ranges.retain(|r| r.0 <= r.1);
        let cut: Ranges = ranges.drain(..).flat_map(|r| without(r, (leaf.min, leaf.max))).collect();
        *ranges = cut;
    }
    for (tree, min, max) in wanted.iter().flat_map(|(t, ranges)| ranges.iter().map(move |r| (t, r.0, r.1))) {
        warn!("fs", "nothing is left of tree {} from {min} to {max}", tree.name());
    }
    Ok(())
}

fn is_derived(tree: Tree) -> bool {
    use Tree::*;
    matches!(tree, Alloc | Freespace | NeedDiscard | Lru | Backpointers | Accounting)
}

/// A range without another.
fn without(range: (Pos, Pos), gone: (Pos, Pos)) -> impl Iterator<Item = (Pos, Pos)> {
    let before = gone.0.predecessor().map(|end| (range.0, range.1.min(end)));
    let behind = gone.1.successor().map(|start| (range.0.max(start), range.1));
    [before, behind].into_iter().flatten().filter(|r| r.0 <= r.1)
}

/// Puts a leaf's keys in `ranges` back, but for those that are known newer.
async fn put_back(
    check: &mut Check<'_>,
    tree: Tree,
    leaf: &Leaf,
    ranges: &Ranges,
    newer: &BTreeMap<(Tree, Pos), u64>,
) -> FsResult<()> {
    let inside = |at: &Pos| ranges.iter().any(|r| r.0 <= *at && *at <= r.1);
    let outdated = |at: &Pos| newer.get(&(tree, *at)).is_some_and(|seq| *seq > leaf.seq);
    if !ranges.iter().any(|r| r.0 <= leaf.max && leaf.min <= r.1) {
        return Ok(());
    }
    let Some(bytes) = read_node(check, leaf.device, leaf.offset).await? else { return Ok(()) };
    let mut keys: BTreeMap<Pos, Option<Value>> = BTreeMap::new();
    runs(&bytes, check.engine.inner.pool_tag, limit(check), |run| {
        keys.extend(run.entries().map(|(at, value)| (at, value.map(Value::from))));
    });
    // What an older entry of the journal says of a position, and the leaf does not, was deleted since.
    let range = (tree, leaf.min)..=(tree, leaf.max);
    let gone =
        newer.range(range).filter(|((_, at), _)| !keys.contains_key(at)).map(|((_, at), _)| (*at, None));
    let gone: Vec<(Pos, Option<Value>)> = gone.collect();
    let keys: Changes = keys
        .into_iter()
        .chain(gone)
        .filter(|(at, value)| {
            inside(at) && !outdated(at) && (value.is_some() || newer.contains_key(&(tree, *at)))
        })
        .map(|(at, value)| ((tree, at), value))
        .collect();
    warn!("fs", "{} keys of tree {} are restored from an old node", keys.len(), tree.name());
    for batch in keys.chunks(BATCH_KEYS) {
        check.change(batch).await?;
    }
    Ok(())
}

/// No run counts that may hold changes later than the history that was recovered, and none of this mount's: what a
/// repair puts in the place of something lost is newer than all that is left of it.
struct Limit {
    seq: u64,
    epoch: u64,
}

fn limit(check: &Check<'_>) -> Limit {
    Limit { seq: check.engine.inner.recovered.0, epoch: check.engine.inner.epoch }
}

/// Buckets with an image of a node, or of what an image of a leaf refers to: of what is lost nothing else may be left.
pub(super) async fn images(check: &mut Check<'_>) -> FsResult<BucketSet> {
    let inner = check.engine.inner.clone();
    let node_bytes = inner.state.borrow().table.node_bytes as u32;
    let mut set = BucketSet::new(&inner.geometry);
    let mut places = Places::new(check);
    // What the journal and nodes in memory know has not reached the disks.
    let mut found: Vec<Reference> = inner.state.borrow().table.known_references();
    insert(check, &mut set, &mut found);
    while let Some((device, offset)) = places.next(check).await? {
        let Some(bytes) = read_node(check, device, offset).await? else { continue };
        runs(&bytes, inner.pool_tag, limit(check), |run| {
            set.insert(&inner.geometry, device, offset);
            for (at, value) in run.entries() {
                let key = (run.ident.tree, run.ident.level, at);
                let _ = value.map(|v| triggers::references(key, v, node_bytes, &mut found));
            }
        });
        insert(check, &mut set, &mut found);
    }
    Ok(set)
}

fn insert(check: &Check<'_>, set: &mut BucketSet, found: &mut Vec<Reference>) {
    for r in found.drain(..).filter(|r| is_usable(check, r.device, r.offset, r.len as u64)) {
        set.insert(&check.engine.inner.geometry, r.device, r.offset);
    }
}

/// Every place where a node may begin and something of this pool's does.
struct Places {
    magic: [u8; 8],
    node_bytes: u64,
    /// Stretches of devices that are still to be looked at.
    rest: VecDeque<(u8, u64, u64)>,
}

impl Places {
    fn new(check: &Check<'_>) -> Places {
        let inner = &check.engine.inner;
        let stretches = inner.usable_ranges().into_iter().flat_map(|(device, ranges)| {
            let bytes = inner.geometry[device as usize].bucket_bytes;
            ranges.into_iter().map(move |(first, end)| (device, first * bytes, end * bytes))
        });
        Places {
            magic: (RUN_MAGIC ^ inner.pool_tag).to_le_bytes(),
            node_bytes: inner.state.borrow().table.node_bytes as u64,
            rest: stretches.collect(),
        }
    }

    async fn next(&mut self, check: &Check<'_>) -> FsResult<Option<(u8, u64)>> {
        while let Some((device, offset, end)) = self.rest.front_mut() {
            if offset == end {
                self.rest.pop_front();
                continue;
            }
            let (device, at) = (*device, *offset);
            *offset += self.node_bytes;
            let head = Buf::zeroed(NODE_BLOCK).map_err(|_| FsError::NoMemory)?;
            let (head, result) = check.engine.inner.devices.read(device, at, head).await;
            if result.is_ok() && head.starts_with(&self.magic) {
                return Ok(Some((device, at)));
            }
        }
        Ok(None)
    }
}

/// Looks for leaves of the wanted parts wherever there can be nodes.
async fn scan(check: &mut Check<'_>, wanted: &BTreeMap<Tree, Ranges>) -> FsResult<Vec<(Tree, Leaf)>> {
    let tag = check.engine.inner.pool_tag;
    let mut leaves: Vec<(Tree, Leaf)> = Vec::new();
    let mut places = Places::new(check);
    while let Some((device, offset)) = places.next(check).await? {
        let Some(bytes) = read_node(check, device, offset).await? else { continue };
        let Some((ident, seq, epoch)) = runs(&bytes, tag, limit(check), |_| {}) else { continue };
        let meets = |r: &(Pos, Pos)| r.0 <= ident.max && ident.min <= r.1;
        if ident.level > 0 || !wanted.get(&ident.tree).is_some_and(|r| r.iter().any(meets)) {
            continue;
        }
        let NodeIdent { node, min, max, .. } = ident;
        leaves.push((ident.tree, Leaf { seq, epoch, node, device, offset, min, max }));
        if leaves.len() > LEAVES_MAX {
            leaves.sort_by_key(|(_, l)| core::cmp::Reverse((l.seq, l.epoch, l.node, l.offset)));
            leaves.truncate(LEAVES_MAX / 2);
        }
    }
    let text = format!("{} old nodes hold something of what was lost", leaves.len());
    moraine_platform::info!("fs", "{text}");
    Ok(leaves)
}

async fn read_node(check: &Check<'_>, device: u8, offset: u64) -> FsResult<Option<Buf>> {
    let inner = &check.engine.inner;
    let node_bytes = inner.state.borrow().table.node_bytes;
    let buf = Buf::zeroed(node_bytes).map_err(|_| FsError::NoMemory)?;
    let (mut buf, result) = inner.devices.read(device, offset, buf).await;
    if result.is_err() {
        // Around what cannot be read: runs before it are whole.
        buf.fill(0);
        for at in (0..node_bytes).step_by(NODE_BLOCK) {
            let part = Buf::zeroed(NODE_BLOCK).map_err(|_| FsError::NoMemory)?;
            if let (part, Ok(())) = inner.devices.read(device, offset + at as u64, part).await {
                buf[at..at + NODE_BLOCK].copy_from_slice(&part);
            }
        }
    }
    Ok(Some(buf))
}

/// Calls `visit` with the runs of a node as far as they are whole and not beyond `limit`. Returns which node it is,
/// and seq and epoch of its last run.
fn runs(
    bytes: &[u8],
    tag: u64,
    limit: Limit,
    mut visit: impl FnMut(&Run<'_>),
) -> Option<(NodeIdent, u64, u64)> {
    let mut last: Option<(NodeIdent, u64, u64)> = None;
    let (mut at, mut previous, mut index) = (0, 0, 0);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let Ok(run) = Run::parse(rest, tag) else { break };
        let same = last.is_none_or(|(ident, ..)| ident == run.ident);
        let counts = run.info.seq <= limit.seq && run.info.epoch < limit.epoch;
        if !same || run.info.index != index || run.info.previous != previous || !counts {
            break;
        }
        visit(&run);
        last = Some((run.ident, run.info.seq, run.info.epoch));
        previous = run.hash;
        index += 1;
        at += run.disk_bytes;
    }
    last
}
