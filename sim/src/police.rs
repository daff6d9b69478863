//! The order police: from the log of what the disks saw, each answer that called something stable is proved, without
//! asking the filesystem: the bytes it promised were written, and that write was flushed or had FUA, before the answer.
//!
//! Bytes are looked for where they lie in the payloads of writes: content as blocks or within journal entries, names
//! within journal entries. So whatever is promised here must be told apart by its bytes.

use crate::disk::DiskConfig;
use crate::harness::Store;
use crate::ops::pattern;
use crate::plug::Moraine;
use crate::random::Random;
use crate::trace::{Command, CommandId, Event, Payload};
use crate::world::{World, WorldConfig};
use moraine_fs::Vfs;
use moraine_fs::vfs::*;
use moraine_platform::{BlockDevice, Fua, Platform};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

const BLOCK: u64 = 4096;
const CLIENTS: u64 = 3;
const STEPS: usize = 60;
const FILE_BLOCKS: u64 = 48;
/// Names made in a row before one sync: more than fit an entry of the journal.
const BURST: u64 = 60;
/// Long enough that the journal does not expect another sync.
const QUIET: Duration = Duration::from_millis(300);

/// A promise: when the answer with this mark left, these bytes were on media, in a write submitted after the other mark.
#[derive(Clone, Debug)]
pub struct Promise {
    /// Put into the log before the bytes were handed to the filesystem.
    pub since: u64,
    /// Put into the log when the answer was given.
    pub answered: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// For people.
    pub what: String,
}

/// A write as the disk saw it.
struct Written {
    payload: Rc<[u8]>,
    position: usize,
    disk: usize,
    fua: bool,
    completed: bool,
    durable: bool,
}

/// Checks all promises against the log; says how many there were.
pub fn check(events: &[Event], promises: &[Promise]) -> Result<usize, String> {
    let marks: BTreeMap<u64, usize> = events
        .iter()
        .enumerate()
        .filter_map(|(n, event)| if let Event::Mark(mark) = event { Some((*mark, n)) } else { None })
        .collect();
    let mut due: BTreeMap<u64, Vec<&Promise>> = BTreeMap::new();
    promises.iter().for_each(|p| due.entry(p.answered).or_default().push(p));
    let mut writes: BTreeMap<CommandId, Written> = BTreeMap::new();
    let mut flushes: BTreeMap<CommandId, BTreeSet<CommandId>> = BTreeMap::new();
    for (position, event) in events.iter().enumerate() {
        match event {
            Event::Submit { disk, id, command: Command::Write { payload, fua, .. } } => {
                let Payload::Bytes(payload) = payload else { continue };
                let (payload, disk, fua) = (payload.clone(), *disk, *fua == Fua::Yes);
                let (completed, durable) = (false, false);
                writes.insert(*id, Written { payload, position, disk, fua, completed, durable });
            }
            Event::Submit { disk, id, command: Command::Flush } => {
                let covered = writes.iter().filter(|(_, w)| w.disk == *disk && w.completed);
                flushes.insert(*id, covered.map(|(id, _)| *id).collect());
            }
            Event::Submit { .. } => {}
            Event::Complete { id, result: Ok(()), .. } => {
                if let Some(write) = writes.get_mut(id) {
                    (write.completed, write.durable) = (true, write.fua);
                }
                for covered in flushes.remove(id).unwrap_or_default() {
                    writes.get_mut(&covered).expect("writes are kept").durable = true;
                }
            }
            Event::Complete { .. } => {}
            Event::Mark(mark) => {
                for promise in due.get(mark).into_iter().flatten() {
                    let since = *marks.get(&promise.since).ok_or("a promise begins before the log")?;
                    let mut holds = writes.values().filter(|w| w.position > since && contains(w, promise));
                    if !holds.any(|w| w.durable) {
                        let anywhere = writes.values().any(|w| w.position > since && contains(w, promise));
                        return Err(format!(
                            "{} was answered at {position} of the log, and {}",
                            promise.what,
                            if anywhere { "was written, but not flushed" } else { "was never written" }
                        ));
                    }
                }
            }
        }
    }
    Ok(promises.len())
}

fn contains(write: &Written, promise: &Promise) -> bool {
    let (hay, needle) = (&write.payload, &promise.bytes);
    let Some(first) = needle.first() else { return true };
    if needle.len() > hay.len() {
        return false;
    }
    // The first eight bytes decide nearly always.
    let last = hay.len() - needle.len();
    (0..=last).any(|at| hay[at] == *first && hay[at..at + needle.len()] == needle[..])
}

/// What the clients of a world share: the next mark, and what was promised.
struct Beat<'w> {
    world: &'w World,
    platform: Platform,
    next: Cell<u64>,
    promises: RefCell<Vec<Promise>>,
}

impl Beat<'_> {
    fn mark(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.world.trace().mark(self.next.get());
        self.next.get()
    }

    fn promise(&self, since: u64, answered: u64, bytes: Vec<u8>, what: String) {
        self.promises.borrow_mut().push(Promise { since, answered, bytes, what });
    }
}

/// A client's file: what each block holds, and the mark before it was written, if it is not stable yet.
#[derive(Default)]
struct File {
    loose: BTreeMap<u64, (u64, Vec<u8>)>,
}

