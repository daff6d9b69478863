//! Devices that are not there: a board of memory and registers under the drivers, with an NVMe controller and virtio
//! devices that hold the drivers to the specifications and misbehave when told to. For the drivers' tests and for the
//! simulator; no program has it.
//!
//! | file | what lives there |
//! |---|---|
//! | `board.rs` | [`Board`]: a `Hal`, register windows, interrupts, a clock |
//! | `memory.rs` | memory as devices see it |
//! | `function.rs` | [`Function`]: configuration space; [`probe`] |
//! | `medium.rs` | [`Medium`]: what may be behind a disk |
//! | `nvme.rs` | [`nvme::Nvme`]: the controller |
//! | `virtio.rs` | [`virtio::Virtio`]: a virtio device on either bus, whatever its kind |
//! | `block.rs` | [`VirtioDisk`]: virtio-blk in front of a [`Medium`] |
//! | `card.rs` | [`VirtioCard`]: virtio-net on a [`Wire`], cutting and summing as cards do |
//!
//! A device reads and writes whatever memory its driver told it of, for as long as the driver has not reset it: that is
//! what a device is, and what [`moraine_drivers::Hal`] makes the drivers answer for.

mod block;
mod board;
mod card;
mod function;
mod medium;
mod memory;
pub mod nvme;
mod random;
pub mod virtio;

pub use block::VirtioDisk;
pub use board::{Board, MSI, Model};
pub use card::{Offloads, VirtioCard, Wire};
pub use function::{Function, probe};
pub use medium::{End, Medium, Order, Outcome};
pub use random::Random;
