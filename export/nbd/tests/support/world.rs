//! Tasks of one thread in virtual time: time stands still while anything can run, then leaps to the next timer.

use moraine_platform::{Clock, Instant, LocalFuture, Offload, Platform, Rng, Spawn, Timestamp};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

#[derive(Clone)]
pub struct World(Rc<Inner>);

struct Inner {
    now: Cell<u64>,
    tasks: RefCell<BTreeMap<u64, LocalFuture<()>>>,
    ready: Arc<Mutex<VecDeque<u64>>>,
    next: Cell<u64>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
}

struct Bell {
    task: u64,
    ready: Arc<Mutex<VecDeque<u64>>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap();
        if !ready.contains(&self.task) {
            ready.push_back(self.task);
        }
    }
}

impl World {
    pub fn new() -> World {
        World(Rc::new(Inner {
            now: Cell::new(0),
            tasks: RefCell::default(),
            ready: Arc::default(),
            next: Cell::new(1),
            timers: RefCell::default(),
        }))
    }

    pub fn platform(&self) -> Platform {
        Platform {
            clock: Rc::new(self.clone()),
            rng: Rc::new(self.clone()),
            spawn: Rc::new(self.clone()),
            offload: Rc::new(self.clone()),
        }
    }

    /// Runs everything until `main` ends. Panics if nothing can go on and no timer is left.
    pub fn run<T>(&self, main: impl Future<Output = T>) -> T {
        let mut main = Box::pin(main);
        let waker = self.waker(0);
        self.0.ready.lock().unwrap().push_back(0);
        loop {
            let Some(task) = self.0.ready.lock().unwrap().pop_front() else {
                let timer = self.0.timers.borrow_mut().pop_first();
                let ((at, _), waker) = timer.expect("everything waits and no timer is left");
                self.0.now.set(self.0.now.get().max(at));
                waker.wake();
                continue;
            };
            if task == 0 {
                if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return value;
                }
                continue;
            }
            let Some(mut future) = self.0.tasks.borrow_mut().remove(&task) else { continue };
            if future.as_mut().poll(&mut Context::from_waker(&self.waker(task))).is_pending() {
                self.0.tasks.borrow_mut().insert(task, future);
            }
        }
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.0.tasks.borrow().len()
    }

    /// Lets everything run that can without time passing.
    pub async fn settle(&self) {
        // Each round gives every ready task a turn; a chain of tasks that wake each other is much shorter.
        for _ in 0..10_000 {
            let mut yielded = false;
            std::future::poll_fn(|cx| {
                if std::mem::replace(&mut yielded, true) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            if self.0.ready.lock().unwrap().is_empty() {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    fn waker(&self, task: u64) -> Waker {
        Waker::from(Arc::new(Bell { task, ready: self.0.ready.clone() }))
    }
}

impl Spawn for World {
    fn spawn(&self, _name: &'static str, task: LocalFuture<()>) {
        let id = self.0.next.replace(self.0.next.get() + 1);
        self.0.tasks.borrow_mut().insert(id, task);
        self.0.ready.lock().unwrap().push_back(id);
    }
}

impl Clock for World {
    fn now(&self) -> Instant {
        Instant(self.0.now.get())
    }

    fn wall(&self) -> Timestamp {
        Timestamp(1_700_000_000_000_000_000 + self.0.now.get())
    }

    fn sleep_until(&self, deadline: Instant) -> LocalFuture<()> {
        let id = self.0.next.replace(self.0.next.get() + 1);
        Box::pin(Sleep { world: self.clone(), key: (deadline.0, id) })
    }
}

struct Sleep {
    world: World,
    key: (u64, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.world.0.now.get() >= self.key.0 {
            return Poll::Ready(());
        }
        self.world.0.timers.borrow_mut().insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.world.0.timers.borrow_mut().remove(&self.key);
    }
}

impl Rng for World {
    fn fill(&self, out: &mut [u8]) {
        out.fill(4);
    }
}

impl Offload for World {
    fn run(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()> {
        Box::pin(async move { job() })
    }
}
