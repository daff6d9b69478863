//! The split virtqueue (virtio 1.2 §2.7), with event indexes and indirect descriptors.
//!
//! The driver's own bookkeeping never reads back what it wrote into shared memory, and what the device writes (used
//! index, ids, lengths, event index) is checked before use.

use super::transport::{QueueAddresses, Transport, VirtioError, feature};
use crate::dma::Dma;
use crate::hal::{Hal, PAGE_SIZE};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

const DESCRIPTOR: usize = 16;
const DESCRIPTOR_NEXT: u16 = 1;
const DESCRIPTOR_WRITE: u16 = 2;
const DESCRIPTOR_INDIRECT: u16 = 4;

const AVAILABLE_NO_INTERRUPT: u16 = 1;
const USED_NO_NOTIFY: u16 = 1;

/// Who writes a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The driver; the device reads it.
    ToDevice,
    /// The device.
    FromDevice,
}

/// A piece of memory of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) bus: u64,
    pub(crate) len: u32,
    pub(crate) direction: Direction,
}

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    /// Its head descriptor, which was in flight.
    pub(crate) head: u16,
    /// How many bytes the device claims to have written.
    pub(crate) len: u32,
}

/// What lies next in the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing.
    Empty,
    /// A chain.
    Chain(Used),
    /// An id that is not in flight.
    Nonsense(u32),
}

/// A queue of up to 32768 descriptors.
pub(crate) struct Virtqueue {
    hal: Rc<dyn Hal>,
    index: u16,
    size: u16,
    memory: Dma,
    available: usize,
    used: usize,
    /// The driver's own list of free descriptors and of chains.
    next: Vec<u16>,
    free: u16,
    free_count: u16,
    /// Descriptors in the chain from each head in flight; 0 for others.
    chain: Vec<u16>,
    /// Chains made available so far, and as of the last notification.
    made: u16,
    told: u16,
    /// Used entries taken so far.
    taken: u16,
    event_idx: bool,
    indirect: bool,
}

impl Virtqueue {
    /// A queue of at most `size_max` descriptors, which the transport is told of.
    pub(crate) fn new(
        hal: &Rc<dyn Hal>,
        transport: &dyn Transport,
        index: u16,
        size_max: u16,
        features: u64,
    ) -> Result<Virtqueue, VirtioError> {
        let offered = transport.queue_size_max(index);
        if offered == 0 {
            return Err(VirtioError::Unsupported("it lacks a queue"));
        }
        // A power of two: the largest that fits both.
        let size = 1u16 << offered.min(size_max).ilog2();
        let (available, used, len) = layout(size);
        let queue = Virtqueue {
            hal: hal.clone(),
            index,
            size,
            memory: Dma::new(hal, len)?,
            available,
            used,
            next: (1..=size).collect(),
            free: 0,
            free_count: size,
            chain: alloc::vec![0; usize::from(size)],
            made: 0,
            told: 0,
            taken: 0,
            event_idx: features & feature::EVENT_IDX != 0,
            indirect: features & feature::INDIRECT_DESC != 0,
        };
        queue.hand_over(transport)?;
        Ok(queue)
    }

    fn hand_over(&self, transport: &dyn Transport) -> Result<(), VirtioError> {
        let addresses = QueueAddresses {
            size: self.size,
            descriptors: self.memory.bus(0),
            available: self.memory.bus(self.available),
            used: self.memory.bus(self.used),
        };
        transport.set_queue(self.index, &addresses)
    }

