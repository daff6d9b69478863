//! Pools that are damaged on purpose: what comes out is right, named as damage, or mended; never a panic, a hang or
//! wrong bytes. A sample of the cases runs always, `DAMAGE=SEED/COUNT` another one a test, `DAMAGE=full` all of them.
//! The pool, and what is read of it later, are `moraine_sim::damage`'s.
//!
//! | file | what it damages |
//! |---|---|
//! | `bytes` | single bytes and whole blocks, whatever they belong to |
//! | `fields` | fields of superblocks, journal entries and nodes, with their checksums put right again |
//! | `keys` | keys: removed, replaced, moved, of every kind that the trees know |
//! | `cuts` | repairs, by cutting the power at each device command |

#![allow(unreachable_pub, reason = "a test is a crate of its own")]

mod bytes;
mod cuts;
mod fields;
mod keys;
