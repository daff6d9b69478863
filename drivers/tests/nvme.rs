//! The NVMe driver against a fake controller: data, order, errors, timeouts, reset, nonsense.

use moraine_drivers::{Found, Service};
use moraine_fake::nvme::{Fate, Media, Nvme};
use moraine_fake::{Board, Function, Random, probe};
use moraine_platform::{BlockDevice, Buf, Fua, IoDone, IoError, IoFuture};
use proptest::prelude::*;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

fn media(id: u32, block: usize, len: usize) -> Media {
    Media::of_bytes(id, block, vec![0xee; len])
}

struct Bench {
    board: Rc<Board>,
    nvme: Rc<Nvme>,
    function: Rc<Function>,
    found: Found,
}

impl Bench {
    fn with(media: Vec<Media>, seed: u64, edit: impl FnOnce(&Nvme)) -> Bench {
        let board = Board::new();
        let (nvme, function) = Nvme::attach(&board, media, seed);
        edit(&nvme);
        let found = probe(&board, std::slice::from_ref(&function), &[]);
        Bench { board, nvme, function, found }
    }

    fn new() -> Bench {
        Bench::with(vec![media(1, 512, 8 << 20)], 1, |_| ())
    }

    fn disk(&self) -> Rc<dyn BlockDevice> {
        self.found.disks[0].clone()
    }

    fn service(&self) -> &Rc<dyn Service> {
        &self.found.services[0]
    }

    fn run<T>(&self, future: IoFuture<T>) -> T {
        self.board.run(&self.found.services, future)
    }

    fn turn(&self) {
        self.service().poll();
        self.board.step();
        self.service().poll();
    }

    fn turns(&self, count: usize, time: Duration) {
        for _ in 0..count {
            self.turn();
            self.board.advance(time);
        }
    }
}

fn poll<T>(future: &mut IoFuture<T>) -> Poll<T> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn pattern(len: usize, seed: u64) -> Buf {
    let mut random = Random(seed);
    let mut buf = Buf::zeroed(len).unwrap();
    buf.chunks_mut(8).for_each(|c| c.copy_from_slice(&random.next().to_le_bytes()[..c.len()]));
    buf
}

#[test]
fn every_namespace_becomes_a_disk_and_unusable_ones_are_named() {
    let mut odd = media(7, 512, 1 << 20);
    odd.metadata = 8;
    let mut locked = media(9, 4096, 1 << 20);
    locked.write_protected = true;
    let bench = Bench::with(vec![media(1, 512, 1 << 20), media(4, 4096, 2 << 20), odd, locked], 1, |_| ());
    let names: Vec<_> = bench.found.disks.iter().map(|d| d.info().name.clone()).collect();
    assert_eq!(names, ["nvme0n1", "nvme0n4", "nvme0n9"]);
    assert_eq!(bench.found.disks[1].info().logical_block, 4096);
    assert_eq!(bench.found.disks[1].info().size, 2 << 20);
    assert_eq!(bench.found.disks[0].info().identity, "Fake controller SERIAL 1");
    assert!(bench.found.disks[2].info().read_only);
    assert_eq!(bench.found.failures.len(), 1);
    assert!(bench.found.failures[0].contains("nvme0n7"), "{:?}", bench.found.failures);
    // A write to one namespace does not show in another.
    let done = bench.run(bench.found.disks[1].write(8192, pattern(4096, 3), Fua::No));
    assert_eq!(done.result, Ok(()));
    assert_eq!(bench.nvme.media.borrow()[1].bytes[8192..12288], done.buf[..]);
    assert!(bench.nvme.media.borrow()[0].bytes.iter().all(|&b| b == 0xee));
    let refused = bench.run(bench.found.disks[2].write(0, pattern(4096, 3), Fua::No));
    assert_eq!(refused.result, Err(IoError::Invalid));
}

#[test]
fn dropping_everything_gives_all_memory_back_and_cuts_the_device_off() {
    let bench = Bench::new();
    assert!(bench.board.dma_pages_in_use() > 0);
    let mut pending = bench.disk().write(0, pattern(4096, 1), Fua::No);
    assert!(poll(&mut pending).is_pending());
    let Bench { board, function, found, .. } = bench;
    assert!(function.is_bus_master());
    drop((found, pending));
    assert_eq!(board.dma_pages_in_use(), 0);
    assert!(!function.is_bus_master());
}

