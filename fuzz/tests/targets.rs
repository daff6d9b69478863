//! Every target over its seeds, its corpus and mutations of both: none panics, none hangs, none takes more memory than it may.
//! One test, one thread: memory is counted for the whole process.

use moraine_fuzz::{TARGETS, Target, corpus, mutate, seeds};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Runs one input and sees what it took.
fn feed(target: &Target, what: &dyn std::fmt::Display, bytes: &[u8]) {
    moraine_sim::world::set_replay_line(&format!("moraine-fuzz {}: {what}", target.name));
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    (target.run)(bytes);
    let taken = MEMORY.peak_usage().saturating_sub(before);
    assert!(taken <= target.memory_max, "{}: {what} takes {taken} bytes", target.name);
}

#[test]
fn every_target_stands_every_input() {
    for target in TARGETS {
        let mut inputs = seeds::of(target.name);
        for (number, bytes) in inputs.iter().enumerate() {
            feed(target, &format_args!("seed input {number}"), bytes);
        }
        for (name, bytes) in corpus(target.name) {
            feed(target, &format_args!("corpus/{name}"), &bytes);
            inputs.push(bytes);
        }
        feed(target, &"nothing", &[]);
        for seed in 0..target.tries {
            feed(target, &format_args!("--seed {seed}"), &mutate::mutate(&inputs, seed));
        }
    }
}
