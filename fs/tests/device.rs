//! The pool's devices on simulated disks: what is durable when, who shares a flush, what a failure ends.

use moraine_fs::device::{Dep, Deps, DeviceError, Devices};
use moraine_platform::{BlockDevice, Buf, Fua, IoError};
use moraine_sim::{DiskConfig, SimDisk, World};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

const BLOCK: u64 = 4096;

fn plug(world: &World, config: DiskConfig) -> (Rc<SimDisk>, Rc<Devices>) {
    let disk = world.disk(4 << 20, config);
    let devices = Devices::new(world.platform().spawn, vec![(3, disk.clone() as Rc<dyn BlockDevice>)]);
    (disk, devices)
}

async fn write(devices: &Devices, block: u64, fua: Fua) -> Result<Dep, DeviceError> {
    devices.write(3, block * BLOCK, Buf::zeroed(BLOCK as usize).unwrap(), fua).await.1
}

type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

async fn all(mut tasks: Vec<Task<'_>>) {
    poll_fn(|cx| {
        tasks.retain_mut(|task| task.as_mut().poll(cx).is_pending());
        if tasks.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await
}

#[test]
fn a_dependency_is_covered_by_a_later_flush_only() {
    let world = World::new(1);
    let (disk, devices) = plug(&world, DiskConfig::default());
    world.run(async {
        let first: Deps = [write(&devices, 0, Fua::No).await.unwrap()].into_iter().collect();
        assert!(!devices.covered(&first) && !disk.is_durable(0, BLOCK));
        devices.flush(3).await.unwrap();
        assert!(devices.covered(&first) && disk.is_durable(0, BLOCK));
        let second: Deps = [write(&devices, 1, Fua::No).await.unwrap()].into_iter().collect();
        assert!(!devices.covered(&second), "the flush before it does not count");
        devices.flush_covering(&second).await.unwrap();
        assert!(devices.covered(&second) && disk.is_durable(BLOCK, BLOCK));
        let flushes = devices.counters(3).flushes;
        devices.flush_covering(&second).await.unwrap();
        devices.flush(3).await.unwrap();
        assert_eq!(devices.counters(3).flushes, flushes, "what is durable is not flushed again");
    });
}

/// A flush is joined by those whose writes had completed before it began; those who come later share the next one.
#[test]
fn flushes_are_shared_but_never_with_a_write_that_came_too_late() {
    for seed in 0..200 {
        let world = World::new(seed);
        let (disk, devices) = plug(&world, DiskConfig::default());
        world.run(async {
            let tasks = (0..16).map(|n| -> Task<'_> {
                let (devices, disk) = (&devices, &disk);
                Box::pin(async move {
                    let dep = write(devices, n, Fua::No).await.unwrap();
                    devices.flush_covering(&[dep].into_iter().collect()).await.unwrap();
                    assert!(
                        disk.is_durable(n * BLOCK, BLOCK),
                        "seed {seed}: block {n} was said to be durable"
                    );
                })
            });
            all(tasks.collect()).await;
            let counters = devices.counters(3);
            assert!(
                counters.flushes <= 16 && counters.flushes + counters.flushes_joined >= 16,
                "{counters:?}"
            );
        });
    }
}

#[test]
fn fua_is_durable_on_completion_whatever_the_device_can_do() {
    let kinds = [
        (DiskConfig::default(), 0),
        (DiskConfig { fua: false, ..DiskConfig::default() }, 1),
        (DiskConfig { volatile_cache: false, ..DiskConfig::default() }, 0),
    ];
    for (config, flushes) in kinds {
        let world = World::new(2);
        let (disk, devices) = plug(&world, config);
        world.run(async {
            let dep = write(&devices, 0, Fua::Yes).await.unwrap();
            assert!(disk.is_durable(0, BLOCK));
            assert!(devices.covered(&[dep].into_iter().collect()));
            assert_eq!(devices.counters(3).flushes, flushes);
        });
    }
}

#[test]
fn transfers_longer_than_the_device_takes_are_split_and_whole() {
    let world = World::new(3);
    let (disk, devices) = plug(&world, DiskConfig { max_transfer: 128 << 10, ..DiskConfig::default() });
    world.run(async {
        let len = 300 << 10;
        let mut buf = Buf::zeroed(len).unwrap();
        buf.iter_mut().enumerate().for_each(|(n, b)| *b = (n >> 10) as u8);
        let (buf, result) = devices.write(3, 8192, buf, Fua::Yes).await;
        result.unwrap();
        assert_eq!((world.trace().counters().fua_writes, devices.counters(3).writes), (3, 1));
        assert!(disk.is_durable(8192, len as u64));
        let (read, result) = devices.read(3, 8192, Buf::zeroed(len).unwrap()).await;
        result.unwrap();
        assert!(read[..] == buf[..]);
        disk.faults(|f| f.fail_command(1, IoError::Media));
        let (_, result) = devices.read(3, 8192, read).await;
        assert_eq!(result, Err(DeviceError::Io(IoError::Media)), "one bad piece is a bad read");
    });
}

#[test]
fn after_a_failed_flush_nothing_on_the_device_is_believed() {
    let world = World::new(4);
    let (disk, devices) = plug(&world, DiskConfig::default());
    world.run(async {
        let dep = write(&devices, 0, Fua::No).await.unwrap();
        let deps: Deps = [dep].into_iter().collect();
        disk.faults(|f| f.fail_flush_and_lose(0));
        let ticket = devices.failure().ticket();
        let (one, two) = (devices.clone(), devices.clone());
        let (deps, failed) = (&deps, DeviceError::Failed(3));
        // Both who wait for it learn of it, and the next flush, which would succeed, is not even tried.
        all(vec![
            Box::pin(async move { assert_eq!(one.flush_covering(deps).await, Err((3, failed))) }),
            Box::pin(async move { assert_eq!(two.flush(3).await, Err(failed)) }),
        ])
        .await;
        devices.failure().after(ticket).await;
        assert!(!devices.is_healthy(3) && !devices.covered(deps));
        assert_eq!(devices.flush(3).await, Err(failed));
        assert_eq!(write(&devices, 1, Fua::Yes).await, Err(failed));
        assert_eq!(devices.counters(3).flush_errors, 1);
        let (_, read) = devices.read(3, 0, Buf::zeroed(BLOCK as usize).unwrap()).await;
        assert!(read.is_ok(), "reading is still allowed: what is read is verified");
        assert_eq!(devices.flush(0).await, Err(DeviceError::Missing(0)));
    });
}
