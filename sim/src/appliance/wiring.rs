//! What is between clients and the appliance, and between it and its disks: streams of a simulated network and the
//! simulated disks themselves, or the whole way, with TCP/IP, cards, drivers and devices.

use super::{OFF_MAX, SERVER};
use crate::disk::SimDisk;
use crate::ethernet::{Cable, Ethernet, Treatment, served_at};
use crate::hardware::{Attachment, Hardware, assemble};
use crate::machine::Machine;
use crate::net::{NetConfig, Switch};
use crate::random::Random;
use crate::world::World;
use moraine_fake::Offloads;
use moraine_fake::virtio::Bus;
use moraine_net::Stack;
use moraine_platform::{BlockDevice, Network};
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

/// Last byte of the server's Ethernet address, and of the first client's.
const SERVER_MAC: u8 = 1;
const CLIENT_MAC: u8 = 16;
/// How long a cable is unplugged, or frames are treated badly, at most.
const TROUBLE_MAX: Duration = Duration::from_secs(20);

/// What is between.
#[derive(Clone)]
pub(super) enum Wiring {
    /// Streams; the filesystem is on the disks themselves.
    Streams(Rc<Switch>),
    /// Everything.
    Whole(Rc<Whole>),
}

/// All of it.
pub(super) struct Whole {
    ethernet: Rc<Ethernet>,
    usual: Treatment,
    server: Rc<Cable>,
    clients: RefCell<Vec<Rc<Cable>>>,
    offloads: Offloads,
    attachments: Vec<Attachment>,
}

/// A machine's network and disks, once it has power.
pub(super) struct Wired {
    pub(super) network: Rc<dyn Network>,
    pub(super) disks: Vec<Rc<dyn BlockDevice>>,
    pub(super) hardware: Option<Hardware>,
}

impl Wiring {
    /// Streams in this weather.
    pub(super) fn streams(world: &World, random: &mut Random) -> Wiring {
        let weather = NetConfig {
            delay_ns: (5_000, *random.pick(&[300_000, 5_000_000])),
            window: *random.pick(&[8 << 10, 64 << 10, 256 << 10]),
            piece_max: *random.pick(&[700, 9000, 64 << 10]),
            ..NetConfig::default()
        };
        world.switch().configure(weather);
        Wiring::Streams(world.switch())
    }

    /// The whole way, of kinds and with troubles that the seed chooses. `fua`: the disks take it.
    pub(super) fn whole(world: &World, random: &mut Random, disks: usize, fua: bool) -> Wiring {
        let rare = |random: &mut Random| *random.pick(&[0, 0, 2, 10]);
        let usual = Treatment {
            delay_ns: (2_000, *random.pick(&[50_000, 300_000, 3_000_000])),
            lost: rare(random),
            late: rare(random),
            damaged: rare(random),
            doubled: rare(random),
        };
        let ethernet = Ethernet::new(world, *random.pick(&[1500, 1500, 9000, 1280]), usual);
        let buses = [Bus::Pci, Bus::Mmio, Bus::MmioLegacy];
        let attach = |random: &mut Random| match fua && random.percent(60) {
            true => Attachment::Nvme,
            false => Attachment::Virtio(*random.pick(&buses)),
        };
        Wiring::Whole(Rc::new(Whole {
            usual,
            server: ethernet.cable(SERVER_MAC),
            clients: RefCell::default(),
            offloads: *random.pick(&[Offloads::None, Offloads::Checksums, Offloads::All]),
            attachments: (0..disks).map(|_| attach(random)).collect(),
            ethernet,
        }))
    }

    /// The network as a client of this address sees it.
    pub(super) fn client(&self, world: &World, ip: Ipv4Addr) -> Rc<dyn Network> {
        match self {
            Wiring::Streams(switch) => switch.host(IpAddr::V4(ip)),
            Wiring::Whole(whole) => {
                let mut clients = whole.clients.borrow_mut();
                let cable = whole.ethernet.cable(CLIENT_MAC + clients.len() as u8);
                clients.push(cable.clone());
                Ethernet::host(&cable, world, IpAddr::V4(ip))
            }
        }
    }

    /// The server's machine gets power.
    pub(super) fn power_on(
        &self,
        machine: &Rc<Machine>,
        disks: &[Rc<SimDisk>],
        random: &mut Random,
    ) -> Result<Wired, String> {
        let whole = match self {
            Wiring::Streams(switch) => {
                let (network, disks) = (switch.host(SERVER), crate::harness::devices(disks));
                return Ok(Wired { network, disks, hardware: None });
            }
            Wiring::Whole(whole) => whole,
        };
        let attached: Vec<_> = disks.iter().cloned().zip(whole.attachments.iter().copied()).collect();
        let card = (&whole.server, whole.ethernet.mtu(), whole.offloads);
        let hardware = assemble(machine, &attached, card, random)?;
        let platform = machine.platform();
        let stack = Stack::new(&platform, hardware.nic.clone(), &served_at(SERVER));
        let stack = stack.map_err(|why| why.to_string())?;
        platform.spawn.spawn("network", Box::pin(stack.clone().run()));
        Ok(Wired { network: Rc::new(stack), disks: hardware.disks.clone(), hardware: Some(hardware) })
    }

    /// It loses its power.
    pub(super) fn power_off(&self) {
        match self {
            Wiring::Streams(switch) => switch.power_off(SERVER, OFF_MAX.as_nanos() as u64),
            Wiring::Whole(whole) => whole.server.unplug(),
        }
    }

    /// Something happens to connections.
    pub(super) fn reset_any(&self, world: &Rc<crate::world::Inner>, random: &mut Random) {
        match self {
            Wiring::Streams(switch) => switch.reset_any(),
            Wiring::Whole(whole) => {
                // A cable is unplugged for a while.
                let clients = whole.clients.borrow();
                let cable = if random.percent(50) { &whole.server } else { random.pick(&clients) };
                cable.set_link(false);
                let (cable, until) = (cable.clone(), world.now_ns() + trouble(random));
                world.at(until, Box::new(move || cable.set_link(true)));
            }
        }
    }

    /// Everything stands still, or gets worse, for a while.
    pub(super) fn stall(&self, world: &Rc<crate::world::Inner>, random: &mut Random) {
        match self {
            Wiring::Streams(switch) => switch.stall(random.below(500_000_000)),
            Wiring::Whole(whole) => {
                let bad = |random: &mut Random| *random.pick(&[0, 20, 100, 300]);
                let (lost, late, damaged, doubled) = (bad(random), bad(random), bad(random), bad(random));
                whole.ethernet.treat(Treatment { lost, late, damaged, doubled, ..whole.usual });
                let (whole, until) = (whole.clone(), world.now_ns() + trouble(random));
                world.at(until, Box::new(move || whole.ethernet.treat(whole.usual)));
            }
        }
    }

    /// What happened to frames.
    pub(super) fn frames(&self) -> crate::ethernet::Frames {
        match self {
            Wiring::Streams(_) => crate::ethernet::Frames::default(),
            Wiring::Whole(whole) => whole.ethernet.frames(),
        }
    }
}

/// How long trouble lasts: mostly short.
fn trouble(random: &mut Random) -> u64 {
    let longest = *random.pick(&[TROUBLE_MAX.as_nanos() as u64, 1_000_000_000, 100_000_000]);
    random.below(longest)
}
