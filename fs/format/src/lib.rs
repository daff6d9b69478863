//! The disk format and nothing else: structs, ids, validation and text.
//!
//! Everything on disk is little-endian, except key positions, which are big-endian so that they compare as bytes.
//! Nothing on disk is defined anywhere else; `docs/format.md` describes the same in prose, byte by byte.
//!
//! | file | what it holds |
//! |---|---|
//! | [`key`] | tree ids and positions |
//! | [`node`] | runs of B-tree nodes, and pointers to nodes |
//! | [`inode`], [`dirent`], [`xattr`], [`extent`] | files: attributes, names, extended attributes, content |
//! | [`record`] | inode numbers handed out, orphans, operations that span commits |
//! | [`text`] | names in text dumps |
//! | [`journal`] | journal entries and their items |
//! | [`superblock`] | superblocks and members |
//! | [`device_set`] | sets of members |
//! | [`space`] | buckets, free ranges, backpointers, counters |
//! | [`error`] | why bytes were refused |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod device_set;
pub mod dirent;
pub mod error;
pub mod extent;
pub mod inode;
pub mod journal;
pub mod key;
pub mod node;
pub mod record;
pub mod space;
pub mod superblock;
pub mod text;
pub mod xattr;

pub use device_set::DeviceSet;
pub use error::FormatError;
pub use key::{Pos, Tree};
pub use superblock::Superblock;
