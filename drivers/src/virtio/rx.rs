//! The receiving half of virtio-net: one ring of equal slots in one stretch of memory.
//!
//! Slots are handed to the device in the order in which they lie in memory. With mergeable buffers a large frame
//! fills several, and since a device takes buffers in order they are neighbours: the frame lies in one piece
//! although nobody reserved 64 KiB for it. Only where it runs over the ring's end (or a device shuffles) is it copied.

use super::queue::{Direction, Next, Segment, Virtqueue};
use super::transport::{Transport, VirtioError};
use crate::dma::Dma;
use crate::hal::Hal;
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_platform::{RxChecksum, RxMeta};
use smallvec::SmallVec;

/// Bytes of a slot with mergeable buffers: a usual frame in one, 64 KiB in 17.
const SLOT_MERGEABLE: usize = 4096;

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const FLAG_CHECKSUM_VALID: u8 = 2;
const GSO_NONE: u8 = 0;

/// One direction of a card.
pub(crate) struct Receiver {
    queue: Virtqueue,
    memory: Dma,
    slot_len: usize,
    header_len: usize,
    mergeable: bool,
    /// The slot behind each head descriptor.
    slots: Vec<u16>,
    /// Frames that were in pieces are put together here.
    scratch: Vec<u8>,
    frame_max: usize,
    /// Used entries of the queue that activity was reported for.
    seen: u16,
}

/// What became of taking a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// There was none.
    Nothing,
    /// It was handed over.
    Frame,
    /// Something senseless was thrown away; there may be more behind it.
    Dropped,
}

/// A slot that a frame lies in.
#[derive(Clone, Copy)]
struct Part {
    slot: u16,
    len: usize,
}

impl Receiver {
    pub(crate) fn new(
        hal: &Rc<dyn Hal>,
        mut queue: Virtqueue,
        header_len: usize,
        mergeable: bool,
        frame_max: usize,
    ) -> Result<Receiver, VirtioError> {
        let slot_len = if mergeable { SLOT_MERGEABLE } else { (header_len + frame_max).next_power_of_two() };
        let count = queue.size();
        let memory = Dma::new(hal, usize::from(count) * slot_len)?;
        queue.disarm();
        let mut receiver = Receiver {
            slots: alloc::vec![0; usize::from(count)],
            queue,
            memory,
            slot_len,
            header_len,
            mergeable,
            scratch: Vec::new(),
            frame_max,
            seen: 0,
        };
        (0..count).for_each(|slot| receiver.post(slot));
        Ok(receiver)
    }

    /// Gives a slot to the device.
    fn post(&mut self, slot: u16) {
        let segment = Segment {
            bus: self.memory.bus(usize::from(slot) * self.slot_len),
            len: self.slot_len as u32,
            direction: Direction::FromDevice,
        };
        let head = self.queue.add(&[segment]).expect("there is a descriptor for each slot");
        self.slots[usize::from(head)] = slot;
    }

    pub(crate) fn kick(&mut self, transport: &dyn Transport) -> bool {
        self.queue.kick(transport)
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.queue.is_pending()
    }

    /// Whether frames arrived since the last call.
    pub(crate) fn has_news(&mut self) -> bool {
        let now = self.queue.used_index();
        core::mem::replace(&mut self.seen, now) != now
    }

    /// Asks for an interrupt at the next frame not yet reported by `has_news`; false if it is there already. Reported
    /// ones may lie there unfetched for as long as the stack likes.
    pub(crate) fn arm(&mut self) -> bool {
        self.queue.arm_after(self.seen)
    }

    pub(crate) fn disarm(&mut self) {
        self.queue.disarm();
    }

