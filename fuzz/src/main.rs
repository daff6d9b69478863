//! `moraine-fuzz TARGET SECONDS [SEED]`: changed inputs for a target for as long as asked, or `all` of the targets in turn.
//! Built by `scripts/fuzz` it goes by coverage: what reaches something new is kept and changed further.
#![forbid(unsafe_code)]

mod campaign;

use campaign::Campaign;
use moraine_fuzz::{TARGETS, Target, inputs, mutate};
use peak_alloc::PeakAlloc;
use std::process::ExitCode;
use std::time::Duration;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const USAGE: &str = "usage:
  moraine-fuzz TARGET|all SECONDS [SEED]   changes inputs for so long
  moraine-fuzz TARGET --seed N             runs the input of that number again (of a build that does not count coverage)
  moraine-fuzz TARGET --input FILE         runs a file
  moraine-fuzz TARGET|all --merge          makes fuzz/corpus/TARGET anew of what is there and what was found
targets:";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let name = words.first().copied().unwrap_or_default();
    let chosen: Vec<&Target> = TARGETS.iter().filter(|t| name == "all" || t.name == name).collect();
    let number = |word: &&str| word.parse::<u64>().ok();
    match (&chosen[..], words.get(1..).unwrap_or_default()) {
        ([_, ..], ["--merge"]) => chosen.iter().for_each(|target| Campaign::new(target, 0).merge()),
        ([target], ["--seed", seed]) if number(seed).is_some() => {
            (target.run)(&mutate::mutate(&inputs(target), number(seed).unwrap_or(0)));
        }
        ([target], ["--input", file]) => match std::fs::read(file) {
            Ok(bytes) => Campaign::new(target, 0).once(&bytes),
            Err(e) => {
                eprintln!("{file}: {e}");
                return ExitCode::from(2);
            }
        },
        ([_, ..], [seconds, rest @ ..]) if number(seconds).is_some() && rest.len() <= 1 => {
            let seconds = Duration::from_secs(number(seconds).unwrap_or(0));
            let seed = rest.first().and_then(number).unwrap_or(0);
            chosen.iter().for_each(|target| Campaign::new(target, seed).run(seconds));
        }
        _ => {
            eprintln!("{USAGE}");
            TARGETS.iter().for_each(|target| eprintln!("  {}", target.name));
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}
