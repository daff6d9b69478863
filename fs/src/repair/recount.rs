//! Recounts what derives from keys: buckets, free ranges, backpointers, counters.

use super::walk::each_key;
use super::{Check, FindingKind, Repair};
use crate::engine::commit::Proposal;
use crate::journal::Class as JournalClass;
use crate::space::triggers::{self, Reference};
use crate::tx::Value;
use crate::vfs::FsResult;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;
use moraine_format::space::{
    Alloc, Backpointer, BucketKind, DeviceUsage, PoolUsage, bucket_pos, fragmented_bucket, fragmented_pos,
    free_range_value, need_discard_bucket, need_discard_pos, parse_free_range,
};
use moraine_format::{Pos, Tree};

/// Corrections committed at a time.
const REPAIR_BATCH: usize = 200;

#[derive(Default)]
struct Counted {
    live: u64,
    kind: Option<BucketKind>,
    generation: u32,
}

/// What keys refer to, as far as it was read.
#[derive(Default)]
struct Truth {
    buckets: BTreeMap<(u8, u64), Counted>,
    /// Places referred to: (device, offset) to length and referrer.
    places: BTreeMap<(u8, u64), Vec<Backpointer>>,
    inodes: i64,
}

/// Corrections to derived keys.
type Corrections = Vec<((Tree, Pos), Option<Value>)>;

pub(super) async fn recount(check: &mut Check<'_>) -> FsResult<()> {
    let truth = gather(check).await?;
    let mut fixes = Corrections::new();
    let allocs = buckets(check, &truth, &mut fixes).await?;
    free_ranges(check, &allocs, &mut fixes).await?;
    need_discard(check, &allocs, &mut fixes).await?;
    fragmented(check, &allocs, &mut fixes).await?;
    backpointers(check, &truth, &mut fixes).await?;
    counters(check, &allocs, &truth, &mut fixes)?;
    if check.repair == Repair::Yes {
        // Commits need the journal to move.
        check.engine.resume();
        for batch in fixes.chunks(REPAIR_BATCH) {
            commit(check, batch).await?;
        }
    }
    Ok(())
}

async fn commit(check: &Check<'_>, batch: &[((Tree, Pos), Option<Value>)]) -> FsResult<()> {
    let propose = |_: &crate::engine::State| {
        let updates = batch.iter().map(|((tree, pos), value)| ((*tree, 0, *pos), value.clone())).collect();
        Ok(Some((Proposal { updates, ..Proposal::default() }, ())))
    };
    check.engine.inner.commit(JournalClass::Interior, propose, |_, _, _, _| ()).await?;
    Ok(())
}

async fn gather(check: &mut Check<'_>) -> FsResult<Truth> {
    let inner = check.engine.inner.clone();
    let node_bytes = inner.state.borrow().table.node_bytes as u32;
    let mut truth = Truth::default();
    let mut found: Vec<Reference> = Vec::new();
    for tree in Tree::ALL {
        let root = {
            let state = inner.state.borrow();
            let root = state.table.root(*tree);
            (root.pointer.clone(), root.level)
        };
        if let Some(pointer) = &root.0 {
            triggers::root_references(*tree, pointer, node_bytes, &mut found);
        }
        for level in 0..=root.1 {
            if level == 0 && !matches!(tree, Tree::Extents | Tree::Inodes) {
                continue;
            }
            each_key(check, *tree, level, |check, pos, value| {
                if *tree == Tree::Inodes && level == 0 {
                    truth.inodes += 1;
                } else if let Err(e) =
                    triggers::references((*tree, level, pos), value, node_bytes, &mut found)
                {
                    check.report(
                        FindingKind::ValueUnreadable,
                        format!("{}/{level} {pos}: {e}", tree.name()),
                        false,
                    );
                }
                for r in found.drain(..) {
                    note(check, &mut truth, &r);
                }
            })
            .await?;
        }
    }
    for r in found {
        note(check, &mut truth, &r);
    }
    overlaps(check, &truth);
    Ok(truth)
}

