//! Reading, writing, zeroing and asking, against a plain array as the oracle.

mod support;

use moraine_fs::FsError;
use moraine_fs::vfs::{Caller, SetAttr};
use moraine_fs::{Vfs, vfs::Stability};
use moraine_nbd::Config;
use support::client::*;
use support::{Bench, Call, Client, Dice, Shape};

const MIB: u64 = 1 << 20;

#[test]
fn nbd_04_neighbours_of_512_bytes_do_not_harm_each_other() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let mut clients = [bench.open("vm1").await, bench.open_simple("vm1").await];
        // 16 sectors of two blocks, all in flight at once, from two connections.
        bench.vfs.hold("write");
        for sector in 0..16u64 {
            let client = &mut clients[sector as usize % 2];
            client.request(WRITE, 0, sector * 512, 512, &[sector as u8 + 1; 512]).await;
        }
        bench.world.settle().await;
        assert_eq!(bench.vfs.waiting(), 16);
        bench.vfs.release_all();
        for client in &mut clients {
            for _ in 0..8 {
                assert_eq!(client.reply().await.error, 0);
            }
        }
        let bytes = bench.get(object, 0, 8192).await;
        assert!(bytes.iter().enumerate().all(|(n, &b)| usize::from(b) == n / 512 + 1));
        for skip in bench.vfs.take_log() {
            let Call::Written { offset, skip, .. } = skip else { continue };
            assert_eq!(skip as u64, offset % 4096, "payload lies where its block wants it");
        }
    });
}

#[test]
fn nbd_04_requests_of_32_mib_are_served_in_pieces_within_the_budget() {
    let config = Config { connections: 4, payload: 2 * MIB };
    let bench = Bench::with(config);
    bench.world.run(async {
        bench.volume("vm1", 64 * MIB).await;
        for structured in [true, false] {
            let mut client =
                if structured { bench.open("vm1").await } else { bench.open_simple("vm1").await };
            let data = Dice::new(1).bytes(32 << 20);
            let offset = 1000 + u64::from(structured);
            let cookie = client.request(WRITE, 0, offset, 32 << 20, &data).await;
            let reply = client.reply().await;
            assert_eq!((reply.cookie, reply.error), (cookie, 0));
            let reply = client.ask(READ, 0, offset, 32 << 20, &[]).await;
            assert!(reply.bytes(offset, 32 << 20) == data, "what was written comes back");
        }
        assert!(bench.vfs.most_written_at_once.get() <= config.payload);
    });
}

#[test]
fn nbd_05_an_errored_write_is_drained_and_the_stream_stays_in_step() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let mut client = bench.open("vm1").await;
        // Payload that would be a request if it were taken for one.
        let poison: Vec<u8> = (0..40_000).flat_map(|n| request_bytes(WRITE, 0, n, 0, 0)).collect();
        let cases = [
            (0, MIB, 512, ENOSPC),
            (0, MIB - 1, 2, ENOSPC),
            (0, u64::MAX - 3, 512, ENOSPC),
            (0, 1 << 63, poison.len(), ENOSPC),
            (DF, 0, 512, EINVAL),
            (NO_HOLE, 0, 4096, EINVAL),
            (1 << 15, 0, poison.len() - 5, EINVAL),
        ];
        for (flags, offset, len, error) in cases {
            let reply = client.ask(WRITE, flags, offset, len as u32, &poison[..len]).await;
            assert_eq!(reply.error, error, "{flags} {offset} {len}");
        }
        // Errors of the filesystem, at the first and at a later piece of a long write.
        for (error, wanted) in [(FsError::NoSpace, ENOSPC), (FsError::DeviceWrite, EIO), (FsError::Busy, EIO)]
        {
            bench.vfs.fail("write", error, 1);
            assert_eq!(client.ask(WRITE, 0, 0, 1 << 20, &poison[..1 << 20]).await.error, wanted);
        }
        let too_long = vec![0; (32 << 20) + 1];
        assert_eq!(client.ask(WRITE, 0, 0, too_long.len() as u32, &too_long).await.error, EINVAL);
        client.write(10, b"still in step").await;
        assert_eq!(bench.get(object, 10, 13).await, b"still in step");
    });
}

