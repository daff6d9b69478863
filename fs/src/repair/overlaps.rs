//! No two keys refer to the same bytes, and all that refer to a bucket know it by the same generation.
//!
//! Content is verified by now, so when two extents claim the same bytes both say the truth about them: the second gets a
//! copy of its own.

use super::recount::{Truth, Window, gather};
use super::{Check, FindingKind};
use crate::btree;
use crate::engine::{DataKind, Placed};
use crate::space::triggers::Reference;
use crate::tx::Value;
use crate::vfs::FsResult;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use moraine_format::Tree;
use moraine_format::extent::{Content, Extent, Pointer};
use moraine_format::node::NodePointer;
use moraine_format::space::Backpointer;
use moraine_platform::BLOCK_SIZE;
use smallvec::smallvec;

pub(super) async fn check(check: &mut Check<'_>, windows: &[Window]) -> FsResult<()> {
    let mut told = false;
    for window in windows {
        let truth = gather(check, window, |check, r| {
            if !told && !check.repairs() && r.from.level > 0 {
                check.found(FindingKind::ReferenceOutside, text(r));
            }
        })
        .await?;
        told = true;
        for r in generations(&truth, check, window) {
            check.found(FindingKind::GenerationWrong, text(&r));
            let bytes = check.engine.inner.geometry[r.device as usize].bucket_bytes;
            let generation = truth.buckets.get(&(r.offset / bytes)).map_or(0, |c| c.generation);
            set_generation(check, &r, generation).await?;
        }
        for r in doubles(&truth) {
            check.found(FindingKind::ReferencesOverlap, text(&r));
            if check.repairs() && r.from.level == 0 {
                copy(check, &r).await?;
            }
        }
    }
    Ok(())
}

fn text(r: &Reference) -> String {
    let level = r.from.level & !Backpointer::ROOT;
    format!("{}/{level} {} to {}:{}+{}", r.from.tree.name(), r.from.pos, r.device, r.offset, r.len)
}

/// References that know their bucket by an older generation than others do.
fn generations(truth: &Truth, check: &Check<'_>, window: &Window) -> Vec<Reference> {
    let bytes = check.engine.inner.geometry[window.device as usize].bucket_bytes;
    let off =
        |r: &&Reference| truth.buckets.get(&(r.offset / bytes)).is_some_and(|c| c.generation != r.generation);
    truth.places.values().flatten().filter(off).copied().collect()
}

/// References to bytes that one before refers to.
fn doubles(truth: &Truth) -> Vec<Reference> {
    let (mut doubles, mut end) = (Vec::new(), 0);
    for (offset, refs) in &truth.places {
        // A node stays where it is; content can move.
        let mut refs: Vec<&Reference> = refs.iter().collect();
        refs.sort_by_key(|r| (r.from.level == 0, r.from.tree, r.from.pos));
        for r in refs {
            if *offset < end {
                doubles.push(*r);
            }
            end = end.max(offset + r.len as u64);
        }
    }
    doubles
}

async fn set_generation(check: &mut Check<'_>, r: &Reference, generation: u32) -> FsResult<()> {
    if !check.repairs() || r.from.level > 0 {
        return check.set_node_generation(r, generation).await;
    }
    let at = r.from.pos;
    let Some(value) = check.get(Tree::Extents, at).await?.value() else { return Ok(()) };
    let Ok(mut extent) = Extent::parse(at, &value) else { return Ok(()) };
    if let Content::Stored(stored) = &mut extent.content {
        for p in stored.pointers.iter_mut().filter(|p| (p.device, p.offset_bytes) == (r.device, r.offset)) {
            p.generation = generation;
        }
    }
    check.set(Tree::Extents, at, Some(extent.to_value())).await
}

/// Gives an extent a copy of its bytes.
async fn copy(check: &mut Check<'_>, r: &Reference) -> FsResult<()> {
    let at = r.from.pos;
    let Some(value) = check.get(Tree::Extents, at).await?.value() else { return Ok(()) };
    let Ok(extent) = Extent::parse(at, &value) else { return Ok(()) };
    let Content::Stored(stored) = &extent.content else { return Ok(()) };
    let place = Placed { device: r.device, generation: r.generation, offset: r.offset, len: r.len };
    check.begin_mending().await?;
    let bytes = check.engine.read_data(place, 0, place.len).await?;
    check.engine.resume();
    let written = check.engine.write_unreserved(DataKind::Moved, bytes).await;
    check.engine.pause().await;
    let written = written?;
    let inner = check.engine.inner.clone();
    let deps = written.dep.0.deps.clone();
    inner.devices.flush_covering(&deps).await.map_err(|_| crate::vfs::FsError::DeviceWrite)?;
    let (mut changes, mut from) = (Vec::new(), extent.start);
    for place in &written.places {
        let end = from + place.len as u64;
        let mut part = extent.cut(from, end);
        if let Content::Stored(cut) = &mut part.content {
            cut.pointers = smallvec![Pointer {
                device: place.device,
                generation: place.generation,
                offset_bytes: place.offset,
                len_bytes: place.len,
            }];
        }
        changes.push((
            (Tree::Extents, crate::namespace::pos(at.inode, end)),
            Some(Value::from(part.to_value())),
        ));
        from = end;
    }
    debug_assert!(stored.checksums.len() * BLOCK_SIZE == r.len as usize, "all of the extent was copied");
    check.change(&changes).await
}

impl Check<'_> {
    /// Corrects the generation in the pointer to a node.
    async fn set_node_generation(&mut self, r: &Reference, generation: u32) -> FsResult<()> {
        if !self.repairs() || r.from.level == 0 {
            return Ok(());
        }
        let mend = |pointer: &mut NodePointer| {
            for p in pointer.places.iter_mut().filter(|p| (p.device, p.offset) == (r.device, r.offset)) {
                p.generation = generation;
            }
        };
        let (inner, level) = (self.engine.inner.clone(), r.from.level & !Backpointer::ROOT);
        self.begin_mending().await?;
        btree::edit_pointer(&inner, (r.from.tree, level, r.from.pos), mend).await
    }
}
