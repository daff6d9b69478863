//! Worlds in which disks fail while clients are at work, by the kind of fault.
//!
//! Faults that a pool must survive: after a restart what was acknowledged is there, as after a power cut. Faults that
//! no single disk can survive (it lies, or takes back what it had): then no wrong byte is handed out, nothing panics
//! and nothing hangs; what is found after a restart is some state of the history, or an error.

use crate::disk::{DiskConfig, SimDisk, WriteFault};
use crate::generate::{Generator, Profile};
use crate::harness::{Client, EndIs, Store, Tally, all, devices, formatted, plug, recover, walk};
use crate::ops::Op;
use crate::oracle::{History, Progress};
use crate::random::Random;
use crate::world::{Ended, World, WorldConfig};
use moraine_fs::vfs::*;
use moraine_platform::{BLOCK_SIZE, IoError, Platform};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// Clients at work.
const CLIENTS: usize = 2;
/// Steps each of them would do.
const STEPS: usize = 70;
/// Commands of one disk among which faults are spread.
const COMMANDS: u64 = 250;
/// How long a slow disk stays slow.
const SLOW_FOR: Duration = Duration::from_secs(3600);
/// How many times longer everything takes then.
const SLOW_FACTOR: u64 = 1_000_000;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A flush fails; what it covered is lost, or not.
    Flush,
    /// A few commands fail.
    Command,
    /// A disk is gone from some command on.
    Vanish,
    /// Everything takes a million times as long for an hour.
    Slow,
    /// A write completes well and never lands.
    LostWrite,
    /// A write completes well and lands elsewhere.
    Misdirected,
    /// A write times out and lands up to a minute later.
    Zombie,
    /// Stored bits flip.
    Rot,
    /// Flushes do nothing.
    Lie,
}

