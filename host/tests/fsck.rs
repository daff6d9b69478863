//! `moraine fsck` and `moraine mkfs` on images that are whole, in use, cut off, damaged or somebody else's.

use moraine_format::Superblock;
use moraine_format::node::{NODE_BLOCK, Run};
use moraine_format::superblock::{SLOT_BYTES, slot_offsets};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const BYTES: u64 = 64 << 20;

/// A directory of its own for a test, gone at its end, with an image in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("moraine-fsck-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn pool(name: &str) -> Scratch {
        let scratch = Scratch::new(name);
        let made = moraine(&["mkfs", "--size", "64M", "--node-size", "32K"], &scratch.image());
        assert_eq!(made.status.code(), Some(0), "{made:?}");
        assert_eq!(text(&made.stderr).matches("making").count(), 0, "no progress but for a person");
        scratch
    }

    fn image(&self) -> PathBuf {
        self.0.join("a.img")
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.image()).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn moraine(arguments: &[&str], image: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_moraine")).args(arguments).arg(image).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Checks an image; not one byte of it changes.
fn look(scratch: &Scratch, arguments: &[&str]) -> Output {
    let before = scratch.bytes();
    let output = moraine(&[&["--log", "error", "fsck"], arguments].concat(), &scratch.image());
    assert!(before == scratch.bytes(), "a check wrote to the disk");
    output
}

fn serve(image: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moraine"));
    command.args(["serve", "--nfs", "127.0.0.1:0", "--nbd", "127.0.0.1:0"]).arg(image);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("moraine ready"), "{line}");
    process
}

/// Offsets of all runs of nodes in an image.
fn runs(image: &[u8]) -> Vec<usize> {
    let slot = slot_offsets(BYTES)[0] as usize;
    let tag = Superblock::parse(&image[slot..slot + SLOT_BYTES]).unwrap().pool_tag();
    let blocks = (0..image.len()).step_by(NODE_BLOCK);
    blocks.filter(|at| Run::parse(&image[*at..(at + (256 << 10)).min(image.len())], tag).is_ok()).collect()
}

#[test]
fn a_check_changes_nothing_and_a_repair_only_what_is_wrong() {
    let scratch = Scratch::pool("whole");
    let clean = look(&scratch, &[]);
    assert_eq!(clean.status.code(), Some(0), "{clean:?}");
    assert_eq!(text(&clean.stderr), "", "no progress but for a person");
    // Cut off in the middle of its work: the journal counts.
    let mut serving = serve(&scratch.image());
    let busy = moraine(&["fsck"], &scratch.image());
    assert_eq!(busy.status.code(), Some(8));
    let named = format!("{}: in use by another process", scratch.image().display());
    assert!(text(&busy.stderr).contains(&named), "{busy:?}");
    serving.kill().unwrap();
    serving.wait().unwrap();
    let unclean = look(&scratch, &["--json"]);
    assert_eq!(unclean.status.code(), Some(0), "{unclean:?}");
    let line: serde_json::Value = serde_json::from_str(text(&unclean.stdout).trim_end()).unwrap();
    assert_eq!((&line["found"], &line["lost"]), (&0.into(), &0.into()));
    assert!(line["keys"].as_u64().unwrap() > 0);
    let repaired = moraine(&["fsck", "--repair"], &scratch.image());
    assert_eq!(repaired.status.code(), Some(0), "{repaired:?}");
    assert_eq!(look(&scratch, &[]).status.code(), Some(0));
}

