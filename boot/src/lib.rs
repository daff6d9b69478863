//! How a machine reaches Rust: what boot loaders hand over and where things lie in the flashable image.
//!
//! | file | idea |
//! |---|---|
//! | `pvh.rs` | the PVH start-info page, which every boot path ends in |
//! | `map.rs` | the memory map as the kernel uses it: sorted, page-aligned, cut to what is free |
//! | `../entry/*.S` | the first instructions: PVH, UEFI, BIOS, second cores (assembled into the kernel) |
//! | `../link.ld` | the kernel's layout in memory |
//! | `../image/` | the crate that writes the flashable image |
#![no_std]
#![forbid(unsafe_code)]

pub mod map;
pub mod pvh;
