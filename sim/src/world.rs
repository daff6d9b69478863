//! The world: one executor whose order of tasks, one clock whose time, one offload whose completions come from a seed.
//!
//! A task is polled only when it was woken; which of the woken ones comes next is drawn from the seed. Time stands
//! still while tasks are ready (sometimes not: an event may overtake them) and jumps to the next event when none is.

use crate::disk::{DiskConfig, Image, SimDisk};
use crate::machine::Machine;
use crate::net::Switch;
use crate::random::Random;
use crate::trace::Trace;
use moraine_platform::{Clock, Instant, LocalFuture, Offload, Platform, Rng, Spawn, Timestamp};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// Wall-clock time at which every world starts.
const WALL_AT_START: u64 = 1_700_000_000_000_000_000;
/// Longest time an offloaded job takes, in nanoseconds.
const OFFLOAD_NS_MAX: u64 = 50_000;
/// How far in the future, in nanoseconds, an event may lie that overtakes a ready task.
const LATE_NS_MAX: u64 = 1_000_000;

/// How a world behaves. The default suits most tests.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// What everything random is drawn from.
    pub seed: u64,
    /// How often, in percent, an await that could go on lets others run first.
    pub forced_yield_percent: u32,
    /// How often, in percent, an event (a completion, a timer) comes before a task that is ready.
    pub early_event_percent: u32,
    /// Virtual time after which a run counts as hung.
    pub time_limit: Duration,
    /// Polls after which a run counts as livelocked.
    pub poll_limit: u64,
    /// Whether the trace keeps commands with their data, which crash enumeration needs.
    pub record: bool,
}

impl WorldConfig {
    /// The default world of `seed`.
    pub fn new(seed: u64) -> WorldConfig {
        WorldConfig {
            seed,
            forced_yield_percent: 25,
            early_event_percent: 5,
            time_limit: Duration::from_secs(24 * 3600),
            poll_limit: 200_000_000,
            record: false,
        }
    }
}

/// A run that cannot go on.
#[derive(Clone, Debug)]
pub struct Stall {
    /// Why: nothing is left to happen, or a limit was reached.
    pub reason: &'static str,
    /// Virtual time.
    pub at: Instant,
    /// Names of the tasks that still wait.
    pub waiting: Vec<&'static str>,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {} ns; waiting tasks: {:?}", self.reason, self.at.0, self.waiting)
    }
}

/// How a bounded run ended.
#[derive(Debug)]
pub enum Ended<T> {
    /// The future completed.
    Done(T),
    /// The power went: as many device commands as asked for had been submitted.
    PowerCut,
}

/// A seeded world. Dropping it forgets its tasks: nothing they do while they are dropped reaches a disk.
pub struct World {
    inner: Rc<Inner>,
}

type TaskId = usize;
/// The future given to `run`.
const MAIN: TaskId = 0;

struct Task {
    name: &'static str,
    future: LocalFuture<()>,
    waker: Arc<TaskWaker>,
}

/// What happens at a number of device commands.
type Fuse = (u64, Box<dyn FnOnce()>);

enum Happening {
    Wake(Waker),
    Call(Box<dyn FnOnce()>),
}

pub(crate) struct Inner {
    me: Weak<Inner>,
    config: WorldConfig,
    now: Cell<u64>,
    wall_offset: Cell<i64>,
    alive: Cell<bool>,
    order: RefCell<Random>,
    entropy: RefCell<Random>,
    delays: RefCell<Random>,
    tasks: RefCell<Vec<Option<Task>>>,
    ready: Arc<Mutex<Vec<TaskId>>>,
    events: RefCell<BTreeMap<(u64, u64), Happening>>,
    next_event: Cell<u64>,
    polls: Cell<u64>,
    disks: RefCell<Vec<Rc<SimDisk>>>,
    switch: RefCell<Option<Rc<Switch>>>,
    fuse: RefCell<Option<Fuse>>,
    memory: Memory,
    trace: Trace,
}

/// How short programs on machines are of memory.
struct Memory {
    /// How many in 100,000 buffers are refused.
    refused: Cell<u64>,
    /// The largest there is a piece of memory for.
    largest: Cell<usize>,
    too_large: Cell<u64>,
    random: RefCell<Random>,
    program_runs: Cell<bool>,
    count: Cell<u64>,
}

