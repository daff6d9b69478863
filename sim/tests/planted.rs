//! Would the tests notice? Each fault of `moraine_fs::planted` is planted in a process of its own, which runs the world of CI
//! that is known to fail with it, and a last process runs all these worlds without a fault. With `LONG` in the environment
//! nothing is taken as known: worlds of CI (the same kinds, the same seeds) are run until one fails. A fault that all of
//! them pass is a hole in the tests.
//!
//! `scripts/test planted` is the short form, `scripts/soak 1 planted` the long one. What found each is printed by
//! `LONG=1 cargo test --features moraine-sim/planted --test planted -- --nocapture`; `FAULT=Name` hunts one, and shows how.

use moraine_fs::planted::{Fault, plant};
use moraine_sim::appliance::appliance_world;
use moraine_sim::crowd::{crowd_world, tangle_world};
use moraine_sim::fault::{self, fault_world};
use moraine_sim::generate::Profile;
use moraine_sim::harness::{CrashShape, crash_world, lockstep_world};
use moraine_sim::plug::Moraine;
use moraine_sim::police::patrol;
use moraine_sim::rot::rot_world;
use moraine_sim::staged::{
    grown_while_written_back, lost_writes, reader_of_overwritten, written_while_loaded,
};
use moraine_sim::tug::tug_world;
use std::process::Command;

/// A kind of world as CI runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hunt {
    Lockstep,
    Crowd,
    Tangle,
    Tug,
    Crash,
    FullCrowd,
    FullCrash,
    Rot,
    Police,
    LostWrites,
    SlowReader,
    SlowLoad,
    Growing,
    Appliance,
    Disk(fault::Fault),
}

impl Hunt {
    /// How many seeds of it CI runs.
    fn seeds(self) -> u64 {
        match self {
            Hunt::Lockstep | Hunt::Tangle => 150,
            Hunt::Crowd => 100,
            Hunt::Tug => 200,
            Hunt::Crash => 700,
            Hunt::FullCrowd => 60,
            Hunt::FullCrash => 80,
            Hunt::Rot => 40,
            Hunt::Police => 30,
            Hunt::LostWrites => 4,
            Hunt::SlowReader | Hunt::SlowLoad => 20,
            Hunt::Growing => 10,
            Hunt::Appliance => 150,
            Hunt::Disk(fault::Fault::Flush | fault::Fault::Command | fault::Fault::Vanish) => 100,
            Hunt::Disk(fault::Fault::Slow) => 40,
            Hunt::Disk(_) => 80,
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
            Hunt::Tug => tug_world(&fs, seed, 4, 60),
            Hunt::Crash | Hunt::FullCrash => crash_world(&fs, seed, profile, CrashShape::default()),
            Hunt::Appliance => return appliance_world(seed).map(|_| ()),
            Hunt::Police => return patrol(seed).map(|_| ()),
            Hunt::LostWrites => return lost_writes(seed).map(|_| ()),
            Hunt::SlowReader => return reader_of_overwritten(seed),
            Hunt::SlowLoad => return written_while_loaded(seed),
            Hunt::Growing => return grown_while_written_back(seed),
            Hunt::Rot => rot_world(&fs, seed, profile, 100),
            Hunt::Disk(fault) => fault_world(&fs, seed, profile, fault),
        };
        ran.map(|_| ())
    }
}

