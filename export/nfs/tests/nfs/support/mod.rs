//! What the tests stand on: a world with virtual time, streams in memory, a client that speaks the protocols on its own
//! codec calls, and a filesystem that can be watched, held and made to fail.

pub mod client;
mod probe;
mod stream;
mod world;

pub use client::{Client, NF};
pub use stream::{Datagrams, Limits, Socket};
pub use world::World;
