//! Superblocks on simulated disks: what a disk is taken for, which disks make a pool, cuts in the middle of an update.

use moraine_format::superblock::{
    INCOMPAT_MAKING, LAYOUT, MemberState, SLOT_BYTES, Superblock, slot_offsets,
};
use moraine_fs::Filesystem;
use moraine_fs::engine::{Budget, Engine, PoolError};
use moraine_fs::repair::{Finding, Repair, Reporter, check_pool};
use moraine_fs::superblock::{
    AssembleError, Completeness, FormatOptions, Found, MakeError, Superblocks, Unusable, format, probe,
};
use moraine_platform::{BlockDevice, Buf, Fua};
use moraine_sim::crash::{CrashPlan, enumerate};
use moraine_sim::{DiskConfig, Image, SimDisk, World};
use std::rc::Rc;

const DISK: u64 = 8 << 20;

fn options() -> FormatOptions {
    FormatOptions { bucket_bytes: 128 << 10, ..FormatOptions::default() }
}

fn blocks(disks: &[Rc<SimDisk>]) -> Vec<Rc<dyn BlockDevice>> {
    disks.iter().map(|d| d.clone() as Rc<dyn BlockDevice>).collect()
}

fn new_disks(world: &World, count: usize) -> Vec<Rc<SimDisk>> {
    (0..count).map(|_| world.disk(DISK, DiskConfig::default())).collect()
}

async fn scribble(disk: &SimDisk, offset: u64, bytes: &[u8]) {
    let block = offset / 4096 * 4096;
    let len = (offset + bytes.len() as u64 - block).next_multiple_of(4096);
    let done = disk.read(block, Buf::zeroed(len as usize).unwrap()).await;
    done.result.unwrap();
    let mut buf = done.buf;
    buf[(offset - block) as usize..][..bytes.len()].copy_from_slice(bytes);
    disk.write(block, buf, Fua::Yes).await.result.unwrap();
}

#[test]
fn a_disk_is_blank_foreign_ours_damaged_or_of_another_layout() {
    let world = World::new(1);
    let disk = world.disk(DISK, DiskConfig::default());
    let tiny = world.disk(64 << 10, DiskConfig::default());
    world.run(async {
        assert_eq!(probe(&*tiny).await, Found::TooSmall);
        assert_eq!(probe(&*disk).await, Found::Blank);
        scribble(&disk, 0, b"boot code").await;
        let pool = format(&world.platform(), &blocks(std::slice::from_ref(&disk)), &options()).await.unwrap();
        assert_eq!(probe(&*disk).await, Found::Ours(Box::new(pool.current())));
        let done = disk.read(0, Buf::zeroed(4096).unwrap()).await;
        assert_eq!(&done.buf[..9], b"boot code", "the first 4 KiB stay as they are");

        // Any one whole copy is enough; none is damage.
        for (n, offset) in slot_offsets(DISK).into_iter().enumerate() {
            scribble(&disk, offset + 100, b"rot").await;
            match probe(&*disk).await {
                Found::Ours(found) if n < 3 => assert_eq!(*found, pool.current()),
                other => assert!(n == 3 && matches!(other, Found::Damaged(_)), "{n}: {other}"),
            }
        }
        for offset in slot_offsets(DISK) {
            scribble(&disk, offset + 24, b"some-other-layout-name\0\0").await;
        }
        let found = probe(&*disk).await;
        assert_eq!(found, Found::OtherLayout("some-other-layout-name".into()));
        assert!(found.to_string().contains(LAYOUT), "{found}");
    });
}