#[test]
fn commands_outside_the_disk_or_off_its_blocks_are_refused() {
    let bench = Bench::new();
    let disk = bench.disk();
    let size = disk.info().size;
    for (offset, len) in [(size, 512), (size - 512, 1024), (100, 512), (0, 100), (u64::MAX - 511, 512)] {
        let done = bench.run(disk.read(offset, Buf::zeroed(len).unwrap()));
        assert_eq!(done.result, Err(IoError::Invalid), "read of {len} at {offset}");
        assert_eq!(done.buf.len(), len, "the buffer comes back");
        assert_eq!(bench.run(disk.discard(offset, len as u64)), Err(IoError::Invalid));
        assert_eq!(bench.run(disk.write_zeroes(offset, len as u64)), Err(IoError::Invalid));
    }
    assert!(bench.nvme.log.borrow().is_empty(), "nothing of it reached the device");
}

#[test]
fn fua_flush_discard_and_zeroes_reach_the_device() {
    let bench = Bench::new();
    let disk = bench.disk();
    assert_eq!(bench.run(disk.write(4096, pattern(4096, 1), Fua::Yes)).result, Ok(()));
    assert_eq!(bench.run(disk.flush()), Ok(()));
    assert_eq!(bench.run(disk.write_zeroes(0, 4096)), Ok(()));
    assert_eq!(bench.run(disk.discard(8192, 1 << 20)), Ok(()));
    let log = bench.nvme.log.borrow();
    let seen: Vec<_> = log.iter().map(|c| (c.opcode(), c.fua())).collect();
    assert_eq!(seen, [(1, true), (0, false), (8, false), (9, false)]);
    let media = bench.nvme.media.borrow();
    assert!(media[0].bytes[..4096].iter().all(|&b| b == 0));
    assert!(media[0].bytes[8192..][..1 << 20].iter().all(|&b| b == 0xdd));
    assert_eq!(media[0].bytes[8192 + (1 << 20)], 0xee);
}

#[test]
fn without_a_volatile_cache_flush_is_free_and_fua_is_plain() {
    let bench = Bench::with(vec![media(1, 512, 1 << 20)], 1, |n| n.volatile_cache.set(false));
    let disk = bench.disk();
    assert!(!disk.info().volatile_cache);
    assert_eq!(bench.run(disk.flush()), Ok(()));
    assert_eq!(bench.run(disk.write(0, pattern(512, 1), Fua::Yes)).result, Ok(()));
    let log = bench.nvme.log.borrow();
    assert_eq!(log.iter().map(|c| (c.opcode(), c.fua())).collect::<Vec<_>>(), [(1, false)]);
}

#[test]
fn zeroes_are_written_where_the_controller_has_no_command_for_them() {
    let bench = Bench::with(vec![media(1, 512, 4 << 20)], 1, |n| n.oncs.set(0));
    let disk = bench.disk();
    assert!(!disk.info().discard);
    assert_eq!(bench.run(disk.discard(0, 4096)), Ok(()));
    assert_eq!(bench.run(disk.write_zeroes(512, 3 << 20)), Ok(()));
    let media = bench.nvme.media.borrow();
    assert!(media[0].bytes[512..512 + (3 << 20)].iter().all(|&b| b == 0));
    assert_eq!((media[0].bytes[511], media[0].bytes[512 + (3 << 20)]), (0xee, 0xee));
}

#[test]
fn a_small_mdts_is_kept_by_cutting_transfers() {
    let bench = Bench::with(vec![media(1, 512, 4 << 20)], 1, |n| n.mdts.set(1));
    let disk = bench.disk();
    assert_eq!(disk.info().max_transfer, 128 * 1024);
    let data = pattern(100 * 1024 + 512, 4);
    let done = bench.run(disk.write(512, data, Fua::No));
    assert_eq!(done.result, Ok(()));
    assert_eq!(bench.nvme.media.borrow()[0].bytes[512..][..done.buf.len()], done.buf[..]);
    let read = bench.run(disk.read(512, Buf::zeroed(done.buf.len()).unwrap()));
    assert_eq!(read.result, Ok(()));
    assert!(read.buf[..] == done.buf[..]);
}

