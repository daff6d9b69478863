//! The edge of full: an answer of "no space" means that the write did not happen, whether it was to be synced or not; an
//! answer of success that it did. In lock-step with a plain picture of every file.

mod common;

use common::*;
use moraine_fs::repair::{self, Finding, Repair, Reporter};
use moraine_fs::vfs::*;
use moraine_fs::{Filesystem, FsError};
use moraine_sim::{Random, World, WorldConfig};
use std::collections::BTreeMap;

struct Told(Vec<String>);

impl Reporter for Told {
    fn finding(&mut self, finding: &Finding) {
        self.0.push(finding.to_string());
    }
}

#[derive(Default)]
struct Picture {
    files: BTreeMap<Vec<u8>, (ObjectId, Vec<u8>)>,
    full: u64,
    full_synced: u64,
    next: u64,
}

impl Picture {
    fn pick(&self, random: &mut Random) -> Option<Vec<u8>> {
        let names: Vec<_> = self.files.keys().cloned().collect();
        (!names.is_empty()).then(|| random.pick(&names).clone())
    }

    async fn step(&mut self, fs: &Filesystem, random: &mut Random, delete_percent: u32) {
        if random.percent(delete_percent)
            && let Some(name) = self.pick(random)
        {
            // Deleting always works.
            match random.below(3) {
                0 => {
                    let (object, bytes) = self.files.get_mut(&name).unwrap();
                    let size = random.below(bytes.len() as u64 + 1);
                    match fs.setattr(&root(), *object, &with_size(size), None).await {
                        Ok(_) => bytes.truncate(size as usize),
                        Err(e) => panic!("truncate on a full pool: {e}\n{}", fs.engine()),
                    }
                }
                _ => {
                    if let Err(e) = fs.remove(&root(), fs.root(), &name).await {
                        panic!("remove on a full pool: {e}\n{}", fs.engine());
                    }
                    self.files.remove(&name);
                }
            }
            return;
        }
        if self.files.len() < 4 || random.percent(15) {
            let name = format!("f{}", self.next).into_bytes();
            self.next += 1;
            let set = with_mode(0o644);
            match fs.create(&root(), fs.root(), &name, CreateMode::Guarded, &set).await {
                Ok(change) => drop(self.files.insert(name, (change.value.0, Vec::new()))),
                Err(FsError::NoSpace) => {
                    self.full += 1;
                    let found = fs.lookup(&root(), fs.root(), &name).await;
                    assert_eq!(
                        found.unwrap_err(),
                        FsError::NotFound,
                        "a create without space did not happen"
                    );
                }
                Err(e) => panic!("create: {e}"),
            }
            return;
        }
        let name = self.pick(random).unwrap();
        let (object, bytes) = self.files.get_mut(&name).unwrap();
        let before = bytes.clone();
        let end = bytes.len() as u64;
        let at = if random.percent(70) { end } else { random.below(end + 1) };
        let len = *random.pick(&[1, 300, 4096, 20_000, 65_536, 300_000]);
        let stability = *random.pick(&[Stability::Unstable, Stability::Unstable, Stability::FileSync]);
        let new = pattern(random.next_u64(), len);
        match fs.write(&root(), *object, at, data(at, &new), stability).await {
            Ok(change) => {
                assert!(change.value.count as usize == len && change.value.stability >= stability);
                bytes.resize(bytes.len().max(at as usize + len), 0);
                bytes[at as usize..at as usize + len].copy_from_slice(&new);
            }
            Err(FsError::NoSpace) => {
                self.full += 1;
                self.full_synced += u64::from(stability > Stability::Unstable);
                let attr = fs.getattr(*object).await.unwrap();
                assert_eq!(
                    attr.size,
                    before.len() as u64,
                    "a {stability:?} write without space did not happen"
                );
                assert!(
                    content(fs, *object).await == before,
                    "a {stability:?} write without space left something"
                );
            }
            Err(e) => panic!("{stability:?} write: {e}\n{}", fs.engine()),
        }
        if random.percent(10) {
            let name = self.pick(random).unwrap();
            if let Err(e) = fs.commit(self.files[&name].0, 0, 0).await {
                panic!("commit of accepted data: {e}\n{}", fs.engine());
            }
        }
    }

    async fn compare(&self, fs: &Filesystem) {
        for (name, (object, bytes)) in &self.files {
            assert!(content(fs, *object).await == *bytes, "{}", String::from_utf8_lossy(name));
        }
    }
}

fn edge(seed: u64, steps: usize) -> (u64, u64) {
    let world = World::with(WorldConfig { poll_limit: 60_000_000, ..WorldConfig::new(seed) });
    let watched = std::cell::RefCell::new(None);
    let result = world.try_run(async {
        let shape = Shape { pool_bytes: FULL_POOL_BYTES, cache_bytes: 2 << 20, ..Shape::default() };
        let fs = fresh(&world, shape).await;
        *watched.borrow_mut() = Some(fs.clone());
        let mut random = world.random("edge");
        let mut picture = Picture::default();
        for step in 0..steps {
            // Long stretches at the very edge, with rooms made now and then.
            let delete_percent = if step % 400 < 250 { 3 } else { 30 };
            picture.step(&fs, &mut random, delete_percent).await;
        }
        picture.compare(&fs).await;
        if let Err(e) = fs.sync_all().await {
            panic!("sync: {e}\n{}", fs.engine());
        }
        picture.compare(&fs).await;
        let mut told = Told(Vec::new());
        repair::check(fs.engine(), Repair::No, &mut told).await.unwrap();
        assert!(told.0.is_empty(), "{:#?}", told.0);
        let stat = fs.statfs().await.unwrap();
        fs.reap().await.unwrap();
        // The root, /volumes and the files: reaped ones do not count any more.
        assert_eq!(fs.statfs().await.unwrap().inodes_used, 2 + picture.files.len() as u64);
        assert!(stat.inodes_used >= 2 + picture.files.len() as u64);
        fs.shutdown().await.unwrap();
        fs.engine().unmount().await.unwrap();
        (picture.full, picture.full_synced)
    });
    match result {
        Ok(result) => result,
        Err(stall) => panic!("seed {seed}: {stall}\n{}", watched.borrow().as_ref().unwrap().engine()),
    }
}

#[test]
fn an_answer_of_no_space_means_that_nothing_happened() {
    let seeds = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(6);
    let (mut full, mut synced) = (0, 0);
    for seed in 0..seeds {
        let (f, s) = edge(seed, 1500);
        (full, synced) = (full + f, synced + s);
    }
    println!("{full} answers of no space, {synced} to synced writes");
    assert!(full > 100 && synced > 20);
}
