//! `moraine fsck`: reads everything of a pool, names each inconsistency, mends what it can.
//!
//! Exit codes are e2fsck's: 0 nothing wrong, 1 everything mended, 4 something left, 8 the check could not be made,
//! 16 wrong usage.
//!
//! Without `--repair` the disks are opened for reading and nothing at all is written to them: what mounting writes stays
//! in memory, laid over the disks.

use super::Failure;
use super::disks::open_all;
use super::progress::Progress;
use crate::os::{self, OpenMode, Overlay};
use clap::Args;
use moraine_fs::engine::Budget;
use moraine_fs::repair::{Damage, Finding, Repair, Reporter, Summary, check_pool};
use moraine_platform::BlockDevice;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

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
            let (mode, repair) =
                if self.repair { (OpenMode::Write, Repair::Yes) } else { (OpenMode::Read, Repair::No) };
            let mut disks = open_all(&self.disks, mode)?;
            if !self.repair {
                disks = disks.into_iter().map(|d| Rc::new(Overlay::new(d)) as Rc<dyn BlockDevice>).collect();
            }
            let mut teller = Teller { progress: Progress::new(), json: self.json };
            Ok(check_pool(&platform, &disks, &Budget::default(), repair, &mut teller).await?)
        })?
    }

    fn conclude(&self, summary: &Summary) -> ExitCode {
        let Summary { keys, found, repaired, bytes_verified, lost } = *summary;
        if self.json {
            println!(
                "{}",
                json!({"keys": keys, "found": found, "repaired": repaired, "bytes_verified": bytes_verified,
                    "lost": lost})
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
    progress: Progress,
    json: bool,
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
        self.progress.print(&line);
    }

    fn consequence(&mut self, finding: &Finding) {
        let line = if self.json {
            let kind = finding.kind;
            json!({"consequence": kind as u16, "kind": kind.text(), "where": finding.text}).to_string()
        } else {
            format!("consequence: [{}] {}: {}", finding.kind as u16, finding.kind.text(), finding.text)
        };
        self.progress.print(&line);
    }

    fn damage(&mut self, damage: &Damage) {
        let line = if self.json {
            let Damage { inode, path, start, end } = damage;
            let path = path.escape_ascii().to_string();
            json!({"lost": path, "inode": inode, "start": start, "end": end}).to_string()
        } else {
            damage.to_string()
        };
        self.progress.print(&line);
    }

    fn pass(&mut self, name: &'static str) {
        self.progress.name(name);
    }

    fn progress(&mut self, done: u64, total: u64) {
        self.progress.at(done, total);
    }
}
