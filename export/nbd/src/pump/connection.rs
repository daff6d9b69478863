//! A connection from greeting to close: the handshake, then the receive loop, which reads a request only when there is
//! a slot for it and a payload only when there is memory for it.

use super::budget::Budget;
use super::link::Lost;
use super::volume::{self, Volume};
use crate::server::{Peer, Server};
use crate::session::{Ask, Found, Handshake, Next, Terms, Verdict, Work};
use crate::wire::*;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use moraine_fs::planted::{self, Fault};
use moraine_fs::vfs::{FsResult, ObjectId};
use moraine_fs::{FsError, Vfs};
use moraine_platform::sync::{Either, Permit, Semaphore, either};
use moraine_platform::{Platform, debug};
use moraine_share::Open;

/// Requests of one connection in work; further ones wait in the transport.
pub(super) const REQUESTS_MAX: u64 = 16;

/// A connection in its transmission phase. Requests in work keep it, and with it the volume's open, alive.
pub(super) struct Session<V> {
    pub(super) peer: Rc<Peer>,
    pub(super) platform: Platform,
    pub(super) vfs: Rc<V>,
    pub(super) volume: Rc<Volume>,
    pub(super) terms: Terms,
    pub(super) budget: Budget,
    pub(super) open: Open,
    slots: Rc<Semaphore>,
    changes: Cell<u64>,
    gone: Cell<bool>,
}

/// A change under way, counted so that it cannot outlive its client unnoticed.
pub(super) struct Changing<V>(Rc<Session<V>>);

/// A volume that was opened for a connection.
struct Opened {
    open: Open,
    volume: Rc<Volume>,
}

/// Serves a connection until it ends and nothing of it is in work any more.
pub(crate) async fn converse<V: Vfs + 'static>(server: &Server<V>, peer: Rc<Peer>) {
    // Dropping the future of the handshake is safe: nothing in it changes the filesystem.
    let handshake = match either(shake_hands(server, &peer), peer.stopped()).await {
        Either::First(result) => result,
        Either::Second(()) => Ok(None),
    };
    match handshake {
        Ok(Some((terms, opened))) => {
            let session = Rc::new(Session {
                peer: peer.clone(),
                platform: server.platform.clone(),
                vfs: server.vfs.clone(),
                volume: opened.volume,
                terms,
                budget: server.budget(),
                open: opened.open,
                slots: Semaphore::new(REQUESTS_MAX),
                changes: Cell::new(0),
                gone: Cell::new(false),
            });
            let end = session.receive().await;
            session.finish(end).await;
        }
        Ok(None) => {}
        Err(Lost) => debug!("nbd", "{} went away in the handshake", peer.link.peer()),
    }
    peer.link.close();
}

async fn shake_hands<V: Vfs + 'static>(
    server: &Server<V>,
    peer: &Peer,
) -> Result<Option<(Terms, Opened)>, Lost> {
    let link = &peer.link;
    link.send(&greeting(Handshake::FLAGS), &[]).await?;
    let mut flags = [0; CLIENT_FLAGS_LEN];
    link.fill(&mut flags).await?;
    let Some(flags) = client_flags(flags) else { return Ok(None) };
    let mut handshake = Handshake::new(flags);
    let mut out = Vec::new();
    loop {
        let mut head = [0; OPTION_HEADER_LEN];
        link.fill(&mut head).await?;
        let Some(header) = OptionHeader::parse(&head) else { return Ok(None) };
        let mut next = match handshake.reads(header) {
            Ok(()) => {
                let mut data = alloc::vec![0; header.len as usize]; // bounded by `reads`
                link.fill(&mut data).await?;
                handshake.option(header.number, &data, &mut out)
            }
            Err(Some(drain)) => {
                link.drain(u64::from(drain)).await?;
                handshake.oversized(header, &mut out);
                Next::Option
            }
            Err(None) => return Ok(None),
        };
        let (mut opened, mut grant) = (None, None);
        match next {
            Next::List => {
                grant = Some(server.common().take(volume::LIST_PAYLOAD).await);
                let names = volume::list(&*server.vfs).await.unwrap_or_default();
                handshake.listed(names.iter().map(|n| &n[..]), &mut out);
                next = Next::Option;
            }
            Next::Find(ask) => {
                let found = look(server, &ask, &mut opened).await;
                next = handshake.found(ask, found, &mut out);
            }
            Next::Option | Next::Transmit(_) | Next::Close => {}
        }
        link.send(&out, &[]).await?;
        out = Vec::new(); // a long answer's memory goes with its grant
        drop(grant);
        peer.active();
        match (next, opened) {
            (Next::Transmit(terms), Some(opened)) => return Ok(Some((terms, opened))),
            (Next::Option, _) => {}
            _ => return Ok(None),
        }
    }
}

