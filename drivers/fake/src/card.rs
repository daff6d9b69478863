//! virtio-net on a wire (virtio 1.2 §5.1): cuts large segments, fills in checksums, verifies those of what arrives, and
//! spreads long frames over several buffers, each where the driver agreed to it.

use crate::board::Board;
use crate::function::Function;
use crate::virtio::{Backend, Bus, Chain, EVENT_IDX, INDIRECT, VERSION_1, Virtio};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

const KIND: u32 = 1;
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const HOST_TSO: u64 = 1 << 11 | 1 << 12;
const MRG_RXBUF: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const BASE: u64 = MAC | STATUS | MTU | VERSION_1 | EVENT_IDX | INDIRECT;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const HEADER: usize = 12;
const STATUS_AT: usize = 6;
const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_VALID: u8 = 2;
const GSO_TCP4: u8 = 1;
/// Frames that wait for buffers, at most; more are lost.
const WAITING_MAX: usize = 256;

const ETHERNET: usize = 14;
const FRAME_MIN: usize = 60;
const IP4_TOTAL_LEN: usize = ETHERNET + 2;
const IP4_CHECKSUM: usize = ETHERNET + 10;
const IP4_ADDRESSES: usize = ETHERNET + 12;
const PROTOCOL_TCP: u8 = 6;
/// Within a TCP header.
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_FIN_PSH: u8 = 1 | 8;
const TCP_CHECKSUM: usize = 16;

/// Where a card's frames go.
pub trait Wire {
    /// A finished frame leaves.
    fn send(&self, frame: Vec<u8>);
}

/// What a card offers to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Nothing.
    None,
    /// Checksums, and buffers that merge.
    Checksums,
    /// Segmentation as well.
    All,
}

/// A network card.
pub struct VirtioCard {
    wire: Rc<dyn Wire>,
    device: RefCell<Weak<Virtio>>,
    arrived: RefCell<VecDeque<Vec<u8>>>,
    /// Receive buffers that were fetched.
    buffers: RefCell<VecDeque<Chain>>,
}

impl VirtioCard {
    /// Attaches a card as device number `index`.
    pub fn attach(
        index: u8,
        board: &Rc<Board>,
        (mac, mtu): ([u8; 6], u16),
        offloads: Offloads,
        wire: Rc<dyn Wire>,
        seed: u64,
    ) -> (Rc<VirtioCard>, Rc<Function>) {
        let mut config = vec![0; HEADER];
        config[..6].copy_from_slice(&mac);
        config[STATUS_AT] = 1;
        config[8] = 1;
        config[10..].copy_from_slice(&mtu.to_le_bytes());
        let card = Rc::new(VirtioCard {
            wire,
            device: RefCell::default(),
            arrived: RefCell::default(),
            buffers: RefCell::default(),
        });
        let features = BASE
            | match offloads {
                Offloads::None => 0,
                Offloads::Checksums => CSUM | GUEST_CSUM | MRG_RXBUF,
                Offloads::All => CSUM | GUEST_CSUM | MRG_RXBUF | HOST_TSO,
            };
        let (device, function) =
            Virtio::attach_as(index, board, (Bus::Pci, KIND), (features, config), card.clone(), seed);
        *card.device.borrow_mut() = Rc::downgrade(&device);
        (card, function)
    }

    /// A frame came in from the wire.
    pub fn arrive(&self, frame: Vec<u8>) {
        let mut arrived = self.arrived.borrow_mut();
        if arrived.len() < WAITING_MAX {
            arrived.push_back(frame);
            drop(arrived);
            if let Some(device) = self.device.borrow().upgrade() {
                device.attend();
            }
        }
    }

    /// The link went up or down.
    pub fn set_link(&self, up: bool) {
        if let Some(device) = self.device.borrow().upgrade() {
            device.config.borrow_mut()[STATUS_AT] = up.into();
        }
    }