#[test]
fn a_foreign_disk_is_named_and_old_slots_behind_its_back_do_not_make_it_ours() {
    let world = World::new(2);
    let disk = world.disk(DISK, DiskConfig::default());
    world.run(async {
        // Away from both ends: found by one of the samples.
        scribble(&disk, DISK / 65 / 4096 * 4096 * 30, b"something").await;
        assert_eq!(probe(&*disk).await, Found::Foreign("data of an unknown kind"));
        format(&world.platform(), &blocks(std::slice::from_ref(&disk)), &options()).await.unwrap();
        scribble(&disk, 1080, &[0x53, 0xEF]).await;
        assert!(matches!(probe(&*disk).await, Found::Ours(_)), "with our slots at the start it is ours");
        scribble(&disk, 64 << 10, &vec![0; 2 * SLOT_BYTES]).await;
        assert_eq!(probe(&*disk).await, Found::Foreign("an ext2/3/4 filesystem"));
    });
}

#[test]
fn impossible_pools_are_refused_with_the_name_of_what_is_wrong() {
    let world = World::new(3);
    let disks = blocks(&new_disks(&world, 1));
    world.run(async {
        let platform = world.platform();
        let cases: [(FormatOptions, MakeError); 4] = [
            (FormatOptions { journal_replicas: 2, ..options() }, MakeError::Option("journal replicas")),
            (FormatOptions { node_bytes: 1000, ..options() }, MakeError::Option("node size")),
            (FormatOptions { bucket_bytes: 64 << 10, ..options() }, MakeError::Option("bucket size")),
            (FormatOptions { journal_bytes: DISK, ..options() }, MakeError::TooSmall(0)),
        ];
        for (options, error) in cases {
            assert_eq!(format(&platform, &disks, &options).await.err(), Some(error));
        }
        assert_eq!(probe(&*disks[0]).await, Found::Blank, "a refusal writes nothing");
        assert_eq!(
            format(&platform, &[], &options()).await.err(),
            Some(MakeError::Option("number of disks"))
        );
    });
}

/// Opens whatever subset of disks is given, as a degraded pool, and writes a superblock: as a mount does.
async fn mount(world: &World, disks: &[Rc<SimDisk>]) -> Result<u64, AssembleError> {
    let pool = Superblocks::open(&world.platform(), &blocks(disks), Completeness::Degraded).await?;
    pool.begin_mount().await.unwrap();
    Ok(pool.current().mount_epoch)
}

#[test]
fn subsets_mounted_apart_are_never_mixed_again() {
    let world = World::new(4);
    world.run(async {
        let disks = new_disks(&world, 3);
        let options = FormatOptions { journal_replicas: 3, metadata_replicas: 3, ..options() };
        format(&world.platform(), &blocks(&disks), &options).await.unwrap();
        let pick = |mask: usize| -> Vec<_> {
            (0..3).filter(|i| mask >> i & 1 == 1).map(|i| disks[i].clone()).collect()
        };
        // Every subset alone is a pool (three copies bear two missing).
        assert_eq!(mount(&world, &pick(0b111)).await, Ok(1));
        // A disk that was merely away comes back: what it missed is known.
        assert_eq!(mount(&world, &pick(0b011)).await, Ok(2));
        assert_eq!(mount(&world, &pick(0b111)).await, Ok(3));
        // Two halves written apart, first disk 0, then disk 1 twice: whichever is newer, they do not mix.
        assert_eq!(mount(&world, &pick(0b001)).await, Ok(4));
        assert_eq!(mount(&world, &pick(0b010)).await, Ok(4));
        let split = mount(&world, &pick(0b011)).await;
        assert!(matches!(split, Err(AssembleError::SplitBrain { .. })), "equal seq, other epoch: {split:?}");
        assert_eq!(mount(&world, &pick(0b010)).await, Ok(5));
        let split = mount(&world, &pick(0b011)).await;
        assert!(matches!(split, Err(AssembleError::SplitBrain { newest: 1, other: 0 })), "{split:?}");
        // With the third disk, which was away both times, each half is a pool.
        assert_eq!(mount(&world, &pick(0b110)).await, Ok(6));
        assert!(mount(&world, &pick(0b101)).await.is_err(), "disk 2 has seen what disk 0 has not");
        // Copies and strangers.
        let copy = world.disk_with(disks[1].durable_image(), DiskConfig::default());
        let twice = [disks[1].clone(), copy];
        assert_eq!(mount(&world, &twice).await, Err(AssembleError::Twice(0, 1)));
        let other = new_disks(&world, 1);
        format(&world.platform(), &blocks(&other), &self::options()).await.unwrap();
        let mixed = [disks[1].clone(), other[0].clone()];
        assert!(matches!(mount(&world, &mixed).await, Err(AssembleError::SeveralPools(..))));
        assert_eq!(mount(&world, &[]).await, Err(AssembleError::NoPool));
    });
}