/// Looks for the export of an option, and opens it if the client means to use it.
async fn look<V: Vfs>(server: &Server<V>, ask: &Ask, opened: &mut Option<Opened>) -> Result<Found, FsError> {
    let (object, mut attr) = volume::find(&*server.vfs, &ask.name).await?;
    if ask.opens() {
        let open = server.share.open_volume(object)?;
        let volume = server.volumes.of(object);
        open.settled().await;
        volume.without_ghosts().await;
        // Only now does the size stand still.
        attr = server.vfs.getattr(object).await?;
        *opened = Some(Opened { open, volume });
    }
    Ok(Found { size: attr.size, read_only: volume::read_only(&attr) })
}

/// How the receive loop ended.
enum End {
    /// The client said good-bye, or the server goes down: what is in work is answered.
    Good,
    /// The client is gone or cannot be followed.
    Lost,
}

impl<V: Vfs + 'static> Session<V> {
    async fn receive(self: &Rc<Self>) -> End {
        let link = &self.peer.link;
        loop {
            let slot = self.slots.take(1).await;
            let mut head = [0; REQUEST_LEN];
            match either(link.fill_when_it_comes(&mut head), self.peer.stopped()).await {
                Either::First(Ok(true)) => {}
                Either::First(Ok(false) | Err(Lost)) => return End::Lost,
                Either::Second(()) => return End::Good,
            }
            let Some(request) = Request::parse(&head) else {
                debug!("nbd", "{} is out of step", link.peer());
                link.abort();
                return End::Lost;
            };
            self.peer.active();
            let received = match self.terms.admit(&request) {
                Verdict::Do(Work::Write(range, durability)) => {
                    self.write(request, range, durability, slot).await
                }
                Verdict::Do(work) => {
                    // Counted from here on: the task may begin only after the client is gone.
                    let changing = matches!(work, Work::Zero(..)).then(|| self.changing());
                    self.start(self.clone().work(request.cookie, work, changing, slot));
                    Ok(())
                }
                Verdict::Refuse(error) => {
                    let drained = link.drain(u64::from(request.payload_len())).await;
                    self.start(self.clone().refuse(request, error, slot));
                    drained
                }
                Verdict::Finish => return End::Good,
                Verdict::HangUp => {
                    link.abort();
                    return End::Lost;
                }
            };
            if received.is_err() {
                return End::Lost;
            }
        }
    }

    /// Waits until nothing is in work.
    async fn finish(&self, end: End) {
        if let End::Lost = end {
            self.gone.set(true);
            self.volume.orphaned(self.changes.get());
        }
        drop(self.slots.take(REQUESTS_MAX).await);
    }

    /// Runs a part of a request beside the receive loop.
    pub(super) fn start(&self, work: impl Future<Output = ()> + 'static) {
        self.platform.spawn.spawn("nbd request", alloc::boxed::Box::pin(work));
    }

    async fn refuse(self: Rc<Self>, request: Request, error: Errno, _slot: Permit) {
        let read = request.command == Some(Command::Read) && self.terms.structured;
        self.answer_error(request.cookie, error, read).await;
    }

    /// The volume's object.
    pub(super) fn object(&self) -> ObjectId {
        self.open.object()
    }

    /// Counts a change until what it returns is dropped.
    pub(super) fn changing(self: &Rc<Self>) -> Changing<V> {
        self.changes.set(self.changes.get() + 1);
        Changing(self.clone())
    }

    /// Makes everything durable that any connection to the volume was answered before.
    pub(super) async fn flush(&self) -> FsResult<()> {
        if planted::is(Fault::FlushIgnored) {
            return Ok(());
        }
        let run = || async {
            let latest = self.volume.latest();
            self.vfs.commit(self.object(), 0, 0).await?;
            self.vfs.durable(latest).await
        };
        self.volume.flushes.flush(run).await
    }
}

impl<V> Drop for Changing<V> {
    fn drop(&mut self) {
        let session = &self.0;
        session.changes.set(session.changes.get() - 1);
        if session.gone.get() {
            session.volume.orphan_ended();
        }
    }
}
