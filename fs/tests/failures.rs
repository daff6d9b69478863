//! Disks that fail under a filesystem: what was acknowledged survives, what was not stays in memory, who waits is told,
//! and what is there can still be read.

mod common;

use common::*;
use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::vfs::*;
use moraine_fs::{CacheBudget, Filesystem, FsError};
use moraine_platform::{BlockDevice, IoError};
use moraine_sim::{DiskConfig, Image, SimDisk, World};
use std::rc::Rc;

const FILES: usize = 6;
const ROUNDS: u64 = 40;

fn devices(disks: &[Rc<SimDisk>]) -> Vec<Rc<dyn BlockDevice>> {
    disks.iter().map(|d| d.clone() as Rc<dyn BlockDevice>).collect()
}

fn formatted(disks: usize, replicas: u8) -> Vec<Image> {
    let world = World::new(77);
    let disks: Vec<_> = (0..disks).map(|_| world.disk(64 << 20, DiskConfig::default())).collect();
    world.run(async {
        let options = FormatOptions { journal_replicas: replicas, ..FormatOptions::default() };
        let (platform, seen, budget) = (world.platform(), devices(&disks), Budget::default());
        let engine = Engine::format(&platform, &seen, &options, &budget).await.unwrap();
        Filesystem::format_root(&engine).await.unwrap();
        engine.unmount().await.unwrap();
    });
    disks.iter().map(|d| d.durable_image()).collect()
}

/// What a client knows: the newest content of each file, and the newest that was acknowledged as stable.
#[derive(Clone, Default)]
struct Knows {
    newest: Vec<u64>,
    stable: Vec<u64>,
}

fn bytes(file: usize, version: u64) -> Vec<u8> {
    pattern(version * 31 + file as u64, 20_000)
}

/// Works until something fails; returns what is known, and the error.
async fn work(fs: &Filesystem, files: &[ObjectId], knows: &mut Knows) -> Option<FsError> {
    for round in 1..=ROUNDS {
        for (n, f) in files.iter().enumerate() {
            let all = bytes(n, round);
            match fs.write(&root(), *f, 0, data(0, &all), Stability::Unstable).await {
                Ok(_) => knows.newest[n] = round,
                Err(e) => return Some(e),
            }
            if (round + n as u64).is_multiple_of(3) {
                match fs.commit(*f, 0, 0).await {
                    Ok(_) => knows.stable[n] = round,
                    Err(e) => return Some(e),
                }
            }
        }
    }
    None
}

async fn mounted(world: &World, disks: &[Rc<SimDisk>]) -> Filesystem {
    let engine = Engine::mount(&world.platform(), &devices(disks), &Budget::default()).await.unwrap();
    Filesystem::open(engine, CacheBudget::of(4 << 20)).await.unwrap()
}

fn is_io(e: FsError) -> bool {
    matches!(e, FsError::DeviceWrite | FsError::Stopped)
}

