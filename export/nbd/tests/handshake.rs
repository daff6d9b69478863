//! The handshake, option by option, over streams that cut it anywhere.

mod support;

use support::client::*;
use support::{Bench, Shape};

/// What an option answers to data it cannot read.
const OPTIONS: [(u32, u32); 7] = [
    (3, ERR_INVALID),  // LIST
    (5, ERR_UNSUP),    // STARTTLS
    (6, ERR_INVALID),  // INFO
    (7, ERR_INVALID),  // GO
    (8, ERR_INVALID),  // STRUCTURED_REPLY
    (9, ERR_INVALID),  // LIST_META_CONTEXT
    (10, ERR_INVALID), // SET_META_CONTEXT
];

#[test]
fn nbd_01_each_option_with_a_wrong_length_is_refused_and_the_next_one_served() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", 1 << 20).await;
        let mut client = bench.connect();
        client.greet(3).await;
        for (option, wanted) in OPTIONS {
            for len in [1, 3, 5, 7, 4096, 8192] {
                client.option(option, &vec![0xff; len]).await;
                assert_eq!(
                    client.option_replies(option).await,
                    [(wanted, vec![])],
                    "option {option}, {len} bytes"
                );
            }
            let too_long = if wanted == ERR_UNSUP { ERR_UNSUP } else { ERR_TOO_BIG };
            for len in [8193, 100_000] {
                client.option(option, &vec![0; len]).await;
                assert_eq!(
                    client.option_replies(option).await,
                    [(too_long, vec![])],
                    "option {option}, {len} bytes"
                );
            }
        }
        client.go("vm1").await;
        assert_eq!(client.read(0, 512).await, [0; 512]);
    });
}

#[test]
fn nbd_01_unknown_options_are_drained_and_refused_in_order() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", 4096).await;
        let mut client = bench.connect();
        client.greet(3).await;
        let unknown = [0, 4, 5, 11, 12, 0x7fff_ffff, u32::MAX];
        let mut bytes = Vec::new();
        for (n, option) in unknown.into_iter().enumerate() {
            bytes.extend(option_bytes(option, &vec![b'I'; n * 1000]));
        }
        client.send(&bytes).await;
        for option in unknown {
            assert_eq!(client.option_reply(option).await, (ERR_UNSUP, vec![]));
        }
        client.go("vm1").await;
    });
}

#[test]
fn nbd_01_only_export_name_hangs_up() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", 12_345).await;
        let mut client = bench.connect();
        client.greet(3).await;
        client.option(1, b"nope").await;
        assert!(client.hung_up().await);

        for (flags, zeroes) in [(3, 0), (1, 124), (0, 124), (2, 0)] {
            let mut client = bench.connect();
            client.greet(flags).await;
            client.option(1, b"vm1").await;
            assert_eq!(client.u64().await, 12_345);
            let flags = client.u16().await;
            assert_eq!(flags & 1, 1);
            assert_eq!(flags & (1 << 7), 0, "no DF without structured replies");
            assert_eq!(client.take(zeroes).await, vec![0; zeroes]);
            assert_eq!(client.read(12_345 - 7, 7).await, [0; 7], "nothing but the answer was sent");
        }
    });
}

#[test]
fn nbd_01_the_answer_to_go_has_no_padding() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", 4096).await;
        let mut client = bench.connect();
        client.greet(1).await; // even to a client that wants zeroes after EXPORT_NAME
        client.go("vm1").await;
        assert_eq!(client.read(0, 4096).await, [0; 4096]);
    });
}

#[test]
fn a_client_without_fixed_newstyle_gets_no_option_replies() {
    let bench = Bench::new();
    bench.world.run(async {
        let mut client = bench.connect();
        client.greet(2).await;
        client.option(3, &[]).await;
        assert!(client.hung_up().await);
        let mut client = bench.connect();
        client.greet(4).await;
        assert!(client.hung_up().await, "a flag nobody offered");
    });
}

