//! The virtio-net driver against a fake card: frames both ways, offloads, back-pressure, nonsense.

use moraine_drivers::{Found, Hal, MmioWindow};
use moraine_fake::virtio::{Backend, Bus, Chain, EVENT_IDX, INDIRECT, MMIO, VERSION_1, Virtio};
use moraine_fake::{Board, Function, Random, probe};
use moraine_platform::{NicDevice, RxChecksum, RxMeta, Segmentation, TxChecksum, TxMeta, TxSegmentation};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const GUEST_TSO: u64 = 1 << 7 | 1 << 8;
const HOST_TSO: u64 = 1 << 11 | 1 << 12;
const MRG_RXBUF: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const ANY_LAYOUT: u64 = 1 << 27;
const BASE: u64 = MAC | STATUS | MTU;
const OFFLOADS: u64 = CSUM | GUEST_CSUM | GUEST_TSO | HOST_TSO | MRG_RXBUF;
const MODERN: u64 = VERSION_1 | EVENT_IDX | INDIRECT;
const BUSES: [Bus; 3] = [Bus::Pci, Bus::Mmio, Bus::MmioLegacy];

/// A frame on its way to the driver.
#[derive(Clone, Default)]
struct Incoming {
    header: [u8; 10],
    frame: Vec<u8>,
}

/// The wire behind the card.
struct Wire {
    incoming: RefCell<VecDeque<Incoming>>,
    /// Header and frame of each frame sent.
    sent: RefCell<Vec<(Vec<u8>, Vec<u8>)>>,
    /// Chains that the card has fetched and not answered.
    held: RefCell<Vec<Chain>>,
    /// Does not finish sending while set.
    stuck: Cell<bool>,
    /// Takes receive buffers in another order than they were given.
    shuffles: Cell<bool>,
    spare: RefCell<Vec<Chain>>,
    descriptors: Cell<usize>,
}

fn header_len(device: &Virtio, bus: Bus) -> usize {
    if bus == Bus::MmioLegacy && device.accepted() & MRG_RXBUF == 0 { 10 } else { 12 }
}

impl Wire {
    /// Puts a frame into receive buffers; whether there were enough.
    fn deliver(&self, device: &Virtio, bus: Bus, incoming: &Incoming) -> bool {
        let header_len = header_len(device, bus);
        let mut bytes = incoming.header.to_vec();
        bytes.resize(header_len, 0);
        bytes.extend(&incoming.frame);
        let mut chains = Vec::new();
        let mut room = 0;
        let mut spare = self.spare.borrow_mut();
        while room < bytes.len() {
            while self.shuffles.get() && spare.len() < 20 {
                let Some(chain) = device.draw(0) else { break };
                spare.push(chain);
            }
            let drawn = match spare.len() {
                0 => device.draw(0),
                n => Some(spare.remove(device.random.borrow_mut().below(n as u64) as usize)),
            };
            let Some(chain) = drawn else { break };
            room += chain.writable_len();
            chains.push(chain);
        }
        let mergeable = device.accepted() & MRG_RXBUF != 0;
        if room < bytes.len() || (chains.len() > 1 && !mergeable) {
            // Too little: what was fetched serves the next frame.
            chains.append(&mut spare);
            *spare = chains;
            assert!(mergeable || room < bytes.len(), "one buffer holds a frame");
            return false;
        }
        if header_len == 12 {
            bytes[10..12].copy_from_slice(&(chains.len() as u16).to_le_bytes());
        }
        for chain in chains {
            let n = chain.writable_len().min(bytes.len());
            chain.write(&bytes[..n]);
            bytes.drain(..n);
            device.push_used(0, chain.head.into(), n as u32);
        }
        true
    }
}

struct Card {
    wire: Rc<Wire>,
    bus: Bus,
}

impl Backend for Card {
    fn arrived(&self, device: &Virtio, queue: u16, chain: Chain) {
        if queue == 0 {
            return self.wire.spare.borrow_mut().push(chain);
        }
        assert!(chain.writable.is_empty());
        let header_len = header_len(device, self.bus);
        let split = self.bus == Bus::MmioLegacy && device.accepted() & ANY_LAYOUT == 0;
        assert!(!split || chain.readable[0].len == header_len, "legacy devices want the header alone");
        self.wire.descriptors.set(chain.descriptors);
        self.wire.held.borrow_mut().push(chain);
    }

