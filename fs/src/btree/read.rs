//! Bringing a node in from disk.

use super::node::Keys;
use super::table::{Miss, Node};
use crate::engine::Inner;
use crate::planted::{self, Fault};
use crate::vfs::{FsError, FsResult};
use alloc::rc::Rc;
use moraine_format::node::{NODE_BLOCK, NodePointer, Run};
use moraine_format::{FormatError, Pos, Tree};
use moraine_platform::sync::Event;
use moraine_platform::{debug, error, warn};

/// Resolves a [`Miss`]: when it returns without error, asking again gets further.
pub(crate) async fn load(engine: &Inner, miss: Miss) -> FsResult<()> {
    let (tree, pointer, max) = match miss {
        Miss::Node(tree, pointer, max) => (tree, pointer, max),
        Miss::Corrupt(tree, pos) => {
            error!("fs", "tree {} is inconsistent at {pos}: run fsck", tree.name());
            return Err(FsError::Corrupt);
        }
    };
    let id = pointer.node;
    if engine.state.borrow().table.is_resident(id) {
        return Ok(());
    }
    let under_way = engine.loading.borrow().get(&id).cloned();
    if let Some(event) = under_way {
        let ticket = event.ticket();
        if engine.loading.borrow().contains_key(&id) {
            event.after(ticket).await;
        }
        return Ok(());
    }
    let _guard = Loading::begin(engine, id);
    let node = fetch(engine, tree, &pointer, max).await?;
    let mut state = engine.state.borrow_mut();
    state.table.insert(node);
    state.table.evict(id);
    Ok(())
}

/// Marks a node as being read in, and wakes whoever waits for it however the read ends.
struct Loading<'e> {
    engine: &'e Inner,
    node: u64,
}

impl<'e> Loading<'e> {
    fn begin(engine: &'e Inner, node: u64) -> Loading<'e> {
        engine.loading.borrow_mut().insert(node, Rc::new(Event::new()));
        Loading { engine, node }
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        if let Some(event) = self.engine.loading.borrow_mut().remove(&self.node) {
            event.notify();
        }
    }
}

/// Reads a node from the first of its copies that is good.
async fn fetch(engine: &Inner, tree: Tree, pointer: &NodePointer, max: Pos) -> FsResult<Node> {
    let len = pointer.blocks_written as usize * NODE_BLOCK;
    let node_bytes = engine.state.borrow().table.node_bytes;
    if len > node_bytes {
        error!("fs", "node {} of tree {} is longer than a node: run fsck", pointer.node, tree.name());
        return Err(FsError::Corrupt);
    }
    let mut failure = FsError::DeviceRead;
    for place in &pointer.places {
        let buf = engine.node_buffers.take(len)?;
        let (bytes, result) = engine.devices.read(place.device, place.offset, buf).await;
        let node = result.map(|()| assemble(&bytes, tree, pointer, max, engine.pool_tag));
        engine.node_buffers.give(bytes);
        let node = match node {
            Ok(node) => node,
            Err(e) => {
                warn!("fs", "node {} of tree {}: device {}: {e}", pointer.node, tree.name(), place.device);
                continue;
            }
        };
        match node {
            Ok(node) => {
                debug!("fs", "read node {} of tree {} ({len} bytes)", pointer.node, tree.name());
                return Ok(node);
            }
            Err(e) => {
                let (device, offset) = (place.device, place.offset);
                error!(
                    "fs",
                    "node {} of tree {} at {device}:{offset} is damaged: {e}",
                    pointer.node,
                    tree.name()
                );
                failure = FsError::Checksum;
            }
        }
    }
    Err(failure)
}

/// Folds a node's runs, after checking that they are those its parent counted.
pub(super) fn assemble(
    bytes: &[u8],
    tree: Tree,
    pointer: &NodePointer,
    max: Pos,
    pool_tag: u64,
) -> Result<Node, FormatError> {
    let mut keys = Keys::default();
    let mut ident = None;
    let (mut at, mut previous) = (0, 0);
    for index in 0..pointer.runs {
        let run = match Run::parse(bytes.get(at..).ok_or(FormatError::Short)?, pool_tag) {
            Err(_) if planted::is(Fault::StaleRunAccepted) && index > 0 => break,
            run => run?,
        };
        let same = ident.is_none_or(|i| i == run.ident);
        let fits = run.ident.node == pointer.node
            && run.ident.tree == tree
            && run.ident.level == pointer.level
            && run.ident.min == pointer.min
            && run.ident.max == max;
        if !same || !fits || run.info.index != index || run.info.previous != previous {
            return Err(FormatError::Value);
        }
        keys.fold(run.entries());
        ident = Some(run.ident);
        previous = run.hash;
        at += run.disk_bytes;
    }
    if planted::is(Fault::StaleRunAccepted) {
        let ident = ident.ok_or(FormatError::Length)?;
        return Ok(Node::new(ident, keys, Some(pointer.clone())));
    }
    if previous != pointer.last_hash || at != pointer.blocks_written as usize * NODE_BLOCK {
        return Err(FormatError::Value);
    }
    let ident = ident.ok_or(FormatError::Length)?;
    Ok(Node::new(ident, keys, Some(pointer.clone())))
}
