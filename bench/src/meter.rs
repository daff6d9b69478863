//! What a phase cost: time, processor time of all threads, bytes written, memory.

use std::path::Path;
use std::time::Instant;

/// Figures at one moment.
pub(crate) struct Mark {
    at: Instant,
    cpu: f64,
    written: u64,
}

/// Figures between two moments.
pub(crate) struct Cost {
    /// Seconds passed.
    pub(crate) seconds: f64,
    /// Seconds of processor time, user and system, of all threads; children that ended and the kernel's own threads
    /// included where that was asked for.
    pub(crate) cpu: f64,
    /// Bytes written to storage.
    pub(crate) written: u64,
}

/// Where bytes written are counted.
pub(crate) struct Meter {
    stat: Option<String>,
    kernel_threads: bool,
}

impl Meter {
    /// With `stat` (such as `/sys/block/loop0/stat`) what reached that device is counted; else what the system says this
    /// process wrote, which counts whole pages of the system's cache.
    pub(crate) fn new(stat: Option<&str>) -> Meter {
        Meter { stat: stat.map(str::to_owned), kernel_threads: false }
    }

    /// Also counts what the kernel's own threads (of loop devices, of journals, for write-back) and children spend,
    /// whoever made them work.
    pub(crate) fn with_kernel_threads(self) -> Meter {
        Meter { kernel_threads: true, ..self }
    }

    fn cpu(&self) -> f64 {
        cpu_seconds() + if self.kernel_threads { kernel_seconds() + children_seconds() } else { 0.0 }
    }

    /// Now. With a device's statistics, `dir`'s filesystem is written out first.
    pub(crate) fn mark(&self, dir: &Path) -> Mark {
        let written = match &self.stat {
            Some(stat) => {
                const SECTORS_WRITTEN: usize = 6;
                let dir = std::fs::File::open(dir).expect("the directory is there");
                rustix::fs::syncfs(&dir).expect("a filesystem can be synced");
                let text = std::fs::read_to_string(stat).expect("the device has statistics");
                let field = text.split_whitespace().nth(SECTORS_WRITTEN);
                field.and_then(|f| f.parse::<u64>().ok()).expect("the kernel's format") * 512
            }
            None => proc_field("/proc/self/io", "write_bytes"),
        };
        Mark { at: Instant::now(), cpu: self.cpu(), written }
    }

    /// From `mark` to now.
    pub(crate) fn since(&self, mark: &Mark, dir: &Path) -> Cost {
        let (seconds, cpu) = (mark.at.elapsed().as_secs_f64(), self.cpu() - mark.cpu);
        Cost { seconds, cpu, written: self.mark(dir).written - mark.written }
    }
}

fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills in the structure it is given. (Not rustix: its own search for the clock ends valgrind.)
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "a process has a clock of its own");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Processor seconds of the threads of the kernel that live now. One that ended takes its share along, so this is for
/// differences over seconds, in which few do.
fn kernel_seconds() -> f64 {
    const PARENT_OF_THREADS: &str = "2";
    let processes = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let spent = processes.filter_map(|process| {
        let stat = std::fs::read_to_string(process.path().join("stat")).ok()?;
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?;
        let schedule = std::fs::read_to_string(process.path().join("schedstat")).ok()?;
        let nanoseconds: f64 = schedule.split_whitespace().next()?.parse().ok()?;
        (parent == PARENT_OF_THREADS).then_some(nanoseconds)
    });
    spent.sum::<f64>() / 1e9
}

/// Processor seconds of children that ended.
fn children_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc is mounted");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Counted from the third field of proc(5), the state: cutime and cstime.
    let ticks: f64 = fields[13..15].iter().map(|f| f.parse::<f64>().expect("the kernel's format")).sum();
    const TICKS_PER_SECOND: f64 = 100.0;
    ticks / TICKS_PER_SECOND
}

/// The most memory the process had, in MiB.
pub(crate) fn peak_mib() -> u64 {
    proc_field("/proc/self/status", "VmHWM") / 1024
}

/// Bytes that the files in `dir` take.
pub(crate) fn stored_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(dir).expect("the directory is there");
    files.flatten().filter_map(|f| Some(f.metadata().ok()?.blocks() * 512)).sum()
}

fn proc_field(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