fn note(check: &mut Check<'_>, truth: &mut Truth, r: &Reference) {
    let text = || {
        format!(
            "{}/{} {} to {}:{}+{}",
            r.from.tree.name(),
            r.from.level & !Backpointer::ROOT,
            r.from.pos,
            r.device,
            r.offset,
            r.len
        )
    };
    let geometry = check.engine.inner.geometry.get(r.device as usize);
    let Some(bucket) = geometry.and_then(|g| g.bucket_of(r.offset, r.len as u64)) else {
        check.report(FindingKind::ReferenceOutside, text(), false);
        return;
    };
    let counted = truth.buckets.entry((r.device, bucket)).or_default();
    if counted.kind.is_some() && counted.generation != r.generation {
        check.report(FindingKind::GenerationWrong, text(), false);
        return;
    }
    counted.live += r.len as u64;
    counted.kind = Some(r.kind);
    counted.generation = r.generation;
    truth.places.entry((r.device, r.offset)).or_default().push(r.from);
}

fn overlaps(check: &mut Check<'_>, truth: &Truth) {
    let mut end = (0u8, 0u64);
    for ((device, offset), from) in &truth.places {
        let shared = from.len() > 1;
        if shared || (*device == end.0 && *offset < end.1) {
            let text = format!("{device}:{offset}, {} {}", from[0].tree.name(), from[0].pos);
            check.report(FindingKind::ReferencesOverlap, text, false);
        }
        let longest = from.iter().map(|b| b.len as u64).max().unwrap_or(0);
        end = (*device, (offset + longest).max(if end.0 == *device { end.1 } else { 0 }));
    }
}

/// Compares alloc keys; returns what each bucket with a key should be.
async fn buckets(
    check: &mut Check<'_>,
    truth: &Truth,
    fixes: &mut Corrections,
) -> FsResult<BTreeMap<(u8, u64), Alloc>> {
    let repair = check.repair == Repair::Yes;
    let mut allocs: BTreeMap<(u8, u64), Alloc> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    each_key(check, Tree::Alloc, 0, |check, pos, value| {
        let at = (pos.inode as u8, pos.offset);
        let have = match Alloc::parse(value) {
            Ok(alloc) => alloc,
            Err(e) => {
                check.report(FindingKind::ValueUnreadable, format!("alloc {pos}: {e}"), false);
                return;
            }
        };
        seen.insert(at);
        let counted = truth.buckets.get(&at);
        let mut should = Alloc { live_bytes: counted.map_or(0, |c| c.live), ..have };
        if let Some(counted) = counted {
            if have.kind == BucketKind::Free {
                should.kind = counted.kind.unwrap_or(BucketKind::User);
            }
            if have.generation != counted.generation {
                should.generation = counted.generation;
                check.report(FindingKind::GenerationWrong, format!("bucket {}:{}", at.0, at.1), repair);
            }
        }
        if should != have {
            let text = format!(
                "bucket {}:{}: {} {} bytes, counted {}",
                at.0,
                at.1,
                have.kind.name(),
                have.live_bytes,
                should.live_bytes
            );
            check.report(FindingKind::AllocWrong, text, repair);
            fixes.push(((Tree::Alloc, pos), Some(should.to_bytes().as_slice().into())));
        }
        allocs.insert(at, should);
    })
    .await?;
    for (at, counted) in truth.buckets.iter().filter(|(at, _)| !seen.contains(*at)) {
        let should = Alloc {
            kind: counted.kind.unwrap_or(BucketKind::User),
            generation: counted.generation,
            live_bytes: counted.live,
            ..Alloc::UNUSED
        };
        check.report(
            FindingKind::AllocWrong,
            format!("bucket {}:{}: no key, counted {}", at.0, at.1, counted.live),
            repair,
        );
        fixes.push(((Tree::Alloc, bucket_pos(at.0, at.1)), Some(should.to_bytes().as_slice().into())));
        allocs.insert(*at, should);
    }
    Ok(allocs)
}

