//! NFS version 3 with MOUNT and the port mapper, over anything that is a filesystem.
//!
//! | room | what lives there |
//! |---|---|
//! | [`xdr`] | the byte order of every message: checked decoding, encoding |
//! | [`rpc`] | calls and replies of ONC RPC, record marking, credentials |
//! | [`portmap`] | where programs listen |
//! | [`mount`] | from a path to the first handle |
//! | [`v3`] | NFS itself: `wire` (messages), `status`, `procedures` |
//! | [`handle`] | file handles |
//! | [`drc`] | calls that arrive twice run once |
//! | `server` | connections: bytes to calls, calls to tasks, replies to bytes |
//!
//! [`Server`] is the door: [`Server::new`], then [`Server::serve`] for each listener and [`Server::serve_datagrams`]
//! for each datagram socket, as tasks of the platform. All three programs answer on every port, told apart by number.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod drc;
pub mod handle;
pub mod mount;
pub mod portmap;
pub mod rpc;
mod server;
pub mod v3;
pub mod xdr;

pub use portmap::Ports;
pub use rpc::{Identities, Squash};
pub use server::{Config, Counters, Server};
pub use v3::Transfer;
