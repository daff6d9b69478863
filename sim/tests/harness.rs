//! The harness against toys: the right one passes in every kind of world, each broken one is caught.

use moraine_sim::crowd::{crowd_world, tangle_world};
use moraine_sim::generate::Profile;
use moraine_sim::harness::{CrashShape, crash_world, enumerate_world, lockstep_world};
use moraine_sim::toy::{Toy, ToyBug};

fn profile(name: &str) -> &'static Profile {
    Profile::named(name).unwrap()
}

#[test]
fn the_right_toy_passes_lockstep_worlds_of_every_profile() {
    for profile in Profile::ALL {
        for seed in 0..15 {
            let world = lockstep_world(&Toy::new(ToyBug::None), seed, profile, 150);
            world.unwrap_or_else(|why| panic!("{} seed {seed}: {why}", profile.name));
        }
    }
}

#[test]
fn the_right_toy_passes_crash_worlds_of_every_profile() {
    for profile in Profile::ALL {
        for seed in 0..25 {
            let world = crash_world(&Toy::new(ToyBug::None), seed, profile, CrashShape::default());
            world.unwrap_or_else(|why| panic!("{} seed {seed}: {why}", profile.name));
        }
    }
}

#[test]
fn the_right_toy_passes_every_cut() {
    for profile in Profile::ALL {
        enumerate_world(&Toy::new(ToyBug::None), 3, profile, 25, |_| ()).expect_clean();
    }
}

#[test]
fn the_right_toy_passes_crowds_and_tangles() {
    for seed in 0..40 {
        let profile = &Profile::ALL[seed as usize % Profile::ALL.len()];
        crowd_world(&Toy::new(ToyBug::None), seed, profile, 3, 50)
            .unwrap_or_else(|why| panic!("{seed}: {why}"));
        tangle_world(&Toy::new(ToyBug::None), seed, 4, 60).unwrap_or_else(|why| panic!("{seed}: {why}"));
    }
}

#[test]
fn a_wrong_order_of_commits_is_caught_in_tangles() {
    let caught = (0..20).find_map(|seed| tangle_world(&Toy::new(ToyBug::WrongOrder), seed, 4, 60).err());
    assert!(caught.expect("it is not caught").contains("in order of commits"));
}

#[test]
fn two_runs_of_a_seed_are_the_same() {
    let run = |seed| {
        crash_world(&Toy::new(ToyBug::None), seed, profile("mixed"), CrashShape::default()).unwrap().hash
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}

#[test]
fn wrong_answers_are_caught_in_lockstep() {
    for (bug, name, complaint) in [
        (ToyBug::WrongError, "names", "the model says Err(NotEmpty)"),
        (ToyBug::ShortWrite, "data", "the model has"),
    ] {
        let caught = (0..20).find_map(|seed| lockstep_world(&Toy::new(bug), seed, profile(name), 150).err());
        let caught = caught.unwrap_or_else(|| panic!("{bug:?} is not caught"));
        assert!(caught.contains(complaint), "{bug:?}: {caught}");
    }
}

#[test]
fn broken_promises_are_caught_by_random_cuts() {
    for bug in [
        ToyBug::AnswersBeforeFlush,
        ToyBug::SkipsGaps,
        ToyBug::BelievesOldTail,
        ToyBug::TearsRename,
        ToyBug::LosesContent,
        ToyBug::LosesAppends,
        ToyBug::WrongEnd,
    ] {
        let found = (0..150).find_map(|seed| {
            let profile = if bug == ToyBug::TearsRename { profile("names") } else { profile("mixed") };
            crash_world(&Toy::new(bug), seed, profile, CrashShape::default()).err().map(|why| (seed, why))
        });
        let (seed, why) = found.unwrap_or_else(|| panic!("{bug:?} is not caught"));
        println!("{bug:?} caught by seed {seed}: {why}\n");
    }
}

#[test]
fn broken_promises_are_caught_by_enumeration() {
    for (bug, name) in [
        (ToyBug::AnswersBeforeFlush, "mixed"),
        (ToyBug::LosesContent, "data"),
        (ToyBug::TearsRename, "names"),
    ] {
        // A workload may happen not to do what the bug needs.
        let reports = (1..9).map(|seed| {
            enumerate_world(&Toy::new(bug), seed, profile(name), 40, |plan| plan.random_subsets = 2)
        });
        let caught = reports.into_iter().find(|report| !report.failures.is_empty());
        println!("{bug:?}: {}\n", caught.unwrap_or_else(|| panic!("{bug:?} is not caught")));
    }
}
