//! Repairs that are cut: by a power failure at each device command. The next repair brings it to an end.

use moraine_format::Tree;
use moraine_format::node::{NODE_BLOCK, Run};
use moraine_format::superblock::{SLOT_BYTES, Superblock, slot_offsets};
use moraine_fs::engine::{Budget, Engine};
use moraine_fs::journal::Options;
use moraine_fs::repair::{Finding, Repair, Reporter, check_pool};
use moraine_platform::BlockDevice;
use moraine_sim::crash::{CrashPlan, enumerate};
use moraine_sim::damage::{DISK_BYTES, Exact, Left, Sample, budget, fsck, fsck_within, ordeal, read_all};
use moraine_sim::{DiskConfig, Image, SimDisk, World};
use std::rc::Rc;

/// Flips a byte in every run of a tree that `which` chooses by its level; says how many.
fn lose(image: &mut Image, tree: Tree, which: impl Fn(u8) -> bool) -> usize {
    let mut slot = vec![0; SLOT_BYTES];
    image.read(slot_offsets(DISK_BYTES)[0], &mut slot);
    let tag = Superblock::parse(&slot).unwrap().pool_tag();
    let mut lost = 0;
    let mut bytes = vec![0; 256 << 10];
    for at in (0..DISK_BYTES).step_by(NODE_BLOCK) {
        let len = bytes.len().min((DISK_BYTES - at) as usize);
        image.read(at, &mut bytes[..len]);
        if let Ok(run) = Run::parse(&bytes[..len], tag)
            && run.ident.tree == tree
            && which(run.ident.level)
        {
            image.flip(at + 100, 4);
            lost += 1;
        }
    }
    lost
}

#[test]
fn each_tree_lost_in_turn() {
    for left in [Left::Clean, Left::Running] {
        let sample = Sample::new(left);
        let mut trees = 0;
        for tree in Tree::ALL {
            for which in [|_| true, |level| level == 0, |level| level > 0] {
                let mut image = sample.image.clone();
                if lose(&mut image, *tree, which) == 0 {
                    continue;
                }
                trees += 1;
                if let Err(e) = ordeal(&sample, &image, Some(Exact::AfterRepair)) {
                    panic!("{}: {e}", tree.name());
                }
            }
        }
        assert!(trees >= 20, "{trees} trees were there to be lost");
    }
}

#[test]
fn content_survives_the_loss_of_what_leads_to_it() {
    // Inner nodes are rebuilt from leaves, space from what refers to it: nothing is lost.
    let sample = Sample::new(Left::Clean);
    for tree in [Tree::Alloc, Tree::Freespace, Tree::Backpointers, Tree::Accounting, Tree::Lru] {
        let mut image = sample.image.clone();
        if lose(&mut image, tree, |_| true) > 0 {
            ordeal(&sample, &image, Some(Exact::Yes)).unwrap();
        }
    }
    for tree in [Tree::Extents, Tree::Dirents, Tree::Inodes] {
        let mut image = sample.image.clone();
        assert!(lose(&mut image, tree, |level| level > 0) > 0);
        let told = ordeal(&sample, &image, Some(Exact::AfterRepair)).unwrap();
        assert!(told.damages.is_empty(), "{}: {:?}", tree.name(), told.damages);
        let (_, _, after) = fsck(&image, Repair::Yes);
        read_all(&sample, &after, Exact::Yes).unwrap();
    }
}

