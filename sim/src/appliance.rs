//! Worlds with a whole appliance in them: disks, filesystem, NFS and NBD as `appliance/` wires them, and clients that
//! reach it over a network that delays, stalls and resets; the power goes while they work, and they go on when it is back.
//! What else a world is, its seed says ([`Nature`]): in one of ten the whole way is there, from the clients' TCP/IP through
//! cards and drivers to the disks; in others the clock on the wall jumps, or memory is refused.
//!
//! | file | what lives there |
//! |---|---|
//! | `scene.rs` | what all share: boots, marks, promises, and the witness of what the server sends |
//! | `rpc.rs`, `calls.rs` | an NFSv3 client on a hard mount: the same call until it is answered |
//! | `client.rs`, `content.rs`, `names.rs` | what processes do over it, and what they must find |
//! | `volume.rs` | NBD clients, several connections to a volume |
//! | `cells.rs` | what a cell of content may hold, now and after a power cut |
//! | `times.rs` | change times, which never go back |
//! | `wiring.rs` | what is between clients, the appliance and its disks: streams, or TCP/IP, cards, drivers and devices |
//! | `promises.rs` | every stable answer on the wire, proved from the disks' log |

mod calls;
mod cells;
mod client;
mod content;
mod names;
mod promises;
mod rpc;
mod scene;
mod times;
mod volume;
mod wiring;

use crate::disk::{DiskConfig, Image, SimDisk};
use crate::fault::Fault;
use crate::harness::{Store, Tally, blank, devices};
use crate::machine::Machine;
use crate::plug::Moraine;
use crate::random::Random;
use crate::world::{World, WorldConfig};
use calls::Nfs;
use cells::Cell as Content;
use client::{Client, SHARED};
use moraine_appliance::{Listen, Memory, NBD_PORT, NFS_PORT, Squash, Stop, serve_exports};
use moraine_fs::Vfs;
use moraine_fs::vfs::{Caller, CreateMode, NewNode, SetAttr};
use moraine_platform::sync::{Either, either};
use rpc::Mount;
pub use scene::Seen;
use scene::{CELL, Scene, Tap};
use std::cell::RefCell;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use volume::{Disk, PART, Volume};
use wiring::{Wired, Wiring};

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const HOSTS: usize = 2;
/// Processes on each NFS client.
const PROCESSES: usize = 2;
const VOLUMES: usize = 2;
/// Connections to each volume.
const CONNECTIONS: usize = 2;
/// Steps of each process and each connection.
const STEPS: (u64, u64) = (15, 45);
/// Power cuts and restarts while clients work, at most; one more comes when they are done.
const CUTS: u64 = 4;
/// Device commands from one power on to the cut, at most.
const COMMANDS: u64 = 700;
/// How long a boot lasts at most, if the cut does not come by commands.
const BOOT_MAX: Duration = Duration::from_secs(600);
/// How long the machine is off, at most, and how long clients may take to see that it is.
const OFF_MAX: Duration = Duration::from_secs(3);
/// Something happens to the network about so often.
const WEATHER: Duration = Duration::from_millis(150);

/// The clock on the wall jumps at least so often, and up to so far.
const JUMP_EACH: Duration = Duration::from_millis(400);
const JUMPS: [Duration; 4] = [
    Duration::from_nanos(100),
    Duration::from_millis(1),
    Duration::from_secs(3600),
    Duration::from_secs(1 << 27),
];
/// How far from the right time it may be, in nanoseconds.
const AWAY_MAX: u64 = 1 << 59;
/// How many in 100,000 buffers are refused where memory is short.
const REFUSED: [u64; 4] = [300, 3000, 10_000, 30_000];
/// The largest pieces of memory where it is free in small ones only; a superblock needs two blocks.
const LARGEST: [usize; 3] = [8 << 10, 16 << 10, 32 << 10];

/// A machine and what runs on it.
struct Boot {
    machine: Rc<Machine>,
    disks: Vec<Rc<SimDisk>>,
    stop: Stop,
    /// The images that the disks hold once the power is off.
    left: Rc<RefCell<Option<Vec<Image>>>>,
    /// Whether it stopped in order.
    ended: Rc<std::cell::Cell<bool>>,
}

/// What a world is beside what all are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nature {
    /// TCP/IP, cards, drivers and devices are there.
    pub whole: bool,
    /// The clock on the wall jumps.
    pub clock_jumps: bool,
    /// Buffers are refused now and then.
    pub little_memory: bool,
    /// Memory is free in small pieces only.
    pub pieces: bool,
}

