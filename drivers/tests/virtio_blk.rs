//! The virtio-blk driver against a fake device on each bus.

use moraine_drivers::{Found, Hal, MmioWindow, Service};
use moraine_fake::virtio::{Backend, Bus, Chain, EVENT_IDX, INDIRECT, MMIO, VERSION_1, Virtio};
use moraine_fake::{Board, Function, Random, probe};
use moraine_platform::{BlockDevice, Buf, Fua, IoDone, IoError, IoFuture};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const SIZE_MAX: u64 = 1 << 1;
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
const CACHE_MODE: u64 = 1 << 11;
const DISCARD: u64 = 1 << 13;
const ZEROES: u64 = 1 << 14;
const ALL: u64 = SEG_MAX | BLOCK_SIZE | FLUSH | TOPOLOGY | CACHE_MODE | DISCARD | ZEROES;
const MODERN: u64 = VERSION_1 | EVENT_IDX | INDIRECT;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Normal,
    Status(u8),
    /// Given back without a status.
    Silent,
    Hang,
}

/// The disk behind the queue.
struct Disk {
    bytes: RefCell<Vec<u8>>,
    pending: RefCell<Vec<Chain>>,
    hung: RefCell<Vec<Chain>>,
    shuffle: Cell<bool>,
    fate: RefCell<Box<dyn FnMut(u32) -> Fate>>,
    /// Types of all requests.
    log: RefCell<Vec<u32>>,
    most_in_flight: Cell<usize>,
    longest_segment: Cell<usize>,
    most_descriptors: Cell<usize>,
}

impl Disk {
    fn execute(&self, device: &Virtio, chain: &Chain, hang: bool) {
        let header = chain.read();
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..16].try_into().unwrap()) as usize;
        let fate = if hang { (self.fate.borrow_mut())(kind) } else { Fate::Normal };
        let status_at = *chain.writable.last().unwrap();
        assert_eq!(status_at.len, 1, "the status is a part of its own");
        let mut bytes = self.bytes.borrow_mut();
        let status = match fate {
            Fate::Hang => return self.hung.borrow_mut().push(chain.clone()),
            Fate::Silent => return device.push_used(0, chain.head.into(), 0),
            Fate::Status(status) => status,
            Fate::Normal => {
                let at = sector * 512;
                match kind {
                    0 => {
                        let len = chain.writable_len() - 1;
                        let data = Chain {
                            writable: chain.writable[..chain.writable.len() - 1].to_vec(),
                            ..Chain::default()
                        };
                        data.write(&bytes[at..at + len]);
                        0
                    }
                    1 => {
                        bytes[at..at + header.len() - 16].copy_from_slice(&header[16..]);
                        0
                    }
                    4 => 0,
                    8 => {
                        chain.writable[0].write(b"serial-7\0\0\0\0\0\0\0\0\0\0\0\0");
                        0
                    }
                    11 | 13 => {
                        assert_eq!(header.len(), 32, "one range");
                        assert_eq!(sector, 0);
                        let at = u64::from_le_bytes(header[16..24].try_into().unwrap()) as usize * 512;
                        let len = u32::from_le_bytes(header[24..28].try_into().unwrap()) as usize * 512;
                        assert_eq!(header[28..32], [0; 4], "no flags");
                        let limit_at = if kind == 11 { 36 } else { 48 };
                        let limit = device.config.borrow()[limit_at..limit_at + 4].try_into().unwrap();
                        assert!(len <= u32::from_le_bytes(limit) as usize * 512, "the limit is kept");
                        bytes[at..at + len].fill(if kind == 11 { 0xdd } else { 0 });
                        0
                    }
                    _ => 2,
                }
            }
        };
        status_at.write(&[status]);
        device.push_used(0, chain.head.into(), chain.writable_len() as u32);
    }
}