#[test]
fn many_commands_are_in_flight_and_share_a_doorbell() {
    let bench = Bench::with(vec![media(1, 4096, 8 << 20)], 1, |n| n.shuffle.set(false));
    let disk = bench.disk();
    assert!(disk.info().queue_depth >= 128);
    let before = bench.nvme.doorbells.get();
    let mut reads: Vec<_> = (0..200).map(|i| disk.read(i * 4096, Buf::zeroed(4096).unwrap())).collect();
    bench.turn();
    assert_eq!(bench.nvme.doorbells.get() - before, 1);
    assert_eq!(bench.nvme.most_in_flight.get(), 200);
    for read in &mut reads {
        assert!(matches!(poll(read), Poll::Ready(IoDone { result: Ok(()), .. })));
    }
    // And more than there are slots.
    let mut reads: Vec<_> = (0..1000).map(|i| disk.read(i * 4096, Buf::zeroed(4096).unwrap())).collect();
    bench.turns(10, Duration::ZERO);
    assert!(reads.iter_mut().all(|r| matches!(poll(r), Poll::Ready(IoDone { result: Ok(()), .. }))));
}

#[test]
fn completions_are_acknowledged_late_while_busy_and_before_sleep() {
    let bench = Bench::new();
    let disk = bench.disk();
    let before = bench.nvme.head_doorbells.get();
    for i in 0..100 {
        bench.run(disk.read(i * 512, Buf::zeroed(512).unwrap()));
    }
    assert_eq!(bench.nvme.head_doorbells.get(), before);
    assert!(bench.service().arm());
    assert_eq!(bench.nvme.head_doorbells.get(), before + 1);
}

#[test]
fn arming_sees_a_completion_that_came_meanwhile_and_interrupts_follow() {
    let bench = Bench::with(vec![media(1, 512, 1 << 20)], 1, |n| n.shuffle.set(false));
    let mut read = bench.disk().read(0, Buf::zeroed(512).unwrap());
    bench.service().poll();
    assert!(bench.service().arm(), "nothing there yet");
    assert!(bench.service().deadline().is_some());
    bench.board.step();
    assert_eq!(bench.board.interrupts.get(), 1);
    assert!(!bench.service().arm(), "the completion is there");
    assert!(bench.service().poll());
    assert!(poll(&mut read).is_ready());
    assert_eq!(bench.service().deadline(), None);
}

#[test]
fn interrupts_are_masked_while_busy_and_unmasked_to_sleep() {
    let bench = Bench::with(vec![media(1, 512, 1 << 20)], 1, |n| n.shuffle.set(false));
    for _ in 0..100 {
        bench.run(bench.disk().read(0, Buf::zeroed(512).unwrap()));
    }
    assert!(bench.board.interrupts.get() < 50, "{} interrupts", bench.board.interrupts.get());
    assert!(bench.service().arm());
    bench.board.interrupts.set(0);
    let _read = bench.disk().read(0, Buf::zeroed(512).unwrap());
    bench.service().poll();
    bench.board.step();
    assert_eq!(bench.board.interrupts.get(), 1);
}

#[test]
fn errors_are_told_apart() {
    let bench = Bench::new();
    let cases = [
        (0x281, IoError::Media),
        (0x280, IoError::Media),
        (0x02, IoError::Invalid),
        (0x80, IoError::Invalid),
        (0x06, IoError::Device),
        (0x7ff, IoError::Device),
    ];
    for (status, error) in cases {
        *bench.nvme.fate.borrow_mut() = Box::new(move |_| Fate::Fail(status));
        let done = bench.run(bench.disk().read(0, Buf::zeroed(4096).unwrap()));
        assert_eq!(done.result, Err(error), "status {status:#x}");
    }
    *bench.nvme.fate.borrow_mut() = Box::new(|_| Fate::Normal);
    assert_eq!(bench.run(bench.disk().read(0, Buf::zeroed(4096).unwrap())).result, Ok(()));
}

