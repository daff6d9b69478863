//! Would the tests notice? Each fault of `moraine_fs::planted` is planted in a process of its own, which runs worlds of CI
//! (the same kinds, the same seeds) until one fails. A fault that all of them pass is a hole in the tests.
//!
//! `cargo test -p moraine-sim --features planted --test planted -- --nocapture` prints what found each.

use moraine_fs::planted::{Fault, plant};
use moraine_sim::crowd::{crowd_world, tangle_world};
use moraine_sim::fault::{self, fault_world};
use moraine_sim::generate::Profile;
use moraine_sim::harness::{CrashShape, crash_world, lockstep_world};
use moraine_sim::plug::Moraine;
use moraine_sim::police::patrol;
use moraine_sim::rot::rot_world;
use std::process::Command;

/// A kind of world as CI runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hunt {
    Lockstep,
    Crowd,
    Tangle,
    Crash,
    FullCrowd,
    FullCrash,
    Rot,
    Police,
    Disk(fault::Fault),
}

impl Hunt {
    /// How many seeds of it CI runs.
    fn seeds(self) -> u64 {
        match self {
            Hunt::Lockstep | Hunt::Tangle => 150,
            Hunt::Crowd => 100,
            Hunt::Crash => 700,
            Hunt::FullCrowd => 60,
            Hunt::FullCrash => 80,
            Hunt::Rot => 40,
            Hunt::Police => 30,
            Hunt::Disk(fault::Fault::Flush | fault::Fault::Command | fault::Fault::Vanish) => 100,
            Hunt::Disk(_) => 40,
        }
    }

    fn run(self, seed: u64) -> Result<(), String> {
        let profile = match self {
            Hunt::FullCrowd | Hunt::FullCrash => Profile::FULL,
            _ => &Profile::ALL[(seed % Profile::ALL.len() as u64) as usize],
        };
        let fs = Moraine::for_profile(seed, profile);
        let ran = match self {
            Hunt::Lockstep => lockstep_world(&fs, seed, profile, 200),
            Hunt::Crowd => crowd_world(&fs, seed, profile, 4, 60),
            Hunt::FullCrowd => crowd_world(&fs, seed, profile, 3, 60),
            Hunt::Tangle => tangle_world(&fs, seed, 4, 60),
            Hunt::Crash | Hunt::FullCrash => crash_world(&fs, seed, profile, CrashShape::default()),
            Hunt::Police => return patrol(seed).map(|_| ()),
            Hunt::Rot => rot_world(&fs, seed, profile, 100),
            Hunt::Disk(fault) => fault_world(&fs, seed, profile, fault),
        };
        ran.map(|_| ())
    }
}

/// Where a fault is looked for, the quickest way first.
fn hunts(fault: Fault) -> Vec<Hunt> {
    use Fault::*;
    use Hunt::*;
    let first: &[Hunt] = match fault {
        DataNotVerified => &[Rot, Disk(fault::Fault::Rot)],
        StaleRunAccepted => &[Disk(fault::Fault::LostWrite), Crash],
        VerifierUnchanged => &[Disk(fault::Fault::Flush)],
        BucketReusedEarly | ReaderNotHeld => &[FullCrash, FullCrowd, Crash, Crowd],
        PageCleanedEarly | LoadOverwritesNewer | InFlightIgnored | OldWriteBackWins => &[Crash, Crowd],
        FlushSkipped | FuaForgotten | PreflushSkipped | EarlyAcknowledgement | DataNotFlushed => {
            &[Police, Crash]
        }
        NodePointerEarly | PinReleasedEarly | LastSeqTooHigh | ChainIgnored | RootNotLogged => &[Crash],
        CursorNotStored => &[Crash],
        _ => &[Lockstep],
    };
    let all = [Lockstep, Crash, Tangle, Crowd, FullCrash, FullCrowd];
    let rest = all.into_iter().filter(|hunt| !first.contains(hunt));
    first.iter().copied().chain(rest).collect()
}

const CHILD: &str = "MORAINE_PLANTED";

/// The process in which a fault is planted; without one it does nothing.
#[test]
fn child() {
    let Ok(name) = std::env::var(CHILD) else { return };
    let fault = Fault::ALL.iter().copied().find(|f| format!("{f:?}") == name).expect("a fault's name");
    plant(fault);
    for hunt in hunts(fault) {
        for seed in 0..hunt.seeds() {
            println!("at {hunt:?}, seed {seed}");
            if let Err(why) = hunt.run(seed) {
                panic!("{why}");
            }
        }
    }
}

#[test]
fn every_planted_fault_is_found() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let program = std::env::current_exe().expect("a test knows where it is");
    let only = std::env::var("FAULT").ok();
    let mut holes = Vec::new();
    for fault in Fault::ALL {
        let name = format!("{fault:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let ran = Command::new(&program)
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, &name)
            .env("RUST_BACKTRACE", "0")
            .output()
            .expect("a test can start itself");
        let out = String::from_utf8_lossy(&ran.stdout);
        let place = out.lines().rfind(|line| line.starts_with("at ")).unwrap_or("at nothing").to_string();
        if ran.status.success() {
            holes.push(name);
            println!("| {fault:?} | {} | survived |", fault.text());
            continue;
        }
        println!("| {fault:?} | {} | {} |", fault.text(), &place[3..]);
        if only.is_some() {
            println!("{}", String::from_utf8_lossy(&ran.stderr));
        }
    }
    assert!(holes.is_empty(), "nobody noticed: {holes:?}");
    assert!(only.is_some() || Fault::ALL.len() >= 25);
}
