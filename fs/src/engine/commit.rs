//! The commit: one synchronous step that makes a set of updates part of the pool's history.
//!
//! *Prepare* may wait: it brings in the nodes the commit touches and gets room in the journal. Then, in one step without
//! an await: check that what was read still holds, derive the space keys, append to the journal, apply to the nodes.
//! Nothing can fail after the first mutation. What is missing is reported as an [`Obstacle`], removed, and the whole
//! step is tried again from the start.

use super::{Inner, Mode, State};
use crate::btree::{self, Key, Miss, View};
use crate::journal::{Class as JournalClass, Reservation};
use crate::planted::{self, Fault};
use crate::space::triggers::{self, RootChange, Transition};
use crate::tx::Value;
use crate::vfs::{FsError, FsResult};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use moraine_format::Tree;
use moraine_format::journal::{Item, Seq, item_bytes};
use moraine_format::node::NodePointer;
use moraine_platform::error;

/// New values of keys; `None` removes one.
pub(crate) type Updates = BTreeMap<Key, Option<Value>>;

/// What a commit wants to change.
#[derive(Default)]
pub(crate) struct Proposal {
    /// New values of keys.
    pub(crate) updates: Updates,
    /// New roots.
    pub(crate) roots: Vec<(Tree, NodePointer)>,
    /// Refuse the commit when only the reserve for deletes and write-back is left.
    pub(crate) takes_space: bool,
}

/// Why a commit cannot be done at once.
pub(crate) enum Obstacle {
    /// A node is not in memory.
    Miss(Miss),
    /// The journal has to make room for so many bytes.
    Journal(usize),
    /// A node has outgrown its size on disk too far, or too many nodes are dirty: they must be written back first.
    Swollen,
    /// It cannot be done at all.
    Refused(FsError),
}

impl From<Miss> for Obstacle {
    fn from(miss: Miss) -> Obstacle {
        Obstacle::Miss(miss)
    }
}

/// Nodes that a commit reads in before it keeps others from pushing them out again.
const MISSES_MAX: usize = 16;

/// Stops eviction while it lives.
struct Kept<'e>(&'e Inner);

impl<'e> Kept<'e> {
    fn new(engine: &'e Inner) -> Kept<'e> {
        engine.state.borrow_mut().table.keep_all();
        Kept(engine)
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.0.state.borrow_mut().table.evict_again();
    }
}

impl Inner {
    /// Commits what `propose` proposes, as soon as nothing stands in its way; `None` if it proposes nothing. `propose`
    /// looks at the state in the same step in which its proposal is committed; it may be asked several times.
    /// `around` is called before and after the updates are applied, also in that step.
    pub(crate) async fn commit<T>(
        &self,
        class: JournalClass,
        mut propose: impl FnMut(&State) -> Result<Option<(Proposal, T)>, Obstacle>,
        mut around: impl FnMut(&mut State, Step, Seq, &T),
    ) -> FsResult<Option<(T, Seq)>> {
        let mut reservation: Option<Reservation> = None;
        let mut misses = 0;
        let mut kept = None;
        loop {
            self.check_open()?;
            let obstacle = match self.try_commit(&mut reservation, class, &mut propose, &mut around) {
                Ok(done) => return Ok(done),
                Err(obstacle) => obstacle,
            };
            match obstacle {
                Obstacle::Miss(miss) => {
                    misses += 1;
                    if misses > MISSES_MAX && kept.is_none() {
                        kept = Some(Kept::new(self));
                    }
                    btree::load(self, miss).await?;
                }
                Obstacle::Journal(bytes) => {
                    drop(reservation.take());
                    reservation =
                        Some(self.journal.reserve(class, bytes).await.map_err(super::journal_error)?);
                }
                Obstacle::Swollen => {
                    let ticket = self.written_back.ticket();
                    self.cleaner_wanted.notify();
                    self.written_back.after(ticket).await;
                }
                Obstacle::Refused(e) => return Err(e),
            }
        }
    }

    fn derive(
        &self,
        state: &State,
        updates: &Updates,
        roots: &[RootChange],
        seq: Seq,
        node_bytes: u32,
    ) -> Result<(Updates, Vec<Transition>), Miss> {
        if self.mode.get() == Mode::Mending {
            return Ok((updates.clone(), Vec::new()));
        }
        let mut view = View::new(&state.table, updates.clone());
        let transitions = triggers::derive(&mut view, roots, seq.0, &self.geometry, node_bytes)?;
        Ok((view.into_updates(), transitions))
    }

