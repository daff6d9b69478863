//! `moraine-fuzz TARGET SECONDS [SEED]`: mutations of a target's inputs for as long as asked, or `all` of the targets in
//! turn. Each input's number is its seed: `moraine-fuzz TARGET --seed N` runs one again.
#![forbid(unsafe_code)]

use moraine_fuzz::{TARGETS, Target, corpus, mutate, seeds};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// An input that takes longer than this is written down as slow: nothing here should.
const SLOW: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let (Some(name), Some(seconds)) = (words.first(), number(1).or(number(2))) else {
        eprintln!("usage: moraine-fuzz TARGET|all SECONDS [SEED] | TARGET --seed N");
        TARGETS.iter().for_each(|target| eprintln!("  {}", target.name));
        return ExitCode::from(2);
    };
    let chosen: Vec<&Target> = TARGETS.iter().filter(|t| name == "all" || t.name == name).collect();
    if chosen.is_empty() {
        eprintln!("there is no target {name}");
        return ExitCode::from(2);
    }
    for target in chosen {
        if words.get(1).is_some_and(|word| word == "--seed") {
            (target.run)(&mutate::mutate(&inputs(target), seconds));
        } else {
            run(target, Duration::from_secs(seconds), number(2).unwrap_or(0));
        }
    }
    ExitCode::SUCCESS
}

fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let kept = corpus(target.name).into_iter().map(|(_, bytes)| bytes);
    seeds::of(target.name).into_iter().chain(kept).collect()
}

fn run(target: &Target, time: Duration, first: u64) {
    let inputs = inputs(target);
    let (begin, mut seed) = (Instant::now(), first);
    while begin.elapsed() < time {
        let bytes = mutate::mutate(&inputs, seed);
        // Told before it runs, so that a panic's last line replays it.
        moraine_sim::world::set_replay_line(&format!("moraine-fuzz {} --seed {seed}", target.name));
        let before = Instant::now();
        (target.run)(&bytes);
        if before.elapsed() > SLOW {
            println!("{}: seed {seed} takes {:?}", target.name, before.elapsed());
        }
        seed += 1;
    }
    println!("{}: {} inputs, seeds {first}..{seed}, no finding", target.name, seed - first);
}
