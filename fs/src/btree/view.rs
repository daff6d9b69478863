//! Keys as a commit in the making sees them: the trees, with the commit's own updates laid over.

use super::table::{Miss, Table};
use crate::tx::Value;
use alloc::collections::BTreeMap;
use core::ops::RangeInclusive;
use moraine_format::{Pos, Tree};

/// Where a key is: tree, level (0 but for pointers to nodes), position.
pub(crate) type Key = (Tree, u8, Pos);

/// The trees with updates laid over. It changes nothing; when all of a commit's updates are known they are applied.
pub(crate) struct View<'t> {
    table: &'t Table,
    updates: BTreeMap<Key, Option<Value>>,
}

impl<'t> View<'t> {
    pub(crate) fn new(table: &'t Table, updates: BTreeMap<Key, Option<Value>>) -> View<'t> {
        View { table, updates }
    }

    /// The trees without the updates.
    pub(crate) fn before(&self) -> &'t Table {
        self.table
    }

    /// The updates queued so far.
    pub(crate) fn updates(&self) -> &BTreeMap<Key, Option<Value>> {
        &self.updates
    }

    pub(crate) fn into_updates(self) -> BTreeMap<Key, Option<Value>> {
        self.updates
    }

    pub(crate) fn put(&mut self, tree: Tree, pos: Pos, value: &[u8]) {
        self.updates.insert((tree, 0, pos), Some(value.into()));
    }

    pub(crate) fn delete(&mut self, tree: Tree, pos: Pos) {
        self.updates.insert((tree, 0, pos), None);
    }

    /// The value at `pos`, parsed by the caller through `with`.
    pub(crate) fn get<T>(
        &self,
        tree: Tree,
        pos: Pos,
        with: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, Miss> {
        if let Some(queued) = self.updates.get(&(tree, 0, pos)) {
            return Ok(queued.as_deref().map(with));
        }
        Ok(self.table.get(tree, 0, pos)?.map(with))
    }

    /// The first key in `range`.
    pub(crate) fn first(&self, tree: Tree, range: RangeInclusive<Pos>) -> Result<Option<(Pos, Value)>, Miss> {
        let mut range = range;
        while !range.is_empty() {
            let stored = self.table.first(tree, 0, &range)?;
            let queued = self.updates.range((tree, 0, *range.start())..=(tree, 0, *range.end())).next();
            let Some(((_, _, at), value)) = queued else { return Ok(stored.map(own)) };
            if stored.is_some_and(|(pos, _)| pos < *at) {
                return Ok(stored.map(own));
            }
            if let Some(value) = value {
                return Ok(Some((*at, value.clone())));
            }
            match at.successor() {
                Some(next) => range = next..=*range.end(),
                None => break,
            }
        }
        Ok(None)
    }
}

fn own((pos, value): (Pos, &[u8])) -> (Pos, Value) {
    (pos, value.into())
}
