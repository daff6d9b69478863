//! The command line: what a person can ask, and how each answer becomes an exit code.
//!
//! Results go to standard output, everything else to standard error. Wrong usage ends with 2 (from the argument
//! parser), failure with 1, success with 0; `fsck` has e2fsck's codes.

mod disks;
mod dump;
mod fsck;
mod mkfs;
mod progress;
mod serve;

use crate::os;
use clap::{Parser, Subcommand};
use moraine_platform::log::Level;
use std::fmt;
use std::process::ExitCode;

/// Moraine on Linux: make, check and show a disk image, or serve it.
#[derive(Parser, Debug)]
#[command(name = "moraine", version, max_term_width = 100)]
pub struct Cli {
    /// Least important log level on standard error: error, warn, info, debug or trace.
    #[arg(long, global = true, default_value = "info", value_parser = level)]
    log: Level,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Make a pool of blank disks or new image files.
    Mkfs(mkfs::Mkfs),
    /// Check a pool: read everything, name each inconsistency, mend what can be mended.
    Fsck(fsck::Fsck),
    /// Serve a pool over NFS and NBD from this process until SIGTERM or Ctrl-C.
    Serve(serve::Serve),
    /// Show what is on the disks of a pool: superblock, journal, any tree, any node.
    Dump(dump::Dump),
}

/// A failure with the text a person sees.
struct Failure(String);

impl<E: fmt::Display> From<E> for Failure {
    fn from(e: E) -> Failure {
        Failure(e.to_string())
    }
}

/// Parses the process's command line and runs it to its exit code.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(e) => {
            let _ = e.print();
            let is_fsck = std::env::args().skip(1).find(|a| !a.starts_with('-')).is_some_and(|a| a == "fsck");
            match (e.exit_code(), is_fsck) {
                (0, _) => ExitCode::SUCCESS,
                (_, true) => fsck::USAGE.into(),
                (code, false) => u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
            }
        }
    }
}

/// Runs a parsed command line to its exit code.
fn run(cli: Cli) -> ExitCode {
    os::log_to_stderr(cli.log);
    let result = match cli.command {
        Command::Mkfs(mkfs) => mkfs.run(),
        Command::Fsck(fsck) => fsck.run(),
        Command::Serve(serve) => serve.run(),
        Command::Dump(dump) => dump.run(),
    };
    match result {
        Ok(code) => code,
        Err(Failure(text)) => {
            eprintln!("moraine: {text}");
            ExitCode::FAILURE
        }
    }
}

fn size(text: &str) -> Result<u64, String> {
    let bytes = moraine_appliance::parse_size(text).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "wanted a number of bytes, like 512M or 8G".to_owned())
}

fn level(name: &str) -> Result<Level, String> {
    Level::from_name(name).ok_or_else(|| "wanted error, warn, info, debug or trace".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_parser_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