#[test]
fn missing_members_are_borne_only_below_the_number_of_copies() {
    let world = World::new(5);
    world.run(async {
        for copies in 1..=3 {
            let disks = new_disks(&world, 3);
            let options = FormatOptions { journal_replicas: copies, metadata_replicas: copies, ..options() };
            format(&world.platform(), &blocks(&disks), &options).await.unwrap();
            for missing in 0..3usize {
                let here = blocks(&disks[missing..]);
                let degraded = Superblocks::open(&world.platform(), &here, Completeness::Degraded).await;
                assert_eq!(
                    degraded.is_ok(),
                    missing < usize::from(copies),
                    "{copies} copies, {missing} missing"
                );
                let complete = Superblocks::open(&world.platform(), &here, Completeness::Complete).await;
                assert_eq!(complete.is_ok(), missing == 0);
            }
        }
    });
}

#[test]
fn a_failing_disk_does_not_stop_an_update_and_is_not_taken_for_a_split_afterwards() {
    let world = World::new(6);
    world.run(async {
        let disks = new_disks(&world, 2);
        let options = FormatOptions { journal_replicas: 2, metadata_replicas: 2, ..options() };
        let pool = format(&world.platform(), &blocks(&disks), &options).await.unwrap();
        // The second of its four writes fails: it holds one copy of a superblock that was then written again.
        disks[0].faults(|f| f.fail_command(1, moraine_platform::IoError::Media));
        pool.update(|sb| sb.change_counter = 77).await.unwrap();
        assert!(!pool.devices().is_healthy(0) && pool.devices().is_healthy(1));
        let again =
            Superblocks::open(&world.platform(), &blocks(&disks), Completeness::Complete).await.unwrap();
        assert_eq!(again.current().change_counter, 77);
        disks[1].faults(|f| f.fail_flush(0));
        assert!(pool.update(|sb| sb.change_counter = 78).await.is_err(), "no device is left");
        assert_eq!(pool.current().change_counter, 77);
    });
}

/// Cuts everywhere in two updates on two disks: the pool opens with what was acknowledged or what was under way.
#[test]
fn every_cut_in_an_update_leaves_a_whole_superblock_no_older_than_acknowledged() {
    let plan = CrashPlan::new("superblock", 7, vec![Image::new(DISK), Image::new(DISK)]);
    let report = enumerate(
        &plan,
        |world, disks| {
            world.run(async {
                let pool = format(&world.platform(), &blocks(disks), &options()).await.unwrap();
                world.trace().mark(1);
                for value in 2..=4 {
                    pool.update(|sb| sb.change_counter = value).await.unwrap();
                    world.trace().mark(value);
                }
            })
        },
        |world, disks, (), cut| {
            world.run(async {
                let acked = cut.marks.last().copied().unwrap_or(0);
                let opened =
                    Superblocks::open(&world.platform(), &blocks(disks), Completeness::Complete).await;
                let pool = match opened {
                    Ok(pool) => pool,
                    Err(_) if acked == 0 => return Ok(()),
                    Err(error) => return Err(format!("{error}")),
                };
                let value = pool.current().change_counter.max(1);
                if value < acked || value > acked + 1 {
                    return Err(format!("{value} after {acked} was acknowledged"));
                }
                pool.begin_mount().await.map_err(|e| e.to_string())?;
                let again =
                    Superblocks::open(&world.platform(), &blocks(disks), Completeness::Complete).await;
                let again = again.map_err(|e| e.to_string())?;
                // Which device's copy was taken is all that may differ.
                let device = pool.current().device;
                if (Superblock { device, ..again.current() }) != pool.current() {
                    return Err("what was written is not what is read".into());
                }
                Ok(())
            })
        },
    );
    report.expect_clean();
    assert!(report.cuts > 50);
}

