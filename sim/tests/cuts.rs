//! Scripts cut at every device command, in recovery, and in recovery of recovery.

use moraine_fs::vfs::FsError;
use moraine_platform::BlockDevice;
use moraine_sim::generate::Profile;
use moraine_sim::harness::{Client, Store, formatted};
use moraine_sim::script::Script;
use moraine_sim::{DiskConfig, World};
use std::rc::Rc;

const SEED: u64 = 3;
/// Worlds recovered for a script, about; the long form has no bound.
const WORLDS_MAX: usize = 500;
/// Of a full disk, where hardly any two are the same.
const WORLDS_FULL_MAX: usize = 150;

fn cut_everywhere(script: Script) {
    let report = script.enumerate(SEED, |plan| {
        plan.worlds_max = if script == Script::Full { WORLDS_FULL_MAX } else { WORLDS_MAX };
        plan.random_subsets = 4;
        (plan.second_level_max, plan.third_level_max) = (3, 2);
        plan.recovery_subsets = Some(1);
    });
    println!("{} different worlds", report.distinct_worlds());
    report.expect_clean();
    assert!(report.distinct_worlds() > 100, "{report}");
    assert!(report.second_worlds > 10 && report.third_worlds > 5, "{report}");
}

/// Runs a script without a cut: how often it found no space, what the engine says in the end, and the bytes it wrote.
fn run(script: Script) -> (usize, String, u64) {
    let store = script.store(SEED);
    let images = formatted(&store, SEED, &Profile::ALL[0]).unwrap();
    let world = World::new(SEED);
    let disks = images.into_iter().map(|image| world.disk_with(image, DiskConfig::default()));
    let disks: Vec<Rc<dyn BlockDevice>> = disks.map(|d| d as Rc<dyn BlockDevice>).collect();
    let platform = world.platform();
    world.run(async {
        let fs = store.mount(&platform, &disks).await.unwrap().fs;
        let mut client = Client::alone(&*fs, None).await.unwrap();
        for step in script.steps(SEED).0 {
            client.step(&*fs, world.trace(), step).await.unwrap();
        }
        let history = client.history.borrow();
        let answers = history.steps.iter().filter_map(|s| s.done.as_ref());
        let full = answers.filter(|done| matches!(done.answer, Err(FsError::NoSpace))).count();
        let durable_writes = world.trace().counters().fua_writes;
        (full, fs.engine().to_string(), durable_writes * 4096)
    })
}

#[test]
fn scripts_reach_what_they_are_named_for() {
    let (full, _, _) = run(Script::Full);
    assert!(full > 5, "no space was told {full} times");
    let (_, engine, _) = run(Script::Splits);
    assert!(engine.contains("dirents: level 2"), "{engine}");
    let (_, _, durable_bytes) = run(Script::Wrap);
    assert!(durable_bytes > 5 * (64 << 10), "{durable_bytes} bytes went into a journal of four buckets");
}

#[test]
fn every_operation_of_the_namespace() {
    cut_everywhere(Script::Names);
}

#[test]
fn large_truncates_unlinks_and_holes() {
    cut_everywhere(Script::Cuts);
}

#[test]
fn splits_up_to_the_root() {
    cut_everywhere(Script::Splits);
}

#[test]
fn a_journal_of_four_buckets_that_wraps() {
    cut_everywhere(Script::Wrap);
}

#[test]
fn a_disk_without_space() {
    cut_everywhere(Script::Full);
}
