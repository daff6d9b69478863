//! The server: accepts connections, bounds them, watches for stalled ones, and ends them all when the appliance goes
//! down.

use crate::pump::{Budget, Link, PIECE, STALL, Volumes, converse};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::time::Duration;
use moraine_fs::Vfs;
use moraine_platform::memory::{Meter, Usage};
use moraine_platform::sync::{Either, Event, Semaphore, either};
use moraine_platform::{Instant, Listener, NetError, Platform, Stream, info, warn};
use moraine_share::Share;

/// How often the watchdog looks.
const WATCH: Duration = Duration::from_secs(15);
/// How long to wait when the network has no room for another connection.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// The least time between two lines in the log about one client.
const LOG_PAUSE: Duration = Duration::from_secs(1);

/// Bounds of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Connections at once. When all are taken, the one longest without a complete request gives way.
    pub connections: usize,
    /// Bytes of payload in flight, over all connections; at least a megabyte is used.
    pub payload: u64,
}

impl Default for Config {
    /// The bounds for a machine with 128 MiB.
    fn default() -> Config {
        Config { connections: 64, payload: 16 << 20 }
    }
}

/// An NBD server over one filesystem.
pub struct Server<V> {
    pub(crate) platform: Platform,
    pub(crate) vfs: Rc<V>,
    pub(crate) share: Rc<Share>,
    pub(crate) volumes: Volumes,
    connections: usize,
    common: Rc<Semaphore>,
    common_size: u64,
    pieces: Rc<Meter>,
    peers: RefCell<BTreeMap<u64, Rc<Peer>>>,
    next_peer: Cell<u64>,
    watching: Cell<bool>,
    closing: Cell<bool>,
    changed: Event,
}

/// A client, from accept to the end of its last request.
pub(crate) struct Peer {
    pub(crate) link: Link,
    platform: Platform,
    active: Cell<Instant>,
    logged: Cell<Option<Instant>>,
    stopping: Cell<bool>,
    stop: Event,
}