#[test]
fn a_pool_all_of_whose_nodes_are_damaged_is_named_and_mended() {
    let scratch = Scratch::pool("damaged");
    let mut bytes = scratch.bytes();
    let runs = runs(&bytes);
    assert!(runs.len() > 4, "{runs:?}");
    runs.iter().for_each(|at| bytes[at + 100] ^= 1);
    bytes[slot_offsets(BYTES)[1] as usize + 20] ^= 1;
    std::fs::write(scratch.image(), &bytes).unwrap();

    let found = look(&scratch, &["--json"]);
    assert_eq!(found.status.code(), Some(4), "{found:?}");
    let lines: Vec<serde_json::Value> =
        text(&found.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let has = |id: u64| lines.iter().any(|l| l["id"] == id && l["repaired"] == false);
    assert!(has(1), "unreadable nodes: {lines:?}");
    assert!(has(4), "a copy of the superblock: {lines:?}");
    let (nodes, superblocks) = (&lines[1], &lines[0]);
    assert_eq!((&superblocks["severity"], &nodes["severity"]), (&"Derived".into(), &"Loss".into()));
    assert!(nodes["where"].as_str().unwrap().starts_with("root of "), "{nodes}");

    let mended = moraine(&["--log", "error", "fsck", "-y"], &scratch.image());
    assert_eq!(mended.status.code(), Some(1), "{mended:?}");
    assert!(
        text(&mended.stdout).contains("root of inodes: ") && !text(&mended.stdout).contains("root directory")
    );
    let after = look(&scratch, &[]);
    assert_eq!(after.status.code(), Some(0), "{after:?}");
    let mut serving = serve(&scratch.image());
    serving.kill().unwrap();
    serving.wait().unwrap();
    // Dumps go around what cannot be read.
    std::fs::write(scratch.image(), &bytes).unwrap();
    let dump = moraine(&["dump", "--tree", "all"], &scratch.image());
    assert_eq!(dump.status.code(), Some(1));
    assert!(text(&dump.stderr).contains("tree inodes: node "), "{dump:?}");
}

#[test]
fn a_dump_shows_what_is_left_of_a_damaged_journal() {
    let scratch = Scratch::pool("journal");
    let mut bytes = scratch.bytes();
    let superblock = Superblock::parse(&bytes[slot_offsets(BYTES)[0] as usize..][..SLOT_BYTES]).unwrap();
    let bucket = superblock.members[0].bucket_bytes as usize;
    assert_eq!(moraine(&["dump", "--journal"], &scratch.image()).status.code(), Some(0));
    // A block of the newest entry: what is written to it last lies furthest on.
    let last = superblock.members[0]
        .journal_buckets()
        .flat_map(|b| (b as usize * bucket..(b as usize + 1) * bucket).step_by(NODE_BLOCK))
        .filter(|at| bytes[*at..][..NODE_BLOCK].iter().any(|byte| *byte != 0))
        .last()
        .unwrap();
    bytes[last + 300] ^= 1;
    std::fs::write(scratch.image(), &bytes).unwrap();
    let dump = moraine(&["dump", "--journal", "--superblock"], &scratch.image());
    assert_eq!(dump.status.code(), Some(1), "{dump:?}");
    assert!(text(&dump.stderr).contains("the journal is damaged"), "{dump:?}");
    assert!(text(&dump.stdout).contains("journal in buckets"), "{dump:?}");
}

#[test]
fn mkfs_overwrites_nothing_unasked_and_leaves_no_trace_of_others() {
    let scratch = Scratch::new("foreign");
    let mut bytes = vec![0; BYTES as usize];
    let end = bytes.len();
    for (at, mark) in [
        (0, &b"XFSB"[..]),
        (1080, b"\x53\xef"),
        (512, b"EFI PART"),
        (32769, b"CD001"),
        (end - 512, b"EFI PART"),
        (end - (8 << 10), b"\xfc\x4e\x2b\xa9"),
    ] {
        bytes[at..at + mark.len()].copy_from_slice(mark);
    }
    bytes[100] = 7;
    std::fs::write(scratch.image(), &bytes).unwrap();
    let refused = moraine(&["mkfs"], &scratch.image());
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("an XFS filesystem; --force overwrites it"), "{refused:?}");
    assert!(bytes == scratch.bytes());
    let made = moraine(&["mkfs", "--force", "--json"], &scratch.image());
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let told: serde_json::Value = serde_json::from_str(text(&made.stdout).trim_end()).unwrap();
    assert_eq!(told["label"], "moraine");
    let after = scratch.bytes();
    assert_eq!((&after[..4], &after[1080..1082], &after[512..520]), (&[0; 4][..], &[0; 2][..], &[0; 8][..]));
    assert!(after[32769..32774] == [0; 5] && after[end - 512..end - 504] == [0; 8]);
    assert_eq!(after[end - (8 << 10)..][..4], [0; 4]);
    assert_eq!(after[100], 7, "what is nobody's mark stays in the boot sector");
    let refused = moraine(&["mkfs"], &scratch.image());
    assert!(text(&refused.stderr).contains("member 0 of the pool 'moraine'; --force"), "{refused:?}");
    assert_eq!(look(&scratch, &[]).status.code(), Some(0));
}