#[test]
fn nbd_05_a_write_to_a_read_only_volume_is_drained_too() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("gold", MIB).await;
        let set = SetAttr { mode: Some(0o444), ..SetAttr::default() };
        bench.vfs.setattr(&Caller::root(), object, &set, None).await.unwrap();
        let mut client = bench.open("gold").await;
        assert_eq!(client.flags & 2, 2, "the client is told");
        for (command, payload) in [(WRITE, &[9; 4096][..]), (ZERO, &[]), (TRIM, &[])] {
            assert_eq!(client.ask(command, 0, 0, 4096, payload).await.error, EPERM);
        }
        assert_eq!(client.read(0, 4096).await, [0; 4096]);
        client.flush().await;
    });
}

/// Reads every grid point and compares with the array.
async fn compare(client: &mut Client, oracle: &[u8], flags: u16) {
    for offset in [0, 1, 511, 512, 4095, 4096, 131_071, 131_072, 262_143, 300_001] {
        for len in [1, 2, 511, 513, 4096, 8191, 131_072, 131_073, 262_145, 600_000] {
            let wanted = &oracle[offset..offset + len];
            let reply = client.ask(READ, flags, offset as u64, len as u32, &[]).await;
            assert!(reply.bytes(offset as u64, len) == wanted, "{offset} {len}");
            if flags == DF {
                assert_eq!(reply.data.len(), 1, "in one chunk");
            }
        }
    }
}

#[test]
fn nbd_09_reads_of_any_place_and_length_come_whole_however_they_are_cut() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let oracle = Dice::new(2).bytes(1 << 20);
        bench.put(object, 0, &oracle).await;
        let mut structured = bench.open("vm1").await;
        compare(&mut structured, &oracle, 0).await;
        compare(&mut structured, &oracle, DF).await;
        let mut simple = bench.open_simple("vm1").await;
        compare(&mut simple, &oracle, 0).await;

        let mut narrow = bench.connect_shaped(Shape { capacity: 1500, piece: 333 });
        narrow.greet(3).await;
        narrow.structured().await;
        narrow.go("vm1").await;
        assert!(narrow.read(7, 500_000).await == oracle[7..500_007]);
    });
}

#[test]
fn nbd_09_reads_without_memory_to_spare_come_whole_too() {
    // Two connections take all there is but one piece each, so that "one chunk" has to be sent step by step.
    let bench = Bench::with(Config { connections: 4, payload: MIB });
    bench.world.run(async {
        let object = bench.volume("vm1", 2 * MIB).await;
        let oracle = Dice::new(3).bytes(2 << 20);
        bench.put(object, 0, &oracle).await;
        for flags in [0, DF] {
            let mut greedy = bench.open_simple("vm1").await;
            bench.vfs.hold("read");
            greedy.request(READ, 0, 0, 1 << 20, &[]).await;
            bench.world.settle().await;
            let mut client =
                if flags == DF { bench.open("vm1").await } else { bench.open_simple("vm1").await };
            let cookie = client.request(READ, flags, 5, 1 << 20, &[]).await;
            bench.world.settle().await;
            bench.vfs.release_all();
            let reply = client.reply().await;
            assert_eq!(reply.cookie, cookie);
            assert!(reply.bytes(5, 1 << 20) == oracle[5..(1 << 20) + 5]);
            let lens: Vec<_> = bench.vfs.take_log();
            assert!(
                lens.iter().filter(|c| matches!(c, Call::Read(_, len) if *len <= 128 << 10)).count() >= 8
            );
            assert!(greedy.reply().await.bytes(0, 1 << 20) == oracle[..1 << 20]);
        }
    });
}