#[test]
fn nbd_02_info_and_go_tell_the_same_and_info_opens_nothing() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("dir/vm1", (8 << 30) + 512).await;
        for structured in [false, true] {
            let mut client = bench.connect();
            client.greet(3).await;
            if structured {
                client.structured().await;
            }
            for infos in [&[][..], &[1], &[0, 1, 2, 3, 99]] {
                client.option(6, &export_query("dir/vm1", infos)).await;
                let told = client.option_replies(6).await;
                bench.world.settle().await;
                assert_eq!(bench.share.claims(), 0, "to ask is not to use");
                assert_eq!(told.last(), Some(&(ACK, vec![])));
                let named = told.contains(&(3, [&[0, 1][..], b"dir/vm1"].concat()));
                assert_eq!(named, infos.contains(&1));

                let mut other = bench.connect();
                other.greet(3).await;
                if structured {
                    other.structured().await;
                }
                other.option(7, &export_query("dir/vm1", infos)).await;
                assert_eq!(other.option_replies(7).await, told);
                assert_eq!(other.read((8 << 30) + 511, 1).await.len(), 1);
            }
            for option in [6, 7] {
                for nope in ["nope", "dir", "dir/vm1/x", "DIR/vm1"] {
                    client.option(option, &export_query(nope, &[])).await;
                    assert_eq!(client.option_replies(option).await, [(ERR_UNKNOWN, vec![])], "{nope}");
                }
                for bad in ["", "/vm1", "dir//vm1", "dir/./vm1", "dir/../dir/vm1", "dir/vm1/", "a\0b"] {
                    client.option(option, &export_query(bad, &[])).await;
                    assert_eq!(client.option_replies(option).await, [(ERR_INVALID, vec![])], "{bad}");
                }
            }
        }
    });
}

#[test]
fn nbd_03_starttls_is_refused_and_what_was_negotiated_stays() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", 4096).await;
        let mut client = bench.connect();
        client.greet(3).await;
        client.structured().await;
        // An option sent in the same breath, as an attacker would inject it: without TLS it is simply the next one.
        let mut bytes = option_bytes(5, &[]);
        bytes.extend(option_bytes(3, &[]));
        client.send(&bytes).await;
        assert_eq!(client.option_replies(5).await, [(ERR_UNSUP, vec![])]);
        assert_eq!(client.option_replies(3).await.len(), 2);
        client.go("vm1").await;
        let read = client.ask(READ, 0, 0, 4096, &[]).await;
        assert_eq!(read.chunks, 1, "still in chunks");
    });
}

#[test]
fn list_names_every_file_below_volumes() {
    let bench = Bench::new();
    bench.world.run(async {
        let names = ["a", "b/c/d", "b/e", "z"];
        for name in names {
            bench.volume(name, 1).await;
        }
        let mut client = bench.connect();
        client.greet(3).await;
        client.option(3, &[]).await;
        let replies = client.option_replies(3).await;
        let listed: Vec<_> =
            replies[..replies.len() - 1].iter().map(|(kind, data)| (*kind, &data[4..])).collect();
        assert_eq!(listed, names.map(|n| (2, n.as_bytes())));
        client.option(2, &[]).await;
        assert_eq!(client.option_replies(2).await, [(ACK, vec![])], "ABORT is answered");
        assert!(client.hung_up().await);
    });
}

#[test]
fn a_list_is_bounded_in_names_and_in_bytes() {
    for (count, len) in [(5000, 4), (1500, 250)] {
        let bench = Bench::new();
        bench.world.run(async {
            for n in 0..count {
                bench.volume(&format!("{n:0len$}"), 0).await;
            }
            let mut client = bench.connect();
            client.greet(3).await;
            client.option(3, &[]).await;
            let listed = client.option_replies(3).await.len() - 1;
            assert!((700..=4096 + 256).contains(&listed) && listed * len <= 256 << 10, "{listed} of {count}");
            client.go(&format!("{:0len$}", count - 1)).await;
        });
    }
}

