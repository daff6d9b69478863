//! Transactions: read keys, queue updates, commit all or nothing.

use crate::engine::{DataDep, Engine};
use crate::vfs::{FsResult, Seq};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::ops::RangeInclusive;
use moraine_format::{Pos, Tree};

/// A key's value as stored.
pub type Value = Rc<[u8]>;

/// Who may use the last free journal and disk space. Each class stops above the next one's floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Everything users do that takes space.
    Normal,
    /// What frees space: unlink, truncate, punch, and their background steps. Works on a full pool.
    Delete,
}

/// A transaction under way: what it read and what it wants to write. Reads see its own queued updates.
pub struct Tx {
    engine: Engine,
    class: Class,
    reads: Vec<Read>,
    writes: BTreeMap<(Tree, Pos), Option<Value>>,
    deps: Vec<DataDep>,
}

/// Something read: within `range` the first (or last) key found was `found`.
struct Read {
    tree: Tree,
    range: RangeInclusive<Pos>,
    end: End,
    found: Option<(Pos, Value)>,
}

#[derive(Clone, Copy)]
enum End {
    First,
    Last,
}

impl Tx {
    pub(crate) fn new(engine: Engine, class: Class) -> Tx {
        Tx { engine, class, reads: Vec::new(), writes: BTreeMap::new(), deps: Vec::new() }
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
            let stored = self.look(tree, &range, end);
            self.reads.push(Read { tree, range: range.clone(), end, found: stored.clone() });
            let mut queued = self.writes.range((tree, *range.start())..=(tree, *range.end()));
            let queued = match end {
                End::First => queued.next(),
                End::Last => queued.next_back(),
            };
            let Some(((_, at), value)) = queued else { return Ok(stored) };
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

    fn look(&self, tree: Tree, range: &RangeInclusive<Pos>, end: End) -> Option<(Pos, Value)> {
        let state = self.engine.inner.state.borrow();
        let mut keys = state.keys.range((tree, *range.start())..=(tree, *range.end()));
        let found = match end {
            End::First => keys.next(),
            End::Last => keys.next_back(),
        };
        found.map(|((_, pos), value)| (*pos, value.clone()))
    }

    /// Queues `value` for `pos`, replacing what is there.
    pub fn put(&mut self, tree: Tree, pos: Pos, value: impl Into<Value>) {
        self.writes.insert((tree, pos), Some(value.into()));
    }

    /// Queues the removal of `pos`; removing what is not there is no error.
    pub fn delete(&mut self, tree: Tree, pos: Pos) {
        self.writes.insert((tree, pos), None);
    }

    /// The commit refers to data written with this dependency.
    pub fn data_written(&mut self, dep: DataDep) {
        self.deps.push(dep);
    }

    /// Commits, or says `None` if something read has changed and the body must run again. The last step is synchronous.
    pub(crate) async fn finish<T>(self, result: FsResult<T>) -> FsResult<Option<(T, Seq)>> {
        for read in &self.reads {
            if self.look(read.tree, &read.range, read.end) != read.found {
                return Ok(None);
            }
        }
        let value = result?;
        let mut state = self.engine.inner.state.borrow_mut();
        if !self.writes.is_empty() {
            state.seq += 1;
        }
        for (at, value) in self.writes {
            match value {
                Some(value) => state.keys.insert(at, value),
                None => state.keys.remove(&at),
            };
        }
        Ok(Some((value, Seq(state.seq))))
    }
}
