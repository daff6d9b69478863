//! Superblocks at work: what a disk is, which disks make a pool, writing the copies so that a cut never loses them.
//!
//! | file | what it holds |
//! |---|---|
//! | `probe` | looking at one disk: [`probe`](probe()), [`Found`] |
//! | `foreign` | the marks that other formats leave |
//! | `assemble` | from disks to a pool: [`assemble`](assemble()) |
//! | `make` | a new pool on given disks: [`format`](format()) |
//! | `usable` | whether this build may serve and write the pool that a superblock tells of |

use crate::device::Devices;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::time::Duration;
use moraine_format::Superblock;
use moraine_format::superblock::{MOUNT_EPOCH_END, SLOTS, slot_offsets};
use moraine_platform::sync::Semaphore;
use moraine_platform::{BlockDevice, Buf, Fua, OutOfMemory, Platform};

mod assemble;
mod foreign;
mod make;
mod probe;
mod usable;

pub use assemble::{AssembleError, Completeness, assemble};
pub use make::{FormatOptions, MakeError, format};
pub use probe::{Copy, Found, copies, probe};
pub use usable::Unusable;

/// The superblock could not be made durable on any device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoDevice;

impl fmt::Display for NoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no device takes the superblock")
    }
}

impl core::error::Error for NoDevice {}

/// The superblock of an open pool, and the only way to change it.
pub struct Superblocks {
    platform: Platform,
    devices: Rc<Devices>,
    current: RefCell<Superblock>,
    /// Members whose newest superblock was found in a copy of the first half only: that half is written last.
    second_first: Vec<u8>,
    writing: Rc<Semaphore>,
}

impl Superblocks {
    /// Opens the pool that `disks` make. Reads only: nothing is changed before the first [`Superblocks::update`].
    pub async fn open(
        platform: &Platform,
        disks: &[Rc<dyn BlockDevice>],
        completeness: Completeness,
    ) -> Result<Superblocks, AssembleError> {
        let (mut members, mut second_first) = (Vec::new(), Vec::new());
        for disk in disks {
            if let Found::Ours(superblock) = probe(&**disk).await {
                let copies = copies(&**disk).await;
                let newest = |c: &Copy| matches!(c, Copy::Valid(sb) if **sb == *superblock);
                if !copies[HALF..].iter().any(newest) {
                    second_first.push(superblock.device);
                }
                members.push((disk.clone(), superblock));
            }
        }
        let found: Vec<&Superblock> = members.iter().map(|(_, s)| &**s).collect();
        let newest = assemble(&found, completeness)?;
        let current = found[newest].clone();
        let present = members.iter().map(|(disk, s)| (s.device, disk.clone())).collect();
        let devices = Devices::new(platform.spawn.clone(), present);
        Ok(Superblocks { second_first, ..Superblocks::with(platform, devices, current) })
    }

    fn with(platform: &Platform, devices: Rc<Devices>, current: Superblock) -> Superblocks {
        let current = RefCell::new(current);
        let second_first = Vec::new();
        Superblocks { platform: platform.clone(), devices, current, second_first, writing: Semaphore::new(1) }
    }

    /// The pool's devices.
    pub fn devices(&self) -> &Rc<Devices> {
        &self.devices
    }

    /// The superblock as it is on disk. Which device it says it is of means nothing here.
    pub fn current(&self) -> Superblock {
        self.current.borrow().clone()
    }

    /// Whether the pool may be served by this build.
    pub fn usable(&self) -> Result<(), Unusable> {
        usable::usable(&self.current.borrow())
    }

    /// Whether a repair by this build may write it, or a mere look at it make sense.
    pub fn repairable(&self, writes: bool) -> Result<(), Unusable> {
        usable::repairable(&self.current.borrow(), writes)
    }

