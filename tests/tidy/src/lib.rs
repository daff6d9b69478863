//! Rules of the house which the compiler cannot hold, as plain functions over the source tree.
//!
//! | file | what it knows |
//! |---|---|
//! | `tree` | which files there are |
//! | `imports` | which crate may import which |
//! | `docs` | that files which documents name are there, and tests of the traps they list |
//! | `text` | what may stand in a file: headers, length, `unsafe`, words, paths |
//!
//! Each rule returns the places that break it; `tests/tidy.rs` asserts that there are none, and the rules' own unit
//! tests show that each of them can find something.
#![forbid(unsafe_code)]

pub mod docs;
pub mod imports;
pub mod text;
pub mod tree;
