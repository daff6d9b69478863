//! Memory that is free in small pieces only: a WRITE takes what finds room, and its client goes on from there.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "it uses its part of what the other tests share"
)]

#[path = "nfs/support/mod.rs"]
mod support;

use core::sync::atomic::{AtomicUsize, Ordering};
use moraine_platform::memory;
use support::*;

/// The largest buffer there is memory for.
static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// One test, since the gate is the whole process's.
#[test]
fn a_write_takes_less_when_no_piece_of_memory_is_large_enough() {
    memory::set_gate(|bytes| bytes <= LARGEST.load(Ordering::Relaxed));
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"file").await.unwrap();
        let data: Vec<u8> = (0..300_000_u32).map(|n| (n / 7) as u8).collect();
        for largest in [4 << 10, 32 << 10] {
            LARGEST.store(largest, Ordering::Relaxed);
            let (mut at, mut calls) = (1000, 0);
            while at < data.len() {
                let (count, ..) = client.write(&file, at as u64, &data[at..], 2).await.0.unwrap();
                assert!(count > 0 && count as usize <= largest, "{count} bytes were taken");
                at += count as usize;
                calls += 1;
            }
            assert!(calls <= 299_000_usize.div_ceil(largest / 2) + 2, "{calls} calls");
            LARGEST.store(usize::MAX, Ordering::Relaxed);
            let (read, _) = client.read(&file, 1000, 299_000).await.unwrap();
            assert_eq!(read, data[1000..]);
        }
    });
}
