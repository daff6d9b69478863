//! Worlds that bring one loss or one race about on purpose, because chance hardly ever does.

use crate::crash::{CrashPlan, enumerate};
use crate::disk::{DiskConfig, DiskFaults, Image, SimDisk, WriteFault};
use crate::harness::{Store, all, blank, devices, plug};
use crate::ops::pattern;
use crate::plug::Moraine;
use crate::rot::is_honest;
use crate::trace::{Command, Event, Payload};
use crate::world::{World, WorldConfig};
use moraine_fs::vfs::*;
use moraine_fs::{Filesystem, Vfs};
use moraine_platform::Platform;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// Files of [`lost_writes`] that are there before any write is lost, and those that come after.
const OLD_FILES: usize = 40;
const NEW_FILES: usize = 12;
/// Bytes of the file that is read slowly: several buckets.
const FILE_BYTES: u64 = 512 << 10;
/// Bytes of it that are read slowly.
const READ_BYTES: u32 = 32 << 10;
const BLOCK: u64 = 4096;
/// Bytes of the file that grows, first and in the end: the end of both lies in its last page.
const FIRST_BYTES: usize = 5 * 4096 + 1000;
const GROWN_BYTES: usize = FIRST_BYTES + 2000;
/// How many times longer the slow read takes: more than a second, while anything else takes some milliseconds.
const SLOW_FACTOR: u64 = 100_000;
/// Long enough for whatever goes on in the background.
const QUIET: Duration = Duration::from_millis(500);
/// Looks at whether the slow read has reached a disk.
const LOOKS_MAX: usize = 10_000;
/// The mark before the slow read.
const SLOW_READ: u64 = 1;

fn name(n: usize) -> Vec<u8> {
    format!("file {n}").into_bytes()
}

/// What file `n` holds in the end.
fn content(n: usize) -> Vec<u8> {
    pattern(n as u64 + 1, 100 + n)
}

async fn make(fs: &Filesystem, n: usize) -> FsResult<ObjectId> {
    let set = SetAttr { mode: Some(0o644), ..SetAttr::default() };
    Ok(fs.create(&Caller::root(), fs.root(), &name(n), CreateMode::Guarded, &set).await?.value.0)
}

async fn put(fs: &Filesystem, file: ObjectId, at: u64, bytes: &[u8]) -> FsResult<()> {
    let data = WriteData::copy_of(at, bytes).map_err(|_| FsError::NoMemory)?;
    fs.write(&Caller::root(), file, at, data, Stability::Unstable).await.map(|_| ())
}

/// Changes old files and makes new ones, and puts all of it on media: with what is there, nodes are appended to.
async fn change(fs: &Filesystem) -> FsResult<()> {
    for n in 0..OLD_FILES {
        let file = fs.lookup(&Caller::root(), fs.root(), &name(n)).await?.0;
        put(fs, file, 0, &content(n)).await?;
    }
    for n in OLD_FILES..OLD_FILES + NEW_FILES {
        let file = make(fs, n).await?;
        put(fs, file, 0, &content(n)).await?;
    }
    fs.sync_all().await
}

/// A session between two clean unmounts, once for each write in it, which a disk acknowledges and loses. What was synced is
/// there then, or asking for it is an error. Says how many writes were lost and how often that was noticed.
pub fn lost_writes(seed: u64) -> Result<(u64, u64), String> {
    let store = Moraine::for_seed(seed);
    let world = World::new(seed);
    let disks = plug(&world, &blank(&store), &DiskConfig::default());
    let (platform, seen) = (world.platform(), devices(&disks));
    world.run(async {
        store.format(&platform, &seen).await?;
        let fs = store.mount(&platform, &seen).await?.fs;
        for n in 0..OLD_FILES {
            make(&fs, n).await.map_err(|e| format!("cannot make file {n}: {e}"))?;
        }
        store.unmount(fs).await
    })?;
    let start: Vec<Image> = disks.iter().map(|disk| disk.durable_image()).collect();
    let (mut lost, mut noticed) = (0, 0);
    loop {
        // In turn on each disk; when none is left to be lost on any, all were.
        let after = lost / start.len() as u64;
        let (left, writes) = session(&store, seed, &start, Some((lost as usize % start.len(), after)))?;
        if after >= writes {
            return Ok((lost, noticed));
        }
        noticed += u64::from(
            !as_synced(&store, seed, &left).map_err(|why| format!("without write {after}: {why}"))?,
        );
        lost += 1;
    }
}

