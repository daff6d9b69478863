//! `moraine-sim`: replays worlds by their seed, or searches a range of seeds for one that fails.
//!
//! Each failure ends in a line to type that replays exactly that world.
#![forbid(unsafe_code)]

use moraine_sim::appliance::{appliance_world, whole_appliance_world};
use moraine_sim::crowd::{crowd_world, tangle_world};
use moraine_sim::fault::{Fault, fault_world};
use moraine_sim::generate::Profile;
use moraine_sim::harness::{CrashShape, Tally, crash_world, enumerate_world, lockstep_world};
use moraine_sim::plug::Moraine;
use moraine_sim::rot::rot_world;
use moraine_sim::script::Script;
use moraine_sim::toy::{Toy, ToyBug};
use moraine_sim::tug::tug_world;
use moraine_sim::world;
use std::ops::Range;
use std::process::ExitCode;

const USAGE: &str = "\
usage: moraine-sim (--seed N | --seeds A..B) [--world KIND] [--workload NAME]
                   [--steps N] [--twice] [--toy] [--log]
  --world      lockstep: one client, compared with the model call by call; crowd: several at once;
               tangle: several in one tree, compared in the order of commits; tug: several
               on one file, with a power cut in every other world; crash: random power cuts;
               every-cut: the power is cut at every device command; rot: stored bits flip;
               appliance: NFS and NBD clients of a whole appliance, power cuts while they work;
               full-appliance: the same with TCP/IP, cards, drivers and devices between, as one seed in ten has;
               scripts: the same cuts, also in recovery and in recovery of recovery, of workloads written for it.
               Disks that fail: flush command vanish slow lost-write misdirected zombie rot-at-work lie.
               Without it: lockstep, crowd, tangle, tug and crash
  --workload   one of: mixed names data rules full; for scripts: names-cut cuts splits wrap no-space.
               Without it: the seed chooses
  --steps      operations a client does
  --toy        the harness' own small filesystem instead of the real one
  --log        shows what the filesystem logs, on standard error
  --twice      runs each world twice and compares a hash of all device commands";

/// Failures after which a search stops.
const FAILURES_MAX: usize = 10;
/// How much of what a cut may leave a script's enumeration tries: random subsets, the same in recoveries, recoveries
/// that are cut, and those from these.
const SCRIPT_SUBSETS: usize = 24;
const SCRIPT_RECOVERY_SUBSETS: usize = 6;
const SCRIPT_RECOVERIES: usize = 60;
const SCRIPT_RECOVERIES_AGAIN: usize = 30;
/// Clients at once in crowds and tangles.
const CROWD: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Lockstep,
    Crowd,
    Tangle,
    Tug,
    Crash,
    EveryCut,
    Scripts,
    Rot,
    Appliance,
    FullAppliance,
    Fault(Fault),
}

impl Kind {
    const ALL: [(Kind, &'static str); 10] = [
        (Kind::Lockstep, "lockstep"),
        (Kind::Crowd, "crowd"),
        (Kind::Tangle, "tangle"),
        (Kind::Tug, "tug"),
        (Kind::Crash, "crash"),
        (Kind::EveryCut, "every-cut"),
        (Kind::Scripts, "scripts"),
        (Kind::Rot, "rot"),
        (Kind::Appliance, "appliance"),
        (Kind::FullAppliance, "full-appliance"),
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::Fault(fault) => fault.name(),
            _ => Kind::ALL.iter().find(|(kind, _)| *kind == self).expect("all are listed").1,
        }
    }

    fn named(name: &str) -> Option<Kind> {
        let plain = Kind::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind);
        plain.or(Fault::ALL.iter().find(|(_, known)| *known == name).map(|(fault, _)| Kind::Fault(*fault)))
    }
}

struct Options {
    seeds: Range<u64>,
    kinds: Vec<Kind>,
    workload: Option<&'static Profile>,
    script: Option<Script>,
    steps: Option<usize>,
    twice: bool,
    toy: bool,
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut seeds = None;
    let mut options = Options {
        seeds: 0..0,
        kinds: vec![Kind::Lockstep, Kind::Crowd, Kind::Tangle, Kind::Tug, Kind::Crash],
        workload: None,
        script: None,
        steps: None,
        twice: false,
        toy: false,
    };
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        let mut value = || rest.next().ok_or(format!("{word} needs a value"));
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("not a number: {text}"));
        match word.as_str() {
            "--seed" => {
                let seed = number(value()?)?;
                seeds = Some(seed..seed.saturating_add(1));
            }
            "--seeds" => {
                let text = value()?;
                let (from, to) = text.split_once("..").ok_or(format!("not a range A..B: {text}"))?;
                seeds = Some(number(from)?..number(to)?);
            }
            "--world" => {
                let name = value()?;
                options.kinds = vec![Kind::named(name).ok_or(format!("no such world: {name}"))?];
            }
            "--workload" => {
                let name = value()?;
                (options.workload, options.script) = (Profile::named(name), Script::named(name));
                if options.workload.is_none() && options.script.is_none() {
                    return Err(format!("no such workload: {name}"));
                }
            }
            "--steps" => options.steps = Some(number(value()?)? as usize),
            "--toy" => options.toy = true,
            "--twice" => options.twice = true,
            "--log" => show_log(),
            other => return Err(format!("unknown word: {other}")),
        }
    }
    options.seeds = seeds.ok_or("which seed? give --seed or --seeds")?;
    Ok(options)
}