#[test]
fn nbd_09_an_error_in_a_read_is_told_by_chunk_and_ends_a_simple_reply_under_way() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", 64 * MIB).await;
        let mut client = bench.open("vm1").await;
        bench.vfs.fail("read", FsError::Checksum, 1);
        let reply = client.ask(READ, 0, 0, 4096, &[]).await;
        assert_eq!((reply.error, reply.data.len()), (EIO, 0));
        bench.vfs.fail("read", FsError::DeviceRead, 1);
        assert_eq!(client.ask(READ, DF, 0, 4096, &[]).await.error, EIO);
        let reply = client.ask(READ, DF, 0, 2 << 20, &[]).await;
        assert_eq!((reply.error, reply.data.len()), (EOVERFLOW, 0));
        assert_eq!(client.read(0, 10).await, [0; 10]);

        let mut simple = bench.open_simple("vm1").await;
        bench.vfs.fail("read", FsError::Checksum, 1);
        assert_eq!(simple.ask(READ, 0, 0, 4096, &[]).await.error, EIO);
        assert_eq!(simple.read(0, 10).await, [0; 10], "a simple error has no payload");
        // Success is announced, then the disk fails: the rest can only be silence.
        let long = request_bytes(READ, 0, 77, 0, 32 << 20);
        simple.send(&long).await;
        assert_eq!(simple.take(16).await[4..8], [0; 4]);
        bench.vfs.fail("read", FsError::Checksum, 1);
        let mut taken = 0;
        let mut some = vec![0; 65_536];
        while let Ok(n) = simple.stream.recv(&mut some).await
            && n > 0
        {
            taken += n;
        }
        assert!(taken < 32 << 20);
    });
}

#[test]
fn nbd_09_an_error_amid_one_chunk_fills_it_up_and_is_told_after_it() {
    let bench = Bench::with(Config { connections: 4, payload: MIB });
    bench.world.run(async {
        bench.volume("vm1", 2 * MIB).await;
        let mut client = bench.open("vm1").await;
        client.send(&request_bytes(READ, DF, 9, 0, 1 << 20)).await;
        assert_eq!(client.take(28).await[..4], 0x668e_33efu32.to_be_bytes());
        bench.vfs.fail("read", FsError::Checksum, 1);
        client.take(1 << 20).await;
        let reply = client.reply().await;
        assert_eq!((reply.cookie, reply.error), (9, EIO));
        assert_eq!(client.read(0, 10).await, [0; 10]);
    });
}

#[test]
fn nbd_09_block_status_tells_data_from_holes() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", 16 * MIB).await;
        bench.put(object, MIB, &[1; 8192]).await;
        let mut client = bench.open("vm1").await;
        let whole = client.ask(STATUS, 0, 0, 16 << 20, &[]).await;
        assert_eq!(whole.extents, [(1 << 20, 3), (8192, 0), ((15 << 20) - 8192, 3)]);
        let one = client.ask(STATUS, REQ_ONE, MIB + 512, 16 << 10, &[]).await;
        assert_eq!(one.extents, [(8192 - 512, 0)]);
        let within = client.ask(STATUS, REQ_ONE, 512, 1024, &[]).await;
        assert_eq!(within.extents, [(1024, 3)], "never past the request's end");
        for (offset, len) in [(0, 0), (16 * MIB, 1), (u64::MAX, 2)] {
            let reply = client.ask(STATUS, 0, offset, len, &[]).await;
            assert_eq!((reply.error, reply.extents.len()), (EINVAL, 0));
        }
        bench.vfs.fail("segments", FsError::DeviceRead, 1);
        assert_eq!(client.ask(STATUS, 0, 0, 512, &[]).await.error, EIO);
        let mut simple = bench.open_simple("vm1").await;
        assert_eq!(simple.ask(STATUS, 0, 0, 512, &[]).await.error, EINVAL, "nobody chose the context");
    });
}

