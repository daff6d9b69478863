//! The background of the engine: writing nodes back before the journal or memory runs out, and freeing empty buckets.

use super::commit::Proposal;
use super::{Inner, State};
use crate::btree;
use crate::journal::{Class as JournalClass, Pressure};
use crate::space::{collect, discard};
use crate::vfs::{FsError, FsResult};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use moraine_format::Tree;
use moraine_format::journal::Seq;
use moraine_platform::error;

/// How long background work waits when there is no memory for it.
const MEMORY_RETRY: Duration = Duration::from_millis(5);
/// How often a pool that is closed waits for memory before it gives up: 10 s.
const MEMORY_WAITS_MAX: u32 = 2000;
/// Nodes written back at a time.
const BATCH: usize = 16;
/// The same when the journal is nearly full: what one batch puts into it must fit.
const BATCH_TIGHT: usize = 4;
/// Rounds without progress after which an unmount leaves the rest to the journal.
const FRUITLESS_MAX: usize = 8;
/// From this fill of the journal on it is, in thousandths.
const TIGHT_PERMILLE: u64 = 930;

/// Starts the background tasks.
pub(super) fn start(engine: &Rc<Inner>) {
    engine.background.set(2);
    let inner = engine.clone();
    engine.platform.spawn.spawn("cleaner", Box::pin(async move { run(&inner, clean(&inner)).await }));
    let inner = engine.clone();
    engine.platform.spawn.spawn("discard", Box::pin(async move { run(&inner, discard_empty(&inner)).await }));
}

/// Runs a background task to its end; a failure of it stops the engine, since without it the engine would hang.
async fn run(engine: &Rc<Inner>, task: impl Future<Output = FsResult<()>>) {
    if let Err(e) = task.await
        && !engine.closing.get()
    {
        engine.stop(&alloc::format!("background work failed: {e}"));
    }
    engine.background.set(engine.background.get() - 1);
    engine.background_ended.notify();
}

/// Counts a step of background work as under way. Want of memory is no failure: it passes, and then the step is done.
async fn busy<T: Default>(engine: &Inner, step: impl Future<Output = FsResult<T>>) -> FsResult<T> {
    engine.busy.set(engine.busy.get() + 1);
    let result = step.await;
    engine.busy.set(engine.busy.get() - 1);
    engine.background_ended.notify();
    match result {
        Err(FsError::NoMemory) => {
            engine.memory_short.notify();
            engine.platform.clock.sleep(MEMORY_RETRY).await;
            engine.cleaner_wanted.notify();
            engine.buckets_changed.notify();
            Ok(T::default())
        }
        result => result,
    }
}

async fn clean(engine: &Rc<Inner>) -> FsResult<()> {
    while !engine.closing.get() && !engine.state.borrow().table.overlay.is_empty() {
        busy(engine, fold_part(engine)).await?;
    }
    loop {
        let wanted = engine.cleaner_wanted.ticket();
        let pressed = engine.journal.pressure_changed().ticket();
        if engine.closing.get() || engine.check_running().is_err() {
            return Ok(());
        }
        let idle = engine.paused.get() || !busy(engine, step(engine)).await?;
        if idle {
            either(engine.cleaner_wanted.after(wanted), engine.journal.pressure_changed().after(pressed))
                .await;
        }
    }
}

/// Writes back one batch if anything asks for it; says whether something was done.
async fn step(engine: &Rc<Inner>) -> FsResult<bool> {
    let pressed = engine.journal.pressure() > Pressure::Calm;
    let batch = {
        let state = engine.state.borrow();
        // Whatever moves the journal's tail comes first: without room there nothing else can be written back either.
        if pressed || state.table.is_crowded() || state.table.is_dirty() {
            let tight = engine.journal.fill_permille() > TIGHT_PERMILLE;
            state.table.oldest_dirty(if tight { BATCH_TIGHT } else { BATCH })
        } else {
            state.table.oversize(BATCH)
        }
    };
    let mut done = 0;
    if !batch.is_empty() {
        done += btree::write_back(engine, &batch).await?;
    }
    if pressed {
        done += log_roots_again(engine, batch.is_empty()).await?;
        // The entries that held what was written go only when the commits that made it reachable are durable.
        engine.make_durable(engine.newest_seq()).await?;
    }
    Ok(done > 0)
}

