//! Clients that stall, flood, lie or hang on: each ends in a clean close, the others stay served.

mod support;

use moraine_nbd::Config;
use moraine_platform::Clock;
use std::time::Duration;
use support::client::*;
use support::{Bench, Dice, Shape};

const MIB: u64 = 1 << 20;
/// The longest a stalled client is kept: a minute, and the watchdog's round.
const PATIENCE: Duration = Duration::from_secs(80);

#[test]
fn a_client_that_stalls_amid_a_message_is_closed_and_an_idle_one_is_not() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", MIB).await;
        let mut idle = bench.open("vm1").await;
        let mute = bench.connect();
        let mut half_option = bench.connect();
        half_option.greet(3).await;
        half_option.send(b"IHAVE").await;
        let half_header = bench.open("vm1").await;
        half_header.send(&request_bytes(READ, 0, 1, 0, 1)[..13]).await;
        let half_payload = bench.open("vm1").await;
        half_payload.send(&request_bytes(WRITE, 0, 1, 0, 4096)).await;
        let half_drain = bench.open("vm1").await;
        half_drain.send(&request_bytes(WRITE, 0, 1, MIB, 4096)).await;
        bench.world.platform().clock.sleep(PATIENCE).await;
        for client in [mute, half_option, half_header, half_payload, half_drain] {
            assert!(client.stream.recv(&mut [0; 18]).await.is_err(), "closed");
        }
        bench.world.platform().clock.sleep(PATIENCE * 100).await;
        assert_eq!(idle.read(0, 512).await, [0; 512]);
        assert_eq!(bench.server.connections(), 1);
        assert_eq!(bench.share.claims(), 1);
    });
}

#[test]
fn one_byte_a_second_does_not_keep_a_connection() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", MIB).await;
        let slow = bench.open("vm1").await;
        slow.send(&request_bytes(WRITE, 0, 1, 0, 100_000)).await;
        let mut sent = 0;
        while slow.stream.send_all(&[0]).await.is_ok() {
            bench.world.platform().clock.sleep(Duration::from_secs(1)).await;
            sent += 1;
            assert!(sent < 100, "still there");
        }
    });
}

#[test]
fn a_client_that_never_reads_its_answers_is_closed() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", 64 * MIB).await;
        let deaf = bench.open("vm1").await;
        for n in 0..16 {
            deaf.send(&request_bytes(READ, 0, n, 0, 1 << 20)).await;
        }
        bench.world.platform().clock.sleep(PATIENCE).await;
        assert_eq!(bench.server.connections(), 0);
        assert_eq!(bench.world.tasks(), 0, "nothing of it is left");
    });
}

#[test]
fn honest_clients_are_served_while_all_others_hold_what_they_can() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", 64 * MIB).await;
        let mut stalled = Vec::new();
        for n in 0..63 {
            let client = bench.open("vm1").await;
            if n % 2 == 0 {
                for cookie in 0..16 {
                    client.send(&request_bytes(READ, 0, cookie, 0, 4 << 20)).await;
                }
            } else {
                client.send(&request_bytes(WRITE, 0, 0, 0, 4 << 20)).await;
                client.send(&[1; 1000]).await;
            }
            stalled.push(client);
        }
        let mut honest = bench.open("vm1").await;
        let before = bench.world.now();
        for n in 0..20 {
            honest.write(n * MIB, &vec![7; 1 << 20]).await;
            assert!(honest.read(n * MIB, 1 << 20).await == vec![7; 1 << 20]);
        }
        honest.flush().await;
        assert_eq!(bench.world.now(), before, "without waiting for anybody's deadline");
        assert_eq!(bench.server.connections(), 64);
    });
}

#[test]
fn when_all_connections_are_taken_the_longest_idle_one_gives_way() {
    let bench = Bench::with(Config { connections: 3, payload: 4 * MIB });
    bench.world.run(async {
        bench.volume("vm1", MIB).await;
        let clock = bench.world.platform().clock;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(bench.open("vm1").await);
            clock.sleep(Duration::from_secs(1)).await;
        }
        clients[0].read(0, 1).await; // now the second one is the longest idle
        let mut new = bench.open("vm1").await;
        assert!(clients[1].hung_up().await);
        for client in [0, 2] {
            clients[client].read(0, 512).await;
        }
        new.read(0, 512).await;
        assert_eq!(bench.server.connections(), 3);
    });
}

