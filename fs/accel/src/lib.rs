//! The few routines that a processor can do much faster than plain Rust: checksums now; parity joins them with redundancy.
//! (Copies are the kernel's, `kernel/src/memory/copy.rs`: every Rust crate makes them by calling `memcpy`.)
//!
//! All variants of a routine give the same answer, so which one is in use is never visible in a result. One
//! dispatch object, [`Routines`], is chosen once (at boot, by a test, by a word of the command line); the free
//! functions [`crc32c`] and [`crc32c_append`] use it. This crate is the only one below the kernel that may hold `unsafe`.
//!
//! | file | what it holds |
//! |---|---|
//! | [`crc`] | CRC-32C in portable Rust, and the algebra: combining the checksums of two parts |
//! | `x86` | CRC-32C with the `crc32` instruction, one or three streams at a time |
//! | `dispatch` | which variants this processor has, which one is used, and measuring them |
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod crc;
mod dispatch;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86;

pub use crc::combine as crc32c_combine;
pub use dispatch::{Measured, Routines, crc32c, crc32c_append};
