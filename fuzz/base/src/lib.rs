//! What fuzzing needs of `unsafe`, so that everything else in `fuzz/` can forbid it.
//!
//! | file | idea |
//! |---|---|
//! | `coverage.rs` | which edges of the code under test have run, counted by the compiler |

pub mod coverage;
