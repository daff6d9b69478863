//! Worlds for a whole filesystem: in lock-step with the model, cut at random, cut everywhere.

use crate::compare::Pair;
use crate::crash::{CrashPlan, CrashReport, Cut, RECOVERED, enumerate};
use crate::disk::{DiskConfig, Image, SimDisk};
use crate::generate::{Generator, Known, Profile};
use crate::ops::{Done, Slot, Step, apply};
use crate::oracle::{History, Progress, Recorded, opened};
use crate::trace::Trace;
use crate::world::{Ended, World, WorldConfig};
use moraine_fs::vfs::*;
use moraine_model::Model;
use moraine_model::tree::{Tree, now};
use moraine_platform::{BlockDevice, Platform};
use std::cell::RefCell;
use std::rc::Rc;

/// A filesystem under test, as far as worlds need to know it.
#[allow(async_fn_in_trait, reason = "single-threaded by design: no caller needs Send")]
pub trait Store {
    /// What a mount gives.
    type Fs: Vfs + 'static;

    /// Number and size in bytes of the disks it wants.
    fn disks(&self) -> (usize, u64);

    /// Makes an empty filesystem.
    async fn format(&self, platform: &Platform, disks: &Disks) -> Result<(), String>;

    /// Recovers what is there and serves it.
    async fn mount(&self, platform: &Platform, disks: &Disks) -> Result<Mounted<Self::Fs>, String>;

    /// Ends cleanly: everything is on media.
    async fn unmount(&self, fs: Rc<Self::Fs>) -> Result<(), String>;

    /// Looks for inconsistencies in what is on the disks; an error names the first.
    async fn check(&self, platform: &Platform, disks: &Disks) -> Result<(), String>;
}

/// Disks as the filesystem sees them.
pub type Disks = Vec<Rc<dyn BlockDevice>>;

/// A mounted filesystem.
pub struct Mounted<F> {
    /// The façade.
    pub fs: Rc<F>,
    /// The last point of the pool's history that survived, if the filesystem tells.
    pub end: Option<Seq>,
}

/// What worlds counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Worlds run.
    pub worlds: u64,
    /// Steps done in them.
    pub steps: u64,
    /// Power cuts in them.
    pub cuts: u64,
    /// Hash of all device commands.
    pub hash: u64,
}

impl Tally {
    /// Adds another count.
    pub fn add(&mut self, other: Tally) {
        self.worlds += other.worlds;
        self.steps += other.steps;
        self.cuts += other.cuts;
        self.hash = crate::trace::mix(self.hash, other.hash);
    }
}

pub(crate) fn devices(disks: &[Rc<SimDisk>]) -> Disks {
    disks.iter().map(|disk| disk.clone() as Rc<dyn BlockDevice>).collect()
}

pub(crate) fn blank<S: Store>(store: &S) -> Vec<Image> {
    let (count, size) = store.disks();
    vec![Image::new(size); count]
}

pub(crate) fn plug(world: &World, images: &[Image], config: &DiskConfig) -> Vec<Rc<SimDisk>> {
    images.iter().map(|image| world.disk_with(image.clone(), config.clone())).collect()
}

/// Marks of the trace: which client, which of its steps, asked for or answered.
fn mark(trace: &Trace, client: usize, step: usize, answered: bool) {
    trace.mark((client as u64) << 33 | (step as u64) << 1 | u64::from(answered));
}

/// How far each client was, by the marks before a cut.
fn progress(marks: &[u64], client: usize) -> Progress {
    let mine = marks.iter().filter(|mark| *mark >> 33 == client as u64);
    let mut progress = Progress { acked: 0, issued: 0 };
    for mark in mine {
        let step = (mark >> 1 & 0xffff_ffff) as usize + 1;
        if mark & 1 == 1 { progress.acked = step } else { progress.issued = step }
    }
    progress
}

