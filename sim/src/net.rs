//! The network of a world: hosts on one switch, byte streams and datagrams between them, with seeded delays, pieces of
//! any size, stalls and resets.

use crate::random::Random;
use crate::world::Inner;
use moraine_platform::sync::Event;
use moraine_platform::{Connecting, Datagram, Listener, NetError, NetFuture, Network, Stream};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

/// The first port given to who asks for any.
const FIRST_FREE_PORT: u16 = 49_152;

/// A sender waits until this part of the window is free.
const SILLY_PART: usize = 4;

/// What the network is like. Times are nanoseconds, sizes bytes.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Shortest and longest time a piece or datagram is under way.
    pub delay_ns: (u64, u64),
    /// Bytes one direction of a stream holds before the sender has to wait.
    pub window: usize,
    /// Largest piece of a stream; each is this long or shorter, by the seed.
    pub piece_max: usize,
    /// How many in 100 datagrams are lost.
    pub datagram_loss_percent: u32,
}

impl Default for NetConfig {
    fn default() -> NetConfig {
        NetConfig { delay_ns: (5_000, 300_000), window: 64 * 1024, piece_max: 9000, datagram_loss_percent: 0 }
    }
}

/// What connects all hosts of a world.
pub struct Switch {
    world: Weak<Inner>,
    config: RefCell<NetConfig>,
    random: RefCell<Random>,
    listeners: RefCell<BTreeMap<SocketAddr, Rc<Backlog>>>,
    datagrams: RefCell<BTreeMap<SocketAddr, Rc<Mailbox>>>,
    connections: RefCell<Vec<Weak<Connection>>>,
    next_port: Cell<u16>,
    stalled_until: Cell<u64>,
}

impl Switch {
    pub(crate) fn new(world: &Rc<Inner>) -> Rc<Switch> {
        Rc::new(Switch {
            world: Rc::downgrade(world),
            config: RefCell::default(),
            random: RefCell::new(world.random_for("network")),
            listeners: RefCell::default(),
            datagrams: RefCell::default(),
            connections: RefCell::default(),
            next_port: Cell::new(FIRST_FREE_PORT),
            stalled_until: Cell::new(0),
        })
    }

    /// Changes what the network is like.
    pub fn configure(&self, config: NetConfig) {
        *self.config.borrow_mut() = config;
    }

    /// The network as a host of address `ip` sees it.
    pub fn host(self: &Rc<Self>, ip: IpAddr) -> Rc<dyn Network> {
        Rc::new(Host { switch: self.clone(), ip })
    }

    /// Nothing arrives for `ns` nanoseconds from now.
    pub fn stall(&self, ns: u64) {
        if let Some(world) = self.world.upgrade() {
            self.stalled_until.set(world.now_ns() + ns);
        }
    }

    /// Resets all connections with an end at `ip`; what was under way is lost.
    pub fn reset_host(&self, ip: IpAddr) {
        let all: Vec<_> = self.connections.borrow().iter().filter_map(Weak::upgrade).collect();
        for connection in all {
            if connection.ends.iter().any(|end| end.ip() == ip) {
                connection.reset();
            }
        }
    }

    /// The host at `ip` loses its power: what it sent still arrives, it says nothing more, not even that its connections
    /// ended; the other ends find out some time within `notice_ns`.
    pub fn power_off(&self, ip: IpAddr, notice_ns: u64) {
        let all: Vec<_> = self.connections.borrow().iter().filter_map(Weak::upgrade).collect();
        let Some(world) = self.world.upgrade() else { return };
        for connection in all.into_iter().filter(|c| c.ends.iter().any(|end| end.ip() == ip)) {
            connection.silent.set(true);
            let arrived = connection.pipes.iter().map(|pipe| pipe.last_arrival.get()).fold(0, u64::max);
            let at = arrived.max(world.now_ns() + self.random.borrow_mut().below(notice_ns.max(1)));
            world.at(at, Box::new(move || connection.reset()));
        }
    }

    /// Resets one of the live connections, by the seed.
    pub fn reset_any(&self) {
        let all: Vec<_> = self.connections.borrow().iter().filter_map(Weak::upgrade).collect();
        if !all.is_empty() {
            let chosen = self.random.borrow_mut().index(all.len());
            all[chosen].reset();
        }
    }

    fn free_port(&self) -> u16 {
        let port = self.next_port.get();
        self.next_port.set(port.checked_add(1).unwrap_or(FIRST_FREE_PORT));
        port
    }

    fn named(&self, ip: IpAddr, address: SocketAddr) -> SocketAddr {
        let ip = if address.ip().is_unspecified() { ip } else { address.ip() };
        SocketAddr::new(ip, if address.port() == 0 { self.free_port() } else { address.port() })
    }

