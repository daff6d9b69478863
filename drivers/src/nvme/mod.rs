//! NVMe (Base Specification 1.4 and 2.0, PCIe transport): one controller, its namespaces as disks.
//!
//! | file | what it holds |
//! |---|---|
//! | `spec` | what the controller tells: Identify data, completions, statuses, as checked types |
//! | `registers` | the register file |
//! | `command` | submission queue entries |
//! | `prp` | where a command's data lies |
//! | `queue` | a submission and a completion queue, and their doorbells |
//! | `controller` | bring-up, the path of a command, timeouts, abort and reset |
//! | `namespace` | a namespace as a `BlockDevice` |

mod command;
mod controller;
mod namespace;
mod prp;
mod queue;
mod registers;
mod spec;

pub(crate) use controller::{probe, wants};
