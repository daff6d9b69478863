//! A long life in a small journal: the ring turns, the bounds hold, nobody waits for ever.

use crate::toy::{Shape, Toy, all, boxed, formatted};
use moraine_format::{Pos, Tree};
use moraine_fs::journal::{Class, Item, Options, Pressure, item_bytes};
use moraine_fs::superblock::Completeness;
use moraine_sim::{DiskConfig, SimDisk, World};
use std::rc::Rc;
use std::time::Duration;

fn plugged(world: &World, shape: Shape) -> Vec<Rc<SimDisk>> {
    formatted(shape).into_iter().map(|image| world.disk_with(image, DiskConfig::default())).collect()
}

#[test]
fn four_buckets_turn_for_ever_with_many_writers() {
    for (n, shape) in
        [Shape { disks: 1, copies: 1 }, Shape { disks: 3, copies: 2 }, Shape { disks: 2, copies: 1 }]
            .into_iter()
            .enumerate()
    {
        let world = World::new(n as u64);
        let disks = plugged(&world, shape);
        world.run(async {
            let toy = Toy::mount(&world, &disks).await.unwrap();
            let writers = (0..16).map(|w| {
                let toy = &toy;
                let mut random = world.random(&format!("writer {w}"));
                boxed(async move {
                    for _ in 0..30 {
                        let (_, seq) = toy.commit().await.unwrap();
                        if random.percent(40) {
                            toy.sync(seq).await.unwrap();
                        }
                    }
                })
            });
            all(writers.collect()).await;
            assert_eq!(toy.count(), 480);
            let counters = toy.journal.counters();
            assert!(counters.bytes > 768 << 10, "{} bytes: the ring turned", counters.bytes);
            assert!(counters.waits > 0, "somebody had to wait");
            toy.sync_all().await;
            let again = Toy::mount(&world, &disks).await.unwrap();
            assert_eq!(again.count(), 480);
        });
    }
}

/// Forty mounts that make no progress of their own, each cut off: the next still opens.
#[test]
fn many_mounts_in_a_row_never_use_up_the_ring() {
    let world = World::new(7);
    let disks = plugged(&world, Shape { disks: 1, copies: 1 });
    world.run(async {
        let toy = Toy::mount(&world, &disks).await.unwrap();
        for _ in 0..10 {
            toy.commit().await.unwrap();
        }
        toy.sync_all().await;
        toy.kill(&disks).await;
        for _ in 0..40 {
            let toy = Toy::mount(&world, &disks).await.unwrap();
            assert_eq!(toy.count(), 10);
            toy.kill(&disks).await;
        }
        let toy = Toy::mount(&world, &disks).await.unwrap();
        let (_, seq) = toy.commit().await.unwrap();
        toy.sync(seq).await.unwrap();
        assert_eq!(Toy::mount(&world, &disks).await.unwrap().count(), 11);
    });
}

#[test]
fn normal_commits_stop_first_and_interior_ones_last() {
    let world = World::new(8);
    let disks = plugged(&world, Shape { disks: 1, copies: 1 });
    world.run(async {
        let toy = Toy::mount(&world, &disks).await.unwrap();
        let journal = &toy.journal;
        let kept = journal.pin(journal.open_seq());
        let classes = [Class::Normal, Class::Delete, Class::CopyGc, Class::Reclaim, Class::Interior];
        let mut fills = vec![];
        for class in classes {
            // Everything is pinned: only room counts. Each commit is synced, so each takes a block.
            while let Some(mut room) = journal.try_reserve(class, item_bytes(100)).unwrap() {
                let item = Item::put(Tree::Inodes, 0, Pos::new(1, 1, 1), &[1; 100]);
                let seq = journal.append(&mut room, &[item]);
                drop(room);
                toy.sync(seq).await.unwrap();
            }
            fills.push(journal.fill_permille());
        }
        assert!(fills.windows(2).all(|w| w[0] < w[1]), "{fills:?}");
        assert!((600..=760).contains(&fills[0]), "normal commits leave a quarter: {fills:?}");
        assert_eq!(journal.pressure(), Pressure::Urgent);
        kept.release();
        toy.let_go();
        let room = journal.reserve(Class::Normal, item_bytes(100)).await.unwrap();
        drop(room);
        assert!(
            journal.fill_permille() < 500,
            "unpinned entries are given up as soon as somebody needs room"
        );
    });
}

#[test]
fn the_bound_on_dirty_bytes_holds_whatever_the_ring_has_room_for() {
    let world = World::new(9);
    let disks = plugged(&world, Shape { disks: 1, copies: 1 });
    world.run(async {
        let options = Options { dirty_bytes_max: 16 << 10, ..Options::default() };
        let toy = Toy::mount_with(&world, &disks, options, Completeness::Complete).await.unwrap();
        let kept = toy.journal.pin(toy.journal.open_seq());
        let mut appended = 0;
        let bytes = item_bytes(1000);
        while let Some(mut room) = toy.journal.try_reserve(Class::Normal, bytes).unwrap() {
            toy.journal
                .append(&mut room, &[Item::put(Tree::Inodes, 0, Pos::new(appended, 0, 0), &[1; 1000])]);
            appended += 1;
        }
        assert!((8..=12).contains(&appended), "{appended} commits of 1 KiB in 16 KiB less a quarter");
        kept.release();
        toy.let_go();
        drop(toy.journal.reserve(Class::Normal, bytes).await.unwrap());
    });
}