async fn client<V: Vfs>(fs: &V, beat: &Beat<'_>, number: u64, mut random: Random) {
    let (root, set) = (Caller::root(), SetAttr { mode: Some(0o644), ..SetAttr::default() });
    let name = format!("file-of-client-{number}").into_bytes();
    let since = beat.mark();
    let made = fs.create(&root, fs.root(), &name, CreateMode::Guarded, &set).await.unwrap();
    fs.durable(made.seq).await.unwrap();
    beat.promise(since, beat.mark(), name, format!("client {number}: create"));
    let object = made.value.0;
    let mut file = File::default();
    for step in 0..STEPS {
        match random.below(11) {
            // Content: whole blocks, told apart by their first bytes; one in four is synced.
            0..=5 => {
                let (at, count) = (random.below(FILE_BLOCKS), random.between(1, 8));
                let stability =
                    *random.pick(&[Stability::Unstable, Stability::Unstable, Stability::FileSync]);
                let since = beat.mark();
                let bytes = pattern(random.next_u64(), (count * BLOCK) as usize);
                let data = WriteData::copy_of(at * BLOCK, &bytes).unwrap();
                let change = fs.write(&root, object, at * BLOCK, data, stability).await.unwrap();
                let answered = beat.mark();
                for (n, block) in bytes.chunks(BLOCK as usize).enumerate() {
                    file.loose.insert(at + n as u64, (since, block.to_vec()));
                }
                if change.value.stability > Stability::Unstable {
                    for n in at..at + count {
                        let (since, block) = file.loose.remove(&n).unwrap();
                        beat.promise(
                            since,
                            answered,
                            block,
                            format!("client {number} step {step}: block {n}"),
                        );
                    }
                }
            }
            6..=7 => {
                fs.commit(object, 0, 0).await.unwrap();
                let answered = beat.mark();
                for (n, (since, block)) in std::mem::take(&mut file.loose) {
                    let what = format!("client {number} step {step}: COMMIT of block {n}");
                    beat.promise(since, answered, block, what);
                }
            }
            // So much without a sync that entries of the journal are written that nobody waits for; then one sync.
            8 => {
                fs.commit(object, 0, 0).await.unwrap();
                beat.platform.clock.sleep(QUIET).await;
                let since = beat.mark();
                let (mut names, mut last) = (Vec::new(), Seq(0));
                for n in 0..BURST {
                    let mut name = format!("burst-{number}-{step}-{n}-{:x}-", random.next_u64()).into_bytes();
                    name.resize(NAME_MAX, b'x');
                    last = fs.make(&root, fs.root(), &name, NewNode::Dir, &set).await.unwrap().seq;
                    names.push(name);
                }
                fs.durable(last).await.unwrap();
                let answered = beat.mark();
                for (n, name) in names.into_iter().enumerate() {
                    beat.promise(since, answered, name, format!("client {number} step {step}: burst {n}"));
                }
                file.loose.clear();
            }
            _ => {
                let name = format!("name-{number}-{step}-{:x}", random.next_u64()).into_bytes();
                let since = beat.mark();
                let seq = match random.below(3) {
                    0 => fs.link(&root, object, fs.root(), &name).await.unwrap().seq,
                    1 => fs.make(&root, fs.root(), &name, NewNode::Dir, &set).await.unwrap().seq,
                    _ => {
                        let target = [&name[..], b"-target"].concat();
                        fs.make(&root, fs.root(), &name, NewNode::Symlink(&target), &set).await.unwrap().seq
                    }
                };
                fs.durable(seq).await.unwrap();
                beat.promise(since, beat.mark(), name, format!("client {number} step {step}: a name"));
            }
        }
    }
}

/// Clients with promises in the world of `seed`, and the police after them; says how many promises were proved.
pub fn patrol(seed: u64) -> Result<usize, String> {
    let world = World::with(WorldConfig { record: true, ..WorldConfig::new(seed) });
    let store = Moraine::for_seed(seed);
    let (count, size) = store.disks();
    let config = DiskConfig { fua: !seed.is_multiple_of(3), ..DiskConfig::default() };
    let disks: Vec<Rc<dyn BlockDevice>> =
        (0..count).map(|_| world.disk(size, config.clone()) as Rc<dyn BlockDevice>).collect();
    let platform: Platform = world.platform();
    let beat =
        Beat { world: &world, platform: platform.clone(), next: Cell::new(0), promises: RefCell::default() };
    world.run(async {
        store.format(&platform, &disks).await.unwrap();
        let fs = store.mount(&platform, &disks).await.unwrap().fs;
        let task = |n: u64| -> Pin<Box<dyn Future<Output = ()> + '_>> {
            Box::pin(client(&*fs, &beat, n, world.random(&format!("client {n}"))))
        };
        let mut tasks: Vec<_> = (0..CLIENTS).map(task).collect();
        std::future::poll_fn(|cx| {
            tasks.retain_mut(|task| task.as_mut().poll(cx).is_pending());
            if tasks.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    });
    let events = world.trace().events();
    let promises = beat.promises.borrow();
    check(&events, &promises)
}
