//! Data both ways over every kind of card and of bad wire.

use super::wire::{Card, FULL, Held, Kind, PLAIN, SUMS, Treatment, wire};
use super::world::World;
use crate::{Addressing, Config, Stack, StaticAddress};
use core::cell::RefCell;
use core::net::{IpAddr, SocketAddr};
use moraine_platform::sync::Event;
use moraine_platform::{Clock, Network, Stream};
use std::collections::VecDeque;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

/// Both ends of a wire with a stack on each: `10.0.0.1`/`fd00::1` and `10.0.0.2`/`fd00::2`.
pub(super) struct Pair {
    pub(super) world: World,
    pub(super) stacks: [Stack; 2],
    pub(super) cards: [Rc<Card>; 2],
}

pub(super) fn address(v6: bool, host: u16) -> IpAddr {
    if v6 { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host]) } else { IpAddr::from([10, 0, 0, host as u8]) }
}

pub(super) fn config(host: u16) -> Config {
    let at = |v6, prefix| StaticAddress { address: address(v6, host), prefix, gateway: None };
    Config { addressing: Addressing::Static(vec![at(false, 24), at(true, 64)]), ..Config::default() }
}

pub(super) fn pair(seed: u64, kinds: [Kind; 2], configs: [Config; 2]) -> Pair {
    let world = World::new(seed);
    let (a, b) = wire(&world, kinds[0], kinds[1]);
    let stack = |card: &Rc<Card>, config: &Config| {
        let stack = Stack::new(&world.platform(), Rc::new(Held(card.clone())), config).unwrap();
        world.start(stack.clone().run());
        stack
    };
    let stacks = [stack(&a, &configs[0]), stack(&b, &configs[1])];
    Pair { world, stacks, cards: [a, b] }
}

pub(super) fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([0; 4]), port)
}

/// The byte at `at` of the stream with this `tag`.
fn byte(tag: u8, at: usize) -> u8 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[6] ^ tag
}

async fn send_pattern(stream: &Rc<dyn Stream>, tag: u8, len: usize) {
    let data: Vec<u8> = (0..len).map(|at| byte(tag, at)).collect();
    stream.send_all(&data).await.unwrap();
    stream.close();
}

async fn expect_pattern(stream: &Rc<dyn Stream>, tag: u8, len: usize) {
    let mut at = 0;
    let mut chunk = vec![0; 30_011];
    loop {
        let n = stream.recv(&mut chunk).await.unwrap();
        if n == 0 {
            break;
        }
        for &got in &chunk[..n] {
            assert_eq!(got, byte(tag, at), "byte {at}");
            at += 1;
        }
    }
    assert_eq!(at, len);
}

/// How two directions follow each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    AtOnce,
    OneAfterTheOther,
}

/// `len` bytes in each direction; the virtual milliseconds it took.
fn exchange(pair: &Pair, v6: bool, len: usize, order: Order) -> u128 {
    let Pair { world, stacks: [a, b], .. } = pair;
    let listener = b.listen(any(2049)).unwrap();
    let (connect, inner) = (a.connect(SocketAddr::new(address(v6, 2), 2049)), world.clone());
    let start = world.now();
    world.run(async move {
        let client = connect.await.unwrap();
        let server = listener.accept().await.unwrap();
        assert_eq!((client.local(), client.peer()), (server.peer(), server.local()));
        let (reader, writer) = (server.clone(), client.clone());
        inner.start(async move { send_pattern(&writer, 1, len).await });
        if order == Order::OneAfterTheOther {
            expect_pattern(&reader, 1, len).await;
        }
        inner.start(async move { send_pattern(&server, 2, len).await });
        if order == Order::AtOnce {
            expect_pattern(&reader, 1, len).await;
        }
        expect_pattern(&client, 2, len).await;
    });
    world.now().since(start).as_millis()
}

