//! A small pool with a real tree of files in it.

use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::filesystem::Options;
use moraine_fs::repair::{Damage, Finding, FindingKind, Repair, Reporter, Summary, check_pool};
use moraine_fs::vfs::*;
use moraine_fs::{CacheBudget, Filesystem, FsError};
use moraine_platform::BlockDevice;
use moraine_sim::{DiskConfig, Image, Random, SimDisk, World, WorldConfig};
use std::collections::BTreeMap;
use std::rc::Rc;

pub const DISK_BYTES: u64 = 8 << 20;
pub const BUCKET_BYTES: u64 = 64 << 10;
pub const NODE_BYTES: u32 = 32 << 10;
const CACHE_BYTES: usize = 1 << 20;
/// Polls a world may take: beyond, it hangs.
const POLLS_MAX: u64 = 3_000_000;

/// What a file, a directory or a link was made as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// A file with the contents it had at one time or another; the newest last.
    File(Vec<Vec<u8>>),
    Dir,
    Link(Vec<u8>),
}

/// A pool on one disk, and what is in it.
pub struct Sample {
    pub image: Image,
    pub tree: BTreeMap<Vec<u8>, Made>,
}

/// Small nodes, so that trees are deep.
pub fn budget() -> Budget {
    Budget { node_cache_bytes: 1 << 20, node_keys_max: 16, ..Budget::default() }
}

fn options() -> Options {
    Options { hash_bits: 4, ..Options::default() }
}

pub fn plug(world: &World, image: &Image) -> (Rc<SimDisk>, Vec<Rc<dyn BlockDevice>>) {
    let config = DiskConfig { discard: false, ..DiskConfig::default() };
    let disk = world.disk_with(image.clone(), config);
    (disk.clone(), vec![disk as Rc<dyn BlockDevice>])
}

pub fn world(seed: u64) -> World {
    World::with(WorldConfig { poll_limit: POLLS_MAX, ..WorldConfig::new(seed) })
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8 | 1
        })
        .collect()
}

/// How the pool was left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Cleanly unmounted.
    Clean,
    /// In the middle of everything: what counts is in the journal.
    Running,
}

impl Sample {
    pub fn new(left: Left) -> Sample {
        let world = world(1);
        let (disk, disks) = plug(&world, &Image::new(DISK_BYTES));
        let tree = world.run(async {
            let format = FormatOptions {
                label: "sample".into(),
                bucket_bytes: BUCKET_BYTES,
                journal_bytes: 8 * BUCKET_BYTES,
                node_bytes: NODE_BYTES,
                ..FormatOptions::default()
            };
            let engine = Engine::format(&world.platform(), &disks, &format, &budget()).await.unwrap();
            Filesystem::format_root(&engine).await.unwrap();
            engine.unmount().await.unwrap();
            let engine = Engine::mount(&world.platform(), &disks, &budget()).await.unwrap();
            let fs = Filesystem::open_with(engine, CacheBudget::of(CACHE_BYTES), options()).await.unwrap();
            let tree = fill(&fs).await;
            if left == Left::Clean {
                fs.shutdown().await.unwrap();
                fs.engine().unmount().await.unwrap();
            } else {
                fs.sync_all().await.unwrap();
            }
            tree
        });
        Sample { image: disk.durable_image(), tree }
    }
}

fn root() -> Caller {
    Caller::root()
}

fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

async fn write(fs: &Filesystem, file: ObjectId, at: u64, bytes: &[u8]) {
    let data = WriteData::copy_of(at, bytes).unwrap();
    fs.write(&root(), file, at, data, Stability::Unstable).await.unwrap();
    fs.commit(file, 0, 0).await.unwrap();
}

