//! How fast disks are through driver and reactor alone: the boot word `selftest=disks` reads random 4 KiB blocks of
//! every disk at several depths, prints a line each and powers off. Only a disk whose serial number is `scratch` is
//! written to: it is filled with patterns by commands of all kinds and sizes, which are read back.

use crate::machine::power;
use crate::reactor::Reactor;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::time::Duration;
use moraine_drivers::Service;
use moraine_platform::sync::Event;
use moraine_platform::{BLOCK_SIZE, BlockDevice, Buf, Fua, IoError, Platform};

/// Commands in flight at once, one after the other.
const DEPTHS: [u32; 4] = [1, 8, 32, 128];
/// How long each depth is measured.
const LASTS: Duration = Duration::from_millis(1500);

/// Serial number of a disk that may be overwritten.
const SCRATCH: &str = "scratch";
/// What the exercise covers, from the disk's start, and its largest command.
const EXERCISED: u64 = 64 << 20;
const COMMAND_MAX: u64 = 1 << 20;
/// Commands of the exercise.
const COMMANDS: u64 = 2000;

/// Why an exercise failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A command failed.
    Io(IoError),
    /// The block at this offset does not read as written.
    Differs(u64),
}

/// Measures all disks, then powers off.
pub(crate) fn run(disks: Vec<Rc<dyn BlockDevice>>, services: Vec<Rc<dyn Service>>) -> ! {
    let reactor = Reactor::new(services, false);
    let platform = reactor.platform();
    let measure = async move {
        for disk in &disks {
            if disk.info().identity.split(' ').next_back() == Some(SCRATCH) {
                let verdict = exercise(&platform, disk).await;
                let name = &disk.info().name;
                crate::console::plain(format_args!("moraine bench {name}: exercise: {verdict:?}"));
            }
            for depth in DEPTHS {
                let Reads { count, errors, worst } = read_at(&platform, disk, depth).await;
                let per_second = count * 1000 / LASTS.as_millis() as u64;
                let name = &disk.info().name;
                crate::console::plain(format_args!(
                    "moraine bench {name}: depth {depth}: {per_second} reads/s of 4 KiB, worst {worst:?}, {errors} errors"
                ));
            }
        }
    };
    reactor.run(measure, || {});
    crate::console::note_ending(kernel_parts::ring::Ending::Clean);
    power::off()
}

/// What a block of 512 bytes at `offset` holds after the write with this number: 0 is all zeroes.
fn expected(number: u64, offset: u64, block: &mut [u8]) {
    let word = if number == 0 { 0 } else { number << 40 | offset >> 9 };
    block.chunks_exact_mut(8).for_each(|c| c.copy_from_slice(&word.to_le_bytes()));
}

/// Writes, zeroes and discards at random, a flush now and then, many at once; then reads everything back.
async fn exercise(platform: &Platform, disk: &Rc<dyn BlockDevice>) -> Result<(), Fault> {
    let sector = u64::from(disk.info().logical_block);
    let size = EXERCISED.min(disk.info().size);
    // The number of the write that each sector holds; None: anything.
    let mut holds: Vec<Option<u64>> = alloc::vec![None; (size / sector) as usize];
    let mut random = platform.rng.next_u64() | 1;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % below
    };
    let mut number = 0;
    while number < COMMANDS {
        // A batch of disjoint commands, all in flight at once.
        let mut batch: Vec<moraine_platform::IoFuture<Result<(), IoError>>> = Vec::new();
        for lane in 0..32 {
            number += 1;
            let lane_len = size / 32 / sector;
            let longest = if next(8) == 0 { COMMAND_MAX / sector } else { 64 };
            let count = 1 + next(longest.min(lane_len));
            let first = lane * lane_len + next(lane_len - count + 1);
            let (offset, len) = (first * sector, count * sector);
            let sectors = &mut holds[first as usize..(first + count) as usize];
            match next(10) {
                0 => {
                    sectors.fill(Some(0));
                    batch.push(disk.write_zeroes(offset, len));
                }
                1 => {
                    sectors.fill(None);
                    batch.push(disk.discard(offset, len));
                }
                2 => batch.push(disk.flush()),
                kind => {
                    sectors.fill(Some(number));
                    let mut buf = Buf::zeroed(len as usize).expect("there is memory");
                    for (i, block) in buf.chunks_exact_mut(512).enumerate() {
                        expected(number, offset + i as u64 * 512, block);
                    }
                    let fua = if kind == 3 && disk.info().fua { Fua::Yes } else { Fua::No };
                    let write = disk.write(offset, buf, fua);
                    batch.push(Box::pin(async move { write.await.result }));
                }
            }
        }
        for command in batch {
            command.await.map_err(Fault::Io)?;
        }
    }
    let mut offset = 0;
    let mut block = alloc::vec![0; 512];
    while offset < size {
        let len = (sector * (1 + next(COMMAND_MAX / sector))).min(size - offset);
        let read = disk.read(offset, Buf::zeroed(len as usize).expect("there is memory")).await;
        read.result.map_err(Fault::Io)?;
        for (i, got) in read.buf.chunks_exact(512).enumerate() {
            let at = offset + i as u64 * 512;
            if let Some(number) = holds[(at / sector) as usize] {
                expected(number, at, &mut block);
                if got != block {
                    return Err(Fault::Differs(at));
                }
            }
        }
        offset += len;
    }
    Ok(())
}

/// What a measurement saw.
#[derive(Clone, Copy, Default)]
struct Reads {
    count: u64,
    errors: u64,
    worst: Duration,
}

/// Reads with `depth` tasks for a while.
async fn read_at(platform: &Platform, disk: &Rc<dyn BlockDevice>, depth: u32) -> Reads {
    let blocks = disk.info().size / BLOCK_SIZE as u64;
    let end = platform.clock.now() + LASTS;
    let seen: Rc<Cell<Reads>> = Rc::default();
    let (left, done) = (Rc::new(Cell::new(depth)), Rc::new(Event::new()));
    for _ in 0..depth {
        let (disk, clock, rng) = (disk.clone(), platform.clock.clone(), platform.rng.clone());
        let (seen, left, done) = (seen.clone(), left.clone(), done.clone());
        let task = async move {
            let mut buf = Buf::zeroed(BLOCK_SIZE).expect("there is memory");
            let mut random = rng.next_u64() | 1;
            let mut begin = clock.now();
            while begin < end {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let block = (random >> 20) % blocks;
                let read = disk.read(block * BLOCK_SIZE as u64, buf).await;
                buf = read.buf;
                let now = clock.now();
                let sum = seen.get();
                seen.set(Reads {
                    count: sum.count + 1,
                    errors: sum.errors + u64::from(read.result.is_err()),
                    worst: sum.worst.max(now.since(begin)),
                });
                begin = now;
            }
            left.set(left.get() - 1);
            done.notify();
        };
        platform.spawn.spawn("bench", Box::pin(task));
    }
    done.until(|| (left.get() == 0).then_some(())).await;
    seen.get()
}
