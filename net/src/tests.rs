//! Whole stacks against each other over a simulated wire, in virtual time.
//!
//! | file | what lives there |
//! |---|---|
//! | `world.rs` | a seeded, single-threaded world: tasks, virtual time, randomness |
//! | `wire.rs` | two network cards on a wire that delays, drops, reorders and damages frames |
//! | `transfers.rs` | data both ways over every kind of card and of bad wire |
//! | `connections.rs` | many connections, limits, resets, silent and stalled peers |
//! | `addresses.rs` | DHCP, router adverts, static addresses, UDP |

mod addresses;
mod connections;
mod transfers;
mod wire;
mod world;
