//! NFS version 3 (RFC 1813): all 22 procedures on [`moraine_fs::Vfs`].
//!
//! | file | what |
//! |---|---|
//! | `wire/` | arguments from bytes, results to bytes; no state, no I/O |
//! | `status.rs` | `nfsstat3`, and the one table from [`moraine_fs::FsError`] to it |
//! | `procedures/` | what each procedure does, by topic |

pub mod procedures;
pub mod status;
pub mod wire;

pub use procedures::{Nfs, Transfer};
pub use status::{Answer, Status, answer};