    /// Puts a frame into receive buffers; whether there were enough.
    fn deliver(&self, device: &Virtio, frame: &[u8]) -> bool {
        let mergeable = device.accepted() & MRG_RXBUF != 0;
        let mut bytes = vec![0; HEADER];
        if device.accepted() & GUEST_CSUM != 0
            && device.random.borrow_mut().chance(50)
            && tcp4_checksum_is_right(frame)
        {
            bytes[0] = CHECKSUM_VALID;
        }
        bytes.extend(frame);
        let mut buffers = self.buffers.borrow_mut();
        let (mut count, mut room) = (0, 0);
        while room < bytes.len() {
            if count == buffers.len() {
                let Some(chain) = device.draw(RECEIVE) else { return false };
                buffers.push_back(chain);
            }
            room += buffers[count].writable_len();
            count += 1;
        }
        assert!(mergeable || count == 1, "one buffer holds a frame");
        bytes[10..HEADER].copy_from_slice(&(count as u16).to_le_bytes());
        let mut rest = &bytes[..];
        for chain in buffers.drain(..count) {
            let len = chain.writable_len().min(rest.len());
            chain.write(&rest[..len]);
            rest = &rest[len..];
            device.push_used(RECEIVE, chain.head.into(), len as u32);
        }
        true
    }

    /// Sends a frame, as long as one must be.
    fn leave(&self, mut frame: Vec<u8>) {
        frame.resize(frame.len().max(FRAME_MIN), 0);
        self.wire.send(frame);
    }