impl Backend for Disk {
    fn arrived(&self, _device: &Virtio, queue: u16, chain: Chain) {
        assert_eq!(queue, 0);
        self.log.borrow_mut().push(chain.read()[0].into());
        let segment = chain.writable.iter().chain(&chain.readable).map(|s| s.len).max().unwrap();
        self.longest_segment.set(self.longest_segment.get().max(segment));
        self.most_descriptors.set(self.most_descriptors.get().max(chain.descriptors));
        self.pending.borrow_mut().push(chain);
    }

    fn step(&self, device: &Virtio) -> bool {
        let mut pending = self.pending.borrow_mut();
        self.most_in_flight.set(self.most_in_flight.get().max(pending.len() + self.hung.borrow().len()));
        let mut count = pending.len();
        if self.shuffle.get() && count > 0 {
            count = device.random.borrow_mut().below(count as u64 + 1) as usize;
        }
        for _ in 0..count {
            let at = match self.shuffle.get() {
                true => device.random.borrow_mut().below(pending.len() as u64) as usize,
                false => 0,
            };
            let chain = pending.remove(at);
            self.execute(device, &chain, true);
        }
        false
    }

    fn reset(&self) {
        self.pending.borrow_mut().clear();
        self.hung.borrow_mut().clear();
    }
}

struct Bench {
    board: Rc<Board>,
    disk: Rc<Disk>,
    device: Rc<Virtio>,
    function: Rc<Function>,
    found: Found,
}

fn config(bytes: usize, block: u32) -> Vec<u8> {
    let mut config = vec![0; 64];
    config[..8].copy_from_slice(&(bytes as u64 / 512).to_le_bytes());
    config[12..16].copy_from_slice(&126u32.to_le_bytes());
    config[20..24].copy_from_slice(&block.to_le_bytes());
    config[24] = (4096 / block).trailing_zeros() as u8;
    config[32] = 1;
    config[36..40].copy_from_slice(&1000u32.to_le_bytes());
    config[40..44].copy_from_slice(&1u32.to_le_bytes());
    config[48..52].copy_from_slice(&900u32.to_le_bytes());
    config[52..56].copy_from_slice(&1u32.to_le_bytes());
    config
}

impl Bench {
    fn with(bus: Bus, features: u64, size: usize, seed: u64, edit: impl FnOnce(&Virtio, &Disk)) -> Bench {
        let board = Board::new();
        let disk = Rc::new(Disk {
            bytes: RefCell::new(vec![0xee; size]),
            pending: RefCell::default(),
            hung: RefCell::default(),
            shuffle: Cell::new(true),
            fate: RefCell::new(Box::new(|_| Fate::Normal)),
            log: RefCell::default(),
            most_in_flight: Cell::new(0),
            longest_segment: Cell::new(0),
            most_descriptors: Cell::new(0),
        });
        let (device, function) =
            Virtio::attach(&board, bus, 2, features, config(size, 512), disk.clone(), seed);
        edit(&device, &disk);
        let found = match bus {
            Bus::Pci => probe(&board, std::slice::from_ref(&function), &[]),
            _ => probe(&board, &[], &[MmioWindow { address: MMIO, len: 0x200 }]),
        };
        disk.log.borrow_mut().clear();
        Bench { board, disk, device, function, found }
    }

    fn new(bus: Bus) -> Bench {
        Bench::with(bus, ALL | MODERN, 8 << 20, 3, |_, _| ())
    }

    fn block(&self) -> Rc<dyn BlockDevice> {
        assert_eq!(self.found.failures, [] as [String; 0]);
        self.found.disks[0].clone()
    }

    fn service(&self) -> &Rc<dyn Service> {
        &self.found.services[0]
    }

    fn run<T>(&self, future: IoFuture<T>) -> T {
        self.board.run(&self.found.services, future)
    }

