//! A hard mount's connection: calls are sent again, with the same number, over one connection after another until they
//! are answered.

use super::scene::{Scene, canonical};
use crate::random::Random;
use moraine_nfs::xdr::{Decoder, Encoder};
use moraine_platform::sync::{Either, Event, either};
use moraine_platform::{NetError, Network, Stream};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a server may say nothing while something is asked, before the client tries another connection.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const LAST_FRAGMENT: u32 = 1 << 31;
const AUTH_SYS: u32 = 1;

/// The bytes a server sent on one connection, and how many of them were taken.
pub(super) struct Incoming {
    stream: Rc<dyn Stream>,
    taken: Cell<u64>,
}

impl Incoming {
    pub(super) fn new(stream: Rc<dyn Stream>) -> Incoming {
        Incoming { stream, taken: Cell::new(0) }
    }

    /// Exactly so many bytes.
    pub(super) async fn take(&self, len: usize) -> Result<Vec<u8>, NetError> {
        let mut out = vec![0; len];
        if len > 0 && !self.stream.recv_exact(&mut out).await? {
            return Err(NetError::Closed);
        }
        self.taken.set(self.taken.get() + len as u64);
        Ok(out)
    }

    /// How many bytes were taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// The next four, as a number.
    pub(super) async fn u32(&self) -> Result<u32, NetError> {
        Ok(u32::from_be_bytes(self.take(4).await?.try_into().expect("four bytes")))
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    /// The procedure's result.
    pub(super) result: Vec<u8>,
    /// When the server handed its first byte over.
    pub(super) mark: u64,
    /// In which boot.
    pub(super) boot: u64,
}

struct Pending {
    record: Vec<u8>,
    reply: Option<Reply>,
}

/// One client host's connection to the server's NFS port.
pub(super) struct Mount {
    scene: Rc<Scene>,
    network: Rc<dyn Network>,
    server: SocketAddr,
    random: RefCell<Random>,
    calls: RefCell<BTreeMap<u32, Pending>>,
    outbox: RefCell<VecDeque<u32>>,
    asked: Event,
    answered: Event,
    hang_up: Event,
    next_xid: Cell<u32>,
    heard: Cell<u64>,
}

impl Mount {
    pub(super) fn new(
        scene: Rc<Scene>,
        network: Rc<dyn Network>,
        server: SocketAddr,
        mut random: Random,
    ) -> Rc<Mount> {
        let next_xid = Cell::new(random.next_u64() as u32);
        Rc::new(Mount {
            scene,
            network,
            server,
            random: RefCell::new(random),
            calls: RefCell::default(),
            outbox: RefCell::default(),
            asked: Event::new(),
            answered: Event::new(),
            hang_up: Event::new(),
            next_xid,
            heard: Cell::new(0),
        })
    }

    /// Drops the connection there is: answers under way are lost.
    pub(super) fn hang_up(&self) {
        self.hang_up.notify();
    }

    /// Asks until there is an answer.
    pub(super) async fn call(&self, program: u32, procedure: u32, args: &[u8]) -> Result<Reply, String> {
        let xid = self.next_xid.replace(self.next_xid.get().wrapping_add(1));
        let mut e = Encoder::default();
        e.u32(0).u32(xid).u32(0).u32(2).u32(program).u32(3).u32(procedure);
        // Root, with an empty machine name and no further groups; no verifier.
        e.u32(AUTH_SYS).u32(20).u32(0).u32(0).u32(0).u32(0).u32(0).u32(0).u32(0);
        e.raw(args);
        e.set_u32(0, LAST_FRAGMENT | (e.len() - 4) as u32);
        self.calls.borrow_mut().insert(xid, Pending { record: e.into_bytes(), reply: None });
        self.outbox.borrow_mut().push_back(xid);
        self.asked.notify();
        let reply = self.answered.until(|| self.calls.borrow_mut().get_mut(&xid)?.reply.take()).await;
        self.calls.borrow_mut().remove(&xid);
        accepted(reply).map_err(|why| format!("a call of procedure {procedure}: {why}"))
    }

    /// Connects, sends, receives, again and again.
    pub(super) async fn run(self: Rc<Self>) {
        loop {
            let clock = &self.scene.clock;
            let connecting = either(self.network.connect(self.server), clock.sleep(CONNECT_MAX)).await;
            let Either::First(Ok(stream)) = connecting else {
                let pause = self.random.borrow_mut().between(10, 2000);
                clock.sleep(Duration::from_millis(pause)).await;
                continue;
            };
            // All that has no answer goes out again, in any order.
            let mut again: Vec<u32> = self
                .calls
                .borrow()
                .iter()
                .filter(|(_, call)| call.reply.is_none())
                .map(|(xid, _)| *xid)
                .collect();
            self.random.borrow_mut().shuffle(&mut again);
            self.scene.count(|seen| seen.repeats += again.len() as u64);
            *self.outbox.borrow_mut() = again.into();
            self.heard.set(clock.now().0);
            let hung_up = self.hang_up.wait();
            let traffic = either(self.send(&stream), self.receive(&stream));
            either(either(traffic, hung_up), self.silence()).await;
            stream.abort();
        }
    }

    async fn send(&self, stream: &Rc<dyn Stream>) -> Result<(), NetError> {
        loop {
            let xid = self.asked.until(|| self.outbox.borrow_mut().pop_front()).await;
            let record = self.calls.borrow().get(&xid).map(|call| call.record.clone());
            if let Some(record) = record {
                stream.send_all(&record).await?;
            }
        }
    }

    async fn receive(&self, stream: &Rc<dyn Stream>) -> Result<(), NetError> {
        let (incoming, me) = (Incoming::new(stream.clone()), canonical(stream.local()));
        loop {
            let start = incoming.taken();
            let mut message = Vec::new();
            loop {
                let mark = incoming.u32().await?;
                message.extend(incoming.take((mark & !LAST_FRAGMENT) as usize).await?);
                if mark & LAST_FRAGMENT != 0 {
                    break;
                }
            }
            self.heard.set(self.scene.clock.now().0);
            let (mark, boot) = self.scene.given(me, start);
            let xid = message.first_chunk().map_or(0, |xid| u32::from_be_bytes(*xid));
            match self.calls.borrow_mut().get_mut(&xid) {
                Some(call) => call.reply = Some(Reply { result: message, mark, boot }),
                None => self.scene.fail(format!("an answer to {xid:x}, which nobody asks")),
            }
            self.answered.notify();
        }
    }

    /// Ends when the server has owed an answer for too long.
    async fn silence(&self) {
        loop {
            self.scene.clock.sleep(SILENCE_MAX).await;
            let owes = self.calls.borrow().values().any(|call| call.reply.is_none());
            if owes && self.scene.clock.now().0 - self.heard.get() >= SILENCE_MAX.as_nanos() as u64 {
                return;
            }
        }
    }
}

/// Takes the envelope off a reply that was accepted.
fn accepted(reply: Reply) -> Result<Reply, String> {
    let mut d = Decoder::new(&reply.result);
    let mut words = [0; 6];
    for word in &mut words {
        *word = d.u32().map_err(|_| "a reply that is cut short")?;
    }
    match words {
        [_, 1, 0, 0, 0, 0] => Ok(Reply { result: d.rest().to_vec(), ..reply }),
        _ => Err(format!("a reply that begins with {words:x?}")),
    }
}
