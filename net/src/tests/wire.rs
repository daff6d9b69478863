//! Two network cards on a wire. The cards do what their capabilities promise (sum, cut, join), so that what the
//! stack asks of them is checked; the wire delays every frame and treats some badly.

use super::world::World;
use crate::flow::{ETHERNET_HEADER, fill_tcp_checksum, tcp_headers};
use core::cell::{Cell, RefCell};
use core::time::Duration;
use moraine_platform::sync::Event;
use moraine_platform::{Clock, NicCapabilities, NicDevice, Rng, RxChecksum, RxMeta, Segmentation, TxMeta};
use smoltcp::wire::{Ipv4Packet, Ipv6Packet, TcpPacket};
use std::collections::VecDeque;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

/// How the wire treats frames: chances in 1000.
#[derive(Clone, Copy, Default)]
pub(super) struct Treatment {
    pub(super) lost: u64,
    /// Delivered later than frames sent after it.
    pub(super) late: u64,
    /// One byte of the payload changed.
    pub(super) damaged: u64,
    /// Delivered twice.
    pub(super) doubled: u64,
}

/// A card's kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) mtu: usize,
    pub(super) capabilities: NicCapabilities,
}

/// A card that does nothing for the stack.
pub(super) const PLAIN: Kind = Kind {
    mtu: 1500,
    capabilities: NicCapabilities {
        tx_checksum: false,
        rx_checksum: false,
        tx_tcp4_segmentation: false,
        tx_tcp6_segmentation: false,
        rx_large: false,
        max_frame: 1514,
    },
};

/// A card that sums.
pub(super) const SUMS: Kind = Kind {
    mtu: 1500,
    capabilities: NicCapabilities { tx_checksum: true, rx_checksum: true, ..PLAIN.capabilities },
};

/// A card that sums, cuts and joins.
pub(super) const FULL: Kind = Kind {
    mtu: 1500,
    capabilities: NicCapabilities {
        tx_checksum: true,
        rx_checksum: true,
        tx_tcp4_segmentation: true,
        tx_tcp6_segmentation: true,
        rx_large: true,
        max_frame: 65_550,
    },
};

/// Frames a card can hold in each direction.
const RING: usize = 256;
/// How long a frame is on the wire.
pub(super) const LATENCY: Duration = Duration::from_micros(50);

/// One end of the wire.
pub(super) struct Card {
    world: World,
    mac: [u8; 6],
    kind: Kind,
    received: RefCell<VecDeque<(Vec<u8>, RxMeta)>>,
    activity: Event,
    peer: RefCell<Option<Rc<Card>>>,
    pub(super) treatment: Cell<Treatment>,
    pub(super) unplugged: Cell<bool>,
    /// Frames on their way from here.
    under_way: Cell<usize>,
    refused: Cell<bool>,
    /// Frames sent, and the longest of them.
    pub(super) sent: Cell<u64>,
    pub(super) longest: Cell<usize>,
    /// Frames a test wants to see.
    pub(super) tap: RefCell<Option<Vec<Vec<u8>>>>,
}

/// Two cards on one wire.
pub(super) fn wire(world: &World, a: Kind, b: Kind) -> (Rc<Card>, Rc<Card>) {
    let (a, b) = (Card::new(world, a, 1), Card::new(world, b, 2));
    *a.peer.borrow_mut() = Some(b.clone());
    *b.peer.borrow_mut() = Some(a.clone());
    (a, b)
}

impl Card {
    fn new(world: &World, kind: Kind, last: u8) -> Rc<Card> {
        Rc::new(Card {
            world: world.clone(),
            mac: [2, 0, 0, 0, 0, last],
            kind,
            received: RefCell::default(),
            activity: Event::new(),
            peer: RefCell::default(),
            treatment: Cell::default(),
            unplugged: Cell::default(),
            under_way: Cell::default(),
            refused: Cell::default(),
            sent: Cell::default(),
            longest: Cell::default(),
            tap: RefCell::default(),
        })
    }

    /// Puts another card at this end of the wire, with the address `02:00:00:00:00:last`. This one is dead then.
    pub(super) fn replace(self: &Rc<Card>, last: u8) -> Rc<Card> {
        let card = Card::new(&self.world, self.kind, last);
        let peer = self.peer.borrow().clone().expect("the wire has two ends");
        *peer.peer.borrow_mut() = Some(card.clone());
        *card.peer.borrow_mut() = Some(peer);
        self.unplugged.set(true);
        card
    }

    /// Sends a finished frame on its way.
    pub(super) fn put(self: &Rc<Self>, frame: Vec<u8>, meta: RxMeta) {
        self.sent.set(self.sent.get() + 1);
        if let Some(tap) = &mut *self.tap.borrow_mut() {
            tap.push(frame.clone());
        }
        let how = self.treatment.get();
        let chance = |of: u64| self.world.next_u64() % 1000 < of;
        let copies = if chance(how.doubled) { 2 } else { 1 };
        for _ in 0..copies {
            if self.unplugged.get() || chance(how.lost) {
                continue;
            }
            let mut frame = frame.clone();
            if chance(how.damaged) && frame.len() > 60 {
                let at = 54 + self.world.next_u64() as usize % (frame.len() - 54);
                frame[at] ^= 1 << (self.world.next_u64() % 8);
            }
            let delay = if chance(how.late) { LATENCY * 8 } else { LATENCY };
            let arrival = self.world.sleep(delay);
            let this = self.clone();
            self.under_way.set(self.under_way.get() + 1);
            self.world.start(async move {
                arrival.await;
                this.under_way.set(this.under_way.get() - 1);
                if this.refused.take() {
                    this.activity.notify();
                }
                let peer = this.peer.borrow().clone().expect("the wire has two ends");
                if peer.received.borrow().len() < RING {
                    peer.received.borrow_mut().push_back((frame, meta));
                    peer.activity.notify();
                }
            });
        }
    }