/// The first world of CI that fails with each fault, as the long form found it.
const FOUND: &[(Fault, Hunt, u64)] = &[
    (Fault::FlushSkipped, Hunt::Police, 0),
    (Fault::FuaForgotten, Hunt::Police, 1),
    (Fault::PreflushSkipped, Hunt::Police, 0),
    (Fault::EarlyAcknowledgement, Hunt::Police, 0),
    (Fault::DataNotFlushed, Hunt::Police, 0),
    (Fault::NodePointerEarly, Hunt::Crash, 8),
    (Fault::PinReleasedEarly, Hunt::Crash, 10),
    (Fault::LastSeqTooHigh, Hunt::Crash, 0),
    (Fault::ChainIgnored, Hunt::Crash, 129),
    (Fault::StaleRunAccepted, Hunt::LostWrites, 0),
    (Fault::RootNotLogged, Hunt::Crash, 0),
    (Fault::DataNotVerified, Hunt::Rot, 2),
    (Fault::BucketReusedEarly, Hunt::Crash, 2),
    (Fault::ReaderNotHeld, Hunt::SlowReader, 0),
    (Fault::FreeRangeLost, Hunt::Lockstep, 2),
    (Fault::BackpointerForgotten, Hunt::Lockstep, 0),
    (Fault::CounterDrifts, Hunt::Lockstep, 0),
    (Fault::PageCleanedEarly, Hunt::Crash, 16),
    (Fault::OldWriteBackWins, Hunt::Crash, 44),
    (Fault::LoadOverwritesNewer, Hunt::SlowLoad, 0),
    (Fault::InFlightIgnored, Hunt::Crash, 20),
    (Fault::SizeForgotten, Hunt::Lockstep, 0),
    (Fault::SizeRunsAhead, Hunt::Growing, 2),
    (Fault::CutOvertaken, Hunt::Tug, 36),
    (Fault::TruncateLeavesTail, Hunt::Lockstep, 16),
    (Fault::PunchKeepsData, Hunt::Lockstep, 0),
    (Fault::MaskForgotten, Hunt::Lockstep, 0),
    (Fault::NlinkWrong, Hunt::Lockstep, 0),
    (Fault::OrphanForgotten, Hunt::Lockstep, 3),
    (Fault::XattrsNotReaped, Hunt::Lockstep, 7),
    (Fault::OldNameStays, Hunt::Lockstep, 0),
    (Fault::WhiteoutDropped, Hunt::Crash, 3),
    (Fault::CookieRepeats, Hunt::Lockstep, 0),
    (Fault::CursorNotStored, Hunt::Crash, 0),
    (Fault::VerifierUnchanged, Hunt::Disk(fault::Fault::Flush), 42),
    (Fault::VerifierSurvives, Hunt::Appliance, 0),
    (Fault::ReplyForgotten, Hunt::Appliance, 33),
    (Fault::NamesNotAwaited, Hunt::Appliance, 0),
    (Fault::CommitIgnored, Hunt::Appliance, 0),
    (Fault::StableForgotten, Hunt::Appliance, 0),
    (Fault::HandleOfOneBoot, Hunt::Appliance, 0),
    (Fault::FuaIgnored, Hunt::Appliance, 0),
    (Fault::FlushIgnored, Hunt::Appliance, 0),
];

/// Faults that no world of CI finds yet: holes, each told in docs/testing.md.
const HOLES: &[Fault] = &[];

/// Where the long form looks for a fault, the likeliest first.
fn hunts(fault: Fault) -> Vec<Hunt> {
    use Fault::*;
    use Hunt::*;
    let first: &[Hunt] = match fault {
        DataNotVerified => &[Rot, Disk(fault::Fault::Rot)],
        StaleRunAccepted => &[LostWrites, Disk(fault::Fault::LostWrite)],
        ReaderNotHeld => &[SlowReader],
        LoadOverwritesNewer => &[SlowLoad],
        VerifierUnchanged => &[Disk(fault::Fault::Flush)],
        VerifierSurvives | ReplyForgotten | NamesNotAwaited | CommitIgnored | StableForgotten => &[Appliance],
        HandleOfOneBoot | FuaIgnored | FlushIgnored => &[Appliance],
        BucketReusedEarly => &[FullCrash, FullCrowd, Crash, Crowd],
        CutOvertaken => &[Tug],
        SizeRunsAhead => &[Growing],
        PageCleanedEarly | InFlightIgnored | OldWriteBackWins => &[Crash, Crowd],
        FlushSkipped | FuaForgotten | PreflushSkipped | EarlyAcknowledgement | DataNotFlushed => {
            &[Police, Crash]
        }
        NodePointerEarly | PinReleasedEarly | LastSeqTooHigh | ChainIgnored | RootNotLogged => &[Crash],
        CursorNotStored => &[Crash],
        _ => &[Lockstep],
    };
    let all = [Lockstep, Crash, Tangle, Tug, Crowd, FullCrash, FullCrowd];
    let rest = all.into_iter().filter(|hunt| !first.contains(hunt));
    first.iter().copied().chain(rest).collect()
}

