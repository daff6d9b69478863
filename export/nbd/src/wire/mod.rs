//! Bytes to messages and back: the network block device protocol as its specification has it, big-endian throughout.
//! No I/O, no state.
//!
//! | file | which part of the specification |
//! |---|---|
//! | `option` | the handshake: greeting, options, option replies |
//! | `request` | the transmission phase, client to server |
//! | `reply` | the transmission phase, server to client: simple and structured replies |
//! | `fields` | taking big-endian fields off a slice |

mod fields;
mod option;
mod reply;
mod request;

pub use option::*;
pub use reply::*;
pub use request::*;
