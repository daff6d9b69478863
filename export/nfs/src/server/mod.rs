//! The server: connections in, calls run against the filesystem, replies out. The only room that awaits the network.
//!
//! | file | what |
//! |---|---|
//! | `config.rs` | [`Config`] and the bounds of everything a client can make us hold |
//! | `intake.rs` | bytes of a stream to calls, with a WRITE's data straight into its buffer; no I/O |
//! | `dispatch.rs` | a call to the procedure it runs, and its reply; denials and unknown programs |
//! | `budget.rs` | how many calls and how much data may be in work, fair by client |
//! | `connection.rs` | one stream: receiving, running calls beside each other, sending in order of completion |
//! | `datagram.rs` | the port mapper and MOUNT over UDP |
//!
//! Reading from a socket is paid for with budget: without it nothing is received and the sender's window closes. No
//! client is ever told that memory is short.

mod budget;
mod config;
mod connection;
mod datagram;
mod dispatch;
mod intake;

use crate::drc;
use crate::mount::Mounts;
use crate::rpc::Squash;
use crate::v3::Nfs;
use crate::v3::wire::Procedure;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use budget::Budget;
use connection::{Connection, ReplyTo};
use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use moraine_fs::vfs::Vfs;
use moraine_platform::memory::Usage;
use moraine_platform::sync::Event;
use moraine_platform::{Datagram, Instant, Listener, Platform, Stream, info, warn};
use moraine_share::Share;

pub use config::Config;
use config::{COMPLAINT_INTERVAL, REAP_INTERVAL, STALL_MAX, STOP_GRACE};

/// What happened since the server was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls run, by NFS procedure number.
    pub calls: [u64; Procedure::ALL.len()],
    /// Calls of the port mapper and of MOUNT.
    pub other_calls: u64,
    /// Calls answered from the duplicate request cache.
    pub replayed: u64,
    /// Calls that arrived again while they ran.
    pub joined: u64,
    /// Calls denied, unknown or unreadable.
    pub refused: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed because their peer stalled or sent what is no call.
    pub dropped: u64,
    /// Connections closed to make room for others.
    pub evicted: u64,
}

/// An NFS server over one filesystem. A handle: clones are the same server.
pub struct Server<V> {
    inner: Rc<Inner<V>>,
}

impl<V> Clone for Server<V> {
    fn clone(&self) -> Server<V> {
        Server { inner: self.inner.clone() }
    }
}

struct Inner<V> {
    platform: Platform,
    nfs: Nfs<V>,
    mounts: Mounts,
    config: Config,
    budget: Budget,
    replies: RefCell<drc::Cache<ReplyTo>>,
    fingerprint: drc::Fingerprint,
    connections: RefCell<Vec<Rc<Connection>>>,
    /// A connection ended, or the server is to stop.
    changed: Event,
    stopping: Cell<bool>,
    reaping: Cell<bool>,
    counters: RefCell<Counters>,
    complained: Cell<Option<Instant>>,
}

