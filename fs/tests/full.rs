//! Pools that fill up: space comes back, nothing hangs, everything stays right.

mod common;

use common::{Shape, content, data, file, fresh, pattern, root};
use moraine_fs::repair::{self, Finding, Repair, Reporter};
use moraine_fs::vfs::*;
use moraine_fs::{Filesystem, FsError};
use moraine_sim::{World, WorldConfig};

const BLOCK: u64 = 4096;

struct Told(Vec<String>);

impl Reporter for Told {
    fn finding(&mut self, finding: &Finding) {
        self.0.push(finding.to_string());
    }
}

async fn assert_sound(fs: &Filesystem) {
    fs.sync_all().await.unwrap();
    let mut told = Told(Vec::new());
    repair::check(fs.engine(), Repair::No, &mut told).await.unwrap();
    assert!(told.0.is_empty(), "{:#?}", told.0);
}

fn shape() -> Shape {
    Shape { pool_bytes: 24 << 20, cache_bytes: 2 << 20, ..Shape::default() }
}

fn in_world<T>(seed: u64, test: impl AsyncFnOnce(&World, Filesystem) -> T) -> T {
    let world = World::with(WorldConfig { poll_limit: 30_000_000, ..WorldConfig::new(seed) });
    let watched = std::cell::RefCell::new(None);
    let result = world.try_run(async {
        let fs = fresh(&world, shape()).await;
        *watched.borrow_mut() = Some(fs.clone());
        let result = test(&world, fs.clone()).await;
        fs.shutdown().await.unwrap();
        fs.engine().unmount().await.unwrap();
        result
    });
    match result {
        Ok(result) => result,
        Err(stall) => panic!("{stall}\n{}", watched.borrow().as_ref().unwrap().engine()),
    }
}

#[test]
fn random_overwrites_of_many_times_the_pool_never_run_out_of_space() {
    in_world(1, async |world, fs| {
        let mut random = world.random("overwrites");
        let stat = fs.statfs().await.unwrap();
        let blocks = stat.available * 6 / 10 / BLOCK;
        let object = file(&fs, b"volume").await;
        let mut versions = vec![0u64; blocks as usize];
        let mut round = 0;
        let mut written = 0;
        while written < 4 * stat.total {
            round += 1;
            let at = random.below(blocks);
            let len = random.between(1, 8).min(blocks - at);
            let bytes: Vec<u8> =
                (at..at + len).flat_map(|b| pattern(round * 1_000_003 + b, BLOCK as usize)).collect();
            let offset = at * BLOCK;
            if let Err(e) = fs.write(&root(), object, offset, data(offset, &bytes), Stability::Unstable).await
            {
                panic!("after {written} bytes: {e}\n{}", fs.engine());
            }
            (at..at + len).for_each(|b| versions[b as usize] = round);
            written += len * BLOCK;
            if round % 200 == 0 {
                fs.commit(object, 0, 0).await.unwrap();
            }
        }
        let all = content(&fs, object).await;
        for (b, version) in versions.iter().enumerate().filter(|(_, v)| **v > 0) {
            let at = b * BLOCK as usize;
            if at < all.len() {
                let should = pattern(version * 1_000_003 + b as u64, BLOCK as usize);
                assert!(all[at..at + BLOCK as usize] == should, "block {b}");
            }
        }
        assert_sound(&fs).await;
    });
}

#[test]
fn a_full_pool_says_so_and_deleting_makes_room_again_and_again() {
    in_world(2, async |world, fs| {
        let mut random = world.random("fill");
        let mut capacity = Vec::new();
        for _ in 0..6 {
            let mut names: Vec<Vec<u8>> = Vec::new();
            let mut bytes = 0u64;
            'fill: for n in 0u64.. {
                let name = format!("f{n}").into_bytes();
                let set = common::with_mode(0o644);
                let made = fs.create(&root(), fs.root(), &name, CreateMode::Guarded, &set).await;
                let object = match made {
                    Ok(change) => change.value.0,
                    Err(FsError::NoSpace) => break,
                    Err(e) => panic!("create: {e}"),
                };
                names.push(name);
                let len = random.between(1, 200_000);
                let mut at = 0;
                while at < len {
                    let part = (len - at).min(64 << 10);
                    let piece = pattern(n, part as usize);
                    match fs.write(&root(), object, at, data(at, &piece), Stability::Unstable).await {
                        Ok(_) => bytes += part,
                        Err(FsError::NoSpace) => break 'fill,
                        Err(e) => panic!("write: {e}"),
                    }
                    at += part;
                }
            }
            // What was accepted can be made durable: write-back never runs out of space.
            if let Err(e) = fs.sync_all().await {
                panic!("sync: {e}\n{}", fs.engine());
            }
            capacity.push(bytes);
            for name in &names {
                fs.remove(&root(), fs.root(), name).await.unwrap();
            }
            fs.sync_all().await.unwrap();
        }
        let (least, most) = (capacity.iter().min().unwrap(), capacity.iter().max().unwrap());
        assert!(*least * 10 > *most * 7, "space gets lost: {capacity:?}");
        assert_sound(&fs).await;
    });
}
