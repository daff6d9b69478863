//! An Ethernet between cards: frames that are late, lost, doubled, damaged or overtaken by the seed, cables that are pulled
//! and plugged in again, and plain cards with a TCP/IP stack on each for hosts that are nothing else.
//!
//! What is damaged is what checksums of IPv4 and TCP or UDP cover: a switch drops what its own check finds wrong.

use crate::random::Random;
use crate::world::{Inner, World};
use moraine_net::{Addressing, Config, Stack, StaticAddress};
use moraine_platform::sync::Event;
use moraine_platform::{Network, NicCapabilities, NicDevice, RxMeta, TxMeta};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::{Rc, Weak};

const HEADER: usize = 14;
/// Shortest frame, as cards pad it.
const FRAME_MIN: usize = 60;
const IPV4: [u8; 2] = [0x08, 0x00];
/// Frames a plain card holds for its stack; more are lost.
const RING: usize = 256;
/// How much later a frame is that others overtake, in longest delays.
const LATE: u64 = 8;
/// Bits of an address that name the network all hosts are on.
const PREFIX: u8 = 8;
/// Bytes for the buffers of a host's connections.
const HOST_BUFFERS: usize = 1 << 20;
/// Connections of a host at once.
const HOST_CONNECTIONS: usize = 16;

/// How frames are treated: times in nanoseconds, chances in a thousand.
#[derive(Clone, Copy, Debug)]
pub struct Treatment {
    /// Shortest and longest time a frame is under way.
    pub delay_ns: (u64, u64),
    /// It never arrives.
    pub lost: u64,
    /// It arrives behind frames that were sent after it.
    pub late: u64,
    /// It arrives with a bit changed.
    pub damaged: u64,
    /// It arrives twice.
    pub doubled: u64,
}

/// What happened to frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Sent into a cable.
    pub sent: u64,
    /// Lost, by chance or because a cable was not plugged in.
    pub lost: u64,
    /// Made late.
    pub late: u64,
    /// Damaged.
    pub damaged: u64,
    /// Doubled.
    pub doubled: u64,
}

/// What is at the end of a cable.
pub trait Socket {
    /// A frame comes in.
    fn arrive(&self, frame: Vec<u8>);
    /// The link goes up or down.
    fn set_link(&self, up: bool);
}

/// The switch and its cables.
pub struct Ethernet {
    world: Weak<Inner>,
    random: RefCell<Random>,
    treatment: Cell<Treatment>,
    mtu: u16,
    cables: RefCell<Vec<Rc<Cable>>>,
    frames: Cell<Frames>,
}

/// A cable, from the switch to one card.
pub struct Cable {
    ethernet: Weak<Ethernet>,
    mac: [u8; 6],
    up: Cell<bool>,
    socket: RefCell<Option<Rc<dyn Socket>>>,
    last_arrival: Cell<u64>,
}

impl Ethernet {
    /// An Ethernet on which IP packets have up to `mtu` bytes.
    pub fn new(world: &World, mtu: u16, treatment: Treatment) -> Rc<Ethernet> {
        Rc::new(Ethernet {
            world: Rc::downgrade(world.inner()),
            random: RefCell::new(world.random("ethernet")),
            treatment: Cell::new(treatment),
            mtu,
            cables: RefCell::default(),
            frames: Cell::default(),
        })
    }

    /// Treats frames otherwise from now on.
    pub fn treat(&self, treatment: Treatment) {
        self.treatment.set(treatment);
    }

    /// Longest IP packet.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// What happened to frames so far.
    pub fn frames(&self) -> Frames {
        self.frames.get()
    }

    /// A cable to a card with the address `02:00:00:00:00:last`, not plugged in yet.
    pub fn cable(self: &Rc<Self>, last: u8) -> Rc<Cable> {
        let cable = Rc::new(Cable {
            ethernet: Rc::downgrade(self),
            mac: [2, 0, 0, 0, 0, last],
            up: Cell::new(true),
            socket: RefCell::default(),
            last_arrival: Cell::new(0),
        });
        self.cables.borrow_mut().push(cable.clone());
        cable
    }

    /// A host of this address on a cable: a plain card with a stack that runs for as long as the world.
    pub fn host(cable: &Rc<Cable>, world: &World, ip: IpAddr) -> Rc<dyn Network> {
        let ethernet = cable.ethernet.upgrade().expect("cables are used within their world");
        let card = Rc::new(Card {
            cable: cable.clone(),
            mtu: ethernet.mtu.into(),
            received: RefCell::default(),
            activity: Event::new(),
        });
        cable.plug(card.clone());
        let platform = world.platform();
        let limits =
            Config { buffer_bytes: HOST_BUFFERS, connections_max: HOST_CONNECTIONS, ..Config::default() };
        let stack = Stack::new(&platform, card, &Config { addressing: only(ip), ..limits });
        let stack = stack.expect("a host's address is one");
        platform.spawn.spawn("host's stack", Box::pin(stack.clone().run()));
        Rc::new(stack)
    }

    fn count(&self, what: impl FnOnce(&mut Frames)) {
        let mut frames = self.frames.get();
        what(&mut frames);
        self.frames.set(frames);
    }

