//! The reactor: one core's tasks, timers and devices. It runs while there is something to do and sleeps otherwise.
//!
//! Interrupts stay off while it runs: they only matter for ending its sleep, and `sti; hlt` takes one that came in
//! meanwhile at once. So no wake-up gets lost, and a hundred interrupts of a busy time cost one.

use crate::cpu::{apic, cores, traps};
use crate::machine::{clock, power};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use async_task::Runnable;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::task::{Context, Poll, Waker};
use kernel_parts::timers::{Alarm, TimerKey, Timers};
use moraine_drivers::Service;
use moraine_platform::{Clock, Instant, LocalFuture, Offload, Platform, Spawn, Timestamp};
use spin::Mutex;
use x86_64::instructions::interrupts;

/// Longest sleep, so that the local timer's 32 bits suffice at any rate.
const SLEEP_NS_MAX: u64 = 1_000_000_000;
/// Sleep while a device without interrupts has work.
const POLLED_NS: u64 = 100_000;
/// Room for ready tasks made at the start, so that waking needs no memory under pressure.
const READY_ROOM: usize = 1024;

/// Tasks that are ready. Second cores add to it when an offloaded job is done.
static READY: Mutex<VecDeque<Runnable>> = Mutex::new(VecDeque::new());
/// Whether the reactor's core sleeps, so that another has to interrupt it; and that core's id.
static SLEEPING: AtomicBool = AtomicBool::new(false);
static CORE: AtomicU32 = AtomicU32::new(0);

/// Makes a task ready. From any core.
fn schedule(task: Runnable) {
    READY.lock().push_back(task);
    if SLEEPING.swap(false, Ordering::SeqCst) {
        apic::send(CORE.load(Ordering::Relaxed), apic::WAKE);
    }
}

/// The platform on bare metal, and the devices that it drives.
pub(crate) struct Reactor {
    core: Rc<Core>,
    services: RefCell<Vec<Rc<dyn Service>>>,
    polled: bool,
    alarm: Cell<Alarm>,
}

#[derive(Default)]
struct Core {
    timers: Rc<RefCell<Timers>>,
}

impl Reactor {
    /// A reactor on this core. `polled`: devices cannot interrupt, so it looks at them by time.
    pub(crate) fn new(services: Vec<Rc<dyn Service>>, polled: bool) -> Reactor {
        CORE.store(apic::id(), Ordering::Relaxed);
        READY.lock().reserve(READY_ROOM);
        Reactor { core: Rc::default(), services: RefCell::new(services), polled, alarm: Cell::default() }
    }

    /// What it offers to everything above.
    pub(crate) fn platform(&self) -> Platform {
        Platform {
            clock: self.core.clone(),
            rng: Rc::new(crate::random::Random::new()),
            spawn: self.core.clone(),
            offload: self.core.clone(),
        }
    }

    /// Runs everything until `main` is done. `button` is called when the power button is pressed.
    pub(crate) fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static, button: impl Fn()) -> T {
        let result: Rc<RefCell<Option<T>>> = Rc::default();
        let slot = result.clone();
        self.core.spawn("main", Box::pin(async move { *slot.borrow_mut() = Some(main.await) }));
        interrupts::disable();
        let mut presses = traps::count(apic::POWER);
        loop {
            self.turn();
            if let Some(result) = result.borrow_mut().take() {
                return result;
            }
            if traps::count(apic::POWER) != presses {
                presses = traps::count(apic::POWER);
                if power::button_pressed() {
                    button();
                }
            }
            self.sleep_if_idle();
        }
    }

    /// Runs what is ready, fires timers, drives devices, once.
    fn turn(&self) {
        // Those that become ready meanwhile wait for the next turn, so that devices get theirs.
        let mut batch = READY.lock().len();
        while batch > 0 {
            let task = READY.lock().pop_front();
            let Some(task) = task else { break };
            task.run();
            batch -= 1;
        }
        loop {
            let due = self.core.timers.borrow_mut().take_due(clock::now_ns());
            let Some(waker) = due else { break };
            waker.wake();
        }
        let mut busy = true;
        for _ in 0..2 {
            if busy {
                busy = false;
                for service in self.services.borrow().iter() {
                    busy |= service.poll();
                }
            }
        }
    }

    fn sleep_if_idle(&self) {
        if !READY.lock().is_empty() {
            return;
        }
        let services = self.services.borrow();
        if !services.iter().all(|service| service.arm()) {
            return;
        }
        let now = clock::now_ns();
        let mut until = now + if self.polled { POLLED_NS } else { SLEEP_NS_MAX };
        until = until.min(self.core.timers.borrow().next_ns().unwrap_or(u64::MAX));
        for service in services.iter() {
            until = until.min(service.deadline().map_or(u64::MAX, |at| at.0));
        }
        if until <= now {
            return;
        }
        // A task made ready after the look below finds the mark and sends an interrupt.
        SLEEPING.store(true, Ordering::SeqCst);
        if READY.lock().is_empty() {
            let mut alarm = self.alarm.get();
            if alarm.must_be_set(now, until, traps::count(apic::TIMER)) {
                apic::set_timer(clock::timer_ticks(until - now));
                self.alarm.set(alarm);
            }
            interrupts::enable_and_hlt();
            interrupts::disable();
        }
        SLEEPING.store(false, Ordering::SeqCst);
    }
}

impl Clock for Core {
    fn now(&self) -> Instant {
        Instant(clock::now_ns())
    }

    fn wall(&self) -> Timestamp {
        Timestamp(clock::wall_ns())
    }

    fn sleep_until(&self, deadline: Instant) -> LocalFuture<()> {
        Box::pin(Sleep { deadline, key: None, timers: self.timers.clone() })
    }
}

struct Sleep {
    deadline: Instant,
    key: Option<TimerKey>,
    timers: Rc<RefCell<Timers>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if clock::now_ns() >= self.deadline.0 {
            return Poll::Ready(());
        }
        let key = match self.key {
            Some(key) => {
                self.timers.borrow_mut().update(key, cx.waker());
                key
            }
            None => self.timers.borrow_mut().add(self.deadline.0, cx.waker().clone()),
        };
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timers.borrow_mut().remove(key);
        }
    }
}

impl Spawn for Core {
    fn spawn(&self, _name: &'static str, task: LocalFuture<()>) {
        // SAFETY: the future is not `Send`: tasks are run and dropped by `Reactor::turn` only, on the one core that
        // spawns them. `schedule` is `Send`, `Sync` and `'static`, so wakers may be used anywhere.
        let (runnable, task) = unsafe { async_task::spawn_unchecked(task, schedule) };
        task.detach();
        runnable.schedule();
    }
}

/// A job under way on another core.
struct Done {
    finished: AtomicBool,
    waiter: Mutex<Option<Waker>>,
}

impl Offload for Core {
    fn run(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()> {
        let done = Arc::new(Done { finished: AtomicBool::new(false), waiter: Mutex::new(None) });
        let there = done.clone();
        let submitted = cores::submit(Box::new(move || {
            job();
            there.finished.store(true, Ordering::Release);
            let waiter = there.waiter.lock().take();
            if let Some(waker) = waiter {
                waker.wake();
            }
        }));
        if let Err(job) = submitted {
            job();
        }
        Box::pin(poll_fn(move |cx| {
            if done.finished.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            *done.waiter.lock() = Some(cx.waker().clone());
            // It may have finished between the look and the note.
            if done.finished.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        }))
    }
}