/// One client at work: draws steps, asks the filesystem and the model, compares, and writes the history down.
pub struct Client {
    number: usize,
    pair: Pair,
    generator: Option<Generator>,
    known: Vec<Known>,
    last: Seq,
    /// Errors that end its work instead of contradicting the model.
    bears: fn(FsError) -> bool,
    /// The step and the error that ended its work.
    pub ended_by: Option<(Step, FsError)>,
    /// What it did so far.
    pub history: Rc<RefCell<History>>,
}

impl Client {
    /// A client that has the whole filesystem for itself.
    pub async fn alone<V: Vfs>(fs: &V, generator: Option<Generator>) -> Result<Client, String> {
        let volumes = fs.lookup(&Caller::root(), fs.root(), b"volumes").await;
        let volumes = volumes.map_err(|e| format!("no volumes directory: {e}"))?.0;
        let pair = Pair::new(Model::for_tests(), fs.root(), Some(volumes));
        let mut client = Client::with(0, pair, generator, Vec::new());
        client.known.push(Known { slot: Slot::VOLUMES, kind: Kind::Dir, alive: true });
        Ok(client)
    }

    /// Client `number`, which works in a directory of its own.
    pub async fn among<V: Vfs>(
        fs: &V,
        number: usize,
        name: &[u8],
        generator: Generator,
    ) -> Result<Client, String> {
        let model = Model::for_tests();
        let set = SetAttr { mode: Some(0o777), ..SetAttr::default() };
        let caller = Caller::root();
        let made = fs.make(&caller, fs.root(), name, NewNode::Dir, &set).await;
        let theirs = made.map_err(|e| format!("cannot make a home directory: {e}"))?;
        fs.durable(theirs.seq).await.map_err(|e| format!("cannot make it durable: {e}"))?;
        let ours = now(model.make(&caller, model.root(), name, NewNode::Dir, &set)).expect("a new model");
        let mut pair = Pair::new(model, fs.root(), None);
        pair.bind(Slot::HOME, ours.value.0, theirs.value.0);
        Ok(Client::with(number, pair, Some(generator), name.to_vec()))
    }

    fn with(number: usize, pair: Pair, generator: Option<Generator>, home: Vec<u8>) -> Client {
        let history =
            History { home, models: vec![pair.model.clone()], objects: pair.ours.clone(), steps: Vec::new() };
        let known = vec![Known { slot: Slot::HOME, kind: Kind::Dir, alive: true }];
        let history = Rc::new(RefCell::new(history));
        let bears = |_| false;
        Client { number, pair, generator, known, last: Seq(0), bears, ended_by: None, history }
    }

    /// Ends its work at the first of these errors. What was asked for then may have happened or not.
    pub fn bearing(mut self, bears: fn(FsError) -> bool) -> Client {
        self.pair.verifier_changes = true;
        Client { bears, ..self }
    }

