//! A target fed for a while: with what it is fed kept for a panic, a watch over hangs, and coverage, if it is counted, as the
//! judge of what is worth changing further.

use crate::MEMORY;
use moraine_fuzz::{Target, corpus_folder, inputs, mutate, mutate::Dice};
use moraine_fuzz_base::coverage::Coverage;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

/// An input that takes longer than this is told of as slow: nothing here should.
const SLOW: Duration = Duration::from_secs(5);
/// One that takes longer than this hangs.
const HANGS: Duration = Duration::from_secs(60);
/// Files and bytes of a target's corpus at most: it is in the repository, and all of it is run in CI.
const CORPUS_FILES_MAX: usize = 100;
const CORPUS_BYTES_MAX: usize = 200 << 10;
/// The longest input that is kept in the corpus.
const CORPUS_INPUT_MAX: usize = 16 << 10;

/// What runs now: for the panic hook and the watch.
struct Now {
    bytes: Vec<u8>,
    since: Instant,
    folder: PathBuf,
}

static NOW: Mutex<Option<Now>> = Mutex::new(None);

/// One target, fed.
pub(crate) struct Campaign {
    target: &'static Target,
    coverage: Coverage,
    inputs: Vec<Vec<u8>>,
    dice: Dice,
    seed: u64,
    fed: u64,
}

impl Campaign {
    pub(crate) fn new(target: &'static Target, seed: u64) -> Campaign {
        static WATCH: Once = Once::new();
        WATCH.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                usual(info);
                keep_what_runs("panic");
            }));
            std::thread::spawn(watch);
        });
        let dice = Dice(seed);
        Campaign { target, coverage: Coverage::new(), inputs: Vec::new(), dice, seed, fed: 0 }
    }

    /// Where this target's finds are put.
    fn found(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz").join(self.target.name)
    }

    /// Runs one input; panics if it takes more memory than it may.
    fn feed(&mut self, bytes: &[u8]) {
        let now = Now { bytes: bytes.to_vec(), since: Instant::now(), folder: self.found() };
        *NOW.lock().expect("nobody panics with it") = Some(now);
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let began = Instant::now();
        (self.target.run)(bytes);
        let taken = MEMORY.peak_usage().saturating_sub(before);
        assert!(taken <= self.target.memory_max, "{} takes {taken} bytes of memory", self.target.name);
        if began.elapsed() > SLOW {
            keep_what_runs("slow");
        }
        NOW.lock().expect("nobody panics with it").take();
        self.fed += 1;
    }

    pub(crate) fn once(&mut self, bytes: &[u8]) {
        self.feed(bytes);
        println!("{}: no finding", self.target.name);
    }

    /// Feeds what there is, then changes of it until `time` is over.
    pub(crate) fn run(&mut self, time: Duration) {
        let begin = Instant::now();
        let name = self.target.name;
        let found = self.found();
        let known = inputs(self.target).into_iter().chain(files(&found).into_iter().map(|(_, bytes)| bytes));
        for bytes in known.collect::<BTreeSet<_>>() {
            self.feed(&bytes);
            self.coverage.take();
            self.inputs.push(bytes);
        }
        let first = self.inputs.len();
        let mut seed = self.seed;
        while begin.elapsed() < time {
            let bytes = if self.coverage.is_counted() {
                let chosen = self.choose();
                mutate::change_some(self.inputs[chosen].clone(), &self.inputs, &mut self.dice)
            } else {
                // Told before it runs, so that a panic's last line replays it.
                moraine_sim::world::set_replay_line(&format!("moraine-fuzz {name} --seed {seed}"));
                mutate::mutate(&self.inputs, seed)
            };
            seed += 1;
            self.feed(&bytes);
            if self.coverage.take() > 0 {
                save(&found, "", &bytes);
                self.inputs.push(bytes);
            }
        }
        println!(
            "{name}: {} inputs in {} s, seed {}; {} edges, {} inputs kept of which {} new; no finding",
            self.fed,
            begin.elapsed().as_secs(),
            self.seed,
            self.coverage.edges(),
            self.inputs.len(),
            self.inputs.len() - first,
        );
    }

    /// Of two inputs the shorter, often of the newest.
    fn choose(&mut self) -> usize {
        let len = self.inputs.len();
        let newest = len - len.div_ceil(4);
        let mut one = || match self.dice.below(2) {
            0 => self.dice.below(len),
            _ => newest + self.dice.below(len - newest),
        };
        let (a, b) = (one(), one());
        if self.inputs[a].len() <= self.inputs[b].len() { a } else { b }
    }

    /// Makes the target's corpus anew: the fewest bytes that reach most of what corpus and finds reach beyond the seeds.
    pub(crate) fn merge(&mut self) {
        assert!(
            self.coverage.is_counted(),
            "only a build that counts coverage can say what is worth keeping"
        );
        let mut reached = BTreeSet::new();
        for seed in moraine_fuzz::seeds::of(self.target.name) {
            self.feed(&seed);
            reached.extend(self.coverage.take_all());
        }
        let folder = corpus_folder(self.target.name);
        // Named by hand: a case that once failed. It stays.
        let (kept, old): (Vec<_>, Vec<_>) =
            files(&folder).into_iter().partition(|(name, _)| name.contains('-'));
        let mut candidates = BTreeSet::new();
        candidates.extend(old.iter().map(|(_, bytes)| bytes.clone()));
        candidates.extend(files(&self.found()).into_iter().map(|(_, bytes)| bytes));
        candidates.retain(|bytes| bytes.len() <= CORPUS_INPUT_MAX);
        let mut candidates: Vec<(Vec<u8>, BTreeSet<u32>)> = candidates
            .into_iter()
            .map(|bytes| {
                self.feed(&bytes);
                (bytes, self.coverage.take_all().into_iter().collect())
            })
            .collect();
        let mut room = CORPUS_BYTES_MAX - kept.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        let mut chosen = Vec::new();
        while chosen.len() + kept.len() < CORPUS_FILES_MAX {
            candidates.iter_mut().for_each(|(_, reaches)| reaches.retain(|edge| !reached.contains(edge)));
            candidates.retain(|(bytes, reaches)| !reaches.is_empty() && bytes.len() <= room);
            // Most for its bytes; what it costs to have a file at all counts too.
            let worth =
                |(bytes, reaches): &(Vec<u8>, BTreeSet<u32>)| reaches.len() * 100_000 / (bytes.len() + 64);
            let Some(best) = (0..candidates.len()).max_by_key(|i| worth(&candidates[*i])) else { break };
            let (bytes, reaches) = candidates.swap_remove(best);
            room -= bytes.len();
            reached.extend(reaches);
            chosen.push(bytes);
        }
        for (name, _) in old {
            let _ = std::fs::remove_file(folder.join(name));
        }
        chosen.iter().for_each(|bytes| save(&folder, "", bytes));
        println!("{}: {} files of a corpus, and {} named ones", self.target.name, chosen.len(), kept.len());
    }
}

