//! To be.
#![forbid(unsafe_code)]
fn main() {}