    fn step(&self, device: &Virtio) -> bool {
        let mut incoming = self.wire.incoming.borrow_mut();
        while let Some(first) = incoming.front() {
            if !self.wire.deliver(device, self.bus, first) {
                break;
            }
            incoming.pop_front();
        }
        while !self.wire.stuck.get() && !self.wire.held.borrow().is_empty() {
            let count = self.wire.held.borrow().len() as u64;
            // Sending ends in any order.
            let at = device.random.borrow_mut().below(count.min(4)) as usize;
            let chain = self.wire.held.borrow_mut().remove(at);
            let mut bytes = chain.read();
            let frame = bytes.split_off(header_len(device, self.bus));
            self.wire.sent.borrow_mut().push((bytes, frame));
            device.push_used(1, chain.head.into(), 0);
        }
        false
    }

    fn reset(&self) {
        self.wire.held.borrow_mut().clear();
        self.wire.spare.borrow_mut().clear();
    }
}

struct Bench {
    board: Rc<Board>,
    device: Rc<Virtio>,
    function: Rc<Function>,
    wire: Rc<Wire>,
    found: Found,
}

impl Bench {
    fn with(bus: Bus, features: u64, seed: u64, edit: impl FnOnce(&Virtio)) -> Bench {
        let board = Board::new();
        let wire = Rc::new(Wire {
            incoming: RefCell::default(),
            sent: RefCell::default(),
            held: RefCell::default(),
            stuck: Cell::new(false),
            shuffles: Cell::new(false),
            spare: RefCell::default(),
            descriptors: Cell::new(0),
        });
        let mut config = vec![0x52, 0x54, 0, 1, 2, 3, 1, 0, 1, 0, 0, 0];
        config[10..12].copy_from_slice(&1500u16.to_le_bytes());
        let card = Rc::new(Card { wire: wire.clone(), bus });
        let (device, function) = Virtio::attach(&board, bus, 1, features, config, card, seed);
        edit(&device);
        let found = match bus {
            Bus::Pci => probe(&board, std::slice::from_ref(&function), &[]),
            _ => probe(&board, &[], &[MmioWindow { address: MMIO, len: 0x200 }]),
        };
        Bench { board, device, function, wire, found }
    }

    fn new(bus: Bus) -> Bench {
        Bench::with(bus, BASE | OFFLOADS | MODERN | ANY_LAYOUT, 5, |_| ())
    }

    fn nic(&self) -> Rc<dyn NicDevice> {
        assert_eq!(self.found.failures, [] as [String; 0]);
        self.found.nics[0].clone()
    }

    fn turns(&self, count: usize) {
        for _ in 0..count {
            self.found.services[0].poll();
            self.board.step();
            self.found.services[0].poll();
        }
    }

    fn arrive(&self, frame: Vec<u8>) {
        self.wire.incoming.borrow_mut().push_back(Incoming { frame, ..Incoming::default() });
    }

    fn receive(&self) -> Option<(Vec<u8>, RxMeta)> {
        let mut got = None;
        let some = self.nic().receive(&mut |frame, meta| got = Some((frame.to_vec(), meta)));
        assert_eq!(some, got.is_some());
        got
    }