#[test]
fn transient_errors_are_tried_again_and_not_for_ever() {
    const DO_NOT_RETRY: u16 = 1 << 14;
    for (status, times, result) in [
        (0x82, 2, Ok(())),
        (0x21, 1, Ok(())),
        (0x82, 1000, Err(IoError::Device)),
        (0x82 | DO_NOT_RETRY, 1, Err(IoError::Device)),
        (0x281, 1, Err(IoError::Media)),
    ] {
        let bench = Bench::new();
        let mut seen = 0;
        *bench.nvme.fate.borrow_mut() = Box::new(move |_| {
            seen += 1;
            if seen <= times { Fate::Fail(status) } else { Fate::Normal }
        });
        let done = bench.run(bench.disk().read(0, Buf::zeroed(4096).unwrap()));
        assert_eq!(done.result, result, "status {status:#x}, {times} times");
        assert!(bench.nvme.log.borrow().len() <= 3);
    }
}

#[test]
fn an_error_in_one_piece_fails_the_whole_and_ends_it() {
    let bench = Bench::with(vec![media(1, 512, 4 << 20)], 5, |n| n.mdts.set(1));
    *bench.nvme.fate.borrow_mut() =
        Box::new(|c| if c.lba() == 64 { Fate::Fail(0x281) } else { Fate::Normal });
    let done = bench.run(bench.disk().read(0, Buf::zeroed(1 << 20).unwrap()));
    assert_eq!(done.result, Err(IoError::Media));
    assert_eq!(done.buf.len(), 1 << 20);
    *bench.nvme.fate.borrow_mut() = Box::new(|_| Fate::Normal);
    assert_eq!(bench.run(bench.disk().read(0, Buf::zeroed(1 << 20).unwrap())).result, Ok(()));
}

#[test]
fn a_dropped_write_still_happens_and_its_buffer_lives_until_then() {
    let bench = Bench::new();
    *bench.nvme.fate.borrow_mut() = Box::new(|_| Fate::Hang);
    drop(bench.disk().write(0, pattern(1 << 17, 9), Fua::No));
    bench.turns(3, Duration::from_millis(1));
    // Churn the heap: if the buffer had been freed this would land in it.
    let junk: Vec<_> = (0..64).map(|i| pattern(1 << 17, 1000 + i)).collect();
    bench.nvme.release();
    bench.turn();
    assert!(bench.nvme.media.borrow()[0].bytes[..1 << 17] == pattern(1 << 17, 9)[..]);
    drop(junk);
}

#[test]
fn a_late_command_is_aborted_and_answered_with_timeout() {
    let bench = Bench::new();
    let mut hang = true;
    *bench.nvme.fate.borrow_mut() =
        Box::new(move |_| if std::mem::take(&mut hang) { Fate::Hang } else { Fate::Normal });
    let mut write = bench.disk().write(0, pattern(4096, 1), Fua::No);
    bench.turns(20, Duration::from_secs(1));
    assert!(poll(&mut write).is_pending(), "a slow disk is not a dead one");
    bench.turns(20, Duration::from_secs(1));
    let Poll::Ready(done) = poll(&mut write) else { panic!("aborted by now") };
    assert_eq!(done.result, Err(IoError::Timeout));
    assert_eq!(bench.nvme.resets.get(), 0, "no reset was needed");
    assert_eq!(bench.run(bench.disk().write(0, done.buf, Fua::No)).result, Ok(()));
}

