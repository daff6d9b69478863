//! The sending half of virtio-net: frames side by side in one ring of bytes, each behind its header, each one chain.

use super::queue::{Direction, Next, Segment, Virtqueue};
use super::transport::{Transport, VirtioError};
use crate::dma::Dma;
use crate::hal::Hal;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_platform::{NicCapabilities, Segmentation, TxMeta};

/// Frames start at multiples of this, so that they do not share cache lines.
const ALIGN: usize = 64;
/// Bytes of the ring where frames are small, and where they may be 64 KiB.
const RING_SMALL: usize = 256 * 1024;
const RING_LARGE: usize = 1024 * 1024;
/// Without padding some switches drop a frame.
const FRAME_MIN: usize = 60;

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;

/// A frame with the device, or before one that is.
struct Entry {
    start: usize,
    end: usize,
    done: bool,
}

/// One direction of a card.
pub(crate) struct Sender {
    queue: Virtqueue,
    memory: Dma,
    ring_len: usize,
    header_len: usize,
    /// Whether header and frame must be descriptors of their own: legacy devices may ask for that.
    split_header: bool,
    frame_max: usize,
    /// In the order of the ring; `first` is the number of the front one.
    entries: VecDeque<Entry>,
    first: u64,
    /// The number of the entry behind each head descriptor.
    numbers: Vec<u64>,
    /// A frame found no room since room last came back.
    starved: bool,
    /// Frames that asked for more than the device can do.
    refused: u64,
}

impl Sender {
    pub(crate) fn new(
        hal: &Rc<dyn Hal>,
        mut queue: Virtqueue,
        header_len: usize,
        split_header: bool,
        frame_max: usize,
    ) -> Result<Sender, VirtioError> {
        let ring_len = if frame_max > u16::MAX as usize / 2 { RING_LARGE } else { RING_SMALL };
        queue.disarm();
        Ok(Sender {
            memory: Dma::new(hal, ring_len)?,
            numbers: alloc::vec![0; usize::from(queue.size())],
            queue,
            ring_len,
            header_len,
            split_header,
            frame_max,
            entries: VecDeque::new(),
            first: 0,
            starved: false,
            refused: 0,
        })
    }

    /// Where `len` bytes are free in one piece.
    fn room(&self, len: usize) -> Option<usize> {
        let (Some(front), Some(back)) = (self.entries.front(), self.entries.back()) else {
            return (len <= self.ring_len).then_some(0);
        };
        let (tail, head) = (front.start, back.end);
        if head > tail {
            // In use: tail .. head. Never fill up to the tail exactly, which would look like emptiness.
            if len <= self.ring_len - head { Some(head) } else { (len < tail).then_some(0) }
        } else {
            (head + len < tail).then_some(head)
        }
    }

    fn total(&self, len: usize) -> usize {
        (self.header_len + len.max(FRAME_MIN)).next_multiple_of(ALIGN)
    }

    fn has_descriptors(&self) -> bool {
        self.queue.free_count() >= if self.split_header { 2 } else { 1 }
    }

    /// Whether a frame of any size fits.
    pub(crate) fn can_transmit(&mut self) -> bool {
        if self.has_descriptors() && self.room(self.total(self.frame_max)).is_some() {
            return true;
        }
        self.reclaim();
        let fits = self.has_descriptors() && self.room(self.total(self.frame_max)).is_some();
        self.starved |= !fits;
        fits
    }

    /// Takes a frame of `len` bytes which `fill` writes; whether it was taken.
    pub(crate) fn transmit(
        &mut self,
        len: usize,
        capabilities: &NicCapabilities,
        fill: &mut dyn FnMut(&mut [u8]) -> TxMeta,
    ) -> bool {
        if len > self.frame_max {
            return false;
        }
        let total = self.total(len);
        let mut place = self.room(total).filter(|_| self.has_descriptors());
        if place.is_none() {
            self.reclaim();
            place = self.room(total).filter(|_| self.has_descriptors());
        }
        let Some(start) = place else {
            self.starved = true;
            return false;
        };
        let frame_at = start + self.header_len;
        let sent = len.max(FRAME_MIN);
        // SAFETY: the stretch is free, so the device knows nothing of it, and `self` is borrowed.
        let meta = unsafe {
            self.memory.with_bytes(frame_at, sent, |bytes| {
                bytes[len..].fill(0);
                fill(&mut bytes[..len])
            })
        };
        let Some(header) = header(&meta, capabilities, len) else {
            self.refused += 1;
            return true;
        };
        self.memory.write(start, header[0]);
        self.memory.write(start + 8, header[1] as u16);
        if self.header_len > 10 {
            self.memory.write(start + 10, 0u16);
        }
        let segment = |at, len: usize| Segment {
            bus: self.memory.bus(at),
            len: len as u32,
            direction: Direction::ToDevice,
        };
        let head = if self.split_header {
            let segments = [segment(start, self.header_len), segment(frame_at, sent)];
            self.queue.add(&segments)
        } else {
            let segments = [segment(start, self.header_len + sent)];
            self.queue.add(&segments)
        };
        let head = head.expect("descriptors were counted");
        self.numbers[usize::from(head)] = self.first + self.entries.len() as u64;
        self.entries.push_back(Entry { start, end: start + total, done: false });
        true
    }

