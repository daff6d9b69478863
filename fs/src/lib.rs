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
//! | [`access`] | POSIX permission rules, as pure functions |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod access;
pub mod device;
pub mod engine;
pub mod journal;
pub mod superblock;
pub mod tx;
pub mod vfs;

pub use vfs::{FsError, Vfs};
