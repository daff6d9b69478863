//! `moraine dump`: superblock, journal, trees and nodes as text, or as one JSON object a line.
//!
//! Nothing is mounted and nothing is written (but the disks' caches are flushed): the trees are read from the disk
//! with the journal laid over them, by the format alone. So it shows what is there even when the engine refuses it.

mod text;
mod trees;

use super::Failure;
use super::disks::open_all;
use super::progress::Progress;
use crate::os::{self, OpenMode};
use clap::Args;
use moraine_format::{Pos, Superblock, Tree};
use moraine_fs::device::Devices;
use moraine_fs::journal::{History, RecoverError, read_history, read_what_is_left};
use moraine_fs::superblock::{Completeness, Found, Superblocks, probe};
use moraine_platform::{BlockDevice, Platform};
use serde_json::json;
use std::io::{BufWriter, StdoutLock, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use text::{hex, value_text};
use trees::{Trees, Visit};

/// Arguments of `moraine dump`.
#[derive(Args, Debug)]
pub(super) struct Dump {
    /// Disks of the pool.
    #[arg(required = true)]
    disks: Vec<PathBuf>,
    /// Show the superblock of each disk. The default when nothing else is asked for.
    #[arg(long)]
    superblock: bool,
    /// Show the journal's entries, oldest first.
    #[arg(long)]
    journal: bool,
    /// Show a tree's keys, by its name; `all` for every tree. May be repeated.
    #[arg(long, value_name = "NAME", value_parser = tree_names)]
    tree: Vec<Trunk>,
    /// Show a tree's nodes instead of its keys.
    #[arg(long, requires = "tree")]
    nodes: bool,
    /// Show a node's runs as they lie on disk, by the node's id. May be repeated.
    #[arg(long, value_name = "ID")]
    node: Vec<u64>,
    /// First position to show: INODE[:OFFSET[:SNAPSHOT]].
    #[arg(long, value_name = "POS", value_parser = position)]
    from: Option<Pos>,
    /// Last position to show.
    #[arg(long, value_name = "POS", value_parser = position)]
    to: Option<Pos>,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// The trees one `--tree` names.
#[derive(Clone, Debug)]
struct Trunk(Vec<Tree>);

/// Where results go.
struct Output {
    out: BufWriter<StdoutLock<'static>>,
    json: bool,
}

impl Output {
    fn line(&mut self, text: &str, json: serde_json::Value) -> Result<(), Failure> {
        if self.json {
            writeln!(self.out, "{json}")?
        } else {
            writeln!(self.out, "{text}")?
        }
        Ok(())
    }
}

impl Dump {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        os::run(async |platform| {
            let disks = open_all(&self.disks, OpenMode::Read)?;
            let mut out = Output { out: BufWriter::new(std::io::stdout().lock()), json: self.json };
            let deep = self.journal || !self.tree.is_empty() || !self.node.is_empty();
            let mut code = ExitCode::SUCCESS;
            if self.superblock || !deep {
                for disk in &disks {
                    if !superblock(&mut out, &**disk).await? {
                        code = ExitCode::FAILURE;
                    }
                }
            }
            if deep {
                code = self.deep(&platform, &disks, &mut out).await?.unwrap_or(code);
            }
            out.out.flush()?;
            Ok(code)
        })?
    }

    /// Shows what only a whole pool has.
    async fn deep(
        &self,
        platform: &Platform,
        disks: &[Rc<dyn BlockDevice>],
        out: &mut Output,
    ) -> Result<Option<ExitCode>, Failure> {
        let pool = Superblocks::open(platform, disks, Completeness::Degraded).await?;
        let superblock = pool.current();
        let devices: &Devices = pool.devices();
        let mut damaged = false;
        let history = match read_history(devices, &superblock).await {
            Err(rot @ RecoverError::Rot { .. }) => {
                eprintln!("moraine: {rot}; what is left of it is shown");
                damaged = true;
                read_what_is_left(devices, &superblock).await?
            }
            history => history?,
        };
        if self.journal {
            journal(out, &history)?;
        }
        let trees = Trees::new(devices, &superblock, &history);
        let (from, to) = (self.from.unwrap_or(Pos::MIN), self.to.unwrap_or(Pos::MAX));
        let progress = Progress::beside_output();
        progress.name("trees");
        let total = trees.bytes().await?;
        for tree in self.tree.iter().flat_map(|trunk| &trunk.0) {
            let mut failure = None;
            let mut show = |visit: Visit<'_>| {
                progress.at(trees.bytes_read(), total);
                let shown = match (visit, self.nodes) {
                    (Visit::Damaged(why), _) => {
                        eprintln!("moraine: tree {}: {why}", tree.name());
                        damaged = true;
                        Ok(())
                    }
                    (Visit::Key(pos, value), false) if from <= pos && pos <= to => {
                        key(out, *tree, pos, value)
                    }
                    (Visit::Node(node), true) if node.min <= to && from <= node.max => {
                        node_line(out, *tree, node)
                    }
                    _ => Ok(()),
                };
                failure = failure.take().or(shown.err());
            };
            trees.walk(*tree, &mut show).await?;
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
        for id in &self.node {
            let runs = trees.find(*id).await?.ok_or_else(|| Failure(format!("no tree has a node {id}")))?;
            for run in runs {
                out.line(
                    &format!(
                        "node {id} run {}: tree {} level {} {}..={} epoch {} seq {} hash {:016x}",
                        run.index,
                        run.tree.name(),
                        run.level,
                        run.min,
                        run.max,
                        run.epoch,
                        run.seq,
                        run.hash
                    ),
                    json!({"node": id, "run": run.index, "tree": run.tree.name(), "level": run.level,
                        "min": run.min.to_string(), "max": run.max.to_string(), "epoch": run.epoch, "seq": run.seq}),
                )?;
                for (pos, value) in &run.entries {
                    let text = value.as_ref().map_or_else(
                        || "deleted".to_owned(),
                        |value| value_text(run.tree, run.level, *pos, value),
                    );
                    out.line(
                        &format!("  {pos} {text}"),
                        json!({"node": id, "run": run.index, "pos": pos.to_string(), "value": text}),
                    )?;
                }
            }
        }
        Ok(damaged.then_some(ExitCode::FAILURE))
    }
}

/// Shows what a disk is; whether it is a member of a pool.
async fn superblock(out: &mut Output, disk: &dyn BlockDevice) -> Result<bool, Failure> {
    let name = &disk.info().name;
    let found = probe(disk).await;
    let Found::Ours(sb) = &found else {
        out.line(&format!("{name}: {found}"), json!({"disk": name, "found": found.to_string()}))?;
        return Ok(false);
    };
    let text = superblock_text(name, sb);
    let members: Vec<_> = sb
        .members
        .iter()
        .map(|m| {
            json!({"uuid": hex(&m.uuid), "bytes": m.bytes, "bucket_bytes": m.bucket_bytes,
                "state": format!("{:?}", m.state), "durability": m.durability, "buckets": m.bucket_count,
                "journal_buckets": m.journal_buckets().count(), "label": m.label})
        })
        .collect();
    out.line(
        text.trim_end(),
        json!({"disk": name, "found": "member", "pool": hex(&sb.pool_id), "label": sb.label, "device": sb.device,
            "seq": sb.seq, "mount_epoch": sb.mount_epoch, "clean": sb.clean, "node_bytes": sb.node_bytes,
            "journal_replicas": sb.journal_replicas, "metadata_replicas": sb.metadata_replicas,
            "incompat": sb.incompat, "members": members}),
    )?;
    Ok(true)
}

fn superblock_text(name: &str, sb: &Superblock) -> String {
    let mut lines = vec![
        format!("{name}: member {} of the pool '{}'", sb.device, sb.label),
        format!("  pool {}", hex(&sb.pool_id)),
        format!("  seq {} epoch {:016x} after {:016x}", sb.seq, sb.epoch, sb.prev_epoch),
        format!(
            "  mounts {} last {}",
            sb.mount_epoch,
            if sb.clean { "ended cleanly" } else { "did not end" }
        ),
        format!("  nodes of {} bytes, blocks of {} bytes", sb.node_bytes, sb.block_bytes),
        format!("  copies: journal {} metadata {}", sb.journal_replicas, sb.metadata_replicas),
        format!("  journal floor {} dirty at most {} bytes", sb.journal_floor, sb.dirty_bytes_max),
        format!("  features compat {:x} ro_compat {:x} incompat {:x}", sb.compat, sb.ro_compat, sb.incompat),
    ];
    for (index, m) in sb.members.iter().enumerate() {
        let first = m.first_bucket;
        lines.push(format!("  member {index} {} {:?} '{}'", hex(&m.uuid), m.state, m.label));
        lines.push(format!("    {} bytes, buckets of {} bytes", m.bytes, m.bucket_bytes));
        lines.push(format!("    buckets {first}..{} counts {} times", first + m.bucket_count, m.durability));
        for range in &m.journal {
            lines.push(format!("    journal in buckets {}..{}", range.first, range.first + range.count));
        }
    }
    lines.join("\n")
}

fn journal(out: &mut Output, history: &History) -> Result<(), Failure> {
    for entry in &history.entries {
        let (seq, epoch) = (entry.seq.0, entry.epoch);
        let bytes = entry.bytes();
        out.line(
            &format!("entry {seq} epoch {epoch} {bytes} bytes"),
            json!({"entry": seq, "epoch": epoch, "bytes": bytes}),
        )?;
        for item in entry.items() {
            let tree = Tree::from_id(item.tree);
            let name = tree.map_or_else(|| item.tree.to_string(), |tree| tree.name().to_owned());
            let value = text::item_text(&item, tree);
            let kind = item.kind.name();
            out.line(
                &format!("  {kind} {name} level {} {} {value}", item.level, item.pos),
                json!({"entry": seq, "kind": kind, "tree": name, "level": item.level,
                    "pos": item.pos.to_string(), "value": value}),
            )?;
        }
    }
    Ok(())
}

fn key(out: &mut Output, tree: Tree, pos: Pos, value: &[u8]) -> Result<(), Failure> {
    let text = value_text(tree, 0, pos, value);
    let name = tree.name();
    out.line(&format!("{name} {pos} {text}"), json!({"tree": name, "pos": pos.to_string(), "value": text}))
}

fn node_line(out: &mut Output, tree: Tree, node: &trees::Node) -> Result<(), Failure> {
    let name = tree.name();
    let pointer = &node.pointer;
    let places: Vec<_> = pointer.places.iter().map(|p| format!("{}:{}", p.device, p.offset)).collect();
    out.line(
        &format!(
            "{name} level {} node {} {}..={} at {} runs {} blocks {} keys {}",
            pointer.level,
            pointer.node,
            node.min,
            node.max,
            places.join(","),
            pointer.runs,
            pointer.blocks_written,
            node.keys
        ),
        json!({"tree": name, "level": pointer.level, "node": pointer.node, "min": node.min.to_string(),
            "max": node.max.to_string(), "places": places, "runs": pointer.runs, "keys": node.keys}),
    )
}

fn tree_names(name: &str) -> Result<Trunk, String> {
    if name == "all" {
        return Ok(Trunk(Tree::ALL.to_vec()));
    }
    let found = Tree::ALL.iter().find(|tree| tree.name() == name);
    found.map(|tree| Trunk(vec![*tree])).ok_or_else(|| {
        let names: Vec<_> = Tree::ALL.iter().map(|tree| tree.name()).collect();
        format!("wanted all or one of {}", names.join(", "))
    })
}

fn position(text: &str) -> Result<Pos, String> {
    const WANTED: &str = "wanted INODE[:OFFSET[:SNAPSHOT]]";
    let mut parts = text.split(':');
    let mut next = |most: u64| match parts.next() {
        None => Ok(0),
        Some(part) => part.parse::<u64>().ok().filter(|n| *n <= most).ok_or(WANTED),
    };
    let pos = Pos::new(next(u64::MAX)?, next(u64::MAX)?, next(u64::from(u32::MAX))? as u32);
    if parts.next().is_some() { Err(WANTED.to_owned()) } else { Ok(pos) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_trees_are_read_as_they_are_shown() {
        assert_eq!(position("7"), Ok(Pos::new(7, 0, 0)));
        assert_eq!(position("7:8:9"), Ok(Pos::new(7, 8, 9)));
        for bad in ["", "x", "1:2:3:4", "1:2:4294967296", "-1"] {
            assert!(position(bad).is_err(), "{bad}");
        }
        assert_eq!(tree_names("all").unwrap().0.len(), Tree::ALL.len());
        assert_eq!(tree_names("inodes").unwrap().0, [Tree::Inodes]);
        assert!(tree_names("oak").is_err());
    }
}
