//! The filesystem: a database of keys in B-trees, on block devices, behind one file-shaped façade.
//!
//! It knows `platform` and nothing above it: no protocol, no driver, no kernel.
//!
//! | room | what lives there |
//! |---|---|
//! | [`vfs`] | the façade every export uses: [`vfs::Vfs`], its values and errors |
//! | [`engine`] | trees of keys, transactions, space: the database under the files |
//! | [`tx`] | transactions: read, queue, commit |
//! | [`journal`] | what makes a commit durable |
//! | [`superblock`] | what a disk is, which disks make a pool |
//! | [`device`] | the pool's devices: commands, flushes, what is durable |
//! | `btree` | B-trees in memory and on disk |
//! | `space` | buckets: triggers, claims, discards |
//! | [`filesystem`] | [`Filesystem`]: the façade's implementation, from the three rooms below |
//! | `namespace` | inodes, directories, extended attributes: bodies of transactions |
//! | `extent` | a file's bytes as keys |
//! | `cache` | pages in memory, clean and dirty |
//! | [`repair`] | fsck |
//! | [`planted`] | faults for the test that asks whether tests notice |
//! | [`access`] | POSIX permission rules, as pure functions |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod access;
mod btree;
mod cache;
pub mod device;
pub mod engine;
mod extent;
pub mod filesystem;
pub mod journal;
mod namespace;
pub mod planted;
pub mod repair;
mod space;
pub mod superblock;
pub mod tx;
pub mod vfs;

pub use filesystem::{CacheBudget, Filesystem};
pub use vfs::{FsError, Vfs};
