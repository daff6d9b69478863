//! A seeded world: tasks run one at a time, and time jumps to the next timer when all of them wait.

use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use moraine_platform::{Clock, Instant, LocalFuture, Offload, Platform, Rng, Spawn, Timestamp};
use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::vec::Vec;

/// The world; clones share it.
#[derive(Clone)]
pub(super) struct World(Rc<Inner>);

struct Inner {
    now: Cell<u64>,
    random: Cell<u64>,
    tasks: RefCell<Vec<Option<LocalFuture<()>>>>,
    ready: Arc<Mutex<VecDeque<usize>>>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    next_timer: Cell<u64>,
    /// Task turns so far: what the whole world cost.
    turns: Cell<u64>,
}

struct Wake {
    task: usize,
    ready: Arc<Mutex<VecDeque<usize>>>,
}

impl std::task::Wake for Wake {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap();
        if !ready.contains(&self.task) {
            ready.push_back(self.task);
        }
    }
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        World(Rc::new(Inner {
            now: Cell::new(0),
            random: Cell::new(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15)),
            tasks: RefCell::default(),
            ready: Arc::default(),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
            turns: Cell::new(0),
        }))
    }

    pub(super) fn platform(&self) -> Platform {
        let this = Rc::new(self.clone());
        Platform { clock: this.clone(), rng: this.clone(), spawn: this.clone(), offload: this }
    }

    pub(super) fn turns(&self) -> u64 {
        self.0.turns.get()
    }

    /// Starts a task.
    pub(super) fn start(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn("test", Box::pin(task));
    }

    /// Runs the world until `main` is done. Panics when nothing can happen any more before that.
    pub(super) fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.start(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            let next = self.0.ready.lock().unwrap().pop_front();
            if let Some(task) = next {
                self.turn(task);
                if let Some(value) = result.borrow_mut().take() {
                    return value;
                }
                continue;
            }
            let first = self.0.timers.borrow_mut().pop_first();
            let Some(((at, _), waker)) = first else { panic!("the world stands still at {:?}", self.now()) };
            self.0.now.set(at.max(self.0.now.get()));
            waker.wake();
        }
    }

    fn turn(&self, task: usize) {
        self.0.turns.set(self.0.turns.get() + 1);
        let Some(mut future) = self.0.tasks.borrow_mut()[task].take() else { return };
        let waker = Waker::from(Arc::new(Wake { task, ready: self.0.ready.clone() }));
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.0.tasks.borrow_mut()[task] = Some(future);
        }
    }
}

struct Sleep {
    world: World,
    deadline: u64,
    set: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.world.0.now.get() >= self.deadline {
            return Poll::Ready(());
        }
        let key = self.set.unwrap_or_else(|| {
            let id = self.world.0.next_timer.get();
            self.world.0.next_timer.set(id + 1);
            (self.deadline, id)
        });
        self.set = Some(key);
        self.world.0.timers.borrow_mut().insert(key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.set {
            self.world.0.timers.borrow_mut().remove(&key);
        }
    }
}

impl Clock for World {
    fn now(&self) -> Instant {
        Instant(self.0.now.get())
    }
    fn wall(&self) -> Timestamp {
        Timestamp(self.0.now.get())
    }
    fn sleep_until(&self, deadline: Instant) -> LocalFuture<()> {
        Box::pin(Sleep { world: self.clone(), deadline: deadline.0, set: None })
    }
}

impl Rng for World {
    fn fill(&self, out: &mut [u8]) {
        for byte in out {
            // splitmix64
            let state = self.0.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
            self.0.random.set(state);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (z ^ (z >> 31)) as u8;
        }
    }
}

impl Spawn for World {
    fn spawn(&self, _name: &'static str, task: LocalFuture<()>) {
        let id = self.0.tasks.borrow().len();
        self.0.tasks.borrow_mut().push(Some(task));
        self.0.ready.lock().unwrap().push_back(id);
    }
}

impl Offload for World {
    fn run(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()> {
        job();
        Box::pin(core::future::ready(()))
    }
}