    /// After the device was reset: an empty queue again, handed over anew.
    pub(crate) fn restart(&mut self, transport: &dyn Transport) -> Result<(), VirtioError> {
        self.memory.clear();
        self.next = (1..=self.size).collect();
        self.chain.fill(0);
        (self.free, self.free_count) = (0, self.size);
        (self.made, self.told, self.taken) = (0, 0, 0);
        self.hand_over(transport)
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn free_count(&self) -> u16 {
        self.free_count
    }

    pub(crate) fn has_indirect(&self) -> bool {
        self.indirect
    }

    fn describe(memory: &Dma, at: usize, segment: &Segment, flags: u16, next: u16) {
        let write = if segment.direction == Direction::FromDevice { DESCRIPTOR_WRITE } else { 0 };
        memory.write(at, segment.bus);
        let rest = u64::from(segment.len) | u64::from(flags | write) << 32 | u64::from(next) << 48;
        memory.write(at + 8, rest);
    }

    /// Makes a chain of `segments` (device-readable ones first) available. `None` if there are not enough free
    /// descriptors. The device hears of it at the next [`kick`](Self::kick).
    pub(crate) fn add(&mut self, segments: &[Segment]) -> Option<u16> {
        let count = segments.len() as u16;
        if count == 0 || count > self.free_count {
            return None;
        }
        let head = self.free;
        let mut at = head;
        for (i, segment) in segments.iter().enumerate() {
            let next = self.next[usize::from(at)];
            let flags = if i + 1 < segments.len() { DESCRIPTOR_NEXT } else { 0 };
            Virtqueue::describe(&self.memory, usize::from(at) * DESCRIPTOR, segment, flags, next);
            self.free = next;
            at = next;
        }
        self.publish(head, count);
        Some(head)
    }

    /// Like `add`, with the chain in the table at byte `at` of `table`, which takes one descriptor of the queue.
    /// The table must stay untouched until the chain comes back.
    pub(crate) fn add_indirect(&mut self, segments: &[Segment], table: &Dma, at: usize) -> Option<u16> {
        if self.free_count == 0 || segments.is_empty() {
            return None;
        }
        for (i, segment) in segments.iter().enumerate() {
            let flags = if i + 1 < segments.len() { DESCRIPTOR_NEXT } else { 0 };
            Virtqueue::describe(table, at + i * DESCRIPTOR, segment, flags, i as u16 + 1);
        }
        let head = self.free;
        let whole = Segment {
            bus: table.bus(at),
            len: (segments.len() * DESCRIPTOR) as u32,
            direction: Direction::ToDevice,
        };
        Virtqueue::describe(&self.memory, usize::from(head) * DESCRIPTOR, &whole, DESCRIPTOR_INDIRECT, 0);
        self.free = self.next[usize::from(head)];
        self.publish(head, 1);
        Some(head)
    }

    fn publish(&mut self, head: u16, count: u16) {
        self.free_count -= count;
        self.chain[usize::from(head)] = count;
        let slot = usize::from(self.made & (self.size - 1));
        self.memory.write(self.available + 4 + slot * 2, head);
        self.made = self.made.wrapping_add(1);
    }

    /// Shows the device what was added since, and notifies it if it wants to be; whether anything was added.
    pub(crate) fn kick(&mut self, transport: &dyn Transport) -> bool {
        if self.made == self.told {
            return false;
        }
        // Chains are in memory before the index that shows them.
        fence(Ordering::Release);
        self.memory.write(self.available + 2, self.made);
        if !self.wants_notification() {
            // The index has to be visible before the device's wish is read: otherwise it could go to sleep unnoticed
            // between the two (a store followed by a load, which x86 reorders). Only a no is worth asking twice.
            self.hal.order();
        }
        if self.wants_notification() {
            transport.notify(self.index);
        }
        self.told = self.made;
        true
    }

    /// Whether the device wants to hear of what was made available since it was last told.
    fn wants_notification(&self) -> bool {
        if self.event_idx {
            let event = self.memory.read::<u16>(self.used + 4 + usize::from(self.size) * 8);
            wants_event(event, self.made, self.told)
        } else {
            self.memory.read::<u16>(self.used) & USED_NO_NOTIFY == 0
        }
    }

    /// Whether used entries are there.
    pub(crate) fn is_pending(&self) -> bool {
        self.memory.read::<u16>(self.used + 2) != self.taken
    }

    /// The device's running count of used entries.
    pub(crate) fn used_index(&self) -> u16 {
        self.memory.read(self.used + 2)
    }

    /// The used entry `ahead` places past the next one, without taking it.
    pub(crate) fn peek(&self, ahead: u16) -> Next {
        let there = self.memory.read::<u16>(self.used + 2).wrapping_sub(self.taken);
        if there <= ahead {
            return Next::Empty;
        }
        // Neither the entry nor what it announces is read before the index.
        fence(Ordering::Acquire);
        let slot = usize::from(self.taken.wrapping_add(ahead) & (self.size - 1));
        let id = self.memory.read::<u32>(self.used + 4 + slot * 8);
        let len = self.memory.read::<u32>(self.used + 8 + slot * 8);
        match u16::try_from(id) {
            Ok(head) if head < self.size && self.chain[usize::from(head)] > 0 => {
                Next::Chain(Used { head, len })
            }
            _ => Next::Nonsense(id),
        }
    }

    /// Takes the next used entry; its descriptors are free again.
    pub(crate) fn pop(&mut self) -> Next {
        let next = self.peek(0);
        if next != Next::Empty {
            self.taken = self.taken.wrapping_add(1);
        }
        if let Next::Chain(used) = next {
            self.release(used.head);
        }
        next
    }

    fn release(&mut self, head: u16) {
        let count = core::mem::take(&mut self.chain[usize::from(head)]);
        let mut last = head;
        for _ in 1..count {
            last = self.next[usize::from(last)];
        }
        self.next[usize::from(last)] = self.free;
        self.free = head;
        self.free_count += count;
    }

    /// Asks for an interrupt at the first used entry after `seen` of them; false if it is there already.
    pub(crate) fn arm_after(&mut self, seen: u16) -> bool {
        if self.event_idx {
            self.memory.write(self.available + 4 + usize::from(self.size) * 2, seen);
        } else {
            self.memory.write(self.available, 0u16);
        }
        // The wish is visible before the last look, as in `kick`.
        if self.used_index() == seen {
            self.hal.order();
        }
        self.used_index() == seen
    }

    /// Asks for an interrupt at the next used entry not yet taken; false if it is there already.
    pub(crate) fn arm(&mut self) -> bool {
        self.arm_after(self.taken)
    }

    /// Wants no interrupts. (With event indexes this lasts for 65535 entries, and one too many does no harm.)
    pub(crate) fn disarm(&mut self) {
        if self.event_idx {
            let behind = self.taken.wrapping_sub(1);
            self.memory.write(self.available + 4 + usize::from(self.size) * 2, behind);
        } else {
            self.memory.write(self.available, AVAILABLE_NO_INTERRUPT);
        }
    }

    /// Gives the memory up without freeing it.
    pub(crate) fn leak(self) {
        self.memory.leak();
    }
}

/// Whether the other side, which wants to hear of entry `event`, is to be told of entries `old .. new`.
fn wants_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Offsets of the available and used rings, and the length of all, in the legacy layout, which modern devices take
/// as well.
fn layout(size: u16) -> (usize, usize, usize) {
    let size = usize::from(size);
    let available = size * DESCRIPTOR;
    let used = (available + 6 + 2 * size).next_multiple_of(PAGE_SIZE);
    (available, used, used + 6 + 8 * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_indexes_wrap() {
        assert!(wants_event(0, 1, 0));
        assert!(!wants_event(1, 1, 0));
        assert!(wants_event(0xffff, 0, 0xffff));
        assert!(wants_event(5, 10, 3));
        assert!(!wants_event(2, 10, 3));
        assert!(wants_event(0xfffe, 1, 0xfff0));
    }

    #[test]
    fn the_layout_is_the_legacy_one() {
        assert_eq!(layout(256), (4096, 8192, 8192 + 6 + 2048));
        assert_eq!(layout(4), (64, 4096, 4096 + 38));
    }
}
