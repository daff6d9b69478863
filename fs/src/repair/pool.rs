//! A pool from its disks to a checked one: superblocks, journal, then everything else.

use super::{Check, Finding, FindingKind, Repair, Reporter, Summary};
use crate::engine::{Budget, Engine, PoolError};
use crate::superblock::{self, Completeness, Copy, Superblocks};
use alloc::format;
use alloc::rc::Rc;
use moraine_platform::{BlockDevice, Platform};

/// Checks the pool that `disks` make up, which nobody else may use. With [`Repair::Yes`] it mends what can be mended and
/// ends with the pool cleanly unmounted.
///
/// With [`Repair::No`] nothing of what is written is meant to last, but mounting does write: the caller hands in disks
/// whose writes go nowhere.
pub async fn check_pool(
    platform: &Platform,
    disks: &[Rc<dyn BlockDevice>],
    budget: &Budget,
    repair: Repair,
    reporter: &mut dyn Reporter,
) -> Result<Summary, PoolError> {
    let superblocks = Superblocks::open(platform, disks, Completeness::Complete).await;
    let superblocks = superblocks.map_err(PoolError::Assemble)?;
    superblocks.repairable(repair == Repair::Yes).map_err(PoolError::Unusable)?;
    let mut summary = Summary::default();
    reporter.pass("superblocks");
    let newest = superblocks.current();
    for disk in disks {
        for (slot, copy) in superblock::copies(&**disk).await.into_iter().enumerate() {
            let why = match copy {
                Copy::Valid(sb) if sb.seq == newest.seq && sb.epoch == newest.epoch => continue,
                Copy::Valid(sb) if sb.pool_id == newest.pool_id => {
                    // Two of the four may be one behind: a crash between the stages of a write leaves that.
                    if sb.seq + 1 == newest.seq && sb.epoch == newest.prev_epoch {
                        continue;
                    }
                    format!("it is of write {}, the newest is {}", sb.seq, newest.seq)
                }
                Copy::Valid(_) => "it is of another pool".into(),
                Copy::Damaged(why) => why,
            };
            // Each mount writes all copies.
            let repaired = repair == Repair::Yes;
            let text = format!("{}, copy {slot}: {why}", disk.info().name);
            reporter.finding(&Finding { kind: FindingKind::SuperblockCopyBad, text, repaired });
            summary.found += 1;
            summary.repaired += u64::from(repaired);
        }
    }
    reporter.pass("journal");
    let engine = Engine::mount_to_check(platform, superblocks, budget).await?;
    let mut check = Check::new(&engine, repair, reporter);
    check.summary = summary;
    let result = check.passes().await;
    let summary = check.summary;
    if repair == Repair::Yes {
        engine.resume();
        let ended = engine.unmount().await;
        result?;
        ended?;
    } else {
        engine.abandon();
        result?;
    }
    Ok(summary)
}
