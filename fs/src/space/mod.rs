//! Space: which buckets are free, which are being filled, and the keys that say so.
//!
//! | file | its idea |
//! |---|---|
//! | [`triggers`] | pure derivation: what a commit's updates mean for buckets, backpointers and counters |
//! | [`buckets`] | buckets claimed and filled in memory, reservations, reserves |
//! | [`collect`] | the moving collector: empties fragmented buckets |
//! | [`discard`] | from empty to free: after the commit that emptied a bucket is durable and nobody reads it |
//!
//! The life of a bucket: free (in a range of tree freespace) → claimed (in memory only) → used (an alloc key with live
//! bytes) → empty (live bytes 0, a key in tree need-discard) → discarded → free, with a new generation.

pub(crate) mod buckets;
pub(crate) mod collect;
pub(crate) mod discard;
pub(crate) mod triggers;

pub(crate) use buckets::{Buckets, Geometry};
