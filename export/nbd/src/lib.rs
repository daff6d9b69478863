//! NBD: every regular file under `/volumes` of the pool is a block volume whose name is its path below it.
//!
//! ```text
//! stream -> pump (receives) -> wire (parses) -> session (decides) -> pump (works: calls the filesystem, answers)
//! ```
//!
//! | folder or file | what lives there |
//! |---|---|
//! | `server` | [`Server`]: accepts connections, bounds them, watches for stalled ones, shuts them down |
//! | `wire` | bytes to messages and back; no I/O, no state |
//! | `session` | what a connection decides; synchronous |
//! | `pump` | the only async code: moves bytes, calls the filesystem, keeps the budgets |
//!
//! Served: fixed newstyle handshake, structured replies, `base:allocation`, READ, WRITE, FLUSH, FUA, TRIM,
//! WRITE_ZEROES (also fast), CACHE, BLOCK_STATUS, any number of connections to one volume. Not served: TLS, extended
//! headers, RESIZE.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod pump;
mod server;
mod session;
pub mod wire;

pub use server::{Config, Server};
pub use session::REQUEST_LEN_MAX;