struct TaskWaker {
    id: TaskId,
    queued: AtomicBool,
    ready: Arc<Mutex<Vec<TaskId>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().expect("nothing panics while it holds the queue").push(self.id);
        }
    }
}

thread_local! {
    static REPLAY: RefCell<String> = const { RefCell::new(String::new()) };
    /// The world that runs on this thread, for the yield points inside `platform`.
    static CURRENT: RefCell<Vec<Rc<Inner>>> = const { RefCell::new(Vec::new()) };
}

/// Whether a yield point gives way now: asks the world that runs on this thread.
fn gives_way() -> bool {
    CURRENT.with_borrow(|worlds| {
        worlds.last().is_some_and(|world| world.order.borrow_mut().percent(world.config.forced_yield_percent))
    })
}

/// Whether a program gets memory now: asks the world that runs on this thread.
fn has_memory(bytes: usize) -> bool {
    CURRENT.with_borrow(|worlds| worlds.last().is_none_or(|world| world.has_memory(bytes)))
}

/// Says what replays the worlds that follow on this thread: printed when one of them panics.
pub fn set_replay_line(line: &str) {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            usual(info);
            REPLAY.with_borrow(|line| eprintln!("  replay: {line}"));
        }));
    });
    REPLAY.with_borrow_mut(|current| *current = line.to_string());
}

/// Marks the world as the one running on this thread until dropped.
struct Running;

impl Running {
    fn enter(inner: &Rc<Inner>) -> Running {
        CURRENT.with_borrow_mut(|worlds| worlds.push(inner.clone()));
        Running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|worlds| worlds.pop());
    }
}

impl World {
    /// The default world of `seed`.
    pub fn new(seed: u64) -> World {
        World::with(WorldConfig::new(seed))
    }

    /// A world that behaves as `config` says.
    pub fn with(config: WorldConfig) -> World {
        moraine_platform::sync::set_yield_hook(gives_way);
        moraine_platform::memory::set_gate(has_memory);
        let seed = config.seed;
        let inner = Rc::new_cyclic(|me| Inner {
            me: me.clone(),
            now: Cell::new(0),
            wall_offset: Cell::new(0),
            alive: Cell::new(true),
            order: RefCell::new(Random::for_purpose(seed, "order")),
            entropy: RefCell::new(Random::for_purpose(seed, "entropy")),
            delays: RefCell::new(Random::for_purpose(seed, "delays")),
            tasks: RefCell::new(vec![None]),
            ready: Arc::default(),
            events: RefCell::default(),
            next_event: Cell::new(0),
            polls: Cell::new(0),
            disks: RefCell::default(),
            switch: RefCell::default(),
            fuse: RefCell::default(),
            memory: Memory {
                refused: Cell::new(0),
                largest: Cell::new(usize::MAX),
                too_large: Cell::new(0),
                random: RefCell::new(Random::for_purpose(seed, "memory")),
                program_runs: Cell::new(false),
                count: Cell::new(0),
            },
            trace: Trace::new(config.record),
            config,
        });
        World { inner }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.inner.config.seed
    }

    /// What the code under test sees.
    pub fn platform(&self) -> Platform {
        Platform {
            clock: self.inner.clone(),
            rng: self.inner.clone(),
            spawn: self.inner.clone(),
            offload: self.inner.clone(),
        }
    }

    /// A stream of random numbers for one purpose of the test itself.
    pub fn random(&self, purpose: &str) -> Random {
        Random::for_purpose(self.seed(), purpose)
    }

    /// Plugs in a blank disk of `size` bytes.
    pub fn disk(&self, size: u64, config: DiskConfig) -> Rc<SimDisk> {
        self.disk_with(Image::new(size), config)
    }

    /// Plugs in a disk that holds `image`.
    pub fn disk_with(&self, image: Image, config: DiskConfig) -> Rc<SimDisk> {
        self.inner.plug(image, config, Rc::new(Cell::new(true)))
    }

    pub(crate) fn inner(&self) -> &Rc<Inner> {
        &self.inner
    }

