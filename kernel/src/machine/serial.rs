//! The serial port: a 16550 at COM1, where every PC, emulator and micro-VM monitor has one.

use x86_64::instructions::port::Port;

const COM1: u16 = 0x3f8;
/// Looks at the line status before a byte is given up on, so that a port that is not there cannot hang us.
const PATIENCE: u32 = 100_000;

/// Sets 115200 8N1.
pub(crate) fn init() {
    // Interrupts off; divisor latch; divisor 1; 8N1; FIFOs on; DTR, RTS.
    for (register, value) in [(1, 0x00), (3, 0x80), (0, 0x01), (1, 0x00), (3, 0x03), (2, 0xc7), (4, 0x03)] {
        // SAFETY: these are the UART's registers; setting it up touches no memory.
        unsafe { Port::<u8>::new(COM1 + register).write(value) };
    }
}

/// Writes bytes; a line feed becomes carriage return and line feed.
pub(crate) fn write(bytes: &[u8]) {
    for &byte in bytes {
        if byte == b'\n' {
            put(b'\r');
        }
        put(byte);
    }
}

fn put(byte: u8) {
    // SAFETY: as in `init`.
    unsafe {
        let mut status = Port::<u8>::new(COM1 + 5);
        for _ in 0..PATIENCE {
            if status.read() & 0x20 != 0 {
                break;
            }
            core::hint::spin_loop();
        }
        Port::<u8>::new(COM1).write(byte);
    }
}