#[test]
fn a_late_write_is_quarantined_until_the_reset_and_the_others_begin_again() {
    let bench = Bench::new();
    bench.nvme.can_abort.set(false);
    bench.nvme.shuffle.set(false);
    let mut hangs = 8;
    *bench.nvme.fate.borrow_mut() = Box::new(move |_| {
        hangs -= i32::from(hangs > 0);
        if hangs > 0 { Fate::Hang } else { Fate::Normal }
    });
    let mut late = bench.disk().write(0, pattern(4096, 1), Fua::No);
    // Younger commands that hang too.
    bench.turns(20, Duration::from_secs(1));
    let mut young: Vec<_> =
        (1..7).map(|i| bench.disk().write(i * 4096, pattern(4096, 1 + i), Fua::No)).collect();
    bench.turns(3, Duration::from_millis(100));
    assert_eq!(bench.nvme.hung(), 7);
    let issued = bench.nvme.log.borrow().len();
    // Time out; abort fails; before the reset nothing new goes out and nothing is answered.
    let mut held = None;
    for _ in 0..200 {
        bench.turn();
        bench.board.advance(Duration::from_millis(100));
        if held.is_none() && bench.nvme.resets.get() == 0 && poll(&mut late).is_ready() {
            panic!("answered before the reset");
        }
        if bench.nvme.resets.get() > 0 {
            held = Some(bench.nvme.log.borrow().len());
            break;
        }
    }
    assert_eq!(held, Some(issued));
    bench.turns(20, Duration::from_millis(10));
    let Poll::Ready(done) = poll(&mut late) else { panic!("answered after the reset") };
    assert_eq!(done.result, Err(IoError::Timeout));
    for (i, write) in young.iter_mut().enumerate() {
        let Poll::Ready(done) = poll(write) else { panic!("write {i} began again") };
        assert_eq!(done.result, Ok(()), "write {i}");
        assert!(bench.nvme.media.borrow()[0].bytes[(i + 1) * 4096..][..4096] == done.buf[..]);
    }
    assert!(
        bench.nvme.media.borrow()[0].bytes[..4096].iter().all(|&b| b == 0xee),
        "the late write never landed"
    );
}

#[test]
fn a_fatal_controller_is_reset_and_goes_on() {
    let bench = Bench::new();
    let mut write = bench.disk().write(0, pattern(4096, 1), Fua::No);
    bench.nvme.set_fatal();
    bench.turns(20, Duration::from_millis(500));
    assert!(bench.nvme.resets.get() >= 1);
    assert!(matches!(poll(&mut write), Poll::Ready(IoDone { result: Ok(()), .. })));
}

#[test]
fn a_controller_that_cannot_be_reset_is_cut_off_and_everything_fails() {
    let bench = Bench::new();
    bench.nvme.can_abort.set(false);
    bench.nvme.can_reset.set(false);
    *bench.nvme.fate.borrow_mut() = Box::new(|_| Fate::Hang);
    let mut writes: Vec<_> =
        (0..300).map(|i| bench.disk().write(i * 4096, pattern(4096, i), Fua::No)).collect();
    bench.turns(45, Duration::from_secs(1));
    assert!(writes.iter_mut().all(|w| poll(w).is_pending()), "no answer while a reset may still work");
    assert!(bench.function.is_bus_master());
    bench.turns(60, Duration::from_secs(1));
    assert!(!bench.function.is_bus_master(), "cut off before buffers go back");
    for write in &mut writes {
        let Poll::Ready(done) = poll(write) else { panic!("everything is answered") };
        assert!(matches!(done.result, Err(IoError::Gone | IoError::Timeout)), "{:?}", done.result);
    }
    let done = bench.run(bench.disk().read(0, Buf::zeroed(4096).unwrap()));
    assert_eq!(done.result, Err(IoError::Gone));
    assert_eq!(bench.service().deadline(), None);
}

#[test]
fn a_controller_that_vanishes_fails_everything() {
    let bench = Bench::new();
    *bench.nvme.fate.borrow_mut() = Box::new(|_| Fate::Hang);
    let mut write = bench.disk().write(0, pattern(4096, 1), Fua::No);
    bench.turns(2, Duration::from_millis(1));
    bench.nvme.absent.set(true);
    bench.turns(5, Duration::from_secs(1));
    assert!(matches!(poll(&mut write), Poll::Ready(IoDone { result: Err(IoError::Gone), .. })));
}