/// The session; what it left, and how many writes there were.
fn session(
    store: &Moraine,
    seed: u64,
    start: &[Image],
    lose: Option<(usize, u64)>,
) -> Result<(Vec<Image>, u64), String> {
    let world = World::new(seed ^ 1 << 50);
    let disks = plug(&world, start, &DiskConfig::default());
    if let Some((disk, after)) = lose {
        disks[disk].faults(|f| f.fail_write(after, WriteFault::Lost));
    }
    let (platform, seen) = (world.platform(), devices(&disks));
    world.run(async {
        let fs = store.mount(&platform, &seen).await?.fs;
        change(&fs).await.map_err(|e| format!("cannot change files: {e}"))?;
        store.unmount(fs).await
    })?;
    let counters = world.trace().counters();
    Ok((disks.iter().map(|d| d.durable_image()).collect(), counters.writes + counters.fua_writes))
}

/// Whether all that was synced is there; an error if something else is.
fn as_synced(store: &Moraine, seed: u64, images: &[Image]) -> Result<bool, String> {
    let world = World::new(seed ^ 2 << 50);
    let disks = plug(&world, images, &DiskConfig::default());
    let (platform, seen, root) = (world.platform(), devices(&disks), Caller::root());
    world
        .try_run(async {
            // Not mounting what is damaged is an honest answer.
            let Ok(mounted) = store.mount(&platform, &seen).await else { return Ok(false) };
            let (fs, mut whole) = (mounted.fs, true);
            for n in 0..OLD_FILES + NEW_FILES {
                let read = async {
                    let file = fs.lookup(&root, fs.root(), &name(n)).await?.0;
                    Ok(fs.read(&root, file, 0, READ_BYTES).await?.to_vec())
                };
                match read.await {
                    Ok(bytes) if bytes == content(n) => {}
                    Err(error) if is_honest(error) => whole = false,
                    Ok(bytes) => return Err(format!("file {n} has other bytes ({} of them)", bytes.len())),
                    Err(error) => return Err(format!("file {n}: {error}")),
                }
            }
            // Ending in good order may be impossible.
            let _ = store.unmount(fs).await;
            Ok(whole)
        })
        .map_err(|stall| stall.to_string())?
}

/// A filesystem with a file that is on disk only, and whose keys are in memory.
struct Stage {
    fs: Rc<Filesystem>,
    file: ObjectId,
    disks: Vec<Rc<SimDisk>>,
    platform: Platform,
}

impl Stage {
    async fn set(store: &Moraine, world: &World) -> Result<Stage, String> {
        let disks = plug(world, &blank(store), &DiskConfig::default());
        let (platform, seen) = (world.platform(), devices(&disks));
        store.format(&platform, &seen).await?;
        let fs = store.mount(&platform, &seen).await?.fs;
        let made: FsResult<ObjectId> = async {
            let file = make(&fs, 0).await?;
            put(&fs, file, 0, &pattern(1, FILE_BYTES as usize)).await?;
            fs.commit(file, 0, 0).await?;
            Ok(file)
        }
        .await;
        let file = made.map_err(|e| format!("cannot make the file: {e}"))?;
        store.unmount(fs).await?;
        let fs = store.mount(&platform, &seen).await?.fs;
        let stage = Stage { fs, file, disks, platform };
        // From here on the keys are in memory. Nothing is read ahead of what lies behind the end or before what was read.
        stage.read(FILE_BYTES - BLOCK, BLOCK as u32).await?;
        stage.read(READ_BYTES.into(), 1).await?;
        stage.platform.clock.sleep(QUIET).await;
        Ok(stage)
    }

    async fn read(&self, at: u64, len: u32) -> Result<Vec<u8>, String> {
        let read = self.fs.read(&Caller::root(), self.file, at, len).await;
        read.map(|read| read.to_vec()).map_err(|e| format!("the file cannot be read: {e}"))
    }

    fn faults(&self, edit: impl Fn(&mut DiskFaults)) {
        self.disks.iter().for_each(|disk| disk.faults(&edit));
    }

    fn in_flight(&self) -> u64 {
        self.disks.iter().map(|disk| disk.in_flight()).sum()
    }

