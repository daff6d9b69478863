//! Links the kernel binary as a freestanding static-pie with our own layout, and nothing else of this package.

use std::path::Path;

fn main() {
    let boot = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../boot");
    let script = boot.join("link.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    println!("cargo:rerun-if-changed={}", boot.join("entry").display());
    for arg in [
        "-nostartfiles",
        "-nostdlib",
        "-static-pie",
        "-Wl,--no-dynamic-linker",
        "-Wl,--build-id=none",
        "-Wl,--gc-sections",
        "-Wl,-z,max-page-size=4096",
        "-Wl,-z,norelro",
        "-Wl,--hash-style=sysv",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{}", script.display());
}
