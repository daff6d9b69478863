//! What a sync costs, in device commands and in waiting: its own data and nobody else's.

mod common;

use common::*;
use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::vfs::*;
use moraine_fs::{CacheBudget, Filesystem};
use moraine_platform::BlockDevice;
use moraine_sim::trace::Counters;
use moraine_sim::{DiskConfig, World};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// A pool on one disk of this kind.
async fn on(world: &World, config: DiskConfig) -> Filesystem {
    world.disk(POOL_BYTES, config);
    let disks: Vec<Rc<dyn BlockDevice>> =
        world.disks().into_iter().map(|d| d as Rc<dyn BlockDevice>).collect();
    let (platform, options, budget) = (world.platform(), FormatOptions::default(), Budget::default());
    let engine = Engine::format(&platform, &disks, &options, &budget).await.unwrap();
    Filesystem::format_root(&engine).await.unwrap();
    Filesystem::open(engine, CacheBudget::of(32 << 20)).await.unwrap()
}

/// (plain writes, FUA writes, flushes) since `before`.
fn spent(world: &World, before: Counters) -> (u64, u64, u64) {
    let now = world.trace().counters();
    (now.writes - before.writes, now.fua_writes - before.fua_writes, now.flushes - before.flushes)
}

#[test]
fn a_sync_is_one_write_if_small_and_data_flush_entry_if_not() {
    let world = World::new(1);
    world.run(async {
        let fs = on(&world, DiskConfig::default()).await;
        let f = file(&fs, b"f").await;
        fs.sync_all().await.unwrap();
        for n in 0..5 {
            let before = world.trace().counters();
            write(&fs, f, n * 4096, &pattern(n, 4096), Stability::FileSync).await;
            assert_eq!(spent(&world, before), (0, 1, 0), "a block");
        }
        let before = world.trace().counters();
        write(&fs, f, 0, &pattern(9, 1000), Stability::Unstable).await;
        fs.commit(f, 0, 0).await.unwrap();
        assert_eq!(spent(&world, before), (0, 1, 0), "a COMMIT of one page");
        let before = world.trace().counters();
        fs.commit(f, 0, 0).await.unwrap();
        assert_eq!(spent(&world, before), (0, 0, 0), "a COMMIT of nothing");
        let before = world.trace().counters();
        write(&fs, f, 1 << 20, &pattern(9, 128 << 10), Stability::FileSync).await;
        assert_eq!(spent(&world, before), (1, 1, 1), "an extent");
        let before = world.trace().counters();
        for n in 0..64 {
            write(&fs, f, (2 << 20) + n * (128 << 10), &pattern(n, 128 << 10), Stability::Unstable).await;
        }
        fs.commit(f, 0, 0).await.unwrap();
        let (writes, fua, flushes) = spent(&world, before);
        assert!(
            writes >= 64 && fua <= 4 && flushes <= 10,
            "8 MiB: {writes} writes, {fua} FUA, {flushes} flushes"
        );
    });
}

/// One file is written as fast as it can be, on a disk whose flushes take 200 ms; another is synced again and again. Its
/// syncs carry their data in the key: not one of them may wait for a flush.
#[test]
fn a_small_sync_waits_for_nobody_elses_write_back() {
    const FLUSH: u64 = 200_000_000;
    let world = World::new(2);
    world.run(async {
        let slow = DiskConfig { flush_ns: (FLUSH, FLUSH), ..DiskConfig::default() };
        let fs = on(&world, slow).await;
        let (big, small) = (file(&fs, b"big").await, file(&fs, b"small").await);
        fs.sync_all().await.unwrap();
        let stop = Rc::new(Cell::new(false));
        let (stream, told) = (fs.clone(), stop.clone());
        let ended = Rc::new(moraine_platform::sync::Event::new());
        let end = ended.clone();
        let task = async move {
            let mut at = 0;
            while !told.get() {
                let bytes = pattern(at, 256 << 10);
                stream.write(&root(), big, at, data(at, &bytes), Stability::Unstable).await.unwrap();
                at = (at + (256 << 10)) % (64 << 20);
            }
            end.notify();
        };
        world.platform().spawn.spawn("stream", Box::pin(task));
        let clock = world.platform().clock;
        clock.sleep(Duration::from_secs(2)).await;
        let (written, flushes) = (world.trace().counters().written_bytes, world.trace().counters().flushes);
        let mut longest = Duration::ZERO;
        for n in 0..100 {
            let began = clock.now();
            write(&fs, small, 0, &pattern(n, 4000), Stability::FileSync).await;
            longest = longest.max(clock.now().since(began));
            clock.sleep(Duration::from_millis(20)).await;
        }
        let stranger = world.trace().counters().written_bytes - written;
        let flushes = world.trace().counters().flushes - flushes;
        println!("longest sync {longest:?} beside {stranger} bytes and {flushes} flushes");
        assert!(
            stranger > 16 << 20 && flushes >= 5,
            "the stranger was at work: {stranger} bytes, {flushes} flushes"
        );
        assert!(longest < Duration::from_nanos(FLUSH / 4), "a sync took {longest:?}");
        stop.set(true);
        ended.wait().await;
        fs.shutdown().await.unwrap();
    });
}
