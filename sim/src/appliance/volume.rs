//! Clients of NBD: several connections to each volume, each with a part of it for itself. A connection that is lost is
//! made anew, and what was not answered is sent again.

use super::cells::Cell;
use super::client::{bytes_of, stamp_of};
use super::promises::{Token, stamp};
use super::rpc::Incoming;
use super::scene::{CELL, Scene, canonical};
use crate::random::Random;
use moraine_platform::sync::{Either, either};
use moraine_platform::{NetError, Network, Stream};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const ZERO: u16 = 6;
const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const EIO: u32 = 5;
const ENOMEM: u32 = 12;
const ESHUTDOWN: u32 = 108;
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const GO: u32 = 7;
const ACK: u32 = 1;
const INFO: u32 = 3;
/// Flags of the client: fixed newstyle, and no zeroes after the handshake.
const CLIENT_FLAGS: u32 = 3;

/// Cells that one connection has for itself, and cells of one request at most.
pub(super) const PART: usize = 256;
const REQUEST_CELLS: usize = 100;
/// Requests under way at once, at most.
const REQUESTS: u64 = 4;
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long an answer may take before the connection is given up.
const SILENCE_MAX: Duration = Duration::from_secs(40);

/// A volume as all its connections know it.
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) cells: RefCell<Vec<Cell>>,
}

/// What was asked and not answered.
struct Request {
    command: u16,
    flags: u16,
    cells: Range<usize>,
    stamps: Vec<u64>,
    since: u64,
    /// What a flush covers, as of when it was sent, by which boot: cells with the marks of what they held.
    covers: (u64, Vec<(usize, u64)>),
}

/// Why a session ended.
enum Ended {
    /// All was done.
    Done,
    /// The connection was lost, or the server goes down.
    Lost,
}

/// One connection after another to a volume, with its part of the volume.
pub(super) struct Disk {
    pub(super) scene: Rc<Scene>,
    pub(super) network: Rc<dyn Network>,
    pub(super) server: SocketAddr,
    pub(super) volume: Rc<Volume>,
    pub(super) part: Range<usize>,
    pub(super) random: Random,
    asked: BTreeMap<u64, Request>,
    next_cookie: u64,
}

impl Disk {
    pub(super) fn new(
        scene: Rc<Scene>,
        network: Rc<dyn Network>,
        server: SocketAddr,
        volume: (Rc<Volume>, Range<usize>),
        random: Random,
    ) -> Disk {
        let (volume, part) = volume;
        let (asked, next_cookie) = (BTreeMap::new(), 1);
        Disk { scene, network, server, volume, part, random, asked, next_cookie }
    }

    /// Works for so many steps, then looks at its part in the last boot.
    pub(super) async fn run(mut self, number: usize, mut steps: usize) {
        if let Err(why) = self.serve(&mut steps).await {
            return self.scene.fail(format!("NBD client {number}: {why}"));
        }
        self.scene.worked.set(self.scene.worked.get() + 1);
        self.scene.changed.notify();
        self.scene.changed.until(|| self.scene.finale.get().then_some(())).await;
        for first in self.part.clone().step_by(REQUEST_CELLS) {
            let cells = first..self.part.end.min(first + REQUEST_CELLS);
            self.ask(READ, 0, cells, Vec::new());
        }
        if let Err(why) = self.serve(&mut 0).await {
            return self.scene.fail(format!("NBD client {number}, in the end: {why}"));
        }
        self.scene.satisfied.set(self.scene.satisfied.get() + 1);
        self.scene.changed.notify();
    }

