//! Moraine on Linux: the platform as an ordinary process, and the `moraine` command.
//!
//! The same filesystem and the same servers that run on bare metal run here over files, block devices and the
//! system's TCP. One thread runs everything; only blocking system calls on disks and offloaded computation go to a
//! small pool of others.
//!
//! | room | what lives there |
//! |---|---|
//! | [`cli`] | the `moraine` command: `mkfs`, `fsck`, `dump`, `serve`; arguments and exit codes |
//! | [`os`] | `platform` on an operating system: clock, randomness, tasks, offload, disks, network, log |
#![forbid(unsafe_code)]

pub mod cli;
pub mod os;
