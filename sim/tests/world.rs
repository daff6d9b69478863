//! The world itself: seeds replay, races show, disks lose what was not flushed, streams deliver.

use moraine_platform::sync::yield_point;
use moraine_platform::{BlockDevice, Buf, Fua, IoError};
use moraine_sim::disk::{DiskConfig, WriteFault};
use moraine_sim::{SimDisk, World, WorldConfig};
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

const BLOCK: u64 = 4096;

fn filled(value: u8) -> Buf {
    let mut buf = Buf::zeroed(BLOCK as usize).unwrap();
    buf.fill(value);
    buf
}

async fn byte_at(disk: &SimDisk, block: u64) -> u8 {
    let done = disk.read(block * BLOCK, Buf::zeroed(BLOCK as usize).unwrap()).await;
    done.result.unwrap();
    done.buf[0]
}

/// Many tasks that sleep, compute and write.
fn busy_world(seed: u64) -> u64 {
    let world = World::new(seed);
    let disk = world.disk(1 << 20, DiskConfig::default());
    let platform = world.platform();
    let left = Rc::new(Cell::new(8));
    for n in 0..8u8 {
        let (disk, platform, left) = (disk.clone(), platform.clone(), left.clone());
        world.platform().spawn.spawn(
            "writer",
            Box::pin(async move {
                for round in 0..5 {
                    let pause = platform.rng.next_u64() % 1000;
                    platform.clock.sleep(Duration::from_nanos(pause)).await;
                    platform.offload.run(Box::new(|| ())).await;
                    disk.write(u64::from(n) * BLOCK, filled(round), Fua::No).await.result.unwrap();
                    disk.flush().await.unwrap();
                }
                left.set(left.get() - 1);
            }),
        );
    }
    world.run(async {
        while left.get() > 0 {
            platform.clock.sleep(Duration::from_millis(1)).await;
        }
    });
    world.trace().hash()
}

#[test]
fn a_seed_replays_and_another_seed_is_another_world() {
    for seed in 0..20 {
        assert_eq!(busy_world(seed), busy_world(seed));
        assert_ne!(busy_world(seed), busy_world(seed + 1000));
    }
}

#[test]
fn timers_fire_in_order_and_time_jumps_over_idle_hours() {
    let world = World::new(1);
    let seen = Rc::new(RefCell::new(Vec::new()));
    for hours in [3u64, 1, 2] {
        let (clock, seen) = (world.platform().clock, seen.clone());
        let task = async move {
            clock.sleep(Duration::from_secs(hours * 3600)).await;
            seen.borrow_mut().push(hours);
        };
        world.platform().spawn.spawn("sleeper", Box::pin(task));
    }
    world.run(world.platform().clock.sleep(Duration::from_secs(4 * 3600)));
    assert_eq!(*seen.borrow(), [1, 2, 3]);
    assert!(world.now().0 >= 4 * 3600 * 1_000_000_000);
}

#[test]
fn a_race_across_an_await_shows_within_few_seeds() {
    let lost_update = |seed| {
        let world = World::new(seed);
        let value = Rc::new(Cell::new(0));
        let left = Rc::new(Cell::new(2));
        for _ in 0..2 {
            let (value, left) = (value.clone(), left.clone());
            let add = async move {
                let read = value.get();
                yield_point().await;
                value.set(read + 1);
                left.set(left.get() - 1);
            };
            world.platform().spawn.spawn("adder", Box::pin(add));
        }
        let clock = world.platform().clock;
        world.run(async {
            while left.get() > 0 {
                clock.sleep(Duration::from_millis(1)).await;
            }
        });
        value.get() == 1
    };
    let found = (0..40).filter(|seed| lost_update(*seed)).count();
    assert!((1..40).contains(&found), "lost updates in {found} of 40 worlds");
}

#[test]
fn a_stall_names_who_waits() {
    let world = World::new(1);
    world.platform().spawn.spawn("never", Box::pin(std::future::pending()));
    let stall = world.try_run(std::future::pending::<()>()).unwrap_err();
    assert_eq!(stall.waiting, ["never"]);
}

