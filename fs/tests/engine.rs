//! The engine in simulated worlds: what was committed survives as a prefix, whatever is cut where.

use moraine_format::{Pos, Tree};
use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::repair::{self, Finding, Reporter};
use moraine_fs::tx::Class;
use moraine_fs::vfs::Seq;
use moraine_platform::BlockDevice;
use moraine_sim::{DiskConfig, Ended, Image, Random, World, WorldConfig};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

type Map = BTreeMap<Pos, Vec<u8>>;

const DISK_BYTES: u64 = 128 << 20;

fn options() -> FormatOptions {
    FormatOptions {
        bucket_bytes: 64 << 10,
        node_bytes: 32 << 10,
        journal_bytes: 512 << 10,
        ..FormatOptions::default()
    }
}

fn budget(keys_max: usize) -> Budget {
    Budget { node_cache_bytes: 256 << 10, node_keys_max: keys_max, ..Budget::default() }
}

fn world(seed: u64) -> World {
    moraine_platform::log::set_sink(|level, room, text| {
        if std::env::var("LOG").is_ok() {
            eprintln!("{} {room}: {text}", level.name());
        }
    });
    World::with(WorldConfig { poll_limit: 3_000_000, ..WorldConfig::new(seed) })
}

fn dyn_disks(world: &World) -> Vec<Rc<dyn BlockDevice>> {
    world.disks().into_iter().map(|d| d as Rc<dyn BlockDevice>).collect()
}

/// Nothing in the xattr tree has triggers, so its keys can be anything.
const TREE: Tree = Tree::Xattrs;

async fn content(engine: &Engine) -> Map {
    let mut map = Map::new();
    let mut from = Pos::MIN;
    loop {
        let (batch, _) = engine
            .transact(Class::Normal, async |tx| {
                let mut batch = Vec::new();
                let mut at = from;
                while let Some((pos, value)) = tx.first(TREE, at..=Pos::MAX).await? {
                    batch.push((pos, value.to_vec()));
                    match pos.successor() {
                        Some(next) if batch.len() < 100 => at = next,
                        _ => break,
                    }
                }
                Ok(batch)
            })
            .await
            .unwrap();
        let Some((last, _)) = batch.last() else { return map };
        from = last.successor().unwrap();
        map.extend(batch);
    }
}

struct Silent(Vec<String>);

impl Reporter for Silent {
    fn finding(&mut self, finding: &Finding) {
        self.0.push(finding.to_string());
    }
}

async fn assert_sound(engine: &Engine) {
    let mut report = Silent(Vec::new());
    let summary = repair::check_space(engine, &mut report).await.unwrap();
    assert!(report.0.is_empty(), "{:#?} {summary:?}", report.0);
}

/// One random transaction on both engine and map.
async fn one(engine: &Engine, map: &mut Map, random: &mut Random, spread: u64, value_max: u64) -> Seq {
    let mut changes: BTreeMap<Pos, Option<Vec<u8>>> = BTreeMap::new();
    for _ in 0..random.between(1, 6) {
        let pos = Pos::new(random.below(spread), random.below(20), 0);
        let value = (!random.percent(40)).then(|| {
            let mut value = vec![0; random.below(value_max) as usize];
            random.fill(&mut value);
            value
        });
        changes.insert(pos, value);
    }
    let ((), seq) = engine
        .transact(Class::Normal, async |tx| {
            for (pos, value) in &changes {
                match value {
                    Some(value) => tx.put(TREE, *pos, value.as_slice()),
                    None => tx.delete(TREE, *pos),
                }
            }
            Ok(())
        })
        .await
        .unwrap();
    for (pos, value) in changes {
        match value {
            Some(value) => map.insert(pos, value),
            None => map.remove(&pos),
        };
    }
    seq
}

