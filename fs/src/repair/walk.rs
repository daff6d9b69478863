//! Reading whole trees and single keys. What cannot be read was reported by the check of the structure; it is left out.

use super::Check;
use crate::btree::{self, Miss};
use crate::tx::Value;
use crate::vfs::{FsError, FsResult};
use alloc::collections::VecDeque;
use core::ops::RangeInclusive;
use moraine_format::{Pos, Tree};

/// Keys read in one synchronous step.
const STEP_KEYS: usize = 256;

/// A key looked up.
pub(super) enum Found {
    /// It is there.
    Value(Value),
    /// It is not.
    Missing,
    /// The node it would be in cannot be read.
    Unknown,
}

impl Found {
    pub(super) fn value(self) -> Option<Value> {
        match self {
            Found::Value(value) => Some(value),
            Found::Missing | Found::Unknown => None,
        }
    }
}

/// Whether an error says that a node is damaged, rather than that something cannot go on.
pub(super) fn is_damage(e: FsError) -> bool {
    matches!(e, FsError::Checksum | FsError::DeviceRead | FsError::Corrupt)
}

impl Check<'_> {
    /// Looks a key up. In a repair everything can be read once the structure is whole.
    pub(super) async fn get(&mut self, tree: Tree, pos: Pos) -> FsResult<Found> {
        match self.look(tree, pos).await? {
            Found::Unknown if self.repairs() => Err(FsError::Corrupt),
            found => Ok(found),
        }
    }

    /// Looks a key up where nodes may be damaged.
    pub(super) async fn look(&mut self, tree: Tree, pos: Pos) -> FsResult<Found> {
        loop {
            let miss = match self.engine.inner.state.borrow().table.get(tree, 0, pos) {
                Ok(Some(value)) => return Ok(Found::Value(value.into())),
                Ok(None) => return Ok(Found::Missing),
                Err(miss) => miss,
            };
            match btree::load(&self.engine.inner, miss).await {
                Ok(()) => {}
                Err(e) if is_damage(e) => return Ok(Found::Unknown),
                Err(e) => return Err(e),
            }
        }
    }
}

/// The keys of a tree at one level, in order.
pub(super) struct Keys {
    tree: Tree,
    level: u8,
    range: Option<RangeInclusive<Pos>>,
    batch: VecDeque<(Pos, Value)>,
}

impl Keys {
    pub(super) fn all(tree: Tree, level: u8) -> Keys {
        Keys::within(tree, level, Pos::MIN..=Pos::MAX)
    }

    pub(super) fn within(tree: Tree, level: u8, range: RangeInclusive<Pos>) -> Keys {
        Keys { tree, level, range: Some(range), batch: VecDeque::new() }
    }

    /// Reads what follows `pos` anew: keys there were changed.
    pub(super) fn again_after(&mut self, pos: Pos) {
        let Some(end) = self.range.as_ref().map(|r| *r.end()).or(self.batch.back().map(|(p, _)| *p)) else {
            return;
        };
        self.batch.clear();
        self.range = pos.successor().filter(|next| *next <= end).map(|next| next..=end);
    }

    /// The next key.
    pub(super) async fn next(&mut self, check: &mut Check<'_>) -> FsResult<Option<(Pos, Value)>> {
        while self.batch.is_empty() {
            let Some(range) = self.range.take() else { return Ok(None) };
            self.read(check, range).await?;
        }
        Ok(self.batch.pop_front())
    }

    /// Reads a batch from the start of `range` on, or steps over a node that cannot be read.
    async fn read(&mut self, check: &mut Check<'_>, range: RangeInclusive<Pos>) -> FsResult<()> {
        let (mut at, end) = range.into_inner();
        let inner = check.engine.inner.clone();
        let rest = |next: Option<Pos>| next.filter(|next| *next <= end).map(|next| next..=end);
        let miss = {
            let state = inner.state.borrow();
            loop {
                match state.table.first(self.tree, self.level, &(at..=end)) {
                    Ok(Some((pos, value))) => {
                        check.summary.keys += 1;
                        self.batch.push_back((pos, value.into()));
                        let next = rest(pos.successor());
                        match next {
                            Some(next) if self.batch.len() < STEP_KEYS => at = *next.start(),
                            next => {
                                self.range = next;
                                return Ok(());
                            }
                        }
                    }
                    Ok(None) => return Ok(()),
                    Err(miss) => break miss,
                }
            }
        };
        let missing_level = match &miss {
            Miss::Node(_, pointer, _) => Some(pointer.level),
            Miss::Corrupt(..) => None,
        };
        match btree::load(&inner, miss).await {
            Ok(()) => self.range = rest(Some(at)),
            Err(e) if is_damage(e) && !(check.repairs() && check.whole) => {
                let next = after_node(check, self.tree, missing_level.unwrap_or(self.level), at);
                self.range = rest(next);
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// Where the node behind the one at `level` that holds `at` begins.
fn after_node(check: &Check<'_>, tree: Tree, level: u8, at: Pos) -> Option<Pos> {
    let state = check.engine.inner.state.borrow();
    let top = state.table.root(tree).level;
    let above =
        (level.saturating_add(1)..=top).find_map(|up| match state.table.first(tree, up, &(at..=Pos::MAX)) {
            Ok(Some((max, _))) => Some(max),
            _ => None,
        });
    above.and_then(|max| max.successor())
}