    /// Carries a frame to whom it is for.
    fn carry(&self, from: &Cable, frame: &[u8]) {
        self.count(|frames| frames.sent += 1);
        assert!(
            frame.len() >= FRAME_MIN && frame.len() <= HEADER + usize::from(self.mtu),
            "frames fit the link"
        );
        let to_many = frame[0] & 1 != 0;
        for cable in self.cables.borrow().iter().filter(|cable| cable.mac != from.mac) {
            if to_many || frame[..6] == cable.mac {
                self.send(from, cable, frame);
            }
        }
    }

    fn send(&self, from: &Cable, cable: &Rc<Cable>, frame: &[u8]) {
        let Some(world) = self.world.upgrade() else { return };
        let how = self.treatment.get();
        let mut random = self.random.borrow_mut();
        let copies = if random.below(1000) < how.doubled { 2 } else { 1 };
        self.count(|frames| frames.doubled += copies - 1);
        for _ in 0..copies {
            if !from.up.get() || random.below(1000) < how.lost {
                self.count(|frames| frames.lost += 1);
                continue;
            }
            let mut frame = frame.to_vec();
            if random.below(1000) < how.damaged && frame[12..HEADER] == IPV4 {
                let at = HEADER + random.index(frame.len() - HEADER);
                frame[at] ^= 1 << random.below(8);
                self.count(|frames| frames.damaged += 1);
            }
            let usual = world.now_ns() + random.between(how.delay_ns.0, how.delay_ns.1);
            let mut at = usual.max(cable.last_arrival.get());
            if random.below(1000) < how.late {
                at += how.delay_ns.1 * LATE;
                self.count(|frames| frames.late += 1);
            } else {
                cable.last_arrival.set(at);
            }
            let cable = cable.clone();
            world.at(at, Box::new(move || cable.deliver(frame)));
        }
    }
}

/// This address and no other.
fn only(ip: IpAddr) -> Addressing {
    Addressing::Static(vec![StaticAddress { address: ip, prefix: PREFIX, gateway: None }])
}

/// What a machine's own stack is told: this address, and room for many connections.
pub fn served_at(ip: IpAddr) -> Config {
    Config { addressing: only(ip), ..Config::default() }
}

impl Cable {
    /// The card's address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Plugs the cable into a card; whatever it was plugged into before hears nothing more.
    pub fn plug(&self, socket: Rc<dyn Socket>) {
        socket.set_link(self.up.get());
        *self.socket.borrow_mut() = Some(socket);
    }

    /// The card loses its power.
    pub fn unplug(&self) {
        self.socket.take();
    }

    /// The link goes up or down.
    pub fn set_link(&self, up: bool) {
        self.up.set(up);
        let socket = self.socket.borrow().clone();
        if let Some(socket) = socket {
            socket.set_link(up);
        }
    }

    /// A frame leaves the card.
    pub fn send(&self, frame: &[u8]) {
        if let Some(ethernet) = self.ethernet.upgrade() {
            ethernet.carry(self, frame);
        }
    }

    fn deliver(&self, frame: Vec<u8>) {
        let socket = self.socket.borrow().clone().filter(|_| self.up.get());
        match (socket, self.ethernet.upgrade()) {
            (Some(socket), _) => socket.arrive(frame),
            (None, Some(ethernet)) => ethernet.count(|frames| frames.lost += 1),
            (None, None) => {}
        }
    }
}

/// A card that does nothing for its stack.
struct Card {
    cable: Rc<Cable>,
    mtu: usize,
    received: RefCell<VecDeque<Vec<u8>>>,
    activity: Event,
}

impl Socket for Card {
    fn arrive(&self, frame: Vec<u8>) {
        if self.received.borrow().len() < RING {
            self.received.borrow_mut().push_back(frame);
            self.activity.notify();
        }
    }

    fn set_link(&self, _up: bool) {
        self.activity.notify();
    }
}

impl NicDevice for Card {
    fn mac(&self) -> [u8; 6] {
        self.cable.mac
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn capabilities(&self) -> NicCapabilities {
        NicCapabilities { max_frame: HEADER + self.mtu, ..NicCapabilities::default() }
    }

    fn link_up(&self) -> bool {
        self.cable.up.get()
    }

    fn can_receive(&self) -> bool {
        !self.received.borrow().is_empty()
    }

    fn receive(&self, take: &mut dyn FnMut(&mut [u8], RxMeta)) -> bool {
        let Some(mut frame) = self.received.borrow_mut().pop_front() else { return false };
        take(&mut frame, RxMeta::default());
        true
    }

    fn can_transmit(&self) -> bool {
        true
    }

    fn transmit(&self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> TxMeta) -> bool {
        let mut frame = vec![0; len];
        let meta = fill(&mut frame);
        assert!(meta == TxMeta::default(), "a plain card is asked for nothing");
        frame.resize(len.max(FRAME_MIN), 0);
        self.cable.send(&frame);
        true
    }

    fn activity(&self) -> &Event {
        &self.activity
    }
}
