//! Worlds in which disks fail or are full, by seed.
//!
//! A failure names its seed; `cargo sim --seed N --world KIND --workload NAME` replays it.

use moraine_sim::crowd::crowd_world;
use moraine_sim::fault::{Fault, fault_world};
use moraine_sim::generate::Profile;
use moraine_sim::harness::{CrashShape, Tally, crash_world};
use moraine_sim::plug::Moraine;
use moraine_sim::rot::rot_world;
use moraine_sim::totals;
use std::ops::Range;

/// Runs worlds for all `seeds` with the workload each one's number falls on.
fn seeds(
    kind: &str,
    seeds: Range<u64>,
    profiles: &[Profile],
    world: impl Fn(&Moraine, u64, &Profile) -> Result<Tally, String>,
) {
    let mut total = Tally::default();
    moraine_platform::log::set_sink(|level, room, text| {
        if std::env::var("LOG").is_ok() {
            eprintln!("{} {room}: {text}", level.name());
        }
    });
    for seed in seeds {
        let profile = &profiles[(seed % profiles.len() as u64) as usize];
        match world(&Moraine::for_profile(seed, profile), seed, profile) {
            Ok(tally) => total.add(tally),
            Err(why) => panic!("moraine-sim --seed {seed} --world {kind} --workload {}: {why}", profile.name),
        }
    }
    totals::worlds(kind, total);
}

fn faults(fault: Fault, range: Range<u64>) {
    seeds(fault.name(), range, Profile::ALL, |fs, seed, profile| fault_world(fs, seed, profile, fault));
}

#[test]
fn failed_flushes_lose_nothing_acknowledged() {
    faults(Fault::Flush, 0..100);
}

#[test]
fn failed_commands_lose_nothing_acknowledged() {
    faults(Fault::Command, 0..100);
}

#[test]
fn a_vanished_disk_that_comes_back_has_everything_acknowledged() {
    faults(Fault::Vanish, 0..100);
}

#[test]
fn a_disk_a_million_times_slower_only_takes_longer() {
    faults(Fault::Slow, 0..40);
}

#[test]
fn lost_writes_are_no_wrong_bytes() {
    faults(Fault::LostWrite, 0..80);
}

#[test]
fn misdirected_writes_are_no_wrong_bytes() {
    faults(Fault::Misdirected, 0..80);
}

#[test]
fn writes_that_land_late_are_no_wrong_bytes() {
    faults(Fault::Zombie, 0..80);
}

#[test]
fn rot_under_work_is_no_wrong_byte() {
    faults(Fault::Rot, 0..80);
}

#[test]
fn disks_that_lie_about_flushes_give_no_wrong_byte() {
    faults(Fault::Lie, 0..80);
}

#[test]
fn crowds_on_a_full_pool() {
    seeds("crowd", 0..60, std::slice::from_ref(Profile::FULL), |fs, seed, profile| {
        crowd_world(fs, seed, profile, 3, 60)
    });
}

#[test]
fn power_cuts_on_a_full_pool() {
    seeds("crash", 0..80, std::slice::from_ref(Profile::FULL), |fs, seed, profile| {
        crash_world(fs, seed, profile, CrashShape::default())
    });
}

#[test]
fn rot_at_rest_is_no_wrong_byte() {
    seeds("rot", 0..40, Profile::ALL, |fs, seed, profile| rot_world(fs, seed, profile, 100));
}