#[test]
fn contexts_are_listed_and_chosen_for_one_export() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", 1 << 20).await;
        bench.volume("vm2", 1 << 20).await;
        let mut client = bench.connect();
        client.greet(3).await;
        client.option(10, &context_query("vm1", &["base:allocation"])).await;
        assert_eq!(client.option_replies(10).await, [(ERR_INVALID, vec![])], "structured replies come first");
        client.structured().await;
        let listed = [(4, b"\0\0\0\0base:allocation".to_vec()), (ACK, vec![])];
        for queries in [&[][..], &["base:"], &["base:allocation", "x:y"]] {
            client.option(9, &context_query("vm1", queries)).await;
            assert_eq!(client.option_replies(9).await, listed, "{queries:?}");
        }
        for (option, queries) in [(9, &["qemu:"][..]), (10, &["base:"]), (10, &[])] {
            client.option(option, &context_query("vm1", queries)).await;
            assert_eq!(client.option_replies(option).await, [(ACK, vec![])], "{queries:?}");
        }
        client.option(10, &context_query("nope", &["base:allocation"])).await;
        assert_eq!(client.option_replies(10).await, [(ERR_UNKNOWN, vec![])]);
        client.choose_allocation("vm1").await;
        client.go("vm2").await;
        assert_eq!(
            client.ask(STATUS, 0, 0, 4096, &[]).await.error,
            EINVAL,
            "it was chosen for another export"
        );

        let mut client = bench.connect();
        client.greet(3).await;
        client.structured().await;
        client.choose_allocation("vm1").await;
        client.option(10, &context_query("vm1", &["other:context"])).await;
        assert_eq!(client.option_replies(10).await, [(ACK, vec![])]);
        client.go("vm1").await;
        assert_eq!(client.ask(STATUS, 0, 0, 4096, &[]).await.error, EINVAL, "the last choice counts");
    });
}

/// A whole session of qemu's kind, as bytes, with the number of bytes it is answered with.
fn session() -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(option_bytes(11, &[]));
    bytes.extend(option_bytes(8, &[]));
    bytes.extend(option_bytes(10, &context_query("vm1", &["base:allocation"])));
    bytes.extend(option_bytes(7, &export_query("vm1", &[3])));
    bytes.extend(request_bytes(WRITE, FUA, 1, 1000, 700));
    bytes.extend([7; 700]);
    bytes.extend(request_bytes(WRITE, 0, 2, 1 << 40, 300));
    bytes.extend([8; 300]);
    bytes.extend(request_bytes(READ, 0, 3, 900, 900));
    bytes.extend(request_bytes(FLUSH, 0, 4, 0, 0));
    bytes.extend(request_bytes(DISC, 0, 5, 0, 0));
    bytes
}

/// The answers to [`session`] up to the last byte; those of requests come in any order, so only their sum is compared.
async fn answers(client: &Client) -> (usize, u64) {
    let (mut count, mut sum) = (0, 0);
    let mut some = [0; 512];
    loop {
        match client.stream.recv(&mut some).await.unwrap() {
            0 => return (count, sum),
            n => {
                count += n;
                sum += some[..n].iter().map(|&b| u64::from(b)).sum::<u64>();
            }
        }
    }
}

#[test]
fn every_split_point_of_a_session_gives_the_same_answers() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", 1 << 20).await;
        let bytes = session();
        let client = bench.connect();
        client.send(&bytes).await;
        let whole = answers(&client).await;
        assert_eq!(bench.get(object, 1000, 700).await, [7; 700]);
        for cut in 0..bytes.len() {
            let client = bench.connect();
            client.send(&bytes[..cut]).await;
            bench.world.settle().await;
            client.send(&bytes[cut..]).await;
            assert_eq!(answers(&client).await, whole, "cut at {cut}");
        }
        for piece in [1, 2, 3, 17, 64] {
            let client = bench.connect_shaped(Shape { capacity: bytes.len() + 4096, piece });
            client.send(&bytes).await;
            assert_eq!(answers(&client).await, whole, "{piece} bytes at a time");
        }
        bench.world.settle().await;
        assert_eq!((bench.server.connections(), bench.share.claims()), (0, 0));
    });
}

#[test]
fn every_early_end_of_a_session_leaves_nothing_behind() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", 1 << 20).await;
        let bytes = session();
        for cut in 0..bytes.len() {
            for abort in [false, true] {
                let client = bench.connect();
                client.send(&bytes[..cut]).await;
                if abort {
                    client.stream.abort()
                } else {
                    client.stream.close()
                }
                bench.world.settle().await;
                assert_eq!((bench.server.connections(), bench.share.claims()), (0, 0), "cut at {cut}");
            }
        }
        assert_eq!(bench.world.tasks(), 0);
    });
}
