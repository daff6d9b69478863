//! What a sync costs, counted in device commands.

use crate::toy::{Shape, Toy, all, boxed, formatted};
use moraine_sim::trace::Counters;
use moraine_sim::{DiskConfig, SimDisk, World};
use std::rc::Rc;
use std::time::Duration;

const ONE: Shape = Shape { disks: 1, copies: 1 };

fn plugged(world: &World, shape: Shape, config: DiskConfig) -> Vec<Rc<SimDisk>> {
    formatted(shape).into_iter().map(|image| world.disk_with(image, config.clone())).collect()
}

/// (plain writes, FUA writes, flushes) since `before`.
fn spent(world: &World, before: Counters) -> (u64, u64, u64) {
    let now = world.trace().counters();
    (now.writes - before.writes, now.fua_writes - before.fua_writes, now.flushes - before.flushes)
}

/// Runs `action` on a freshly opened pool and says what it cost.
fn cost(shape: Shape, config: DiskConfig, action: impl AsyncFnOnce(&World, &Toy)) -> (u64, u64, u64) {
    let world = World::new(5);
    let disks = plugged(&world, shape, config);
    world.run(async {
        let toy = Toy::mount(&world, &disks).await.unwrap();
        let before = world.trace().counters();
        action(&world, &toy).await;
        spent(&world, before)
    })
}

async fn commit_and_sync(toy: &Toy) {
    let (_, seq) = toy.commit().await.unwrap();
    toy.sync(seq).await.unwrap();
}

#[test]
fn a_lone_sync_is_one_fua_write_or_a_write_and_a_flush() {
    let lone = async |_: &World, toy: &Toy| commit_and_sync(toy).await;
    assert_eq!(cost(ONE, DiskConfig::default(), lone), (0, 1, 0));
    assert_eq!(cost(ONE, DiskConfig { fua: false, ..DiskConfig::default() }, lone), (1, 0, 1));
    let through = DiskConfig { volatile_cache: false, ..DiskConfig::default() };
    assert_eq!(cost(ONE, through, lone), (1, 0, 0));
    let mirrored = Shape { disks: 2, copies: 2 };
    assert_eq!(cost(mirrored, DiskConfig::default(), lone), (0, 2, 0));
    let striped = Shape { disks: 3, copies: 1 };
    assert_eq!(cost(striped, DiskConfig::default(), lone), (0, 1, 0));
}

#[test]
fn syncing_what_is_durable_costs_nothing() {
    let again = async |_: &World, toy: &Toy| {
        let (_, seq) = toy.commit().await.unwrap();
        toy.sync(seq).await.unwrap();
        toy.sync(seq).await.unwrap();
        toy.sync_all().await;
    };
    assert_eq!(cost(ONE, DiskConfig::default(), again), (0, 1, 0));
}

#[test]
fn a_sync_with_data_is_a_write_a_flush_and_a_fua_write() {
    let data = async |_: &World, toy: &Toy| {
        let (_, seq) = toy.commit_data().await.unwrap();
        toy.sync(seq).await.unwrap();
    };
    assert_eq!(cost(ONE, DiskConfig::default(), data), (1, 1, 1));
}

#[test]
fn a_stranger_who_flushed_his_data_himself_costs_the_sync_nothing() {
    let stranger = async |_: &World, toy: &Toy| {
        toy.commit_data().await.unwrap();
        toy.pool.devices().flush(0).await.unwrap();
        commit_and_sync(toy).await;
    };
    assert_eq!(cost(ONE, DiskConfig::default(), stranger), (1, 1, 1));
}

#[test]
fn many_syncs_at_once_share_entries() {
    let many = async |_: &World, toy: &Toy| {
        all((0..64).map(|_| boxed(commit_and_sync(toy))).collect()).await;
        assert_eq!(toy.count(), 64);
    };
    let (plain, fua, flushes) = cost(ONE, DiskConfig::default(), many);
    assert!(plain == 0 && flushes == 0 && fua <= 6, "{plain} {fua} {flushes}");
}

/// While syncs are frequent even entries nobody waits for go through the cache, so that no sync finds an unflushed entry
/// before it. Without that, each sync after a full entry would cost a flush.
#[test]
fn frequent_syncs_never_pay_for_full_entries_of_others() {
    let busy = async |_: &World, toy: &Toy| {
        for _ in 0..2 {
            commit_and_sync(toy).await;
            // Commits of up to 3 KiB fill entries of 32 KiB: some are written without a waiter.
            for _ in 0..45 {
                toy.commit().await.unwrap();
            }
        }
        commit_and_sync(toy).await;
        assert!(toy.journal.counters().entries > toy.journal.counters().flush_entries, "some had no waiter");
        assert_eq!(toy.journal.counters().preflushes, 0);
    };
    let (plain, _, flushes) = cost(ONE, DiskConfig::default(), busy);
    assert_eq!((plain, flushes), (0, 0));
}

#[test]
fn without_syncs_full_entries_are_plain_and_one_flush_covers_them() {
    let quiet = async |world: &World, toy: &Toy| {
        world.platform().clock.sleep(Duration::from_millis(500)).await;
        for _ in 0..60 {
            toy.commit().await.unwrap();
        }
        commit_and_sync(toy).await;
        assert_eq!(toy.journal.counters().preflushes, 1);
    };
    // The clock of the last sync is the mount's.
    let (plain, fua, flushes) = cost(ONE, DiskConfig::default(), quiet);
    assert!(plain >= 1 && fua == 1 && flushes == 1, "{plain} {fua} {flushes}");
}

#[test]
fn what_nobody_waits_for_is_durable_after_a_while() {
    let idle = async |world: &World, toy: &Toy| {
        let (_, seq) = toy.commit().await.unwrap();
        world.platform().clock.sleep(Duration::from_millis(900)).await;
        assert!(toy.journal.flushed_seq() < seq, "nobody asked");
        world.platform().clock.sleep(Duration::from_millis(200)).await;
        assert!(toy.journal.flushed_seq() >= seq);
        world.platform().clock.sleep(Duration::from_secs(3600)).await;
    };
    assert_eq!(cost(ONE, DiskConfig::default(), idle), (0, 1, 0));
}
