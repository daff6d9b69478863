//! Memory that is free in small pieces only: writes and zeroes go on in as many parts as it takes.

mod support;

use core::sync::atomic::{AtomicUsize, Ordering};
use moraine_platform::memory;
use support::client::*;
use support::{Bench, Dice};

const MIB: u64 = 1 << 20;
/// The largest buffer there is memory for.
static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// One test, since the gate is the whole process's.
#[test]
fn writes_go_on_in_parts_when_no_piece_of_memory_is_large_enough() {
    memory::set_gate(|bytes| bytes <= LARGEST.load(Ordering::Relaxed));
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let mut client = bench.open("vm1").await;
        let data = Dice::new(1).bytes(300_000);
        for largest in [4 << 10, 32 << 10] {
            LARGEST.store(largest, Ordering::Relaxed);
            // FUA, in one piece and in several, and not on a block's border.
            for (at, len) in [(0, 100_000), (131_072, 131_072), (1000, 300_000), (511, 700)] {
                let reply = client.ask(WRITE, FUA, at, len as u32, &data[..len]).await;
                assert_eq!(reply.error, 0, "{len} at {at} in pieces of {largest}");
                assert_eq!(bench.get(object, at, len as u32).await, data[..len]);
            }
            let reply = client.ask(ZERO, NO_HOLE, 5000, 200_000, &[]).await;
            assert_eq!(reply.error, 0);
            LARGEST.store(usize::MAX, Ordering::Relaxed);
            assert!(bench.get(object, 5000, 200_000).await.iter().all(|byte| *byte == 0));
            assert_eq!(bench.get(object, 1211, 3789).await, data[211..4000], "and nothing before it");
        }
    });
}