    fn try_commit<T>(
        &self,
        reservation: &mut Option<Reservation>,
        class: JournalClass,
        propose: &mut impl FnMut(&State) -> Result<Option<(Proposal, T)>, Obstacle>,
        around: &mut impl FnMut(&mut State, Step, Seq, &T),
    ) -> Result<Option<(T, Seq)>, Obstacle> {
        let mut state = self.state.borrow_mut();
        let Some((proposal, value)) = propose(&state)? else { return Ok(None) };
        if !proposal.updates.is_empty() || !proposal.roots.is_empty() {
            self.check_running().map_err(Obstacle::Refused)?;
        }
        if proposal.takes_space && state.buckets.is_metadata_short() {
            return Err(Obstacle::Refused(FsError::NoSpace));
        }
        let roots: Vec<RootChange> = proposal
            .roots
            .into_iter()
            .map(|(tree, new)| RootChange {
                tree,
                old: state.table.root(tree).pointer.clone(),
                new: Some(new),
            })
            .collect();
        if state.table.is_too_dirty() && class != JournalClass::Interior && !proposal.updates.is_empty() {
            return Err(Obstacle::Swollen);
        }
        let node_bytes = state.table.node_bytes as u32;
        // Derived keys hold the seq of their commit, which may turn out to be that of the next entry, if there is no room
        // for the commit in the open one. Then they are derived again; their sizes stay.
        let mut seq = self.journal.open_seq();
        let (mut updates, mut transitions) =
            self.derive(&state, &proposal.updates, &roots, seq, node_bytes)?;
        let mut bytes = 0;
        for ((tree, level, pos), value) in &updates {
            if *level <= state.table.root(*tree).level
                && state.table.is_swollen(*tree, *level, *pos)?
                && class != JournalClass::Interior
            {
                return Err(Obstacle::Swollen);
            }
            bytes += item_bytes(value.as_ref().map_or(0, |v| v.len()));
        }
        let pointers: Vec<(Tree, u8, Vec<u8>)> = roots
            .iter()
            .filter_map(|r| r.new.as_ref().map(|new| (r.tree, new.level, new.to_bytes())))
            .collect();
        bytes += pointers.iter().map(|(_, _, p)| item_bytes(p.len())).sum::<usize>();
        if bytes == 0 {
            return Ok(Some((value, self.newest_seq())));
        }
        if bytes > self.journal.reservation_max() {
            error!("fs", "a commit of {bytes} bytes is larger than the journal takes");
            return Err(Obstacle::Refused(FsError::TooBig));
        }
        if reservation.is_none() {
            *reservation = self.journal.try_reserve(class, bytes).map_err(refused)?;
        }
        let room = reservation.as_mut().filter(|r| r.bytes() >= bytes).ok_or(Obstacle::Journal(bytes))?;
        let bound = self.journal.bind(room);
        if bound != seq {
            seq = bound;
            (updates, transitions) = self.derive(&state, &proposal.updates, &roots, seq, node_bytes)?;
        }
        let items: Vec<Item<'_>> = updates
            .iter()
            .map(|((tree, level, pos), value)| match value {
                Some(value) => Item::put(*tree, *level, *pos, value),
                None => Item::delete(*tree, *level, *pos),
            })
            .chain(
                pointers
                    .iter()
                    .filter(|_| !planted::is(Fault::RootNotLogged))
                    .map(|(tree, level, pointer)| Item::root(*tree, *level, pointer)),
            )
            .collect();
        let appended = self.journal.append(room, &items);
        assert!(appended == seq, "a commit is in the journal entry it was prepared for");
        drop(items);
        self.newest.set(seq);
        // Keys of leaves go to the structure as it was, then the structure changes: a tree of space may well hold keys
        // about its own nodes.
        let (leaves, pointers): (Vec<_>, Vec<_>) =
            updates.into_iter().partition(|((_, level, _), _)| *level == 0);
        for (key, value) in leaves {
            state.table.apply(key, value, seq);
        }
        around(&mut state, Step::Before, seq, &value);
        for (key, value) in pointers {
            state.table.apply(key, value, seq);
        }
        for change in roots {
            let pin = self.journal.pin(seq);
            let root = state.table.root_mut(change.tree);
            root.pointer = change.new;
            if let Some(old) = root.logged.replace(pin) {
                old.release_after(seq);
            }
        }
        around(&mut state, Step::After, seq, &value);
        let State { table, buckets, .. } = &mut *state;
        buckets.committed(table, &transitions);
        if !transitions.is_empty() {
            self.buckets_changed.notify();
        }
        if table.is_crowded() || table.is_dirty() {
            self.cleaner_wanted.notify();
        }
        Ok(Some((value, seq)))
    }
}

fn refused(e: crate::journal::JournalError) -> Obstacle {
    Obstacle::Refused(super::journal_error(e))
}

/// Where in the commit `around` is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The journal has the updates, and leaves have theirs; pointers to nodes are not changed yet.
    Before,
    /// All nodes have theirs.
    After,
}
