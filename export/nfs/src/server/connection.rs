//! One connection: two tasks, one that receives and starts calls, one that sends replies as they complete. What they
//! share is [`Connection`].
//!
//! A call begins only once all of it was received, so what was not begun dies with its connection; what was begun runs
//! to its end, and a repeat of it on another connection waits for that end (see [`crate::drc`]).

use super::Inner;
use super::budget::{Budget, Grant, Purses, Slot};
use super::config::{MEMORY_PAUSE, WHOLE_TRIES};
use super::dispatch::{Job, Outcome, Plan, Transport};
use super::intake::{Arrived, Incoming, Intake};
use crate::drc::Arrival;
use crate::rpc::Reply;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::net::IpAddr;
use core::pin::pin;
use core::task::Poll;
use moraine_fs::vfs::{Vfs, WriteData};
use moraine_platform::sync::{Either, Event, either};
use moraine_platform::{BLOCK_SIZE, Buf, Instant, LocalFuture, NetError, Stream};

/// A connection, as both its tasks and the server see it.
pub(super) struct Connection {
    stream: Rc<dyn Stream>,
    client: IpAddr,
    purses: Purses,
    outbox: RefCell<VecDeque<Queued>>,
    /// Bytes of the first reply in the outbox that were sent.
    sent: Cell<usize>,
    /// The outbox or the state changed.
    changed: Event,
    interrupted: Event,
    state: Cell<State>,
    receiving_since: Cell<Option<Instant>>,
    sending_since: Cell<Option<Instant>>,
    last_call: Cell<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Calls come in and replies go out.
    Open,
    /// No more calls; what is in work is still answered.
    Closing,
    /// Nothing more, in either direction.
    Dead,
}

/// Where a reply goes: whoever asked last. Holds a slot of that connection until the reply was sent.
pub(super) struct ReplyTo {
    connection: Rc<Connection>,
    slot: Slot,
}

struct Queued {
    reply: Reply,
    _slot: Slot,
    _grant: Option<Grant>,
}

impl Connection {
    pub(super) fn new(stream: Rc<dyn Stream>, budget: &Budget, now: Instant) -> Rc<Connection> {
        let client = stream.peer().ip().to_canonical();
        Rc::new(Connection {
            stream,
            client,
            purses: budget.purses(client),
            outbox: RefCell::default(),
            sent: Cell::new(0),
            changed: Event::new(),
            interrupted: Event::new(),
            state: Cell::new(State::Open),
            receiving_since: Cell::new(None),
            sending_since: Cell::new(None),
            last_call: Cell::new(now),
        })
    }

    /// The client's address.
    pub(super) fn client(&self) -> IpAddr {
        self.client
    }

    /// When it last had a complete call (at first: when it was accepted).
    pub(super) fn last_call(&self) -> Instant {
        self.last_call.get()
    }

    /// Since when the peer owes us the rest of a record, or does not take a reply.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        match (self.receiving_since.get(), self.sending_since.get()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Takes no further calls; those in work are answered, then the connection ends.
    pub(super) fn interrupt(&self) {
        if self.state.get() == State::Open {
            self.state.set(State::Closing);
        }
        self.interrupted.notify();
        self.changed.notify();
    }

    /// Ends it at once.
    pub(super) fn abort(&self) {
        self.state.set(State::Dead);
        self.stream.abort();
        self.outbox.take();
        self.interrupted.notify();
        self.changed.notify();
    }

    fn push(&self, reply: Reply, slot: Slot, grant: Option<Grant>) {
        if self.state.get() != State::Dead {
            self.outbox.borrow_mut().push_back(Queued { reply, _slot: slot, _grant: grant });
            self.changed.notify();
        }
    }

