//! Memory that is short, or free only in small pieces: work goes on, and what is kept for speed is given back.

mod common;

use common::{Shape, content, data, file, pattern, root, run};
use core::sync::atomic::{AtomicUsize, Ordering};
use moraine_fs::vfs::*;
use moraine_platform::memory;

/// The largest buffer there is memory for.
static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);
const FILE_BYTES: usize = 1 << 20;

fn only_up_to(bytes: usize) {
    memory::set_gate(|bytes| bytes <= LARGEST.load(Ordering::Relaxed));
    LARGEST.store(bytes, Ordering::Relaxed);
}

/// One test, since the gate is the whole process's.
#[test]
fn write_back_makes_do_with_small_pieces_and_gives_memory_back() {
    // Before the world, which has a gate as well: the first one stays.
    only_up_to(usize::MAX);
    run(1, Shape::default(), async |_, fs| {
        let bytes = pattern(1, FILE_BYTES);
        let object = file(&fs, b"file").await;
        fs.write(&root(), object, 0, data(0, &bytes), Stability::Unstable).await.unwrap();
        assert!(fs.cache_bytes().1 >= FILE_BYTES, "all of it is dirty");

        // Free memory in pieces of one page: 128 KiB for an extent cannot be had.
        only_up_to(4096);
        fs.sync_all().await.unwrap();
        assert_eq!(fs.cache_bytes().1, 0, "written back all the same");
        let held = fs.cache_bytes().0;
        fs.memory_is_short();
        assert!(fs.cache_bytes().0 <= held / 2, "half of what is clean goes");
        for _ in 0..20 {
            fs.memory_is_short();
        }
        let left = fs.cache_bytes().0;
        assert!(left < FILE_BYTES / 4, "in the end nothing is kept: {left} bytes are");

        only_up_to(usize::MAX);
        assert_eq!(content(&fs, object).await, bytes, "read back from the device");

        // A large read makes do with small pieces, too; if there are none at all, it says so and nothing breaks.
        let object = file(&fs, b"other").await;
        fs.write(&root(), object, 0, data(0, &bytes), Stability::FileSync).await.unwrap();
        for _ in 0..20 {
            fs.memory_is_short();
        }
        only_up_to(4096);
        assert_eq!(content(&fs, object).await, bytes, "in pieces of a page");
        only_up_to(0);
        for _ in 0..20 {
            fs.memory_is_short();
        }
        let refused = fs.read(&root(), object, 0, 128 << 10).await.err();
        assert_eq!(refused, Some(FsError::NoMemory));
        only_up_to(usize::MAX);
        assert_eq!(content(&fs, object).await, bytes);
    });
}
