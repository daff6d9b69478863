//! Failing devices and rotting journals: no wrong ack, no start on a shortened history.

use crate::toy::{BUCKET, DISK, Shape, Toy, formatted};
use moraine_fs::journal::{JournalError, Options, RecoverError};
use moraine_fs::superblock::Completeness;
use moraine_platform::{BlockDevice, Buf, IoError};
use moraine_sim::{DiskConfig, Image, SimDisk, World};
use std::cell::Cell;
use std::rc::Rc;

fn plugged(world: &World, images: &[Image]) -> Vec<Rc<SimDisk>> {
    images.iter().map(|image| world.disk_with(image.clone(), DiskConfig::default())).collect()
}

/// Where entries lie on a disk, as (offset, bytes), oldest lap first: blocks of the journal that are not zero.
async fn journal_blocks(disk: &SimDisk) -> Vec<u64> {
    let mut used = Vec::new();
    for offset in (3 * BUCKET..7 * BUCKET).step_by(4096) {
        let done = disk.read(offset, Buf::zeroed(4096).unwrap()).await;
        if done.buf.iter().any(|b| *b != 0) {
            used.push(offset);
        }
    }
    used
}

#[test]
fn a_failed_flush_or_write_ends_the_journal_and_the_waiters_know() {
    type Break = fn(&SimDisk);
    let breaks: [(Break, bool); 4] = [
        (|d| d.faults(|f| f.fail_flush_and_lose(0)), true),
        (|d| d.faults(|f| (0..3).for_each(|n| f.fail_command(n, IoError::Media))), false),
        (|d| d.faults(|f| f.fail_command(0, IoError::Timeout)), false),
        (|d| d.faults(|f| f.vanished = true), false),
    ];
    for (n, (break_it, with_data)) in breaks.into_iter().enumerate() {
        let world = World::new(n as u64);
        let disks = plugged(&world, &formatted(Shape { disks: 1, copies: 1 }));
        world.run(async {
            let toy = Toy::mount(&world, &disks).await.unwrap();
            let told = Rc::new(Cell::new(0));
            let hook = told.clone();
            toy.journal.on_failure(move |_| hook.set(hook.get() + 1));
            let (_, first) = toy.commit().await.unwrap();
            toy.sync(first).await.unwrap();
            let (_, seq) = if with_data { toy.commit_data().await } else { toy.commit().await }.unwrap();
            break_it(&disks[0]);
            let error = toy.journal.durable(seq).await.unwrap_err();
            let expected = if with_data { JournalError::Data(0) } else { JournalError::Device(0) };
            assert_eq!(error, expected);
            assert_eq!(told.get(), 1, "the write verifier changes once");
            // The next flush would succeed: it must not be believed.
            disks[0].faults(|f| f.vanished = false);
            assert_eq!(toy.journal.durable(seq).await, Err(error));
            assert!(toy.commit().await.is_err(), "the pool is read-only");
            assert!(toy.journal.durable(first).await.is_ok(), "what was durable stays so");
        });
    }
}

/// One write that fails is made again, and nobody hears of it.
#[test]
fn a_write_that_fails_once_is_written_again() {
    for fails in [1, 2] {
        let world = World::new(3 + fails);
        let disks = plugged(&world, &formatted(Shape { disks: 1, copies: 1 }));
        world.run(async {
            let toy = Toy::mount(&world, &disks).await.unwrap();
            let (_, seq) = toy.commit().await.unwrap();
            disks[0].faults(|f| (0..fails).for_each(|n| f.fail_command(n, IoError::Device)));
            toy.sync(seq).await.unwrap();
            let count = toy.count();
            toy.kill(&disks).await;
            assert_eq!(Toy::mount(&world, &disks).await.unwrap().count(), count);
        });
    }
}

#[test]
fn with_two_copies_one_device_may_fail_and_the_second_failure_ends_it() {
    for fault in 0..3 {
        let world = World::new(10 + fault);
        let disks = plugged(&world, &formatted(Shape { disks: 2, copies: 2 }));
        world.run(async {
            let toy = Toy::mount(&world, &disks).await.unwrap();
            let (_, seq) = toy.commit().await.unwrap();
            toy.sync(seq).await.unwrap();
            match fault {
                0 => disks[0].faults(|f| f.fail_command(0, IoError::Timeout)),
                1 => disks[0].faults(|f| f.vanished = true),
                _ => toy.pool.devices().fail(0, "told so"),
            }
            for _ in 0..5 {
                let (_, seq) = toy.commit().await.unwrap();
                toy.sync(seq).await.unwrap();
            }
            assert!(!toy.pool.devices().is_healthy(0));
            let count = toy.count();
            // Both disks come back; the second still has everything.
            disks[0].faults(|f| f.vanished = false);
            let again = Toy::mount(&world, &disks).await.unwrap();
            assert_eq!(again.count(), count);
            let (_, seq) = again.commit().await.unwrap();
            disks.iter().for_each(|d| d.faults(|f| f.vanished = true));
            assert!(again.sync(seq).await.is_err());
        });
    }
}

