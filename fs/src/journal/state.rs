//! What the journal knows: reservations, the open entry, entries under way, pins, the ring. Synchronous and without
//! I/O: [`State::next_write`] says what to write next, [`State::written`] takes the result in.

use super::open::{ClosedEntry, OpenEntry};
use super::pins::Pins;
use super::ring::{Placement, Ring};
use super::{Class, Counters, JournalError, Options, Pressure};
use crate::device::{Dep, Deps};
use crate::planted::{self, Fault};
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use moraine_format::DeviceSet;
use moraine_format::journal::{self, ENTRY_HEADER_BYTES, EntryHeader, Item, Seq};
use moraine_platform::{Buf, Instant};

/// Entries under way at once.
pub(super) const IN_FLIGHT_MAX: usize = 2;
/// Half-entries of items that may be promised at once to the most urgent class; one less to each less urgent one, so that
/// whoever holds a reservation while he waits for a more urgent one never waits for himself.
const PROMISED_HALVES_MAX: usize = 6;
/// Entry buffers: what such promises can come to at worst, see [`State::has_buffers`], and the open entry.
const BUFFERS: usize = 2 * PROMISED_HALVES_MAX + 3;
/// Syncs count as frequent for this long after one: entries are then written through the cache even if nobody waits,
/// so that the next sync depends on no unflushed entry.
const SYNCS_FREQUENT_FOR: Duration = Duration::from_millis(100);
/// Where history holds more than a mount may: the part of it that is room besides, and how far it must shrink below the
/// bound asked for until that one holds.
const HISTORY_ROOM_PART: u64 = 2;
/// Fill, in thousandths, from which reclaim should work, and from which it should hurry.
const RECLAIM_FROM: u64 = 500;
const URGENT_FROM: u64 = 700;

/// An entry under way.
struct InFlight {
    seq: Seq,
    last_seq: Seq,
    flush: bool,
    /// Written without FUA: a flush entry behind it must wait for it and flush it.
    plain: bool,
    written: bool,
}

/// An entry complete with its header, ready to be written.
pub(super) struct Write {
    pub(super) seq: Seq,
    pub(super) flush: bool,
    pub(super) through: bool,
    pub(super) placement: Placement,
    /// What must be durable before it is submitted, besides earlier entries.
    pub(super) external: Deps,
    pub(super) buf: Buf,
}

/// Where the journal goes on.
pub(super) struct Start {
    pub(super) pool_tag: u64,
    pub(super) epoch: u64,
    pub(super) next_seq: Seq,
    pub(super) prev: (Seq, u64),
    /// Sizes of the entries still needed, oldest first.
    pub(super) dirty: VecDeque<(Seq, u64)>,
}

pub(super) struct State {
    options: Options,
    pool_tag: u64,
    epoch: u64,
    pub(super) ring: Ring,
    pub(super) pins: Pins,
    next_seq: Seq,
    prev: (Seq, u64),
    pub(super) open: Option<OpenEntry>,
    closed: VecDeque<ClosedEntry>,
    in_flight: VecDeque<InFlight>,
    spare: Vec<Buf>,
    /// Ring bytes and item bytes promised to reservations that have not begun to append.
    reserved_ring: u64,
    reserved_items: u64,
    /// How many of these reservations there are for each size of entry.
    needs: BTreeMap<u64, u32>,
    waiting: BTreeSet<(Class, u64)>,
    next_turn: u64,
    /// Seqs somebody wants durable.
    wants: BTreeSet<Seq>,
    publish: bool,
    last_appended: Seq,
    flush_started: Seq,
    last_seq_started: Seq,
    pub(super) flushed: Seq,
    pub(super) external: Deps,
    /// What of plain entries a flush must cover before the next flush entry; what it covers already may stay here.
    pub(super) unflushed: Deps,
    dirty: VecDeque<(Seq, u64)>,
    dirty_bytes: u64,
    /// The bound on dirty bytes in force. It is the one asked for, but while history holds more than that (a mount with more
    /// memory made it): what writes history back commits too, and must find room.
    dirty_limit: u64,
    last_sync: Option<Instant>,
    pub(super) failed: Option<JournalError>,
    /// Nobody gets room any more.
    pub(super) refused: Option<JournalError>,
    pub(super) counters: Counters,
}

