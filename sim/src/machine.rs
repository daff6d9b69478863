//! A machine of a world: tasks and disks that lose power together, while the rest of the world, its clients and its
//! network, goes on.

use crate::disk::{DiskConfig, Image, SimDisk};
use crate::world::Inner;
use moraine_platform::{LocalFuture, Platform, Spawn};
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

/// What is in one box, from power on to power off.
pub struct Machine {
    world: Weak<Inner>,
    power: Rc<Cell<bool>>,
    /// All it ever started; numbers of tasks are not used again.
    tasks: RefCell<Vec<usize>>,
}

impl Machine {
    pub(crate) fn new(world: &Rc<Inner>) -> Rc<Machine> {
        let (world, power) = (Rc::downgrade(world), Rc::new(Cell::new(true)));
        Rc::new(Machine { world, power, tasks: RefCell::default() })
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
        let Some(world) = self.world.upgrade().filter(|_| self.power.get()) else { return };
        self.tasks.borrow_mut().push(world.start(name, task));
    }
}