#[test]
fn nbd_10_growth_is_seen_on_reconnect() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let client = bench.open("vm1").await;
        assert_eq!(client.size, MIB);
        drop(client);
        bench.world.settle().await;
        let grow = SetAttr { size: Some(3 * MIB), ..SetAttr::default() };
        let act = bench.share.act(object, moraine_share::Mask::RESIZE).unwrap();
        bench.vfs.setattr(&Caller::root(), object, &grow, None).await.unwrap();
        drop(act);
        let mut client = bench.open("vm1").await;
        assert_eq!(client.size, 3 * MIB);
        assert_eq!(client.read(3 * MIB - 512, 512).await, [0; 512]);
    });
}

#[test]
fn nbd_11_zeroes_of_any_length_read_as_zeroes_and_keep_their_space_if_asked() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", 8 << 30).await;
        let mut client = bench.open("vm1").await;
        client.write(0, &[5; 64 << 10]).await;
        for (command, flags) in [(ZERO, 0), (ZERO, FAST), (TRIM, 0), (ZERO, NO_HOLE), (ZERO, NO_HOLE | FUA)] {
            client.write(0, &[5; 64 << 10]).await;
            assert_eq!(client.ask(command, flags, 1000, 50_000, &[]).await.error, 0);
            let bytes = client.read(0, 64 << 10).await;
            assert!(bytes.iter().enumerate().all(|(n, &b)| (b == 0) == (1000..51_000).contains(&n)));
            let used = bench.vfs.getattr(object).await.unwrap().used;
            assert_eq!(used == 64 << 10, flags & NO_HOLE != 0, "{command} {flags}: {used} bytes used");
        }
        assert_eq!(client.ask(ZERO, FAST | NO_HOLE, 0, 4096, &[]).await.error, ENOTSUP);
        assert_eq!(client.read(0, 1000).await, [5; 1000], "a refusal changes nothing");
        assert_eq!(client.ask(ZERO, 0, 4096, u32::MAX - 4095, &[]).await.error, 0, "beyond any payload");
        assert_eq!(client.ask(ZERO, 0, 0, 0, &[]).await.error, 0);
        assert_eq!(client.ask(CACHE, 0, 0, u32::MAX, &[]).await.error, 0);
    });
}

#[test]
fn nbd_12_what_the_server_does_not_know_is_an_invalid_request() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", MIB).await;
        let mut client = bench.open("vm1").await;
        for command in [8, 9, 100, u16::MAX] {
            assert_eq!(client.ask(command, 0, 0, 512, &[]).await.error, EINVAL, "{command}");
        }
        assert_eq!(client.ask(FLUSH, 0x80 | FUA, 0, 0, &[]).await.error, EINVAL);
        assert_eq!(client.ask(READ, 0x80, 0, 512, &[]).await.error, EINVAL);
        for (offset, len) in [(MIB, 512), (MIB - 512, 1024), (u64::MAX, 512), (0, (32 << 20) + 1)] {
            assert_eq!(client.ask(READ, 0, offset, len, &[]).await.error, EINVAL);
            for (command, error) in [(ZERO, ENOSPC), (TRIM, EINVAL), (CACHE, EINVAL)] {
                assert_eq!(client.ask(command, 0, offset, len, &[]).await.error, error);
            }
        }
        assert_eq!(client.read(0, 0).await, []);
        client.write(0, &[]).await;
        client.flush().await;
    });
}

#[test]
fn nbd_13_good_bye_finishes_what_is_in_work_and_sends_nothing_more() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let mut client = bench.open("vm1").await;
        bench.vfs.hold("write");
        let cookie = client.request(WRITE, 0, 0, 4, b"last").await;
        client.request(DISC, 0, 0, 0, &[]).await;
        client.request(WRITE, 0, 0, 4, b"LATE").await;
        bench.world.settle().await;
        assert_eq!(bench.share.claims(), 1, "the volume stays open while something is in work");
        bench.vfs.release_all();
        assert_eq!(client.reply().await.cookie, cookie);
        assert!(client.hung_up().await);
        bench.world.settle().await;
        assert_eq!(bench.get(object, 0, 4).await, b"last");
        assert_eq!(bench.share.claims(), 0);
    });
}

