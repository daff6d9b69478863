//! What a commit's updates mean for space: alloc keys, free ranges, backpointers and counters, in the same commit.
//!
//! Pure: from the keys before and the updates queued it derives further updates, all on data in memory. It runs exactly
//! once per commit, so the sum of all derivations equals a recount from scratch; fsck checks that it does.

use super::buckets::Geometry;
use crate::btree::{Key, Miss, View};
use crate::planted::{self, Fault};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use moraine_format::node::NodePointer;
use moraine_format::space::{
    Alloc, Backpointer, BucketKind, DeviceUsage, PoolUsage, bucket_pos, fragmented_pos, free_range_value,
    need_discard_pos, parse_free_range,
};
use moraine_format::{FormatError, Pos, Tree, extent};

/// A change of a tree's root pointer in a commit.
pub(crate) struct RootChange {
    pub(crate) tree: Tree,
    pub(crate) old: Option<NodePointer>,
    pub(crate) new: Option<NodePointer>,
}

/// A stretch of a bucket that some key refers to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) device: u8,
    pub(crate) generation: u32,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) kind: BucketKind,
    pub(crate) from: Backpointer,
}

/// A bucket that changed its state in a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) device: u8,
    pub(crate) bucket: u64,
    pub(crate) before: Alloc,
    pub(crate) after: Alloc,
}

/// Everything that `value` at `key` refers to.
pub(crate) fn references(
    key: Key,
    value: &[u8],
    node_bytes: u32,
    out: &mut Vec<Reference>,
) -> Result<(), FormatError> {
    let (tree, level, pos) = key;
    if level > 0 {
        node_references(tree, level, pos, &NodePointer::parse(value)?, node_bytes, out);
    } else if tree == Tree::Extents {
        for p in extent::pointers(pos, value)? {
            out.push(Reference {
                device: p.device,
                generation: p.generation,
                offset: p.offset_bytes,
                len: p.len_bytes,
                kind: BucketKind::User,
                from: Backpointer { tree, level, len: p.len_bytes, pos },
            });
        }
    }
    Ok(())
}

fn node_references(
    tree: Tree,
    level: u8,
    pos: Pos,
    pointer: &NodePointer,
    node_bytes: u32,
    out: &mut Vec<Reference>,
) {
    out.extend(pointer.places.iter().map(|p| Reference {
        device: p.device,
        generation: p.generation,
        offset: p.offset,
        len: node_bytes,
        kind: BucketKind::Btree,
        from: Backpointer { tree, level, len: node_bytes, pos },
    }));
}

/// What a root's pointer refers to.
pub(crate) fn root_references(tree: Tree, pointer: &NodePointer, node_bytes: u32, out: &mut Vec<Reference>) {
    node_references(tree, (pointer.level + 1) | Backpointer::ROOT, Pos::MAX, pointer, node_bytes, out);
}

/// Derives the space keys of a commit that will be in journal entry `seq`, and says which buckets change state.
pub(crate) fn derive(
    view: &mut View<'_>,
    roots: &[RootChange],
    seq: u64,
    geometry: &[Geometry],
    node_bytes: u32,
) -> Result<Vec<Transition>, Miss> {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    let mut inodes = 0;
    for (key, new) in view.updates() {
        let (tree, level, pos) = *key;
        if !(level > 0 || matches!(tree, Tree::Extents | Tree::Inodes)) {
            continue;
        }
        let old = view.before().get(tree, level, pos)?;
        if tree == Tree::Inodes && level == 0 {
            inodes += new.is_some() as i64 - old.is_some() as i64;
            continue;
        }
        let corrupt = |_| Miss::Corrupt(tree, pos);
        if let Some(old) = old {
            references(*key, old, node_bytes, &mut gone).map_err(corrupt)?;
        }
        if let Some(new) = new {
            references(*key, new, node_bytes, &mut come).map_err(corrupt)?;
        }
    }
    for change in roots {
        if let Some(old) = &change.old {
            root_references(change.tree, old, node_bytes, &mut gone);
        }
        if let Some(new) = &change.new {
            root_references(change.tree, new, node_bytes, &mut come);
        }
    }
    gone.retain(|g| match come.iter().position(|c| c == g) {
        Some(same) => {
            come.swap_remove(same);
            false
        }
        None => true,
    });
    if inodes != 0 {
        let usage = view.get(Tree::Accounting, PoolUsage::pos(), PoolUsage::parse)?;
        let mut usage = usage
            .transpose()
            .map_err(|_| Miss::Corrupt(Tree::Accounting, PoolUsage::pos()))?
            .unwrap_or_default();
        usage.inodes += inodes;
        view.put(Tree::Accounting, PoolUsage::pos(), &usage.to_bytes());
    }
    if gone.is_empty() && come.is_empty() {
        return Ok(Vec::new());
    }
    let mut deltas: BTreeMap<(u8, u64), Delta> = BTreeMap::new();
    for r in &gone {
        let delta = delta_of(&mut deltas, r, geometry)?;
        delta.bytes -= r.len as i64;
        delta.gone = true;
        drop_backpointer(view, r)?;
    }
    for r in &come {
        let delta = delta_of(&mut deltas, r, geometry)?;
        delta.bytes += r.len as i64;
        delta.come = Some((r.kind, r.generation));
        add_backpointer(view, r)?;
    }
    let mut usages = BTreeMap::new();
    let mut transitions = Vec::new();
    for ((device, bucket), delta) in deltas {
        let bytes = geometry[device as usize].bucket_bytes;
        transitions.extend(apply_delta(view, &mut usages, (device, bucket, bytes), &delta, seq)?);
    }
    for (device, usage) in usages {
        view.put(Tree::Accounting, DeviceUsage::pos(device), &usage.to_bytes());
    }
    Ok(transitions)
}