    /// Changes the superblock and returns once it is durable on every device that works, at least one.
    pub async fn update(&self, change: impl FnOnce(&mut Superblock)) -> Result<(), NoDevice> {
        let _turn = self.writing.take(1).await;
        let mut next = self.current();
        change(&mut next);
        loop {
            next.prev_epoch = next.epoch;
            next.seq += 1;
            next.epoch = self.platform.rng.next_u64();
            next.written = self.platform.clock.wall().0;
            let targets: Vec<u8> = self.devices.healthy().collect();
            for device in &targets {
                // Recorded for those that fail, too: they may hold this copy from now on.
                let member = &mut next.members[usize::from(*device)];
                member.last_seen_seq = next.seq;
                member.last_seen_epoch = next.epoch;
            }
            for device in &targets {
                self.write_copies(*device, &next, Stage::First).await;
            }
            for device in &targets {
                self.write_copies(*device, &next, Stage::Second).await;
            }
            let lost = targets.iter().filter(|d| !self.devices.is_healthy(**d)).count();
            if lost == targets.len() {
                return Err(NoDevice);
            }
            if lost == 0 {
                *self.current.borrow_mut() = next;
                return Ok(());
            }
        }
    }

    /// Opens a mount: raises the mount epoch, draws its nonce, and makes both durable. To be called before anything
    /// else is written.
    pub async fn begin_mount(&self) -> Result<(), NoDevice> {
        self.begin_mount_above(0).await
    }

    /// The same, with a mount epoch that is also above `seen`: one that an old copy of the superblock does not know of.
    pub async fn begin_mount_above(&self, seen: u64) -> Result<(), NoDevice> {
        let nonce = self.platform.rng.next_u64();
        let epoch = self.current().mount_epoch.max(seen) + 1;
        if epoch >= MOUNT_EPOCH_END {
            return Err(NoDevice);
        }
        self.update(|sb| {
            sb.mount_epoch = epoch;
            sb.mount_nonce = nonce;
            sb.clean = false;
        })
        .await
    }

    /// Writes two of a device's four copies and flushes them. A device that cannot is marked failed.
    ///
    /// An update that was cut may have left no whole copy in one half. So that half is written first: if the other were, a
    /// second cut could leave none at all.
    async fn write_copies(&self, device: u8, superblock: &Superblock, stage: Stage) {
        let Some(info) = self.devices.info(device) else { return };
        let bytes = Superblock { device, ..superblock.clone() }.to_bytes();
        let offsets = slot_offsets(info.size);
        let second_first = self.second_first.contains(&device);
        let slots = match (stage, second_first) {
            (Stage::First, false) | (Stage::Second, true) => &offsets[..HALF],
            (Stage::Second, false) | (Stage::First, true) => &offsets[HALF..],
        };
        for offset in slots {
            let Some(buf) = self.buffer(&bytes).await else {
                return self.devices.fail(device, "no memory to write its superblock");
            };
            if let (_, Err(error)) = self.devices.write(device, *offset, buf, Fua::No).await {
                return self.devices.fail(device, &alloc::format!("superblock write: {error}"));
            }
        }
        if let Err(error) = self.devices.flush(device).await {
            self.devices.fail(device, &alloc::format!("superblock flush: {error}"));
        }
    }

    /// A copy of these bytes for a device. Want of memory passes; a device that failed for it would not come back.
    async fn buffer(&self, bytes: &[u8]) -> Option<Buf> {
        for _ in 0..MEMORY_WAITS_MAX {
            match Buf::copy_of(bytes) {
                Ok(buf) => return Some(buf),
                Err(OutOfMemory) => self.platform.clock.sleep(MEMORY_RETRY).await,
            }
        }
        None
    }
}

/// How long somebody who needs memory for a superblock waits before he asks again, and how often he does: 10 s.
const MEMORY_RETRY: Duration = Duration::from_millis(5);
const MEMORY_WAITS_MAX: u32 = 2000;

/// Copies of a device that are written together.
const HALF: usize = SLOTS / 2;

/// The two halves of a superblock write: at no time are all four copies of a device in flux.
#[derive(Clone, Copy)]
enum Stage {
    First,
    Second,
}
