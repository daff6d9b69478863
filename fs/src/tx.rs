//! Transactions: read keys, queue updates, commit all or nothing.

use crate::btree::{self, Key, Miss, Table};
use crate::engine::commit::{Obstacle, Proposal, Step};
use crate::engine::{DataDep, Engine, State};
use crate::journal::Class as JournalClass;
use crate::planted::{self, Fault};
use crate::vfs::{FsResult, Seq};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::RangeInclusive;
use moraine_format::{Pos, Tree};

/// A key's value as stored.
pub type Value = Rc<[u8]>;

/// Who may use the last free journal and disk space. Each class stops above the next one's floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Everything users do that takes space.
    Normal,
    /// Write-back of data whose space was reserved when it was accepted.
    WriteBack,
    /// Moving data so that whole buckets become free.
    Move,
    /// What frees space: unlink, truncate, punch, and their background steps. Works on a full pool.
    Delete,
}

/// A transaction under way: what it read and what it wants to write. Reads see its own queued updates.
pub struct Tx {
    engine: Engine,
    class: Class,
    reads: Vec<Read>,
    writes: BTreeMap<Key, Option<Value>>,
    deps: Vec<DataDep>,
    /// A mark of when everything read was last known to be true.
    checked: Cell<u64>,
}

/// Something read: within `range` the first (or last) key found was `found`.
struct Read {
    tree: Tree,
    range: RangeInclusive<Pos>,
    end: End,
    found: Option<(Pos, Value)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    First,
    Last,
}

impl Tx {
    pub(crate) fn new(engine: Engine, class: Class) -> Tx {
        let checked = Cell::new(engine.inner.state.borrow().table.version());
        Tx { engine, class, reads: Vec::new(), writes: BTreeMap::new(), deps: Vec::new(), checked }
    }

    /// The engine it runs on.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Its class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// The value at `pos`.
    pub async fn get(&mut self, tree: Tree, pos: Pos) -> FsResult<Option<Value>> {
        Ok(self.first(tree, pos..=pos).await?.map(|(_, value)| value))
    }

    /// The first key in `range`, in key order.
    pub async fn first(&mut self, tree: Tree, range: RangeInclusive<Pos>) -> FsResult<Option<(Pos, Value)>> {
        self.find(tree, range, End::First).await
    }

    /// The last key in `range`, in key order.
    pub async fn last(&mut self, tree: Tree, range: RangeInclusive<Pos>) -> FsResult<Option<(Pos, Value)>> {
        self.find(tree, range, End::Last).await
    }

    async fn find(
        &mut self,
        tree: Tree,
        range: RangeInclusive<Pos>,
        end: End,
    ) -> FsResult<Option<(Pos, Value)>> {
        let mut range = range;
        while !range.is_empty() {
            let stored = self.look(tree, &range, end).await?;
            self.reads.push(Read { tree, range: range.clone(), end, found: stored.clone() });
            let mut queued = self.writes.range((tree, 0, *range.start())..=(tree, 0, *range.end()));
            let queued = match end {
                End::First => queued.next(),
                End::Last => queued.next_back(),
            };
            let Some(((_, _, at), value)) = queued else { return Ok(stored) };
            let nearer = stored.as_ref().is_none_or(|(pos, _)| match end {
                End::First => at <= pos,
                End::Last => at >= pos,
            });
            if !nearer {
                return Ok(stored);
            }
            if let Some(value) = value {
                return Ok(Some((*at, value.clone())));
            }
            let (at, low, high) = (*at, *range.start(), *range.end());
            range = match end {
                End::First => match at.successor() {
                    Some(next) => next..=high,
                    None => return Ok(None),
                },
                End::Last => match at.predecessor() {
                    Some(prev) => low..=prev,
                    None => return Ok(None),
                },
            };
        }
        Ok(None)
    }

    async fn look(
        &self,
        tree: Tree,
        range: &RangeInclusive<Pos>,
        end: End,
    ) -> FsResult<Option<(Pos, Value)>> {
        loop {
            self.engine.inner.check_open()?;
            let miss = match find(&self.engine.inner.state.borrow().table, tree, range, end) {
                Ok(found) => return Ok(found.map(|(pos, value)| (pos, value.into()))),
                Err(miss) => miss,
            };
            btree::load(&self.engine.inner, miss).await?;
        }
    }

    /// Queues `value` for `pos`, replacing what is there.
    pub fn put(&mut self, tree: Tree, pos: Pos, value: impl Into<Value>) {
        self.writes.insert((tree, 0, pos), Some(value.into()));
    }

    /// Queues the removal of `pos`; removing what is not there is no error.
    pub fn delete(&mut self, tree: Tree, pos: Pos) {
        self.writes.insert((tree, 0, pos), None);
    }

    /// The commit refers to this data, which is on media: [`Engine::make_data_durable`] was called for it.
    pub fn data_written(&mut self, dep: DataDep) {
        self.deps.push(dep);
    }

    /// Commits, or says `None` if something read has changed, or is not `still` so, and the body must run again. The last
    /// step is synchronous.
    pub(crate) async fn finish<T>(
        self,
        result: FsResult<T>,
        still: &dyn Fn() -> bool,
    ) -> FsResult<Option<(T, Seq)>> {
        let failed = result.is_err();
        let watermark = match self.class {
            Class::Normal => JournalClass::Normal,
            Class::WriteBack => JournalClass::Delete,
            Class::Move => JournalClass::CopyGc,
            Class::Delete => JournalClass::Delete,
        };
        let propose = |state: &State| -> Result<Option<(Proposal, ())>, Obstacle> {
            if !still() || !self.still_true(&state.table)? {
                return Ok(None);
            }
            let updates = if failed { BTreeMap::new() } else { self.writes.clone() };
            let takes_space = self.class == Class::Normal && !updates.is_empty();
            Ok(Some((Proposal { updates, takes_space, ..Proposal::default() }, ())))
        };
        let inner = &self.engine.inner;
        let committed = inner
            .commit(watermark, propose, |_, step, _, _| {
                if step == Step::Before && !failed {
                    let on_media = planted::is(Fault::DataNotFlushed)
                        || self.deps.iter().all(|d| inner.devices.covered(&d.0.deps));
                    assert!(on_media, "a commit refers to data only after a flush that covers it");
                }
            })
            .await?;
        match committed {
            Some(((), seq)) => result.map(|value| Some((value, Seq(seq.0)))),
            None => Ok(None),
        }
    }

    /// Whether everything read would be read again.
    fn still_true(&self, table: &Table) -> Result<bool, Miss> {
        for read in self.reads.iter().filter(|r| table.changed(r.tree) > self.checked.get()) {
            let now = find(table, read.tree, &read.range, read.end)?;
            let same = match (&now, &read.found) {
                (None, None) => true,
                (Some((pos, value)), Some((was, then))) => pos == was && *value == &**then,
                _ => false,
            };
            if !same {
                return Ok(false);
            }
        }
        self.checked.set(table.version());
        Ok(true)
    }
}

fn find<'t>(
    table: &'t Table,
    tree: Tree,
    range: &RangeInclusive<Pos>,
    end: End,
) -> Result<Option<(Pos, &'t [u8])>, Miss> {
    match end {
        End::First => table.first(tree, 0, range),
        End::Last => table.last(tree, 0, range),
    }
}
