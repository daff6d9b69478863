//! `moraine fsck`: reads everything of a pool, names each inconsistency, mends what it can.
//!
//! Exit codes are e2fsck's: 0 nothing wrong, 1 everything mended, 4 something left, 8 the check could not be made,
//! 16 wrong usage.
//!
//! A check begins like any mount: the journal is replayed and the superblock counts one more mount. Without
//! `--repair` nothing else is changed.

use super::Failure;
use super::disks::open_all;
use crate::os::{self, OpenMode};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use moraine_fs::engine::{Budget, Engine};
use moraine_fs::repair::{Finding, Repair, Reporter, Summary, check};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Nothing was wrong.
const CLEAN: u8 = 0;
/// All that was wrong was mended.
const MENDED: u8 = 1;
/// Something wrong is left.
const LEFT: u8 = 4;
/// The check could not be made.
const FAILED: u8 = 8;
/// The arguments made no sense.
pub(super) const USAGE: u8 = 16;
/// How often the progress bar moves.
const TICK: Duration = Duration::from_millis(200);

/// Arguments of `moraine fsck`.
#[derive(Args, Debug)]
pub(super) struct Fsck {
    /// Disks of the pool.
    #[arg(required = true)]
    disks: Vec<PathBuf>,
    /// Mend what can be mended.
    #[arg(long, short = 'y')]
    repair: bool,
    /// Tell each finding and the result as a JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Fsck {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        match self.check() {
            Ok(summary) => Ok(self.conclude(&summary)),
            Err(Failure(text)) => {
                eprintln!("moraine: {text}");
                Ok(FAILED.into())
            }
        }
    }

    fn check(&self) -> Result<Summary, Failure> {
        os::run(async |platform| {
            let disks = open_all(&self.disks, OpenMode::Write)?;
            let engine = Engine::mount(&platform, &disks, &Budget::default()).await?;
            let mut teller = Teller::new(self.json);
            let repair = if self.repair { Repair::Yes } else { Repair::No };
            let result = check(&engine, repair, &mut teller).await;
            teller.bar.finish_and_clear();
            engine.unmount().await?;
            Ok(result?)
        })?
    }

    fn conclude(&self, summary: &Summary) -> ExitCode {
        let Summary { keys, found, repaired, bytes_verified } = *summary;
        if self.json {
            println!(
                "{}",
                json!({"keys": keys, "found": found, "repaired": repaired, "bytes_verified": bytes_verified})
            );
        } else {
            println!(
                "{keys} keys read, {bytes_verified} bytes verified, {found} found wrong, {repaired} mended"
            );
        }
        let code = match (found, summary.is_clean()) {
            (0, _) => CLEAN,
            (_, true) => MENDED,
            (_, false) => LEFT,
        };
        code.into()
    }
}

/// Tells findings on standard output and progress on standard error, the latter only to a person.
struct Teller {
    bar: ProgressBar,
    json: bool,
}

impl Teller {
    fn new(json: bool) -> Teller {
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}: {pos} keys, {elapsed}")
                .expect("the template is a constant"),
        );
        bar.enable_steady_tick(TICK);
        Teller { bar, json }
    }
}

impl Reporter for Teller {
    fn finding(&mut self, finding: &Finding) {
        let line = if self.json {
            let kind = finding.kind;
            json!({"id": kind as u16, "kind": kind.text(), "severity": format!("{:?}", kind.severity()),
                "where": finding.text, "repaired": finding.repaired})
            .to_string()
        } else {
            finding.to_string()
        };
        self.bar.suspend(|| println!("{line}"));
    }

    fn pass(&mut self, name: &'static str) {
        self.bar.set_position(0);
        self.bar.set_message(name);
    }

    fn progress(&mut self, keys: u64) {
        self.bar.set_position(keys);
    }
}