    fn transmit(&self, header: &[u8; HEADER], mut frame: Vec<u8>) {
        let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (header_len, segment, start, offset) = (word(2), word(4), word(6), word(8));
        if header[0] & NEEDS_CHECKSUM == 0 {
            assert_eq!(header[1], 0, "segmentation needs checksums");
            return self.leave(frame);
        }
        if header[1] == 0 {
            fill_checksum(&mut frame, start, offset);
            return self.leave(frame);
        }
        assert_eq!(header[1], GSO_TCP4, "the stack has only segments of IPv4 cut");
        let ip_len = usize::from(u16::from_be_bytes([frame[IP4_TOTAL_LEN], frame[IP4_TOTAL_LEN + 1]]));
        frame.truncate(ETHERNET + ip_len);
        let (headers, payload) = frame.split_at(header_len);
        let count = payload.len().div_ceil(segment);
        for (n, piece) in payload.chunks(segment).enumerate() {
            let mut cut = [headers, piece].concat();
            let len = (cut.len() - ETHERNET) as u16;
            cut[IP4_TOTAL_LEN..IP4_TOTAL_LEN + 2].copy_from_slice(&len.to_be_bytes());
            cut[IP4_CHECKSUM..IP4_CHECKSUM + 2].fill(0);
            let sum = !folded(sum(&cut[ETHERNET..start]));
            cut[IP4_CHECKSUM..IP4_CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
            let at = start + TCP_SEQUENCE;
            let first = u32::from_be_bytes([cut[at], cut[at + 1], cut[at + 2], cut[at + 3]]);
            let sequence = first.wrapping_add((n * segment) as u32);
            cut[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            if n + 1 < count {
                cut[start + TCP_FLAGS] &= !TCP_FIN_PSH;
            }
            let pseudo = folded(pseudo_sum(&cut, start));
            let at = start + TCP_CHECKSUM;
            cut[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            fill_checksum(&mut cut, start, offset);
            self.leave(cut);
        }
    }
}

impl Backend for VirtioCard {
    fn arrived(&self, device: &Virtio, queue: u16, chain: Chain) {
        if queue == RECEIVE {
            return self.buffers.borrow_mut().push_back(chain);
        }
        assert!(chain.writable.is_empty(), "a frame to be sent is only read");
        let mut bytes = chain.read();
        let frame = bytes.split_off(HEADER);
        device.push_used(TRANSMIT, chain.head.into(), 0);
        self.transmit(&bytes.try_into().expect("a header"), frame);
    }

    fn step(&self, device: &Virtio) -> bool {
        let mut arrived = self.arrived.borrow_mut();
        while let Some(first) = arrived.front() {
            if !self.deliver(device, first) {
                return true;
            }
            arrived.pop_front();
        }
        false
    }

    fn reset(&self) {
        self.buffers.borrow_mut().clear();
        self.arrived.borrow_mut().clear();
    }
}

/// The sum of 16-bit words.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0))).sum()
}

/// The same as a ones' complement sum of 16 bits.
fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header of a TCP segment over IPv4 that begins at `start`.
fn pseudo_sum(frame: &[u8], start: usize) -> u64 {
    sum(&frame[IP4_ADDRESSES..IP4_ADDRESSES + 8]) + u64::from(PROTOCOL_TCP) + (frame.len() - start) as u64
}

/// Completes a checksum that holds the pseudo header's sum.
fn fill_checksum(frame: &mut [u8], start: usize, offset: usize) {
    let sum = !folded(sum(&frame[start..]));
    frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Whether a frame is a TCP segment over IPv4 without options, whole and sound.
fn tcp4_checksum_is_right(frame: &[u8]) -> bool {
    let start = ETHERNET + 20;
    if frame.len() < start + 20 || frame[12..15] != [0x08, 0x00, 0x45] || frame[ETHERNET + 9] != PROTOCOL_TCP
    {
        return false;
    }
    let ip_len = usize::from(u16::from_be_bytes([frame[IP4_TOTAL_LEN], frame[IP4_TOTAL_LEN + 1]]));
    let Some(frame) = frame.get(..ETHERNET + ip_len).filter(|frame| frame.len() >= start + 20) else {
        return false;
    };
    folded(sum(&frame[start..]) + pseudo_sum(frame, start)) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment from 10.0.0.1 to 10.0.0.2 with a right checksum.
    fn segment(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; ETHERNET];
        frame[12..].copy_from_slice(&[0x08, 0x00]);
        let len = (40 + payload.len()) as u16;
        frame.extend([0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0, 0, 64, PROTOCOL_TCP, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 80, 8, 1, 0, 0, 0, 7, 0, 0, 0, 9, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        let pseudo = folded(pseudo_sum(&frame, 34));
        frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
        fill_checksum(&mut frame, 34, TCP_CHECKSUM);
        frame
    }

    #[derive(Default)]
    struct Log(RefCell<Vec<Vec<u8>>>);
    impl Wire for Log {
        fn send(&self, frame: Vec<u8>) {
            self.0.borrow_mut().push(frame);
        }
    }

    #[test]
    fn a_changed_byte_is_noticed_and_padding_is_not() {
        let good = segment(b"some content, of an odd length.");
        assert!(tcp4_checksum_is_right(&good));
        assert!(tcp4_checksum_is_right(&[&good[..], &[1, 2, 3]].concat()));
        for at in 26..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(!tcp4_checksum_is_right(&bad), "byte {at}");
        }
    }

    #[test]
    fn a_large_segment_is_cut_into_right_ones() {
        let log = Rc::new(Log::default());
        let card = VirtioCard {
            wire: log.clone(),
            device: RefCell::default(),
            arrived: RefCell::default(),
            buffers: RefCell::default(),
        };
        let payload: Vec<u8> = (0..2500u32).map(|n| n as u8).collect();
        let mut header = [0; HEADER];
        header[..10].copy_from_slice(&[NEEDS_CHECKSUM, GSO_TCP4, 54, 0, 0xe8, 0x03, 34, 0, 16, 0]);
        card.transmit(&header, segment(&payload));
        let cut = log.0.borrow();
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [1054, 1054, 554]);
        assert!(cut.iter().all(|frame| tcp4_checksum_is_right(frame)));
        assert_eq!(cut.iter().flat_map(|frame| frame[54..].to_vec()).collect::<Vec<u8>>(), payload);
        assert_eq!([cut[0][47], cut[1][47], cut[2][47]], [0x10, 0x10, 0x18], "the push is the last one's");
        assert_eq!(cut[2][38..42], 2007u32.to_be_bytes());
    }
}
