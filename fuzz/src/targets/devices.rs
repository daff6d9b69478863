//! PCI functions, disks and network cards that answer their drivers as they like: wrong identities, features and sizes, failures, commands
//! that nobody gave, answers to none, silence.

use core::cell::RefCell;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use moraine_drivers::{Found, MmioWindow};
use moraine_fake::nvme::{Fate, Media, Nvme};
use moraine_fake::virtio::{Backend, Bus, Chain, MMIO, Virtio};
use moraine_fake::{Board, Function, Model, probe};
use moraine_platform::{BlockDevice, Buf, Fua, IoFuture, TxMeta};
use std::collections::VecDeque;
use std::rc::Rc;

/// Commands given to one device at most.
const COMMANDS_MAX: usize = 40;
/// Turns of the reactor that devices get to answer; time passes so that everything runs into its limits.
const TURNS: usize = 300;
/// How long a turn takes.
const TURN: Duration = Duration::from_millis(400);
/// Size of a disk in bytes.
const DISK_BYTES: usize = 4 << 20;

/// What is left of the bytes; none is a zero.
#[derive(Clone)]
struct Input(Rc<RefCell<VecDeque<u8>>>);

impl Input {
    fn byte(&self) -> u8 {
        self.0.borrow_mut().pop_front().unwrap_or(0)
    }

    fn number(&self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |n, _| n << 8 | u64::from(self.byte()))
    }

    fn is_over(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

/// The first byte chooses the device and its bus.
pub(super) fn devices(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let input = Input(Rc::new(RefCell::new(bytes.iter().copied().collect())));
    let bus = [Bus::Pci, Bus::Mmio, Bus::MmioLegacy][usize::from(which / 3 % 3)];
    match which % 3 {
        _ if *which >= 200 => anything(&input),
        0 => nvme(&input),
        1 => virtio(&input, bus, 2),
        _ => virtio(&input, bus, 1),
    }
}

fn nvme(input: &Input) {
    let world = Board::new();
    let medium = |id: u32| Media {
        metadata: if input.byte() > 250 { 8 } else { 0 },
        write_protected: input.byte() > 250,
        ..Media::of_bytes(id, 1 << (9 + input.byte() % 5), vec![0xee; DISK_BYTES])
    };
    let media = (1..=1 + u32::from(input.byte()) % 3).map(medium).collect();
    let (nvme, function) = Nvme::attach(&world, media, input.number(2));
    nvme.mdts.set(input.byte() % 16);
    nvme.volatile_cache.set(input.byte() & 1 == 0);
    nvme.oncs.set(input.number(1) as u16);
    nvme.mqes.set(1.max(input.number(2) as u16 & 1023));
    nvme.garbled.set(u64::from(input.byte() / 64));
    nvme.can_abort.set(input.byte() & 1 == 0);
    let fates = input.clone();
    *nvme.fate.borrow_mut() = Box::new(move |_| match fates.byte() {
        byte @ 200.. => Fate::Fail(u16::from(byte) << 3 | fates.number(1) as u16),
        180.. => Fate::Hang,
        _ => Fate::Normal,
    });
    let found = probe(&world, &[function], &[]);
    drive(&world, &found, input, &|byte| match byte {
        250.. => nvme.can_reset.set(byte & 1 == 0),
        245.. => nvme.set_fatal(),
        200.. => nvme.release(),
        _ => {}
    });
}

/// A device of which nothing is right: its registers read as anything, and it answers nothing.
struct Anything(Input);

impl Model for Anything {
    fn read(&self, _window: usize, _offset: usize, width: usize) -> u64 {
        self.0.number(width)
    }

    fn write(&self, _window: usize, _offset: usize, _width: usize, _value: u64) {}

    fn step(&self) -> bool {
        false
    }
}

/// Configuration space that holds anything, in front of such a device.
fn anything(input: &Input) {
    let world = Board::new();
    let known = [(0x1b36, 0x0010, 0x01_08_02), (0x1af4, 0x1041, 0), (0x1af4, 0x1042, 0), (0x1af4, 0x1001, 0)];
    let (vendor, device, class) = known[usize::from(input.byte()) % known.len()];
    let function = Rc::new(Function::new(vendor, device, class));
    let changes = usize::from(input.byte());
    for _ in 0..changes {
        let word = 1 + usize::from(input.byte()) % 63;
        function.words.borrow_mut()[word] = input.number(4) as u32;
    }
    // Capabilities, so that there is a list to follow.
    for at in 0..input.byte() % 8 {
        let id = [9, 9, 9, 0x11, 5, 9, 9, 0x11][usize::from(at)];
        let rest = [0, 1, 2].map(|_| input.number(2) as u32);
        function.capability(0x40 + at * 0x14, id, input.number(2) as u16, &rest);
    }
    world.attach(Rc::new(Anything(input.clone())), &[(0, 1 << 48)]);
    let window = MmioWindow { address: input.number(4), len: input.number(2) };
    let found = probe(&world, &[function], &[window]);
    drive(&world, &found, input, &|_| ());
}

/// A device that decides about each chain by a byte.
struct Whim {
    input: Input,
    held: RefCell<Vec<(u16, Chain)>>,
}

impl Backend for Whim {
    fn arrived(&self, _device: &Virtio, queue: u16, chain: Chain) {
        self.held.borrow_mut().push((queue, chain));
    }

    fn step(&self, device: &Virtio) -> bool {
        let count = self.held.borrow().len().min(8);
        for _ in 0..count {
            // A card keeps its receive buffers until there is a frame.
            let (queue, chain) = self.held.borrow_mut().remove(0);
            let len = chain.writable_len();
            match self.input.byte() {
                // As it should be: whatever it wants, done.
                0..140 => {
                    let mut bytes = vec![0; len];
                    if queue == 0 && chain.readable.is_empty() {
                        bytes.truncate(12 + usize::from(self.input.byte()) * 4);
                        bytes[..10].fill_with(|| self.input.byte());
                    }
                    chain.write(&bytes);
                    device.push_used(queue, chain.head.into(), bytes.len() as u32);
                }
                140..170 => {
                    let mut bytes = vec![0; len];
                    bytes.fill_with(|| self.input.byte());
                    chain.write(&bytes);
                    device.push_used(queue, chain.head.into(), self.input.number(3) as u32);
                }
                170..190 => self.held.borrow_mut().push((queue, chain)),
                190..200 => {}
                200..230 => {
                    device.lies.set(true);
                    device.push_used(queue, self.input.number(2) as u32, self.input.number(4) as u32);
                }
                230..240 => device.set_needs_reset(),
                _ => device.push_used(queue, chain.head.into(), 0),
            }
        }
        count > 0
    }

    fn reset(&self) {
        self.held.borrow_mut().clear();
    }
}

fn virtio(input: &Input, bus: Bus, kind: u32) {
    let world = Board::new();
    let mut config = vec![0; 64];
    if kind == 2 {
        config[..8].copy_from_slice(&(DISK_BYTES as u64 / 512).to_le_bytes());
        config[12] = 126;
        config[20..24].copy_from_slice(&512_u32.to_le_bytes());
        config[36..40].copy_from_slice(&1000_u32.to_le_bytes());
        config[40] = 1;
        config[48..52].copy_from_slice(&900_u32.to_le_bytes());
        config[52] = 1;
    } else {
        config[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0xdc, 5]);
    }
    for _ in 0..input.byte() / 32 {
        config[usize::from(input.byte()) % 64] = input.byte();
    }
    // All that there are, but for some.
    let missing = input.number(5) & input.number(5);
    let features = u64::MAX >> 24 & !missing;
    let whim = Rc::new(Whim { input: input.clone(), held: RefCell::default() });
    let (device, function) = Virtio::attach(&world, bus, kind, features, config, whim, input.number(2));
    device.queue_max.set(1 << (input.byte() % 11));
    let found = match bus {
        Bus::Pci => probe(&world, &[function], &[]),
        _ => probe(&world, &[], &[MmioWindow { address: MMIO, len: 0x200 }]),
    };
    drive(&world, &found, input, &|byte| match byte {
        250.. => device.can_reset.set(byte & 1 == 0),
        240.. => device.set_needs_reset(),
        _ => {}
    });
}

