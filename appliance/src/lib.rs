//! The appliance: the one place that wires disks, filesystem and exports together, given a platform.
//!
//! It runs the same on bare metal, in a Linux process and in the simulator. What it needs of them comes in as
//! arguments: a [`Platform`](moraine_platform::Platform), devices, a network, a [`Config`] and a [`Stop`] handle.
//!
//! | file | what lives there |
//! |---|---|
//! | `config.rs` | [`Config`]: the words of the boot command line as values |
//! | `accel.rs` | [`choose_routines`]: which checksum routines are used |
//! | `exports.rs` | [`serve_exports`]: NFS and NBD over a mounted filesystem, from start to orderly stop |
//! | `memory.rs` | [`Memory`]: who may use how much |
//! | `survey.rs` | [`survey`], [`plan`]: what is on the disks, and what to do about it |
//! | `pool.rs` | [`open_pool`], [`Pool`]: from disks to a filesystem, and back; [`Idle`]: why not |
//! | `stop.rs` | [`Stop`]: how a power button or a signal asks for the end |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod accel;
mod config;
mod exports;
mod memory;
mod pool;
mod stop;
mod survey;

pub use accel::{Choice, ChosenBy, choose_routines};
pub use config::{Addressing, BlankDisks, Complaint, Config, OnPanic, Reason, StaticAddress, parse_size};
pub use exports::{Exports, Listen, NBD_PORT, NFS_PORT, PORTMAP_PORT, StartError, serve_exports};
pub use memory::{BUDGET_MIN, Memory};
pub use moraine_nfs::Squash;
pub use pool::{Idle, Pool, open_pool};
pub use stop::Stop;
pub use survey::{Disk, Plan, plan, survey};
