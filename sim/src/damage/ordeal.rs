//! What damaged pools are put to: read, used, checked, repaired, checked again. What comes out is right, or named as damage.

use super::sample::{CACHE_BYTES, Made, Sample, budget, options, plug, root, world};
use crate::{Image, Random};
use moraine_fs::engine::{Budget, Engine};
use moraine_fs::repair::{Damage, Finding, FindingKind, Repair, Reporter, Summary, check_pool};
use moraine_fs::superblock::{Completeness, Superblocks};
use moraine_fs::vfs::*;
use moraine_fs::{CacheBudget, Filesystem, FsError};
use std::collections::BTreeMap;

/// Everything a check said.
#[derive(Default)]
pub struct Told {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What cannot be read.
    pub damages: Vec<Damage>,
    /// What follows from it.
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
    /// The kinds of what is wrong, each once.
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

    /// All of it, a line each.
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

/// Whether the superblock forbids this version to write the pool.
fn must_be_left_alone(image: &Image) -> bool {
    let world = world(2);
    let (_, disks) = plug(&world, image);
    let platform = world.platform();
    world.run(async {
        let opened = Superblocks::open(&platform, &disks, Completeness::Complete).await;
        opened.is_ok_and(|pool| pool.repairable(true).is_err())
    })
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
    let newest = versions.last().expect("a file has content");
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
            Ok(s) if s.found == 0 && !must_be_left_alone(image) => {
                Err(format!("clean, but its repair fails: {repaired:?}"))
            }
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
