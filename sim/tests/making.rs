//! The making of a pool, cut everywhere: a pool is whole or told to be unfinished, and an unfinished one is made anew
//! where blank disks are made pools, and nowhere else.

use moraine_appliance::{BlankDisks, Config, Memory, Pool, open_pool, survey};
use moraine_fs::engine::Budget;
use moraine_fs::repair::{Finding, Repair, Reporter, check_pool};
use moraine_fs::superblock::{FormatOptions, Found};
use moraine_fs::vfs::{Caller, Vfs};
use moraine_platform::BlockDevice;
use moraine_sim::crash::{CrashPlan, enumerate};
use moraine_sim::{Image, SimDisk, World};
use std::cell::Cell;
use std::rc::Rc;

const DISK: u64 = 8 << 20;

fn options() -> FormatOptions {
    FormatOptions { bucket_bytes: 128 << 10, ..FormatOptions::default() }
}

fn blocks(disks: &[Rc<SimDisk>]) -> Vec<Rc<dyn BlockDevice>> {
    disks.iter().map(|d| d.clone() as Rc<dyn BlockDevice>).collect()
}

/// As the image does it at boot.
async fn boot(world: &World, disks: &[Rc<SimDisk>], blank_disks: BlankDisks) -> Result<Pool, String> {
    let config = Config { blank_disks, ..Config::default() };
    let memory = Memory::of(64 << 20);
    open_pool(&world.platform(), &blocks(disks), &config, &memory).await.map_err(|idle| idle.to_string())
}

/// What every pool has is there, and it ends in good order.
async fn use_and_end(pool: Pool) -> Result<(), String> {
    let files = pool.files();
    let found = files.lookup(&Caller::root(), files.root(), b"volumes").await;
    found.map_err(|e| format!("/volumes: {e}"))?;
    pool.unmount().await.map_err(|e| format!("unmount: {e}"))
}

#[derive(Default)]
struct Findings(Vec<String>);

impl Reporter for Findings {
    fn finding(&mut self, finding: &Finding) {
        self.0.push(finding.to_string());
    }
}

/// How often a cut left what.
#[derive(Default)]
struct Left {
    whole: Cell<u32>,
    unfinished: Cell<u32>,
    nothing: Cell<u32>,
    torn: Cell<u32>,
}

fn count(cell: &Cell<u32>) {
    cell.set(cell.get() + 1);
}

async fn judge(world: &World, disks: &[Rc<SimDisk>], made: bool, left: &Left) -> Result<(), String> {
    let found: Vec<Found> = survey(&blocks(disks)).await.into_iter().map(|disk| disk.found).collect();
    let before: Vec<u64> = disks.iter().map(|d| d.visible_image().hash()).collect();
    let torn = found.iter().any(|f| matches!(f, Found::Damaged(_) | Found::Foreign(_)));
    match boot(world, disks, BlankDisks::Leave).await {
        Ok(pool) => {
            count(&left.whole);
            use_and_end(pool).await?;
        }
        Err(idle) if made => return Err(format!("it was made, and then: {idle}")),
        Err(idle) => {
            let unfinished = idle.contains("making did not end");
            if !torn && unfinished != found.iter().any(|f| matches!(f, Found::Ours(_))) {
                return Err(format!("of {found:?} it says {idle}"));
            }
            count(match (torn, unfinished) {
                (true, _) => &left.torn,
                (false, true) => &left.unfinished,
                (false, false) => &left.nothing,
            });
            if disks.iter().zip(&before).any(|(d, hash)| d.visible_image().hash() != *hash) {
                return Err("a pool that is not mounted was changed".into());
            }
        }
    }
    // Worlds of one plan draw the same numbers, and nobody makes two pools with one identity.
    for _ in 0..before[0] % 1000 {
        world.platform().rng.next_u64();
    }
    match boot(world, disks, BlankDisks::Format).await {
        Ok(pool) => use_and_end(pool).await?,
        // A first superblock that is torn looks like one that rotted, or like anything: of what it was nobody can tell.
        Err(_) if torn => return Ok(()),
        Err(idle) => return Err(format!("with format=blank: {idle}")),
    }
    if torn {
        return Ok(()); // the other disk is a pool by itself
    }
    let mut findings = Findings::default();
    let checked =
        check_pool(&world.platform(), &blocks(disks), &Budget::default(), Repair::No, &mut findings).await;
    checked.map_err(|e| format!("fsck: {e}"))?;
    if findings.0.is_empty() { Ok(()) } else { Err(format!("fsck: {:?}", findings.0)) }
}

#[test]
fn a_making_that_is_cut_is_told_apart_and_made_anew() {
    for count in [1, 2] {
        let left = Left::default();
        let plan = CrashPlan::new(format!("making of {count}"), 31, vec![Image::new(DISK); count]);
        let report = enumerate(
            &plan,
            |world, disks| {
                world.run(async {
                    Pool::make(&world.platform(), &blocks(disks), &options()).await.unwrap();
                    world.trace().mark(1);
                });
            },
            |world, disks, (), cut| world.run(judge(world, disks, !cut.marks.is_empty(), &left)),
        );
        report.expect_clean();
        let Left { whole, unfinished, nothing, torn } = left;
        for (what, times) in
            [("whole", whole), ("unfinished", unfinished), ("nothing", nothing), ("torn", torn)]
        {
            assert!(times.get() > 0, "{count} disks: no cut leaves it {what}: {report}");
        }
    }
}