impl Nature {
    /// The nature of the world of `seed`.
    pub fn of(seed: u64) -> Nature {
        let plain = Nature::default();
        match seed % 10 {
            5 => Nature { clock_jumps: true, ..plain },
            7 => Nature { pieces: true, ..plain },
            8 => Nature { little_memory: true, ..plain },
            9 => {
                let (clock_jumps, little_memory) = (seed / 10 % 3 == 1, seed / 10 % 3 == 2);
                Nature { whole: true, clock_jumps, little_memory, ..plain }
            }
            _ => plain,
        }
    }
}

/// The world of `seed`: what was counted, and what happened.
pub fn appliance_world(seed: u64) -> Result<(Tally, Seen), String> {
    world_of(seed, Nature::of(seed))
}

/// The world of `seed`, with all that is between NIC and disk.
pub fn whole_appliance_world(seed: u64) -> Result<(Tally, Seen), String> {
    world_of(seed, Nature { whole: true, ..Nature::of(seed) })
}

fn world_of(seed: u64, nature: Nature) -> Result<(Tally, Seen), String> {
    let store = Moraine::for_seed(seed);
    let images = prepared(&store, seed)?;
    let world = World::with(WorldConfig { record: true, poll_limit: 20_000_000, ..WorldConfig::new(seed) });
    let scene = Scene::new(world.inner(), world.platform().clock);
    scene.little_memory.set(nature.little_memory);
    let mut random = world.random("appliance");
    let wiring = match nature.whole {
        true => Wiring::whole(&world, &mut world.random("wiring"), images.len(), has_fua(seed)),
        false => Wiring::streams(&world, &mut random),
    };
    let (play_wiring, store) = (wiring.clone(), Rc::new(store));
    let mut play = Play { world: &world, scene: scene.clone(), random, store, wiring: play_wiring, nature };
    world.try_run(play.run(images)).map_err(|stall| stall.to_string())??;
    let promises = scene.promises.borrow();
    let mut seen = *scene.seen.borrow();
    let frames = wiring.frames();
    (seen.frames, seen.frames_lost, seen.frames_damaged) = (frames.sent, frames.lost, frames.damaged);
    (seen.refused, seen.too_large) = world.memory_refused();
    seen.promises = promises::check(&world.trace().events(), &promises)? as u64;
    let tally = Tally { worlds: 1, steps: seen.steps, cuts: seen.cuts, hash: world.trace().hash() };
    Ok((tally, seen))
}

/// Disks with a pool that has the volumes and the shared directory.
fn prepared(store: &Moraine, seed: u64) -> Result<Vec<Image>, String> {
    let world = World::new(seed ^ 1 << 40);
    let disks = crate::harness::plug(&world, &blank(store), &DiskConfig::default());
    let (platform, seen) = (world.platform(), devices(&disks));
    world.run(async {
        store.format(&platform, &seen).await?;
        let fs = store.mount(&platform, &seen).await?.fs;
        let (root, text) = (Caller::root(), |e: moraine_fs::FsError| e.to_string());
        let set = SetAttr { mode: Some(0o777), ..SetAttr::default() };
        fs.make(&root, fs.root(), SHARED, NewNode::Dir, &set).await.map_err(text)?;
        let (folder, _) = fs.lookup(&root, fs.root(), b"volumes").await.map_err(text)?;
        let size = Some((CONNECTIONS * PART * CELL) as u64);
        let set = SetAttr { mode: Some(0o644), size, ..SetAttr::default() };
        for n in 0..VOLUMES {
            fs.create(&root, folder, volume_name(n).as_bytes(), CreateMode::Guarded, &set)
                .await
                .map_err(text)?;
        }
        store.unmount(fs).await
    })?;
    Ok(disks.iter().map(|disk| disk.durable_image()).collect())
}

/// Whether the disks of a world take writes that are durable on completion.
fn has_fua(seed: u64) -> bool {
    !seed.is_multiple_of(3)
}

fn volume_name(n: usize) -> String {
    format!("vm{n}")
}

/// What the world does to the appliance.
struct Play<'w> {
    world: &'w World,
    scene: Rc<Scene>,
    random: Random,
    store: Rc<Moraine>,
    wiring: Wiring,
    nature: Nature,
}

