//! Whole appliances by seed: NFS and NBD clients over a simulated network, disks that forget and fail, power cuts while
//! clients work.
//!
//! A failure names its seed; `cargo sim --seed N --world appliance` replays it. `SEEDS=A..B` runs others,
//! `WHOLE=1` all of them with TCP/IP, cards and drivers (`--world full-appliance`).

use moraine_sim::appliance::{Seen, appliance_world, whole_appliance_world};
use moraine_sim::harness::Tally;
use moraine_sim::totals;
use std::ops::Range;

/// Seeds that found something, each with what it was.
const FOUND: [u64; 3] = [
    // An orderly stop waited for journal room: it wrote nodes back before all that recovery had left was read in.
    7054, // A pool whose device had failed answered that it was full.
    1153, // For want of one buffer an orderly stop left the pool unclean, and what was not synced undone.
    78,
];

fn range() -> Range<u64> {
    let given = std::env::var("SEEDS").ok().and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    given.unwrap_or(0..150)
}

#[test]
fn what_each_protocol_called_stable_survives() {
    moraine_platform::log::set_sink(|level, room, text| {
        if std::env::var("LOG").is_ok() {
            eprintln!("{} {room}: {text}", level.name());
        }
    });
    if std::env::var("LOG").is_ok() {
        moraine_platform::log::set_level(moraine_platform::log::Level::Debug);
    }
    let (mut total, mut seen) = (Tally::default(), Seen::default());
    let found = FOUND.into_iter().filter(|_| std::env::var("SEEDS").is_err());
    for seed in range().chain(found) {
        let whole = std::env::var("WHOLE").is_ok();
        let world = if whole { whole_appliance_world } else { appliance_world };
        match world(seed) {
            Ok((tally, happened)) => {
                total.add(tally);
                seen.add(happened);
            }
            Err(why) => panic!("moraine-sim --seed {seed} --world appliance: {why}"),
        }
    }
    println!("{seen:?}");
    totals::worlds("appliance", total);
    // What the worlds are for happens in them.
    if std::env::var("SEEDS").is_err() {
        assert!(seen.cuts > 100 && seen.promises > 100_000 && seen.failures > 100, "{seen:?}");
        assert!(seen.repeats > 1000 && seen.repeated_over_boots > 100 && seen.found_done > 5, "{seen:?}");
        assert!(seen.written_again > 100 && seen.decided > 1000, "{seen:?}");
        assert!(seen.frames > 50_000 && seen.frames_lost > 500 && seen.frames_damaged > 100, "{seen:?}");
        assert!(seen.refused > 3000 && seen.too_large > 1000, "{seen:?}");
    }
}

#[test]
fn a_seed_is_a_run() {
    for seed in [1, 7, 19, 29] {
        let hash = || appliance_world(seed).map(|(tally, _)| tally.hash);
        assert_eq!(hash(), hash());
    }
}