#[test]
fn what_was_flushed_survives_and_the_rest_may_be_lost() {
    let (mut lost, mut kept) = (0, 0);
    for seed in 0..60 {
        let world = World::new(seed);
        let disk = world.disk(1 << 20, DiskConfig::default());
        world.run(async {
            disk.write(0, filled(1), Fua::No).await.result.unwrap();
            disk.flush().await.unwrap();
            disk.write(BLOCK, filled(2), Fua::No).await.result.unwrap();
            disk.write(2 * BLOCK, filled(3), Fua::Yes).await.result.unwrap();
            assert_eq!(byte_at(&disk, 1).await, 2, "readers see the cache");
        });
        assert!(disk.is_durable(0, BLOCK) && !disk.is_durable(BLOCK, BLOCK));
        let image = world.crash().remove(0);
        let again = World::new(seed);
        let disk = again.disk_with(image, DiskConfig::default());
        again.run(async {
            assert_eq!(byte_at(&disk, 0).await, 1);
            assert_eq!(byte_at(&disk, 2).await, 3);
            match byte_at(&disk, 1).await {
                2 => kept += 1,
                _ => lost += 1,
            }
        });
    }
    assert!(lost > 5 && kept > 5, "lost {lost}, kept {kept}");
}

#[test]
fn a_flush_does_not_cover_writes_under_way() {
    let mut lost = 0;
    for seed in 0..50 {
        let world = World::new(seed);
        let disk = world.disk(1 << 20, DiskConfig::default());
        world.run(async {
            let write = disk.write(0, filled(1), Fua::No);
            disk.flush().await.unwrap();
            write.await.result.unwrap();
        });
        let mut byte = [0];
        disk.durable_image().read(0, &mut byte);
        lost += u32::from(byte[0] == 0);
    }
    assert_eq!(lost, 50, "a flush submitted while a write is under way must never be counted on");
}

#[test]
fn power_cuts_stop_the_world_between_commands() {
    let world = World::with(WorldConfig { record: true, ..WorldConfig::new(3) });
    let disk = world.disk(1 << 20, DiskConfig::default());
    let ended = world.run_to_power_cut(
        async {
            for n in 0..100 {
                disk.write(n * BLOCK, filled(1), Fua::No).await.result.unwrap();
            }
        },
        10,
    );
    assert!(matches!(ended, Ok(moraine_sim::world::Ended::PowerCut)));
    assert_eq!(world.trace().counters().writes, 10);
    assert!(world.crash()[0].difference(&moraine_sim::Image::new(1 << 20)).len() <= 10);
}

#[test]
fn malformed_commands_are_refused_without_effect() {
    let world = World::new(1);
    let disk = world.disk(1 << 20, DiskConfig { fua: false, ..DiskConfig::default() });
    world.run(async {
        let invalid = Err(IoError::Invalid);
        assert_eq!(disk.write(1, filled(1), Fua::No).await.result, invalid);
        assert_eq!(disk.write(1 << 20, filled(1), Fua::No).await.result, invalid);
        assert_eq!(disk.write(0, filled(1), Fua::Yes).await.result, invalid);
        assert_eq!(disk.read(u64::MAX - 511, filled(1)).await.result, invalid);
        assert_eq!(disk.discard(0, u64::MAX - 511).await, invalid);
    });
    assert_eq!(world.trace().submitted(), 0);
}

#[test]
fn planned_faults_happen_when_planned() {
    let world = World::new(9);
    let disk = world.disk(1 << 20, DiskConfig::default());
    world.run(async {
        disk.faults(|f| f.fail_command(1, IoError::Media));
        assert!(disk.write(0, filled(1), Fua::No).await.result.is_ok());
        assert_eq!(disk.write(BLOCK, filled(1), Fua::No).await.result, Err(IoError::Media));

        disk.faults(|f| f.fail_write(0, WriteFault::Lost));
        assert!(disk.write(2 * BLOCK, filled(7), Fua::Yes).await.result.is_ok());
        assert_eq!(byte_at(&disk, 2).await, 0, "a lost write never lands");

        disk.faults(|f| f.fail_write(0, WriteFault::Misdirected { by: 8 * BLOCK }));
        assert!(disk.write(3 * BLOCK, filled(8), Fua::No).await.result.is_ok());
        assert_eq!((byte_at(&disk, 3).await, byte_at(&disk, 11).await), (0, 8));

        let later = WriteFault::Zombie { after_ns: 60_000_000_000 };
        disk.faults(|f| f.fail_write(0, later));
        assert_eq!(disk.write(4 * BLOCK, filled(9), Fua::No).await.result, Err(IoError::Timeout));
        assert_eq!(byte_at(&disk, 4).await, 0);
        world.platform().clock.sleep(Duration::from_secs(61)).await;
        assert_eq!(byte_at(&disk, 4).await, 9, "it lands after all");

        disk.write(5 * BLOCK, filled(5), Fua::No).await.result.unwrap();
        disk.faults(|f| f.fail_flush_and_lose(0));
        assert_eq!(disk.flush().await, Err(IoError::Device));
        assert_eq!(byte_at(&disk, 5).await, 0, "gone, and the next flush does not know");
        assert!(disk.flush().await.is_ok());

        disk.write(6 * BLOCK, filled(6), Fua::Yes).await.result.unwrap();
        disk.rot(6 * BLOCK, 1, 1, &mut world.random("rot"));
        assert_ne!(byte_at(&disk, 6).await, 6);

        disk.faults(|f| f.vanished = true);
        assert_eq!(disk.flush().await, Err(IoError::Gone));
        disk.faults(|f| f.vanished = false);
        disk.discard(0, BLOCK).await.unwrap();
        assert_ne!(byte_at(&disk, 0).await, 1, "a discard destroys");
        disk.write_zeroes(6 * BLOCK, BLOCK).await.unwrap();
        assert_eq!(byte_at(&disk, 6).await, 0);
    });
}