#[derive(Default)]
struct Delta {
    bytes: i64,
    gone: bool,
    come: Option<(BucketKind, u32)>,
}

fn delta_of<'d>(
    deltas: &'d mut BTreeMap<(u8, u64), Delta>,
    r: &Reference,
    geometry: &[Geometry],
) -> Result<&'d mut Delta, Miss> {
    let corrupt = Miss::Corrupt(r.from.tree, r.from.pos);
    let Some(bucket) = geometry.get(r.device as usize).and_then(|g| g.bucket_of(r.offset, r.len as u64))
    else {
        return Err(corrupt);
    };
    Ok(deltas.entry((r.device, bucket)).or_default())
}

fn usage_of<'u>(
    view: &View<'_>,
    usages: &'u mut BTreeMap<u8, DeviceUsage>,
    device: u8,
) -> Result<&'u mut DeviceUsage, Miss> {
    use alloc::collections::btree_map::Entry;
    match usages.entry(device) {
        Entry::Occupied(e) => Ok(e.into_mut()),
        Entry::Vacant(e) => {
            let pos = DeviceUsage::pos(device);
            let usage = view.get(Tree::Accounting, pos, DeviceUsage::parse)?;
            let usage = usage.transpose().map_err(|_| Miss::Corrupt(Tree::Accounting, pos))?;
            Ok(e.insert(usage.unwrap_or_default()))
        }
    }
}

/// Adds `bytes` to a bucket's live bytes and follows with its state. Says what changed if its state did.
fn apply_delta(
    view: &mut View<'_>,
    usages: &mut BTreeMap<u8, DeviceUsage>,
    (device, bucket, bucket_bytes): (u8, u64, u64),
    delta: &Delta,
    seq: u64,
) -> Result<Option<Transition>, Miss> {
    let pos = bucket_pos(device, bucket);
    let corrupt = || Miss::Corrupt(Tree::Alloc, pos);
    let before = view.get(Tree::Alloc, pos, Alloc::parse)?.transpose().map_err(|_| corrupt())?;
    let before = before.unwrap_or(Alloc::UNUSED);
    let mut after = before;
    after.live_bytes = before.live_bytes.checked_add_signed(delta.bytes).ok_or_else(corrupt)?;
    if before.kind == BucketKind::Free {
        let (kind, generation) = delta.come.ok_or_else(corrupt)?;
        // Nothing can be taken from a bucket that holds nothing.
        if generation != before.generation || delta.gone {
            return Err(corrupt());
        }
        after.kind = kind;
        after.seq_nonempty = seq;
        take_free(view, device, bucket)?;
    } else if delta.come.is_some_and(|(_, generation)| generation != before.generation) {
        return Err(corrupt());
    }
    if before.needs_discard() && !after.needs_discard() {
        view.delete(Tree::NeedDiscard, need_discard_pos(before.seq_empty, device, bucket));
    }
    if after.needs_discard() && !before.needs_discard() {
        after.seq_empty = seq;
        view.put(Tree::NeedDiscard, need_discard_pos(seq, device, bucket), &[]);
    }
    let listed = [&before, &after].map(|a| fragmented_pos(a, device, bucket, bucket_bytes));
    if listed[0] != listed[1] {
        listed[0].iter().for_each(|pos| view.delete(Tree::Lru, *pos));
        listed[1].iter().for_each(|pos| view.put(Tree::Lru, *pos, &[]));
    }
    view.put(Tree::Alloc, pos, &after.to_bytes());
    // The recount of a repair counts with the same function: a fault planted there would be made twice, and agree.
    let drifts = planted::is(Fault::CounterDrifts) && after.kind != BucketKind::Btree;
    let counted = if drifts { Alloc { live_bytes: before.live_bytes, ..after } } else { after };
    count(usage_of(view, usages, device)?, &before, &counted);
    let changed = before.kind != after.kind || before.needs_discard() != after.needs_discard();
    Ok(changed.then_some(Transition { device, bucket, before, after }))
}

/// Moves a bucket from one column of the counters to another.
pub(crate) fn count(usage: &mut DeviceUsage, before: &Alloc, after: &Alloc) {
    for (alloc, sign) in [(before, -1i64), (after, 1)] {
        if alloc.kind == BucketKind::Free {
            continue;
        }
        let btree = alloc.kind == BucketKind::Btree;
        let bytes = if btree { &mut usage.btree_bytes } else { &mut usage.data_bytes };
        *bytes = bytes.saturating_add(sign.saturating_mul(alloc.live_bytes as i64));
        let buckets = match (alloc.needs_discard(), btree) {
            (true, _) => &mut usage.discard_buckets,
            (_, true) => &mut usage.btree_buckets,
            _ => &mut usage.data_buckets,
        };
        *buckets = buckets.saturating_add(sign);
    }
}

