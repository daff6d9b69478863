//! The `moraine` command: the same filesystem on Linux, to make, check and show a disk image or to serve it.
#![forbid(unsafe_code)]

fn main() {}
