//! The `moraine` command: the same filesystem on Linux, to make, check and show a disk image or to serve it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    moraine_host::cli::main()
}
