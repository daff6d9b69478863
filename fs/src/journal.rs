//! The journal: what makes a commit durable. A ring of entries on one or several devices, group-committed.
//!
//! A commit appends its keys to the *open entry* and gets that entry's [`Seq`]. Entries are numbered, checksummed and
//! chained by hash; recovery takes the newest chain that is whole, so what survives a crash is always a prefix of
//! what was appended, never shorter than the last seq that [`Journal::durable`] acknowledged.
//!
//! The way of a commit:
//! 1. [`Journal::reserve`] in its prepare phase: room in the ring, in the dirty bound and in memory. May wait.
//! 2. [`Journal::append`] in its synchronous commit: cannot fail. [`Journal::pin`] what must be written back later,
//!    [`Journal::add_dependency`] for data that must be on media before the commit counts.
//! 3. [`Journal::durable`] if somebody wants it on media: entries are written at most two at once, so whoever comes
//!    meanwhile shares the next one. A lone sync without dependencies costs one FUA write.
//! 4. When the keys have been written back, [`Pin::release_after`] the commit that published the write-back. Entries no
//!    longer pinned are given up by the next flush entry, and their buckets used again.
//!
//! | file | what it holds |
//! |---|---|
//! | `state` | all of the above, synchronous, without I/O |
//! | `open` | the entry being filled |
//! | `pins` | which entries are still needed |
//! | `ring` | where entries go on the devices |
//! | `writer` | preflush, write, acknowledge: the tasks that do the I/O |
//! | [`choose`](choose()) | which entries are history after a crash: a pure decision |
//! | `read` | reading the journal: [`read_history`] |
//! | `start` | going on where history ended: [`Journal::start`] |

use crate::device::{Dep, Devices};
use crate::planted::{self, Fault};
use alloc::boxed::Box;
use alloc::rc::{Rc, Weak};
use core::cell::{Cell, RefCell};
use core::fmt;
use core::time::Duration;
use moraine_platform::Platform;
use moraine_platform::sync::Event;

mod choose;
mod open;
mod pins;
mod read;
mod ring;
mod start;
mod state;
mod writer;

pub use choose::{Candidate, Decision, choose};
pub use moraine_format::journal::{Item, ItemKind, Seq, item_bytes};
pub use read::{History, HistoryEntry, RecoverError, Report, read_history, read_what_is_left};
pub use start::BUCKETS_MIN;
use state::State;

/// Who asks for room, most urgent first. The less urgent a class, the earlier it must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Updates of interior nodes and pointers: without them nothing can be written back.
    Interior,
    /// Writing back nodes so that the journal's tail can move.
    Reclaim,
    /// Emptying fragmented buckets.
    CopyGc,
    /// What frees space for users.
    Delete,
    /// Everything else.
    Normal,
}

impl Class {
    /// The part of ring and dirty bound that the class must leave free, in thousandths.
    fn floor_permille(self) -> u64 {
        match self {
            Class::Interior => 0,
            Class::Reclaim => 80,
            Class::CopyGc => 150,
            Class::Delete => 200,
            Class::Normal => 250,
        }
    }

    /// How many half-entries of buffers it leaves to more urgent classes.
    fn halves_left(self) -> usize {
        match self {
            Class::Interior => 0,
            Class::Reclaim => 1,
            Class::CopyGc | Class::Delete => 2,
            Class::Normal => 3,
        }
    }
}

/// Why the journal cannot make anything durable any more. It stays so until the pool is opened anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalError {
    /// Too many journal devices failed; this was the last.
    Device(u8),
    /// Data that commits refer to may be lost: a flush of this device failed.
    Data(u8),
    /// No memory for the journal's buffers at its start.
    OutOfMemory,
    /// No journal device is here, or one is too small.
    NoRoom,
    /// The pool takes no more changes, for a reason outside the journal.
    Stopped,
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JournalError::Device(device) => write!(f, "journal device {device} failed"),
            JournalError::Data(device) => write!(f, "device {device} lost data that was to be synced"),
            JournalError::OutOfMemory => f.write_str("no memory for the journal's buffers"),
            JournalError::NoRoom => f.write_str("no journal device with room"),
            JournalError::Stopped => f.write_str("the pool stopped"),
        }
    }
}