#[test]
fn cuts_in_one_update_after_the_other_always_leave_a_whole_copy() {
    // An update that was cut left nothing whole in one half, whichever; the next one is cut, too.
    let world = World::new(8);
    let disk = world.disk(DISK, DiskConfig::default());
    world.run(async {
        drop(format(&world.platform(), &blocks(std::slice::from_ref(&disk)), &options()).await)
    });
    let whole = disk.durable_image();
    for torn in [[0, 1], [2, 3]] {
        let mut image = whole.clone();
        torn.iter().for_each(|n| image.flip(slot_offsets(DISK)[*n] + 300, 1));
        let plan = CrashPlan::new(format!("copies {torn:?} torn"), 8, vec![image]);
        let report = enumerate(
            &plan,
            |world: &World, disks: &[Rc<SimDisk>]| world.run(mount(world, disks)).unwrap(),
            |world, disks, _, _| world.run(mount(world, disks)).map(|_| ()).map_err(|e| e.to_string()),
        );
        report.expect_clean();
        assert!(report.worlds > 5, "{report}");
    }
}

#[derive(Default)]
struct Findings(Vec<String>);

impl Reporter for Findings {
    fn finding(&mut self, finding: &Finding) {
        self.0.push(finding.to_string());
    }
}

#[test]
fn what_a_newer_version_says_of_a_pool_is_obeyed() {
    type Said = fn(&mut Superblock);
    let cases: [(Said, Unusable); 4] = [
        (|sb| sb.ro_compat = 4, Unusable::NewerFeatures(4)),
        (|sb| sb.members[0].state = MemberState::ReadOnly, Unusable::Member(0, MemberState::ReadOnly)),
        (|sb| sb.members[0].state = MemberState::Failed, Unusable::Member(0, MemberState::Failed)),
        (|sb| sb.incompat |= INCOMPAT_MAKING, Unusable::BeingMade),
    ];
    for (said, expected) in cases {
        let world = World::new(9);
        world.run(async {
            let (platform, disks) = (world.platform(), new_disks(&world, 1));
            let (all, budget) = (blocks(&disks), Budget::default());
            let engine = Engine::format(&platform, &all, &options(), &budget).await.unwrap();
            Filesystem::format_root(&engine).await.unwrap();
            engine.unmount().await.unwrap();
            Engine::mount(&platform, &all, &budget).await.unwrap().unmount().await.unwrap();
            let pool = Superblocks::open(&platform, &all, Completeness::Complete).await.unwrap();
            pool.update(said).await.unwrap();
            let before = disks[0].visible_image().hash();
            let refused = |result: Option<PoolError>| match result {
                Some(PoolError::Unusable(why)) => assert_eq!(why, expected),
                other => panic!("{expected:?}: {other:?}"),
            };
            refused(Engine::mount(&platform, &all, &budget).await.err());
            let mut findings = Findings::default();
            refused(check_pool(&platform, &all, &budget, Repair::Yes, &mut findings).await.err());
            assert_eq!(disks[0].visible_image().hash(), before, "{expected:?}: nothing is written");
            // To look at it is no use to write, but for a pool that is not there yet.
            let looked = check_pool(&platform, &all, &budget, Repair::No, &mut findings).await;
            assert_eq!(looked.is_ok(), expected != Unusable::BeingMade, "{expected:?}: {looked:?}");
            assert_eq!(findings.0, [""; 0]);
        });
    }
}
