//! Pools that are damaged on purpose, and what is right to come of it.
//!
//! | file | what lives there |
//! |---|---|
//! | `sample.rs` | [`Sample`]: a small pool with a real tree of files in it |
//! | `ordeal.rs` | what damaged pools are put to: read, used, checked, repaired |
//! | `usage.rs` | a damaged pool in use |
//! | [`anatomy`] | its checksummed structures, and changing them under right checksums |

pub mod anatomy;
mod ordeal;
mod sample;
mod usage;

pub use ordeal::{Exact, Told, choose, fsck, fsck_within, ordeal, ordeal_of, read_all};
pub use sample::{
    BUCKET_BYTES, DISK_BYTES, Left, Made, Sample, Size, TINY, USUAL, budget, pattern, plug, world,
};
pub use usage::use_all;