#[test]
fn nbd_13_a_vanished_client_loses_only_what_was_not_answered() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        for abort in [true, false] {
            let mut client = bench.open("vm1").await;
            client.write(0, b"answered").await;
            client.send(&request_bytes(WRITE, 0, 99, 100, 1000)).await;
            client.send(&[1; 999]).await;
            if abort {
                client.stream.abort()
            } else {
                client.stream.close()
            }
            bench.world.settle().await;
            assert_eq!(bench.server.connections(), 0);
            assert_eq!(bench.get(object, 0, 8).await, b"answered");
            assert_eq!(bench.get(object, 100, 999).await, [0; 999], "half a payload is no write");
        }
    });
}

#[test]
fn held_requests_are_answered_when_the_conflict_is_over() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", MIB).await;
        let mut client = bench.open("vm1").await;
        for op in ["read", "punch", "segments", "commit"] {
            for error in [FsError::Busy, FsError::NoMemory] {
                bench.vfs.fail(op, error, 5);
                let reply = match op {
                    "read" => client.ask(READ, 0, 0, 512, &[]).await,
                    "punch" => client.ask(TRIM, 0, 0, 512, &[]).await,
                    "segments" => client.ask(STATUS, 0, 0, 512, &[]).await,
                    _ => client.ask(FLUSH, 0, 0, 0, &[]).await,
                };
                assert_eq!(reply.error, 0, "{op:?} {error}: patience, not an error");
            }
        }
    });
}

#[test]
fn a_filesystem_that_shuts_down_ends_the_connection() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", MIB).await;
        for structured in [false, true] {
            let mut client =
                if structured { bench.open("vm1").await } else { bench.open_simple("vm1").await };
            bench.vfs.fail("read", FsError::ShuttingDown, 1);
            assert_eq!(client.ask(READ, 0, 0, 512, &[]).await.error, ESHUTDOWN);
            assert!(client.hung_up().await);
        }
    });
}

#[test]
fn random_requests_match_an_array() {
    let bench = Bench::new();
    bench.world.run(async {
        const SIZE: usize = 700_000;
        bench.volume("vm1", SIZE as u64).await;
        let mut oracle = vec![0; SIZE];
        let mut dice = Dice::new(7);
        let mut clients = [bench.open("vm1").await, bench.open_simple("vm1").await];
        for _ in 0..3000 {
            let client = &mut clients[dice.below(2) as usize];
            let offset = dice.below(SIZE as u64);
            let most = [16, 5000, SIZE as u64][dice.below(3) as usize].min(SIZE as u64 - offset);
            let len = dice.below(most + 1) as usize;
            let (at, fua) = (offset as usize, dice.below(2) as u16);
            match dice.below(5) {
                0 | 1 => {
                    let data = dice.bytes(len);
                    oracle[at..at + len].copy_from_slice(&data);
                    assert_eq!(client.ask(WRITE, fua, offset, len as u32, &data).await.error, 0);
                }
                2 => {
                    let (command, flags) = [(ZERO, NO_HOLE), (ZERO, 0), (TRIM, 0)][dice.below(3) as usize];
                    oracle[at..at + len].fill(0);
                    assert_eq!(client.ask(command, flags | fua, offset, len as u32, &[]).await.error, 0);
                }
                _ => assert!(client.read(offset, len as u32).await == oracle[at..at + len]),
            }
        }
        let stable = |c: &Call| matches!(c, Call::Written { stability: Stability::DataSync, .. });
        assert!(bench.vfs.take_log().iter().any(stable));
    });
}
