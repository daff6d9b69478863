//! The real drivers on simulated devices: what a disk of the world does comes through as it is.

use moraine_fake::Offloads;
use moraine_fake::virtio::Bus;
use moraine_platform::sync::Event;
use moraine_platform::{BlockDevice, Buf, Fua, IoError};
use moraine_sim::ethernet::{Ethernet, Treatment};
use moraine_sim::hardware::{Attachment, assemble};
use moraine_sim::{DiskConfig, Image, SimDisk, World};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const KINDS: [Attachment; 4] = [
    Attachment::Nvme,
    Attachment::Virtio(Bus::Pci),
    Attachment::Virtio(Bus::Mmio),
    Attachment::Virtio(Bus::MmioLegacy),
];
const FINE: Treatment = Treatment { delay_ns: (2_000, 50_000), lost: 0, late: 0, damaged: 0, doubled: 0 };
const LEN: usize = 20_480;

/// Runs `test` with a disk as its driver shows it, and the one behind.
fn with_disk<T: 'static>(
    seed: u64,
    kind: Attachment,
    test: impl AsyncFnOnce(Rc<dyn BlockDevice>, Rc<SimDisk>) -> T + 'static,
) -> (T, Duration) {
    let world = World::new(seed);
    let machine = world.machine();
    let disk = machine.disk_with(Image::new(1 << 20), DiskConfig::default());
    let cable = Ethernet::new(&world, 1500, FINE).cable(1);
    let mut random = world.random("devices");
    let disks = [(disk.clone(), kind)];
    let hardware = assemble(&machine, &disks, (&cable, 1500, Offloads::All), &mut random).expect("probed");
    let seen = hardware.disks[0].clone();
    let (result, ended) = (Rc::new(RefCell::new(None)), Rc::new(Event::new()));
    let (slot, end) = (result.clone(), ended.clone());
    // As a program on the machine: its turns are what the reactor goes by.
    let program = async move {
        *slot.borrow_mut() = Some(test(seen, disk).await);
        end.notify();
    };
    machine.platform().spawn.spawn("test", Box::pin(program));
    let done = world.run(ended.until(|| result.take()));
    (done, Duration::from_nanos(world.now().0))
}

fn content(byte: u8) -> Buf {
    let mut buf = Buf::zeroed(LEN).expect("there is memory");
    buf.fill(byte);
    buf
}

async fn read(disk: &dyn BlockDevice, at: u64) -> Result<Vec<u8>, IoError> {
    let done = disk.read(at, content(0xee)).await;
    done.result.map(|()| done.buf.to_vec())
}

#[test]
fn what_is_written_is_read_and_durable_when_flushed() {
    for (seed, kind) in (0..).zip(KINDS) {
        let ((), took) = with_disk(seed, kind, async move |seen, behind| {
            assert_eq!(seen.info().size, 1 << 20);
            assert!(seen.info().volatile_cache);
            assert_eq!(seen.info().fua, kind == Attachment::Nvme);
            assert_eq!(seen.write(4096, content(7), Fua::No).await.result, Ok(()));
            assert!(!behind.is_durable(4096, LEN as u64), "{kind:?}");
            assert_eq!(read(&*seen, 4096).await, Ok(vec![7; LEN]));
            assert_eq!(seen.flush().await, Ok(()));
            assert!(behind.is_durable(4096, LEN as u64), "{kind:?}");
            if seen.info().fua {
                assert_eq!(seen.write(65_536, content(8), Fua::Yes).await.result, Ok(()));
                assert!(behind.is_durable(65_536, LEN as u64));
            }
            assert_eq!(seen.write_zeroes(4096, LEN as u64).await, Ok(()));
            assert_eq!(read(&*seen, 4096).await, Ok(vec![0; LEN]));
            assert_eq!(seen.discard(4096, LEN as u64).await, Ok(()));
        });
        assert!(took < Duration::from_millis(100), "{kind:?}: no wake-up was lost, and it took {took:?}");
    }
}

#[test]
fn errors_come_through_and_what_is_gone_stays_so() {
    for (seed, kind) in (10..).zip(KINDS) {
        with_disk(seed, kind, async move |seen, behind| {
            behind.faults(|f| f.fail_command(0, IoError::Media));
            assert_eq!(read(&*seen, 0).await, Err(IoError::Media), "{kind:?}");
            assert_eq!(read(&*seen, 0).await, Ok(vec![0; LEN]));
            behind.faults(|f| f.fail_flush(0));
            assert_eq!(seen.flush().await, Err(IoError::Device));
            behind.faults(|f| f.vanish(0));
            assert_eq!(read(&*seen, 0).await, Err(IoError::Gone), "{kind:?}");
            assert_eq!(seen.write(0, content(1), Fua::No).await.result, Err(IoError::Gone));
        });
    }
}

#[test]
fn a_command_that_is_never_answered_times_out_and_the_others_go_on() {
    for (seed, kind) in (20..).zip(KINDS) {
        let ((), took) = with_disk(seed, kind, async move |seen, behind| {
            behind.faults(|f| f.fail_command(0, IoError::Timeout));
            assert_eq!(seen.write(0, content(3), Fua::No).await.result, Err(IoError::Timeout), "{kind:?}");
            assert_eq!(seen.write(0, content(4), Fua::No).await.result, Ok(()));
            assert_eq!(read(&*seen, 0).await, Ok(vec![4; LEN]));
        });
        assert!(took > Duration::from_secs(20) && took < Duration::from_secs(60), "{took:?}");
    }
}

#[test]
fn a_write_that_a_reset_ended_never_lands_later() {
    for (seed, kind) in (30..).zip(KINDS) {
        with_disk(seed, kind, async move |seen, behind| {
            behind.faults(|f| f.slow_factor = 100_000_000);
            let late = seen.write(0, content(5), Fua::No).await.result;
            assert_eq!(late, Err(IoError::Timeout), "{kind:?}");
            assert_eq!(behind.in_flight(), 0, "what was under way was ended");
        });
    }
}
