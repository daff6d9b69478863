//! One thread, one queue of tasks, and a clock that jumps to the next timer when nothing is ready: a test never waits.

use super::client::Client;
use super::probe::Probe;
use super::stream::{Limits, duplex};
use moraine_model::Model;
use moraine_nfs::{Config, Ports, Server};
use moraine_platform::{Clock, Instant, LocalFuture, Offload, Platform, Rng, Spawn, Timestamp};
use moraine_share::Share;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

#[derive(Default)]
struct Ready(Mutex<VecDeque<usize>>);

struct TaskWaker {
    id: usize,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut queue = self.ready.0.lock().unwrap();
        if !queue.contains(&self.id) {
            queue.push_back(self.id);
        }
    }
}

/// Reactor, clock and randomness.
#[derive(Default)]
pub struct Reactor {
    tasks: RefCell<Vec<Option<LocalFuture<()>>>>,
    ready: Arc<Ready>,
    now: Cell<u64>,
    timers: RefCell<Vec<(u64, Waker)>>,
    seed: Cell<u64>,
}

impl Reactor {
    fn waker(&self, id: usize) -> Waker {
        Arc::new(TaskWaker { id, ready: self.ready.clone() }).into()
    }

    fn poll_task(&self, id: usize) {
        let Some(mut task) = self.tasks.borrow_mut()[id].take() else { return };
        let waker = self.waker(id);
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.tasks.borrow_mut()[id] = Some(task);
        }
    }

    /// Runs everything that is ready, without letting time pass.
    fn settle(&self) {
        loop {
            let Some(id) = self.ready.0.lock().unwrap().pop_front() else { return };
            self.poll_task(id);
        }
    }

    /// Lets time pass until the next timer; false if there is none.
    fn jump(&self, until: u64) -> bool {
        let next = self.timers.borrow().iter().map(|(at, _)| *at).min();
        let Some(next) = next.filter(|next| *next <= until) else { return false };
        self.now.set(self.now.get().max(next));
        let mut due = Vec::new();
        self.timers.borrow_mut().retain(|(at, waker)| {
            if *at <= next {
                due.push(waker.clone());
            }
            *at > next
        });
        due.into_iter().for_each(Waker::wake);
        true
    }
}

impl Spawn for Reactor {
    fn spawn(&self, _name: &'static str, task: LocalFuture<()>) {
        let id = self.tasks.borrow().len();
        self.tasks.borrow_mut().push(Some(task));
        self.ready.0.lock().unwrap().push_back(id);
    }
}

struct ReactorClock(Rc<Reactor>);

impl Clock for ReactorClock {
    fn now(&self) -> Instant {
        Instant(self.0.now.get())
    }
    fn wall(&self) -> Timestamp {
        Timestamp(1_700_000_000_000_000_000 + self.0.now.get())
    }
    fn sleep_until(&self, deadline: Instant) -> LocalFuture<()> {
        let reactor = self.0.clone();
        Box::pin(poll_fn(move |cx| {
            if reactor.now.get() >= deadline.0 {
                return Poll::Ready(());
            }
            reactor.timers.borrow_mut().push((deadline.0, cx.waker().clone()));
            Poll::Pending
        }))
    }
}

impl Rng for Reactor {
    fn fill(&self, out: &mut [u8]) {
        for byte in out {
            self.seed.set(self.seed.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            *byte = (self.seed.get() >> 56) as u8;
        }
    }
}

struct Inline;

impl Offload for Inline {
    fn run(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()> {
        job();
        Box::pin(std::future::ready(()))
    }
}

/// A server over a watched model, and the reactor they run on.
pub struct World {
    pub reactor: Rc<Reactor>,
    pub platform: Platform,
    pub fs: Rc<Probe>,
    pub share: Rc<Share>,
    pub server: Server<Probe>,
}

impl World {
    pub fn new() -> World {
        World::with(|_| ())
    }

    /// A world whose server is configured otherwise.
    pub fn with(change: impl FnOnce(&mut Config)) -> World {
        World::build(None, change)
    }

    /// A world over an existing filesystem: a restart.
    pub fn over(model: Model) -> World {
        World::build(Some(model), |_| ())
    }

    fn build(model: Option<Model>, change: impl FnOnce(&mut Config)) -> World {
        let reactor = Rc::new(Reactor::default());
        reactor.seed.set(0x5eed);
        let platform = Platform {
            clock: Rc::new(ReactorClock(reactor.clone())),
            rng: reactor.clone(),
            spawn: reactor.clone(),
            offload: Rc::new(Inline),
        };
        // The model's clock is the world's: it stands still while things are ready to run.
        let model = model.unwrap_or_else(|| Model::new(platform.clock.clone(), platform.rng.clone()));
        let fs = Rc::new(Probe::new(model));
        let share = Share::new();
        let ports = Ports { nfs: 2049, mount: 2049, mount_udp: 111, portmap: 111 };
        let mut config = Config::new(ports, 1 << 30, 16 << 20);
        change(&mut config);
        let server = Server::new(&platform, fs.clone(), share.clone(), config);
        World { reactor, platform, fs, share, server }
    }

    /// A connected client with root's credentials.
    pub fn client(&self) -> Client {
        self.client_from("10.0.0.1:900", Limits::default())
    }

    pub fn client_from(&self, address: &str, limits: Limits) -> Client {
        let address: SocketAddr = address.parse().unwrap();
        let (ours, theirs) = duplex(address, "10.0.0.9:2049".parse().unwrap(), limits);
        self.server.serve_stream(theirs);
        Client::new(ours)
    }

    /// Runs `future` and whatever else is ready until it ends; time passes when nothing is ready. Panics when nothing
    /// can ever happen again.
    pub fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let out = Rc::new(RefCell::new(None));
        let place = out.clone();
        self.reactor.spawn("test", Box::pin(async move { *place.borrow_mut() = Some(future.await) }));
        loop {
            self.reactor.settle();
            if let Some(value) = out.take() {
                return value;
            }
            assert!(self.reactor.jump(u64::MAX), "the test waits for something that never comes");
        }
    }

    /// Starts `future` beside the test.
    pub fn start(&self, future: impl Future<Output = ()> + 'static) {
        self.reactor.spawn("beside", Box::pin(future));
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.reactor.tasks.borrow().iter().flatten().count()
    }

    /// Runs everything that is ready; time stands still.
    pub fn settle(&self) {
        self.reactor.settle();
    }

    /// Lets `time` pass.
    pub fn pass(&self, time: Duration) {
        let until = self.reactor.now.get() + time.as_nanos() as u64;
        self.settle();
        while self.reactor.jump(until) {
            self.settle();
        }
        self.reactor.now.set(until);
    }
}
