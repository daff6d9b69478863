//! Bytes no honest client sends: the connection that sent them may end, the server and everybody else go on.

use crate::support::client::record;
use crate::support::{Client, World};
use moraine_nfs::v3::wire::Procedure;
use moraine_platform::Stream;
use std::time::Duration;

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % sides
    }
}

/// Sends bytes on a fresh connection; then an honest client must be served.
fn survives(world: &World, bytes: Vec<u8>, honest: &Client, root: &[u8]) {
    let attacker = world.client();
    world.start(async move {
        let stream: &dyn Stream = &*attacker.stream;
        let _ = stream.send_all(&bytes).await;
        stream.close();
        let mut sink = [0; 4096];
        while let Ok(1..) = stream.recv(&mut sink).await {}
    });
    // Connections are told apart by when they last had a call, so the clock must not stand still for long.
    world.pass(Duration::from_millis(1));
    let (honest, root) = (honest.clone(), root.to_vec());
    world.run(async move { assert!(honest.getattr(&root).await.is_ok()) });
}

#[test]
fn garbage_records_end_their_connection_and_nobody_elses() {
    let world = World::new();
    let honest = world.client();
    let setup = honest.clone();
    let root = world.run(async move { setup.root().await });
    let mut dice = Dice(1);
    let mut samples: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: storage\r\n\r\n".to_vec(),
        vec![0; 100_000],
        vec![0xff; 100_000],
        record(b""),
        record(b"abc"),
        record(&[0; 28]),
        (0x8000_0000u32 | 5000).to_be_bytes().to_vec(),
    ];
    for _ in 0..300 {
        let len = 1 + dice.roll(300);
        let bytes: Vec<u8> = (0..len).map(|_| dice.roll(256) as u8).collect();
        samples.push(if dice.roll(2) == 0 { record(&bytes) } else { bytes });
    }
    for bytes in samples {
        survives(&world, bytes, &honest, &root);
    }
    assert_eq!(world.server.connections(), 1, "what was left half sent is gone");
    assert!(world.server.counters().dropped > 0);
}

#[test]
fn honest_calls_with_any_byte_or_word_changed_do_no_harm() {
    let world = World::new();
    let honest = world.client();
    let setup = honest.clone();
    let (root, file) = world.run(async move {
        let root = setup.root().await;
        let file = setup.create(&root, b"f").await.unwrap();
        (root, file)
    });
    let calls = [
        honest.nfs(Procedure::Write, |e| {
            e.opaque(&file).u64(3).u32(9).u32(2).opaque(b"some data");
        }),
        honest.nfs(Procedure::ReadDirPlus, |e| {
            e.opaque(&root).u64(0).u64(0).u32(512).u32(1024);
        }),
        honest.nfs(Procedure::SymLink, |e| {
            e.opaque(&root).opaque(b"s").u32(0).u32(0).u32(0).u32(0).u32(0).u32(0).opaque(b"target");
        }),
        honest.nfs(Procedure::Rename, |e| {
            e.opaque(&root).opaque(b"f").opaque(&root).opaque(b"g");
        }),
        honest.message((100_005, 3, 1), |e| {
            e.opaque(b"/volumes");
        }),
    ];
    for call in &calls {
        let whole = record(call);
        for word in 0..whole.len() / 4 {
            for value in [0u32, 1, 3, 0xff, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
                let mut bytes = whole.clone();
                bytes[word * 4..word * 4 + 4].copy_from_slice(&value.to_be_bytes());
                survives(&world, bytes, &honest, &root);
            }
        }
    }
    let mut dice = Dice(7);
    for _ in 0..1000 {
        let mut bytes = record(&calls[dice.roll(calls.len())]);
        for _ in 0..1 + dice.roll(4) {
            let at = dice.roll(bytes.len());
            bytes[at] = dice.roll(256) as u8;
        }
        bytes.truncate(1 + dice.roll(bytes.len()));
        survives(&world, bytes, &honest, &root);
    }
    assert_eq!(world.server.connections(), 1);
}

#[test]
fn a_flood_of_names_that_do_not_exist_costs_nothing_that_stays() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        for i in 0..3000 {
            let name = format!("nothing{i}");
            assert_eq!(client.lookup(&root, name.as_bytes()).await, Err(2));
            assert_eq!(client.unlink(Procedure::Remove, &root, name.as_bytes()).await.0, 2);
        }
    });
}
