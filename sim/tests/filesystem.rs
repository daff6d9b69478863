//! The filesystem in worlds: a thousand seeds of several kinds, and workloads cut at every device command.
//!
//! A failure names its seed; `cargo run -p moraine-sim -- --seed N` replays it.

use moraine_sim::crowd::{crowd_world, tangle_world};
use moraine_sim::generate::Profile;
use moraine_sim::harness::{CrashShape, Tally, crash_world, enumerate_world, lockstep_world};
use moraine_sim::plug::Moraine;
use moraine_sim::totals;
use moraine_sim::tug::tug_world;
use std::ops::Range;

/// Runs a kind of world for all `seeds`, each with the workload its number falls on.
fn seeds(kind: &str, seeds: Range<u64>, world: impl Fn(&Moraine, u64, &Profile) -> Result<Tally, String>) {
    let mut total = Tally::default();
    for seed in seeds {
        let profile = &Profile::ALL[(seed % Profile::ALL.len() as u64) as usize];
        match world(&Moraine::for_seed(seed), seed, profile) {
            Ok(tally) => total.add(tally),
            Err(why) => panic!("moraine-sim --seed {seed} --world {kind} --workload {}: {why}", profile.name),
        }
    }
    totals::worlds(kind, total);
}

#[test]
fn lockstep_with_the_model() {
    seeds("lockstep", 0..150, |fs, seed, profile| lockstep_world(fs, seed, profile, 200));
}

#[test]
fn many_clients_at_once() {
    seeds("crowd", 0..100, |fs, seed, profile| crowd_world(fs, seed, profile, 4, 60));
}

#[test]
fn many_clients_in_one_tree() {
    seeds("tangle", 0..150, |fs, seed, _| tangle_world(fs, seed, 4, 60));
}

#[test]
fn many_clients_on_one_file() {
    seeds("tug", 0..200, |fs, seed, _| tug_world(fs, seed, 4, 60));
}

#[test]
fn random_power_cuts_with_one_workload_a_seed() {
    seeds("crash", 0..350, |fs, seed, profile| crash_world(fs, seed, profile, CrashShape::default()));
}

#[test]
fn random_power_cuts_with_further_seeds() {
    seeds("crash", 350..700, |fs, seed, profile| crash_world(fs, seed, profile, CrashShape::default()));
}

#[test]
fn every_cut_of_a_set_of_workloads_recovers_to_an_admissible_state() {
    let (mut cuts, mut worlds) = (0, 0);
    for profile in Profile::ALL {
        for seed in [5, 7, 11] {
            let report = enumerate_world(&Moraine::for_seed(seed), seed, profile, 30, |_| ());
            report.expect_clean();
            cuts += report.cuts + report.second_cuts;
            worlds += report.worlds + report.second_worlds;
        }
    }
    println!("every cut: {cuts} cuts, {worlds} worlds recovered");
    assert!(cuts > 500, "the workloads write too little: {cuts} cuts");
}

#[test]
fn two_runs_of_a_seed_send_the_same_commands_to_the_disks() {
    for seed in 0..6 {
        let run = || {
            let shape = CrashShape::default();
            crash_world(&Moraine::for_seed(seed), seed, &Profile::ALL[0], shape).expect("it passes").hash
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}