async fn free_ranges(
    check: &mut Check<'_>,
    allocs: &BTreeMap<(u8, u64), Alloc>,
    fixes: &mut Corrections,
) -> FsResult<()> {
    let repair = check.repair == Repair::Yes;
    let mut have: BTreeMap<(u8, u64), u64> = BTreeMap::new();
    each_key(check, Tree::Freespace, 0, |check, pos, value| match parse_free_range(pos, value) {
        Ok(first) => {
            have.insert((pos.inode as u8, pos.offset), first);
        }
        Err(e) => check.report(FindingKind::ValueUnreadable, format!("freespace {pos}: {e}"), false),
    })
    .await?;
    let mut should: BTreeMap<(u8, u64), u64> = BTreeMap::new();
    for (device, ranges) in check.engine.inner.usable_ranges() {
        for (first, end) in ranges {
            let mut from = first;
            let used = allocs
                .range((device, first)..(device, end))
                .filter(|(_, a)| a.kind != BucketKind::Free)
                .map(|((_, b), _)| *b);
            for bucket in used.chain([end]) {
                if from < bucket {
                    should.insert((device, bucket - 1), from);
                }
                from = bucket + 1;
            }
        }
    }
    for (at, first) in &have {
        if should.get(at) != Some(first) {
            check.report(FindingKind::FreeRangeWrong, format!("{}:{first}..={}", at.0, at.1), repair);
            fixes.push(((Tree::Freespace, bucket_pos(at.0, at.1)), None));
        }
    }
    for (at, first) in &should {
        if have.get(at) != Some(first) {
            check.report(
                FindingKind::FreeRangeWrong,
                format!("{}:{first}..={} is missing", at.0, at.1),
                repair,
            );
            fixes.push((
                (Tree::Freespace, bucket_pos(at.0, at.1)),
                Some(free_range_value(*first).as_slice().into()),
            ));
        }
    }
    Ok(())
}

async fn need_discard(
    check: &mut Check<'_>,
    allocs: &BTreeMap<(u8, u64), Alloc>,
    fixes: &mut Corrections,
) -> FsResult<()> {
    let repair = check.repair == Repair::Yes;
    let mut have = BTreeSet::new();
    each_key(check, Tree::NeedDiscard, 0, |check, pos, _| {
        let at = need_discard_bucket(pos);
        let right = allocs.get(&at).is_some_and(|a| a.needs_discard() && a.seq_empty == pos.inode);
        if right {
            have.insert(at);
        } else {
            check.report(FindingKind::NeedDiscardWrong, format!("stray key {pos}"), repair);
            fixes.push(((Tree::NeedDiscard, pos), None));
        }
    })
    .await?;
    for (at, alloc) in allocs.iter().filter(|(at, a)| a.needs_discard() && !have.contains(*at)) {
        check.report(FindingKind::NeedDiscardWrong, format!("bucket {}:{} has none", at.0, at.1), repair);
        let pos = need_discard_pos(alloc.seq_empty, at.0, at.1);
        fixes.push(((Tree::NeedDiscard, pos), Some([].as_slice().into())));
    }
    Ok(())
}

async fn fragmented(
    check: &mut Check<'_>,
    allocs: &BTreeMap<(u8, u64), Alloc>,
    fixes: &mut Corrections,
) -> FsResult<()> {
    let repair = check.repair == Repair::Yes;
    let geometry = check.engine.inner.geometry.clone();
    let place = |at: (u8, u64), alloc: &Alloc| {
        fragmented_pos(alloc, at.0, at.1, geometry.get(at.0 as usize).map_or(1, |g| g.bucket_bytes))
    };
    let mut have = BTreeSet::new();
    each_key(check, Tree::Lru, 0, |check, pos, _| {
        let at = fragmented_bucket(pos);
        if allocs.get(&at).and_then(|alloc| place(at, alloc)) == Some(pos) {
            have.insert(at);
        } else {
            check.report(FindingKind::FragmentedWrong, format!("stray key {pos}"), repair);
            fixes.push(((Tree::Lru, pos), None));
        }
    })
    .await?;
    for (at, alloc) in allocs.iter().filter(|(at, _)| !have.contains(*at)) {
        if let Some(pos) = place(*at, alloc) {
            check.report(
                FindingKind::FragmentedWrong,
                format!("bucket {}:{} is missing", at.0, at.1),
                repair,
            );
            fixes.push(((Tree::Lru, pos), Some([].as_slice().into())));
        }
    }
    Ok(())
}