    /// Reads the file's begin, slowly; `meanwhile` happens while that is under way.
    async fn read_slowly(
        &self,
        world: &World,
        meanwhile: impl Future<Output = FsResult<()>>,
    ) -> Result<Vec<u8>, String> {
        let (read, then) = (RefCell::new(None), RefCell::new(None));
        if self.in_flight() > 0 {
            return Err("something else is under way".to_owned());
        }
        world.trace().mark(SLOW_READ);
        self.faults(|f| f.slow_factor = SLOW_FACTOR);
        let reading = async {
            let result = self.read(0, READ_BYTES).await;
            *read.borrow_mut() = Some(result);
        };
        let staging = async {
            something_under_way(&self.platform, &self.disks).await;
            self.faults(|f| f.slow_factor = 1);
            let result = meanwhile.await.map_err(|e| format!("beside the slow read: {e}"));
            let ended = read.borrow().is_some();
            let result =
                result.and(if ended { Err("the slow read was not slow".to_owned()) } else { Ok(()) });
            *then.borrow_mut() = Some(result);
        };
        let tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = vec![Box::pin(reading), Box::pin(staging)];
        all(tasks).await;
        then.take().expect("both ended")?;
        read.take().expect("both ended")
    }
}

/// Waits until a command is under way, if one will be.
async fn something_under_way(platform: &Platform, disks: &[Rc<SimDisk>]) {
    let mut looks = 0;
    while disks.iter().all(|disk| disk.in_flight() == 0) && looks < LOOKS_MAX {
        platform.clock.sleep(Duration::from_micros(1)).await;
        looks += 1;
    }
}

/// A file grows within its last page while older content of that page is on its way to disk. Wherever the power goes from
/// then on, what the file shows was written, up to its end.
pub fn grown_while_written_back(seed: u64) -> Result<(), String> {
    let store = Moraine::for_seed(seed);
    let whole = pattern(1, GROWN_BYTES);
    let mut plan = CrashPlan::new("grown while written back", seed, blank(&store));
    // What comes before the first mark prepares, and recovery is cut elsewhere.
    (plan.marks_first, plan.second_level_max) = (1, 0);
    let report = enumerate(
        &plan,
        |world, disks| {
            let (platform, seen) = (world.platform(), devices(disks));
            let staged: Result<(), String> = world.run(async {
                store.format(&platform, &seen).await?;
                let fs = store.mount(&platform, &seen).await?.fs;
                let wrong = |e: FsError| format!("cannot write: {e}");
                let file = make(&fs, 0).await.map_err(wrong)?;
                fs.sync_all().await.map_err(wrong)?;
                put(&fs, file, 0, &whole[..FIRST_BYTES]).await.map_err(wrong)?;
                world.trace().mark(1);
                let slow = |factor| disks.iter().for_each(|disk| disk.faults(|f| f.slow_factor = factor));
                slow(SLOW_FACTOR);
                let writing_back = async { fs.commit(file, 0, 0).await.map(|_| ()) };
                let growing = async {
                    something_under_way(&platform, disks).await;
                    slow(1);
                    put(&fs, file, FIRST_BYTES as u64, &whole[FIRST_BYTES..]).await
                };
                let results = RefCell::new(Vec::new());
                let note = |result: FsResult<()>| results.borrow_mut().push(result);
                let tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = vec![
                    Box::pin(async { note(writing_back.await) }),
                    Box::pin(async { note(growing.await) }),
                ];
                all(tasks).await;
                results.take().into_iter().collect::<FsResult<()>>().map_err(wrong)?;
                world.trace().mark(2);
                fs.commit(file, 0, 0).await.map_err(wrong)?;
                world.trace().mark(3);
                store.unmount(fs).await
            });
            staged.expect("nothing fails before the cuts");
        },
        |world, disks, (), cut| {
            let (platform, seen, root) = (world.platform(), devices(disks), Caller::root());
            world.run(async {
                let fs = store.mount(&platform, &seen).await?.fs;
                let wrong = |e: FsError| format!("cannot read: {e}");
                let (file, attr) = fs.lookup(&root, fs.root(), &name(0)).await.map_err(wrong)?;
                let bytes = fs.read(&root, file, 0, READ_BYTES).await.map_err(wrong)?.to_vec();
                let least = match cut.marks.last() {
                    Some(1) => 0,
                    Some(2) => FIRST_BYTES,
                    _ => GROWN_BYTES,
                };
                if bytes.len() < least || bytes.len() as u64 != attr.size {
                    return Err(format!("{} of {least} bytes are left", bytes.len()));
                }
                // What was not synced may come in any order, a page at a time: those that are not there yet are holes.
                let pages = bytes.chunks(BLOCK as usize).zip(whole.chunks(BLOCK as usize)).enumerate();
                for (n, (page, written)) in pages {
                    let hole = least <= BLOCK as usize * n && page.iter().all(|byte| *byte == 0);
                    if !hole && page != &written[..page.len()] {
                        return Err(format!("page {n} of {} bytes is not what was written", bytes.len()));
                    }
                }
                store.unmount(fs).await
            })
        },
    );
    match report.failures.first() {
        Some(failure) => Err(format!("at {}: {}", failure.place, failure.message)),
        None if report.cuts == 0 => Err("nothing was cut".to_owned()),
        None => Ok(()),
    }
}