#[test]
fn a_flood_of_connections_is_bounded_also_while_old_ones_are_ending() {
    let bench = Bench::with(Config { connections: 4, payload: 4 * MIB });
    bench.world.run(async {
        bench.volume("vm1", MIB).await;
        bench.vfs.hold("write");
        let mut clients = Vec::new();
        for n in 0..100 {
            let (ours, theirs) = support::pair(Shape::default());
            bench.server.serve_stream(theirs);
            let mut client = support::Client::new(ours);
            if n < 4 {
                client.greet(3).await;
                client.go("vm1").await;
                client.request(WRITE, 0, 0, 1, b"x").await;
            }
            clients.push(client);
            bench.world.settle().await;
            assert!(bench.server.connections() <= 8);
        }
        bench.vfs.release_all();
    });
}

#[test]
fn shutting_down_answers_what_is_in_work_and_ends_every_connection() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let mut busy = bench.open("vm1").await;
        let idle = bench.open("vm1").await;
        let mut greeting = bench.connect();
        greeting.greet(3).await;
        bench.vfs.hold("write");
        let cookie = busy.request(WRITE, 0, 0, 4, b"last").await;
        bench.world.settle().await;
        let server = bench.server.clone();
        let (done, ended) = (std::rc::Rc::new(std::cell::Cell::new(false)), std::rc::Rc::new(()));
        let flag = done.clone();
        let down = async move {
            server.shut_down().await;
            flag.set(true);
            drop(ended);
        };
        bench.world.platform().spawn.spawn("down", Box::pin(down));
        bench.world.settle().await;
        assert!(!done.get(), "something is in work");
        assert!(idle.hung_up().await);
        assert!(greeting.hung_up().await);
        bench.vfs.release_all();
        let reply = busy.reply().await;
        assert_eq!((reply.cookie, reply.error), (cookie, 0));
        assert!(busy.hung_up().await);
        bench.world.settle().await;
        assert!(done.get());
        assert_eq!(bench.get(object, 0, 4).await, b"last");
        let late = bench.connect();
        assert!(late.stream.recv(&mut [0]).await.is_err());
    });
}

#[test]
fn garbage_ends_its_own_connection_and_nothing_else() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", MIB).await;
        let mut honest = bench.open("vm1").await;
        let mut good = 3u32.to_be_bytes().to_vec();
        good.extend(option_bytes(8, &[]));
        good.extend(option_bytes(10, &context_query("vm1", &["base:allocation"])));
        good.extend(option_bytes(7, &export_query("vm1", &[1, 3])));
        for (command, len) in [(READ, 9000), (ZERO, 70_000), (STATUS, 1 << 20), (CACHE, 5), (WRITE, 600)] {
            good.extend(request_bytes(command, 0, 1, 4000, len));
        }
        good.extend([1; 600]);
        let mut dice = Dice::new(99);
        for round in 0..4000 {
            let mut bytes = good.clone();
            for _ in 0..1 + dice.below(4) {
                let at = dice.below(bytes.len() as u64) as usize;
                match dice.below(4) {
                    0 => bytes[at] ^= 1 << dice.below(8),
                    1 => bytes[at] = [0, 0xff, 0x7f, 0x80][dice.below(4) as usize],
                    2 => bytes.truncate(at),
                    _ => {
                        let len = dice.below(40) as usize;
                        let junk = dice.bytes(len);
                        bytes.splice(at..at, junk);
                    }
                }
                if bytes.is_empty() {
                    break;
                }
            }
            let client = bench.connect();
            // The server may hang up at any byte.
            let _ = client.stream.send_all(&bytes).await;
            client.stream.close();
            let mut some = vec![0; 65_536];
            while client.stream.recv(&mut some).await.is_ok_and(|n| n > 0) {}
            if round % 100 == 0 {
                bench.world.settle().await;
                assert_eq!(honest.read(0, 16).await.len(), 16);
                assert_eq!(bench.server.connections(), 1);
            }
        }
    });
}