async fn backpointers(check: &mut Check<'_>, truth: &Truth, fixes: &mut Corrections) -> FsResult<()> {
    let repair = check.repair == Repair::Yes;
    let mut have: BTreeMap<(u8, u64), Vec<Backpointer>> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    each_key(check, Tree::Backpointers, 0, |check, pos, value| {
        let at = (pos.inode as u8, pos.offset);
        let wanted = truth.places.get(&at);
        match Backpointer::parse(value) {
            Ok(b)
                if wanted.is_some_and(|w| w.contains(&b))
                    && !have.get(&at).is_some_and(|h| h.contains(&b)) =>
            {
                have.entry(at).or_default().push(b);
                taken.insert(pos);
            }
            _ => {
                check.report(FindingKind::BackpointerStray, format!("{pos}"), repair);
                fixes.push(((Tree::Backpointers, pos), None));
            }
        }
    })
    .await?;
    for (at, wanted) in &truth.places {
        for b in wanted.iter().filter(|b| !have.get(at).is_some_and(|h| h.contains(b))) {
            check.report(
                FindingKind::BackpointerMissing,
                format!("{}:{} of {} {}", at.0, at.1, b.tree.name(), b.pos),
                repair,
            );
            let pos = (0..)
                .map(|n| Pos::new(at.0 as u64, at.1, n))
                .find(|p| taken.insert(*p))
                .expect("a free number");
            fixes.push(((Tree::Backpointers, pos), Some(b.to_bytes().as_slice().into())));
        }
    }
    Ok(())
}

fn counters(
    check: &mut Check<'_>,
    allocs: &BTreeMap<(u8, u64), Alloc>,
    truth: &Truth,
    fixes: &mut Corrections,
) -> FsResult<()> {
    let repair = check.repair == Repair::Yes;
    let inner = check.engine.inner.clone();
    for device in 0..inner.geometry.len() as u8 {
        let mut should = DeviceUsage::default();
        for (_, alloc) in allocs.range((device, 0)..=(device, u64::MAX)) {
            triggers::count(&mut should, &Alloc::UNUSED, alloc);
        }
        let pos = DeviceUsage::pos(device);
        let have =
            inner.state.borrow().table.get(Tree::Accounting, 0, pos).ok().flatten().map(DeviceUsage::parse);
        let have = have.and_then(Result::ok).unwrap_or_default();
        if have != should {
            check.report(
                FindingKind::UsageWrong,
                format!("device {device}: {have:?}, counted {should:?}"),
                repair,
            );
            fixes.push(((Tree::Accounting, pos), Some(should.to_bytes().as_slice().into())));
            if repair {
                inner.state.borrow_mut().buckets.set_usage(device, should);
            }
        }
    }
    let pos = PoolUsage::pos();
    let have = inner.state.borrow().table.get(Tree::Accounting, 0, pos).ok().flatten().map(PoolUsage::parse);
    let have = have.and_then(Result::ok).unwrap_or_default();
    if have.inodes != truth.inodes {
        check.report(
            FindingKind::PoolUsageWrong,
            format!("{} inodes, counted {}", have.inodes, truth.inodes),
            repair,
        );
        fixes.push((
            (Tree::Accounting, pos),
            Some(PoolUsage { inodes: truth.inodes }.to_bytes().as_slice().into()),
        ));
    }
    Ok(())
}
