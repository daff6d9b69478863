//! To be.
#![no_std]
#![forbid(unsafe_code)]