#[test]
fn a_controller_that_is_taken_away_is_noticed_whatever_its_registers_read_as() {
    for reads in [u64::MAX, 0] {
        let bench = Bench::new();
        *bench.nvme.fate.borrow_mut() = Box::new(|_| Fate::Hang);
        let mut write = bench.disk().write(0, pattern(4096, 1), Fua::No);
        bench.turns(2, Duration::from_millis(1));
        bench.nvme.absent.set(true);
        bench.nvme.absent_reads.set(reads);
        bench.function.unplugged.set(true);
        bench.turns(4, Duration::from_secs(1));
        assert!(
            matches!(poll(&mut write), Poll::Ready(IoDone { result: Err(IoError::Gone), .. })),
            "{reads:x}"
        );
    }
}

#[test]
fn completions_of_commands_never_given_change_nothing() {
    let bench = Bench::new();
    let disk = bench.disk();
    *bench.nvme.fate.borrow_mut() = Box::new(|_| Fate::Hang);
    let mut read = disk.read(0, Buf::zeroed(4096).unwrap());
    bench.turns(2, Duration::from_millis(1));
    let real = bench.nvme.log.borrow()[0].id();
    let junk = (0..=u16::MAX).step_by(97).filter(|&id| id != real);
    for id in junk {
        bench.nvme.junk.borrow_mut().push(id);
        bench.turn();
    }
    assert!(poll(&mut read).is_pending());
    bench.nvme.release();
    // Twice the same id: the second is nobody's.
    bench.nvme.junk.borrow_mut().push(real);
    bench.turn();
    assert!(matches!(poll(&mut read), Poll::Ready(IoDone { result: Ok(()), .. })));
}

#[test]
fn shutting_down_tells_the_controller() {
    let bench = Bench::new();
    bench.service().shut_down();
    assert!(bench.nvme.was_shut_down());
    let board = bench.board.clone();
    let begin = moraine_drivers::Hal::now(&*board);
    bench.nvme.absent.set(true);
    bench.service().shut_down();
    let took = moraine_drivers::Hal::now(&*board).since(begin);
    assert!(took < Duration::from_secs(20), "a controller that is gone is not waited for: {took:?}");
}

#[test]
fn a_machine_short_of_memory_says_so() {
    let board = Board::new();
    let (_nvme, function) = Nvme::attach(&board, vec![media(1, 512, 1 << 20)], 1);
    for pages in 0..64 {
        board.dma_pages_left.set(pages);
        let found = probe(&board, std::slice::from_ref(&function), &[]);
        assert_eq!(found.disks.len() + found.failures.len(), 1);
        if found.disks.is_empty() {
            assert!(found.failures[0].contains("memory"), "{:?}", found.failures);
        }
        drop(found);
        assert_eq!(board.dma_pages_in_use(), 0);
    }
}

#[test]
fn a_controller_that_never_gets_ready_is_reported_not_waited_for() {
    let bench = Bench::with(vec![media(1, 512, 1 << 20)], 1, |n| n.can_reset.set(false));
    assert!(bench.found.disks.is_empty());
    assert!(bench.found.failures[0].contains("0000:00:03.0"), "{:?}", bench.found.failures);
}