    /// Waits for bytes and feeds them. `None`: the stream ended, failed, or no more calls are wanted.
    async fn receive_some(&self, intake: &mut Intake) -> Option<Result<Arrived, crate::rpc::RecordError>> {
        let mut arrived = None;
        let mut interrupted = pin!(self.interrupted.after(0));
        let received = poll_fn(|cx| {
            if self.state.get() != State::Open || interrupted.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(NetError::Closed));
            }
            self.stream.poll_recv(cx, &mut |bytes| match intake.feed(bytes) {
                Ok((used, what)) => {
                    arrived = Some(Ok(what));
                    used
                }
                Err(error) => {
                    arrived = Some(Err(error));
                    bytes.len()
                }
            })
        })
        .await;
        if received.is_err() && self.state.get() == State::Open {
            self.abort();
        }
        received.ok().and(arrived)
    }

    /// What `waiting` comes to, unless the connection dies first: what has not begun dies with it.
    async fn unless_dead<T>(&self, waiting: impl Future<Output = T>) -> Option<T> {
        let dead = async {
            let mut ticket = self.interrupted.ticket();
            while self.state.get() != State::Dead {
                self.interrupted.after(ticket).await;
                ticket = self.interrupted.ticket();
            }
        };
        match either(waiting, dead).await {
            Either::First(value) => Some(value),
            Either::Second(()) => None,
        }
    }

    /// Copies replies into `room` as far as it goes.
    fn fill(&self, room: &mut [u8]) -> usize {
        let mut outbox = self.outbox.borrow_mut();
        let mut at = 0;
        while at < room.len()
            && let Some(first) = outbox.front()
        {
            let copied = first.reply.copy_to(self.sent.get(), &mut room[at..]);
            at += copied;
            self.sent.set(self.sent.get() + copied);
            if self.sent.get() == first.reply.wire_len() {
                self.sent.set(0);
                outbox.pop_front();
            }
        }
        at
    }
}

/// Receives calls and starts them, until the stream ends.
pub(super) async fn receive<V: Vfs + 'static>(server: Rc<Inner<V>>, connection: Rc<Connection>) {
    let mut intake = Intake::new();
    while let Some((incoming, slot, grant)) = next_call(&server, &connection, &mut intake).await {
        connection.last_call.set(server.platform.clock.now());
        match server.plan(connection.client, Transport::Stream, incoming) {
            Plan::Hopeless => {
                server.complain(format_args!("{} sent what is no call", connection.client));
                server.counters.borrow_mut().dropped += 1;
                break;
            }
            Plan::Answer(reply) => connection.push(reply, slot, None),
            // A call that has to wait and whose connection dies meanwhile never begins.
            Plan::Run(job) => start(&server, &connection, job, slot, grant).await.unwrap_or(()),
        }
    }
    connection.receiving_since.set(None);
    connection.interrupt();
}

/// Receives one call, with the budget it needs.
async fn next_call<V: Vfs + 'static>(
    server: &Rc<Inner<V>>,
    connection: &Rc<Connection>,
    intake: &mut Intake,
) -> Option<(Incoming, Slot, Option<Grant>)> {
    let slot = connection.unless_dead(connection.purses.slot()).await?;
    let mut grant = None;
    let mut arrived = connection.receive_some(intake).await?;
    loop {
        match arrived {
            Ok(Arrived::Nothing) => {
                if !intake.at_boundary() && connection.receiving_since.get().is_none() {
                    connection.receiving_since.set(Some(server.platform.clock.now()));
                }
                arrived = connection.receive_some(intake).await?;
            }
            Ok(Arrived::Data { offset, len }) => {
                // The time we make the peer wait is not held against it.
                connection.receiving_since.set(None);
                let skip = (offset % BLOCK_SIZE as u64) as usize;
                let memory = (skip + len as usize).next_multiple_of(BLOCK_SIZE);
                let granted = connection.unless_dead(connection.purses.grant(memory as u64)).await?;
                // With less than it asked for the call writes less than it asked for.
                let len = (len as usize).min(granted.bytes() as usize - skip);
                grant = Some(granted);
                intake.supply(connection.unless_dead(buffer(server, skip, len)).await?);
                // A record that ends here, without its data, is complete already.
                arrived = intake.feed(&[]).map(|(_, arrived)| arrived);
            }
            Ok(Arrived::Call(incoming)) => {
                connection.receiving_since.set(None);
                return Some((incoming, slot, grant));
            }
            Err(error) => {
                server.complain(format_args!("{}: {error}", connection.client));
                server.counters.borrow_mut().dropped += 1;
                return None;
            }
        }
    }
}

/// Memory for a WRITE's data, placed for its offset; waits until there is some. If what is free stays in pieces that are
/// too small, the call writes less than it asked for (RFC 1813, 3.3.7, allows that).
async fn buffer<V: Vfs>(server: &Rc<Inner<V>>, skip: usize, len: usize) -> WriteData {
    let (mut bytes, mut refused) = (skip + len, 0);
    loop {
        match Buf::zeroed(bytes) {
            Ok(buf) => return WriteData { buf, skip, len: bytes - skip },
            Err(moraine_platform::OutOfMemory) => {
                server.nfs.vfs().memory_is_short();
                server.platform.clock.sleep(MEMORY_PAUSE).await;
                refused += 1;
                if refused >= WHOLE_TRIES {
                    bytes = Buf::less_than(bytes);
                }
            }
        }
    }
}

