//! Power cuts at every device command of many workloads, and again during recovery: what was acknowledged survives,
//! what is recovered is exactly a prefix, and the journal goes on from there.

use crate::toy::{Shape, Toy, all, boxed, formatted};
use moraine_sim::crash::{CrashPlan, CrashReport, Cut, enumerate};
use moraine_sim::{DiskConfig, SimDisk, World};
use std::rc::Rc;
use std::time::Duration;

const SHAPES: [Shape; 6] = [
    Shape { disks: 1, copies: 1 },
    Shape { disks: 2, copies: 1 },
    Shape { disks: 2, copies: 2 },
    Shape { disks: 3, copies: 1 },
    Shape { disks: 3, copies: 2 },
    Shape { disks: 3, copies: 3 },
];

/// Recovers, compares, goes on, recovers again.
fn check(world: &World, disks: &[Rc<SimDisk>], cut: &Cut) -> Result<(), String> {
    let acked = cut.marks.iter().max().copied().unwrap_or(0);
    world.run(async {
        let toy = Toy::mount(world, disks).await.map_err(|e| e.to_string())?;
        let count = toy.count();
        if count < acked {
            return Err(format!("commit {acked} was acknowledged, {count} were recovered"));
        }
        let (n, seq) = toy.commit_data().await?;
        toy.sync(seq).await?;
        toy.write_back().await?;
        let (_, seq) = toy.commit().await?;
        toy.sync(seq).await?;
        let again = Toy::mount(world, disks).await.map_err(|e| format!("again: {e}"))?;
        if n != count + 1 || again.count() != count + 2 {
            return Err(format!("{count} recovered, {} after two more", again.count()));
        }
        Ok(())
    })
}

/// Three tasks commit, sync, rest and write back at random.
async fn work(world: &World, toy: &Toy, purpose: &str, steps: u64) {
    let tasks = (0..3).map(|task| {
        let mut random = world.random(&format!("{purpose} {task}"));
        let clock = world.platform().clock;
        boxed(async move {
            for _ in 0..steps {
                let commit = if random.percent(30) { toy.commit_data().await } else { toy.commit().await };
                let (n, seq) = commit.unwrap();
                match random.below(10) {
                    0..=4 => {
                        toy.sync(seq).await.unwrap();
                        world.trace().mark(n);
                    }
                    5 if task == 0 => {
                        toy.write_back().await.unwrap();
                    }
                    6 => clock.sleep(Duration::from_millis(random.below(1500))).await,
                    _ => {}
                }
            }
        })
    });
    all(tasks.collect()).await;
}

fn enumerate_shape(shape: Shape, disk: DiskConfig, seed: u64, steps: u64) -> CrashReport {
    let plan = CrashPlan { disk, ..CrashPlan::new(format!("journal {shape:?}"), seed, formatted(shape)) };
    let report = enumerate(
        &plan,
        |world, disks| {
            world.run(async {
                let toy = Toy::mount(world, disks).await.unwrap();
                work(world, &toy, "work", steps).await;
            })
        },
        |world, disks, (), cut| check(world, disks, cut),
    );
    report.expect_clean();
    report
}

#[test]
fn every_cut_recovers_a_prefix_no_shorter_than_acknowledged() {
    let mut worlds = 0;
    for (n, shape) in SHAPES.into_iter().enumerate() {
        let report = enumerate_shape(shape, DiskConfig::default(), 100 + n as u64, 12);
        worlds += report.worlds + report.second_worlds;
    }
    assert!(worlds > 2000, "{worlds} worlds");
}

#[test]
fn every_cut_on_devices_without_fua_or_without_a_cache() {
    let kinds = [
        DiskConfig { fua: false, ..DiskConfig::default() },
        DiskConfig { volatile_cache: false, fua: false, ..DiskConfig::default() },
        DiskConfig { max_transfer: 128 << 10, flush_ns: (50_000, 80_000), ..DiskConfig::default() },
    ];
    for (n, disk) in kinds.into_iter().enumerate() {
        for shape in [SHAPES[0], SHAPES[4]] {
            enumerate_shape(shape, disk.clone(), 200 + n as u64, 4);
        }
    }
}

/// The program dies but not the power: the next start reads entries that are still in the volatile cache, serves what
/// they say, and only then the power goes. What was served must not vanish.
#[test]
fn what_a_restart_served_survives_the_power_cut_after_it() {
    let no_fua = DiskConfig { fua: false, ..DiskConfig::default() };
    let worlds = [(SHAPES[0], DiskConfig::default()), (SHAPES[2], no_fua.clone()), (SHAPES[3], no_fua)];
    for (n, (shape, disk)) in worlds.into_iter().enumerate() {
        let plan = CrashPlan {
            disk,
            ..CrashPlan::new(format!("restart {shape:?}"), 300 + n as u64, formatted(shape))
        };
        let report = enumerate(
            &plan,
            |world, disks| {
                world.run(async {
                    let toy = Toy::mount(world, disks).await.unwrap();
                    work(world, &toy, "before", 3).await;
                    toy.commit().await.unwrap();
                    toy.kill(disks).await;
                    let toy = Toy::mount(world, disks).await.unwrap();
                    world.trace().mark(toy.count());
                    work(world, &toy, "after", 2).await;
                })
            },
            |world, disks, (), cut| check(world, disks, cut),
        );
        report.expect_clean();
    }
}

/// Full entries queue up behind slow writes, and write-backs let pins go meanwhile: an entry written before the one that
/// publishes a write-back must not count on it.
#[test]
fn every_cut_of_bursts_that_fill_entries_faster_than_they_are_written() {
    for (n, shape) in [SHAPES[0], SHAPES[1], SHAPES[4]].into_iter().enumerate() {
        let plan = CrashPlan {
            second_level_max: 2,
            worlds_max: 4000,
            ..CrashPlan::new(format!("bursts {shape:?}"), 400 + n as u64, formatted(shape))
        };
        let report = enumerate(
            &plan,
            |world, disks| {
                world.run(async {
                    let toy = Toy::mount(world, disks).await.unwrap();
                    toy.size.set(Some(3000));
                    for _ in 0..4 {
                        let burst = || {
                            boxed(async {
                                for _ in 0..16 {
                                    toy.commit().await.unwrap();
                                }
                                let (n, seq) = toy.commit().await.unwrap();
                                toy.sync(seq).await.unwrap();
                                world.trace().mark(n);
                            })
                        };
                        let publish = async {
                            for _ in 0..3 {
                                toy.write_back().await.unwrap();
                            }
                        };
                        all(vec![burst(), burst(), burst(), boxed(publish)]).await;
                    }
                })
            },
            |world, disks, (), cut| check(world, disks, cut),
        );
        report.expect_clean();
    }
}