    fn turns(&self, count: usize, time: Duration) {
        for _ in 0..count {
            self.service().poll();
            self.board.step();
            self.service().poll();
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

const BUSES: [Bus; 3] = [Bus::Pci, Bus::Mmio, Bus::MmioLegacy];

#[test]
fn the_device_tells_what_it_is() {
    for bus in BUSES {
        let bench = Bench::new(bus);
        let info = bench.block().info().clone();
        assert_eq!((info.name.as_str(), info.identity.as_str()), ("vda", "serial-7"), "{bus:?}");
        assert_eq!((info.size, info.logical_block, info.physical_block), (8 << 20, 512, 4096));
        assert!(info.volatile_cache && info.discard && !info.fua && !info.read_only);
        assert!(info.queue_depth >= 128, "{}", info.queue_depth);
    }
}

#[test]
fn every_command_works_on_every_bus() {
    for bus in BUSES {
        let bench = Bench::new(bus);
        let block = bench.block();
        let done = bench.run(block.write(4096, pattern(300 * 1024, 5), Fua::No));
        assert_eq!(done.result, Ok(()));
        let read = bench.run(block.read(4096, Buf::zeroed(300 * 1024).unwrap()));
        assert!(read.result.is_ok() && read.buf[..] == done.buf[..], "{bus:?}");
        assert_eq!(bench.run(block.flush()), Ok(()));
        assert_eq!(bench.run(block.write_zeroes(0, 2 << 20)), Ok(()));
        assert_eq!(bench.run(block.discard(2 << 20, 2 << 20)), Ok(()));
        let bytes = bench.disk.bytes.borrow();
        assert!(bytes[..2 << 20].iter().all(|&b| b == 0));
        assert!(bytes[2 << 20..4 << 20].iter().all(|&b| b == 0xdd));
        assert_eq!(bytes[4 << 20], 0xee);
        assert!(bench.disk.log.borrow().contains(&4));
    }
}

#[test]
fn there_is_no_fua_so_asking_for_it_is_a_mistake() {
    let bench = Bench::new(Bus::Pci);
    let done = bench.run(bench.block().write(0, pattern(512, 1), Fua::Yes));
    assert_eq!(done.result, Err(IoError::Invalid));
    assert!(bench.disk.log.borrow().is_empty());
}

#[test]
fn durability_5_1_the_cache_mode_decides_about_flushes() {
    // (features, write-back as configured) -> (flush needed, write-back afterwards)
    let cases = [
        (FLUSH | CACHE_MODE, 1, true, 1),
        (FLUSH | CACHE_MODE, 0, false, 0),
        (FLUSH, 0, true, 0),
        (CACHE_MODE, 1, false, 0),
        (0, 1, false, 1),
    ];
    for (features, configured, needed, after) in cases {
        let bench = Bench::with(Bus::Pci, MODERN | features, 1 << 20, 1, |d, _| {
            d.config.borrow_mut()[32] = configured;
        });
        let info = bench.block().info().clone();
        assert_eq!((info.volatile_cache, info.fua), (needed, !needed), "{features:#x} {configured}");
        let through = bench.run(bench.block().write(0, pattern(512, 1), Fua::Yes)).result;
        assert_eq!(through.is_ok(), !needed, "without a cache every write is through");
        assert_eq!(bench.device.config.borrow()[32], after);
        assert_eq!(bench.run(bench.block().flush()), Ok(()));
        assert_eq!(bench.disk.log.borrow().contains(&4), needed);
    }
}

#[test]
fn a_read_only_device_is_one() {
    let bench = Bench::with(Bus::Pci, MODERN | ALL | READ_ONLY, 1 << 20, 1, |_, _| ());
    assert!(bench.block().info().read_only);
    assert_eq!(bench.run(bench.block().write(0, pattern(512, 1), Fua::No)).result, Err(IoError::Invalid));
    assert_eq!(bench.run(bench.block().discard(0, 512)), Err(IoError::Invalid));
}

#[test]
fn limits_on_segments_are_kept() {
    for (size_max, seg_max) in [(4096u32, 2u32), (65536, 126), (5000, 7), (1 << 20, 1)] {
        let bench = Bench::with(Bus::Pci, MODERN | ALL | SIZE_MAX, 4 << 20, 1, |d, _| {
            let mut config = d.config.borrow_mut();
            config[8..12].copy_from_slice(&size_max.to_le_bytes());
            config[12..16].copy_from_slice(&seg_max.to_le_bytes());
        });
        let done = bench.run(bench.block().write(512, pattern(1 << 20, 8), Fua::No));
        assert_eq!(done.result, Ok(()));
        assert!(bench.disk.bytes.borrow()[512..][..1 << 20] == done.buf[..]);
        assert!(bench.disk.longest_segment.get() <= size_max as usize);
    }
}

#[test]
fn without_indirect_descriptors_or_event_indexes_it_works_too() {
    for features in [VERSION_1, VERSION_1 | EVENT_IDX, VERSION_1 | INDIRECT] {
        let bench = Bench::with(Bus::Pci, features | ALL, 8 << 20, 1, |_, _| ());
        let block = bench.block();
        let mut reads: Vec<_> = (0..600).map(|i| block.read(i * 512, Buf::zeroed(512).unwrap())).collect();
        bench.turns(400, Duration::ZERO);
        assert!(reads.iter_mut().all(|r| matches!(poll(r), Poll::Ready(IoDone { result: Ok(()), .. }))));
    }
}

#[test]
fn many_requests_are_in_flight_at_one_notification() {
    let bench = Bench::new(Bus::Pci);
    *bench.disk.fate.borrow_mut() = Box::new(|_| Fate::Hang);
    let block = bench.block();
    let before = bench.device.notifications.get();
    let _reads: Vec<_> = (0..128).map(|i| block.read(i * 4096, Buf::zeroed(4096).unwrap())).collect();
    bench.service().poll();
    assert!(bench.device.notifications.get() - before <= 1);
    bench.turns(200, Duration::ZERO);
    assert_eq!(bench.disk.most_in_flight.get(), 128);
    assert!(bench.disk.most_descriptors.get() >= 3, "direct chains while there is room");
}

#[test]
fn arming_sees_a_completion_that_came_meanwhile_and_interrupts_follow() {
    for bus in BUSES {
        let bench = Bench::new(bus);
        for round in 0..50 {
            let mut read = bench.block().read(0, Buf::zeroed(512).unwrap());
            bench.board.interrupts.set(0);
            bench.service().poll();
            assert!(bench.service().arm(), "nothing there yet");
            let deadline = bench.service().deadline().expect("something is under way");
            if bus == Bus::Mmio {
                let wait = deadline.since(bench.board.now());
                assert!(wait <= Duration::from_millis(50), "an edge may get lost: {wait:?}");
            }
            for _ in 0..1000 {
                if bench.board.interrupts.get() > 0 {
                    break;
                }
                bench.board.step();
            }
            assert_eq!(bench.board.interrupts.get(), 1, "{bus:?}, round {round}");
            assert!(!bench.service().arm(), "the completion is there");
            assert!(bench.service().poll());
            assert!(poll(&mut read).is_ready());
        }
    }
}

#[test]
fn a_no_is_believed_only_behind_a_full_fence() {
    for features in [ALL | MODERN, ALL | VERSION_1] {
        let bench = Bench::with(Bus::Pci, features, 1 << 20, 1, |_, _| ());
        bench.board.orders.set(0);
        let _first = bench.block().read(0, Buf::zeroed(512).unwrap());
        bench.service().poll();
        // Without event indexes a device at rest shows no wish not to be notified: a yes needs no fence.
        let notified = bench.device.notifications.get();
        assert_eq!(bench.board.orders.get(), 0);
        if features & EVENT_IDX != 0 {
            let _second = bench.block().read(0, Buf::zeroed(512).unwrap());
            bench.service().poll();
            assert_eq!(bench.device.notifications.get(), notified, "it knows already");
            assert_eq!(bench.board.orders.get(), 1, "which is asked twice");
        }
        bench.board.orders.set(0);
        assert!(bench.service().arm());
        assert_eq!(bench.board.orders.get(), 1, "there is nothing yet: asked twice, too");
    }
}

#[test]
fn busy_devices_do_not_interrupt() {
    for features in [ALL | MODERN, ALL | VERSION_1 | INDIRECT] {
        let bench = Bench::with(Bus::Pci, features, 1 << 20, 1, |_, _| ());
        bench.service().arm();
        bench.board.interrupts.set(0);
        for _ in 0..300 {
            bench.run(bench.block().read(0, Buf::zeroed(512).unwrap()));
        }
        assert!(bench.board.interrupts.get() <= 2, "{}", bench.board.interrupts.get());
    }
}

#[test]
fn errors_are_told_apart() {
    let bench = Bench::new(Bus::Pci);
    let cases = [
        (Fate::Status(1), IoError::Media),
        (Fate::Status(2), IoError::Invalid),
        (Fate::Status(77), IoError::Media),
        (Fate::Silent, IoError::Device),
    ];
    for (fate, error) in cases {
        *bench.disk.fate.borrow_mut() = Box::new(move |_| fate);
        let done = bench.run(bench.block().read(0, Buf::zeroed(4096).unwrap()));
        assert_eq!(done.result, Err(error), "{fate:?}");
    }
    *bench.disk.fate.borrow_mut() = Box::new(|_| Fate::Status(1));
    assert_eq!(bench.run(bench.block().flush()), Err(IoError::Device));
}

#[test]
fn a_late_write_is_quarantined_until_the_reset_and_the_others_begin_again() {
    for bus in BUSES {
        let bench = Bench::new(bus);
        bench.disk.shuffle.set(false);
        let mut hangs = 7;
        *bench.disk.fate.borrow_mut() = Box::new(move |_| {
            hangs -= i32::from(hangs > 0);
            if hangs > 0 { Fate::Hang } else { Fate::Normal }
        });
        let mut late = bench.block().write(0, pattern(4096, 1), Fua::No);
        bench.turns(20, Duration::from_secs(1));
        let mut young: Vec<_> =
            (1..7).map(|i| bench.block().write(i * 4096, pattern(4096, 1 + i), Fua::No)).collect();
        bench.turns(20, Duration::from_millis(1));
        let resets = bench.device.resets.get();
        for _ in 0..200 {
            assert!(poll(&mut late).is_pending(), "answered before the reset");
            bench.turns(1, Duration::from_millis(100));
            if bench.device.resets.get() > resets {
                break;
            }
        }
        assert_eq!(bench.device.resets.get(), resets + 1);
        bench.turns(100, Duration::from_millis(1));
        let Poll::Ready(done) = poll(&mut late) else { panic!("answered after the reset") };
        assert_eq!(done.result, Err(IoError::Timeout));
        for (i, write) in young.iter_mut().enumerate() {
            let Poll::Ready(done) = poll(write) else { panic!("write {i} began again") };
            assert_eq!(done.result, Ok(()), "write {i}");
            assert!(bench.disk.bytes.borrow()[(i + 1) * 4096..][..4096] == done.buf[..]);
        }
        assert!(bench.disk.bytes.borrow()[..4096].iter().all(|&b| b == 0xee), "the late write never landed");
    }
}

#[test]
fn a_device_that_asks_for_a_reset_gets_one() {
    let bench = Bench::new(Bus::Pci);
    let mut hang = true;
    *bench.disk.fate.borrow_mut() =
        Box::new(move |_| if std::mem::take(&mut hang) { Fate::Hang } else { Fate::Normal });
    let mut read = bench.block().read(0, Buf::zeroed(4096).unwrap());
    bench.turns(20, Duration::ZERO);
    bench.device.set_needs_reset();
    bench.turns(40, Duration::from_millis(200));
    assert!(matches!(poll(&mut read), Poll::Ready(IoDone { result: Ok(()), .. })));
}

#[test]
fn a_device_that_does_not_reset_is_cut_off_and_everything_fails() {
    for bus in BUSES {
        let bench = Bench::new(bus);
        *bench.disk.fate.borrow_mut() = Box::new(|_| Fate::Hang);
        bench.device.can_reset.set(false);
        let block = bench.block();
        let mut writes: Vec<_> = (0..300).map(|i| block.write(i * 4096, pattern(4096, i), Fua::No)).collect();
        bench.turns(35, Duration::from_secs(1));
        assert!(writes.iter_mut().all(|w| poll(w).is_pending()));
        bench.turns(15, Duration::from_secs(1));
        for write in &mut writes {
            let Poll::Ready(done) = poll(write) else { panic!("everything is answered") };
            assert_eq!(done.result, Err(IoError::Gone));
            assert_eq!(done.buf.len(), 4096, "a buffer comes back, if not always the same");
        }
        assert!(bus != Bus::Pci || !bench.function.is_bus_master());
        assert_eq!(bench.run(block.read(0, Buf::zeroed(512).unwrap())).result, Err(IoError::Gone));
    }
}

#[test]
fn a_device_that_is_taken_away_is_noticed_whatever_its_registers_read_as() {
    for (bus, reads) in [(Bus::Pci, u64::MAX), (Bus::Pci, 0), (Bus::Mmio, 0)] {
        for resetting in [false, true] {
            let bench = Bench::new(bus);
            *bench.disk.fate.borrow_mut() = Box::new(|_| Fate::Hang);
            let mut write = bench.block().write(0, pattern(4096, 1), Fua::No);
            bench.turns(20, Duration::ZERO);
            if resetting {
                bench.device.can_reset.set(false);
                bench.device.set_needs_reset();
                bench.turns(2, Duration::from_secs(1));
                assert!(poll(&mut write).is_pending());
            }
            bench.device.absent.set(true);
            bench.device.absent_reads.set(reads);
            bench.function.unplugged.set(true);
            bench.turns(4, Duration::from_secs(1));
            let Poll::Ready(done) = poll(&mut write) else { panic!("{bus:?}, {reads:x}: nobody noticed") };
            assert_eq!(done.result, Err(IoError::Gone));
        }
    }
}

#[test]
fn used_ids_never_given_change_nothing() {
    let bench = Bench::new(Bus::Pci);
    *bench.disk.fate.borrow_mut() = Box::new(|_| Fate::Hang);
    let mut read = bench.block().read(0, Buf::zeroed(4096).unwrap());
    bench.turns(20, Duration::ZERO);
    let real = bench.disk.hung.borrow()[0].clone();
    for id in [u32::MAX, 256, 65536 + u32::from(real.head), u32::from(real.head) + 1, 255] {
        bench.device.push_used(0, id, 123_456_789);
        bench.turns(1, Duration::ZERO);
        assert!(poll(&mut read).is_pending());
    }
    bench.disk.execute(&bench.device, &real, false);
    // The same once more: nobody's.
    bench.device.push_used(0, real.head.into(), u32::MAX);
    bench.turns(1, Duration::ZERO);
    assert!(matches!(poll(&mut read), Poll::Ready(IoDone { result: Ok(()), .. })));
}

#[test]
fn senseless_devices_are_refused_with_a_reason() {
    type Edit = Box<dyn Fn(&Virtio)>;
    let cases: Vec<(u64, Edit)> = vec![
        (ALL | MODERN, Box::new(|d| d.config.borrow_mut()[..8].fill(0xff))),
        (ALL | MODERN, Box::new(|d| d.config.borrow_mut()[20] = 3)),
        (ALL | MODERN, Box::new(|d| d.config.borrow_mut()[20..24].fill(0))),
        (ALL | MODERN | SIZE_MAX, Box::new(|_| ())),
        (ALL | INDIRECT, Box::new(|_| ())),
        (ALL | MODERN, Box::new(|d| d.queue_max.set(0))),
        (ALL | VERSION_1, Box::new(|d| d.queue_max.set(2))),
    ];
    for (features, edit) in cases {
        let bench = Bench::with(Bus::Pci, features, 1 << 20, 1, |d, _| edit(d));
        assert!(bench.found.disks.is_empty());
        assert_eq!(bench.found.failures.len(), 1, "{features:#x}");
        assert!(bench.found.failures[0].starts_with("virtio device 0000:00:03.0: "));
        assert_eq!(bench.board.dma_pages_in_use(), 0);
    }
}

#[test]
fn dropping_everything_gives_all_memory_back_and_cuts_the_device_off() {
    for bus in BUSES {
        let bench = Bench::new(bus);
        let mut pending = bench.block().write(0, pattern(4096, 1), Fua::No);
        assert!(poll(&mut pending).is_pending());
        let Bench { board, device, function, found, .. } = bench;
        drop((found, pending));
        assert_eq!(board.dma_pages_in_use(), 0);
        assert!(device.is_reset());
        assert!(bus != Bus::Pci || !function.is_bus_master());
    }
}

#[test]
fn an_empty_window_is_passed_over_in_silence() {
    let board = Board::new();
    let found = probe(&board, &[], &[]);
    assert!(found.disks.is_empty() && found.failures.is_empty());
    let found = probe(&board, &[], &[MmioWindow { address: MMIO, len: 0x100 }]);
    assert_eq!(found.failures.len(), 1, "a short window is worth a word");
}

#[test]
fn registers_that_are_not_aligned_are_refused_not_read() {
    let board = Board::new();
    let found = probe(&board, &[], &[MmioWindow { address: MMIO + 1, len: 0x200 }]);
    assert_eq!(found.failures.len(), 1, "{:?}", found.failures);
    // The offset of each structure that the capabilities name.
    for capability in [0x40, 0x50, 0x70] {
        let bench = Bench::new(Bus::Pci);
        bench.function.words.borrow_mut()[capability / 4 + 2] += 1;
        let found = probe(&bench.board, std::slice::from_ref(&bench.function), &[]);
        assert!(found.disks.is_empty(), "capability {capability:#x}");
        assert!(found.failures[0].contains("not aligned"), "{:?}", found.failures);
    }
}

/// Random commands, disjoint while in flight, against a model.
fn random_commands(seed: u64, depth: usize, bus: Bus, features: u64, queue_max: u16, errors: bool) {
    const SIZE: usize = 2 << 20;
    const BLOCK: usize = 512;
    let bench = Bench::with(bus, features, SIZE, seed, |d, _| d.queue_max.set(queue_max));
    if bench.found.disks.is_empty() {
        assert!(queue_max < 4, "{:?}", bench.found.failures);
        return;
    }
    let block = bench.block();
    let mut random = Random(seed ^ 1);
    if errors {
        let mut dice = Random(seed ^ 2);
        *bench.disk.fate.borrow_mut() = Box::new(move |_| match dice.below(40) {
            0 => Fate::Status(1),
            1 => Fate::Silent,
            2 if dice.chance(30) => Fate::Hang,
            _ => Fate::Normal,
        });
    }
    let mut model = vec![0xeeu8; SIZE];
    let mut unknown = vec![false; SIZE / BLOCK];
    let mut busy = vec![false; SIZE / BLOCK];
    let mut pending: Vec<(IoFuture<IoDone>, usize, bool)> = Vec::new();
    let mut issued = 0;
    let mut rounds = 0;
    while issued < 300 || !pending.is_empty() {
        rounds += 1;
        assert!(rounds < 200_000, "everything is answered");
        while issued < 300 && pending.len() < depth {
            issued += 1;
            let longest = if random.chance(10) { 2000 } else { 16 };
            let blocks = 1 + random.below(longest) as usize;
            let start = random.below((SIZE / BLOCK - blocks) as u64) as usize;
            if busy[start..start + blocks].iter().any(|&b| b) {
                continue;
            }
            busy[start..start + blocks].fill(true);
            let (at, len) = (start * BLOCK, blocks * BLOCK);
            let is_write = random.chance(50);
            let future = match is_write {
                true => block.write(at as u64, pattern(len, random.next()), Fua::No),
                false => block.read(at as u64, Buf::zeroed(len).unwrap()),
            };
            pending.push((future, at, is_write));
        }
        bench.turns(1, if errors { Duration::from_millis(200) } else { Duration::ZERO });
        pending.retain_mut(|(future, at, is_write)| {
            let Poll::Ready(done) = poll(future) else { return true };
            assert!(errors || done.result.is_ok());
            let blocks = *at / BLOCK..(*at + done.buf.len()) / BLOCK;
            busy[blocks.clone()].fill(false);
            if *is_write {
                unknown[blocks].fill(done.result.is_err());
                model[*at..*at + done.buf.len()].copy_from_slice(&done.buf);
            } else if done.result.is_ok() {
                for (b, chunk) in blocks.zip(done.buf.chunks(BLOCK)) {
                    assert!(unknown[b] || *chunk == model[b * BLOCK..][..BLOCK], "block {b}");
                }
            }
            false
        });
    }
    for (b, chunk) in bench.disk.bytes.borrow().chunks(BLOCK).enumerate() {
        assert!(unknown[b] || *chunk == model[b * BLOCK..][..BLOCK], "block {b} at the end");
    }
}

fn any_bus() -> impl Strategy<Value = Bus> {
    prop_oneof![Just(Bus::Pci), Just(Bus::Mmio), Just(Bus::MmioLegacy)]
}

fn any_ring() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(EVENT_IDX), Just(INDIRECT), Just(EVENT_IDX | INDIRECT)]
}

/// A device whose configuration is anything.
fn any_configuration(seed: u64, bus: Bus, features: u64, config: Vec<u8>) {
    let bench = Bench::with(bus, features, 1 << 20, seed, |d, _| *d.config.borrow_mut() = config);
    let Some(disk) = bench.found.disks.first() else {
        assert_eq!(bench.found.failures.len(), 1);
        return;
    };
    // The fake executes what lies on its megabyte only.
    let block = disk.info().logical_block as usize;
    if disk.info().size >= block as u64 {
        let done = bench.run(disk.read(0, Buf::zeroed(block).unwrap()));
        assert_eq!(done.result, Ok(()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn data_survives_any_order_size_and_depth(
        seed: u64, depth in 1usize..300, bus in any_bus(), ring in any_ring(), queue_max in 1u16..600,
    ) {
        random_commands(seed, depth, bus, ALL | VERSION_1 | ring, queue_max, false);
    }

    #[test]
    fn errors_hangs_and_resets_hurt_only_their_own(
        seed: u64, depth in 1usize..64, bus in any_bus(), ring in any_ring(), queue_max in 8u16..300,
    ) {
        random_commands(seed, depth, bus, ALL | VERSION_1 | ring, queue_max, true);
    }

    #[test]
    fn any_configuration_is_used_or_refused(
        seed: u64, bus in any_bus(), features: u64, config in proptest::collection::vec(any::<u8>(), 0..64),
        block in 8u32..14,
    ) {
        let mut config = config;
        if let Some(bytes) = config.get_mut(20..24) {
            bytes.copy_from_slice(&(1u32 << block).to_le_bytes());
        }
        any_configuration(seed, bus, features | VERSION_1, config);
    }
}
