//! The network stack: TCP, UDP, addresses, behind [`moraine_platform::Network`], over any
//! [`NicDevice`](moraine_platform::NicDevice).
//!
//! The protocols themselves are smoltcp's. What this crate adds is the appliance around them: exact dispatch (a
//! frame reaches its connection by a hash lookup, and only connections with something to do are polled, so hundreds
//! of idle ones cost nothing), listeners with bounded half-open and waiting connections, a memory budget, timeouts
//! against vanished and stalled peers, offloads, and addresses (static, DHCP, router advertisements).
//!
//! One task drives everything: [`Stack::run`]. It takes frames in, lets the protocols' tasks answer, and only then
//! sends, so that a reply carries the acknowledgement of its request and a burst is acknowledged once.
//!
//! | file | what lives there |
//! |---|---|
//! | `config.rs` | [`Config`]: addresses and limits |
//! | `stack.rs` | [`Stack`]: the handle, the driving task, and `Network` on top |
//! | `hub.rs` | the state: interface, connections by tuple, listeners, who is due when |
//! | `connection.rs` | one TCP connection from its first SYN to its last timer |
//! | `admission.rs` | listeners: which SYN becomes a connection, and of which size |
//! | `stream.rs`, `datagram.rs` | what protocols hold: `Stream`, `Listener`, `Datagram` |
//! | `device.rs` | a `NicDevice` as smoltcp sees one: frames in place, checksums, segmentation |
//! | `flow.rs` | what a frame is about, from its headers |
//! | `address.rs`, `slaac.rs` | which addresses and routes the interface has, and since when |
//! | `announce.rs` | telling neighbours that an address is here now |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod address;
mod admission;
mod announce;
mod config;
mod connection;
mod datagram;
mod device;
mod flow;
mod hub;
mod slaac;
mod stack;
mod stream;
#[cfg(test)]
mod tests;

pub use config::{Addressing, Config, ConfigError, StaticAddress};
pub use hub::Counters;
pub use stack::Stack;
