//! The machine around the processor: firmware tables, buses, clocks, power, the serial port.

pub(crate) mod acpi;
pub(crate) mod clock;
pub(crate) mod pci;
pub(crate) mod power;
pub(crate) mod serial;
