//! Physical memory as Rust sees it: mapped one to one.

use core::slice;

/// Bytes of physical memory.
///
/// # Safety
/// The range is mapped readable and nothing writes to it while the slice lives.
pub(crate) unsafe fn bytes<'a>(address: u64, len: usize) -> &'a [u8] {
    assert!(address != 0, "nothing lies at address 0");
    // SAFETY: as the caller promises.
    unsafe { slice::from_raw_parts(address as *const u8, len) }
}

/// Bytes of physical memory, to write.
///
/// # Safety
/// The range is mapped writable and nothing else refers to it while the slice lives.
pub(crate) unsafe fn bytes_mut<'a>(address: u64, len: usize) -> &'a mut [u8] {
    assert!(address != 0, "nothing lies at address 0");
    // SAFETY: as the caller promises.
    unsafe { slice::from_raw_parts_mut(address as *mut u8, len) }
}