    /// Draws and does `count` steps.
    pub async fn work<V: Vfs>(&mut self, fs: &V, trace: &Trace, count: usize) -> Result<(), String> {
        for _ in 0..count {
            let generator = self.generator.as_mut().expect("a client that draws has a generator");
            let step = generator.step(&self.known);
            self.step(fs, trace, step).await?;
            if self.ended_by.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Does one step.
    pub async fn step<V: Vfs>(&mut self, fs: &V, trace: &Trace, step: Step) -> Result<(), String> {
        if step.op.slots().iter().any(|slot| !self.pair.theirs.contains_key(slot)) {
            return Ok(());
        }
        let index = self.history.borrow().steps.len();
        let recorded = Recorded { step: step.clone(), done: None, opened: None };
        self.history.borrow_mut().steps.push(recorded);
        mark(trace, self.number, index, false);
        let theirs = apply(fs, &self.pair.theirs, &step, self.last).await.expect("its objects are known");
        if let Err(error) = theirs.answer
            && (self.bears)(error)
        {
            self.ended_by = Some((step, error));
            return Ok(());
        }
        mark(trace, self.number, index, true);
        let ours = match full(&theirs) {
            // Whether there is room is not for the model to say; nothing happened then.
            true => Done { answer: theirs.answer.clone(), changed: Vec::new() },
            false => now(apply(&self.pair.model, &self.pair.ours, &step, Seq(0))).expect("as above"),
        };
        self.pair.compare(&step, &ours, &theirs).map_err(|why| format!("{step}: {why}"))?;
        self.last = theirs.changed.iter().map(|c| c.seq).fold(self.last, Seq::max);
        let mut history = self.history.borrow_mut();
        history.objects = self.pair.ours.clone();
        history.models.push(self.pair.model.clone());
        let recorded = history.steps.last_mut().expect("pushed above");
        recorded.opened = opened(&ours);
        recorded.done = Some(theirs);
        drop(history);
        self.refresh();
        Ok(())
    }

    /// Brings what the generator knows up to date with the model.
    fn refresh(&mut self) {
        for (slot, object) in &self.pair.ours {
            let attr = now(self.pair.model.getattr(*object));
            match self.known.iter_mut().find(|known| known.slot == *slot) {
                Some(known) => known.alive = attr.is_ok(),
                None => {
                    let kind = attr.map_or(Kind::File, |attr| attr.kind);
                    self.known.push(Known { slot: *slot, kind, alive: attr.is_ok() });
                }
            }
        }
    }

    /// What it should see of its part of the filesystem.
    pub fn expected(&self) -> Tree {
        self.pair.model.tree().below(&self.history.borrow().home)
    }
}

/// Whether a filesystem that began full had no room for a directory.
pub(crate) fn is_full(profile: &Profile, why: &str) -> bool {
    profile.room.is_some() && why.ends_with(&FsError::NoSpace.to_string())
}

/// Whether the pool was full: the one error that the model cannot foresee.
fn full(done: &Done) -> bool {
    matches!(done.answer, Err(FsError::NoSpace))
}

pub(crate) async fn walk<V: Vfs>(fs: &V) -> Result<Tree, String> {
    Tree::walk(fs).await.map_err(|e| format!("cannot read the tree: {e}"))
}

pub(crate) fn same_tree(what: &str, expected: &Tree, actual: &Tree) -> Result<(), String> {
    match expected.difference(actual) {
        None => Ok(()),
        Some(difference) => Err(format!("{what} (left the model): {difference}")),
    }
}

/// One client in lock-step with the model, on disks without faults: same answers, same tree, also after a remount.
pub fn lockstep_world<S: Store>(
    store: &S,
    seed: u64,
    profile: &Profile,
    steps: usize,
) -> Result<Tally, String> {
    let world = World::new(seed);
    let generator = Generator::new(profile.clone(), world.random("workload"));
    let disks = plug(&world, &blank(store), &DiskConfig::default());
    let (platform, disks) = (world.platform(), devices(&disks));
    world.run(async {
        store.format(&platform, &disks).await?;
        let fs = store.mount(&platform, &disks).await?.fs;
        let mut client = Client::alone(&*fs, Some(generator)).await?;
        client.work(&*fs, world.trace(), steps).await?;
        same_tree("the tree in the end", &client.expected(), &walk(&*fs).await?)?;
        store.unmount(fs).await?;
        store.check(&platform, &disks).await?;
        let fs = store.mount(&platform, &disks).await?.fs;
        same_tree("the tree after a clean remount", &client.expected(), &walk(&*fs).await?)?;
        store.unmount(fs).await
    })?;
    Ok(Tally { worlds: 1, steps: steps as u64, cuts: 0, hash: world.trace().hash() })
}

/// How crash worlds are laid out.
#[derive(Clone, Copy, Debug)]
pub struct CrashShape {
    /// Power cuts in a row.
    pub rounds: usize,
    /// Clients at work at once.
    pub clients: usize,
    /// Steps each of them would do.
    pub steps: usize,
}

impl Default for CrashShape {
    fn default() -> CrashShape {
        CrashShape { rounds: 3, clients: 2, steps: 60 }
    }
}

/// Clients at work, a power cut at a random device command, recovery, check; several times on the same disks. What an
/// earlier round left must stay as it was.
pub fn crash_world<S: Store>(
    store: &S,
    seed: u64,
    profile: &Profile,
    shape: CrashShape,
) -> Result<Tally, String> {
    let profile = profile.for_crashes();
    let mut tally = Tally { worlds: 1, ..Tally::default() };
    let config = DiskConfig::default();
    let mut images = formatted(store, seed, &profile)?;
    let mut random = crate::Random::for_purpose(seed, "crash world");
    let mut settled: Option<Tree> = None;
    for round in 0..shape.rounds {
        let world = World::new(seed.wrapping_add((round as u64) << 48));
        let disks = plug(&world, &images, &config);
        let (platform, seen) = (world.platform(), devices(&disks));
        let histories: Rc<RefCell<Vec<Rc<RefCell<History>>>>> = Rc::default();
        let problem: Rc<RefCell<Option<String>>> = Rc::default();
        let limit = 1 + random.below(40 * (shape.clients * shape.steps) as u64 / 10);
        let ended = world.run_to_power_cut(
            async {
                let fs = store.mount(&platform, &seen).await?.fs;
                let mut clients = Vec::new();
                for number in 0..shape.clients {
                    let name = format!("r{round}c{number}").into_bytes();
                    let generator =
                        Generator::new(profile.clone(), world.random(&format!("client {number}")));
                    let client = match Client::among(&*fs, number, &name, generator).await {
                        Err(why) if is_full(&profile, &why) => continue,
                        client => client?,
                    };
                    histories.borrow_mut().push(client.history.clone());
                    clients.push(client);
                }
                let (mut tasks, work) = (Vec::new(), shape.steps);
                for mut client in clients {
                    let (fs, trace, problem) = (fs.clone(), world.trace(), &problem);
                    tasks.push(Box::pin(async move {
                        if let Err(why) = client.work(&*fs, trace, work).await {
                            problem.borrow_mut().get_or_insert(why);
                        }
                    }));
                }
                all(tasks).await;
                Ok::<(), String>(())
            },
            limit,
        );
        match ended {
            Ok(Ended::Done(Err(why))) => return Err(format!("round {round}: {why}")),
            Err(stall) => return Err(format!("round {round}: {stall}")),
            Ok(Ended::Done(Ok(())) | Ended::PowerCut) => {}
        }
        if let Some(why) = problem.take() {
            return Err(format!("round {round}: {why}"));
        }
        tally.cuts += 1;
        tally.hash = crate::trace::mix(tally.hash, world.trace().hash());
        images = if random.percent(85) { world.crash() } else { world.kill() };
        drop((disks, seen, world));
        let histories: Vec<History> = histories.borrow().iter().map(|h| h.borrow().clone()).collect();
        tally.steps += histories.iter().map(|h| h.steps.len() as u64).sum::<u64>();
        let progress: Vec<Progress> = histories.iter().map(History::progress).collect();

        let world = World::new(seed.wrapping_add((round as u64) << 48 | 1 << 40));
        let disks = plug(&world, &images, &config);
        let tree = recover(store, &world, &disks, &histories, &progress, EndIs::OfThisHistory)
            .map_err(|why| format!("round {round}, power cut after {limit} commands: {why}"))?;
        if let Some(settled) = &settled {
            let kept = Tree {
                paths: tree
                    .paths
                    .iter()
                    .filter(|(path, _)| settled.paths.contains_key(*path))
                    .map(own)
                    .collect(),
            };
            let old =
                Tree { paths: settled.paths.iter().filter(|(path, _)| !path.is_empty()).map(own).collect() };
            let new =
                Tree { paths: kept.paths.iter().filter(|(path, _)| !path.is_empty()).map(own).collect() };
            same_tree("what an earlier recovery left", &old.below(b""), &new.below(b""))
                .map_err(|why| format!("round {round}: {why}"))?;
        }
        settled = Some(tree);
        tally.hash = crate::trace::mix(tally.hash, world.trace().hash());
        images = world.crash();
    }
    Ok(tally)
}

fn own<K: Clone, V: Clone>((key, value): (&K, &V)) -> (K, V) {
    (key.clone(), value.clone())
}

/// Runs futures together on one task until all are done.
pub(crate) async fn all<F: Future<Output = ()> + Unpin>(mut futures: Vec<F>) {
    std::future::poll_fn(|cx| {
        futures.retain_mut(|future| std::pin::Pin::new(future).poll(cx).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await
}

/// Name of the file that fills a filesystem.
const BALLAST: &[u8] = b"ballast";
/// Bytes it grows by.
const BALLAST_PIECE: u64 = 128 << 10;

/// Fills a filesystem with one file until there is no space, and then leaves about `room` bytes.
pub(crate) async fn fill<V: Vfs>(fs: &V, room: u64) -> FsResult<()> {
    let (root, set) = (Caller::root(), SetAttr { mode: Some(0o600), ..SetAttr::default() });
    let file = fs.create(&root, fs.root(), BALLAST, CreateMode::Guarded, &set).await?.value.0;
    let piece = crate::ops::pattern(3, BALLAST_PIECE as usize);
    let mut size = 0;
    loop {
        let data = WriteData::copy_of(size, &piece).map_err(|_| FsError::NoMemory)?;
        match fs.write(&root, file, size, data, Stability::Unstable).await {
            Ok(_) => size += BALLAST_PIECE,
            Err(FsError::NoSpace) => break,
            Err(error) => return Err(error),
        }
    }
    let less = SetAttr { size: Some(size.saturating_sub(room)), ..SetAttr::default() };
    fs.setattr(&root, file, &less, None).await?;
    fs.commit(file, 0, 0).await.map(|_| ())
}

/// Disks with an empty filesystem, or one as full as the profile wants it.
pub fn formatted<S: Store>(store: &S, seed: u64, profile: &Profile) -> Result<Vec<Image>, String> {
    let world = World::new(seed);
    let disks = plug(&world, &blank(store), &DiskConfig::default());
    let (platform, seen) = (world.platform(), devices(&disks));
    world.run(async {
        store.format(&platform, &seen).await?;
        if let Some(room) = profile.room {
            let fs = store.mount(&platform, &seen).await?.fs;
            fill(&*fs, room).await.map_err(|e| format!("cannot fill it: {e}"))?;
            store.unmount(fs).await?;
        }
        Ok::<(), String>(())
    })?;
    Ok(disks.iter().map(|disk| disk.durable_image()).collect())
}

/// What the end that a filesystem recovered to means for the histories at hand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndIs {
    /// A point of the history they were recorded in.
    OfThisHistory,
    /// A point of the history an earlier, interrupted recovery began.
    OfAnother,
}

/// Mounts what a power cut left, checks it against the histories, and that it can be worked with; returns the tree.
pub(crate) fn recover<S: Store>(
    store: &S,
    world: &World,
    disks: &[Rc<SimDisk>],
    histories: &[History],
    progress: &[Progress],
    trust: EndIs,
) -> Result<Tree, String> {
    let (platform, seen) = (world.platform(), devices(disks));
    let tree = world.try_run(async {
        let Mounted { fs, end } = store.mount(&platform, &seen).await?;
        world.trace().mark(RECOVERED);
        let end = end.filter(|_| trust == EndIs::OfThisHistory);
        let tree = walk(&*fs).await?;
        for (history, progress) in histories.iter().zip(progress) {
            history.check(&tree, *progress, end)?;
        }
        match use_it(&*fs).await {
            Ok(()) | Err(FsError::NoSpace) => {}
            Err(e) => return Err(format!("recovered, but cannot be used: {e}")),
        }
        same_tree("the tree after using it", &tree, &walk(&*fs).await?)?;
        store.unmount(fs).await?;
        store.check(&platform, &seen).await?;
        Ok::<Tree, String>(tree)
    });
    tree.map_err(|stall| stall.to_string())?
}

/// Makes, writes, syncs and removes a file.
async fn use_it<V: Vfs>(fs: &V) -> FsResult<()> {
    let (root, set) = (Caller::root(), SetAttr { mode: Some(0o600), ..SetAttr::default() });
    let name = b"after recovery";
    let file = fs.create(&root, fs.root(), name, CreateMode::Guarded, &set).await?.value.0;
    let bytes = crate::ops::pattern(5, 10_000);
    let data = WriteData::copy_of(0, &bytes).map_err(|_| FsError::NoMemory)?;
    match fs.write(&root, file, 0, data, Stability::Unstable).await {
        Err(FsError::NoSpace) => {}
        written => {
            written?;
            fs.commit(file, 0, 0).await?;
            if fs.read(&root, file, 0, 20_000).await?.to_vec() != bytes {
                return Err(FsError::Checksum);
            }
        }
    }
    let removed = fs.remove(&root, fs.root(), name).await?;
    fs.durable(removed.seq).await
}

/// A seeded workload of `steps` steps, cut at every device command in every way that matters.
pub fn enumerate_world<S: Store>(
    store: &S,
    seed: u64,
    profile: &Profile,
    steps: usize,
    bounds: impl FnOnce(&mut CrashPlan),
) -> CrashReport {
    let start = formatted(store, seed, profile).expect("blank disks can be formatted");
    let mut plan = CrashPlan::new(format!("{} seed {seed}", profile.name), seed, start);
    bounds(&mut plan);
    let generator = |world: &World| Some(Generator::new(profile.for_crashes(), world.random("workload")));
    enumerate_client(store, &plan, generator, async |client, fs, world| {
        client.work(fs, world.trace(), steps).await
    })
}

/// Given steps, cut at every device command in every way that matters.
pub fn enumerate_steps<S: Store>(store: &S, plan: &CrashPlan, steps: &[Step]) -> CrashReport {
    enumerate_client(
        store,
        plan,
        |_| None,
        async |client, fs, world| {
            for step in steps {
                client.step(fs, world.trace(), step.clone()).await?;
            }
            Ok(())
        },
    )
}

fn enumerate_client<S: Store>(
    store: &S,
    plan: &CrashPlan,
    generator: impl FnOnce(&World) -> Option<Generator>,
    work: impl AsyncFnOnce(&mut Client, &S::Fs, &World) -> Result<(), String>,
) -> CrashReport {
    let workload = |world: &World, disks: &[Rc<SimDisk>]| -> Result<History, String> {
        let (platform, seen) = (world.platform(), devices(disks));
        let generator = generator(world);
        world.run(async {
            let fs = store.mount(&platform, &seen).await?.fs;
            let mut client = Client::alone(&*fs, generator).await?;
            work(&mut client, &*fs, world).await?;
            let history = client.history.borrow().clone();
            Ok(history)
        })
    };
    enumerate(plan, workload, |world, disks, history: &Result<History, String>, cut: &Cut| {
        let history = history.as_ref().map_err(Clone::clone)?;
        let end = if cut.again { EndIs::OfAnother } else { EndIs::OfThisHistory };
        let progress = [progress(&cut.marks, 0)];
        recover(store, world, disks, std::slice::from_ref(history), &progress, end).map(|_| ())
    })
}

/// Runs given steps in lock-step on a blank filesystem: what shrinking a failure repeats.
pub fn replay_steps<S: Store>(store: &S, seed: u64, steps: &[Step]) -> Result<(), String> {
    let world = World::with(WorldConfig::new(seed));
    let disks = plug(&world, &blank(store), &DiskConfig::default());
    let (platform, disks) = (world.platform(), devices(&disks));
    world.run(async {
        store.format(&platform, &disks).await?;
        let fs = store.mount(&platform, &disks).await?.fs;
        let mut client = Client::alone(&*fs, None).await?;
        for step in steps {
            client.step(&*fs, world.trace(), step.clone()).await?;
        }
        same_tree("the tree in the end", &client.expected(), &walk(&*fs).await?)
    })
}
