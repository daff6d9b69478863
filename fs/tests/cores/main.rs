//! Pure cores, in every state up to a bound. Those that only their own room sees are explored beside their code:
//! `fs/src/btree/explored.rs`, `fs/src/journal/explored.rs`, `fs/src/space/explored.rs`.

#![allow(unreachable_pub, reason = "a test is a crate of its own")]

mod choose;