/// Rots each block of the journal in turn, on one copy and on all: with another copy nothing is lost; without one the
/// start is refused, or what is missing was never acknowledged by anything later.
#[test]
fn rot_of_any_block_is_survived_by_a_copy_or_refused() {
    let mut refused = 0;
    for copies in [1, 2] {
        let shape = Shape { disks: usize::from(copies), copies };
        let (images, count) = {
            let world = World::new(20);
            let disks = plugged(&world, &formatted(shape));
            let count = world.run(async {
                let toy = Toy::mount(&world, &disks).await.unwrap();
                for _ in 0..6 {
                    let (_, seq) = toy.commit().await.unwrap();
                    toy.sync(seq).await.unwrap();
                }
                toy.count()
            });
            (disks.iter().map(|d| d.durable_image()).collect::<Vec<_>>(), count)
        };
        let blocks = {
            let world = World::new(21);
            let disks = plugged(&world, &images);
            world.run(journal_blocks(&disks[0]))
        };
        assert!(blocks.len() >= 7);
        for (n, offset) in blocks.iter().enumerate() {
            let last = n == blocks.len() - 1;
            for everywhere in [false, true] {
                let world = World::new(22);
                let mut rotten = images.clone();
                let victims = if everywhere { rotten.len() } else { 1 };
                rotten.iter_mut().take(victims).for_each(|image| image.flip(offset + 777 % 64, 4));
                let disks = plugged(&world, &rotten);
                let outcome = world.run(Toy::mount(&world, &disks));
                match outcome {
                    Ok(toy) if everywhere || copies == 1 => {
                        assert!(last, "only the newest entry has no witness");
                        assert_eq!(toy.count(), count - 1);
                    }
                    Ok(toy) => assert_eq!(toy.count(), count, "the other copy serves"),
                    Err(RecoverError::Rot { claimed, .. }) => {
                        assert!((everywhere || copies == 1) && !last, "block {n}, claimed {claimed}");
                        refused += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
    }
    assert!(refused >= 18);
}

/// The superblock's floor bears witness where no later entry does.
#[test]
fn after_a_clean_shutdown_a_rotten_last_entry_is_noticed() {
    let world = World::new(30);
    let disks = plugged(&world, &formatted(Shape { disks: 1, copies: 1 }));
    let blocks = world.run(async {
        let toy = Toy::mount(&world, &disks).await.unwrap();
        toy.commit().await.unwrap();
        let end = toy.journal.shut_down().await.unwrap().seq();
        toy.pool.update(|sb| (sb.clean, sb.journal_floor) = (true, end.0)).await.unwrap();
        journal_blocks(&disks[0]).await
    });
    let mut image = disks[0].durable_image();
    let world = World::new(31);
    world.run(Toy::mount(&world, &plugged(&world, &[image.clone()]))).unwrap();
    image.flip(blocks.last().unwrap() + 100, 1);
    let world = World::new(32);
    let outcome = world.run(Toy::mount(&world, &plugged(&world, &[image])));
    assert!(matches!(outcome.err(), Some(RecoverError::Rot { .. })));
}

#[test]
fn unreadable_parts_of_a_journal_device_do_not_hide_the_rest() {
    let shape = Shape { disks: 2, copies: 2 };
    let world = World::new(40);
    let disks = plugged(&world, &formatted(shape));
    world.run(async {
        let toy = Toy::mount(&world, &disks).await.unwrap();
        for _ in 0..4 {
            let (_, seq) = toy.commit().await.unwrap();
            toy.sync(seq).await.unwrap();
        }
        disks[0].faults(|f| f.make_unreadable(3 * BUCKET + 8192, 4096));
        let again = Toy::mount(&world, &disks).await.unwrap();
        assert_eq!(again.count(), 4);
        assert!(again.report.unreadable_bytes >= 4096);
    });
}

/// With R copies, R missing journal devices may hide acknowledged entries without a trace.
#[test]
fn a_journal_is_read_only_with_fewer_devices_missing_than_copies() {
    for (disks, copies) in [(2, 1), (2, 2), (3, 2), (3, 3)] {
        let shape = Shape { disks, copies };
        for missing in 0..disks {
            let world = World::new(50);
            let plugged = plugged(&world, &formatted(shape));
            world.run(async {
                // The superblock refuses first, so here all are present, but some cannot be found by the journal.
                let toy = Toy::mount(&world, &plugged).await.unwrap();
                let (_, seq) = toy.commit().await.unwrap();
                toy.sync(seq).await.unwrap();
                let superblock = toy.pool.current();
                let present = (missing..disks).map(|i| (i as u8, plugged[i].clone() as Rc<dyn BlockDevice>));
                let devices = moraine_fs::device::Devices::new(world.platform().spawn, present.collect());
                let outcome = moraine_fs::journal::read_history(&devices, &superblock).await;
                if missing < usize::from(copies) {
                    assert_eq!(outcome.unwrap().end(), seq, "{shape:?}, {missing} missing");
                } else {
                    let expected = RecoverError::TooManyMissing { missing, replicas: usize::from(copies) };
                    assert_eq!(outcome.unwrap_err(), expected);
                }
            });
        }
    }
}

/// Free space of the journal full of valid-looking strangers: entries of another pool, of an earlier pool on the same
/// disk, and noise.
#[test]
fn entries_of_other_pools_and_noise_are_ignored() {
    let donor = {
        let world = World::new(60);
        let disks = plugged(&world, &formatted(Shape { disks: 1, copies: 1 }));
        world.run(async {
            let toy = Toy::mount(&world, &disks).await.unwrap();
            for _ in 0..20 {
                let (_, seq) = toy.commit().await.unwrap();
                toy.sync(seq).await.unwrap();
            }
        });
        disks[0].durable_image()
    };
    let world = World::new(61);
    let mut journal = vec![0; (4 * BUCKET) as usize];
    donor.read(3 * BUCKET, &mut journal);
    for (n, byte) in journal[3 * BUCKET as usize..].iter_mut().enumerate() {
        *byte = ((n * 31) >> 2) as u8;
    }
    let disk = world.disk(DISK, DiskConfig::default());
    world.run(async {
        let mut buf = Buf::zeroed(journal.len()).unwrap();
        buf.copy_from_slice(&journal);
        disk.write(3 * BUCKET, buf, moraine_platform::Fua::Yes).await.result.unwrap();
        let options = moraine_fs::superblock::FormatOptions {
            bucket_bytes: BUCKET,
            node_bytes: 32 << 10,
            journal_bytes: 4 * BUCKET,
            ..Default::default()
        };
        let disks = [disk.clone()];
        moraine_fs::superblock::format(&world.platform(), &crate::toy::blocks(&disks), &options)
            .await
            .unwrap();
        let toy = Toy::mount_with(&world, &disks, Options::default(), Completeness::Complete).await.unwrap();
        assert_eq!((toy.count(), toy.report.copies), (0, 0));
        let (_, seq) = toy.commit().await.unwrap();
        toy.sync(seq).await.unwrap();
        assert_eq!(Toy::mount(&world, &disks).await.unwrap().count(), 1);
    });
}

/// A pool goes on with one of its two devices; when the other comes back, what it holds is old and counts for nothing.
/// Entries of the time between have one copy until they are written back: without it there is no start, rather than a
/// shorter history.
#[test]
fn a_journal_goes_on_without_a_device_and_takes_it_back_later() {
    let world = World::new(70);
    let disks = plugged(&world, &formatted(Shape { disks: 2, copies: 2 }));
    let mount = |here| Toy::mount_with(&world, here, Options::default(), Completeness::Degraded);
    world.run(async {
        for (n, here) in [&disks[..], &disks[1..], &disks[1..], &disks[..]].into_iter().enumerate() {
            let toy = mount(here).await.unwrap();
            assert_eq!((toy.count(), toy.report.missing), (n as u64, 2 - here.len()));
            let (_, seq) = toy.commit().await.unwrap();
            toy.sync(seq).await.unwrap();
            toy.kill(&disks).await;
        }
        assert!(matches!(mount(&disks[..1]).await.err(), Some(RecoverError::Rot { .. })));
        let toy = mount(&disks).await.unwrap();
        assert_eq!(toy.count(), 4);
        // Written back and given up: from now on either device has all that is needed.
        let seq = toy.write_back().await.unwrap();
        toy.sync(seq).await.unwrap();
        let (_, seq) = toy.commit().await.unwrap();
        toy.sync(seq).await.unwrap();
        toy.kill(&disks).await;
        assert_eq!(mount(&disks[..1]).await.unwrap().count(), 5);
    });
}