    /// A machine, switched on.
    pub fn machine(&self) -> Rc<Machine> {
        Machine::new(&self.inner)
    }

    /// Calls `what` between two polls, as soon as so many device commands were submitted since the world began. There is
    /// one such call at a time: a later one takes its place.
    pub fn at_command(&self, commands: u64, what: impl FnOnce() + 'static) {
        *self.inner.fuse.borrow_mut() = Some((commands, Box::new(what)));
    }

    /// Takes back what [`World::at_command`] planned, if it has not happened.
    pub fn defuse(&self) {
        self.inner.fuse.take();
    }

    /// All disks, in the order they were plugged in.
    pub fn disks(&self) -> Vec<Rc<SimDisk>> {
        self.inner.disks.borrow().clone()
    }

    /// The network between this world's hosts.
    pub fn switch(&self) -> Rc<Switch> {
        let mut switch = self.inner.switch.borrow_mut();
        switch.get_or_insert_with(|| Switch::new(&self.inner)).clone()
    }

    /// Polls of tasks so far: what the world cost, whatever the machine.
    pub fn polls(&self) -> u64 {
        self.inner.polls.get()
    }

    /// The log of device commands.
    pub fn trace(&self) -> &Trace {
        &self.inner.trace
    }

    /// Virtual time.
    pub fn now(&self) -> Instant {
        Instant(self.inner.now.get())
    }

    /// Sets the wall clock forward or back; monotonic time goes on.
    pub fn jump_wall_clock(&self, by_ns: i64) {
        self.inner.jump_wall_clock(by_ns);
    }

    /// So many in 100,000 buffers that programs on machines ask for are refused from now on.
    pub fn refuse_memory(&self, per_100_000: u64) {
        self.inner.refuse_memory(per_100_000);
    }

    /// How many buffers were refused so far at random, and how many because there was no piece as large.
    pub fn memory_refused(&self) -> (u64, u64) {
        (self.inner.memory.count.get(), self.inner.memory.too_large.get())
    }

    /// Runs `main` and everything spawned until `main` is done.
    ///
    /// Panics with the seed if nothing can happen any more or a limit is reached.
    pub fn run<T>(&self, main: impl Future<Output = T>) -> T {
        match self.try_run(main) {
            Ok(value) => value,
            Err(stall) => panic!("world {} stalled: {stall}", self.seed()),
        }
    }

    /// As [`World::run`], with a stall as a value.
    pub fn try_run<T>(&self, main: impl Future<Output = T>) -> Result<T, Stall> {
        match self.drive(main, u64::MAX)? {
            Ended::Done(value) => Ok(value),
            Ended::PowerCut => unreachable!("nobody asked for one"),
        }
    }

    /// Runs `main` until it is done or `commands` device commands were submitted since the world began; then the power
    /// is off and [`World::crash`] or [`SimDisk::crash_image`] tell what the disks hold.
    pub fn run_to_power_cut<T>(
        &self,
        main: impl Future<Output = T>,
        commands: u64,
    ) -> Result<Ended<T>, Stall> {
        self.drive(main, commands)
    }

    fn drive<T>(&self, main: impl Future<Output = T>, commands: u64) -> Result<Ended<T>, Stall> {
        let inner = &self.inner;
        assert!(inner.alive.get(), "a world whose power was cut does not go on");
        let _running = Running::enter(inner);
        let mut main = pin!(main);
        let waker = inner.waker(MAIN);
        waker.wake_by_ref();
        let main_waker = Waker::from(waker.clone());
        loop {
            if inner.trace.submitted() >= commands {
                // The future is dropped with the power off, so nothing it does then reaches a disk.
                inner.alive.set(false);
                return Ok(Ended::PowerCut);
            }
            inner.blow_fuse();
            if inner.now.get() > inner.config.time_limit.as_nanos() as u64 {
                return Err(inner.stall("time limit reached"));
            }
            match inner.next_ready() {
                Some(MAIN) => {
                    waker.queued.store(false, Ordering::Relaxed);
                    let context = &mut Context::from_waker(&main_waker);
                    if let Poll::Ready(value) = main.as_mut().poll(context) {
                        return Ok(Ended::Done(value));
                    }
                }
                Some(task) => inner.poll_task(task),
                None if inner.happen() => {}
                None => return Err(inner.stall("nothing is left to happen")),
            }
            inner.polls.set(inner.polls.get() + 1);
            if inner.polls.get() > inner.config.poll_limit {
                return Err(inner.stall("poll limit reached"));
            }
        }
    }