    /// Plans `arrive` after a seeded delay, but not before `earliest`; returns when.
    fn deliver(&self, earliest: u64, arrive: Box<dyn FnOnce()>) -> u64 {
        let Some(world) = self.world.upgrade() else { return earliest };
        let (low, high) = self.config.borrow().delay_ns;
        let delay = self.random.borrow_mut().between(low, high);
        let at = (world.now_ns() + delay).max(earliest).max(self.stalled_until.get());
        world.at(at, arrive);
        at
    }
}

/// One direction of a stream.
#[derive(Default)]
struct Pipe {
    arrived: RefCell<VecDeque<u8>>,
    under_way: Cell<usize>,
    last_arrival: Cell<u64>,
    closed: Cell<bool>,
    ended: Cell<bool>,
    reader: RefCell<Option<Waker>>,
    writer: RefCell<Option<Waker>>,
}

impl Pipe {
    fn wake(&self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn used(&self) -> usize {
        self.arrived.borrow().len() + self.under_way.get()
    }
}

struct Connection {
    switch: Weak<Switch>,
    ends: [SocketAddr; 2],
    /// `pipes[n]` carries what end `n` sends.
    pipes: [Rc<Pipe>; 2],
    is_reset: Cell<bool>,
    /// One end has lost its power: no end says good-bye.
    silent: Cell<bool>,
}

impl Connection {
    fn reset(&self) {
        self.is_reset.set(true);
        self.pipes.iter().for_each(|pipe| pipe.wake());
    }
}

/// One end of a connection.
struct End {
    connection: Rc<Connection>,
    side: usize,
    aborted: Cell<bool>,
}

impl End {
    fn failure(&self) -> Option<NetError> {
        if self.aborted.get() {
            Some(NetError::Closed)
        } else if self.connection.is_reset.get() {
            Some(NetError::Reset)
        } else {
            None
        }
    }
}

impl Stream for End {
    fn peer(&self) -> SocketAddr {
        self.connection.ends[1 - self.side]
    }