    /// Connects until everything is done.
    async fn serve(&mut self, steps: &mut usize) -> Result<(), String> {
        loop {
            let connected =
                either(self.network.connect(self.server), self.scene.clock.sleep(CONNECT_MAX)).await;
            if let Either::First(Ok(stream)) = connected {
                let incoming = Incoming::new(stream.clone());
                let session = async {
                    match self.shake_hands(&stream, &incoming).await {
                        Ok(()) => self.session(&stream, &incoming, steps).await,
                        Err(Fail::Lost) => Ok(Ended::Lost),
                        Err(Fail::Wrong(why)) => Err(why),
                    }
                };
                let ended = session.await?;
                stream.abort();
                if let Ended::Done = ended {
                    return Ok(());
                }
            }
            let pause = self.random.between(10, 2000);
            self.scene.clock.sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn shake_hands(&self, stream: &Rc<dyn Stream>, incoming: &Incoming) -> Result<(), Fail> {
        let talk = async {
            if incoming.take(GREETING.len()).await? != GREETING {
                return Err(Fail::Wrong(String::from("another greeting")));
            }
            stream.send_all(&CLIENT_FLAGS.to_be_bytes()).await?;
            let name = self.volume.name.as_bytes();
            let mut go = b"IHAVEOPT".to_vec();
            go.extend(GO.to_be_bytes());
            go.extend((name.len() as u32 + 6).to_be_bytes());
            go.extend((name.len() as u32).to_be_bytes());
            go.extend(name);
            go.extend(0u16.to_be_bytes());
            stream.send_all(&go).await?;
            loop {
                let head = incoming.take(20).await?;
                if head[..8] != OPTION_REPLY_MAGIC.to_be_bytes() {
                    return Err(Fail::Wrong(String::from("no reply to an option")));
                }
                let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
                let (kind, info) = (word(12), incoming.take(word(16) as usize).await?);
                match kind {
                    ACK => return Ok(()),
                    INFO => {
                        let size = info
                            .get(2..10)
                            .map(|size| u64::from_be_bytes(size.try_into().expect("eight bytes")));
                        let expected = (self.volume.cells.borrow().len() * CELL) as u64;
                        if info.starts_with(&[0, 0]) && size != Some(expected) {
                            return Err(Fail::Wrong(format!(
                                "the volume has {size:?} bytes, not {expected}"
                            )));
                        }
                    }
                    // Policy and shutdown: not now.
                    0x8000_0002 | 0x8000_0007 => return Err(Fail::Lost),
                    // What a failing disk answers to a lookup.
                    kind if kind >> 31 == 1 && self.scene.may_fail(self.scene.boot()) => {
                        return Err(Fail::Lost);
                    }
                    kind => return Err(Fail::Wrong(format!("GO is answered by {kind:x}"))),
                }
            }
        };
        match either(talk, self.scene.clock.sleep(SILENCE_MAX)).await {
            Either::First(result) => result,
            Either::Second(()) => Err(Fail::Lost),
        }
    }

    /// Sends what has no answer again, then works.
    async fn session(
        &mut self,
        stream: &Rc<dyn Stream>,
        incoming: &Incoming,
        steps: &mut usize,
    ) -> Result<Ended, String> {
        let again: Vec<u64> = self.asked.keys().copied().collect();
        self.scene.count(|seen| seen.repeats += again.len() as u64);
        for cookie in again {
            if self.send(stream, cookie).await.is_err() {
                return Ok(Ended::Lost);
            }
        }
        loop {
            if self.asked.is_empty() {
                if *steps == 0 {
                    return Ok(Ended::Done);
                }
                *steps -= 1;
                self.scene.count(|seen| seen.steps += 1);
                for cookie in self.draw() {
                    if self.send(stream, cookie).await.is_err() {
                        return Ok(Ended::Lost);
                    }
                }
            }
            let silence = self.scene.clock.sleep(SILENCE_MAX);
            match either(self.reply(stream, incoming), silence).await {
                Either::First(Ok(())) => {}
                Either::First(Err(Fail::Wrong(why))) => return Err(why),
                Either::First(Err(Fail::Lost)) | Either::Second(()) => return Ok(Ended::Lost),
            }
        }
    }

    /// Up to so many requests, each about other cells.
    fn draw(&mut self) -> Vec<u64> {
        let mut cookies = Vec::new();
        for _ in 0..1 + self.random.below(REQUESTS) {
            let most = *self.random.pick(&[1, 8, REQUEST_CELLS, REQUEST_CELLS]);
            let count = 1 + self.random.index(most);
            let first = self.part.start + self.random.index(self.part.len() - count + 1);
            let cells = first..first + count;
            if self.asked.values().any(|r| r.cells.start < cells.end && cells.start < r.cells.end) {
                continue;
            }
            let fua = if self.random.percent(25) { FUA } else { 0 };
            let cookie = match self.random.below(10) {
                0..=4 => {
                    let stamps = (0..count).map(|_| stamp(self.scene.token())).collect();
                    self.ask(WRITE, fua, cells, stamps)
                }
                5 => self.ask(TRIM, fua, cells, vec![0; count]),
                6 => {
                    let hole = *self.random.pick(&[0, NO_HOLE]);
                    self.ask(ZERO, fua | hole, cells, vec![0; count])
                }
                7 => self.ask(READ, 0, cells, Vec::new()),
                _ => self.ask(FLUSH, 0, 0..0, Vec::new()),
            };
            cookies.push(cookie);
        }
        cookies
    }

    fn ask(&mut self, command: u16, flags: u16, cells: Range<usize>, stamps: Vec<u64>) -> u64 {
        let (cookie, since) = (self.next_cookie, self.scene.mark());
        self.next_cookie += 1;
        let mut all = self.volume.cells.borrow_mut();
        cells.clone().zip(&stamps).for_each(|(cell, stamp)| all[cell].sent(*stamp, since));
        drop(all);
        self.asked.insert(cookie, Request { command, flags, cells, stamps, since, covers: (0, Vec::new()) });
        cookie
    }

    async fn send(&mut self, stream: &Rc<dyn Stream>, cookie: u64) -> Result<(), NetError> {
        let request = self.asked.get_mut(&cookie).expect("what is sent was asked");
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend(request.flags.to_be_bytes());
        bytes.extend(request.command.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(((request.cells.start * CELL) as u64).to_be_bytes());
        bytes.extend(((request.cells.len() * CELL) as u32).to_be_bytes());
        match request.command {
            WRITE => bytes.extend(bytes_of(&request.stamps)),
            FLUSH => {
                // All that this boot has answered, to whichever connection.
                let boot = self.scene.boot();
                let cells = self.volume.cells.borrow();
                let loose = cells.iter().enumerate().filter_map(|(n, cell)| Some((n, cell.loose_in(boot)?)));
                request.covers = (boot, loose.collect());
            }
            _ => {}
        }
        stream.send_all(&bytes).await
    }

    /// Takes the next answer.
    async fn reply(&mut self, stream: &Rc<dyn Stream>, incoming: &Incoming) -> Result<(), Fail> {
        let at = incoming.taken();
        let head = incoming.take(16).await?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let cookie = u64::from(word(8)) << 32 | u64::from(word(12));
        if word(0) != SIMPLE_MAGIC || !self.asked.contains_key(&cookie) {
            return Err(Fail::Wrong(format!("no answer to anything: {head:x?}")));
        }
        let (mark, boot) = self.scene.given(canonical(stream.local()), at);
        match word(4) {
            0 => {}
            ESHUTDOWN => return Err(Fail::Lost),
            ENOMEM if self.scene.little_memory.get() => {
                self.scene.count(|seen| seen.not_now += 1);
                return Err(Fail::Lost);
            }
            EIO if self.scene.may_fail(boot) => {
                let request = &self.asked[&cookie];
                if request.command == FLUSH {
                    self.volume.cells.borrow_mut().iter_mut().for_each(Cell::flush_failed);
                }
                self.scene.count(|seen| seen.failures += 1);
                self.scene.after_failure(boot).await;
                return Err(Fail::Lost);
            }
            error => {
                let request = &self.asked[&cookie];
                return Err(Fail::Wrong(format!(
                    "{} of {:?}: error {error}",
                    request.command, request.cells
                )));
            }
        }
        let command = self.asked[&cookie].command;
        let data = match command {
            READ => incoming.take(self.asked[&cookie].cells.len() * CELL).await?,
            _ => Vec::new(),
        };
        let request = self.asked.remove(&cookie).expect("looked at above");
        let mut all = self.volume.cells.borrow_mut();
        match command {
            READ => {
                for (cell, bytes) in request.cells.zip(data.chunks(CELL)) {
                    let decided = u64::from(all[cell].is_open(boot));
                    let right = stamp_of(bytes).and_then(|stamp| all[cell].seen(stamp, boot));
                    let volume = &self.volume.name;
                    right.map_err(|why| Fail::Wrong(format!("{volume}, cell {cell} {why}, boot {boot}")))?;
                    self.scene.count(|seen| seen.decided += decided);
                }
            }
            FLUSH => {
                let (sent_in, covers) = request.covers;
                for (cell, since) in covers.into_iter().filter(|_| sent_in == boot) {
                    if !all[cell].stable(since) {
                        continue;
                    }
                    // What was written after the flush was sent may be what it found. Zeroes cannot be told.
                    let (stamps, since) = all[cell].stable_or_later();
                    if !stamps.contains(&0) {
                        let tokens = stamps.into_iter().map(Token::Cell).collect();
                        self.scene.promise(tokens, since, mark, boot, "NBD FLUSH");
                    }
                }
            }
            _ => {
                for (cell, stamp) in request.cells.zip(request.stamps) {
                    all[cell].answered(request.since, boot);
                    if request.flags & FUA == 0 {
                        continue;
                    }
                    all[cell].stable(request.since);
                    if stamp != 0 {
                        self.scene.promise(vec![Token::Cell(stamp)], request.since, mark, boot, "NBD FUA");
                    }
                }
            }
        }
        Ok(())
    }
}

/// Why an exchange did not come to its end.
enum Fail {
    /// The connection is lost.
    Lost,
    /// The server is wrong.
    Wrong(String),
}

impl From<NetError> for Fail {
    fn from(_: NetError) -> Fail {
        Fail::Lost
    }
}