/// Makes files of all kinds, some of them twice.
async fn fill(fs: &Filesystem) -> BTreeMap<Vec<u8>, Made> {
    let mut tree = BTreeMap::new();
    let mut dirs = vec![(Vec::new(), fs.root())];
    for name in [&b"/a"[..], b"/a/b", b"/c"] {
        let at = name.iter().rposition(|b| *b == b'/').unwrap();
        let parent = dirs.iter().find(|d| d.0 == name[..at]).unwrap().1;
        let made = fs.make(&root(), parent, &name[at + 1..], NewNode::Dir, &mode(0o755)).await.unwrap();
        dirs.push((name.to_vec(), made.value.0));
        tree.insert(name.to_vec(), Made::Dir);
    }
    for (n, (path, dir)) in dirs.clone().iter().enumerate() {
        for i in 0..10u64 {
            let name = format!("file{i}");
            let file = fs
                .create(&root(), *dir, name.as_bytes(), CreateMode::Guarded, &mode(0o644))
                .await
                .unwrap()
                .value
                .0;
            let seed = n as u64 * 100 + i;
            let bytes = pattern(seed, [0, 17, 3000, 4096, 5000, 40_000, 9000, 1, 70_000, 20_000][i as usize]);
            write(fs, file, 0, &bytes).await;
            let mut versions = vec![bytes];
            if i == 9 {
                // Once more, in part, and with a hole behind.
                let mut again = versions[0].clone();
                again[4096..8192].copy_from_slice(&pattern(seed + 50, 4096));
                write(fs, file, 4096, &again[4096..8192]).await;
                versions.push(again.clone());
                again.resize(40_000, 0);
                again.extend(pattern(seed + 51, 100));
                write(fs, file, 40_000, &again[40_000..]).await;
                versions.push(again);
            }
            if i == 3 {
                fs.setxattr(&root(), file, b"user.colour", &pattern(seed, 30), XattrMode::Either)
                    .await
                    .unwrap();
            }
            let mut full = path.clone();
            full.push(b'/');
            full.extend(name.as_bytes());
            tree.insert(full, Made::File(versions.clone()));
            if i == 5 {
                fs.link(&root(), file, *dir, b"hard").await.unwrap();
                let mut full = path.clone();
                full.extend(b"/hard");
                tree.insert(full, Made::File(versions));
            }
        }
        let target = pattern(n as u64, 40);
        fs.make(&root(), *dir, b"soft", NewNode::Symlink(&target), &mode(0o777)).await.unwrap();
        let mut full = path.clone();
        full.extend(b"/soft");
        tree.insert(full, Made::Link(target));
        // Made and gone again: leaves its traces.
        let gone = fs.create(&root(), *dir, b"gone", CreateMode::Guarded, &mode(0o644)).await.unwrap();
        write(fs, gone.value.0, 0, &pattern(7, 30_000)).await;
        fs.remove(&root(), *dir, b"gone").await.unwrap();
    }
    fs.reap().await.unwrap();
    tree
}

/// Everything a check said.
#[derive(Default)]
pub struct Told {
    pub findings: Vec<Finding>,
    pub damages: Vec<Damage>,
    pub consequences: Vec<Finding>,
}

impl Reporter for Told {
    fn finding(&mut self, finding: &Finding) {
        assert!(!finding.text.is_empty());
        self.findings.push(finding.clone());
    }

    fn consequence(&mut self, finding: &Finding) {
        self.consequences.push(finding.clone());
    }

    fn damage(&mut self, damage: &Damage) {
        self.damages.push(damage.clone());
    }
}

impl Told {
    pub fn kinds(&self) -> Vec<FindingKind> {
        let mut kinds: Vec<FindingKind> = self.findings.iter().map(|f| f.kind).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }

    /// What is wrong, whatever became of it.
    pub fn wrong(&self) -> Vec<(FindingKind, &str)> {
        self.findings.iter().map(|f| (f.kind, f.text.as_str())).collect()
    }

    pub fn text(&self) -> String {
        self.findings.iter().map(|f| format!("\n  {f}")).collect()
    }
}

/// Checks an image in a world of its own; returns what it is then.
pub fn fsck(image: &Image, repair: Repair) -> (Result<Summary, String>, Told, Image) {
    fsck_within(&budget(), image, repair)
}

/// The same within a budget.
pub fn fsck_within(budget: &Budget, image: &Image, repair: Repair) -> (Result<Summary, String>, Told, Image) {
    let world = world(2);
    let (disk, disks) = plug(&world, image);
    let platform = world.platform();
    let mut told = Told::default();
    let result = world.try_run(async {
        check_pool(&platform, &disks, budget, repair, &mut told).await.map_err(|e| e.to_string())
    });
    let result = result.unwrap_or_else(|stall| panic!("fsck {repair:?} hangs: {stall}{}", told.text()));
    (result, told, disk.visible_image())
}

/// How exactly what is read must be what was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Exact {
    /// To the byte and the name; errors that say that something is damaged are fine.
    Yes,
    /// Some of it may be lost, and what was restored may be of an earlier time.
    AfterRepair,
}

/// Mounts an image and reads everything; `Err` says what was handed out wrongly. Not to mount is fine.
pub fn read_all(sample: &Sample, image: &Image, exact: Exact) -> Result<(), String> {
    let world = world(3);
    let (_, disks) = plug(&world, image);
    let platform = world.platform();
    let result = world.try_run(async {
        let Ok(engine) = Engine::mount(&platform, &disks, &budget()).await else { return Ok(()) };
        let opened = Filesystem::open_with(engine.clone(), CacheBudget::of(CACHE_BYTES), options()).await;
        let Ok(fs) = opened else {
            let _ = engine.unmount().await;
            return Ok(());
        };
        let result = compare(&fs, &sample.tree, exact).await;
        let _ = fs.shutdown().await;
        let _ = fs.engine().unmount().await;
        result
    });
    result.unwrap_or_else(|stall| Err(format!("reading hangs: {stall}")))
}

fn is_honest(e: FsError) -> bool {
    use FsError::*;
    matches!(e, Checksum | DeviceRead | DeviceWrite | Corrupt | Stopped)
}