#[test]
fn keys_survive_an_unmount_and_trees_grow_and_shrink() {
    for keys_max in [12, 1000] {
        let world = world(7);
        world.disk(DISK_BYTES, DiskConfig::default());
        let disks = dyn_disks(&world);
        let watched: RefCell<Option<Engine>> = RefCell::new(None);
        let result = world.try_run(async {
            Engine::format(&world.platform(), &disks, &options(), &budget(1000))
                .await
                .unwrap()
                .unmount()
                .await
                .unwrap();
            let mut map = Map::new();
            let mut random = world.random("ops");
            for round in 0..4 {
                let engine = Engine::mount(&world.platform(), &disks, &budget(keys_max)).await.unwrap();
                *watched.borrow_mut() = Some(engine.clone());
                assert_eq!(content(&engine).await, map);
                for _ in 0..400 {
                    one(&engine, &mut map, &mut random, if round == 2 { 3 } else { 200 }, 200).await;
                }
                assert_eq!(content(&engine).await, map);
                assert_sound(&engine).await;
                engine.unmount().await.unwrap();
            }
            let engine = Engine::mount(&world.platform(), &disks, &budget(keys_max)).await.unwrap();
            while let Some(pos) = map.keys().next().copied() {
                engine
                    .transact(Class::Delete, async |tx| {
                        tx.delete(TREE, pos);
                        Ok(())
                    })
                    .await
                    .unwrap();
                map.remove(&pos);
            }
            engine.unmount().await.unwrap();
            let engine = Engine::mount(&world.platform(), &disks, &budget(keys_max)).await.unwrap();
            assert!(content(&engine).await.is_empty());
            assert_sound(&engine).await;
        });
        if let Err(stall) = result {
            panic!("{stall}\n{}", watched.borrow().as_ref().unwrap());
        }
    }
}

/// Runs transactions until the power is cut after `commands` device commands; returns the disks' content and what
/// must be there: each state after a transaction, and how many of these states were known durable.
fn run_and_cut(
    seed: u64,
    image: Option<Image>,
    before: &Map,
    commands: u64,
) -> (Vec<Image>, Vec<Map>, usize) {
    let world = world(seed);
    match image {
        Some(image) => world.disk_with(image, DiskConfig::default()),
        None => world.disk(DISK_BYTES, DiskConfig::default()),
    };
    let disks = dyn_disks(&world);
    let fresh = before.is_empty();
    let history = RefCell::new(vec![before.clone()]);
    let durable = Cell::new(0);
    let mut random = world.random("ops");
    let keys_max = *random.pick(&[12, 24, 1000]);
    let run = async {
        if fresh {
            Engine::format(&world.platform(), &disks, &options(), &budget(1000))
                .await
                .unwrap()
                .unmount()
                .await
                .unwrap();
        }
        let engine = Engine::mount(&world.platform(), &disks, &budget(keys_max)).await.unwrap();
        let mut map = before.clone();
        loop {
            let spread = *random.pick(&[3, 60]);
            let seq = one(&engine, &mut map, &mut random, spread, 600).await;
            history.borrow_mut().push(map.clone());
            if random.percent(10) {
                let upto = history.borrow().len() - 1;
                engine.durable(seq).await.unwrap();
                durable.set(upto);
            }
        }
    };
    match world.run_to_power_cut(run, commands) {
        Ok(Ended::PowerCut) => {}
        Ok(Ended::Done(())) => unreachable!(),
        Err(stall) => panic!("seed {seed}: {stall}"),
    }
    (world.crash(), history.into_inner(), durable.get())
}