/// The files of a folder by name; none if it is not there.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let named = entries.map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()));
    let mut files: Vec<_> =
        named.filter_map(|(name, path)| Some((name, std::fs::read(path).ok()?))).collect();
    files.sort();
    files
}

fn save(folder: &Path, prefix: &str, bytes: &[u8]) {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let path = folder.join(format!("{prefix}{hash:016x}"));
    let done = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, bytes));
    if let Err(e) = done {
        eprintln!("{}: {e}", path.display());
    }
    if !prefix.is_empty() {
        eprintln!("the input is kept in {}{prefix}{hash:016x}", folder.join("").display());
    }
}

/// Writes the input that runs now beside the finds, in a folder of its own.
fn keep_what_runs(why: &str) {
    // The lock is not held while an input runs.
    if let Ok(now) = NOW.lock()
        && let Some(now) = &*now
    {
        save(&now.folder.with_extension(why), &format!("{why}-"), &now.bytes);
    }
}

/// Ends the program when an input hangs.
fn watch() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let hangs = NOW.lock().is_ok_and(|now| now.as_ref().is_some_and(|now| now.since.elapsed() > HANGS));
        if hangs {
            eprintln!("an input runs longer than {} s", HANGS.as_secs());
            keep_what_runs("hang");
            std::process::abort();
        }
    }
}