async fn compare(fs: &Filesystem, tree: &BTreeMap<Vec<u8>, Made>, exact: Exact) -> Result<(), String> {
    for (path, made) in tree {
        let name = String::from_utf8_lossy(path);
        let found: FsResult<(ObjectId, Attr)> = async {
            let mut at = fs.root();
            for part in path[1..].split(|b| *b == b'/') {
                at = fs.lookup(&root(), at, part).await?.0;
            }
            Ok((at, fs.getattr(at).await?))
        }
        .await;
        let (object, attr) = match found {
            Ok(found) => found,
            Err(e) if is_honest(e) => continue,
            Err(FsError::NotFound | FsError::NotDir | FsError::Stale) if exact == Exact::AfterRepair => {
                continue;
            }
            Err(e) => return Err(format!("{name}: looking it up says {e}")),
        };
        match made {
            Made::Dir if attr.kind == Kind::Dir => {}
            Made::Link(target) if attr.kind == Kind::Symlink => match fs.readlink(object).await {
                Ok((read, _)) if *read != **target => return Err(format!("{name}: leads elsewhere")),
                _ => {}
            },
            Made::File(versions) if attr.kind == Kind::File => {
                file(fs, &name, object, attr.size, versions, exact).await?;
            }
            // What is left of an inode whose record is lost is content, hence a file.
            _ if exact == Exact::AfterRepair => {}
            _ => return Err(format!("{name}: is a {:?}", attr.kind)),
        }
    }
    Ok(())
}

async fn file(
    fs: &Filesystem,
    name: &str,
    object: ObjectId,
    size: u64,
    versions: &[Vec<u8>],
    exact: Exact,
) -> Result<(), String> {
    let newest = versions.last().unwrap();
    if exact == Exact::Yes && size != newest.len() as u64 {
        return Err(format!("{name}: {size} bytes, should be {}", newest.len()));
    }
    if size > 1 << 20 {
        return Err(format!("{name}: {size} bytes"));
    }
    for at in (0..size).step_by(4096) {
        let Ok(read) = fs.read(&root(), object, at, 4096).await else { continue };
        let read = read.to_vec();
        let of = |version: &Vec<u8>| -> Vec<u8> {
            let from = (at as usize).min(version.len());
            let mut block = version[from..version.len().min(from + 4096)].to_vec();
            block.resize(read.len(), 0);
            block
        };
        let right = match exact {
            Exact::Yes => of(newest) == read,
            Exact::AfterRepair => versions.iter().any(|v| of(v) == read),
        };
        if !right {
            return Err(format!("{name}: wrong bytes at {at}"));
        }
    }
    Ok(())
}

/// What all damage is put to: read, checked, repaired, checked again, read again. Returns what the repair said.
pub fn ordeal(sample: &Sample, image: &Image, exact: Option<Exact>) -> Result<Told, String> {
    ordeal_of(sample, image, Exact::Yes, exact)
}

/// The same, where already before a repair not all need be there.
pub fn ordeal_of(
    sample: &Sample,
    image: &Image,
    before: Exact,
    exact: Option<Exact>,
) -> Result<Told, String> {
    if exact.is_some() {
        read_all(sample, image, before)?;
    } else {
        let _ = read_all(sample, image, Exact::AfterRepair);
    }
    let (checked, looked, _) = fsck(image, Repair::No);
    let (repaired, told, after) = fsck(image, Repair::Yes);
    let Ok(summary) = repaired else {
        // What cannot be repaired was not called whole before.
        return match checked {
            Ok(s) if s.found == 0 => Err(format!("clean, but its repair fails: {repaired:?}")),
            _ => Ok(told),
        };
    };
    // A repair tells what a check tells: what was wrong before, and none of its own doing.
    if checked.is_ok() && looked.wrong() != told.wrong() {
        return Err(format!("the check found{}\nthe repair{}", looked.text(), told.text()));
    }
    let (again, left, _) = fsck(&after, Repair::No);
    match again {
        Err(e) => return Err(format!("after the repair: {e}{}", told.text())),
        Ok(s) if s.found > 0 => {
            return Err(format!("left after the repair:{}\nwhich was:{}", left.text(), told.text()));
        }
        Ok(_) => {}
    }
    if let Some(exact) = exact {
        let exact = if summary.found == 0 { before } else { exact };
        read_all(sample, &after, exact).map_err(|e| format!("after the repair, {e}{}", told.text()))?;
    } else {
        let _ = read_all(sample, &after, Exact::AfterRepair);
    }
    Ok(told)
}

/// Which of `all` cases are tried: `usual` of them, or as many as `DAMAGE` says, or all of them if it says `full`.
pub fn choose<T: Clone>(name: &str, all: Vec<T>, usual: usize) -> Vec<T> {
    let wanted = std::env::var("DAMAGE").unwrap_or_default();
    let (seed, count) = match wanted.split_once('/') {
        Some((seed, count)) => {
            (seed.parse().expect("DAMAGE=SEED/COUNT"), count.parse().expect("DAMAGE=SEED/COUNT"))
        }
        None if wanted == "full" => return all,
        None => (7, usual),
    };
    let mut random = Random::for_purpose(seed, name);
    (0..count).map(|_| random.pick(&all).clone()).collect()
}
