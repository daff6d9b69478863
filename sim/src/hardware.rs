//! The hardware of a machine: the real drivers, on devices (`drivers/fake`) that lie on the world's disks and on a cable
//! of its Ethernet, and the reactor's part in driving them.
//!
//! A kernel drives its devices after each turn of tasks; here a turn is one poll. So the reactor's task runs whenever a
//! task of the machine ran, a device interrupted, or a driver's deadline came: in any order with all that is ready.

use crate::disk::SimDisk;
use crate::ethernet::{Cable, Socket};
use crate::machine::Machine;
use crate::random::Random;
use moraine_drivers::Service;
use moraine_fake::nvme::{Media, Nvme};
use moraine_fake::virtio::Bus;
use moraine_fake::{Board, End, Medium, Offloads, Order, Outcome, VirtioCard, VirtioDisk, Wire};
use moraine_platform::sync::{Event, either};
use moraine_platform::{BlockDevice, Buf, Clock, Fua, IoError, NicDevice};
use std::rc::Rc;
use std::time::Duration;

/// Longest pause of a device that has something to do, in nanoseconds.
const DEVICE_PAUSE_MAX: u64 = 20_000;

/// What a disk is attached as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// A controller of its own.
    Nvme,
    /// virtio-blk on PCI or in a window.
    Virtio(Bus),
}

/// What the drivers found.
pub struct Hardware {
    /// The disks, in the order of those behind them.
    pub disks: Vec<Rc<dyn BlockDevice>>,
    /// The card.
    pub nic: Rc<dyn NicDevice>,
    services: Vec<Rc<dyn Service>>,
}

impl Hardware {
    /// Tells all devices that the power goes.
    pub fn shut_down(&self) {
        self.services.iter().for_each(|service| service.shut_down());
    }
}

/// Puts disks and a card of this MTU into a machine, probes them, and drives them from now on.
pub fn assemble(
    machine: &Rc<Machine>,
    disks: &[(Rc<SimDisk>, Attachment)],
    (cable, mtu, offloads): (&Rc<Cable>, u16, Offloads),
    random: &mut Random,
) -> Result<Hardware, String> {
    let clock = machine.platform().clock;
    let board = Board::on_clock(clock.clone());
    let attention = Rc::new(Event::new());
    let (attend, interrupt) = (attention.clone(), machine.turned().clone());
    board.on_attention(move || attend.notify());
    board.on_interrupt(move || interrupt.notify());
    let (mut functions, mut windows) = (Vec::new(), Vec::new());
    let mut virtio = 0;
    for (number, (disk, attachment)) in disks.iter().enumerate() {
        let medium = Rc::new(Platter { disk: disk.clone(), machine: machine.clone() });
        let seed = random.next_u64();
        match attachment {
            Attachment::Nvme => {
                let media = vec![Media::on(1, disk.info().logical_block as usize, medium)];
                let (nvme, function) = Nvme::attach_as(number as u8, &board, media, seed);
                nvme.logs.set(false);
                nvme.volatile_cache.set(disk.info().volatile_cache);
                nvme.can_abort.set(random.percent(50));
                functions.push(function);
            }
            Attachment::Virtio(bus) => {
                let (_, function) = VirtioDisk::attach(virtio, &board, *bus, medium, seed);
                match bus {
                    Bus::Pci => functions.push(function),
                    _ => windows.push(moraine_fake::virtio::window(virtio)),
                }
                virtio += 1;
            }
        }
    }
    let wire = Rc::new(Outlet(cable.clone()));
    let (card, function) =
        VirtioCard::attach(virtio, &board, (cable.mac(), mtu), offloads, wire, random.next_u64());
    functions.push(function);
    cable.plug(Rc::new(Inlet(card)));
    let found = moraine_fake::probe(&board, &functions, &windows);
    if let Some(why) = found.failures.first() {
        return Err(format!("a driver found: {why}"));
    }
    let (disks_found, nic) = (found.disks, found.nics.first().cloned());
    assert_eq!(disks_found.len(), disks.len(), "every disk has its driver");
    let services = found.services;
    machine.start("reactor", Box::pin(reactor(machine.turned().clone(), clock.clone(), services.clone())));
    machine.start("devices", Box::pin(run_devices(board, attention, clock, random.clone())));
    let nic = nic.expect("the card has its driver");
    Ok(Hardware { disks: disks_found, nic, services })
}