impl core::error::Error for JournalError {}

/// Bounds and times.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Bound on the bytes of items from the tail to now, whatever the ring's size: recovery holds them in memory. While history
    /// holds more, because a mount with more memory made it, the bound is half as much again as that.
    pub dirty_bytes_max: u64,
    /// Entries nobody waits for are made durable this long after their first item.
    pub idle_after: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { dirty_bytes_max: 12 << 20, idle_after: Duration::from_secs(1) }
    }
}

/// How urgently nodes should be written back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// Less than half full.
    Calm,
    /// More than half full: write back, oldest pins first.
    Reclaim,
    /// Close to the floor of normal commits, or somebody waits already.
    Urgent,
}

/// What the journal did since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Entries written, of which flush entries, and their bytes on disk for one copy.
    pub entries: u64,
    /// See `entries`.
    pub flush_entries: u64,
    /// See `entries`.
    pub bytes: u64,
    /// Items written, and items that a later one of the same entry replaced before they were.
    pub items: u64,
    /// See `items`.
    pub replaced_items: u64,
    /// Flushes that entries had to wait for before they could be submitted.
    pub preflushes: u64,
    /// Reservations that had to wait.
    pub waits: u64,
}

type FailureHook = Box<dyn Fn(JournalError)>;

/// The journal of a pool that is open for writing.
pub struct Journal {
    this: Weak<Journal>,
    platform: Platform,
    devices: Rc<Devices>,
    state: RefCell<State>,
    /// Something became durable, was written, or failed.
    changed: Event,
    /// Room was given back.
    space: Event,
    pressure_changed: Event,
    pressure_told: Cell<Pressure>,
    /// An entry got its first item, or the journal closes.
    opened: Rc<Event>,
    closing: Cell<bool>,
    on_failure: RefCell<Option<FailureHook>>,
}

/// Room for the items of one commit; what is not used goes back on drop.
pub struct Reservation {
    journal: Rc<Journal>,
    class: Class,
    bytes: usize,
    /// The entry it was bound to by its first append.
    bound: Option<Seq>,
}

impl Reservation {
    /// Item bytes left, as [`item_bytes`] counts them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its class.
    pub fn class(&self) -> Class {
        self.class
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        {
            let mut state = self.journal.state.borrow_mut();
            match self.bound {
                None => state.ungrant(self.bytes),
                Some(seq) => state.unpromise(seq, self.bytes),
            }
        }
        self.journal.room_was_given_back();
    }
}

/// Proof that everything up to a seq is on media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    seq: Seq,
}

impl Durable {
    /// The newest entry known durable; at least the one asked for if it holds anything.
    pub fn seq(self) -> Seq {
        self.seq
    }
}

/// "A key of this entry is in memory and in the journal only." While it is held, the entry survives.
///
/// Let go by [`Pin::release_after`] or [`Pin::release`] only. A pin that is merely dropped keeps its entry until the
/// next mount: forgetting a write-back must cost room, not data.
#[must_use = "a dropped pin keeps its entry for ever"]
pub struct Pin {
    journal: Weak<Journal>,
    seq: Seq,
}

impl Pin {
    /// The entry it keeps.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// Lets the entry go once `after` is durable: the seq of the commit that published the write-back.
    pub fn release_after(self, after: Seq) {
        let Some(journal) = self.journal.upgrade() else { return };
        {
            let mut state = journal.state.borrow_mut();
            // Beyond the last append there is nothing to wait for.
            let (after, flushed) = (after.min(state.last_appended()), state.flushed);
            state.pins.release(self.seq, after, flushed);
        }
        journal.kick();
    }