/// Puts roots into the journal anew whose last mention keeps its oldest entries alive.
async fn log_roots_again(engine: &Rc<Inner>, nothing_else: bool) -> FsResult<usize> {
    let Some(oldest) = engine.journal.oldest_pin() else { return Ok(0) };
    // A little ahead of need, so that each round moves the tail by more than one entry.
    let newest = engine.newest_seq();
    let up_to = if nothing_else { newest.0 } else { oldest.0 + (newest.0.saturating_sub(oldest.0)) / 4 };
    let old = |state: &State, tree: Tree| {
        let root = state.table.root(tree);
        let logged: Seq = root.logged.as_ref()?.seq();
        (logged.0 <= up_to).then(|| root.pointer.clone()).flatten()
    };
    let trees: Vec<Tree> = {
        let state = engine.state.borrow();
        Tree::ALL.iter().copied().filter(|t| old(&state, *t).is_some()).collect()
    };
    if trees.is_empty() {
        return Ok(0);
    }
    let propose = |state: &State| {
        let roots: Vec<_> = trees.iter().filter_map(|t| old(state, *t).map(|p| (*t, p))).collect();
        Ok((!roots.is_empty()).then(|| (Proposal { roots, ..Proposal::default() }, ())))
    };
    engine.commit(JournalClass::Interior, propose, |_, _, _, _| ()).await?;
    Ok(trees.len())
}

/// Reads in a node that the recovered journal has changes for.
async fn fold_part(engine: &Rc<Inner>) -> FsResult<()> {
    let (tree, level, pos, miss) = {
        let state = engine.state.borrow();
        let Some((tree, level, pos)) = state.table.overlay.keys().next().copied() else { return Ok(()) };
        (tree, level, pos, state.table.get(tree, level, pos).err())
    };
    match miss {
        Some(miss) => btree::load(engine, miss).await?,
        // A node in memory has taken its part of the overlay; what is left belongs to no node.
        None => {
            let root = engine.state.borrow().table.root(tree).level;
            let name = tree.name();
            error!(
                "fs",
                "a key of tree {name}, level {level}, at {pos} is in no node; the root's level is {root}"
            );
            return Err(FsError::Corrupt);
        }
    }
    // Nothing goes from the journal before the last node was read in, so writing back may only use what is free of it.
    let calm = engine.journal.pressure() == Pressure::Calm;
    if calm && engine.state.borrow().table.is_crowded() {
        let batch = engine.state.borrow().table.oldest_dirty(BATCH);
        btree::write_back(engine, &batch).await?;
    }
    Ok(())
}

async fn discard_empty(engine: &Rc<Inner>) -> FsResult<()> {
    loop {
        let changed = engine.buckets_changed.ticket();
        let flushed = engine.journal.changed().ticket();
        if engine.closing.get() || engine.check_running().is_err() {
            return Ok(());
        }
        let idle = engine.paused.get() || busy(engine, discard::free_empty_buckets(engine)).await? == 0;
        let low = idle && !engine.paused.get() && engine.state.borrow().buckets.is_low();
        let collected = match low {
            true => busy(engine, collect::collect_if_room(engine)).await?,
            false => false,
        };
        if collected {
            engine.make_durable(engine.newest_seq()).await?;
            continue;
        }
        if idle {
            if engine.paused.get() || engine.state.borrow().buckets.waiting_for_discard() == 0 {
                engine.buckets_changed.after(changed).await;
            } else {
                either(engine.buckets_changed.after(changed), engine.journal.changed().after(flushed)).await;
            }
        }
    }
}

/// Writes back until nothing is dirty, or for as many rounds as make sense: each write-back dirties a few nodes itself.
pub(super) async fn clean_all(engine: &Rc<Inner>) -> FsResult<()> {
    for _ in 0..MEMORY_WAITS_MAX {
        match clean_what_is_dirty(engine).await {
            // It passes, and what is written back by then stays so.
            Err(FsError::NoMemory) => {
                engine.memory_short.notify();
                engine.platform.clock.sleep(MEMORY_RETRY).await;
            }
            result => return result,
        }
    }
    Err(FsError::NoMemory)
}

async fn clean_what_is_dirty(engine: &Rc<Inner>) -> FsResult<()> {
    // To its end, and first: as long as something of it is left, nothing goes from the journal.
    while !engine.state.borrow().table.overlay.is_empty() {
        fold_part(engine).await?;
    }
    let (mut left, mut fruitless) = (usize::MAX, 0);
    loop {
        let dirty = engine.state.borrow().table.oldest_dirty(usize::MAX);
        // Trees that shrink take a few rounds in which as many nodes become dirty as are written.
        fruitless = if dirty.len() < left { 0 } else { fruitless + 1 };
        if dirty.is_empty() || fruitless > FRUITLESS_MAX {
            return Ok(());
        }
        left = left.min(dirty.len());
        let tight = engine.journal.fill_permille() > TIGHT_PERMILLE;
        for batch in dirty.chunks(if tight { BATCH_TIGHT } else { BATCH }) {
            btree::write_back(engine, batch).await?;
            if engine.journal.pressure() > Pressure::Calm {
                log_roots_again(engine, false).await?;
                engine.make_durable(engine.newest_seq()).await?;
            }
        }
    }
}

/// Completes when one of two does.
async fn either(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        let done = a.as_mut().poll(cx).is_ready() || b.as_mut().poll(cx).is_ready();
        if done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await
}
