//! The way in from UEFI: reads the command-line file beside the boot file, finds ACPI, takes the memory map, ends the
//! firmware's services, and goes on like every other path.

use crate::cpu::features;
use crate::entry::{BootInfo, COMMAND_LINE_MAX, CommandLine};
use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ptr;
use moraine_boot::map::{PAGE, RangeSet};
use spin::Mutex;
use uefi_raw::protocol::file_system::{FileAttribute, FileMode, FileProtocolV1, SimpleFileSystemProtocol};
use uefi_raw::protocol::loaded_image::LoadedImageProtocol;
use uefi_raw::table::boot::{BootServices, MemoryDescriptor, MemoryType};
use uefi_raw::table::configuration::ConfigurationTable;
use uefi_raw::table::system::SystemTable;
use uefi_raw::{Guid, Handle, Status, guid};

const ACPI_2: Guid = guid!("8868e871-e4f1-11d3-bc22-0080c73c8881");
const ACPI_1: Guid = guid!("eb9d2d30-2d88-11d3-9a16-0090273fc14d");
/// The text file with the command line, from the root of the partition we were loaded from.
const COMMAND_LINE_FILE: &str = "\\MORAINE.TXT";
/// Room for the firmware's memory map, in bytes.
const MAP_BYTES: usize = 64 << 10;
/// Times the firmware may change its map between our asking and our leaving.
const TRIES: usize = 8;

#[repr(align(16))]
struct MapMemory(UnsafeCell<[u8; MAP_BYTES]>);

// SAFETY: only the boot core touches it, before there are others.
unsafe impl Sync for MapMemory {}

static MAP: MapMemory = MapMemory(UnsafeCell::new([0; MAP_BYTES]));
/// What was found, across the change of stack.
static HANDOVER: Mutex<Option<BootInfo>> = Mutex::new(None);

/// Called by `uefi.S` on the firmware's stack. Returns only if the machine cannot be taken over.
#[unsafe(no_mangle)]
extern "efiapi" fn uefi_main(image: Handle, system: *const SystemTable) -> Status {
    // SAFETY: the firmware's tables are valid until its services end, which happens in `leave`.
    unsafe {
        let system = &*system;
        if let Some(missing) = features::missing() {
            print(system, "Moraine needs an x86-64-v2 processor (2009 or later); this one lacks");
            for name in missing.names() {
                print(system, " ");
                print(system, name);
            }
            print(system, "\r\n");
            return Status::UNSUPPORTED;
        }
        let services = &*system.boot_services;
        let mut command_line = CommandLine::new();
        read_command_line(services, image, &mut command_line);
        let rsdp = root_pointer(system);
        let Some((ram, busy)) = leave(services, image) else {
            print(system, "Moraine: the firmware does not let go of the machine\r\n");
            return Status::ABORTED;
        };
        x86_64::instructions::interrupts::disable();
        *HANDOVER.lock() = Some(BootInfo { path: "UEFI", ram, busy, rsdp, command_line });
        core::arch::asm!(
            "lea rsp, [rip + boot_stack_top]",
            "xor ebp, ebp",
            "call {go_on}",
            "ud2",
            go_on = sym go_on,
            options(noreturn),
        )
    }
}

/// On our own stack.
extern "C" fn go_on() -> ! {
    let boot = HANDOVER.lock().take().expect("uefi_main filled it");
    crate::start(boot)
}

/// # Safety
/// Boot services are there.
unsafe fn print(system: &SystemTable, text: &str) {
    let out = system.stdout;
    if out.is_null() {
        return;
    }
    for byte in text.bytes() {
        let letter = [byte as u16, 0];
        // SAFETY: a zero-terminated string for the firmware's console.
        let _ = unsafe { ((*out).output_string)(out, letter.as_ptr()) };
    }
}

/// Finds a protocol of a handle.
///
/// # Safety
/// Boot services are there, and `T` is the protocol's structure.
unsafe fn protocol<T>(services: &BootServices, handle: Handle, id: &Guid) -> Option<*mut T> {
    let mut found: *mut c_void = ptr::null_mut();
    // SAFETY: the firmware writes a pointer to the protocol's structure.
    let status = unsafe { (services.handle_protocol)(handle, id, &mut found) };
    (status == Status::SUCCESS && !found.is_null()).then_some(found.cast())
}