/// A file is overwritten and synced while its old bytes are being read: their buckets are discarded when the read has
/// ended, and not before.
pub fn reader_of_overwritten(seed: u64) -> Result<(), String> {
    let world = World::with(WorldConfig { record: true, ..WorldConfig::new(seed) });
    let store = Moraine::for_seed(seed);
    world
        .try_run(async {
            let stage = Stage::set(&store, &world).await?;
            let new = pattern(2, FILE_BYTES as usize);
            let overwrite = async {
                put(&stage.fs, stage.file, 0, &new).await?;
                stage.fs.commit(stage.file, 0, 0).await?;
                stage.platform.clock.sleep(QUIET).await;
                Ok(())
            };
            let bytes = stage.read_slowly(&world, overwrite).await?;
            let old = pattern(1, FILE_BYTES as usize);
            let blocks =
                bytes.chunks(BLOCK as usize).zip(old.chunks(BLOCK as usize)).zip(new.chunks(BLOCK as usize));
            if bytes.len() != READ_BYTES as usize
                || blocks.into_iter().any(|((b, old), new)| b != old && b != new)
            {
                return Err("the slow read gave neither old nor new bytes".to_owned());
            }
            stage.platform.clock.sleep(QUIET).await;
            store.unmount(stage.fs).await
        })
        .map_err(|stall| stall.to_string())??;
    discarded_after_reading(&world.trace().events())
}

/// Whether what the slow read read was discarded when it had ended.
fn discarded_after_reading(events: &[Event]) -> Result<(), String> {
    let begin = events.iter().position(|event| matches!(event, Event::Mark(SLOW_READ)));
    let events = &events[begin.ok_or("nothing was read slowly")?..];
    let slow = events.iter().find_map(|event| match event {
        Event::Submit { disk, id, command: Command::Read { offset, len } } => {
            Some((*disk, *id, *offset..offset + len))
        }
        _ => None,
    });
    let (disk, id, range) = slow.ok_or("nothing was read slowly")?;
    let ended = events.iter().position(|event| matches!(event, Event::Complete { id: of, .. } if *of == id));
    let discard = events.iter().position(|event| match event {
        Event::Submit {
            disk: on,
            command: Command::Write { offset, payload: Payload::Noise(_, len), .. },
            ..
        } => *on == disk && *offset < range.end && range.start < offset + len,
        _ => false,
    });
    match (ended, discard) {
        (Some(ended), Some(discard)) if ended < discard => Ok(()),
        (_, Some(_)) => Err("a bucket was discarded under its reader".to_owned()),
        (_, None) => Err("the bucket was never emptied".to_owned()),
    }
}

/// A block is written while its old bytes are being loaded: from then on it reads as it was written, also after a remount.
pub fn written_while_loaded(seed: u64) -> Result<(), String> {
    let world = World::new(seed);
    let store = Moraine::for_seed(seed);
    world
        .try_run(async {
            let stage = Stage::set(&store, &world).await?;
            let (at, new) = (3 * BLOCK, pattern(2, BLOCK as usize));
            let write = put(&stage.fs, stage.file, at, &new);
            stage.read_slowly(&world, write).await?;
            let mut expected = pattern(1, FILE_BYTES as usize);
            expected[at as usize..(at + BLOCK) as usize].copy_from_slice(&new);
            expected.truncate(READ_BYTES as usize);
            if stage.read(0, READ_BYTES).await? != expected {
                return Err("what was written during a load is gone".to_owned());
            }
            stage.fs.commit(stage.file, 0, 0).await.map_err(|e| format!("cannot sync: {e}"))?;
            store.unmount(stage.fs).await?;
            let fs = store.mount(&stage.platform, &devices(&stage.disks)).await?.fs;
            let stage = Stage { fs, ..stage };
            if stage.read(0, READ_BYTES).await? != expected {
                return Err("what was written during a load is gone after a remount".to_owned());
            }
            store.unmount(stage.fs).await
        })
        .map_err(|stall| stall.to_string())?
}