#[test]
fn dropping_a_command_detaches_it() {
    let world = World::new(4);
    let disk = world.disk(1 << 20, DiskConfig::default());
    world.run(async {
        drop(disk.write(0, filled(3), Fua::No));
        assert_eq!(disk.in_flight(), 1);
        world.platform().clock.sleep(Duration::from_secs(1)).await;
        assert_eq!((disk.in_flight(), byte_at(&disk, 0).await), (0, 3));
    });
}

fn address(host: u8, port: u16) -> SocketAddr {
    SocketAddr::new(ip(host), port)
}

fn ip(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, host))
}

#[test]
fn streams_deliver_every_byte_in_order_in_pieces_of_any_size() {
    for seed in 0..20 {
        let world = World::new(seed);
        let (server, client) = (world.switch().host(ip(1)), world.switch().host(ip(2)));
        let listener = server.listen(address(1, 2049)).unwrap();
        assert!(server.listen(address(1, 2049)).is_err());
        let echo = async move {
            let stream = listener.accept().await.unwrap();
            let mut bytes = [0; 777];
            loop {
                match stream.recv(&mut bytes).await.unwrap() {
                    0 => break stream.close(),
                    n => stream.send_all(&bytes[..n]).await.unwrap(),
                }
            }
            // The rest is the peer's to read; the socket stays open until it did.
            std::future::pending::<()>().await;
        };
        world.platform().spawn.spawn("echo", Box::pin(echo));
        world.run(async {
            assert!(client.connect(address(1, 1)).await.is_err(), "nobody listens there");
            let stream = client.connect(address(1, 2049)).await.unwrap();
            let sent: Vec<u8> = (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect();
            let writer = stream.clone();
            let copy = sent.clone();
            let send = async move {
                writer.send_all(&copy).await.unwrap();
                writer.close();
            };
            world.platform().spawn.spawn("sender", Box::pin(send));
            let mut got = vec![0; sent.len()];
            assert!(stream.recv_exact(&mut got).await.unwrap());
            assert_eq!(got, sent);
            assert_eq!(stream.recv(&mut [0; 8]).await.unwrap(), 0, "then the end");
        });
    }
}

#[test]
fn resets_and_datagrams() {
    let world = World::new(2);
    let (server, client) = (world.switch().host(ip(1)), world.switch().host(ip(2)));
    world.run(async {
        let listener = server.listen(address(1, 10809)).unwrap();
        let ours = client.connect(listener.local()).await.unwrap();
        let theirs = listener.accept().await.unwrap();
        assert_eq!(theirs.peer(), ours.local());
        world.switch().reset_host(ip(2));
        assert!(ours.recv(&mut [0; 4]).await.is_err() && theirs.send_all(b"x").await.is_err());

        let (a, b) = (server.bind(address(1, 111)).unwrap(), client.bind(address(2, 0)).unwrap());
        b.send(a.local(), b"ping".to_vec()).await.unwrap();
        let (bytes, from) = a.recv().await.unwrap();
        assert_eq!((&*bytes, from), (&b"ping"[..], b.local()));
    });
}