#[test]
fn more_lost_nodes_than_the_journal_holds_changes_for() {
    for left in [Left::Clean, Left::Running] {
        let sample = Sample::new(left);
        let mut image = sample.image.clone();
        let lost: usize = Tree::ALL.iter().map(|tree| lose(&mut image, *tree, |level| level == 0)).sum();
        assert!(lost > 80, "{lost} images of leaves");
        // History takes most of twice this, which is what a check allows; what replaces each of the leaves takes more than
        // is left. In the smallest there is no room for anything.
        for dirty_bytes_max in [30 << 10, 34 << 10, 38 << 10, 42 << 10] {
            let journal = Options { dirty_bytes_max, ..Options::default() };
            let tight = Budget { journal, ..budget() };
            let (summary, told, after) = fsck_within(&tight, &image, Repair::Yes);
            let summary = match summary {
                Err(e) if dirty_bytes_max == 30 << 10 => {
                    assert_eq!(e, "no space left");
                    continue;
                }
                summary => summary.unwrap_or_else(|e| panic!("{dirty_bytes_max}: {e}{}", told.text())),
            };
            assert!(summary.is_clean(), "{}", told.text());
            let (_, left, _) = fsck(&after, Repair::No);
            assert!(left.findings.is_empty(), "{dirty_bytes_max}: {}", left.text());
            read_all(&sample, &after, Exact::AfterRepair).unwrap();
        }
    }
}

struct Findings(Vec<String>);

impl Reporter for Findings {
    fn finding(&mut self, finding: &Finding) {
        self.0.push(finding.to_string());
    }
}

async fn check(world: &World, disks: &[Rc<SimDisk>], repair: Repair) -> Result<Vec<String>, String> {
    let disks: Vec<Rc<dyn BlockDevice>> = disks.iter().map(|d| d.clone() as Rc<dyn BlockDevice>).collect();
    let mut findings = Findings(Vec::new());
    let done = check_pool(&world.platform(), &disks, &budget(), repair, &mut findings).await;
    done.map(|_| findings.0).map_err(|e| e.to_string())
}

#[test]
fn a_repair_that_is_cut_is_brought_to_an_end_by_the_next() {
    let worlds_max = std::env::var("DAMAGE").map_or(100, |_| 4000);
    for (tree, seed) in [(Tree::Extents, 1), (Tree::Alloc, 2), (Tree::Dirents, 3)] {
        let sample = Sample::new(Left::Clean);
        let mut image = sample.image.clone();
        lose(&mut image, tree, |_| true);
        let mut plan = CrashPlan::new(format!("repair of {}", tree.name()), seed, vec![image]);
        plan.disk = DiskConfig { discard: false, ..DiskConfig::default() };
        plan.random_subsets = 2;
        plan.second_level_max = 0;
        plan.worlds_max = worlds_max;
        let workload =
            |world: &World, disks: &[Rc<SimDisk>]| world.run(check(world, disks, Repair::Yes)).unwrap().len();
        let report = enumerate(&plan, workload, |world, disks, _, _| {
            let outcome = world.try_run(async {
                // A pool whose repair was cut is not to be served before the next one.
                check(world, disks, Repair::Yes).await?;
                let left = check(world, disks, Repair::No).await?;
                if left.is_empty() { Ok(()) } else { Err(left.join("; ")) }
            });
            outcome.map_err(|stall| stall.to_string())?
        });
        report.expect_clean();
        assert!(report.worlds > 20, "{report}");
    }
}

#[test]
fn a_pool_whose_repair_was_cut_is_not_served() {
    let sample = Sample::new(Left::Clean);
    let mut image = sample.image.clone();
    lose(&mut image, Tree::Dirents, |_| true);
    let mut refused = 0;
    for commands in (50..=1000).step_by(50) {
        let world = moraine_sim::damage::world(9);
        let (disk, disks) = moraine_sim::damage::plug(&world, &image);
        let _ = world.run_to_power_cut(check(&world, std::slice::from_ref(&disk), Repair::Yes), commands);
        let after = disk.durable_image();
        drop(disks);
        let world = moraine_sim::damage::world(10);
        let (_, disks) = moraine_sim::damage::plug(&world, &after);
        let mounted = world.run(Engine::mount(&world.platform(), &disks, &budget()));
        refused += usize::from(mounted.is_err_and(|e| e.to_string().contains("run fsck with --repair")));
    }
    assert!(refused > 0, "none of the cuts fell into the repair");
}
