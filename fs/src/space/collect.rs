//! The moving collector: empties buckets that hold little, so that whole buckets become free.
//!
//! It takes the emptiest bucket, follows its backpointers to the keys that refer to it, and moves what each refers to
//! into a bucket of moved data: read, verify, write, then replace the pointer in a commit that only succeeds if the key
//! is still what was read. Whoever overwrites a key meanwhile wins, and the copy is left to be collected.

use crate::btree;
use crate::engine::{DataKind, Engine, Inner, Mode, Placed};
use crate::tx::{Class, Value};
use crate::vfs::{FsError, FsResult};
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_format::extent::{Content, Extent, Pointer};
use moraine_format::space::{Backpointer, fragmented_bucket, fragmented_range};
use moraine_format::{Pos, Tree};
use moraine_platform::{BLOCK_SIZE, debug, warn};

/// Buckets looked at to find one that can be emptied.
const CANDIDATES_MAX: usize = 64;

/// Empties one bucket; says whether anything was gained by it.
async fn collect_one(engine: &Rc<Inner>) -> FsResult<bool> {
    if engine.mode.get() != Mode::Serving {
        return Ok(false);
    }
    let _turn = engine.collecting.take(1).await;
    let Some((device, bucket)) = victim(engine).await? else { return Ok(false) };
    let bytes = engine.geometry[device as usize].bucket_bytes;
    let (start, end) = (bucket * bytes, (bucket + 1) * bytes);
    let handle = Engine { inner: engine.clone() };
    let (mut moved, mut stuck) = (0u64, false);
    let mut from = Some(Pos::new(device as u64, start, 0));
    while let Some(at) = from {
        let range = at..=Pos::new(device as u64, end - 1, u32::MAX);
        let Some((pos, value)) = next(engine, Tree::Backpointers, range).await? else { break };
        from = pos.successor();
        let back = Backpointer::parse(&value).map_err(|_| FsError::Corrupt)?;
        match move_one(&handle, device, pos.offset, &back).await? {
            Moved::Bytes(n) => moved += n,
            Moved::Changed => {}
            Moved::Impossible => stuck = true,
        }
    }
    debug!("fs", "collected bucket {device}:{bucket}: {moved} bytes moved");
    if stuck {
        engine.uncollectable.borrow_mut().insert((device, bucket));
    }
    Ok(!stuck)
}

/// As [`collect_one`]; that there is no room to move anything to is no failure.
pub(crate) async fn collect_if_room(engine: &Rc<Inner>) -> FsResult<bool> {
    match collect_one(engine).await {
        Err(FsError::NoSpace) => Ok(false),
        result => result,
    }
}

enum Moved {
    Bytes(u64),
    /// Somebody changed the key meanwhile: nothing there refers to the bucket any more, or will be seen next time.
    Changed,
    /// What it refers to cannot be read or verified.
    Impossible,
}

/// The emptiest bucket that can be emptied.
async fn victim(engine: &Rc<Inner>) -> FsResult<Option<(u8, u64)>> {
    let mut range = fragmented_range();
    for _ in 0..CANDIDATES_MAX {
        let Some((pos, _)) = next(engine, Tree::Lru, range.clone()).await? else { return Ok(None) };
        let at = fragmented_bucket(pos);
        let known = engine.geometry.get(at.0 as usize).is_some_and(|g| at.1 < g.buckets);
        let held = engine.state.borrow().buckets.is_held(at.0, at.1);
        if known && !held && !engine.uncollectable.borrow().contains(&at) {
            return Ok(Some(at));
        }
        match pos.successor() {
            Some(next) => range = next..=*range.end(),
            None => return Ok(None),
        }
    }
    Ok(None)
}

async fn next(
    engine: &Inner,
    tree: Tree,
    range: core::ops::RangeInclusive<Pos>,
) -> FsResult<Option<(Pos, Value)>> {
    loop {
        let miss = match engine.state.borrow().table.first(tree, 0, &range) {
            Ok(found) => return Ok(found.map(|(pos, value)| (pos, value.into()))),
            Err(miss) => miss,
        };
        btree::load(engine, miss).await?;
    }
}

/// Moves what one key has at `offset`.
async fn move_one(engine: &Engine, device: u8, offset: u64, back: &Backpointer) -> FsResult<Moved> {
    if back.tree != Tree::Extents || back.level != 0 {
        return Ok(Moved::Impossible);
    }
    // The read below holds the bucket from the step in which the key was found.
    let looked = loop {
        let miss = match engine.inner.state.borrow().table.get(back.tree, 0, back.pos) {
            Ok(value) => break value.map(Value::from),
            Err(miss) => miss,
        };
        btree::load(&engine.inner, miss).await?;
    };
    let Some(value) = looked else { return Ok(Moved::Changed) };
    let extent = Extent::parse(back.pos, &value).map_err(|_| FsError::Corrupt)?;
    let Content::Stored(stored) = &extent.content else { return Ok(Moved::Changed) };
    let Some(which) = stored.pointers.iter().position(|p| p.device == device && p.offset_bytes == offset)
    else {
        return Ok(Moved::Changed);
    };
    let pointer = stored.pointers[which];
    let place = Placed { device, generation: pointer.generation, offset, len: pointer.len_bytes };
    let data = match engine.read_data(place, 0, place.len).await {
        Ok(data) => data,
        Err(FsError::NoMemory) => return Err(FsError::NoMemory),
        Err(_) => return Ok(Moved::Impossible),
    };
    let good =
        data.chunks(BLOCK_SIZE).zip(&stored.checksums).all(|(b, sum)| moraine_accel::crc32c(b) == *sum);
    if !good {
        warn!("fs", "the collector leaves damaged content at {device}:{offset} where it is: run fsck");
        return Ok(Moved::Impossible);
    }
    let written = engine.write_unreserved(DataKind::Moved, data).await?;
    engine.make_data_durable(core::iter::once(&written.dep)).await?;
    let parts = divide(&extent, which, &written.places);
    let key = back.pos;
    let (changed, _) = engine
        .transact(Class::Move, async |tx| {
            if tx.get(Tree::Extents, key).await?.as_deref() != Some(&*value) {
                return Ok(true);
            }
            for part in &parts {
                tx.put(Tree::Extents, Pos::new(key.inode, part.end, key.snapshot), part.to_value());
            }
            tx.data_written(written.dep.clone());
            Ok(false)
        })
        .await?;
    Ok(if changed { Moved::Changed } else { Moved::Bytes(place.len as u64) })
}

/// The extent with its copy `which` at the new places: one extent for each of them.
fn divide(extent: &Extent, which: usize, places: &[Placed]) -> Vec<Extent> {
    let mut start = extent.start;
    let part = |place: &Placed| {
        let mut part = extent.cut(start, start + place.len as u64);
        start = part.end;
        if let Content::Stored(stored) = &mut part.content {
            stored.pointers[which] = Pointer {
                device: place.device,
                generation: place.generation,
                offset_bytes: place.offset,
                len_bytes: place.len,
            };
        }
        part
    };
    places.iter().map(part).collect()
}