impl Fault {
    /// All of them, with their names on the command line.
    pub const ALL: [(Fault, &'static str); 9] = [
        (Fault::Flush, "flush"),
        (Fault::Command, "command"),
        (Fault::Vanish, "vanish"),
        (Fault::Slow, "slow"),
        (Fault::LostWrite, "lost-write"),
        (Fault::Misdirected, "misdirected"),
        (Fault::Zombie, "zombie"),
        (Fault::Rot, "rot-at-work"),
        (Fault::Lie, "lie"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Fault::ALL.iter().find(|(fault, _)| *fault == self).expect("all are listed").1
    }

    /// Whether what was acknowledged must be there after a restart.
    pub fn is_survivable(self) -> bool {
        matches!(self, Fault::Flush | Fault::Command | Fault::Vanish | Fault::Slow)
    }

    /// Plans it on one of the disks.
    pub(crate) fn plan(self, platform: &Platform, disks: &[Rc<SimDisk>], random: &mut Random) {
        let disk = random.pick(disks).clone();
        let after = random.below(COMMANDS);
        let writes = |random: &mut Random| random.below(COMMANDS / 2);
        let count = random.between(1, 4);
        match self {
            Fault::Flush => {
                let (after, lose) = (random.below(COMMANDS / 8), random.percent(70));
                let fail = |f: &mut crate::DiskFaults| match lose {
                    true => f.fail_flush_and_lose(after),
                    false => f.fail_flush(after),
                };
                disk.faults(fail);
            }
            Fault::Command => {
                for _ in 0..count {
                    let error = *random.pick(&[IoError::Media, IoError::Device, IoError::Timeout]);
                    disk.faults(|f| f.fail_command(random.below(COMMANDS), error));
                }
            }
            Fault::Vanish => disk.faults(|f| f.vanish(after)),
            Fault::Slow => {
                let (clock, begin) = (platform.clock.clone(), random.below(200_000_000));
                let task = async move {
                    clock.sleep(Duration::from_nanos(begin)).await;
                    disk.faults(|f| f.slow_factor = SLOW_FACTOR);
                    clock.sleep(SLOW_FOR).await;
                    disk.faults(|f| f.slow_factor = 1);
                };
                platform.spawn.spawn("slow disk", Box::pin(task));
            }
            Fault::LostWrite => {
                (0..count).for_each(|_| disk.faults(|f| f.fail_write(writes(random), WriteFault::Lost)));
            }
            Fault::Misdirected => {
                for _ in 0..count {
                    let by = random.between(1, 1 << 14) * BLOCK_SIZE as u64;
                    disk.faults(|f| f.fail_write(writes(random), WriteFault::Misdirected { by }));
                }
            }
            Fault::Zombie => {
                for _ in 0..count {
                    let after_ns = random.below(60_000_000_000);
                    disk.faults(|f| f.fail_write(writes(random), WriteFault::Zombie { after_ns }));
                }
            }
            Fault::Rot => {
                let (clock, begin) = (platform.clock.clone(), random.below(300_000_000));
                let mut random = random.clone();
                let task = async move {
                    clock.sleep(Duration::from_nanos(begin)).await;
                    let empty = crate::Image::new(disk.visible_image().size());
                    let used = disk.visible_image().difference(&empty);
                    for _ in 0..count * 8 {
                        let block = *random.pick(&used) * BLOCK_SIZE as u64;
                        disk.rot(block, BLOCK_SIZE as u64, 1, &mut random);
                    }
                };
                platform.spawn.spawn("rot", Box::pin(task));
            }
            Fault::Lie => disks.iter().for_each(|disk| disk.faults(|f| f.ignore_flush = true)),
        }
    }
}

/// Errors of a disk that failed honestly.
fn failed(error: FsError) -> bool {
    matches!(error, FsError::DeviceRead | FsError::DeviceWrite | FsError::Stopped)
}

/// ... or was found out.
fn failed_or_damaged(error: FsError) -> bool {
    failed(error) || matches!(error, FsError::Checksum | FsError::Corrupt)
}

/// Clients at work on disks with one kind of fault, then a power cut, a restart on what is there, and the oracle.
pub fn fault_world<S: Store>(store: &S, seed: u64, profile: &Profile, fault: Fault) -> Result<Tally, String> {
    let profile = profile.for_crashes();
    let images = formatted(store, seed, &profile)?;
    let mut random = Random::for_purpose(seed, fault.name());
    let world = World::with(WorldConfig { poll_limit: 20_000_000, ..WorldConfig::new(seed ^ 3 << 50) });
    let disks = plug(&world, &images, &DiskConfig::default());
    let (platform, seen) = (world.platform(), devices(&disks));
    let histories: Rc<RefCell<Vec<Rc<RefCell<History>>>>> = Rc::default();
    let problem: Rc<RefCell<Option<String>>> = Rc::default();
    let commands = random.between(100, 40 * (CLIENTS * STEPS) as u64 / 5);
    let bears = if fault.is_survivable() { failed } else { failed_or_damaged };
    let ended = world.run_to_power_cut(
        async {
            let fs = store.mount(&platform, &seen).await?.fs;
            let mut clients = Vec::new();
            for number in 0..CLIENTS {
                let name = format!("c{number}").into_bytes();
                let generator = Generator::new(profile.clone(), world.random(&format!("client {number}")));
                let client = Client::among(&*fs, number, &name, generator).await?.bearing(bears);
                histories.borrow_mut().push(client.history.clone());
                clients.push(client);
            }
            fault.plan(&platform, &disks, &mut random);
            let verifier = fs.write_verifier();
            let mut tasks = Vec::new();
            for mut client in clients {
                let (fs, trace, problem) = (fs.clone(), world.trace(), &problem);
                tasks.push(Box::pin(async move {
                    if let Err(why) = client.work(&*fs, trace, STEPS).await {
                        problem.borrow_mut().get_or_insert(why);
                    }
                    if let Some((step, error)) = client.ended_by
                        && matches!(step.op, Op::Commit { .. })
                        && matches!(error, FsError::DeviceWrite | FsError::Stopped)
                        && fs.write_verifier() == verifier
                    {
                        problem.borrow_mut().get_or_insert(format!("{step}: {error}, with the old verifier"));
                    }
                }));
            }
            all(tasks).await;
            Ok::<(), String>(())
        },
        commands,
    );
    match ended {
        Ok(Ended::Done(Err(why))) => return Err(why),
        Err(stall) => return Err(stall.to_string()),
        Ok(Ended::Done(Ok(())) | Ended::PowerCut) => {}
    }
    if let Some(why) = problem.take() {
        return Err(why);
    }
    let images = world.crash();
    let hash = world.trace().hash();
    drop((disks, seen, world));
    let histories: Vec<History> = histories.borrow().iter().map(|h| h.borrow().clone()).collect();
    let again = World::with(WorldConfig { poll_limit: 20_000_000, ..WorldConfig::new(seed ^ 5 << 50) });
    let disks = plug(&again, &images, &DiskConfig::default());
    if fault.is_survivable() {
        let progress: Vec<Progress> = histories.iter().map(History::progress).collect();
        recover(store, &again, &disks, &histories, &progress, EndIs::OfThisHistory)
            .map_err(|why| format!("after a restart: {why}"))?;
    } else {
        some_state_or_an_error(store, &again, &disks, &histories)
            .map_err(|why| format!("after a restart: {why}"))?;
    }
    let steps = histories.iter().map(|h| h.steps.len() as u64).sum();
    Ok(Tally { worlds: 1, steps, cuts: 1, hash: crate::trace::mix(hash, again.trace().hash()) })
}

/// What can be read is a state of the history, whatever had been acknowledged.
fn some_state_or_an_error<S: Store>(
    store: &S,
    world: &World,
    disks: &[Rc<SimDisk>],
    histories: &[History],
) -> Result<(), String> {
    let (platform, seen) = (world.platform(), devices(disks));
    let outcome = world.try_run(async {
        // Not mounting what is damaged is an honest answer.
        let Ok(mounted) = store.mount(&platform, &seen).await else { return Ok(()) };
        match walk(&*mounted.fs).await {
            Ok(tree) => {
                for history in histories {
                    let home = history.home.clone();
                    if tree.paths.contains_key(&home) {
                        history.check_any(&tree)?;
                    }
                }
            }
            // So is saying that something cannot be read, as long as that is what is said.
            Err(why) if is_honest(&why) => {}
            Err(why) => return Err(why),
        }
        // Ending in good order may be impossible by now.
        let _ = store.unmount(mounted.fs).await;
        Ok(())
    });
    outcome.map_err(|stall| stall.to_string())?
}

fn is_honest(why: &str) -> bool {
    let errors =
        [FsError::DeviceRead, FsError::DeviceWrite, FsError::Stopped, FsError::Checksum, FsError::Corrupt];
    errors.iter().any(|error| why.contains(&error.to_string()))
}
