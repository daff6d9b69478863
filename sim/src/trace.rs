//! The log of device commands: a running hash of everything (two runs of a seed must agree), counters, and on request
//! every command with its data, from which crash enumeration builds each image a power cut could leave.

use moraine_platform::{Fua, IoError};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A device command's number; counted over all disks of a world.
pub type CommandId = u64;

/// What a write puts down.
#[derive(Clone, Debug)]
pub enum Payload {
    /// These bytes.
    Bytes(Rc<[u8]>),
    /// Zeroes, so many.
    Zeroes(u64),
    /// What a discard leaves: noise drawn from the number, so many bytes.
    Noise(u64, u64),
}

impl Payload {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Payload::Bytes(bytes) => bytes.len() as u64,
            Payload::Zeroes(len) | Payload::Noise(_, len) => *len,
        }
    }

    /// The bytes `from..to` of it.
    pub fn part(&self, from: u64, to: u64) -> Payload {
        match self {
            Payload::Bytes(bytes) => Payload::Bytes(Rc::from(&bytes[from as usize..to as usize])),
            Payload::Zeroes(_) => Payload::Zeroes(to - from),
            Payload::Noise(seed, _) => Payload::Noise(*seed, to - from),
        }
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A command as a disk received it.
#[derive(Clone, Debug)]
pub enum Command {
    /// Bytes are read.
    Read {
        /// Where, in bytes.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Bytes are written; zeroing and discarding are writes too.
    Write {
        /// Where, in bytes.
        offset: u64,
        /// What.
        payload: Payload,
        /// Whether the completion must mean durable.
        fua: Fua,
    },
    /// What had completed becomes durable.
    Flush,
}

/// One entry of the log. Disks are numbered in the order they were plugged in.
#[derive(Clone, Debug)]
pub enum Event {
    /// A disk received a command.
    Submit {
        /// The disk.
        disk: usize,
        /// The command's number.
        id: CommandId,
        /// The command.
        command: Command,
    },
    /// A disk completed it.
    Complete {
        /// The disk.
        disk: usize,
        /// The command's number.
        id: CommandId,
        /// How.
        result: Result<(), IoError>,
    },
    /// The test reached a point: usually "step `n` was acknowledged".
    Mark(u64),
}

/// What was counted of all disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Read commands.
    pub reads: u64,
    /// Write commands without force-unit-access.
    pub writes: u64,
    /// Write commands with it.
    pub fua_writes: u64,
    /// Flush commands.
    pub flushes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// The log.
pub struct Trace {
    record: bool,
    next: Cell<CommandId>,
    hash: Cell<u64>,
    counters: Cell<Counters>,
    events: RefCell<Vec<Event>>,
}

impl Trace {
    pub(crate) fn new(record: bool) -> Trace {
        Trace {
            record,
            next: Cell::new(0),
            hash: Cell::new(0xcbf2_9ce4_8422_2325),
            counters: Cell::default(),
            events: RefCell::default(),
        }
    }

    /// Commands submitted so far.
    pub fn submitted(&self) -> u64 {
        self.next.get()
    }

    /// Hash of all commands, completions and marks so far: equal for two runs of one seed.
    pub fn hash(&self) -> u64 {
        self.hash.get()
    }

    /// Counters so far.
    pub fn counters(&self) -> Counters {
        self.counters.get()
    }

    /// A copy of what was recorded. Empty unless the world records.
    pub fn events(&self) -> Vec<Event> {
        self.events.borrow().clone()
    }

    /// Puts a mark into the log.
    pub fn mark(&self, value: u64) {
        self.mix(&[3, value]);
        self.push(|| Event::Mark(value));
    }

    pub(crate) fn submit(&self, disk: usize, time: u64, command: &Command) -> CommandId {
        let id = self.next.get();
        self.next.set(id + 1);
        let mut counters = self.counters.get();
        match command {
            Command::Read { offset, len } => {
                counters.reads += 1;
                counters.read_bytes += len;
                self.mix(&[0, disk as u64, time, *offset, *len]);
            }
            Command::Write { offset, payload, fua } => {
                *(if *fua == Fua::Yes { &mut counters.fua_writes } else { &mut counters.writes }) += 1;
                counters.written_bytes += payload.len();
                self.mix(&[1, disk as u64, time, *offset, payload.len(), u64::from(*fua == Fua::Yes)]);
                match payload {
                    Payload::Bytes(bytes) => self.mix(&[hash_bytes(bytes)]),
                    Payload::Zeroes(_) => self.mix(&[0]),
                    Payload::Noise(seed, _) => self.mix(&[*seed]),
                }
            }
            Command::Flush => {
                counters.flushes += 1;
                self.mix(&[2, disk as u64, time]);
            }
        }
        self.counters.set(counters);
        self.push(|| Event::Submit { disk, id, command: command.clone() });
        id
    }

    pub(crate) fn complete(&self, disk: usize, time: u64, id: CommandId, result: Result<(), IoError>) {
        self.mix(&[4, disk as u64, time, id, u64::from(result.is_err())]);
        self.push(|| Event::Complete { disk, id, result });
    }

    fn push(&self, event: impl FnOnce() -> Event) {
        if self.record {
            self.events.borrow_mut().push(event());
        }
    }

    fn mix(&self, words: &[u64]) {
        self.hash.set(words.iter().fold(self.hash.get(), |h, w| mix(h, *w)));
    }
}

/// One step of a fast 64-bit mixer.
pub(crate) fn mix(hash: u64, word: u64) -> u64 {
    let h = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^ (h >> 29)
}

/// Hash of some bytes.
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    let head = chunks
        .by_ref()
        .fold(bytes.len() as u64, |h, c| mix(h, u64::from_le_bytes(c.try_into().expect("eight bytes"))));
    chunks.remainder().iter().fold(head, |h, b| mix(h, u64::from(*b)))
}
