//! What everybody in an appliance world shares: which boot it is, marks in the log, what was promised, and what went wrong.

use super::promises::{Promise, Token};
use crate::world::Inner;
use moraine_platform::sync::Event;
use moraine_platform::{Clock, Datagram, Listener, NetError, NetFuture, Network, Stream};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

/// Bytes of a cell: the unit in which clients write and the oracle thinks.
pub(super) const CELL: usize = 512;
/// How long a client waits after an answer that says that the server failed, unless it is switched off before.
const AFTER_FAILURE: Duration = Duration::from_secs(20);

/// When the server handed over bytes of a stream: the stream's length then, the mark in the log, the boot.
type Given = (u64, u64, u64);

/// What happened in worlds, to see that it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Steps of clients.
    pub steps: u64,
    /// Times the power was taken away.
    pub cuts: u64,
    /// Stable answers proved from the disks' log.
    pub promises: u64,
    /// Calls that were sent more than once.
    pub repeats: u64,
    /// Calls that an earlier boot had done, or that may have been.
    pub repeated_over_boots: u64,
    /// Changes that found, after a boot, that they were done.
    pub found_done: u64,
    /// Cells written again because the write verifier was another.
    pub written_again: u64,
    /// Answers that said honestly that the disk failed.
    pub failures: u64,
    /// Reads that told what a power cut had left of several values.
    pub decided: u64,
    /// Ethernet frames, those that were lost, and those that were damaged.
    pub frames: u64,
    /// Lost.
    pub frames_lost: u64,
    /// Damaged.
    pub frames_damaged: u64,
    /// Buffers that were refused.
    pub refused: u64,
    /// Buffers for which there was no piece of memory large enough.
    pub too_large: u64,
    /// Answers that said "not now".
    pub not_now: u64,
}

impl Seen {
    /// Adds another count.
    pub fn add(&mut self, other: Seen) {
        self.steps += other.steps;
        self.cuts += other.cuts;
        self.promises += other.promises;
        self.repeats += other.repeats;
        self.repeated_over_boots += other.repeated_over_boots;
        self.found_done += other.found_done;
        self.written_again += other.written_again;
        self.failures += other.failures;
        self.decided += other.decided;
        self.frames += other.frames;
        self.frames_lost += other.frames_lost;
        self.frames_damaged += other.frames_damaged;
        self.refused += other.refused;
        self.too_large += other.too_large;
        self.not_now += other.not_now;
    }
}

/// The shared state.
pub(super) struct Scene {
    world: Weak<Inner>,
    /// The clock of clients.
    pub(super) clock: Rc<dyn Clock>,
    boot: Cell<u64>,
    /// The mark with which each boot began.
    boot_marks: RefCell<Vec<u64>>,
    /// Another boot began, a client is done, or something went wrong.
    pub(super) changed: Event,
    next_mark: Cell<u64>,
    next_token: Cell<u32>,
    /// What servers answered, by the client's end of the connection.
    taps: RefCell<BTreeMap<SocketAddr, Rc<RefCell<Vec<Given>>>>>,
    /// What was promised so far.
    pub(super) promises: RefCell<Vec<Promise>>,
    problem: RefCell<Option<String>>,
    /// Write verifiers, and in which boot each was first seen.
    verifiers: RefCell<BTreeMap<u64, u64>>,
    /// Boots in which something may fail honestly.
    faulty: RefCell<Vec<u64>>,
    /// Buffers are refused: who is told so asks again.
    pub(super) little_memory: Cell<bool>,
    /// Clients that did all their steps, and that saw all they should at the end.
    pub(super) worked: Cell<usize>,
    /// The last boot, in which clients look at everything.
    pub(super) finale: Cell<bool>,
    /// Clients that looked.
    pub(super) satisfied: Cell<usize>,
    /// What happened so far.
    pub(super) seen: RefCell<Seen>,
}

impl Scene {
    pub(super) fn new(world: &Rc<Inner>, clock: Rc<dyn Clock>) -> Rc<Scene> {
        Rc::new(Scene {
            world: Rc::downgrade(world),
            clock,
            boot: Cell::new(0),
            boot_marks: RefCell::new(vec![0]),
            changed: Event::new(),
            next_mark: Cell::new(1),
            next_token: Cell::new(1),
            taps: RefCell::default(),
            promises: RefCell::default(),
            problem: RefCell::default(),
            verifiers: RefCell::default(),
            faulty: RefCell::default(),
            little_memory: Cell::new(false),
            worked: Cell::new(0),
            finale: Cell::new(false),
            satisfied: Cell::new(0),
            seen: RefCell::default(),
        })
    }

    /// The boot that runs, or would if there were power.
    pub(super) fn boot(&self) -> u64 {
        self.boot.get()
    }

    /// The power went, or the machine ended in order: whatever is answered from now on is another boot's answer.
    pub(super) fn next_boot(&self) {
        self.boot.set(self.boot.get() + 1);
        let mark = self.mark();
        self.boot_marks.borrow_mut().push(mark);
        self.changed.notify();
    }

    /// Counts something.
    pub(super) fn count(&self, what: impl FnOnce(&mut Seen)) {
        what(&mut self.seen.borrow_mut());
    }