    /// Takes back what was sent; whether there was anything.
    pub(crate) fn reclaim(&mut self) -> bool {
        let mut worked = false;
        for _ in 0..self.queue.size() {
            match self.queue.pop() {
                Next::Empty => break,
                Next::Nonsense(_) => continue,
                Next::Chain(used) => {
                    let number = self.numbers[usize::from(used.head)];
                    self.entries[(number - self.first) as usize].done = true;
                    worked = true;
                }
            }
        }
        while self.entries.front().is_some_and(|e| e.done) {
            self.entries.pop_front();
            self.first += 1;
        }
        worked
    }

    /// If a frame found no room: whether there is some now.
    pub(crate) fn has_news(&mut self) -> bool {
        self.starved && self.reclaim() && {
            self.starved = false;
            true
        }
    }

    pub(crate) fn kick(&mut self, transport: &dyn Transport) -> bool {
        self.queue.kick(transport)
    }

    /// Asks for an interrupt when something was sent, but only if somebody waits for that.
    pub(crate) fn arm(&mut self) -> bool {
        !self.starved || self.queue.arm()
    }

    pub(crate) fn disarm(&mut self) {
        self.queue.disarm();
    }

    pub(crate) fn leak(self) {
        self.queue.leak();
        self.memory.leak();
    }
}

/// The first 10 bytes of a frame's header, as words; `None` if it asks for what the device cannot do, or for
/// something outside the frame.
fn header(meta: &TxMeta, capabilities: &NicCapabilities, len: usize) -> Option<[u64; 2]> {
    let mut low = 0u64;
    let mut high = 0u64;
    if let Some(checksum) = meta.checksum {
        let (start, offset) = (u64::from(checksum.start), u64::from(checksum.offset));
        if !capabilities.tx_checksum || start + offset + 2 > len as u64 {
            return None;
        }
        low |= u64::from(FLAG_NEEDS_CHECKSUM) | start << 48;
        high = offset;
    }
    if let Some(cut) = meta.segmentation {
        let (kind, able) = match cut.kind {
            Segmentation::Tcp4 => (GSO_TCP4, capabilities.tx_tcp4_segmentation),
            Segmentation::Tcp6 => (GSO_TCP6, capabilities.tx_tcp6_segmentation),
        };
        let sane = cut.segment_size > 0 && usize::from(cut.header_len) <= len && meta.checksum.is_some();
        if !able || !sane {
            return None;
        }
        low |= u64::from(kind) << 8 | u64::from(cut.header_len) << 16 | u64::from(cut.segment_size) << 32;
    }
    Some([low, high])
}

#[cfg(test)]
mod tests {
    use super::*;
    use moraine_platform::{TxChecksum, TxSegmentation};

    #[test]
    fn headers_say_what_is_asked_and_refuse_what_cannot_be() {
        let able = NicCapabilities { tx_checksum: true, tx_tcp4_segmentation: true, ..Default::default() };
        assert_eq!(header(&TxMeta::default(), &NicCapabilities::default(), 60), Some([0, 0]));
        let checksum = Some(TxChecksum { start: 34, offset: 16 });
        let plain = TxMeta { checksum, segmentation: None };
        assert_eq!(header(&plain, &able, 60), Some([1 | 34 << 48, 16]));
        assert_eq!(header(&plain, &NicCapabilities::default(), 60), None);
        assert_eq!(header(&plain, &able, 51), None, "the checksum would lie outside");
        let cut = |kind, segment_size| {
            let segmentation = Some(TxSegmentation { kind, segment_size, header_len: 54 });
            header(&TxMeta { checksum, segmentation }, &able, 4000)
        };
        assert_eq!(cut(Segmentation::Tcp4, 1460), Some([1 | 1 << 8 | 54 << 16 | 1460 << 32 | 34 << 48, 16]));
        assert_eq!(cut(Segmentation::Tcp6, 1440), None);
        assert_eq!(cut(Segmentation::Tcp4, 0), None);
    }
}