    /// Cuts the power: what each disk holds then, with unflushed writes kept, lost or torn as the seed says.
    pub fn crash(&self) -> Vec<Image> {
        self.inner.alive.set(false);
        let mut random = self.random("crash");
        self.disks().iter().map(|disk| disk.crash_image(&mut random)).collect()
    }

    /// What each disk holds if the process dies but the power stays: every completed write is there, those under way
    /// as the seed says.
    pub fn kill(&self) -> Vec<Image> {
        self.inner.alive.set(false);
        let mut random = self.random("kill");
        self.disks().iter().map(|disk| disk.killed_image(&mut random)).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Tasks hold the platform, which holds the tasks: break the ring. With the power off first.
        self.inner.alive.set(false);
        let _running = Running::enter(&self.inner);
        drop(self.inner.tasks.take());
        drop(self.inner.events.take());
        drop(self.inner.fuse.take());
        drop(self.inner.disks.take());
        drop(self.inner.switch.take());
    }
}

impl Inner {
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.get()
    }

    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    pub(crate) fn now_ns(&self) -> u64 {
        self.now.get()
    }

    pub(crate) fn random_for(&self, purpose: &str) -> Random {
        Random::for_purpose(self.config.seed, purpose)
    }

    /// Whether what runs now is a program on a machine, which may be refused memory.
    pub(crate) fn program_runs(&self, runs: bool) {
        self.memory.program_runs.set(runs);
    }

    pub(crate) fn refuse_memory(&self, per_100_000: u64) {
        self.memory.refused.set(per_100_000);
    }

    /// Programs on machines get no buffer of more bytes from now on.
    pub(crate) fn largest_memory(&self, bytes: usize) {
        self.memory.largest.set(bytes);
    }

    pub(crate) fn jump_wall_clock(&self, by_ns: i64) {
        self.wall_offset.set(self.wall_offset.get().wrapping_add(by_ns));
    }

    fn has_memory(&self, bytes: usize) -> bool {
        if !self.memory.program_runs.get() {
            return true;
        }
        if bytes > self.memory.largest.get() {
            self.memory.too_large.set(self.memory.too_large.get() + 1);
            return false;
        }
        let refused = self.memory.refused.get();
        if refused == 0 {
            return true;
        }
        let refuses = self.memory.random.borrow_mut().below(100_000) < refused;
        self.memory.count.set(self.memory.count.get() + u64::from(refuses));
        !refuses
    }

    /// Plugs in a disk that has power as long as `power` says so.
    pub(crate) fn plug(
        self: &Rc<Self>,
        image: Image,
        config: DiskConfig,
        power: Rc<Cell<bool>>,
    ) -> Rc<SimDisk> {
        let mut disks = self.disks.borrow_mut();
        let disk = Rc::new(SimDisk::new(self, disks.len(), image, config, power));
        disks.push(disk.clone());
        disk
    }

    /// What was planned for this number of device commands happens.
    fn blow_fuse(&self) {
        let due = self.fuse.borrow().as_ref().is_some_and(|(at, _)| self.trace.submitted() >= *at);
        if due && let Some((_, what)) = self.fuse.take() {
            what();
        }
    }

    /// Starts a task and says its number.
    pub(crate) fn start(&self, name: &'static str, future: LocalFuture<()>) -> usize {
        let mut tasks = self.tasks.borrow_mut();
        let id = tasks.len();
        let waker = self.waker(id);
        waker.wake_by_ref();
        tasks.push(Some(Task { name, future, waker }));
        id
    }

    /// Ends a task that is not being polled, wherever it is.
    pub(crate) fn end(&self, id: usize) {
        let task = self.tasks.borrow_mut().get_mut(id).and_then(Option::take);
        drop(task);
    }

    /// Lets `call` happen at `at_ns`, after everything already planned for that time.
    pub(crate) fn at(&self, at_ns: u64, call: Box<dyn FnOnce()>) {
        self.plan(at_ns, Happening::Call(call));
    }

    fn plan(&self, at_ns: u64, what: Happening) -> (u64, u64) {
        let key = (at_ns.max(self.now.get()), self.next_event.get());
        self.next_event.set(key.1 + 1);
        self.events.borrow_mut().insert(key, what);
        key
    }

    fn waker(&self, id: TaskId) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { id, queued: AtomicBool::new(false), ready: self.ready.clone() })
    }

    /// A ready task by the seed's choice; now and then an event overtakes.
    fn next_ready(&self) -> Option<TaskId> {
        let mut order = self.order.borrow_mut();
        let mut ready = self.ready.lock().expect("nothing panics while it holds the queue");
        if ready.is_empty() || (order.percent(self.config.early_event_percent) && self.event_is_near()) {
            return None;
        }
        let chosen = order.index(ready.len());
        Some(ready.swap_remove(chosen))
    }

    /// Whether something happens soon enough that a ready task may be that late.
    fn event_is_near(&self) -> bool {
        let next = self.events.borrow().first_key_value().map(|((at, _), _)| *at);
        next.is_some_and(|at| at <= self.now.get() + LATE_NS_MAX)
    }

    /// The next event happens; false if there is none.
    fn happen(&self) -> bool {
        let Some(((at, _), what)) = self.events.borrow_mut().pop_first() else { return false };
        self.now.set(self.now.get().max(at));
        match what {
            Happening::Wake(waker) => waker.wake(),
            Happening::Call(call) => call(),
        }
        true
    }

    fn poll_task(&self, id: TaskId) {
        let Some(mut task) = self.tasks.borrow_mut()[id].take() else { return };
        task.waker.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(task.waker.clone());
        if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.tasks.borrow_mut()[id] = Some(task);
        }
    }

    fn stall(&self, reason: &'static str) -> Stall {
        let waiting = self.tasks.borrow().iter().flatten().map(|task| task.name).collect();
        Stall { reason, at: Instant(self.now.get()), waiting }
    }
}