/// The reactor's part: polls the drivers while there is something to do, and lets devices interrupt when there is not.
async fn reactor(turned: Rc<Event>, clock: Rc<dyn Clock>, services: Vec<Rc<dyn Service>>) {
    loop {
        let ticket = turned.ticket();
        let busy = services.iter().fold(false, |busy, service| service.poll() | busy);
        if busy || !services.iter().fold(true, |quiet, service| service.arm() & quiet) {
            others_first().await;
            continue;
        }
        let deadline = services.iter().filter_map(|service| service.deadline()).min();
        match deadline {
            Some(deadline) => {
                either(turned.after(ticket), clock.sleep_until(deadline)).await;
            }
            None => turned.after(ticket).await,
        }
    }
}

/// The devices' part: they work whenever something called for their attention.
async fn run_devices(board: Rc<Board>, attention: Rc<Event>, clock: Rc<dyn Clock>, mut random: Random) {
    let mut ticket = 0;
    loop {
        attention.after(ticket).await;
        ticket = attention.ticket();
        while board.step() {
            clock.sleep(Duration::from_nanos(random.below(DEVICE_PAUSE_MAX))).await;
        }
    }
}

async fn others_first() {
    let mut went = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut went, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await
}

/// A world's disk as what is behind a device.
struct Platter {
    disk: Rc<SimDisk>,
    machine: Rc<Machine>,
}

impl Medium for Platter {
    fn size(&self) -> u64 {
        self.disk.info().size
    }

    fn has_cache(&self) -> bool {
        self.disk.info().volatile_cache
    }

    fn begin(&self, order: Order, end: End) {
        let disk = self.disk.clone();
        let command = async move {
            let result = match order {
                Order::Read { at, len } => {
                    let buf = Buf::zeroed(len).expect("devices do not run out of memory");
                    let done = disk.read(at, buf).await;
                    done.result.map(|()| done.buf.to_vec())
                }
                Order::Write { at, bytes, fua } => {
                    let buf = Buf::copy_of(&bytes).expect("devices do not run out of memory");
                    let fua = if fua { Fua::Yes } else { Fua::No };
                    disk.write(at, buf, fua).await.result.map(|()| Vec::new())
                }
                Order::Zero { at, len } => disk.write_zeroes(at, len).await.map(|()| Vec::new()),
                Order::Discard { at, len } => disk.discard(at, len).await.map(|()| Vec::new()),
                Order::Flush => disk.flush().await.map(|()| Vec::new()),
            };
            end(match result {
                Ok(bytes) => Outcome::Done(bytes),
                Err(IoError::Media) => Outcome::MediumError,
                Err(IoError::Timeout) => Outcome::Never,
                Err(IoError::Gone) => Outcome::Gone,
                Err(IoError::Device | IoError::Invalid) => Outcome::DeviceError,
            });
        };
        self.machine.start("disk command", Box::pin(command));
    }

    fn reset(&self) {
        self.disk.end_all();
    }
}

/// The way out of a card.
struct Outlet(Rc<Cable>);

impl Wire for Outlet {
    fn send(&self, frame: Vec<u8>) {
        self.0.send(&frame);
    }
}

/// The way into it.
struct Inlet(Rc<VirtioCard>);

impl Socket for Inlet {
    fn arrive(&self, frame: Vec<u8>) {
        self.0.arrive(frame);
    }

    fn set_link(&self, up: bool) {
        self.0.set_link(up);
    }
}