/// The worlds in which a fault is hunted, in order.
fn worlds(fault: Fault, long: bool) -> Vec<(Hunt, u64)> {
    match long {
        true => hunts(fault)
            .into_iter()
            .flat_map(|hunt| (0..hunt.seeds()).map(move |seed| (hunt, seed)))
            .collect(),
        false => FOUND.iter().filter(|(f, ..)| *f == fault).map(|(_, hunt, seed)| (*hunt, *seed)).collect(),
    }
}

/// What a process is to do: hunt the fault of this name, or, by [`NO_FAULT`], run the worlds of the short form in peace.
const CHILD: &str = "MORAINE_PLANTED";
const NO_FAULT: &str = "none";
const LONG: &str = "LONG";

fn is_long() -> bool {
    std::env::var(LONG).is_ok()
}

/// The process in which a fault is planted; without one it does nothing.
#[test]
fn child() {
    let Ok(name) = std::env::var(CHILD) else { return };
    let worlds = match Fault::ALL.iter().copied().find(|f| format!("{f:?}") == name) {
        Some(fault) => {
            plant(fault);
            worlds(fault, is_long())
        }
        None => {
            assert_eq!(name, NO_FAULT);
            let mut all: Vec<(Hunt, u64)> = Vec::new();
            let known = FOUND.iter().map(|(_, hunt, seed)| (*hunt, *seed));
            known.for_each(|world| {
                if !all.contains(&world) {
                    all.push(world)
                }
            });
            all
        }
    };
    for (hunt, seed) in worlds {
        println!("at {hunt:?}, seed {seed}");
        if let Err(why) = hunt.run(seed) {
            panic!("{why}");
        }
    }
}

/// Runs `child` in a process of its own. Says whether it passed, where it was, and all it said.
fn run(name: &str) -> (bool, String, String) {
    let program = std::env::current_exe().expect("a test knows where it is");
    let mut command = Command::new(&program);
    command.args(["--exact", "child", "--nocapture"]).env(CHILD, name).env("RUST_BACKTRACE", "0");
    let ran = command.output().expect("a test can start itself");
    let out = String::from_utf8_lossy(&ran.stdout);
    let place = out.lines().filter_map(|line| line.strip_prefix("at ")).next_back().unwrap_or("nothing");
    (ran.status.success(), place.to_string(), String::from_utf8_lossy(&ran.stderr).into_owned())
}

#[test]
fn every_planted_fault_is_found() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    let only = std::env::var("FAULT").ok();
    let mut holes = Vec::new();
    for fault in Fault::ALL {
        let name = format!("{fault:?}");
        if only.as_ref().map_or(HOLES.contains(fault), |only| *only != name) {
            continue;
        }
        let (survived, place, said) = run(&name);
        let place = if survived { "survived" } else { &place };
        println!("| {name} | {} | {place} |", fault.text());
        if survived {
            holes.push(name);
        } else if only.is_some() {
            println!("{said}");
        }
    }
    assert!(holes.is_empty(), "nobody noticed: {holes:?} (LONG=1 looks in all worlds of CI)");
    // What was noticed was the fault and nothing else.
    let (in_peace, place, said) = run(NO_FAULT);
    assert!(in_peace, "{place} fails without a fault: {said}");
    assert!(only.is_some() || Fault::ALL.len() >= 25);
}
