//! The server as its clients see it: real bytes over connections in memory, against the reference model. Tests named
//! after traps (`r_…`, `v3_…`) hold the invariant of that trap.
#![allow(unreachable_pub, reason = "the support modules are shared by all test modules of this one binary")]

mod connections;
mod golden;
mod hostile;
mod listing;
mod procedures;
mod programs;
mod repeats;
mod sharing;
mod support;
mod truth;
