//! `moraine mkfs`: a new pool on disks or image files.

use super::disks::open_all;
use super::progress::Progress;
use super::{Failure, size};
use crate::os::{self, FileDisk, OpenMode};
use clap::Args;
use moraine_appliance::{Pool, survey};
use moraine_fs::superblock::{FormatOptions, Found};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `moraine mkfs`.
#[derive(Args, Debug)]
pub(super) struct Mkfs {
    /// Disks of the new pool: image files or block devices.
    #[arg(required = true)]
    disks: Vec<PathBuf>,
    /// What people call the pool.
    #[arg(long, default_value = "moraine")]
    label: String,
    /// Overwrite disks that are not blank. Whatever they hold is lost.
    #[arg(long)]
    force: bool,
    /// Make missing image files this large, like 8G.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<u64>,
    /// Size of buckets, a power of two; chosen by the size of the disks if not given.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bucket_size: Option<u64>,
    /// Size of the journal on each disk.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    journal_size: Option<u64>,
    /// Size of B-tree nodes, a power of two from 32K to 256K.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "128K")]
    node_size: u64,
    /// Copies of each journal entry, on as many disks.
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    journal_replicas: u8,
    /// Tell the result as a JSON object.
    #[arg(long)]
    json: bool,
}

impl Mkfs {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let node_bytes =
            u32::try_from(self.node_size).map_err(|_| Failure("impossible node size".to_owned()))?;
        let options = FormatOptions {
            label: self.label.clone(),
            bucket_bytes: self.bucket_size.unwrap_or(0),
            journal_bytes: self.journal_size.unwrap_or(0),
            node_bytes,
            journal_replicas: self.journal_replicas,
            ..FormatOptions::default()
        };
        os::run(async |platform| {
            if let Some(size) = self.size {
                for path in &self.disks {
                    FileDisk::make_missing(path, size)?;
                }
            }
            let disks = open_all(&self.disks, OpenMode::Write)?;
            let found = survey(&disks).await;
            if let Some(disk) = found.iter().find(|disk| disk.found == Found::TooSmall) {
                return Err(Failure(disk.to_string()));
            }
            if let Some(disk) = found.iter().find(|disk| disk.found != Found::Blank)
                && !self.force
            {
                return Err(Failure(format!("{disk}; --force overwrites it")));
            }
            let progress = Progress::new();
            progress.name("making the pool");
            Pool::make(&platform, &disks, &options).await?;
            drop(progress);
            let names: Vec<&str> = found.iter().map(|disk| disk.name.as_str()).collect();
            if self.json {
                println!("{}", json!({"label": self.label, "disks": names}));
            } else {
                println!("made the pool '{}' of {}", self.label, names.join(", "));
            }
            Ok(ExitCode::SUCCESS)
        })?
    }
}