    /// Takes the next frame and hands it to `take`.
    pub(crate) fn receive(&mut self, take: &mut dyn FnMut(&mut [u8], RxMeta)) -> Received {
        let first = match self.queue.peek(0) {
            Next::Empty => return Received::Nothing,
            Next::Chain(used) => used,
            Next::Nonsense(_) => {
                self.queue.pop();
                return Received::Dropped;
            }
        };
        let start = usize::from(self.slots[usize::from(first.head)]) * self.slot_len;
        let count = if self.mergeable { self.memory.read::<u16>(start + 10) } else { 1 };
        if count == 0 || count > self.queue.size() {
            self.discard(1);
            return Received::Dropped;
        }
        // All parts of a frame come at once.
        let mut parts: SmallVec<[Part; 20]> = SmallVec::new();
        for ahead in 0..count {
            match self.queue.peek(ahead) {
                Next::Chain(used) => {
                    let slot = self.slots[usize::from(used.head)];
                    parts.push(Part { slot, len: used.len as usize });
                }
                Next::Nonsense(_) => {
                    self.discard(ahead + 1);
                    return Received::Dropped;
                }
                // The device has not finished it (§5.1.6.4 forbids that; it costs nothing to wait).
                Next::Empty => return Received::Nothing,
            }
        }
        let total: usize = parts.iter().map(|p| p.len).sum();
        let sane = parts.iter().all(|p| (1..=self.slot_len).contains(&p.len))
            && parts[0].len > self.header_len
            && total - self.header_len <= self.frame_max
            // The same buffer twice would have its descriptor freed twice.
            && parts.iter().enumerate().all(|(i, p)| parts[..i].iter().all(|q| q.slot != p.slot));
        if !sane {
            self.discard(count);
            return Received::Dropped;
        }
        for _ in 0..count {
            self.queue.pop();
        }
        let meta = self.meta(start);
        self.hand_over(&parts, total, meta, take);
        parts.iter().for_each(|part| self.post(part.slot));
        Received::Frame
    }

    fn meta(&self, start: usize) -> RxMeta {
        let flags = self.memory.read::<u8>(start);
        let checksum = match () {
            _ if flags & FLAG_NEEDS_CHECKSUM != 0 => RxChecksum::Partial,
            _ if flags & FLAG_CHECKSUM_VALID != 0 => RxChecksum::Valid,
            _ => RxChecksum::Unknown,
        };
        let joined = self.memory.read::<u8>(start + 1) != GSO_NONE;
        let segment_size = if joined { self.memory.read::<u16>(start + 4) } else { 0 };
        RxMeta { checksum, segment_size }
    }

    fn hand_over(
        &mut self,
        parts: &[Part],
        total: usize,
        meta: RxMeta,
        take: &mut dyn FnMut(&mut [u8], RxMeta),
    ) {
        let neighbours = parts.windows(2).all(|p| p[1].slot == p[0].slot + 1 && p[0].len == self.slot_len);
        let start = usize::from(parts[0].slot) * self.slot_len + self.header_len;
        if neighbours {
            // SAFETY: the device gave these slots back, and gets them again only after this; nothing else touches
            // them, because `self` is borrowed.
            unsafe { self.memory.with_bytes(start, total - self.header_len, |frame| take(frame, meta)) };
            return;
        }
        let mut scratch = core::mem::take(&mut self.scratch);
        scratch.clear();
        for (i, part) in parts.iter().enumerate() {
            let skip = if i == 0 { self.header_len } else { 0 };
            let at = usize::from(part.slot) * self.slot_len + skip;
            // SAFETY: as above.
            unsafe { self.memory.with_bytes(at, part.len - skip, |bytes| scratch.extend_from_slice(bytes)) };
        }
        take(&mut scratch, meta);
        self.scratch = scratch;
    }

    /// Throws the next `count` used entries away; their slots go back to the device.
    fn discard(&mut self, count: u16) {
        for _ in 0..count {
            if let Next::Chain(used) = self.queue.pop() {
                self.post(self.slots[usize::from(used.head)]);
            }
        }
    }

    pub(crate) fn leak(self) {
        self.queue.leak();
        self.memory.leak();
    }
}
