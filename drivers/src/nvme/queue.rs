//! A submission and a completion queue of equal number (NVMe Base 2.0 §3.3.1, §4.6).

use super::command::Command;
use super::registers::DOORBELLS;
use super::spec::{Completion, Status};
use crate::dma::Dma;
use crate::hal::{Hal, Registers};
use alloc::rc::Rc;
use core::sync::atomic::{Ordering, fence};
use moraine_platform::OutOfMemory;

const SQ_ENTRY: usize = 64;
const CQ_ENTRY: usize = 16;

/// A queue pair. Whoever pushes makes sure that never more than `sq_entries - 1` commands are unanswered, which
/// keeps both rings from overflowing whatever the controller does.
pub(crate) struct QueuePair {
    submission: Dma,
    completion: Dma,
    sq_entries: u16,
    cq_entries: u16,
    /// Next free submission entry, and the value the doorbell was last rung with.
    tail: u16,
    rung: u16,
    /// Next completion entry to look at, and how many were taken since the controller was last told.
    head: u16,
    unacknowledged: u16,
    /// The phase bit of new entries in this round.
    phase: u16,
    tail_doorbell: usize,
    head_doorbell: usize,
}

impl QueuePair {
    /// Rings for queue `number`; the completion ring must have more entries than the submission ring where the head
    /// is to be told late.
    pub(crate) fn new(
        hal: &Rc<dyn Hal>,
        number: u16,
        sq_entries: u16,
        cq_entries: u16,
        doorbell_stride: usize,
    ) -> Result<QueuePair, OutOfMemory> {
        assert!(sq_entries >= 2 && cq_entries >= sq_entries, "rings of a queue pair");
        Ok(QueuePair {
            submission: Dma::new(hal, usize::from(sq_entries) * SQ_ENTRY)?,
            completion: Dma::new(hal, usize::from(cq_entries) * CQ_ENTRY)?,
            sq_entries,
            cq_entries,
            tail: 0,
            rung: 0,
            head: 0,
            unacknowledged: 0,
            phase: 1,
            tail_doorbell: DOORBELLS + usize::from(number) * 2 * doorbell_stride,
            head_doorbell: DOORBELLS + (usize::from(number) * 2 + 1) * doorbell_stride,
        })
    }

    /// Empties both rings. The controller must be disabled.
    pub(crate) fn reset(&mut self) {
        self.completion.clear();
        (self.tail, self.rung, self.head, self.unacknowledged) = (0, 0, 0, 0);
        self.phase = 1;
    }

    pub(crate) fn submission_bus(&self) -> u64 {
        self.submission.bus(0)
    }

    pub(crate) fn completion_bus(&self) -> u64 {
        self.completion.bus(0)
    }

    pub(crate) fn sq_entries(&self) -> u16 {
        self.sq_entries
    }

    pub(crate) fn cq_entries(&self) -> u16 {
        self.cq_entries
    }

    /// Places a command; [`ring`](Self::ring) tells the controller.
    pub(crate) fn push(&mut self, command: &Command) {
        let at = usize::from(self.tail) * SQ_ENTRY;
        for (i, &word) in command.0.iter().enumerate() {
            self.submission.write(at + i * 8, word);
        }
        self.tail = if self.tail + 1 == self.sq_entries { 0 } else { self.tail + 1 };
    }

    /// Rings the submission doorbell if something was pushed since; whether it did.
    pub(crate) fn ring(&mut self, registers: &dyn Registers) -> bool {
        if self.tail == self.rung {
            return false;
        }
        // The entries are in memory before the controller hears of them.
        fence(Ordering::Release);
        registers.write32(self.tail_doorbell, u32::from(self.tail));
        self.rung = self.tail;
        true
    }

    /// Whether a completion is there.
    pub(crate) fn is_pending(&self) -> bool {
        self.completion.read::<u32>(usize::from(self.head) * CQ_ENTRY + 12) >> 16 & 1 == u32::from(self.phase)
    }

    /// Takes the next completion.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Completion> {
        let at = usize::from(self.head) * CQ_ENTRY;
        let last = self.completion.read::<u32>(at + 12);
        if last >> 16 & 1 != u32::from(self.phase) {
            return None;
        }
        // Nothing of the entry, or of the data it announces, is read before its phase bit.
        fence(Ordering::Acquire);
        let result = self.completion.read::<u32>(at);
        self.head += 1;
        if self.head == self.cq_entries {
            self.head = 0;
            self.phase ^= 1;
        }
        self.unacknowledged += 1;
        Some(Completion { result, command_id: last as u16, status: Status((last >> 17) as u16) })
    }

    /// Tells the controller how far completions were taken: always if `now`, else only before the completion ring
    /// could fill up with entries that were long taken. (One register write saved for nearly every command.)
    pub(crate) fn acknowledge(&mut self, registers: &dyn Registers, when: Acknowledge) {
        let slack = self.cq_entries - self.sq_entries;
        if self.unacknowledged == 0 || (when == Acknowledge::Late && self.unacknowledged < slack) {
            return;
        }
        registers.write32(self.head_doorbell, u32::from(self.head));
        self.unacknowledged = 0;
    }
}

/// When the controller is told of taken completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Acknowledge {
    /// At once.
    Now,
    /// When it matters.
    Late,
}