impl Clock for Inner {
    fn now(&self) -> Instant {
        Instant(self.now.get())
    }

    fn wall(&self) -> Timestamp {
        Timestamp((WALL_AT_START + self.now.get()).wrapping_add_signed(self.wall_offset.get()))
    }

    fn sleep_until(&self, deadline: Instant) -> LocalFuture<()> {
        Box::pin(Sleep { world: self.me.clone(), deadline, planned: None })
    }
}

/// A timer; takes itself out of the plan when dropped.
struct Sleep {
    world: Weak<Inner>,
    deadline: Instant,
    planned: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(world) = self.world.upgrade() else { return Poll::Pending };
        if let Some(key) = self.planned.take() {
            world.events.borrow_mut().remove(&key);
            if world.now.get() >= self.deadline.0 {
                return Poll::Ready(());
            }
        }
        self.planned = Some(world.plan(self.deadline.0, Happening::Wake(cx.waker().clone())));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let (Some(key), Some(world)) = (self.planned, self.world.upgrade()) {
            world.events.borrow_mut().remove(&key);
        }
    }
}

impl Rng for Inner {
    fn fill(&self, out: &mut [u8]) {
        self.entropy.borrow_mut().fill(out);
    }
}

impl Spawn for Inner {
    fn spawn(&self, name: &'static str, future: LocalFuture<()>) {
        self.start(name, future);
    }
}

/// Whether a job ran, and who waits for it.
#[derive(Default)]
struct Ran {
    done: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Offload for Inner {
    fn run(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()> {
        let ran = Rc::new(Ran::default());
        let took = self.delays.borrow_mut().below(OFFLOAD_NS_MAX);
        let finished = ran.clone();
        let finish = move || {
            job();
            finished.done.set(true);
            if let Some(waker) = finished.waker.take() {
                waker.wake();
            }
        };
        self.at(self.now.get() + took, Box::new(finish));
        Box::pin(std::future::poll_fn(move |cx| {
            if ran.done.get() {
                return Poll::Ready(());
            }
            *ran.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        }))
    }
}