/// Derives the updates that make an empty bucket free again, with a new generation.
pub(crate) fn free_bucket(view: &mut View<'_>, device: u8, bucket: u64) -> Result<Option<Transition>, Miss> {
    let pos = bucket_pos(device, bucket);
    let corrupt = || Miss::Corrupt(Tree::Alloc, pos);
    let before = view.get(Tree::Alloc, pos, Alloc::parse)?.transpose().map_err(|_| corrupt())?;
    let before = before.unwrap_or(Alloc::UNUSED);
    if !before.needs_discard() {
        return Ok(None);
    }
    let after = Alloc { generation: before.generation.wrapping_add(1), ..Alloc::UNUSED };
    view.delete(Tree::NeedDiscard, need_discard_pos(before.seq_empty, device, bucket));
    view.put(Tree::Alloc, pos, &after.to_bytes());
    put_free(view, device, bucket)?;
    let mut usages = BTreeMap::new();
    let usage = usage_of(view, &mut usages, device)?;
    count(usage, &before, &after);
    let bytes = usage.to_bytes();
    view.put(Tree::Accounting, DeviceUsage::pos(device), &bytes);
    Ok(Some(Transition { device, bucket, before, after }))
}

/// The free range at or after `bucket`: (first, last).
fn range_from(view: &View<'_>, device: u8, bucket: u64) -> Result<Option<(u64, u64)>, Miss> {
    let all = bucket_pos(device, bucket)..=Pos::new(device as u64, u64::MAX, u32::MAX);
    let Some((pos, value)) = view.first(Tree::Freespace, all)? else { return Ok(None) };
    let first = parse_free_range(pos, &value).map_err(|_| Miss::Corrupt(Tree::Freespace, pos))?;
    Ok(Some((first, pos.offset)))
}

fn take_free(view: &mut View<'_>, device: u8, bucket: u64) -> Result<(), Miss> {
    let Some((first, last)) = range_from(view, device, bucket)?.filter(|(first, _)| *first <= bucket) else {
        return Err(Miss::Corrupt(Tree::Freespace, bucket_pos(device, bucket)));
    };
    if bucket < last {
        view.put(Tree::Freespace, bucket_pos(device, last), &free_range_value(bucket + 1));
    } else {
        view.delete(Tree::Freespace, bucket_pos(device, last));
    }
    if first < bucket {
        view.put(Tree::Freespace, bucket_pos(device, bucket - 1), &free_range_value(first));
    }
    Ok(())
}

fn put_free(view: &mut View<'_>, device: u8, bucket: u64) -> Result<(), Miss> {
    if planted::is(Fault::FreeRangeLost) {
        return Ok(());
    }
    let (mut first, mut last) = (bucket, bucket);
    if let Some(before) = bucket.checked_sub(1) {
        let pos = bucket_pos(device, before);
        let value = view.get(Tree::Freespace, pos, |v| parse_free_range(pos, v))?;
        if let Some(start) = value.transpose().map_err(|_| Miss::Corrupt(Tree::Freespace, pos))? {
            first = start;
            view.delete(Tree::Freespace, pos);
        }
    }
    match range_from(view, device, bucket)? {
        Some((start, _)) if start <= bucket => {
            return Err(Miss::Corrupt(Tree::Freespace, bucket_pos(device, bucket)));
        }
        Some((start, end)) if start == bucket + 1 => last = end,
        _ => {}
    }
    view.put(Tree::Freespace, bucket_pos(device, last), &free_range_value(first));
    Ok(())
}

fn add_backpointer(view: &mut View<'_>, r: &Reference) -> Result<(), Miss> {
    for n in 0..u32::MAX {
        let pos = Pos::new(r.device as u64, r.offset, n);
        if view.get(Tree::Backpointers, pos, |_| ())?.is_none() {
            view.put(Tree::Backpointers, pos, &r.from.to_bytes());
            return Ok(());
        }
    }
    Err(Miss::Corrupt(Tree::Backpointers, Pos::new(r.device as u64, r.offset, 0)))
}

fn drop_backpointer(view: &mut View<'_>, r: &Reference) -> Result<(), Miss> {
    if planted::is(Fault::BackpointerForgotten) {
        return Ok(());
    }
    let range = Pos::new(r.device as u64, r.offset, 0)..=Pos::new(r.device as u64, r.offset, u32::MAX);
    let mut from = *range.start();
    while let Some((pos, value)) = view.first(Tree::Backpointers, from..=*range.end())? {
        if Backpointer::parse(&value) == Ok(r.from) {
            view.delete(Tree::Backpointers, pos);
            return Ok(());
        }
        match pos.successor() {
            Some(next) => from = next,
            None => break,
        }
    }
    Err(Miss::Corrupt(Tree::Backpointers, *range.start()))
}