    /// Lets the entry go once everything appended so far is durable: for a key that a later commit replaced, or that
    /// another pin keeps.
    pub fn release(self) {
        self.release_after(Seq(u64::MAX));
    }
}

impl Journal {
    /// The longest items area that can be reserved at once, in bytes.
    pub fn reservation_max(&self) -> usize {
        self.state.borrow().ring.reservation_max()
    }

    /// Waits for room for items of together `bytes` ([`item_bytes`] each). At most [`Journal::reservation_max`].
    pub async fn reserve(&self, class: Class, bytes: usize) -> Result<Reservation, JournalError> {
        if let Some(reservation) = self.try_reserve(class, bytes)? {
            return Ok(reservation);
        }
        let turn = self.state.borrow_mut().wait_in_line(class);
        let place = InLine { journal: self, class, turn };
        loop {
            let ticket = self.space.ticket();
            self.announce_pressure();
            self.kick();
            if let Some(reservation) = self.grant(class, bytes, Some(turn))? {
                drop(place);
                return Ok(reservation);
            }
            self.space.after(ticket).await;
        }
    }

    /// As [`Journal::reserve`], but says `None` instead of waiting.
    pub fn try_reserve(&self, class: Class, bytes: usize) -> Result<Option<Reservation>, JournalError> {
        self.grant(class, bytes, None)
    }

    fn grant(
        &self,
        class: Class,
        bytes: usize,
        turn: Option<u64>,
    ) -> Result<Option<Reservation>, JournalError> {
        let mut state = self.state.borrow_mut();
        assert!(bytes <= state.ring.reservation_max(), "a commit fits half an entry");
        if let Some(error) = state.failed.or(state.refused) {
            return Err(error);
        }
        let granted = state.try_grant(class, bytes, turn);
        Ok(granted.then(|| Reservation { journal: self.rc(), class, bytes, bound: None }))
    }

    /// Grants no more room, also to those who wait for some. What was appended can still be made durable.
    pub fn refuse(&self) {
        self.state.borrow_mut().refused = Some(JournalError::Stopped);
        self.space.notify();
    }

    /// The seq of the entry being filled. An append may start the next one if this one has no room; use
    /// [`Journal::bind`] where the seq must be known before.
    pub fn open_seq(&self) -> Seq {
        self.state.borrow().open_seq()
    }

    /// Settles which entry the reservation's items go to: following appends of it, made in the same synchronous step,
    /// land in the entry of this seq.
    pub fn bind(&self, reservation: &mut Reservation) -> Seq {
        let mut state = self.state.borrow_mut();
        match reservation.bound {
            Some(seq) => {
                assert!(state.is_open(seq), "appends of one reservation are made in one synchronous step");
                seq
            }
            None => {
                let seq = state.bind(reservation.bytes, self.platform.clock.now());
                reservation.bound = Some(seq);
                seq
            }
        }
    }