    /// What the card does to a frame the stack gave it.
    fn process(self: &Rc<Self>, frame: Vec<u8>, meta: TxMeta) {
        let peer = self.peer.borrow().clone().expect("the wire has two ends");
        let theirs = peer.kind.capabilities;
        let Some(checksum) = meta.checksum else {
            assert!(meta.segmentation.is_none(), "segmentation needs a checksum");
            return self.put(frame, RxMeta::default());
        };
        assert!(self.kind.capabilities.tx_checksum);
        let tcp = tcp_headers(&frame).expect("only TCP is offloaded");
        assert_eq!((usize::from(checksum.start), checksum.offset), (tcp.start, 16));
        let field = tcp.start + 16;
        assert_eq!(frame[field..field + 2], tcp.pseudo_sum.to_be_bytes(), "the pseudo header is summed");
        let bad_wire = self.treatment.get().damaged > 0;
        match meta.segmentation {
            _ if theirs.rx_large && !bad_wire => {
                let segment_size = meta.segmentation.map_or(0, |s| s.segment_size);
                self.put(frame, RxMeta { checksum: RxChecksum::Partial, segment_size });
            }
            None => self.put(summed(frame), RxMeta::default()),
            Some(how) => {
                let is_v6 = how.kind == Segmentation::Tcp6;
                let caps = self.kind.capabilities;
                assert!(if is_v6 { caps.tx_tcp6_segmentation } else { caps.tx_tcp4_segmentation });
                assert_eq!(usize::from(how.header_len), tcp.end);
                let (headers, payload) = frame.split_at(tcp.end);
                let chunks: Vec<&[u8]> = payload.chunks(usize::from(how.segment_size)).collect();
                for (i, chunk) in chunks.iter().enumerate() {
                    let mut segment = [headers, chunk].concat();
                    let len = segment.len() - ETHERNET_HEADER;
                    if is_v6 {
                        let mut ip = Ipv6Packet::new_unchecked(&mut segment[ETHERNET_HEADER..]);
                        ip.set_payload_len((len - 40) as u16);
                    } else {
                        let mut ip = Ipv4Packet::new_unchecked(&mut segment[ETHERNET_HEADER..]);
                        ip.set_total_len(len as u16);
                        ip.fill_checksum();
                    }
                    let mut header = TcpPacket::new_unchecked(&mut segment[tcp.start..]);
                    let sequence = header.seq_number() + i * usize::from(how.segment_size);
                    header.set_seq_number(sequence);
                    if i + 1 < chunks.len() {
                        header.set_fin(false);
                        header.set_psh(false);
                    }
                    self.put(summed(segment), RxMeta::default());
                }
            }
        }
    }
}

/// The frame with its TCP checksum filled in.
fn summed(mut frame: Vec<u8>) -> Vec<u8> {
    let tcp = tcp_headers(&frame).expect("only TCP is offloaded");
    fill_tcp_checksum(&mut frame, tcp.start);
    frame
}

/// A card as the stack holds it.
pub(super) struct Held(pub(super) Rc<Card>);

impl NicDevice for Held {
    fn mac(&self) -> [u8; 6] {
        self.0.mac
    }
    fn mtu(&self) -> usize {
        self.0.kind.mtu
    }
    fn capabilities(&self) -> NicCapabilities {
        self.0.kind.capabilities
    }
    fn link_up(&self) -> bool {
        !self.0.unplugged.get()
    }
    fn can_receive(&self) -> bool {
        !self.0.received.borrow().is_empty()
    }
    fn receive(&self, take: &mut dyn FnMut(&mut [u8], RxMeta)) -> bool {
        let Some((mut frame, meta)) = self.0.received.borrow_mut().pop_front() else { return false };
        take(&mut frame, meta);
        true
    }
    fn can_transmit(&self) -> bool {
        let room = self.0.under_way.get() < RING;
        if !room {
            self.0.refused.set(true);
        }
        room
    }
    fn transmit(&self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> TxMeta) -> bool {
        assert!(len <= self.0.kind.capabilities.max_frame, "{len} is longer than the card takes");
        if !self.can_transmit() {
            return false;
        }
        let mut frame = vec![0xee; len];
        let meta = fill(&mut frame);
        assert!(meta.segmentation.is_some() || len <= self.0.kind.mtu + ETHERNET_HEADER);
        self.0.longest.set(self.0.longest.get().max(len));
        self.0.process(frame, meta);
        true
    }
    fn activity(&self) -> &Event {
        &self.0.activity
    }
}
