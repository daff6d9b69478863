//! A world in one process: virtual time, faulty disks, a faulty network, and a seed that replays all of it.
//!
//! Everything random is drawn from the seed, nothing is taken from the machine, so a seed *is* a run. It implements
//! `platform` as `kernel` and `host` do, and adds what only a world can: a power cut at any device command.
//!
//! | file | what lives there |
//! |---|---|
//! | [`random`] | the seeded generator |
//! | [`world`] | executor, virtual clock, offload, forced yields: [`World`] |
//! | [`disk`] | [`SimDisk`]: volatile cache over an image, faults, power cuts |
//! | [`crash`] | crash enumeration: every cut of a recorded run, recovered and checked |
//! | [`explore`] | every state of a small core up to a bound |
//! | [`totals`] | what tests of worlds counted, for `scripts/test` |
//! | [`trace`] | the log of device commands: hash, recording, counters |
//! | [`net`] | streams, listeners and datagrams between simulated hosts |
//! | [`ops`], [`generate`] | filesystem operations as values, and workloads of them from a seed |
//! | `compare.rs` | whether model and filesystem answered one step alike |
//! | [`oracle`] | whether what survived a power cut is something the promises allow |
//! | [`harness`] | worlds for a whole filesystem: lock-step, random cuts, every cut; [`harness::Store`] plugs one in |
//! | [`damage`] | a small pool with files in it, damaged on purpose, and what is right to come of it |
//! | [`crowd`] | worlds with many clients at once |
//! | [`tug`] | worlds with many clients on one file, checked by their own answers |
//! | [`police`] | stable answers, proved from the log of device commands |
//! | [`plug`] | the filesystem itself, with small constants drawn from the seed |
//! | [`fault`] | worlds in which disks fail while clients are at work |
//! | [`script`] | workloads written to be cut everywhere |
//! | [`rot`] | worlds in which stored bytes rot |
//! | [`staged`] | worlds that bring one loss or one race about on purpose |
//! | [`machine`] | tasks and disks that lose power together while the world goes on |
//! | [`ethernet`] | cables, a switch, hosts with a TCP/IP stack |
//! | [`hardware`] | the real drivers in a machine, on devices that lie on the world's disks and cables |
//! | [`appliance`] | worlds with a whole appliance: NFS and NBD clients, power cuts, and what each protocol promised |
//! | [`toy`] | a small right filesystem and its broken variants, to test all of this |
//!
//! This crate runs on a host only, so it uses the standard library.
#![forbid(unsafe_code)]

pub mod appliance;
mod compare;
pub mod crash;
pub mod crowd;
pub mod damage;
pub mod disk;
pub mod ethernet;
pub mod explore;
pub mod fault;
pub mod generate;
pub mod hardware;
pub mod harness;
pub mod machine;
pub mod net;
pub mod ops;
pub mod oracle;
pub mod plug;
pub mod police;
pub mod random;
pub mod rot;
pub mod script;
pub mod staged;
pub mod totals;
pub mod toy;
pub mod trace;
pub mod tug;
pub mod world;

pub use disk::{DiskConfig, DiskFaults, Image, SimDisk};
pub use random::Random;
pub use world::{Ended, Stall, World, WorldConfig};