#[test]
fn who_waits_is_served_in_order_and_who_gives_up_leaves_the_line() {
    let world = World::new(10);
    let disks = plugged(&world, Shape { disks: 1, copies: 1 });
    world.run(async {
        let toy = Toy::mount(&world, &disks).await.unwrap();
        let journal = &toy.journal;
        let mut held = vec![];
        while let Some(room) = journal.try_reserve(Class::Normal, 4000).unwrap() {
            held.push(room);
        }
        let order = std::cell::RefCell::new(vec![]);
        let waiter = |n: usize, bytes: usize| {
            let order = &order;
            boxed(async move {
                let room = journal.reserve(Class::Normal, bytes).await.unwrap();
                order.borrow_mut().push(n);
                drop(room);
            })
        };
        // Polled once and dropped: it must not block the others.
        let mut abandoned = waiter(9, 8000);
        std::future::poll_fn(|cx| {
            assert!(abandoned.as_mut().poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        drop(abandoned);
        let release = boxed(async {
            for room in held {
                world.platform().clock.sleep(Duration::from_millis(1)).await;
                drop(room);
            }
        });
        all(vec![waiter(0, 8000), waiter(1, 100), waiter(2, 100), release]).await;
        assert_eq!(order.into_inner(), [0, 1, 2], "small requests do not overtake a large one for ever");
    });
}

#[test]
fn dropping_a_reservation_at_any_point_gives_everything_back() {
    let world = World::new(11);
    let disks = plugged(&world, Shape { disks: 1, copies: 1 });
    world.run(async {
        let toy = Toy::mount(&world, &disks).await.unwrap();
        let journal = &toy.journal;
        let before = journal.fill_permille();
        for appended in 0..3 {
            let mut room = journal.reserve(Class::Normal, 8000).await.unwrap();
            if appended > 0 {
                let seq = journal.bind(&mut room);
                for n in 1..appended {
                    let item = Item::put(Tree::Inodes, 0, Pos::new(n, 0, 0), b"x");
                    assert_eq!(journal.append(&mut room, &[item]), seq);
                }
            }
            drop(room);
        }
        toy.sync_all().await;
        toy.commit().await.unwrap();
        journal.publish_tail().await.unwrap();
        world.platform().clock.sleep(Duration::from_secs(2)).await;
        assert!(journal.fill_permille() <= before + 60, "{} then {}", before, journal.fill_permille());
        assert!(journal.to_string().contains("reserved 0 of the ring and 0 of memory"), "{journal}");
    });
}

/// Every command takes a thousand times as long, the ring has four buckets: in each virtual minute something gets durable.
#[test]
fn a_crawling_device_and_a_full_ring_still_make_progress_every_minute() {
    let world = World::new(12);
    let disks = plugged(&world, Shape { disks: 1, copies: 1 });
    world.run(async {
        let toy = Toy::mount(&world, &disks).await.unwrap();
        toy.size.set(Some(3000));
        disks[0].faults(|f| f.slow_factor = 1000);
        let clock = world.platform().clock;
        let end = clock.now() + Duration::from_secs(1800);
        let writer = || {
            boxed(async {
                while clock.now() < end && toy.count() < 490 {
                    let (_, seq) = toy.commit().await.unwrap();
                    toy.sync(seq).await.unwrap();
                }
            })
        };
        let watch = boxed(async {
            let mut before = toy.journal.flushed_seq();
            while clock.now() < end && toy.count() < 480 {
                clock.sleep(Duration::from_secs(60)).await;
                assert!(toy.journal.flushed_seq() > before, "a minute without progress: {}", toy.journal);
                before = toy.journal.flushed_seq();
            }
        });
        all(vec![writer(), writer(), writer(), writer(), watch]).await;
        assert!(toy.count() > 300 && toy.journal.counters().bytes > 512 << 10, "{} commits", toy.count());
    });
}

#[test]
fn a_seed_is_a_run_to_the_last_device_command() {
    let run = || {
        let world = World::new(13);
        let disks = plugged(&world, Shape { disks: 3, copies: 2 });
        world.run(async {
            let toy = Toy::mount(&world, &disks).await.unwrap();
            let writer = |n: u64| {
                let toy = &toy;
                boxed(async move {
                    for i in 0..40 {
                        let (_, seq) =
                            if i % 3 == n { toy.commit_data().await } else { toy.commit().await }.unwrap();
                        if i % 4 == n {
                            toy.sync(seq).await.unwrap();
                        }
                    }
                })
            };
            all(vec![writer(0), writer(1), writer(2)]).await;
        });
        world.trace().hash()
    };
    assert_eq!(run(), run());
}