impl<V: Vfs + 'static> Server<V> {
    /// A server for `vfs`. `share` is the appliance's one table of objects in use by any protocol.
    pub fn new(platform: &Platform, vfs: Rc<V>, share: Rc<Share>, config: Config) -> Server<V> {
        match config.identities.squash {
            Squash::Nobody => warn!("nfs", "root squash is OFF: root on any client is root here"),
            Squash::Root => info!("nfs", "root squash is on"),
            Squash::Everybody => info!("nfs", "every client is anonymous"),
        }
        let mut key = [0; 16];
        platform.rng.fill(&mut key);
        let inner = Inner {
            platform: platform.clone(),
            nfs: Nfs::new(vfs, share, config.transfer),
            mounts: Mounts::default(),
            budget: Budget::new(config.payload_max, config.connections()),
            config,
            replies: RefCell::default(),
            fingerprint: drc::Fingerprint::new(key),
            connections: RefCell::default(),
            changed: Event::new(),
            stopping: Cell::new(false),
            reaping: Cell::new(false),
            counters: RefCell::default(),
            complained: Cell::new(None),
        };
        Server { inner: Rc::new(inner) }
    }

    /// Serves every connection that `listener` accepts; returns when it fails or the server stops.
    pub async fn serve(self, listener: Box<dyn Listener>) {
        while let Some(accepted) = self.inner.unless_stopped(listener.accept()).await {
            match accepted {
                Ok(stream) => self.serve_stream(stream),
                Err(moraine_platform::NetError::Reset | moraine_platform::NetError::Exhausted) => {
                    // The one connection failed, not the listener; others may be waiting behind it.
                    self.inner.platform.clock.sleep(config::ACCEPT_PAUSE).await;
                }
                Err(error) => {
                    warn!("nfs", "no longer accepting on {}: {error}", listener.local());
                    return;
                }
            }
        }
    }

    /// Serves one connection, as tasks of its own. With all places taken, the connection that has been longest without
    /// a complete call makes room.
    pub fn serve_stream(&self, stream: Rc<dyn Stream>) {
        let inner = &self.inner;
        if inner.stopping.get() {
            return stream.abort();
        }
        let now = inner.platform.clock.now();
        if inner.connections.borrow().len() >= inner.config.connections() {
            inner.evict();
        }
        let connection = Connection::new(stream, &inner.budget, now);
        inner.connections.borrow_mut().push(connection.clone());
        inner.counters.borrow_mut().accepted += 1;
        let spawn = &inner.platform.spawn;
        spawn.spawn("nfs receive", Box::pin(connection::receive(inner.clone(), connection.clone())));
        spawn.spawn("nfs send", Box::pin(connection::send(inner.clone(), connection)));
        if !inner.reaping.replace(true) {
            spawn.spawn("nfs reaper", Box::pin(reap(inner.clone())));
        }
    }

    /// Answers the port mapper's and MOUNT's calls that arrive as datagrams, until the socket fails or the server
    /// stops. NFS itself is served over streams only.
    pub async fn serve_datagrams(self, socket: Box<dyn Datagram>) {
        datagram::serve(&self.inner, &*socket).await;
    }

    /// Accepts nothing more, takes no further calls, lets those in work finish and be answered, and returns when every
    /// connection has ended; those that stall are cut off after a few seconds.
    pub async fn stop(&self) {
        let inner = &self.inner;
        inner.stopping.set(true);
        for connection in inner.connections.borrow().iter() {
            connection.interrupt();
        }
        inner.changed.notify();
        let mut deadline = inner.platform.clock.sleep(STOP_GRACE);
        let mut ended = pin!(inner.changed.until(|| inner.connections.borrow().is_empty().then_some(())));
        poll_fn(|cx| {
            if ended.as_mut().poll(cx).is_ready() { Poll::Ready(()) } else { deadline.as_mut().poll(cx) }
        })
        .await;
        for connection in inner.connections.take() {
            connection.abort();
        }
    }

    /// What file data under way takes of memory.
    pub fn memory(&self) -> Usage {
        self.inner.budget.usage()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.inner.counters.borrow().clone()
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.inner.connections.borrow().len()
    }
}

impl<V> Inner<V> {
    /// The outcome of `future`, or `None` if the server stops first.
    async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        let mut stopped = pin!(self.changed.until(|| self.stopping.get().then_some(())));
        poll_fn(|cx| {
            if stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Closes the connection that has been longest without a complete call.
    fn evict(&self) {
        let oldest = self.connections.borrow().iter().min_by_key(|c| c.last_call()).cloned();
        if let Some(oldest) = oldest {
            oldest.abort();
            self.counters.borrow_mut().evicted += 1;
            self.ended(&oldest);
        }
    }

    /// Forgets a connection.
    fn ended(&self, connection: &Rc<Connection>) {
        self.connections.borrow_mut().retain(|c| !Rc::ptr_eq(c, connection));
        self.changed.notify();
    }

    /// Logs what is wrong with a peer, at most one line a second.
    fn complain(&self, text: fmt::Arguments<'_>) {
        let now = self.platform.clock.now();
        if self.complained.get().is_none_or(|last| now.since(last) >= COMPLAINT_INTERVAL) {
            self.complained.set(Some(now));
            warn!("nfs", "{text}");
        }
    }
}

/// Cuts off peers that stall in the middle of something, and forgets old replies. Runs while there are connections.
async fn reap<V: Vfs + 'static>(server: Rc<Inner<V>>) {
    loop {
        server.platform.clock.sleep(REAP_INTERVAL).await;
        let now = server.platform.clock.now();
        server.replies.borrow_mut().expire(now);
        server.budget.forget_absent_clients();
        let all: Vec<Rc<Connection>> = server.connections.borrow().clone();
        if all.is_empty() {
            server.reaping.set(false);
            return;
        }
        for connection in all.iter().filter(|c| c.stalled_since().is_some_and(|t| now.since(t) >= STALL_MAX))
        {
            server.counters.borrow_mut().dropped += 1;
            server.complain(format_args!("{} stalled in the middle of a message", connection.client()));
            connection.abort();
            server.ended(connection);
        }
    }
}
