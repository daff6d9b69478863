//! `moraine-image KERNEL OUT [WORDS…]`: writes a raw disk image that boots under UEFI and under legacy BIOS.
//!
//! | file | idea |
//! |---|---|
//! | `kernel.rs` | [`Kernel`]: what the image needs of the kernel's ELF file, checked |
//! | `pe.rs` | the kernel wrapped as the PE32+ file that UEFI loads |
//! | `disk.rs` | the disk: GPT, boot sector, BIOS boot partition, FAT partition with the text file |
#![forbid(unsafe_code)]

mod disk;
mod kernel;
mod pe;

use kernel::Kernel;
use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(kernel), Some(out)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: moraine-image KERNEL OUT [WORDS…]");
        return ExitCode::from(2);
    };
    match build(&kernel, &out, &arguments.collect::<Vec<_>>().join(" ")) {
        Ok(bytes) => {
            eprintln!("{out}: {} MiB", bytes >> 20);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("moraine-image: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the image; its length in bytes.
fn build(kernel: &str, out: &str, words: &str) -> Result<u64, Box<dyn Error>> {
    let file = std::fs::read(kernel).map_err(|e| format!("{kernel}: {e}"))?;
    let kernel = Kernel::parse(&file).map_err(|e| format!("{kernel}: {e}"))?;
    let image = disk::build(&kernel, words)?;
    // Beside the old one first, so that a failure leaves no half image.
    let part = format!("{out}.part");
    std::fs::write(&part, &image).map_err(|e| format!("{part}: {e}"))?;
    std::fs::rename(&part, out).map_err(|e| format!("{out}: {e}"))?;
    Ok(image.len() as u64)
}
