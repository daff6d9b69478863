//! Background tasks: write-back by age, by amount and of streams, and the reaper.

use super::Filesystem;
use super::Inner;
use super::sync::ALL_PAGES;
use super::wait::{either, join_all};
use crate::cache::store::Which;
use crate::namespace::object;
use crate::namespace::reap::Reaped;
use crate::tx::Class;
use crate::vfs::{FsError, FsResult};
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::future::Future;
use core::time::Duration;
use moraine_platform::Instant;
use moraine_platform::sync::Event;

/// Dirty pages older than this are written back.
const DIRTY_AGE_MAX: Duration = Duration::from_secs(5);
/// Pause after a failed write-back or reaping.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Pause before memory is asked for again.
const MEMORY_RETRY: Duration = Duration::from_millis(5);

impl Filesystem {
    pub(super) fn start_tasks(&self) {
        let inner = self.inner.clone();
        self.inner.spawn("write-back", async move { inner.write_back_task().await });
        let inner = self.inner.clone();
        self.inner.spawn("relief", async move { inner.relief_task().await });
        let inner = self.inner.clone();
        self.inner.spawn("reaper", async move { inner.reap_task().await });
    }
}

impl Inner {
    /// Starts a task that `shutdown` waits for.
    pub(super) fn spawn(self: &Rc<Self>, name: &'static str, task: impl Future<Output = ()> + 'static) {
        let inner = self.clone();
        self.tasks.set(self.tasks.get() + 1);
        let task = async move {
            task.await;
            inner.tasks.set(inner.tasks.get() - 1);
            inner.cleaned.notify();
        };
        self.engine.platform().spawn.spawn(name, Box::pin(task));
    }

    async fn write_back_task(self: Rc<Self>) {
        while !self.stopping.get() {
            let ticket = self.work.ticket();
            let now = self.now();
            // Under pressure the oldest file goes whatever its age.
            let before = if self.pressure.get() {
                now
            } else {
                Instant(now.0.saturating_sub(DIRTY_AGE_MAX.as_nanos() as u64))
            };
            // What is due comes before streams, which may never end.
            let due = self.cache.borrow_mut().next_dirty(before);
            let next = due.or_else(|| self.streaming.borrow_mut().pop_first());
            let Some(file) = next else {
                self.pressure.set(false);
                self.wait_for_work(ticket).await;
                continue;
            };
            // Two at a time: while one batch commits the other one's data is on its way.
            let both = (0..2).map(|_| self.write_back(file, ALL_PAGES, Which::All));
            let result: FsResult<()> = join_all(both).await.into_iter().collect();
            // What is dirty again has its turn later: the rest of the queue comes first, and nothing spins.
            let later = self.now() + Duration::from_nanos(1);
            self.cache.borrow_mut().requeue(file, later);
            if self.cache.borrow().dirty_bytes() * 4 <= self.cache.borrow().budget().dirty_bytes {
                self.pressure.set(false);
            }
            if result.is_err() && !self.stopping.get() {
                self.pause_after_failure(&self.work).await;
            }
        }
    }

    /// Gives memory back when the engine lacks some.
    async fn relief_task(self: Rc<Self>) {
        let short = self.engine.memory_short();
        loop {
            let ticket = short.ticket();
            if self.stopping.get() {
                return;
            }
            short.after(ticket).await;
            self.give_memory_back();
        }
    }

    /// Gives memory back and waits a moment for what is dirty to follow.
    pub(super) async fn wait_for_memory(&self) {
        self.give_memory_back();
        self.engine.platform().clock.sleep(MEMORY_RETRY).await;
    }

    /// Drops half of the clean pages, and has dirty ones written back so that they can be dropped next.
    pub(super) fn give_memory_back(&self) {
        self.cache.borrow_mut().shrink();
        self.pressure.set(true);
        self.work.notify();
    }

    /// Waits before background work that failed is tried again; if the pool takes no more changes, until the end.
    pub(super) async fn pause_after_failure(&self, event: &Event) {
        if self.engine.check_running().is_err() {
            return event.until(|| self.stopping.get().then_some(())).await;
        }
        let pause = self.engine.platform().clock.sleep(RETRY_AFTER);
        either(event.until(|| self.stopping.get().then_some(())), pause).await
    }

    /// Waits for a notification, or until the oldest dirty file is old enough.
    async fn wait_for_work(&self, ticket: u64) {
        let oldest = self.cache.borrow().dirty_since();
        match oldest {
            Some(since) => {
                let old = self.engine.platform().clock.sleep_until(since + DIRTY_AGE_MAX);
                either(self.work.after(ticket), old).await
            }
            None => self.work.after(ticket).await,
        }
    }

    async fn reap_task(self: Rc<Self>) {
        while !self.stopping.get() {
            let ticket = self.orphans.ticket();
            let reaped = self.reap_all().await;
            // With more to do the next round comes at once; after an error nobody should wait for it.
            let done = self.orphans.ticket() == ticket || reaped.is_err();
            if done && self.orphans_due.replace(false) {
                self.engine.freeing_ends();
            }
            match reaped {
                Ok(()) => self.orphans.after(ticket).await,
                Err(error) => {
                    moraine_platform::warn!("fs", "deleting goes on later: {error}");
                    if error == FsError::Corrupt {
                        return;
                    }
                    self.pause_after_failure(&self.orphans).await
                }
            }
        }
    }

    /// Deletes what is left of every inode without a name.
    pub(super) async fn reap_all(&self) -> FsResult<()> {
        let mut from = 0;
        loop {
            let (next, _) = self
                .engine
                .transact(Class::Delete, async |tx| self.names(tx).next_deleted(from).await)
                .await?;
            let Some(number) = next else { return Ok(()) };
            loop {
                if self.stopping.get() {
                    return Ok(());
                }
                let (reaped, _) =
                    self.engine.transact(Class::Delete, async |tx| self.names(tx).reap(number).await).await?;
                if reaped == Reaped::All {
                    break;
                }
            }
            self.cache.borrow_mut().forget(object(number));
            from = number + 1;
        }
    }
}
