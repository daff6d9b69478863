//! Crash enumeration against toy logs: the right one passes, each broken one is caught.

use moraine_platform::{BlockDevice, Buf, Fua};
use moraine_sim::crash::{CrashPlan, CrashReport, Cut, enumerate};
use moraine_sim::{Image, SimDisk, World};
use std::rc::Rc;

const BLOCK: u64 = 4096;
const DISK: u64 = 1 << 20;
const RECORDS: u64 = 8;
/// Where the data a record refers to lies.
const DATA: u64 = 64;

/// How a toy log is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Toy {
    Right,
    /// Acknowledges without a flush.
    NoFlush,
    /// Believes a record by its number alone, though a tear may have spared only that.
    NoChecksum,
    /// Writes data and record together, the record with FUA, and flushes nothing.
    FuaCoversItself,
    /// Recovery skips gaps instead of ending at them.
    SkipsGaps,
    /// Recovery resets the tail of the log before it wrote the new end.
    DamagingRecovery,
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// A record: checksum, number, checksum of its data, and filler to the end so that it can tear.
fn record(n: u64, data: &Buf) -> Buf {
    let mut buf = Buf::zeroed(BLOCK as usize).unwrap();
    buf[8..16].copy_from_slice(&n.to_le_bytes());
    buf[16..24].copy_from_slice(&checksum(data).to_le_bytes());
    buf[24..].fill(n as u8);
    let sum = checksum(&buf[8..]);
    buf[..8].copy_from_slice(&sum.to_le_bytes());
    buf
}

fn data(n: u64) -> Buf {
    let mut buf = Buf::zeroed(BLOCK as usize).unwrap();
    buf.fill(n as u8 + 100);
    buf
}

async fn append(toy: Toy, disk: &SimDisk, n: u64) {
    if toy == Toy::FuaCoversItself {
        let written = disk.write((DATA + n) * BLOCK, data(n), Fua::No);
        let logged = disk.write(n * BLOCK, record(n, &data(n)), Fua::Yes);
        written.await.result.unwrap();
        logged.await.result.unwrap();
        return;
    }
    disk.write((DATA + n) * BLOCK, data(n), Fua::No).await.result.unwrap();
    if toy != Toy::NoFlush {
        disk.flush().await.unwrap();
    }
    disk.write(n * BLOCK, record(n, &data(n)), Fua::No).await.result.unwrap();
    if toy != Toy::NoFlush {
        disk.flush().await.unwrap();
    }
}

async fn load(disk: &SimDisk, block: u64) -> Buf {
    let done = disk.read(block * BLOCK, Buf::zeroed(BLOCK as usize).unwrap()).await;
    done.result.unwrap();
    done.buf
}

/// The records that survived, each with its data.
async fn recover(toy: Toy, disk: &SimDisk) -> Vec<u64> {
    let mut found = Vec::new();
    for n in 0..RECORDS {
        let log = load(disk, n).await;
        let number = u64::from_le_bytes(log[8..16].try_into().unwrap());
        let valid = log[..8] == checksum(&log[8..]).to_le_bytes();
        // Number 0 is what a blank block says: a record is told from it by its filler at least.
        let named = number == n && (n > 0 || valid);
        if if toy == Toy::NoChecksum { named } else { valid && named } {
            found.push(n);
        } else if toy != Toy::SkipsGaps {
            break;
        }
    }
    if toy == Toy::DamagingRecovery {
        // Makes the log end where it ended, by way of a log without its last record.
        if let Some(last) = found.last() {
            let keep = load(disk, *last).await;
            disk.write_zeroes(last * BLOCK, BLOCK).await.unwrap();
            disk.flush().await.unwrap();
            disk.write(last * BLOCK, keep, Fua::Yes).await.result.unwrap();
        }
    }
    found
}

fn check(toy: Toy, world: &World, disk: &SimDisk, cut: &Cut) -> Result<(), String> {
    world.run(async {
        let found = recover(toy, disk).await;
        if let Some(acked) = cut.marks.last()
            && !found.contains(acked)
        {
            return Err(format!("record {acked} was acknowledged and is gone"));
        }
        for n in &found {
            let content = load(disk, DATA + n).await;
            let log = load(disk, *n).await;
            if found.contains(&(n + 1)) || cut.marks.contains(n) {
                if content[..] != data(*n)[..] {
                    return Err(format!("record {n} refers to data that is not there"));
                }
            } else if log[..] != record(*n, &data(*n))[..] {
                return Err(format!("record {n} is torn"));
            }
        }
        if found.iter().zip(0..).any(|(n, place)| *n != place) {
            return Err(format!("not a prefix: {found:?}"));
        }
        Ok(())
    })
}

fn run(toy: Toy) -> CrashReport {
    let mut plan = CrashPlan::new(format!("toy {toy:?}"), 7, vec![Image::new(DISK)]);
    plan.second_level_max = 20;
    enumerate(
        &plan,
        |world: &World, disks: &[Rc<SimDisk>]| {
            world.run(async {
                for n in 0..RECORDS {
                    append(toy, &disks[0], n).await;
                    world.trace().mark(n);
                }
            });
        },
        |world, disks, (), cut| check(toy, world, &disks[0], cut),
    )
}

#[test]
fn the_right_toy_passes_every_cut() {
    let report = run(Toy::Right);
    report.expect_clean();
    assert!(report.cuts > 60 && report.worlds > 20, "{report}");
    assert!(report.duplicates > 0 && report.pruned > 0, "{report}");
}

#[test]
fn every_broken_toy_is_caught() {
    for (toy, complaint) in [
        (Toy::NoFlush, "acknowledged and is gone"),
        (Toy::NoChecksum, "torn"),
        (Toy::FuaCoversItself, "data that is not there"),
        (Toy::DamagingRecovery, "acknowledged and is gone"),
    ] {
        let report = run(toy);
        println!("{report}");
        let caught = report.failures.iter().any(|failure| failure.message.contains(complaint));
        assert!(caught, "{toy:?} must be caught with {complaint:?}:\n{report}");
    }
}

#[test]
fn a_gap_in_the_log_is_caught_when_appends_overlap() {
    let mut plan = CrashPlan::new("toy SkipsGaps", 7, vec![Image::new(DISK)]);
    plan.random_subsets = 16;
    let report = enumerate(
        &plan,
        |world, disks: &[Rc<SimDisk>]| {
            world.run(async {
                let writes: Vec<_> =
                    (0..RECORDS).map(|n| disks[0].write(n * BLOCK, record(n, &data(n)), Fua::No)).collect();
                for write in writes {
                    write.await.result.unwrap();
                }
            });
        },
        |world, disks, (), _| {
            let found = world.run(recover(Toy::SkipsGaps, &disks[0]));
            let gap = found.iter().zip(0..).any(|(n, place)| *n != place);
            if gap { Err(format!("not a prefix: {found:?}")) } else { Ok(()) }
        },
    );
    assert!(!report.failures.is_empty(), "{report}");
}