    /// Appends items to the open entry: all of them in one entry, together with earlier appends of this reservation.
    /// A later put, delete or root replaces an earlier one of the same key in the same entry. Synchronous; the items
    /// must fit the reservation.
    pub fn append(&self, reservation: &mut Reservation, items: &[Item<'_>]) -> Seq {
        let seq = self.bind(reservation);
        let bytes: usize = items.iter().map(Item::bytes).sum();
        assert!(bytes <= reservation.bytes, "a commit stays within its reservation");
        reservation.bytes -= bytes;
        let first = {
            let mut state = self.state.borrow_mut();
            let first = state.idle_deadline().is_none();
            state.push(items, bytes);
            first && state.idle_deadline().is_some()
        };
        if first {
            self.opened.notify();
        }
        self.kick();
        seq
    }

    /// What was just appended refers to bytes that must be durable first: the next flush entry waits for them.
    pub fn add_dependency(&self, dep: Dep) {
        self.state.borrow_mut().external.add(dep);
    }

    /// Waits until the entry `seq`, all before it, and all they depend on are on media. For a seq beyond the last append
    /// that means the last append.
    pub async fn durable(&self, seq: Seq) -> Result<Durable, JournalError> {
        let target = self.state.borrow_mut().want(seq, self.platform.clock.now());
        self.kick();
        if planted::is(Fault::EarlyAcknowledgement) {
            return Ok(Durable { seq: target });
        }
        self.changed
            .until(|| {
                let state = self.state.borrow();
                if state.flushed >= target {
                    return Some(Ok(Durable { seq: state.flushed }));
                }
                state.failed.map(Err)
            })
            .await
    }

    /// The newest entry known durable.
    pub fn flushed_seq(&self) -> Seq {
        self.state.borrow().flushed
    }

    /// Notified when entries became durable or the journal failed.
    pub fn changed(&self) -> &Event {
        &self.changed
    }

    /// Keeps the entry `seq`. It must be the open one, or one that is kept already.
    pub fn pin(&self, seq: Seq) -> Pin {
        let mut state = self.state.borrow_mut();
        assert!(seq >= state.tail_started(), "only entries that still exist can be pinned");
        state.pins.hold(seq);
        Pin { journal: self.this.clone(), seq }
    }

    /// The oldest entry somebody holds a [`Pin`] on: what to write back first.
    pub fn oldest_pin(&self) -> Option<Seq> {
        self.state.borrow().pins.oldest_held()
    }

    /// How urgently nodes should be written back.
    pub fn pressure(&self) -> Pressure {
        self.state.borrow().pressure()
    }

    /// Notified when [`Journal::pressure`] changed, and again for each reservation that has to wait.
    pub fn pressure_changed(&self) -> &Event {
        &self.pressure_changed
    }

    /// How full the journal is, in thousandths of the tighter of its bounds (ring, dirty bytes).
    pub fn fill_permille(&self) -> u64 {
        self.state.borrow().fill_permille()
    }

    /// Bytes that the journal can hold: the tighter of its ring and the bound on what is not written back.
    pub fn capacity_bytes(&self) -> u64 {
        self.state.borrow().capacity_bytes()
    }

    /// Publishes the tail now, so that a mount after this has as little as possible to read.
    pub async fn publish_tail(&self) -> Result<(), JournalError> {
        self.durable(Seq(u64::MAX)).await?;
        self.state.borrow_mut().ask_to_publish();
        self.kick();
        Ok(())
    }

    /// Why the journal stopped, if it did.
    pub fn failed(&self) -> Option<JournalError> {
        self.state.borrow().failed
    }

    /// Called once if the journal stops: the pool becomes read-only, protocols change their write verifiers.
    pub fn on_failure(&self, hook: impl Fn(JournalError) + 'static) {
        *self.on_failure.borrow_mut() = Some(Box::new(hook));
    }

    /// What it did so far.
    pub fn counters(&self) -> Counters {
        self.state.borrow().counters
    }

    /// Makes everything appended durable and ends the background task.
    pub async fn shut_down(&self) -> Result<Durable, JournalError> {
        let durable = self.durable(Seq(u64::MAX)).await;
        self.closing.set(true);
        self.opened.notify();
        durable
    }

    fn rc(&self) -> Rc<Journal> {
        self.this.upgrade().expect("a journal lives in an Rc")
    }

    fn announce_pressure(&self) {
        let (now, waiting) = {
            let state = self.state.borrow();
            (state.pressure(), state.somebody_waits())
        };
        if self.pressure_told.replace(now) != now || waiting {
            self.pressure_changed.notify();
        }
    }

    fn room_was_given_back(&self) {
        if self.state.borrow().somebody_waits() {
            self.space.notify();
        }
    }
}

/// A place in the line of those who wait for room; left when dropped, served or not.
struct InLine<'a> {
    journal: &'a Journal,
    class: Class,
    turn: u64,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.journal.state.borrow_mut().leave_line(self.class, self.turn);
        self.journal.space.notify();
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.borrow().fmt(f)
    }
}
