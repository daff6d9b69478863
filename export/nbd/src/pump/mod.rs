//! The async part: it moves bytes between a stream, the filesystem and buffers, and waits where there is no budget.
//!
//! | file | what it does |
//! |---|---|
//! | `connection` | a connection from greeting to close: the handshake, then the receive loop |
//! | `write` | receives a payload piece by piece into aligned buffers and writes it |
//! | `work` | everything else a request asks for, and its answer |
//! | `volume` | finds and lists volumes; what the connections to one volume share |
//! | `flush` | one flush for many |
//! | `budget` | memory for payload, shared fairly between connections |
//! | `link` | a stream with deadlines and turns at sending |

mod budget;
mod connection;
mod flush;
mod link;
mod volume;
mod work;
mod write;

pub(crate) use budget::{Budget, PIECE};
pub(crate) use connection::converse;
pub(crate) use link::{Link, STALL};
pub(crate) use volume::Volumes;