    fn local(&self) -> SocketAddr {
        self.connection.ends[self.side]
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        if let Some(error) = self.failure() {
            return Poll::Ready(Err(error));
        }
        let pipe = &self.connection.pipes[1 - self.side];
        let mut arrived = pipe.arrived.borrow_mut();
        if arrived.is_empty() {
            if pipe.ended.get() {
                return Poll::Ready(Ok(0));
            }
            *pipe.reader.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let (front, _) = arrived.as_slices();
        let taken = take(front);
        assert!(taken <= front.len(), "a reader cannot take more than is there");
        arrived.drain(..taken);
        drop(arrived);
        if let Some(writer) = pipe.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        give: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        if let Some(error) = self.failure() {
            return Poll::Ready(Err(error));
        }
        let pipe = &self.connection.pipes[self.side];
        if pipe.closed.get() {
            return Poll::Ready(Err(NetError::Closed));
        }
        let Some(switch) = self.connection.switch.upgrade() else { return Poll::Ready(Err(NetError::Reset)) };
        let (window, piece_max) = (switch.config.borrow().window, switch.config.borrow().piece_max);
        let room = window.saturating_sub(pipe.used());
        // As TCP does, a full stream waits for more than a few bytes of room.
        if room < (window / SILLY_PART).min(piece_max).max(1) {
            *pipe.writer.borrow_mut() = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let piece = 1 + switch.random.borrow_mut().index(piece_max.min(room));
        let mut bytes = vec![0; piece];
        let given = give(&mut bytes);
        assert!(given <= piece, "a writer cannot give more than there is room");
        bytes.truncate(given);
        pipe.under_way.set(pipe.under_way.get() + given);
        let to = pipe.clone();
        let arrive = move || {
            to.under_way.set(to.under_way.get() - bytes.len());
            to.arrived.borrow_mut().extend(bytes);
            if let Some(reader) = to.reader.take() {
                reader.wake();
            }
        };
        pipe.last_arrival.set(switch.deliver(pipe.last_arrival.get(), Box::new(arrive)));
        Poll::Ready(Ok(given))
    }

    fn close(&self) {
        let pipe = self.connection.pipes[self.side].clone();
        if pipe.closed.replace(true) || self.connection.silent.get() {
            return;
        }
        let Some(switch) = self.connection.switch.upgrade() else { return };
        let to = pipe.clone();
        let arrive = move || {
            to.ended.set(true);
            to.wake();
        };
        pipe.last_arrival.set(switch.deliver(pipe.last_arrival.get(), Box::new(arrive)));
    }

    fn abort(&self) {
        self.aborted.set(true);
        if !self.connection.silent.get() {
            self.connection.reset();
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.connection.silent.get() {
            return;
        }
        // As sockets do: closing is graceful unless something was left unread.
        let unread = !self.connection.pipes[1 - self.side].arrived.borrow().is_empty();
        if unread {
            self.abort();
        } else {
            self.close();
        }
    }
}

/// Connections not accepted yet.
#[derive(Default)]
struct Backlog {
    waiting: RefCell<VecDeque<Rc<dyn Stream>>>,
    changed: Event,
}

struct SimListener {
    switch: Rc<Switch>,
    address: SocketAddr,
    backlog: Rc<Backlog>,
}

impl Listener for SimListener {
    fn local(&self) -> SocketAddr {
        self.address
    }

    fn accept(&self) -> NetFuture<Rc<dyn Stream>> {
        let backlog = self.backlog.clone();
        Box::pin(async move { Ok(backlog.changed.until(|| backlog.waiting.borrow_mut().pop_front()).await) })
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        self.switch.listeners.borrow_mut().remove(&self.address);
    }
}

/// Datagrams not received yet.
#[derive(Default)]
struct Mailbox {
    waiting: RefCell<VecDeque<(Vec<u8>, SocketAddr)>>,
    changed: Event,
}

struct SimDatagram {
    switch: Rc<Switch>,
    address: SocketAddr,
    mailbox: Rc<Mailbox>,
}

impl Datagram for SimDatagram {
    fn local(&self) -> SocketAddr {
        self.address
    }

    fn recv(&self) -> NetFuture<(Vec<u8>, SocketAddr)> {
        let mailbox = self.mailbox.clone();
        Box::pin(async move { Ok(mailbox.changed.until(|| mailbox.waiting.borrow_mut().pop_front()).await) })
    }

    fn send(&self, to: SocketAddr, bytes: Vec<u8>) -> NetFuture<()> {
        let loss = self.switch.config.borrow().datagram_loss_percent;
        let lost = self.switch.random.borrow_mut().percent(loss);
        let (weak, from) = (Rc::downgrade(&self.switch), self.address);
        if !lost {
            let arrive = move || {
                let found = weak.upgrade().and_then(|switch| switch.datagrams.borrow().get(&to).cloned());
                if let Some(mailbox) = found {
                    mailbox.waiting.borrow_mut().push_back((bytes, from));
                    mailbox.changed.notify();
                }
            };
            self.switch.deliver(0, Box::new(arrive));
        }
        Box::pin(std::future::ready(Ok(())))
    }
}

impl Drop for SimDatagram {
    fn drop(&mut self) {
        self.switch.datagrams.borrow_mut().remove(&self.address);
    }
}

/// A host's view of the switch.
struct Host {
    switch: Rc<Switch>,
    ip: IpAddr,
}

impl Network for Host {
    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, NetError> {
        let address = self.switch.named(self.ip, address);
        let mut listeners = self.switch.listeners.borrow_mut();
        if listeners.contains_key(&address) {
            return Err(NetError::AddressInUse);
        }
        let backlog = Rc::new(Backlog::default());
        listeners.insert(address, backlog.clone());
        Ok(Box::new(SimListener { switch: self.switch.clone(), address, backlog }))
    }

    fn bind(&self, address: SocketAddr) -> Result<Box<dyn Datagram>, NetError> {
        let address = self.switch.named(self.ip, address);
        let mut datagrams = self.switch.datagrams.borrow_mut();
        if datagrams.contains_key(&address) {
            return Err(NetError::AddressInUse);
        }
        let mailbox = Rc::new(Mailbox::default());
        datagrams.insert(address, mailbox.clone());
        Ok(Box::new(SimDatagram { switch: self.switch.clone(), address, mailbox }))
    }

    fn connect(&self, peer: SocketAddr) -> Connecting {
        let (switch, local) = (self.switch.clone(), SocketAddr::new(self.ip, self.switch.free_port()));
        let arrived = Rc::new((Event::new(), RefCell::new(None)));
        let (answer, weak) = (arrived.clone(), Rc::downgrade(&switch));
        let knock = move || {
            let made =
                weak.upgrade().and_then(|switch| switch.join(local, peer)).ok_or(NetError::Unreachable);
            *answer.1.borrow_mut() = Some(made);
            answer.0.notify();
        };
        switch.deliver(0, Box::new(knock));
        Box::pin(async move { arrived.0.until(|| arrived.1.borrow_mut().take()).await })
    }
}

impl Switch {
    /// Makes a connection with whoever listens on `peer`.
    fn join(self: &Rc<Self>, local: SocketAddr, peer: SocketAddr) -> Option<Rc<dyn Stream>> {
        let backlog = self.listeners.borrow().get(&peer).cloned()?;
        let connection = Rc::new(Connection {
            switch: Rc::downgrade(self),
            ends: [local, peer],
            pipes: Default::default(),
            is_reset: Cell::new(false),
            silent: Cell::new(false),
        });
        let mut connections = self.connections.borrow_mut();
        connections.retain(|weak| weak.strong_count() > 0);
        connections.push(Rc::downgrade(&connection));
        let end = |side| -> Rc<dyn Stream> {
            Rc::new(End { connection: connection.clone(), side, aborted: Cell::new(false) })
        };
        backlog.waiting.borrow_mut().push_back(end(1));
        backlog.changed.notify();
        Some(end(0))
    }
}