/// Gives commands as the input says, with time in between; then waits for what comes of them, not for ever.
fn drive(world: &Rc<Board>, found: &Found, input: &Input, whim: &dyn Fn(u8)) {
    let mut waiting: Vec<IoFuture<()>> = Vec::new();
    let turn = |waiting: &mut Vec<IoFuture<()>>| {
        let context = &mut Context::from_waker(Waker::noop());
        waiting.retain_mut(|future| future.as_mut().poll(context) == Poll::Pending);
        for service in &found.services {
            service.poll();
            service.arm();
            let _ = service.deadline();
        }
        for nic in &found.nics {
            while nic.receive(&mut |frame, meta| {
                assert!(frame.len() <= nic.capabilities().max_frame.max(1514), "{meta:?}");
            }) {}
        }
        world.step();
    };
    for n in 0..COMMANDS_MAX {
        if input.is_over() {
            break;
        }
        whim(input.byte());
        for disk in &found.disks {
            waiting.extend(command(&**disk, input));
        }
        for nic in &found.nics {
            if nic.can_transmit() {
                let len = 14 + usize::from(input.byte()) * 5;
                nic.transmit(len.min(nic.capabilities().max_frame), &mut |frame| {
                    frame.fill(n as u8);
                    TxMeta::default()
                });
            }
        }
        turn(&mut waiting);
    }
    for _ in 0..TURNS {
        turn(&mut waiting);
        world.advance(TURN);
    }
    drop(waiting);
    found.services.iter().for_each(|service| service.shut_down());
}

/// A command that the contract allows.
fn command(disk: &dyn BlockDevice, input: &Input) -> Option<IoFuture<()>> {
    let info = disk.info();
    assert!(info.logical_block.is_power_of_two() && (512..=4096).contains(&info.logical_block), "{info:?}");
    assert!(info.max_transfer >= 128 << 10, "{info:?}");
    let unit = u64::from(info.logical_block);
    let blocks = 1 + u64::from(input.byte()) % 32;
    let (offset, len) = (input.number(2) * unit, blocks * unit);
    if offset.checked_add(len).is_none_or(|end| end > info.size) {
        return None;
    }
    let buf = Buf::zeroed(len as usize).ok()?;
    Some(match input.byte() % 6 {
        0 | 1 => {
            let done = disk.read(offset, buf);
            Box::pin(async { _ = done.await })
        }
        2 | 3 => {
            let fua = if info.fua && input.byte() & 1 == 1 { Fua::Yes } else { Fua::No };
            let done = disk.write(offset, buf, fua);
            Box::pin(async { _ = done.await })
        }
        4 => {
            let done = disk.flush();
            Box::pin(async { _ = done.await })
        }
        _ => {
            let done = if input.byte() & 1 == 0 {
                disk.discard(offset, len)
            } else {
                disk.write_zeroes(offset, len)
            };
            Box::pin(async { _ = done.await })
        }
    })
}