#[test]
fn after_a_power_cut_a_prefix_survives_never_shorter_than_what_was_durable() {
    let seeds = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(25);
    for seed in 0..seeds {
        let mut random = Random::new(seed);
        let mut before = Map::new();
        let mut image = None;
        for round in 0..4 {
            let commands = random.between(150, 900);
            let (images, history, durable) = run_and_cut(seed * 10 + round, image.take(), &before, commands);
            let world = world(seed * 10 + round + 5);
            world.disk_with(images[0].clone(), DiskConfig::default());
            let disks = dyn_disks(&world);
            let watched: RefCell<Option<Engine>> = RefCell::new(None);
            let found = world.try_run(async {
                let engine = match Engine::mount(&world.platform(), &disks, &budget(16)).await {
                    Ok(engine) => engine,
                    Err(e) => panic!("seed {seed} round {round}: mount: {e}"),
                };
                *watched.borrow_mut() = Some(engine.clone());
                let found = content(&engine).await;
                assert_sound(&engine).await;
                engine.unmount().await.unwrap();
                found
            });
            let found = match found {
                Ok(found) => found,
                Err(stall) => {
                    panic!("seed {seed} round {round}: {stall}\n{}", watched.borrow().as_ref().unwrap())
                }
            };
            let at = history.iter().rposition(|state| *state == found);
            match at {
                Some(at) => assert!(
                    at >= durable,
                    "seed {seed} round {round}: state {at} of {}, durable {durable}",
                    history.len()
                ),
                None => panic!(
                    "seed {seed} round {round}: no state of {} matches, durable {durable}",
                    history.len()
                ),
            }
            before = found;
            image = Some(world.disks()[0].durable_image());
        }
    }
}

/// What writes history back commits too: were there no room for that under the smaller bound, nothing would ever go on.
#[test]
fn a_mount_with_less_memory_takes_up_what_one_with_more_left_in_the_journal() {
    const LESS: u64 = 64 << 10;
    let (mut map, mut left) = (Map::new(), 0);
    let world_before = world(11);
    world_before.disk(DISK_BYTES, DiskConfig::default());
    let disks = dyn_disks(&world_before);
    world_before.run(async {
        let options = FormatOptions { journal_bytes: 4 << 20, ..options() };
        let made = Engine::format(&world_before.platform(), &disks, &options, &budget(1000)).await.unwrap();
        made.unmount().await.unwrap();
        let engine = Engine::mount(&world_before.platform(), &disks, &budget(1000)).await.unwrap();
        let mut random = world_before.random("ops");
        let mut last = Seq::default();
        for _ in 0..600 {
            last = one(&engine, &mut map, &mut random, 60, 600).await;
            left += 600;
        }
        engine.durable(last).await.unwrap();
    });
    assert!(left > 4 * LESS, "{left} bytes of history");
    let world = world(12);
    world.disk_with(world_before.disks()[0].durable_image(), DiskConfig::default());
    let disks = dyn_disks(&world);
    let watched: RefCell<Option<Engine>> = RefCell::new(None);
    let result = world.try_run(async {
        let mut small = budget(1000);
        small.journal.dirty_bytes_max = LESS;
        let engine = Engine::mount(&world.platform(), &disks, &small).await.unwrap();
        *watched.borrow_mut() = Some(engine.clone());
        let mut random = world.random("ops");
        for _ in 0..300 {
            one(&engine, &mut map, &mut random, 60, 600).await;
        }
        assert_eq!(content(&engine).await, map);
        assert_sound(&engine).await;
        engine.unmount().await.unwrap();
    });
    if let Err(stall) = result {
        panic!("{stall}\n{}", watched.borrow().as_ref().unwrap());
    }
}

/// Four keys a node would never be clean; so few are refused where the pool is opened.
#[test]
fn nodes_of_too_few_keys_are_refused() {
    use moraine_fs::engine::{NODE_KEYS_MIN, PoolError, RunError};
    let world = world(3);
    world.disk(DISK_BYTES, DiskConfig::default());
    let disks = dyn_disks(&world);
    world.run(async {
        let made =
            Engine::format(&world.platform(), &disks, &options(), &budget(NODE_KEYS_MIN)).await.unwrap();
        made.unmount().await.unwrap();
        let refused =
            Engine::mount(&world.platform(), &disks, &budget(NODE_KEYS_MIN - 1)).await.err().unwrap();
        assert!(matches!(refused, PoolError::Run(RunError::NodeKeys(11))), "{refused}");
        Engine::mount(&world.platform(), &disks, &budget(NODE_KEYS_MIN))
            .await
            .unwrap()
            .unmount()
            .await
            .unwrap();
    });
}
