//! What fuzzing needs of `unsafe`, so that everything else in `fuzz/` can forbid it.
//!
//! | file | idea |
//! |---|---|
//! | `drivers/tests/fake` | a machine of memory and fake devices under the drivers |
//! | `coverage.rs` | which edges of the code under test have run, counted by the compiler |

pub mod coverage;

/// The machine and the devices of the drivers' tests.
#[allow(missing_docs, clippy::all, reason = "it is documented where it belongs")]
#[path = "../../../drivers/tests/fake/mod.rs"]
pub mod fake;