/// Reads the text file if it is there.
///
/// # Safety
/// Boot services are there.
unsafe fn read_command_line(services: &BootServices, image: Handle, out: &mut CommandLine) {
    let mut name = [0_u16; COMMAND_LINE_FILE.len() + 1];
    name.iter_mut().zip(COMMAND_LINE_FILE.bytes()).for_each(|(to, from)| *to = from as u16);
    // SAFETY: each pointer comes from the firmware by a call that succeeded, for the protocol asked for.
    unsafe {
        let Some(loaded) = protocol::<LoadedImageProtocol>(services, image, &LoadedImageProtocol::GUID)
        else {
            return;
        };
        let volume = (*loaded).device_handle;
        let Some(volume) =
            protocol::<SimpleFileSystemProtocol>(services, volume, &SimpleFileSystemProtocol::GUID)
        else {
            return;
        };
        let mut root: *mut FileProtocolV1 = ptr::null_mut();
        if ((*volume).open_volume)(volume, &mut root) != Status::SUCCESS {
            return;
        }
        let mut file: *mut FileProtocolV1 = ptr::null_mut();
        let opened = ((*root).open)(root, &mut file, name.as_ptr(), FileMode::READ, FileAttribute::empty());
        if opened == Status::SUCCESS {
            let mut text = [0_u8; COMMAND_LINE_MAX];
            let mut len = text.len();
            if ((*file).read)(file, &mut len, text.as_mut_ptr().cast()) == Status::SUCCESS {
                out.push(&text[..len.min(COMMAND_LINE_MAX)]);
            }
            let _ = ((*file).close)(file);
        }
        let _ = ((*root).close)(root);
    }
}

/// ACPI's root pointer, the newer kind if there are both.
///
/// # Safety
/// The system table is valid.
unsafe fn root_pointer(system: &SystemTable) -> u64 {
    let (table, count) = (system.configuration_table, system.number_of_configuration_table_entries);
    if table.is_null() {
        return 0;
    }
    // SAFETY: the firmware says how many entries there are.
    let entries: &[ConfigurationTable] = unsafe { core::slice::from_raw_parts(table, count) };
    let find = |id: Guid| entries.iter().find(|e| e.vendor_guid == id).map(|e| e.vendor_table as u64);
    find(ACPI_2).or(find(ACPI_1)).unwrap_or(0)
}

/// Ends the firmware's services. Returns all RAM that is ours now, and that part of it which still holds the
/// firmware's page tables until we have our own.
///
/// # Safety
/// Boot services are there, and are not used afterwards if this succeeds.
unsafe fn leave(services: &BootServices, image: Handle) -> Option<(RangeSet, RangeSet)> {
    let map = MAP.0.get().cast::<MemoryDescriptor>();
    for _ in 0..TRIES {
        let (mut len, mut key, mut step, mut version) = (MAP_BYTES, 0, 0, 0);
        // SAFETY: the buffer has `len` bytes and is aligned for descriptors.
        let status = unsafe { (services.get_memory_map)(&mut len, map, &mut key, &mut step, &mut version) };
        if status != Status::SUCCESS || step < size_of::<MemoryDescriptor>() {
            return None;
        }
        // SAFETY: the key says which map we saw; if it is stale the firmware refuses and nothing changed.
        if unsafe { (services.exit_boot_services)(image, key) } != Status::SUCCESS {
            continue;
        }
        let (mut ram, mut busy) = (RangeSet::new(), RangeSet::new());
        for at in (0..len).step_by(step) {
            // SAFETY: the firmware wrote descriptors `step` bytes apart into `len` bytes.
            let entry = unsafe { &*map.byte_add(at) };
            let services_memory =
                [MemoryType::BOOT_SERVICES_CODE, MemoryType::BOOT_SERVICES_DATA].contains(&entry.ty);
            let free = [MemoryType::CONVENTIONAL, MemoryType::LOADER_CODE, MemoryType::LOADER_DATA]
                .contains(&entry.ty);
            if free || services_memory {
                ram.add(entry.phys_start, entry.page_count.saturating_mul(PAGE));
            }
            if services_memory {
                busy.add(entry.phys_start, entry.page_count.saturating_mul(PAGE));
            }
        }
        return Some((ram, busy));
    }
    None
}
