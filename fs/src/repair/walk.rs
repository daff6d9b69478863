//! Reading whole trees. A node that cannot be read is reported and its range left out.

use super::{Check, FindingKind};
use crate::btree::{self, Miss};
use crate::vfs::{FsError, FsResult};
use alloc::format;
use moraine_format::node::NodePointer;
use moraine_format::{Pos, Tree};

/// Keys visited in one synchronous step.
const STEP_KEYS: usize = 256;

/// Calls `visit` with each key of `tree` at `level`, in order. Ranges that cannot be read are left out.
pub(super) async fn each_key(
    check: &mut Check<'_>,
    tree: Tree,
    level: u8,
    mut visit: impl FnMut(&mut Check<'_>, Pos, &[u8]),
) -> FsResult<()> {
    let inner = check.engine.inner.clone();
    let mut from = Some(Pos::MIN);
    while let Some(start) = from {
        let mut at = start;
        let step = {
            let state = inner.state.borrow();
            let mut left = STEP_KEYS;
            loop {
                match state.table.first(tree, level, &(at..=Pos::MAX)) {
                    Ok(Some((pos, value))) => {
                        check.summary.keys += 1;
                        visit(check, pos, value);
                        left -= 1;
                        match pos.successor() {
                            Some(next) if left > 0 => at = next,
                            next => break Ok(next),
                        }
                    }
                    Ok(None) => break Ok(None),
                    Err(miss) => break Err(miss),
                }
            }
        };
        from = match step {
            Ok(next) => next,
            Err(miss) => {
                let damaged = matches!(&miss, Miss::Node(_, p) if p.level == level);
                match btree::load(&inner, miss).await {
                    Ok(()) => Some(at),
                    Err(e @ (FsError::Checksum | FsError::DeviceRead | FsError::Corrupt)) if damaged => {
                        skip(check, tree, level, at, e)
                    }
                    // A node further up: the levels above have reported it.
                    Err(FsError::Checksum | FsError::DeviceRead | FsError::Corrupt) => {
                        skip_above(check, tree, level, at)
                    }
                    Err(e) => return Err(e),
                }
            }
        };
        check.reporter.progress(check.summary.keys);
    }
    Ok(())
}

/// Leaves out the node at `level` that holds `at`, and says where the next one begins.
fn skip(check: &mut Check<'_>, tree: Tree, level: u8, at: Pos, why: FsError) -> Option<Pos> {
    let next = skip_above(check, tree, level, at);
    check.report(FindingKind::NodeUnreadable, format!("{}/{level} from {at}: {why}", tree.name()), false);
    next
}

/// Where the leaf after the one that holds `at` begins.
pub(super) fn next_node(check: &mut Check<'_>, tree: Tree, at: Pos) -> Option<Pos> {
    skip_above(check, tree, 0, at)
}

fn skip_above(check: &mut Check<'_>, tree: Tree, level: u8, at: Pos) -> Option<Pos> {
    let state = check.engine.inner.state.borrow();
    let top = state.table.root(tree).level;
    (level + 1..=top)
        .find_map(|up| match state.table.first(tree, up, &(at..=Pos::MAX)) {
            Ok(Some((max, _))) => Some(max),
            _ => None,
        })
        .and_then(|max| max.successor())
}

/// Checks that the nodes of each tree cover all positions, each exactly once.
pub(super) async fn topology(check: &mut Check<'_>) -> FsResult<()> {
    for tree in Tree::ALL {
        let top = check.engine.inner.state.borrow().table.root(*tree).level;
        for level in (1..=top).rev() {
            let mut expected = Some(Pos::MIN);
            each_key(check, *tree, level, |check, max, value| {
                match NodePointer::parse(value) {
                    Ok(pointer) => {
                        if Some(pointer.min) != expected || pointer.min > max || pointer.level + 1 != level {
                            let text = format!("{}/{level} at {}..{max}", tree.name(), pointer.min);
                            check.report(FindingKind::NodeRange, text, false);
                        }
                    }
                    Err(e) => {
                        check.report(
                            FindingKind::ValueUnreadable,
                            format!("{}/{level} {max}: {e}", tree.name()),
                            false,
                        );
                    }
                }
                expected = max.successor();
            })
            .await?;
            if expected.is_some() {
                check.report(FindingKind::NodeRange, format!("{}/{level} ends early", tree.name()), false);
            }
        }
    }
    Ok(())
}
