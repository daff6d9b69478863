//! From a filled entry to a durable one: preflush, write, acknowledge. One task an entry, at most two at once.

use super::state::Write;
use super::{Journal, JournalError};
use crate::device::{Dep, Deps, DeviceError, Devices};
use crate::planted::{self, Fault};
use alloc::boxed::Box;
use alloc::rc::{Rc, Weak};
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;
use moraine_platform::{Buf, Fua, IoError, LocalFuture};
use smallvec::SmallVec;

/// Times a copy of an entry is written before its device is given up.
const TRIES_MAX: usize = 3;

/// Member index, the buffer, and how the write of one copy ended.
type CopyWritten = (u8, Buf, Result<Dep, DeviceError>);

impl Journal {
    /// Starts whatever should be written now. Called after everything that may change the answer.
    pub(super) fn kick(&self) {
        let Some(this) = self.this.upgrade() else { return };
        if self.closing.get() {
            // Pins go with their owners now, which does not mean that the journal may forget what they kept.
            return;
        }
        let native_fua = |device| self.devices.info(device).is_some_and(|i| i.fua && i.volatile_cache);
        loop {
            let now = self.platform.clock.now();
            let Some(write) = self.state.borrow_mut().next_write(now, native_fua) else { break };
            self.platform.spawn.spawn("journal-entry", Box::pin(write_entry(this.clone(), write)));
        }
        self.announce_pressure();
    }

    /// Stops the journal: from now on nothing becomes durable.
    fn stop(&self, error: JournalError) {
        let first = self.state.borrow_mut().failed.replace(error).is_none();
        if first {
            moraine_platform::error!("fs", "the journal stopped, the pool is read-only: {error}");
            if let Some(hook) = self.on_failure.borrow().as_ref() {
                hook(error);
            }
        }
        self.changed.notify();
        self.space.notify();
        self.pressure_changed.notify();
    }

    /// Takes note of journal devices that failed. With as many failed as there are copies, entries may be lost.
    fn note_failed_devices(&self) -> Result<(), JournalError> {
        let mut state = self.state.borrow_mut();
        let broken: SmallVec<[u8; 2]> =
            state.ring.working().filter(|d| !self.devices.is_healthy(*d)).collect();
        for device in broken {
            if state.ring.fail(device) {
                moraine_platform::warn!("fs", "the journal goes on without device {device}");
            }
            if state.ring.failed_count() >= state.ring.replicas() {
                return Err(JournalError::Device(device));
            }
        }
        Ok(())
    }

    /// Makes durable what `write` depends on.
    async fn preflush(&self, write: &Write) -> Result<(), JournalError> {
        self.changed
            .until(|| {
                let state = self.state.borrow();
                (state.failed.is_some() || !state.must_wait_for_earlier(write.seq)).then_some(())
            })
            .await;
        let entries = {
            let state = self.state.borrow();
            if let Some(error) = state.failed {
                return Err(error);
            }
            // Looked at, not taken: the flush entry behind this one may get here first, and both need it.
            state.unflushed.clone()
        };
        let mut all = entries.clone();
        all.merge(&write.external);
        if self.devices.covered(&all) || planted::is(Fault::PreflushSkipped) {
            return Ok(());
        }
        self.state.borrow_mut().counters.preflushes += 1;
        if self.devices.flush_covering(&all).await.is_err() {
            // Copies of entries on a failed device are lost, but others exist; data that lay there alone does not.
            if let Some(lost) = write.external.iter().find(|dep| !self.devices.is_healthy(dep.device)) {
                return Err(JournalError::Data(lost.device));
            }
            self.note_failed_devices()?;
        }
        let healthy: Deps = entries.iter().filter(|dep| self.devices.is_healthy(dep.device)).collect();
        assert!(
            self.devices.covered(&write.external) && self.devices.covered(&healthy),
            "a flush entry is submitted only when everything before it is durable"
        );
        Ok(())
    }