impl<V: Vfs + 'static> Server<V> {
    /// A server of `vfs`'s volumes, which tells `share` of each volume in use.
    pub fn new(platform: Platform, vfs: Rc<V>, share: Rc<Share>, config: Config) -> Rc<Server<V>> {
        // Half of the payload is a piece for each connection, the other half is common.
        let half = (config.payload / 2).max(4 * PIECE);
        let fitting = usize::try_from(half / PIECE).unwrap_or(usize::MAX);
        Rc::new(Server {
            platform,
            vfs,
            share,
            volumes: Volumes::default(),
            connections: config.connections.clamp(1, fitting),
            common: Semaphore::new(half),
            common_size: half,
            pieces: Rc::default(),
            peers: RefCell::default(),
            next_peer: Cell::new(0),
            watching: Cell::new(false),
            closing: Cell::new(false),
            changed: Event::new(),
        })
    }

    /// Serves every connection the listener accepts, until [`Server::shut_down`] or the listener is closed.
    pub async fn serve(self: Rc<Self>, listener: Box<dyn Listener>) {
        loop {
            let accepted = either(listener.accept(), self.changed.until(|| self.closing.get().then_some(())));
            match accepted.await {
                Either::First(Ok(stream)) => self.serve_stream(stream),
                Either::First(Err(NetError::Closed)) | Either::Second(()) => return,
                Either::First(Err(error)) => {
                    warn!("nbd", "cannot accept: {error}");
                    self.platform.clock.sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Serves one connection in a task of its own.
    pub fn serve_stream(self: &Rc<Self>, stream: Rc<dyn Stream>) {
        if self.closing.get() {
            stream.abort();
            return;
        }
        if self.peers.borrow().len() >= self.connections && !self.make_room() {
            warn!("nbd", "no room for {}", stream.peer());
            stream.abort();
            return;
        }
        let number = self.next_peer.get();
        self.next_peer.set(number + 1);
        let peer = Rc::new(Peer::new(stream, &self.platform));
        self.peers.borrow_mut().insert(number, peer.clone());
        self.watch();
        let server = self.clone();
        let task = async move {
            converse(&server, peer).await;
            server.peers.borrow_mut().remove(&number);
            server.changed.notify();
        };
        self.platform.spawn.spawn("nbd connection", Box::pin(task));
    }

    /// Connections that have not ended.
    pub fn connections(&self) -> usize {
        self.peers.borrow().len()
    }

    /// Takes up no more requests, answers those in work, and completes when every connection has ended.
    pub async fn shut_down(&self) {
        self.closing.set(true);
        self.changed.notify();
        self.peers.borrow().values().for_each(|peer| peer.stop());
        self.changed.until(|| self.peers.borrow().is_empty().then_some(())).await;
    }

    /// The half of the payload that is nobody's own.
    /// What payload takes of memory: the common half, and what connections hold of their own pieces.
    pub fn memory(&self) -> Usage {
        let common = self.common.usage("nbd");
        let pieces = self.pieces.usage("nbd", PIECE * self.connections as u64);
        Usage {
            limit: common.limit + pieces.limit,
            used: common.used + pieces.used,
            peak: common.peak + pieces.peak,
            ..common
        }
    }

    pub(crate) fn common(&self) -> &Rc<Semaphore> {
        &self.common
    }

    pub(crate) fn budget(&self) -> Budget {
        Budget::new(self.common.clone(), self.common_size, self.pieces.clone())
    }

    /// Ends the connection that is longest without a complete request; its place is free at once, though what it has
    /// in work ends first. `false` if as many again are still ending.
    fn make_room(&self) -> bool {
        let peers = self.peers.borrow();
        if peers.len() >= self.connections * 2 {
            return false;
        }
        let oldest = peers.values().filter(|p| !p.stopping.get()).min_by_key(|p| p.active.get());
        if let Some(peer) = oldest {
            info!("nbd", "{} gives way to a new connection", peer.link.peer());
            peer.stop();
            peer.link.abort();
        }
        true
    }

    /// Aborts stalled connections, as long as there are any connections.
    fn watch(self: &Rc<Self>) {
        if self.watching.replace(true) {
            return;
        }
        let server = self.clone();
        let task = async move {
            while !server.peers.borrow().is_empty() {
                for peer in server.peers.borrow().values().filter(|p| p.link.stalled()) {
                    info!("nbd", "{} stalled for {} s: closed", peer.link.peer(), STALL.as_secs());
                    peer.link.abort();
                }
                let idle = server.changed.until(|| server.peers.borrow().is_empty().then_some(()));
                either(server.platform.clock.sleep(WATCH), idle).await;
            }
            server.watching.set(false);
        };
        self.platform.spawn.spawn("nbd watchdog", Box::pin(task));
    }
}

impl Peer {
    fn new(stream: Rc<dyn Stream>, platform: &Platform) -> Peer {
        Peer {
            active: Cell::new(platform.clock.now()),
            link: Link::new(stream, platform.clock.clone()),
            platform: platform.clone(),
            logged: Cell::new(None),
            stopping: Cell::new(false),
            stop: Event::new(),
        }
    }

    /// A complete request has come.
    pub(crate) fn active(&self) {
        self.active.set(self.platform.clock.now());
    }

    /// Takes up no more requests.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
        self.stop.notify();
    }

    /// Waits until the connection is to end.
    pub(crate) async fn stopped(&self) {
        self.stop.until(|| self.stopping.get().then_some(())).await
    }

    /// Whether a line about this client may go to the log now.
    pub(crate) fn may_log(&self) -> bool {
        let now = self.platform.clock.now();
        let may = self.logged.get().is_none_or(|last| now.since(last) >= LOG_PAUSE);
        if may {
            self.logged.set(Some(now));
        }
        may
    }
}