fn show_log() {
    moraine_platform::log::set_sink(|level, room, text| eprintln!("{} {room}: {text}", level.name()));
    moraine_platform::log::set_level(moraine_platform::log::Level::Debug);
}

fn run(options: &Options, kind: Kind, seed: u64, profile: &Profile) -> Result<Tally, String> {
    match options.toy {
        true => run_on(&Toy::new(ToyBug::None), options, kind, seed, profile),
        false => run_on(&Moraine::for_profile(seed, profile), options, kind, seed, profile),
    }
}

fn run_on<S: moraine_sim::harness::Store>(
    store: &S,
    options: &Options,
    kind: Kind,
    seed: u64,
    profile: &Profile,
) -> Result<Tally, String> {
    match kind {
        Kind::Lockstep => lockstep_world(store, seed, profile, options.steps.unwrap_or(200)),
        Kind::Crowd => crowd_world(store, seed, profile, CROWD, options.steps.unwrap_or(60)),
        Kind::Tangle => tangle_world(store, seed, CROWD, options.steps.unwrap_or(60)),
        Kind::Tug => tug_world(store, seed, CROWD, options.steps.unwrap_or(60)),
        Kind::Crash => {
            let shape = CrashShape::default();
            let shape = CrashShape { steps: options.steps.unwrap_or(shape.steps), ..shape };
            crash_world(store, seed, profile, shape)
        }
        Kind::Rot => rot_world(store, seed, profile, options.steps.unwrap_or(100)),
        Kind::Appliance => appliance_world(seed).map(|(tally, _)| tally),
        Kind::FullAppliance => whole_appliance_world(seed).map(|(tally, _)| tally),
        Kind::Fault(fault) => fault_world(store, seed, profile, fault),
        Kind::Scripts => {
            let report = script(options, seed).enumerate(seed, |plan| {
                plan.random_subsets = SCRIPT_SUBSETS;
                plan.recovery_subsets = Some(SCRIPT_RECOVERY_SUBSETS);
                plan.second_level_max = SCRIPT_RECOVERIES;
                plan.third_level_max = SCRIPT_RECOVERIES_AGAIN;
            });
            println!("{report}, {} different worlds", report.distinct_worlds());
            if !report.failures.is_empty() {
                return Err(format!("{} images recovered wrongly", report.failures.len()));
            }
            let (worlds, cuts) = (report.distinct_worlds() as u64, report.images as u64);
            Ok(Tally { worlds, cuts, ..Tally::default() })
        }
        Kind::EveryCut => {
            let report = enumerate_world(store, seed, profile, options.steps.unwrap_or(30), |_| ());
            eprintln!("{report}");
            if !report.failures.is_empty() {
                return Err(format!("{} images recovered wrongly", report.failures.len()));
            }
            Ok(Tally { worlds: report.worlds as u64, cuts: report.cuts as u64, ..Tally::default() })
        }
    }
}

/// The script asked for, or the one that the seed falls on.
fn script(options: &Options, seed: u64) -> Script {
    options.script.unwrap_or(Script::ALL[(seed % Script::ALL.len() as u64) as usize])
}

fn replay_line(options: &Options, kind: Kind, seed: u64, profile: &Profile) -> String {
    let toy = if options.toy { " --toy" } else { "" };
    let steps = options.steps.map_or(String::new(), |steps| format!(" --steps {steps}"));
    let workload = if kind == Kind::Scripts { script(options, seed).name() } else { profile.name };
    format!("moraine-sim --seed {seed} --world {} --workload {workload}{toy}{steps}", kind.name())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|word| word == "--help" || word == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match parse(&arguments) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("moraine-sim: {why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let mut total = Tally::default();
    let mut failures = 0;
    for seed in options.seeds.clone() {
        for &kind in &options.kinds {
            let profile =
                options.workload.unwrap_or(&Profile::ALL[(seed % Profile::ALL.len() as u64) as usize]);
            let line = replay_line(&options, kind, seed, profile);
            world::set_replay_line(&line);
            let result = run(&options, kind, seed, profile).and_then(|tally| {
                if options.twice && run(&options, kind, seed, profile)?.hash != tally.hash {
                    return Err(String::from("two runs of this seed differ"));
                }
                Ok(tally)
            });
            match result {
                Ok(tally) => total.add(tally),
                Err(why) => {
                    failures += 1;
                    println!("FAILED {why}\n  replay: {line}");
                }
            }
        }
        if failures >= FAILURES_MAX {
            break;
        }
    }
    println!(
        "{} worlds, {} steps, {} power cuts, {failures} failures, hash {:016x}",
        total.worlds, total.steps, total.cuts, total.hash
    );
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