/// Runs a call beside the others, unless it ran before or runs already. `None` if the connection died before it began.
async fn start<V: Vfs + 'static>(
    server: &Rc<Inner<V>>,
    connection: &Rc<Connection>,
    mut job: Job,
    mut slot: Slot,
    mut grant: Option<Grant>,
) -> Option<()> {
    connection.unless_dead(connection.purses.admit(&mut slot)).await?;
    if job.reply_payload > 0 {
        let granted = connection.unless_dead(connection.purses.grant(job.reply_payload)).await?;
        job.reply_payload = granted.bytes();
        grant = Some(granted);
    }
    let reply_to = ReplyTo { connection: connection.clone(), slot };
    let mut direct = None;
    if let Some((key, keep)) = job.replay {
        let now = server.platform.clock.now();
        let arrival = server.replies.borrow_mut().arrive(key, keep, reply_to, now);
        match arrival {
            Arrival::Run => {}
            Arrival::Joined(ReplyTo { connection: before, slot }) => {
                server.counters.borrow_mut().joined += 1;
                drop(slot);
                // It may have waited for nothing but this call before it ends.
                before.changed.notify();
                return Some(());
            }
            Arrival::Replay(reply, ReplyTo { connection, slot }) => {
                server.counters.borrow_mut().replayed += 1;
                connection.push(Reply::from_message(&reply), slot, None);
                return Some(());
            }
            Arrival::Full(ReplyTo { connection, .. }) => {
                // Fewer calls run at once than the cache has entries. If not, its client asks again on another connection.
                connection.abort();
                return None;
            }
        }
    } else {
        direct = Some(reply_to);
    }
    let mut task: LocalFuture<()> = Box::pin(finish(server.clone(), job, direct, grant));
    // Most calls find everything in memory: they end here, without a task of their own.
    let ended = poll_fn(|cx| Poll::Ready(task.as_mut().poll(cx).is_ready())).await;
    if !ended {
        server.platform.spawn.spawn("nfs call", task);
    }
    Some(())
}

/// Runs a call and hands its reply over.
async fn finish<V: Vfs + 'static>(
    server: Rc<Inner<V>>,
    job: Job,
    direct: Option<ReplyTo>,
    grant: Option<Grant>,
) {
    let (replay, reply_payload) = (job.replay, job.reply_payload);
    let outcome = server.run(job).await;
    // A WRITE's data has gone to the filesystem, whose memory it is now; a READ's stays ours until it was sent.
    let grant = grant.filter(|_| reply_payload > 0);
    let ReplyTo { connection, slot } = match (direct, replay) {
        (Some(reply_to), _) => reply_to,
        (None, Some((key, _))) => {
            let kept = match &outcome {
                Outcome::Reply(reply) => Some(reply.message()),
                Outcome::Close => None,
            };
            let now = server.platform.clock.now();
            server.replies.borrow_mut().finish(&key, kept, now)
        }
        (None, None) => unreachable!("a reply goes straight back or through the cache"),
    };
    match outcome {
        Outcome::Reply(reply) => connection.push(reply, slot, grant),
        Outcome::Close => connection.abort(),
    }
}

/// Sends replies until the connection ends.
pub(super) async fn send<V: Vfs + 'static>(server: Rc<Inner<V>>, connection: Rc<Connection>) {
    loop {
        let ticket = connection.changed.ticket();
        let empty = connection.outbox.borrow().is_empty();
        match connection.state.get() {
            State::Dead => break,
            State::Closing if empty && connection.purses.idle() => {
                connection.stream.close();
                break;
            }
            State::Open | State::Closing if empty => {
                connection.changed.after(ticket).await;
                continue;
            }
            State::Open | State::Closing => {}
        }
        if connection.sending_since.get().is_none() {
            connection.sending_since.set(Some(server.platform.clock.now()));
        }
        let mut changed = pin!(connection.changed.after(ticket));
        let sent = poll_fn(|cx| {
            if let Poll::Ready(sent) = connection.stream.poll_send(cx, &mut |room| connection.fill(room)) {
                return Poll::Ready(sent);
            }
            // The peer takes nothing now; look again at the state when it changes.
            changed.as_mut().poll(cx).map(|()| Ok(0))
        })
        .await;
        match sent {
            Ok(0) => {}
            Ok(_) => connection.sending_since.set(None),
            Err(_) => connection.abort(),
        }
    }
    server.ended(&connection);
}
