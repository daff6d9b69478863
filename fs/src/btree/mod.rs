//! B-trees: every piece of metadata is a key in one of them.
//!
//! | file | its idea |
//! |---|---|
//! | [`buffers`] | buffers for their I/O, a few of them kept for bad times |
//! | [`node`] | a node in memory: sorted keys and what changed since the last write |
//! | [`table`] | the nodes that are in memory, the trees' roots, and look-ups that never wait |
//! | [`view`] | keys as a commit in the making sees them: the trees with queued updates laid over |
//! | [`read`] | bringing a node in from disk, its runs verified |
//! | [`mend`] | looking at the structure, and replacing what of it is lost |
//! | [`merge`] | which nodes should merge |
//! | [`write`] | writing nodes back: append, rewrite, split, merge |
//!
//! A look-up either answers at once or says which node it misses ([`Miss`]); whoever wanted to know awaits
//! the node and asks again. So everything that looks at several keys at one point of time is plain synchronous code.
//!
//! The structure in memory is always the structure in the journal: a node may outgrow its size on disk for a while, and
//! splits in the same commit that makes its written-out parts reachable. So no parent ever points at an unwritten node.

mod buffers;
#[cfg(test)]
mod explored;
mod mend;
mod merge;
mod node;
mod read;
mod table;
mod view;
mod write;

pub(crate) use buffers::NodeBuffers;
pub(crate) use mend::{Lost, Remains, check_child, edit_pointer, replace, replace_bytes};
pub(crate) use read::load;
pub(crate) use table::{Miss, Pending, Table};
pub(crate) use view::{Key, View};
pub(crate) use write::write_back;
