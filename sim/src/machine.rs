//! A machine of a world: tasks and disks that lose power together, while the rest of the world, its clients and its
//! network, goes on.

use crate::disk::{DiskConfig, Image, SimDisk};
use crate::world::Inner;
use moraine_platform::sync::Event;
use moraine_platform::{LocalFuture, Platform, Spawn};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

/// What is in one box, from power on to power off.
pub struct Machine {
    world: Weak<Inner>,
    power: Rc<Cell<bool>>,
    /// All it ever started; numbers of tasks are not used again.
    tasks: RefCell<Vec<usize>>,
    turned: Rc<Event>,
}

impl Machine {
    pub(crate) fn new(world: &Rc<Inner>) -> Rc<Machine> {
        let (world, power) = (Rc::downgrade(world), Rc::new(Cell::new(true)));
        Rc::new(Machine { world, power, tasks: RefCell::default(), turned: Rc::default() })
    }

    /// What runs on it sees this.
    pub fn platform(self: &Rc<Self>) -> Platform {
        let world = self.world.upgrade().expect("a machine is used within its world");
        Platform { clock: world.clone(), rng: world.clone(), spawn: self.clone(), offload: world }
    }

    /// Plugs in a disk that holds `image`.
    pub fn disk_with(&self, image: Image, config: DiskConfig) -> Rc<SimDisk> {
        let world = self.world.upgrade().expect("a machine is used within its world");
        world.plug(image, config, self.power.clone())
    }

    /// Notified whenever one of its programs had its turn.
    pub(crate) fn turned(&self) -> &Rc<Event> {
        &self.turned
    }

    /// Starts what is in the box and is no program: a reactor, a device.
    pub(crate) fn start(&self, name: &'static str, task: LocalFuture<()>) {
        let Some(world) = self.world.upgrade().filter(|_| self.power.get()) else { return };
        self.tasks.borrow_mut().push(world.start(name, task));
    }

    /// Whether it has power.
    pub fn is_on(&self) -> bool {
        self.power.get()
    }

    /// Takes its power away, for good: its tasks are gone, and nothing reaches its disks any more. Not to be called by
    /// one of its own tasks.
    pub fn power_off(&self) {
        self.power.set(false);
        let tasks = self.tasks.take();
        if let Some(world) = self.world.upgrade() {
            tasks.into_iter().for_each(|id| world.end(id));
        }
    }
}

impl Spawn for Machine {
    fn spawn(&self, name: &'static str, task: LocalFuture<()>) {
        let (world, turned) = (self.world.clone(), self.turned.clone());
        self.start(name, Box::pin(Program { task, world, turned }));
    }
}

/// A task of the software that runs on the machine. What it does not get there is memory, if the world is short of it.
struct Program {
    task: LocalFuture<()>,
    world: Weak<Inner>,
    turned: Rc<Event>,
}

impl Future for Program {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let world = self.world.upgrade();
        let set = |runs| world.iter().for_each(|world| world.program_runs(runs));
        set(true);
        let polled = self.task.as_mut().poll(cx);
        set(false);
        self.turned.notify();
        polled
    }
}