    fn transmit(&self, frame: &[u8], meta: TxMeta) -> bool {
        self.nic().transmit(frame.len(), &mut |out| {
            out.copy_from_slice(frame);
            meta
        })
    }
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

#[test]
fn the_card_tells_what_it_is_and_can() {
    for bus in BUSES {
        let nic = Bench::new(bus).nic();
        assert_eq!(nic.mac(), [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(nic.mtu(), 1500);
        assert!(nic.link_up());
        let c = nic.capabilities();
        assert!(
            c.tx_checksum && c.rx_checksum && c.tx_tcp4_segmentation && c.tx_tcp6_segmentation && c.rx_large
        );
        assert_eq!(c.max_frame, 65535 + 14);
    }
    let plain = Bench::with(Bus::Pci, BASE | VERSION_1, 1, |_| ()).nic().capabilities();
    assert!(!plain.tx_checksum && !plain.rx_checksum && !plain.tx_tcp4_segmentation && !plain.rx_large);
    assert_eq!(plain.max_frame, 1514);
}

#[test]
fn features_are_taken_only_with_those_they_need() {
    let accepted = |features| {
        let bench = Bench::with(Bus::Pci, BASE | VERSION_1 | features, 1, |_| ());
        bench.nic();
        bench.device.accepted()
    };
    assert_eq!(accepted(HOST_TSO) & HOST_TSO, 0, "segmentation needs checksums");
    assert_eq!(accepted(GUEST_TSO | MRG_RXBUF) & GUEST_TSO, 0, "large receive needs checksums");
    assert_eq!(accepted(GUEST_TSO | GUEST_CSUM) & GUEST_TSO, 0, "and mergeable buffers");
    assert_eq!(accepted(OFFLOADS) & OFFLOADS, OFFLOADS);
}

#[test]
fn a_card_without_an_address_is_refused_and_a_senseless_mtu_ignored() {
    let bench = Bench::with(Bus::Pci, VERSION_1, 1, |_| ());
    assert!(bench.found.nics.is_empty());
    assert!(bench.found.failures[0].contains("address"));
    for (told, mtu) in [(9000u16, 9000), (0, 1500), (65535, 1500), (1280, 1280)] {
        let bench = Bench::with(Bus::Pci, BASE | VERSION_1, 1, |d| {
            d.config.borrow_mut()[10..12].copy_from_slice(&told.to_le_bytes());
        });
        assert_eq!(bench.nic().mtu(), mtu);
        assert_eq!(bench.nic().capabilities().max_frame, mtu + 14);
        let frame = pattern(mtu + 14, 1);
        bench.arrive(frame.clone());
        assert!(bench.transmit(&frame, TxMeta::default()));
        assert!(!bench.transmit(&pattern(mtu + 15, 1), TxMeta::default()));
        bench.turns(20);
        assert!(bench.receive().unwrap().0 == frame);
        assert!(bench.wire.sent.borrow()[0].1 == frame);
    }
}

#[test]
fn frames_go_both_ways_on_every_bus_and_layout() {
    for bus in BUSES {
        for features in [0, MRG_RXBUF, ANY_LAYOUT, OFFLOADS, OFFLOADS | ANY_LAYOUT | EVENT_IDX | INDIRECT] {
            let bench = Bench::with(bus, BASE | VERSION_1 | features, 9, |_| ());
            for i in 0..2000u64 {
                let frame = pattern(60 + (i as usize * 37) % 1400, i);
                bench.arrive(frame.clone());
                assert!(bench.transmit(&frame, TxMeta::default()), "{bus:?} {features:#x} frame {i}");
                bench.turns(2);
                while bench.wire.sent.borrow().is_empty() || !bench.nic().can_receive() {
                    bench.turns(1);
                }
                assert!(bench.receive().unwrap().0 == frame, "{bus:?} {features:#x} frame {i}");
                assert!(bench.wire.sent.borrow_mut().pop().unwrap().1 == frame);
            }
        }
    }
}

#[test]
fn large_frames_lie_in_one_piece_and_are_copied_only_at_the_rings_end() {
    for shuffles in [false, true] {
        let bench = Bench::new(Bus::Pci);
        bench.wire.shuffles.set(shuffles);
        for i in 0..100 {
            let frame = pattern(64_000 + i * 13, i as u64);
            bench.arrive(frame.clone());
            let small = pattern(100, 1000 + i as u64);
            bench.arrive(small.clone());
            bench.turns(20);
            assert!(bench.receive().unwrap().0 == frame, "frame {i}");
            assert!(bench.receive().unwrap().0 == small, "frame {i}");
            assert_eq!(bench.receive(), None);
        }
    }
}

#[test]
fn what_the_card_says_about_a_frame_arrives_with_it() {
    let bench = Bench::new(Bus::Pci);
    let cases = [
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], RxMeta::default()),
        ([2, 0, 0, 0, 0, 0, 0, 0, 0, 0], RxMeta { checksum: RxChecksum::Valid, segment_size: 0 }),
        ([1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0], RxMeta { checksum: RxChecksum::Partial, segment_size: 1460 }),
    ];
    for (header, meta) in cases {
        bench.wire.incoming.borrow_mut().push_back(Incoming { header, frame: pattern(3000, 1) });
        bench.turns(10);
        assert_eq!(bench.receive().unwrap().1, meta);
    }
}

#[test]
fn what_the_stack_asks_for_is_in_the_header_and_too_much_is_dropped() {
    let bench = Bench::new(Bus::Pci);
    let checksum = Some(TxChecksum { start: 34, offset: 16 });
    let segmentation = Some(TxSegmentation { kind: Segmentation::Tcp4, segment_size: 1460, header_len: 54 });
    assert!(bench.transmit(&pattern(60_000, 1), TxMeta { checksum, segmentation }));
    bench.turns(10);
    let (header, frame) = bench.wire.sent.borrow_mut().pop().unwrap();
    assert_eq!(header, [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0]);
    assert!(frame == pattern(60_000, 1));
    assert_eq!(bench.wire.descriptors.get(), 1, "header and frame are one piece");
    let outside = TxMeta { checksum: Some(TxChecksum { start: 59, offset: 16 }), segmentation: None };
    let alone = TxMeta { checksum: None, segmentation };
    for meta in [outside, alone] {
        assert!(bench.transmit(&pattern(60, 1), meta), "taken, and dropped");
        bench.turns(10);
        assert!(bench.wire.sent.borrow().is_empty());
    }
    assert!(bench.transmit(&pattern(10, 1), TxMeta::default()));
    bench.turns(10);
    let (_, frame) = bench.wire.sent.borrow_mut().pop().unwrap();
    assert_eq!((frame.len(), &frame[10..]), (60, &[0; 50][..]), "short frames are padded");
}

#[test]
fn a_stuck_card_pushes_back_and_tells_when_there_is_room_again() {
    for features in [OFFLOADS, 0] {
        let bench = Bench::with(Bus::Pci, BASE | MODERN | features, 5, |_| ());
        let nic = bench.nic();
        bench.wire.stuck.set(true);
        let len = nic.capabilities().max_frame;
        let mut taken = 0;
        while bench.transmit(&pattern(len, taken), TxMeta::default()) {
            taken += 1;
            bench.turns(1);
            assert!(taken < 10_000);
        }
        assert!(taken >= 8, "{taken}");
        assert!(!nic.can_transmit());
        bench.turns(20);
        let ticket = nic.activity().ticket();
        bench.turns(20);
        assert_eq!(nic.activity().ticket(), ticket, "nothing to tell while stuck");
        assert!(bench.found.services[0].arm());
        bench.board.interrupts.set(0);
        bench.wire.stuck.set(false);
        bench.board.step();
        assert!(bench.board.interrupts.get() >= 1, "somebody waits for room");
        bench.turns(20);
        assert!(nic.activity().ticket() > ticket);
        assert!(nic.can_transmit());
        assert_eq!(bench.wire.sent.borrow().len() as u64, taken);
    }
}

#[test]
fn sent_frames_interrupt_nobody_who_does_not_wait() {
    let bench = Bench::new(Bus::Pci);
    bench.turns(5);
    bench.board.interrupts.set(0);
    for i in 0..200 {
        assert!(bench.transmit(&pattern(100, i), TxMeta::default()));
        bench.found.services[0].poll();
        assert!(bench.found.services[0].arm());
        bench.board.step();
    }
    assert_eq!(bench.board.interrupts.get(), 0);
}

#[test]
fn arriving_frames_wake_a_sleeping_machine_even_if_others_lie_unfetched() {
    for bus in BUSES {
        let bench = Bench::new(bus);
        let nic = bench.nic();
        for i in 0..50 {
            assert!(bench.found.services[0].arm(), "{bus:?}: nothing new");
            bench.board.interrupts.set(0);
            let ticket = nic.activity().ticket();
            bench.arrive(pattern(100, i));
            for _ in 0..100 {
                bench.board.step();
            }
            assert_eq!(bench.board.interrupts.get(), 1, "{bus:?}");
            assert!(!bench.found.services[0].arm(), "there is something new");
            assert!(bench.found.services[0].poll());
            assert!(nic.activity().ticket() > ticket);
            assert!(!bench.found.services[0].poll(), "reported once");
        }
        (0..50).for_each(|i| assert!(bench.receive().unwrap().0 == pattern(100, i)));
    }
}

#[test]
fn a_lost_interrupt_of_a_line_is_made_up_for_in_time() {
    let bench = Bench::new(Bus::Mmio);
    let service = &bench.found.services[0];
    assert!(service.arm());
    let deadline = service.deadline().expect("somebody must look").since(bench.board.now());
    assert!(deadline <= Duration::from_millis(50), "{deadline:?}");
    bench.arrive(pattern(100, 1));
    bench.turns(100);
    // Whatever became of the interrupt: the look at the deadline finds the frame.
    assert!(service.poll() || bench.nic().can_receive());
    assert!(bench.receive().unwrap().0 == pattern(100, 1));
    let bench = Bench::new(Bus::Pci);
    assert_eq!(
        bench.found.services[0].deadline(),
        None,
        "messages do not get lost: an idle card wakes nobody"
    );
}

#[test]
fn a_link_that_goes_down_is_noticed() {
    let bench = Bench::new(Bus::Pci);
    let nic = bench.nic();
    let ticket = nic.activity().ticket();
    bench.device.config.borrow_mut()[6] = 0;
    bench.board.advance(Duration::from_secs(2));
    bench.turns(1);
    assert!(!nic.link_up());
    assert!(nic.activity().ticket() > ticket);
}

#[test]
fn answering_inside_receive_works() {
    let bench = Bench::new(Bus::Pci);
    bench.arrive(pattern(200, 7));
    bench.turns(10);
    let nic = bench.nic();
    assert!(nic.receive(&mut |frame, _| {
        assert!(nic.transmit(frame.len(), &mut |out| {
            out.copy_from_slice(frame);
            TxMeta::default()
        }));
    }));
    bench.turns(10);
    assert!(bench.wire.sent.borrow()[0].1 == pattern(200, 7));
}

#[test]
fn dropping_everything_gives_all_memory_back_and_cuts_the_device_off() {
    for bus in BUSES {
        let bench = Bench::new(bus);
        assert!(bench.transmit(&pattern(100, 1), TxMeta::default()));
        let Bench { board, device, function, found, .. } = bench;
        drop(found);
        assert_eq!(board.dma_pages_in_use(), 0);
        assert!(device.is_reset());
        assert!(bus != Bus::Pci || !function.is_bus_master());
    }
}

/// A card that writes anything into the used ring and buffers.
fn nonsense(seed: u64, features: u64) {
    let bench = Bench::with(Bus::Pci, BASE | MODERN | features, seed, |d| d.lies.set(true));
    let nic = bench.nic();
    let mut random = Random(seed);
    for _ in 0..300 {
        match random.below(6) {
            // A buffer with any length, header and buffer count.
            0 | 1 => {
                if let Some(chain) = bench.device.draw(0) {
                    let mut bytes = vec![0; 12];
                    bytes.fill_with(|| random.next() as u8);
                    if random.chance(70) {
                        bytes[10..12].copy_from_slice(&(random.below(5) as u16).to_le_bytes());
                    }
                    chain.write(&bytes);
                    let len = if random.chance(50) { random.below(5000) } else { random.next() };
                    bench.device.push_used(0, chain.head.into(), len as u32);
                }
            }
            2 => bench.device.push_used(0, random.below(300) as u32, random.below(5000) as u32),
            3 => bench.device.push_used(1, random.below(300) as u32, random.next() as u32),
            4 => {
                bench.transmit(&pattern(random.below(1514) as usize, 1), TxMeta::default());
            }
            _ => {
                for _ in 0..random.below(4) {
                    nic.receive(&mut |frame, _| {
                        assert!(frame.len() <= nic.capabilities().max_frame);
                        frame.fill(1);
                    });
                }
            }
        }
        bench.found.services[0].poll();
        bench.found.services[0].arm();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nonsense_from_the_card_harms_nothing(seed: u64, large: bool) {
        nonsense(seed, if large { OFFLOADS } else { 0 });
    }

    #[test]
    fn any_mix_of_frames_arrives_in_order_and_whole(
        seed: u64, shuffles: bool, queue_max in 4u16..600, lens in proptest::collection::vec(60usize..65_000, 1..40),
    ) {
        let bench = Bench::with(Bus::Pci, BASE | MODERN | OFFLOADS, seed, |d| d.queue_max.set(queue_max));
        bench.wire.shuffles.set(shuffles && queue_max > 128);
        let room = 4000 * (1usize << queue_max.min(256).ilog2());
        let mut expected = VecDeque::new();
        for (i, &len) in lens.iter().enumerate() {
            let frame = pattern(len.min(room), seed ^ i as u64);
            bench.arrive(frame.clone());
            expected.push_back(frame);
            let out = pattern(len, !seed ^ i as u64);
            while !bench.transmit(&out, TxMeta::default()) {
                bench.turns(1);
            }
            if i % 3 == 0 {
                bench.turns(5);
                while let Some((frame, _)) = bench.receive() {
                    prop_assert!(frame == expected.pop_front().unwrap());
                }
            }
        }
        let mut turns = 0;
        while !expected.is_empty() || bench.wire.sent.borrow().len() < lens.len() {
            turns += 1;
            prop_assert!(turns < 10_000);
            bench.turns(1);
            while let Some((frame, _)) = bench.receive() {
                prop_assert!(frame == expected.pop_front().unwrap());
            }
        }
    }
}
