//! Finds ACPI's root pointer and makes its tables readable.

use crate::memory::{direct, paging};
use kernel_parts::acpi::{self, IoApic, Tables};
use moraine_boot::map::PAGE;
use moraine_platform::{debug, warn};
use paging::Access;

/// Where a BIOS puts the root pointer when the loader does not tell.
const BIOS_AREA: core::ops::Range<u64> = 0xe_0000..0x10_0000;
/// Where line interrupts end on every PC; taken as given when no table tells.
const USUAL_IO_APIC: u64 = 0xfec0_0000;
/// Memory addresses above this are not believed.
const HIGHEST: u64 = 1 << 46;

/// Reads the tables; what a machine without them lacks stays empty.
pub(crate) fn init(rsdp: u64) -> Tables {
    let rsdp = if rsdp != 0 { Some(rsdp) } else { search() };
    let tables = rsdp.and_then(|at| acpi::read(at, &read));
    if tables.is_none() {
        warn!("acpi", "no usable tables; one core, no power button");
    }
    let mut tables = tables.unwrap_or_default();
    if tables.io_apics.is_empty() {
        tables.io_apics.push(IoApic { address: USUAL_IO_APIC, first: 0 });
    }
    debug!("acpi", "{tables:?}");
    tables
}

fn search() -> Option<u64> {
    BIOS_AREA.step_by(16).find(|at| read(*at, 8).is_some_and(|bytes| bytes == b"RSD PTR "))
}

/// Maps what is not mapped yet, page by page, and reads it.
fn read(at: u64, len: usize) -> Option<&'static [u8]> {
    let end = at.checked_add(len as u64).filter(|end| *end <= HIGHEST)?;
    if at < PAGE {
        return None;
    }
    for page in (at & !(PAGE - 1)..end).step_by(PAGE as usize) {
        if !paging::is_mapped(page) {
            paging::try_map(page, PAGE, Access::ReadOnly).ok()?;
        }
    }
    // SAFETY: mapped just now; firmware's tables do not change while we run.
    Some(unsafe { direct::bytes(at, len) })
}
