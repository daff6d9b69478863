//! From empty to free: a bucket is discarded and may be claimed again once the commit that emptied it is durable and
//! nobody reads or writes in it.

use crate::btree::{self, Miss, Table, View};
use crate::engine::commit::{Obstacle, Proposal};
use crate::engine::{Inner, Mode, State};
use crate::journal::Class as JournalClass;
use crate::planted::{self, Fault};
use crate::space::triggers;
use crate::vfs::FsResult;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_format::space::{Alloc, bucket_pos, need_discard_bucket};
use moraine_format::{Pos, Tree};
use moraine_platform::debug;

/// Buckets freed in one commit.
const BATCH_MAX: usize = 32;

/// Frees what can be freed now and says how many buckets that was.
pub(crate) async fn free_empty_buckets(engine: &Rc<Inner>) -> FsResult<usize> {
    if engine.mode.get() != Mode::Serving {
        return Ok(0);
    }
    let candidates = candidates(engine).await?;
    if candidates.is_empty() {
        return Ok(0);
    }
    // Held while their discard is under way, so that nobody else takes them up.
    let holds: Vec<_> = candidates.iter().map(|(device, bucket)| engine.hold(*device, *bucket)).collect();
    for (device, bucket) in &candidates {
        let bytes = engine.geometry[*device as usize].bucket_bytes;
        if let Err(e) = engine.devices.discard(*device, bucket * bytes, bytes).await {
            // A discard is advice: the bucket is free all the same.
            debug!("fs", "device {device}: discard of bucket {bucket}: {e}");
        }
    }
    drop(holds);
    let mut freed = 0;
    for (device, bucket) in candidates {
        let done = engine
            .commit_derived(JournalClass::Interior, |state: &State| {
                if state.buckets.is_held(device, bucket) {
                    return Ok(None);
                }
                let mut view = View::new(&state.table, BTreeMap::new());
                let transition = triggers::free_bucket(&mut view, device, bucket).map_err(Obstacle::from)?;
                let updates = view.into_updates();
                Ok(transition.map(|t| (Proposal { updates, ..Proposal::default() }, t)))
            })
            .await?;
        freed += usize::from(done);
    }
    if freed > 0 {
        engine.buckets_changed.notify();
    }
    Ok(freed)
}

/// Whether a bucket's key says that it waits for its discard.
fn is_empty(table: &Table, device: u8, bucket: u64) -> Result<bool, Miss> {
    let value = table.get(Tree::Alloc, 0, bucket_pos(device, bucket))?;
    Ok(value.is_some_and(|value| Alloc::parse(value).is_ok_and(|alloc| alloc.needs_discard())))
}

/// Buckets whose emptying is durable and which nobody holds.
async fn candidates(engine: &Rc<Inner>) -> FsResult<Vec<(u8, u64)>> {
    let durable =
        if planted::is(Fault::BucketReusedEarly) { u64::MAX } else { engine.journal.flushed_seq().0 };
    let mut found = Vec::new();
    let mut from = Pos::MIN;
    loop {
        let step = {
            let state = engine.state.borrow();
            let range = from..=Pos::new(durable, u64::MAX, u32::MAX);
            match state.table.first(Tree::NeedDiscard, 0, &range) {
                Ok(Some((pos, _))) => {
                    let (device, bucket) = need_discard_bucket(pos);
                    let known = engine.geometry.get(device as usize).is_some_and(|g| bucket < g.buckets);
                    let may = known && state.buckets.may_be_freed((device, bucket), pos.inode, durable);
                    // What the bucket's own key denies is a trace of damage: what is discarded might be in use.
                    let empty = if may { is_empty(&state.table, device, bucket) } else { Ok(false) };
                    empty.map(|empty| {
                        if empty {
                            found.push((device, bucket));
                        }
                        pos.successor()
                    })
                }
                Ok(None) => Ok(None),
                Err(miss) => Err(miss),
            }
        };
        match step {
            Ok(Some(next)) if found.len() < BATCH_MAX => from = next,
            Ok(_) => return Ok(found),
            Err(miss) => btree::load(engine, miss).await?,
        }
    }
}