/// Runs the work with one fault in it and restarts on what is durable then. Says whether the fault was met.
fn one_fault(seed: u64, images: &[Image], fault: impl FnOnce(&[Rc<SimDisk>]), goes_on: bool) -> bool {
    let world = World::new(seed);
    let disks: Vec<_> = images.iter().map(|i| world.disk_with(i.clone(), DiskConfig::default())).collect();
    let (knows, met) = world.run(async {
        let fs = mounted(&world, &disks).await;
        let mut files = Vec::new();
        for n in 0..FILES {
            files.push(file(&fs, format!("f{n}").as_bytes()).await);
        }
        let spare = file(&fs, b"spare").await;
        fs.sync_all().await.unwrap();
        let mut knows = Knows { newest: vec![0; FILES], stable: vec![0; FILES] };
        let verifier = fs.write_verifier();
        fault(&disks);
        let failed = work(&fs, &files, &mut knows).await;
        if let Some(error) = failed {
            assert!(is_io(error), "{error}");
            assert!(!goes_on, "the other device goes on: {error}");
            assert_ne!(fs.write_verifier(), verifier, "clients must send again what is not stable");
            // Everybody is told, not only the first.
            let stopped = fs.engine().check_running().is_err();
            if stopped {
                let refused = fs.write(&root(), spare, 0, data(0, b"more"), Stability::FileSync).await;
                assert!(is_io(refused.unwrap_err()));
                let made =
                    fs.create(&root(), fs.root(), b"new", CreateMode::Guarded, &with_mode(0o644)).await;
                assert!(is_io(made.unwrap_err()), "the pool is read-only");
                assert!(fs.sync_all().await.is_err(), "what is dirty is never called durable");
            }
            // Nothing is forgotten while the power is on.
            for (n, f) in files.iter().enumerate().filter(|(n, _)| knows.newest[*n] > 0) {
                let now = content(&fs, *f).await;
                let last = knows.newest[n];
                assert!(
                    now == bytes(n, last) || now == bytes(n, last + 1),
                    "file {n} reads as it was written"
                );
            }
            assert_eq!(fs.shutdown().await.is_err(), stopped, "what did not stop the pool is over");
        } else {
            assert!(fs.sync_all().await.is_ok() || fs.engine().check_running().is_err());
        }
        (knows, failed.is_some())
    });
    let left: Vec<Image> = disks.iter().map(|d| d.durable_image()).collect();
    if goes_on {
        // The failed device is not asked for anything new: what it holds is old. That is for another test.
        return met;
    }
    let world = World::new(seed + 1);
    let disks: Vec<_> = left.iter().map(|i| world.disk_with(i.clone(), DiskConfig::default())).collect();
    world.run(async {
        let fs = mounted(&world, &disks).await;
        for n in 0..FILES {
            let (f, _) = fs.lookup(&root(), fs.root(), format!("f{n}").as_bytes()).await.unwrap();
            let found = content(&fs, f).await;
            let stable = knows.stable[n];
            if stable > 0 {
                // Of what came after the last sync each page is there or not.
                let fits = |page: usize, part: &[u8]| {
                    (stable..=knows.newest[n] + 1)
                        .any(|v| bytes(n, v).chunks(4096).nth(page).unwrap() == part)
                };
                let good = found.len() == 20_000 && found.chunks(4096).enumerate().all(|(p, c)| fits(p, c));
                assert!(good, "seed {seed}: file {n}, stable {stable}, newest {}", knows.newest[n]);
            }
        }
        fs.shutdown().await.unwrap();
        fs.engine().unmount().await.unwrap();
    });
    met
}

#[test]
fn a_flush_that_fails_and_loses_what_it_covered_loses_nothing_acknowledged() {
    let images = formatted(1, 1);
    let met = (0..60)
        .filter(|k| one_fault(1000 + k * 2, &images, |d| d[0].faults(|f| f.fail_flush_and_lose(*k)), false));
    let met = met.count();
    println!("{met} of 60 failed flushes were met");
    assert!(met > 30);
}

#[test]
fn a_disk_that_vanishes_takes_nothing_acknowledged_with_it() {
    let images = formatted(1, 1);
    for k in 0..30 {
        let vanish = |d: &[Rc<SimDisk>]| {
            d[0].faults(|f| (0..5000).for_each(|n| f.fail_command(3 + k * 7 + n, IoError::Gone)))
        };
        assert!(one_fault(3000 + k * 2, &images, vanish, false));
    }
}

/// One write that fails is written elsewhere: nobody but who waited for it is told, and the pool goes on.
#[test]
fn single_failed_writes_do_not_lose_anything() {
    let images = formatted(1, 1);
    let stopped = (0..80)
        .filter(|k| {
            let fail = |d: &[Rc<SimDisk>]| d[0].faults(|f| f.fail_command(*k * 3, IoError::Media));
            one_fault(5000 + k * 2, &images, fail, false)
        })
        .count();
    println!("{stopped} of 80 failed commands were told to somebody");
    // Those that hit a flush: after it nothing on the disk is believed. A write that fails is made again.
    assert!(stopped < 40);
}