impl Play<'_> {
    async fn run(&mut self, mut images: Vec<Image>) -> Result<(), String> {
        if self.nature.clock_jumps {
            self.world.platform().spawn.spawn("clock", Box::pin(self.jump_clock()));
        }
        let clients = self.start_clients();
        let cuts = self.random.below(CUTS + 1);
        for _ in 0..cuts {
            let machine = self.power_on(images, true);
            let worked =
                either(self.until(&machine, clients), self.world.platform().clock.sleep(BOOT_MAX)).await;
            images = match worked {
                Either::First(result) => {
                    result?;
                    self.end(machine).await?
                }
                Either::Second(()) => self.end(machine).await?,
            };
            self.between().await;
        }
        // Nothing goes wrong any more: everybody comes to an end.
        let machine = self.power_on(images, false);
        self.until(&machine, clients).await?;
        images = self.end(machine).await?;
        self.between().await;
        self.scene.finale.set(true);
        let machine = self.power_on(images, false);
        self.scene.changed.notify();
        let scene = self.scene.clone();
        let done = || scene.problem().map(Err).or((scene.satisfied.get() == clients).then_some(Ok(())));
        self.scene.changed.until(done).await?;
        self.stop(&machine).await?;
        let images = machine.left.take().expect("it stopped");
        let disks = crate::harness::plug(self.world, &images, &DiskConfig::default());
        self.store.check(&self.world.platform(), &devices(&disks)).await
    }

    /// Sets the clock on the wall forward and back, for ever.
    fn jump_clock(&self) -> impl Future<Output = ()> + 'static {
        let (clock, mut random) = (self.scene.clock.clone(), self.world.random("clock jumps"));
        let world = self.world.inner().clone();
        async move {
            let mut away = 0i64;
            loop {
                clock.sleep(Duration::from_nanos(random.below(JUMP_EACH.as_nanos() as u64))).await;
                let far = random.pick(&JUMPS).as_nanos() as u64;
                let by = random.below(far) as i64;
                // Not so far that NFS's 32 bits of seconds would not do.
                let back = if away.unsigned_abs() > AWAY_MAX { away > 0 } else { random.percent(50) };
                let by = if back { -by } else { by };
                away += by;
                world.jump_wall_clock(by);
            }
        }
    }

    /// Starts all clients, and what happens to the network; says how many they are.
    fn start_clients(&mut self) -> usize {
        let (spawn, scene) = (self.world.platform().spawn, &self.scene);
        let at = |port| SocketAddr::new(SERVER, port);
        let mut draw = |number: usize| {
            let steps = self.random.between(STEPS.0, STEPS.1) as usize;
            (self.world.random(&format!("client {number}")), steps)
        };
        let (mut number, mut mounts) = (0, Vec::new());
        for host in 0..HOSTS {
            let network = self.wiring.client(self.world, Ipv4Addr::new(10, 0, 1, host as u8));
            let random = self.world.random(&format!("host {host}"));
            let mount = Mount::new(scene.clone(), network, at(NFS_PORT), random);
            spawn.spawn("mount", Box::pin(mount.clone().run()));
            for _ in 0..PROCESSES {
                let (random, steps) = draw(number);
                let client = Client::new(Nfs::new(mount.clone(), scene.clone()), random);
                spawn.spawn("nfs client", Box::pin(client.run(number, steps)));
                number += 1;
            }
            mounts.push(mount);
        }
        for volume in 0..VOLUMES {
            let cells = RefCell::new(vec![Content::new(); CONNECTIONS * PART]);
            let shared = Rc::new(Volume { name: volume_name(volume), cells });
            for n in 0..CONNECTIONS {
                let network = self.wiring.client(self.world, Ipv4Addr::new(10, 0, 2, number as u8));
                let (random, steps) = draw(number);
                let part = (shared.clone(), n * PART..(n + 1) * PART);
                let disk = Disk::new(scene.clone(), network, at(NBD_PORT), part, random);
                spawn.spawn("nbd client", Box::pin(disk.run(number, steps)));
                number += 1;
            }
        }
        let (clock, mut random) = (scene.clock.clone(), self.world.random("weather"));
        let calm = random.between(1, 20);
        let (wiring, world) = (self.wiring.clone(), self.world.inner().clone());
        let weather = async move {
            loop {
                let pause = random.below(2 * WEATHER.as_nanos() as u64) * calm;
                clock.sleep(Duration::from_nanos(pause)).await;
                match random.below(4) {
                    0 => wiring.reset_any(&world, &mut random),
                    1 => wiring.stall(&world, &mut random),
                    _ => random.pick(&mounts).hang_up(),
                }
            }
        };
        spawn.spawn("weather", Box::pin(weather));
        number
    }

    /// Waits until all clients did their steps or the power is off; an error if something is wrong.
    async fn until(&self, machine: &Boot, clients: usize) -> Result<(), String> {
        let scene = &self.scene;
        let over = || {
            let off = !machine.machine.is_on() || machine.ended.get();
            scene.problem().map(Err).or((off || scene.worked.get() == clients).then_some(Ok(())))
        };
        scene.changed.until(over).await
    }

    /// Switches a machine on, with what the disks hold; if it is to be cut, at some command.
    fn power_on(&mut self, images: Vec<Image>, cut: bool) -> Boot {
        let machine = self.world.machine();
        let config = DiskConfig { fua: has_fua(self.world.seed()), ..DiskConfig::default() };
        let disks: Vec<Rc<SimDisk>> =
            images.into_iter().map(|image| machine.disk_with(image, config.clone())).collect();
        let (stop, ended, left) = (Stop::new(), Rc::default(), Rc::default());
        let on = Boot { machine, disks, stop, left, ended };
        let boot = self.scene.boot();
        if cut && self.random.percent(75) {
            let at = self.world.trace().submitted() + 1 + self.random.below(COMMANDS);
            let off = self.power_off(&on);
            self.world.at_command(at, off);
        }
        let fault = (cut && self.random.percent(40)).then(|| {
            let all = [Fault::Flush, Fault::Command, Fault::Vanish, Fault::Slow];
            let fault = *self.random.pick(&all);
            self.scene.expect_faults();
            (fault, self.world.random(&format!("fault of boot {boot}")))
        });
        let refused = *self.world.random(&format!("memory of boot {boot}")).pick(&REFUSED);
        let refused = if self.nature.little_memory && !self.scene.finale.get() { refused } else { 0 };
        let largest = *self.world.random(&format!("pieces of boot {boot}")).pick(&LARGEST);
        let largest = if self.nature.pieces && !self.scene.finale.get() { largest } else { usize::MAX };
        self.world.inner().refuse_memory(0);
        self.world.inner().largest_memory(usize::MAX);
        let (wiring, machine, world) = (self.wiring.clone(), on.machine.clone(), self.world.inner().clone());
        let mut devices = self.world.random(&format!("devices of boot {boot}"));
        let (scene, store, platform) = (self.scene.clone(), self.store.clone(), on.machine.platform());
        let (disks, stop, ended) = (on.disks.clone(), on.stop.clone(), on.ended.clone());
        let serve = async move {
            let served = async {
                let Wired { network, disks: seen, hardware } =
                    wiring.power_on(&machine, &disks, &mut devices)?;
                let network = Rc::new(Tap { network, scene: scene.clone() });
                let fs = store.mount(&platform, &seen).await?.fs;
                world.refuse_memory(refused);
                world.largest_memory(largest);
                if let Some((fault, mut random)) = fault {
                    fault.plan(&platform, &disks, &mut random);
                }
                let at = |port| Some(SocketAddr::new(SERVER, port));
                let listen = Listen { nfs: at(NFS_PORT), nbd: at(NBD_PORT), portmap: None };
                let exports =
                    serve_exports(&platform, fs, network, listen, &Memory::of(0), Squash::default());
                let exports = exports.map_err(|e| e.to_string())?;
                stop.wait().await;
                store.unmount(exports.stop().await).await?;
                hardware.iter().for_each(|hardware| hardware.shut_down());
                Ok::<(), String>(())
            };
            // What fails honestly may keep it from stopping in order: then it is as if the power went.
            match served.await {
                Err(why) if !scene.may_fail(scene.boot()) => scene.fail(format!("boot {boot}: {why}")),
                _ => {}
            }
            ended.set(true);
            scene.changed.notify();
        };
        on.machine.platform().spawn.spawn("appliance", Box::pin(serve));
        on
    }

    /// What takes the machine's power away, whenever it is called; once.
    fn power_off(&self, on: &Boot) -> impl FnOnce() + 'static {
        let (machine, disks, left) = (on.machine.clone(), on.disks.clone(), on.left.clone());
        let (scene, wiring) = (self.scene.clone(), self.wiring.clone());
        let mut random = self.world.random(&format!("cut of boot {}", scene.boot()));
        move || {
            if machine.is_on() {
                *left.borrow_mut() = Some(disks.iter().map(|disk| disk.crash_image(&mut random)).collect());
                wiring.power_off();
                machine.power_off();
                scene.next_boot();
            }
        }
    }

    /// Ends a boot: by its cut if that came, else in order or by pulling the plug. What the disks hold then.
    async fn end(&mut self, on: Boot) -> Result<Vec<Image>, String> {
        self.world.defuse();
        if on.machine.is_on() {
            if self.random.percent(40) && !self.scene.may_fail(self.scene.boot()) {
                self.stop(&on).await?;
            } else {
                self.scene.count(|seen| seen.cuts += 1);
                self.power_off(&on)();
            }
        } else {
            self.scene.count(|seen| seen.cuts += 1);
        }
        Ok(on.left.take().expect("the power is off"))
    }

    /// Stops a machine in order.
    async fn stop(&self, on: &Boot) -> Result<(), String> {
        on.stop.ask();
        let (scene, ended) = (&self.scene, &on.ended);
        scene.changed.until(|| ended.get().then_some(())).await;
        if let Some(why) = scene.problem() {
            return Err(why);
        }
        self.power_off(on)();
        Ok(())
    }

    /// The machine is off for a while.
    async fn between(&mut self) {
        let off = self.random.below(OFF_MAX.as_nanos() as u64);
        self.scene.clock.sleep(Duration::from_nanos(off)).await;
    }
}
