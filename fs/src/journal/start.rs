//! Starting the journal where history ended: a new epoch, written and flushed before anything is served.

use super::read::{History, RecoverError};
use super::ring::{Limits, Placement, Ring};
use super::state::{Start, State};
use super::writer::idle_writer;
use super::{Item, ItemKind, Journal, JournalError, Options, Pin, Pressure, Seq};
use crate::device::Devices;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use moraine_format::Superblock;
use moraine_platform::Platform;
use moraine_platform::sync::Event;

/// Buckets below which a ring cannot turn: one being filled, one for the next mount, one to be freed meanwhile, and one
/// that bridges the others.
pub const BUCKETS_MIN: u64 = 4;

impl Journal {
    /// Goes on after `history`. `superblock` is durable with the mount epoch of this mount. Returns once the mount's
    /// first entry is durable: from then on no other history can be chosen.
    ///
    /// The pin keeps all of history; whoever takes it over pins what it still needs and then releases this one.
    pub async fn start(
        platform: &Platform,
        devices: &Rc<Devices>,
        superblock: &Superblock,
        history: &History,
        options: Options,
    ) -> Result<(Rc<Journal>, Pin), RecoverError> {
        let rings: alloc::vec::Vec<_> =
            history.rings.iter().filter(|r| devices.is_healthy(r.index)).cloned().collect();
        let small = |r: &super::ring::RingDevice| (r.buckets.len() as u64) < BUCKETS_MIN;
        if rings.is_empty() || rings.iter().any(small) {
            return Err(RecoverError::Journal(JournalError::NoRoom));
        }
        let infos = || rings.iter().filter_map(|r| devices.info(r.index));
        let limits = Limits {
            transfer: infos().map(|i| i.max_transfer).min().unwrap_or(0) as usize,
            physical_block: infos().map(|i| i.physical_block).max().unwrap_or(0) as usize,
        };
        let tail = history.tail();
        let copies = usize::from(superblock.journal_replicas);
        let ring = Ring::new(rings, copies, limits, tail.max(Seq(1)));
        let start = Start {
            pool_tag: superblock.pool_tag(),
            epoch: superblock.mount_epoch,
            next_seq: history.next_seq,
            prev: history.end,
            dirty: history.entries.iter().map(|e| (e.seq, e.bytes() as u64)).collect(),
        };
        let state = State::new(options, ring, start).map_err(RecoverError::Journal)?;
        let journal = Rc::new_cyclic(|this| Journal {
            this: this.clone(),
            platform: platform.clone(),
            devices: devices.clone(),
            state: RefCell::new(state),
            changed: Event::new(),
            space: Event::new(),
            pressure_changed: Event::new(),
            pressure_told: Cell::new(Pressure::Calm),
            opened: Rc::new(Event::new()),
            closing: Cell::new(false),
            on_failure: RefCell::default(),
        });
        let first = {
            let mut state = journal.state.borrow_mut();
            let nonce = superblock.mount_nonce.to_le_bytes();
            let wall = platform.clock.wall().0.to_le_bytes();
            state
                .open_mount_entry(
                    platform.clock.now(),
                    &[Item::note(ItemKind::Epoch, &nonce), Item::note(ItemKind::Time, &wall)],
                )
                .ok_or(RecoverError::Journal(JournalError::NoRoom))?
        };
        let kept = journal.pin(if tail == Seq::ZERO { first } else { tail });
        platform.spawn.spawn("journal-idle", Box::pin(idle_writer(Rc::downgrade(&journal))));
        journal.durable(first).await.map_err(RecoverError::Journal)?;
        Ok((journal, kept))
    }
}

impl State {
    /// Opens the mount's first entry with these items; `None` if the ring has no room at all.
    fn open_mount_entry(&mut self, now: moraine_platform::Instant, items: &[Item<'_>]) -> Option<Seq> {
        let bytes = items.iter().map(Item::bytes).sum();
        let placement: Placement = self.ring.place(self.ring.room_for(bytes))?;
        let seq = self.open_at(placement, now);
        let open = self.open.as_mut()?;
        open.mount = true;
        open.promised = bytes;
        self.push(items, bytes);
        Some(seq)
    }
}