#[test]
fn megabytes_pass_both_ways_over_cards_of_every_kind() {
    for kinds in [[PLAIN, PLAIN], [SUMS, SUMS], [FULL, FULL], [FULL, PLAIN], [PLAIN, FULL], [SUMS, FULL]] {
        for v6 in [false, true] {
            let pair = pair(1, kinds, [config(1), config(2)]);
            exchange(&pair, v6, 3 << 20, Order::AtOnce);
            let longest = pair.cards[0].longest.get();
            let cuts = kinds[0].capabilities.tx_tcp4_segmentation && !v6;
            assert_eq!(longest > 1514, cuts, "{kinds:?}: longest frame {longest}");
        }
    }
}

#[test]
fn bytes_arrive_whole_over_a_wire_that_loses_reorders_doubles_and_damages() {
    let bad = Treatment { lost: 20, late: 50, damaged: 10, doubled: 10 };
    for (seed, kinds) in [(1, [PLAIN, PLAIN]), (2, [SUMS, SUMS]), (3, [FULL, FULL]), (4, [FULL, PLAIN])] {
        let pair = pair(seed, kinds, [config(1), config(2)]);
        for card in &pair.cards {
            card.treatment.set(bad);
        }
        // Not both directions at once: after a timeout smoltcp acknowledges with a rewound sequence number, which
        // another smoltcp in the same state takes for an old segment, for ever. Other systems do not rewind.
        exchange(&pair, seed % 2 == 0, 1 << 20, Order::OneAfterTheOther);
        // What the stack verifies itself it counts; a plain card leaves that to smoltcp.
        if kinds[1].capabilities.rx_checksum {
            assert!(pair.stacks[1].counters().damaged > 0, "{kinds:?}");
        }
    }
}

#[test]
fn a_transfer_is_bound_by_the_window_and_not_by_timers() {
    // 4 MiB with 128 KiB windows at 100 µs round trip are 32 round trips and some: a stall shows as 10 ms or more.
    let pair = pair(5, [FULL, FULL], [config(1), config(2)]);
    let took_ms = exchange(&pair, false, 4 << 20, Order::AtOnce);
    assert!(took_ms < 30, "{took_ms} ms");
}

#[test]
fn a_request_and_its_reply_cost_two_frames_and_an_acknowledgement() {
    let pair = pair(6, [FULL, FULL], [config(1), config(2)]);
    let Pair { world, stacks: [a, b], cards } = &pair;
    let listener = b.listen(any(2049)).unwrap();
    let connect = a.connect(SocketAddr::new(address(false, 2), 2049));
    let inner = world.clone();
    world.run({
        let cards = cards.clone();
        async move {
            let client = connect.await.unwrap();
            let server = listener.accept().await.unwrap();
            // As the servers of export/ do it: one task receives, one works on the call, one sends.
            let (replies, written) = (Rc::new(RefCell::new(VecDeque::new())), Rc::new(Event::new()));
            inner.start({
                let (server, inner, replies, written) =
                    (server.clone(), inner.clone(), replies.clone(), written.clone());
                async move {
                    let mut request = [0; 100];
                    while server.recv_exact(&mut request).await.unwrap() {
                        let (replies, written) = (replies.clone(), written.clone());
                        inner.start(async move {
                            replies.borrow_mut().push_back(request);
                            written.notify();
                        });
                    }
                }
            });
            inner.start(async move {
                loop {
                    let reply = written.until(|| replies.borrow_mut().pop_front()).await;
                    server.send_all(&reply).await.unwrap();
                }
            });
            let mut reply = [0; 100];
            client.send_all(&[7; 100]).await.unwrap();
            client.recv_exact(&mut reply).await.unwrap();
            inner.sleep(core::time::Duration::from_millis(1)).await;
            let before = (cards[0].sent.get(), cards[1].sent.get());
            for _ in 0..100 {
                client.send_all(&[7; 100]).await.unwrap();
                client.recv_exact(&mut reply).await.unwrap();
            }
            inner.sleep(core::time::Duration::from_millis(1)).await;
            let sent = (cards[0].sent.get() - before.0, cards[1].sent.get() - before.1);
            assert_eq!(sent.1, 100, "each reply carries the acknowledgement of its request");
            assert!(sent.0 <= 101, "each request carries the acknowledgement of the last reply: {}", sent.0);
        }
    });
}
