//! The same work on files through our filesystem, called as a library on a block device, and through the kernel's, mounted
//! from one: small overwrites, synced writes, small new files, and the mount after a stop without warning.
//!
//! Whatever is not said to be durable at once is made durable at the end of its phase, and that counts as part of it.

mod moraine;
mod posix;

use crate::meter::{self, Meter};
use crate::random::Random;
use std::path::{Path, PathBuf};

/// Bytes of a write, and of a new file.
const BLOCK: usize = 4096;
/// Files in a directory.
const PER_DIR: u64 = 1000;
/// Files made last of all before a power cut, each durable before the next.
const LATE_FILES: u64 = 1000;
/// Writes under way at once.
const DEPTH: usize = 32;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// `moraine` or `raw` with a block device whose content is lost, or `kernel` with an empty directory of a mounted filesystem
    kind: String,
    /// The device or directory
    path: PathBuf,
    /// Phases to run in this order, separated by commas: commit, overwrite, direct, sync, create, fill
    #[arg(long, default_value = "overwrite,direct,sync,create")]
    phases: String,
    /// Size of the file that is overwritten, in MiB
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Writes of the overwriting phases, in thousands
    #[arg(long, default_value_t = 128)]
    writes: u64,
    /// Writes of the phases in which each is durable
    #[arg(long, default_value_t = 4000)]
    synced: u64,
    /// Files of the create phase
    #[arg(long, default_value_t = 20_000)]
    files: u64,
    /// Files of the fill phase, after which nothing is unmounted
    #[arg(long, default_value_t = 200_000)]
    fill: u64,
    /// The statistics of the device the directory lies on, such as /sys/block/loop0/stat
    #[arg(long)]
    stat: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct MountArguments {
    /// `moraine` or `kernel`
    kind: String,
    /// The device
    device: PathBuf,
    /// Where the kernel mounts it
    #[arg(default_value = "/mnt")]
    dir: PathBuf,
}

/// Something that keeps files.
trait Files {
    /// A commit of one small change, durable.
    fn commit(&mut self, _count: u64, _random: &mut Random) {
        panic!("phase commit is for kinds raw and moraine")
    }
    /// Makes a file of `bytes` and writes all of it in large pieces; durable.
    fn prepare(&mut self, bytes: u64);
    /// Overwrites random blocks of it through the cache, in memory first; durable at the end.
    fn overwrite(&mut self, bytes: u64, count: u64, random: &mut Random);
    /// The same past the cache, [`DEPTH`] under way; false if there is no such way.
    fn overwrite_direct(&mut self, bytes: u64, count: u64) -> bool;
    /// Overwrites random blocks, one after another, each durable.
    fn synced(&mut self, bytes: u64, count: u64, random: &mut Random);
    /// Makes `count` files of a block in new directories below a new one called `name`; durable at the end.
    fn create(&mut self, name: &str, count: u64);
    /// Makes `count` files of a block in a new directory called `name`, each durable before the next is begun.
    fn create_synced(&mut self, name: &str, count: u64);
    /// Makes everything that was done durable.
    fn sync(&mut self);
}

pub(crate) fn run(arguments: &Arguments) {
    let mut files: Box<dyn Files> = match &arguments.kind[..] {
        "moraine" => Box::new(moraine::Moraine::make(&arguments.path)),
        "raw" => Box::new(posix::Raw::open(&arguments.path)),
        "kernel" => Box::new(posix::Posix::open(&arguments.path)),
        other => panic!("no kind '{other}': moraine, raw or kernel"),
    };
    let bytes = arguments.mib << 20;
    let mut prepared = false;
    println!("kind\tphase\tops\tseconds\tops/s\tcpu_us/op\tbytes/op\tpeak_MiB");
    for phase in arguments.phases.split(',') {
        if matches!(phase, "overwrite" | "direct" | "sync") && !prepared {
            files.prepare(bytes);
            prepared = true;
        }
        files.sync();
        let mut random = Random(7);
        let meter = Meter::new(arguments.stat.as_deref()).with_kernel_threads();
        let dir = if arguments.path.is_dir() { &arguments.path } else { Path::new("/") };
        let mark = meter.mark(dir);
        let count = match phase {
            "overwrite" | "direct" => arguments.writes * 1000,
            "sync" | "commit" => arguments.synced,
            "create" => arguments.files,
            "fill" => arguments.fill,
            other => panic!("no phase '{other}'"),
        };
        let done = match phase {
            "commit" => (files.commit(count, &mut random), true).1,
            "overwrite" => (files.overwrite(bytes, count, &mut random), true).1,
            "direct" => files.overwrite_direct(bytes, count),
            "sync" => (files.synced(bytes, count, &mut random), true).1,
            "create" => (files.create(phase, count), true).1,
            _ => {
                files.create(phase, count);
                // So that there is something to recover.
                files.create_synced("late", LATE_FILES);
                true
            }
        };
        if !done {
            continue;
        }
        let cost = meter.since(&mark, dir);
        let n = count as f64;
        println!(
            "{}\t{phase}\t{count}\t{:.3}\t{:.0}\t{:.2}\t{:.0}\t{}",
            arguments.kind,
            cost.seconds,
            n / cost.seconds,
            cost.cpu * 1e6 / n,
            cost.written as f64 / n,
            meter::peak_mib(),
        );
    }
    // As a power cut would have it: no destructor, no unmount.
    std::process::exit(0);
}

/// Mounts what a stop without warning left; wall and processor time until a directory was listed.
pub(crate) fn mount(arguments: &MountArguments) {
    let meter = Meter::new(None).with_kernel_threads();
    let mark = meter.mark(Path::new("/"));
    let entries = match &arguments.kind[..] {
        "moraine" => moraine::mount(&arguments.device),
        "kernel" => posix::mount(&arguments.device, &arguments.dir),
        other => panic!("no kind '{other}': moraine or kernel"),
    };
    let cost = meter.since(&mark, Path::new("/"));
    println!("kind\tentries\tms\tcpu_ms");
    println!("{}\t{entries}\t{:.1}\t{:.1}", arguments.kind, cost.seconds * 1e3, cost.cpu * 1e3);
    std::process::exit(0);
}

/// A block's worth of bytes that differs from write to write.
fn block(random: &mut Random) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for part in block.chunks_mut(64) {
        part[..8].copy_from_slice(&random.next().to_le_bytes());
    }
    block
}