impl State {
    pub(super) fn new(options: Options, ring: Ring, start: Start) -> Result<State, JournalError> {
        let mut spare = Vec::new();
        for _ in 0..BUFFERS {
            spare.push(Buf::zeroed(ring.entry_max()).map_err(|_| JournalError::OutOfMemory)?);
        }
        let end = start.prev.0;
        let oldest = start.dirty.front().map_or(end, |(seq, _)| *seq);
        let dirty_bytes: u64 = start.dirty.iter().map(|(_, bytes)| bytes).sum();
        let dirty_limit = if dirty_bytes > options.dirty_bytes_max {
            dirty_bytes + dirty_bytes / HISTORY_ROOM_PART
        } else {
            options.dirty_bytes_max
        };
        Ok(State {
            options,
            pool_tag: start.pool_tag,
            epoch: start.epoch,
            ring,
            pins: Pins::default(),
            next_seq: start.next_seq,
            prev: start.prev,
            open: None,
            closed: VecDeque::new(),
            in_flight: VecDeque::new(),
            spare,
            reserved_ring: 0,
            reserved_items: 0,
            needs: BTreeMap::new(),
            waiting: BTreeSet::new(),
            next_turn: 0,
            wants: BTreeSet::new(),
            publish: false,
            last_appended: end,
            flush_started: end,
            last_seq_started: oldest,
            flushed: end,
            external: Deps::default(),
            unflushed: Deps::default(),
            dirty_bytes,
            dirty_limit,
            dirty: start.dirty,
            last_sync: None,
            failed: None,
            refused: None,
            counters: Counters::default(),
        })
    }

    // Reservations.

    /// Ring bytes nobody has a claim on, for somebody who needs at most `need` of them at once.
    fn free_ring(&self, need: u64) -> u64 {
        let open = self.open.as_ref().map_or(0, |o| self.ring.room_for(o.items_bytes()) as u64);
        // Entries that no flush entry covers yet will need one, maybe an empty one.
        let debt = if self.last_appended > self.flush_started { self.ring.unit() } else { 0 };
        let largest = self.needs.keys().next_back().copied().unwrap_or(0).max(need);
        self.ring.available(largest).saturating_sub(open + debt + self.reserved_ring)
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        self.ring.capacity().min(self.options.dirty_bytes_max)
    }

