//! The mechanisms of the kernel which need no machine, so that they are tested on any host.
//!
//! | file | idea |
//! |---|---|
//! | `parts/baseline.rs` | the least processor |
//! | `parts/guards.rs` | which stack a guard page belongs to |
//! | `parts/pages.rs` | physical pages: a buddy system |
//! | `parts/slab.rs` | the heap: size classes over pages |
//! | `parts/acpi.rs` | the firmware's tables |
//! | `parts/date.rs` | the real-time clock's registers and dates |
//! | `parts/ring.rs` | the log ring that outlives a reboot |
//! | `parts/timers.rs` | who is to be woken when |
//! | `parts/words.rs` | the kernel's words of the boot command line |
//!
//! `main.rs` is the kernel itself.
#![no_std]

extern crate alloc;

#[path = "parts/acpi.rs"]
pub mod acpi;
#[path = "parts/baseline.rs"]
pub mod baseline;
#[path = "parts/date.rs"]
pub mod date;
#[path = "parts/guards.rs"]
pub mod guards;
#[path = "parts/pages.rs"]
pub mod pages;
#[path = "parts/ring.rs"]
pub mod ring;
#[path = "parts/slab.rs"]
pub mod slab;
#[path = "parts/timers.rs"]
pub mod timers;
#[path = "parts/words.rs"]
pub mod words;