    /// Writes all copies; one is enough.
    async fn write_copies(&self, write: Write) -> (Buf, Result<SmallVec<[Dep; 2]>, JournalError>) {
        let fua = if write.through { Fua::Yes } else { Fua::No };
        let mut spare = Some(write.buf);
        let mut under_way: Vec<LocalFuture<CopyWritten>> = Vec::new();
        let mut done = Vec::new();
        let last = write.placement.copies.len() - 1;
        for (n, (device, offset)) in write.placement.copies.iter().copied().enumerate() {
            let Some(original) = spare.take() else { break };
            let buf = if n == last {
                original
            } else if let Ok(copy) = Buf::copy_of(&original) {
                spare = Some(original);
                copy
            } else {
                // No memory for a second buffer: one copy after the other.
                let (buf, result) = write_copy(&self.devices, device, offset, original, fua).await;
                spare = Some(buf);
                done.push((device, result));
                continue;
            };
            let devices = self.devices.clone();
            under_way.push(Box::pin(async move {
                let (buf, result) = write_copy(&devices, device, offset, buf, fua).await;
                (device, buf, result)
            }));
        }
        let mut buf = spare;
        for (device, returned, result) in join(under_way).await {
            buf = Some(returned);
            done.push((device, result));
        }
        let mut deps = SmallVec::new();
        for (device, result) in done {
            match result {
                Ok(dep) => deps.push(dep),
                Err(error) => self.devices.fail(device, &alloc::format!("journal write: {error}")),
            }
        }
        let buf = buf.expect("an entry has at least one copy, and a device returns its buffer");
        let result = self.note_failed_devices().and_then(|()| match deps.is_empty() {
            true => Err(JournalError::Device(write.placement.copies[last].0)),
            false => Ok(deps),
        });
        (buf, result)
    }
}

/// Writes one copy. A device that says that a write failed gets the same bytes again, at the same place: whatever is left
/// of the first attempt can do no harm.
async fn write_copy(
    devices: &Devices,
    device: u8,
    offset: u64,
    buf: Buf,
    fua: Fua,
) -> (Buf, Result<Dep, DeviceError>) {
    let mut buf = buf;
    for _ in 1..TRIES_MAX {
        let (back, result) = devices.write(device, offset, buf, fua).await;
        match result {
            Err(DeviceError::Io(IoError::Media | IoError::Device)) if devices.is_healthy(device) => {
                buf = back
            }
            result => return (back, result),
        }
    }
    devices.write(device, offset, buf, fua).await
}

async fn write_entry(journal: Rc<Journal>, write: Write) {
    if write.flush
        && let Err(error) = journal.preflush(&write).await
    {
        return journal.stop(error);
    }
    if let Some(error) = journal.failed() {
        return journal.stop(error);
    }
    let seq = write.seq;
    let (buf, result) = journal.write_copies(write).await;
    match result {
        Err(error) => journal.stop(error),
        Ok(_) if journal.failed().is_some() => {}
        Ok(deps) => {
            journal.state.borrow_mut().written(seq, &deps, buf);
            journal.changed.notify();
            journal.kick();
            journal.space.notify();
        }
    }
}

/// Writes entries nobody waits for once they are old enough. Ends with the journal.
pub(super) async fn idle_writer(journal: Weak<Journal>) {
    loop {
        let Some(this) = journal.upgrade() else { return };
        let (opened, clock) = (this.opened.clone(), this.platform.clock.clone());
        let ticket = opened.ticket();
        let deadline = this.state.borrow().idle_deadline();
        let ended = this.state.borrow().failed.is_some() || this.closing.get();
        if !ended && deadline.is_some_and(|at| at <= clock.now()) {
            this.kick();
        }
        drop(this);
        match deadline {
            _ if ended => return,
            Some(at) if at > clock.now() => clock.sleep_until(at).await,
            _ => opened.after(ticket).await,
        }
    }
}

/// Runs all futures at once and returns their results in order.
async fn join<T>(futures: Vec<LocalFuture<T>>) -> Vec<T> {
    let mut futures: Vec<_> = futures.into_iter().map(Some).collect();
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, result) in futures.iter_mut().zip(&mut results) {
            if let Some(running) = future
                && let Poll::Ready(value) = running.as_mut().poll(cx)
            {
                *result = Some(value);
                *future = None;
            }
        }
        if futures.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
}