/// Runs random commands, disjoint while in flight, against a model of the disk.
fn random_commands(seed: u64, depth: usize, block: usize, mqes: u16, errors: bool) {
    const SIZE: usize = 4 << 20;
    let bench = Bench::with(vec![media(1, block, SIZE)], seed, |n| n.mqes.set(mqes));
    let disk = bench.disk();
    let mut random = Random(seed ^ 1);
    if errors {
        let mut dice = Random(seed ^ 2);
        *bench.nvme.fate.borrow_mut() = Box::new(move |_| match dice.below(40) {
            0 => Fate::Fail(0x281),
            1 => Fate::Fail(0x06),
            2 => Fate::Hang,
            _ => Fate::Normal,
        });
    }
    enum Pending {
        Read(IoFuture<IoDone>, usize),
        Write(IoFuture<IoDone>, usize),
        Zero(IoFuture<Result<(), IoError>>, usize, usize),
        Flush(IoFuture<Result<(), IoError>>),
    }
    let mut model = vec![0xeeu8; SIZE];
    // Blocks whose content is not known after a failed write.
    let mut unknown = vec![false; SIZE / block];
    let mut pending: Vec<Pending> = Vec::new();
    let mut busy = vec![false; SIZE / block];
    let mut issued = 0;
    let mut rounds = 0;
    while issued < 400 || !pending.is_empty() {
        rounds += 1;
        assert!(rounds < 200_000, "everything is answered");
        while issued < 400 && pending.len() < depth {
            issued += 1;
            let longest = if random.chance(20) { 300 * 4096 / block as u64 } else { 8 };
            let blocks = 1 + random.below(longest) as usize;
            let start = random.below((SIZE / block - blocks) as u64) as usize;
            if busy[start..start + blocks].iter().any(|&b| b) {
                continue;
            }
            let (at, len) = (start * block, blocks * block);
            busy[start..start + blocks].fill(true);
            match random.below(10) {
                0..4 => pending.push(Pending::Read(disk.read(at as u64, Buf::zeroed(len).unwrap()), at)),
                4..8 => {
                    let fua = if random.chance(30) { Fua::Yes } else { Fua::No };
                    pending.push(Pending::Write(disk.write(at as u64, pattern(len, random.next()), fua), at));
                }
                8 => pending.push(Pending::Zero(disk.write_zeroes(at as u64, len as u64), at, len)),
                _ => {
                    busy[start..start + blocks].fill(false);
                    pending.push(Pending::Flush(disk.flush()));
                }
            }
        }
        bench.turn();
        if errors {
            bench.board.advance(Duration::from_millis(200));
        }
        let blocks_of = |at: usize, len: usize| at / block..(at + len) / block;
        let mut i = 0;
        while i < pending.len() {
            let done = match &mut pending[i] {
                Pending::Read(future, at) => match poll(future) {
                    Poll::Ready(done) => {
                        busy[blocks_of(*at, done.buf.len())].fill(false);
                        if done.result.is_ok() {
                            for (b, chunk) in done.buf.chunks(block).enumerate() {
                                let at = *at + b * block;
                                assert!(
                                    unknown[at / block] || *chunk == model[at..at + block],
                                    "block at {at}"
                                );
                            }
                        } else {
                            assert!(errors);
                        }
                        true
                    }
                    Poll::Pending => false,
                },
                Pending::Write(future, at) => match poll(future) {
                    Poll::Ready(done) => {
                        assert!(errors || done.result.is_ok());
                        busy[blocks_of(*at, done.buf.len())].fill(false);
                        unknown[blocks_of(*at, done.buf.len())].fill(done.result.is_err());
                        model[*at..*at + done.buf.len()].copy_from_slice(&done.buf);
                        true
                    }
                    Poll::Pending => false,
                },
                Pending::Zero(future, at, len) => match poll(future) {
                    Poll::Ready(result) => {
                        assert!(errors || result.is_ok());
                        busy[blocks_of(*at, *len)].fill(false);
                        unknown[blocks_of(*at, *len)].fill(result.is_err());
                        model[*at..*at + *len].fill(0);
                        true
                    }
                    Poll::Pending => false,
                },
                Pending::Flush(future) => poll(future).is_ready(),
            };
            if done {
                drop(pending.swap_remove(i));
            } else {
                i += 1;
            }
        }
    }
    for (b, chunk) in bench.nvme.media.borrow()[0].bytes.chunks(block).enumerate() {
        assert!(unknown[b] || *chunk == model[b * block..][..block], "block {b} at the end");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn data_survives_any_order_size_and_depth(seed: u64, depth in 1usize..400, shift in 9u32..13, mqes in 1u16..600) {
        random_commands(seed, depth, 1 << shift, mqes, false);
    }

    #[test]
    fn errors_hangs_and_resets_hurt_only_their_own(seed: u64, depth in 1usize..100, mqes in 3u16..600) {
        random_commands(seed, depth, 4096, mqes, true);
    }

    #[test]
    fn a_controller_that_identifies_as_anything_is_used_or_refused(seed: u64, garbled in 1u64..101) {
        let bench = Bench::with(vec![media(1, 512, 1 << 20)], seed, |n| n.garbled.set(garbled));
        for disk in &bench.found.disks {
            let done = bench.run(disk.read(0, Buf::zeroed(4096).unwrap()));
            prop_assert_eq!(done.buf.len(), 4096);
        }
    }
}