    /// A new mark, put into the log.
    pub(super) fn mark(&self) -> u64 {
        let mark = self.next_mark.replace(self.next_mark.get() + 1);
        if let Some(world) = self.world.upgrade() {
            world.trace().mark(mark);
        }
        mark
    }

    /// The last mark there is.
    pub(super) fn last_mark(&self) -> u64 {
        self.next_mark.get() - 1
    }

    /// A number for something that is to be found again in what the disks saw.
    pub(super) fn token(&self) -> u32 {
        self.next_token.replace(self.next_token.get() + 1)
    }

    /// Notes that an answer, which left with the mark `answered` in `boot`, promised that one of `tokens`, handed over
    /// after the mark `since`, is on media. What an earlier boot did with it proves nothing.
    pub(super) fn promise(
        &self,
        tokens: Vec<Token>,
        since: u64,
        answered: u64,
        boot: u64,
        what: &'static str,
    ) {
        let since = since.max(self.boot_marks.borrow()[boot as usize]);
        self.promises.borrow_mut().push(Promise { tokens, since, answered, what });
    }

    /// Something is wrong. The first one is what is told.
    pub(super) fn fail(&self, why: String) {
        self.problem.borrow_mut().get_or_insert(why);
        self.changed.notify();
    }

    /// What is wrong, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// Errors of the device are honest answers in the boot that runs.
    pub(super) fn expect_faults(&self) {
        self.faulty.borrow_mut().push(self.boot());
    }

    /// Whether an answer of `boot` may say that the device failed.
    pub(super) fn may_fail(&self, boot: u64) -> bool {
        self.faulty.borrow().contains(&boot)
    }

    /// Waits until another boot began, or a while.
    pub(super) async fn after_failure(&self, boot: u64) {
        let another = self.another_boot(boot);
        moraine_platform::sync::either(another, self.clock.sleep(AFTER_FAILURE)).await;
    }

    /// Waits until a boot after `boot` began.
    pub(super) async fn another_boot(&self, boot: u64) {
        self.changed.until(|| (self.boot() > boot).then_some(())).await;
    }

    /// A write verifier was seen in an answer of `boot`; it must be one that no other boot showed.
    pub(super) fn verifier(&self, verifier: u64, boot: u64) -> Result<(), String> {
        let first = *self.verifiers.borrow_mut().entry(verifier).or_insert(boot);
        match first == boot {
            true => Ok(()),
            false => Err(format!("boots {first} and {boot} have one write verifier")),
        }
    }

    /// The mark and the boot with which the server handed over byte `at` of what it sent to `client`.
    pub(super) fn given(&self, client: SocketAddr, at: u64) -> (u64, u64) {
        let taps = self.taps.borrow();
        let tap = taps.get(&client).expect("who was answered was served").borrow();
        let found = tap[tap.partition_point(|(end, ..)| *end <= at)];
        (found.1, found.2)
    }
}

/// The server's network with a witness: when each byte of an answer was handed over is in the log.
pub(super) struct Tap {
    pub(super) network: Rc<dyn Network>,
    pub(super) scene: Rc<Scene>,
}

impl Network for Tap {
    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, NetError> {
        let listener = Rc::from(self.network.listen(address)?);
        Ok(Box::new(TapListener { listener, scene: self.scene.clone() }))
    }

    fn bind(&self, address: SocketAddr) -> Result<Box<dyn Datagram>, NetError> {
        self.network.bind(address)
    }

    fn connect(&self, peer: SocketAddr) -> moraine_platform::Connecting {
        self.network.connect(peer)
    }
}

struct TapListener {
    listener: Rc<dyn Listener>,
    scene: Rc<Scene>,
}

impl Listener for TapListener {
    fn local(&self) -> SocketAddr {
        self.listener.local()
    }

    fn accept(&self) -> NetFuture<Rc<dyn Stream>> {
        let (listener, scene) = (self.listener.clone(), self.scene.clone());
        Box::pin(async move {
            let stream = listener.accept().await?;
            // A client may use its port again while an earlier connection from it is not over here.
            let tap = Rc::new(RefCell::new(Vec::new()));
            scene.taps.borrow_mut().insert(canonical(stream.peer()), tap.clone());
            let sent = Cell::new(0);
            Ok(Rc::new(TapStream { stream, scene, tap, sent }) as Rc<dyn Stream>)
        })
    }
}

/// The same address whether an IPv6 socket or an IPv4 socket says it.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

struct TapStream {
    stream: Rc<dyn Stream>,
    scene: Rc<Scene>,
    tap: Rc<RefCell<Vec<Given>>>,
    sent: Cell<u64>,
}

impl Stream for TapStream {
    fn peer(&self) -> SocketAddr {
        self.stream.peer()
    }

    fn local(&self) -> SocketAddr {
        self.stream.local()
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        self.stream.poll_recv(cx, take)
    }

    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        give: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        let sent = self.stream.poll_send(cx, give);
        if let Poll::Ready(Ok(count @ 1..)) = sent {
            self.sent.set(self.sent.get() + count as u64);
            let given = (self.sent.get(), self.scene.mark(), self.scene.boot());
            self.tap.borrow_mut().push(given);
        }
        sent
    }

    fn close(&self) {
        self.stream.close();
    }

    fn abort(&self) {
        self.stream.abort();
    }
}