    fn dirty_now(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, |o| o.used + o.promised) as u64;
        self.dirty_bytes + open + self.reserved_items
    }

    /// Whether there are buffers for all that is promised and `bytes` more, with some left for more urgent classes.
    ///
    /// An entry is closed before it is full when the next reservation does not fit. Two neighbours together then hold
    /// more than half an entry's longest, so n halves come to at most 2n entries, one more if none is open, and one
    /// that publishes the tail. Entries that wait for the device hold theirs, so a slow device makes appenders wait.
    fn has_buffers(&self, class: Class, bytes: usize) -> bool {
        let halves = (self.reserved_items + bytes as u64).div_ceil(self.ring.slack().max(1)) as usize;
        2 * halves + 2 + 2 * class.halves_left() <= self.spare.len()
    }

    /// Ring bytes that a reservation is worth: an entry of its own, and the flush entry that may follow it.
    fn charge(&self, bytes: usize) -> u64 {
        self.ring.room_for(bytes) as u64 + self.ring.unit()
    }

    /// Takes what a reservation needs if its class may have it now.
    pub(super) fn try_grant(&mut self, class: Class, bytes: usize, turn: Option<u64>) -> bool {
        let me = (class, turn.unwrap_or(u64::MAX));
        let floor = class.floor_permille();
        let part = |whole: u64| whole * floor / 1000;
        let charge = self.charge(bytes);
        let reserve = part(self.ring.capacity()).max(2 * self.ring.unit());
        let granted = self.waiting.first().is_none_or(|first| *first >= me)
            && self.free_ring(self.ring.room_for(bytes) as u64) >= charge + reserve
            && self.dirty_now() + bytes as u64 + part(self.dirty_limit) <= self.dirty_limit
            && self.has_buffers(class, bytes);
        if granted {
            self.reserved_ring += charge;
            self.reserved_items += bytes as u64;
            *self.needs.entry(self.ring.room_for(bytes) as u64).or_default() += 1;
        }
        granted
    }

    pub(super) fn ungrant(&mut self, bytes: usize) {
        self.reserved_ring -= self.charge(bytes);
        self.reserved_items -= bytes as u64;
        let need = self.ring.room_for(bytes) as u64;
        let count = self.needs.get_mut(&need).expect("a reservation is counted until it is bound or dropped");
        *count -= 1;
        if *count == 0 {
            self.needs.remove(&need);
        }
    }

    pub(super) fn wait_in_line(&mut self, class: Class) -> u64 {
        self.next_turn += 1;
        self.waiting.insert((class, self.next_turn));
        self.counters.waits += 1;
        self.next_turn
    }

    pub(super) fn leave_line(&mut self, class: Class, turn: u64) {
        self.waiting.remove(&(class, turn));
    }

    pub(super) fn somebody_waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How full the journal is, in thousandths of the tighter of its two bounds.
    pub(super) fn fill_permille(&self) -> u64 {
        let part = |used: u64, whole: u64| used * 1000 / whole.max(1);
        let capacity = self.ring.capacity();
        part(capacity.saturating_sub(self.free_ring(self.ring.unit())), capacity)
            .max(part(self.dirty_now(), self.options.dirty_bytes_max))
    }

    pub(super) fn pressure(&self) -> Pressure {
        match self.fill_permille() {
            _ if self.somebody_waits() => Pressure::Urgent,
            fill if fill >= URGENT_FROM => Pressure::Urgent,
            fill if fill >= RECLAIM_FROM => Pressure::Reclaim,
            _ => Pressure::Calm,
        }
    }

    // Filling entries.

    /// The seq that the next append gets if the open entry has room for it.
    pub(super) fn open_seq(&self) -> Seq {
        self.open.as_ref().map_or(self.next_seq, |o| o.seq)
    }

    /// Binds a reservation of `bytes` to an open entry with room for all of it; its claim moves there.
    pub(super) fn bind(&mut self, bytes: usize, now: Instant) -> Seq {
        self.ungrant(bytes);
        if self.open.as_ref().is_some_and(|o| !o.fits(bytes)) {
            self.close_open();
        }
        let seq = self.ensure_open(bytes, now);
        if let Some(open) = &mut self.open {
            open.promised += bytes;
        }
        seq
    }

    /// Whether `seq` is the entry being filled.
    pub(super) fn is_open(&self, seq: Seq) -> bool {
        self.open.as_ref().is_some_and(|o| o.seq == seq)
    }

    /// Adds items to the open entry, out of what was promised.
    pub(super) fn push(&mut self, items: &[Item<'_>], promised: usize) {
        let open = self.open.as_mut().expect("items are appended to an open entry");
        open.promised -= promised;
        items.iter().for_each(|item| open.push(item));
        assert!(open.used <= open.placement.room, "an entry stays in its room");
        if !items.is_empty() {
            self.last_appended = open.seq;
        }
    }

    /// Gives back what a reservation bound to the open entry did not use.
    pub(super) fn unpromise(&mut self, seq: Seq, bytes: usize) {
        if let Some(open) = self.open.as_mut().filter(|o| o.seq == seq) {
            open.promised -= bytes;
        }
    }

    pub(super) fn ensure_open(&mut self, bytes: usize, now: Instant) -> Seq {
        if let Some(open) = &self.open {
            return open.seq;
        }
        let need = self.ring.room_for(bytes);
        let placement = self.ring.place(need).expect("a reservation is worth room in the ring");
        self.open_at(placement, now)
    }

    /// Opens the next entry.
    pub(super) fn open_at(&mut self, placement: Placement, now: Instant) -> Seq {
        let seq = self.next_seq;
        self.next_seq = seq.next();
        let buf = self.spare.pop().expect("a reservation is worth an entry buffer");
        self.open = Some(OpenEntry::new(seq, placement, now, buf));
        seq
    }

    fn close_open(&mut self) {
        let Some(open) = self.open.take() else { return };
        let closed = open.close();
        self.counters.replaced_items += closed.replaced;
        self.ring.fill(&closed.placement, closed.seq, closed.buf.len());
        let bytes = (closed.used - ENTRY_HEADER_BYTES) as u64;
        self.dirty.push_back((closed.seq, bytes));
        self.dirty_bytes += bytes;
        self.closed.push_back(closed);
    }

    // Syncs.

    /// The entry whose durability makes everything appended up to `seq` durable; records that somebody waits for it.
    pub(super) fn want(&mut self, seq: Seq, now: Instant) -> Seq {
        self.last_sync = Some(now);
        let target = seq.min(self.last_appended);
        if target > self.flush_started {
            self.wants.insert(target);
        }
        target
    }

    /// Whether the tail should be published or moved: somebody needs room, and that would give some.
    fn publish_wanted(&self) -> bool {
        if !self.publish && self.pressure() == Pressure::Calm {
            return false;
        }
        // Only the newest flush entry's releases count, so one at a time.
        if !self.in_flight.is_empty() {
            return false;
        }
        let tail = self.tail(self.next_seq);
        self.publish && self.last_appended > self.flush_started
            || self.pins.next_release().is_some_and(|after| after > self.flush_started)
            || self.ring.would_free(tail)
            || self.dirty_before(tail) * 8 >= self.options.dirty_bytes_max
    }

    fn dirty_before(&self, tail: Seq) -> u64 {
        self.dirty.iter().take_while(|(seq, _)| *seq < tail).map(|(_, bytes)| bytes).sum()
    }

    /// What a flush entry numbered `seq` would publish as the oldest entry needed.
    fn tail(&self, seq: Seq) -> Seq {
        self.pins.oldest_needed().map_or(seq, |oldest| oldest.min(seq))
    }

    /// The next entry to write now, if there is one. `through_cache` says whether FUA is a single command there.
    pub(super) fn next_write(&mut self, now: Instant, native_fua: impl Fn(u8) -> bool) -> Option<Write> {
        if self.failed.is_some() || self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        if self.closed.is_empty() {
            let open = self.open_seq();
            let wanted = self.wants.range(..=open).next().is_some();
            let due = self
                .open
                .as_ref()
                .is_some_and(|o| !o.is_empty() && now.since(o.born) >= self.options.idle_after);
            if !wanted && !due && !self.publish_wanted() {
                return None;
            }
            if !wanted {
                self.wants.insert(open);
            }
            self.publish = false;
            self.ensure_open(0, now);
            self.close_open();
        }
        let entry = self.closed.pop_front()?;
        Some(self.seal(entry, now, native_fua))
    }

    fn seal(&mut self, mut entry: ClosedEntry, now: Instant, native_fua: impl Fn(u8) -> bool) -> Write {
        let seq = entry.seq;
        let flush = self.wants.range(..=seq).next().is_some();
        let last_seq = if planted::is(Fault::LastSeqTooHigh) { seq } else { self.tail(seq) };
        assert!(last_seq >= self.last_seq_started, "the published tail moves forward only");
        let mut external = Deps::default();
        if flush {
            self.wants = self.wants.split_off(&seq.next());
            self.flush_started = seq;
            self.last_seq_started = last_seq;
            external = core::mem::take(&mut self.external);
        }
        let header = EntryHeader {
            epoch: self.epoch,
            seq,
            prev_seq: self.prev.0,
            prev_hash: self.prev.1,
            last_seq,
            flushed_upto: self.flushed,
            flush,
            mount: entry.mount,
            devices: entry.placement.copies.iter().map(|(device, _)| *device).collect::<DeviceSet>(),
        };
        let hash = journal::seal_entry(&mut entry.buf, entry.used, entry.items, self.pool_tag, &header);
        self.prev = (seq, hash);
        let frequent = self.last_sync.is_some_and(|at| now.since(at) <= SYNCS_FREQUENT_FOR);
        let through =
            flush || frequent && entry.placement.copies.iter().all(|(device, _)| native_fua(*device));
        self.in_flight.push_back(InFlight { seq, last_seq, flush, plain: !through, written: false });
        self.counters.entries += 1;
        self.counters.flush_entries += u64::from(flush);
        self.counters.items += entry.items as u64;
        self.counters.bytes += entry.buf.len() as u64;
        Write { seq, flush, through, placement: entry.placement, external, buf: entry.buf }
    }

    /// Whether an entry before `seq` still has to complete before a flush can cover it.
    pub(super) fn must_wait_for_earlier(&self, seq: Seq) -> bool {
        self.in_flight.iter().any(|f| f.seq < seq && f.plain && !f.written)
    }

    /// The write of `seq` completed, with what a flush must cover of it; its buffer comes back.
    pub(super) fn written(&mut self, seq: Seq, deps: &[Dep], mut buf: Buf) {
        buf.fill(0);
        buf.set_len(self.ring.entry_max());
        self.spare.push(buf);
        let entry = self.in_flight.iter_mut().find(|f| f.seq == seq).expect("a written entry was under way");
        entry.written = true;
        if entry.plain {
            deps.iter().for_each(|dep| self.unflushed.add(*dep));
        }
        while self.in_flight.front().is_some_and(|f| f.written) {
            let Some(entry) = self.in_flight.pop_front() else { break };
            if entry.flush {
                self.entry_is_durable(entry.seq, entry.last_seq);
            }
        }
    }

    fn entry_is_durable(&mut self, seq: Seq, last_seq: Seq) {
        assert!(seq > self.flushed, "flush entries become durable in order");
        self.flushed = seq;
        self.ring.needed_from(last_seq);
        self.pins.flushed(seq);
        while let Some((oldest, bytes)) = self.dirty.front().copied()
            && oldest < last_seq
        {
            self.dirty_bytes -= bytes;
            if self.dirty_bytes <= self.options.dirty_bytes_max / HISTORY_ROOM_PART {
                self.dirty_limit = self.options.dirty_bytes_max;
            }
            self.dirty.pop_front();
        }
    }

    /// Asks for the tail to be published as soon as that makes sense.
    pub(super) fn ask_to_publish(&mut self) {
        self.publish = true;
    }

    /// When the open entry should be written though nobody waits for it.
    pub(super) fn idle_deadline(&self) -> Option<Instant> {
        self.open.as_ref().filter(|o| !o.is_empty()).map(|o| o.born + self.options.idle_after)
    }

    /// The oldest entry that may still be pinned.
    pub(super) fn tail_started(&self) -> Seq {
        self.last_seq_started
    }

    pub(super) fn last_appended(&self) -> Seq {
        self.last_appended
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "journal: appended {}, flush entry {} under way or done, durable {}, tail {} published",
            self.last_appended, self.flush_started, self.flushed, self.last_seq_started
        )?;
        let (held, needed) = (self.pins.oldest_held(), self.pins.oldest_needed());
        let shown = |seq: Option<Seq>| seq.map_or(0, |s| s.0);
        writeln!(f, "  oldest pin {}, oldest needed {}", shown(held), shown(needed))?;
        writeln!(
            f,
            "  dirty {} of {} bytes, reserved {} of the ring and {} of memory, {} wait",
            self.dirty_now(),
            self.options.dirty_bytes_max,
            self.reserved_ring,
            self.reserved_items,
            self.waiting.len()
        )?;
        write!(f, "  {}", self.ring)
    }
}

#[cfg(test)]
mod explored;
