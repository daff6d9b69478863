//! Waiting between tasks of one reactor: no threads, so no locks.

use crate::memory::Usage;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Poll, Waker};

static YIELD_HOOK: spin::Once<fn() -> bool> = spin::Once::new();

/// Lets `hook` decide at every [`yield_point`] whether other tasks run first. The simulator's way to make every await
/// a point where the world changes; no other platform sets it. The first call wins.
pub fn set_yield_hook(hook: fn() -> bool) {
    YIELD_HOOK.call_once(|| hook);
}

/// An await which goes on at once, except in the simulator, where other tasks may run first. It stands where a wait is
/// usually satisfied already (a cached node, a free permit), so that the rare case is tested as often as the usual one.
pub async fn yield_point() {
    let mut go_on = YIELD_HOOK.get().is_none_or(|gives_way| !gives_way());
    poll_fn(|cx| {
        if go_on {
            return Poll::Ready(());
        }
        go_on = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// "Something changed": tasks wait on it and look again at the state they care about.
///
/// Wake-ups are counted, so that a notification between looking and waiting is never lost: take [`Event::ticket`]
/// before looking, then wait [`Event::after`] it.
#[derive(Default)]
pub struct Event {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Event {
    /// A new event nobody waits on.
    pub fn new() -> Event {
        Event::default()
    }

    /// The number of notifications so far.
    pub fn ticket(&self) -> u64 {
        self.count.get()
    }

    /// Wakes everyone who waits.
    pub fn notify(&self) {
        self.count.set(self.count.get() + 1);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Waits for a notification after `ticket` was taken.
    pub async fn after(&self, ticket: u64) {
        poll_fn(|cx| {
            if self.count.get() > ticket {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|w| w.will_wake(cx.waker())) {
                waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Waits for the next notification.
    pub async fn wait(&self) {
        self.after(self.ticket()).await
    }

    /// Waits until `ready` returns something, looking once at first and again after every notification.
    pub async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        yield_point().await;
        loop {
            let ticket = self.ticket();
            if let Some(value) = ready() {
                return value;
            }
            self.after(ticket).await;
        }
    }
}

/// Which of two futures was ready first.
pub enum Either<A, B> {
    /// The first.
    First(A),
    /// The second.
    Second(B),
}

/// Waits for the first of two futures and drops the other; the first one wins a tie.
pub async fn either<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> Either<A, B> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        if let Poll::Ready(a) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::First(a));
        }
        b.as_mut().poll(cx).map(Either::Second)
    })
    .await
}

/// A counted resource with first-come, first-served waiting (a budget of bytes, of requests, of slots).
pub struct Semaphore {
    free: Cell<u64>,
    all: u64,
    least_free: Cell<u64>,
    waited: Cell<u64>,
    queue: RefCell<VecDeque<Waiting>>,
    next: Cell<u64>,
}

/// Somebody who waits for `count` units.
struct Waiting {
    turn: u64,
    count: u64,
    waker: Option<Waker>,
}

/// Units held of a [`Semaphore`]; given back when dropped.
pub struct Permit {
    owner: Rc<Semaphore>,
    count: u64,
}

impl Semaphore {
    /// A resource of `count` units.
    pub fn new(count: u64) -> Rc<Semaphore> {
        Rc::new(Semaphore {
            free: Cell::new(count),
            all: count,
            least_free: Cell::new(count),
            waited: Cell::new(0),
            queue: RefCell::default(),
            next: Cell::new(0),
        })
    }

    /// Units free now.
    pub fn free(&self) -> u64 {
        self.free.get()
    }

    /// How it is used, as a budget of bytes called `name`; those who waited count as refused.
    pub fn usage(&self, name: &'static str) -> Usage {
        Usage {
            name,
            limit: self.all,
            used: self.all - self.free.get(),
            peak: self.all - self.least_free.get(),
            refused: self.waited.get(),
        }
    }

    /// Takes `count` units if they are free and nobody waits for them.
    pub fn try_take(self: &Rc<Self>, count: u64) -> Option<Permit> {
        (self.queue.borrow().is_empty() && self.free.get() >= count).then(|| self.grant(count))
    }

    /// Waits for `count` units, in order of arrival.
    pub async fn take(self: &Rc<Self>, count: u64) -> Permit {
        yield_point().await;
        if let Some(permit) = self.try_take(count) {
            return permit;
        }
        self.waited.set(self.waited.get() + 1);
        let turn = self.next.get();
        self.next.set(turn + 1);
        self.queue.borrow_mut().push_back(Waiting { turn, count, waker: None });
        let guard = Turn { owner: self, turn };
        let permit = poll_fn(|cx| {
            let mut queue = self.queue.borrow_mut();
            if queue.front().is_some_and(|first| first.turn == turn) && self.free.get() >= count {
                return Poll::Ready(self.grant(count));
            }
            let own = queue.iter_mut().find(|waiting| waiting.turn == turn);
            let own = own.expect("it is in the queue until its guard is gone");
            if !own.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                own.waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        drop(guard);
        permit
    }

    /// Wakes the first in the queue if there is enough for it. Nobody else: however many wait, what comes back costs one
    /// poll.
    fn wake_first(&self) {
        let mut queue = self.queue.borrow_mut();
        let first = queue.front_mut().filter(|first| first.count <= self.free.get());
        let waker = first.and_then(|first| first.waker.take());
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn grant(self: &Rc<Self>, count: u64) -> Permit {
        self.free.set(self.free.get() - count);
        self.least_free.set(self.least_free.get().min(self.free.get()));
        Permit { owner: self.clone(), count }
    }
}

/// A place in a semaphore's queue; leaves it when dropped, granted or not.
struct Turn<'a> {
    owner: &'a Semaphore,
    turn: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.owner.queue.borrow_mut().retain(|waiting| waiting.turn != self.turn);
        self.owner.wake_first();
    }
}

impl Permit {
    /// Units held.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Splits `count` units off.
    pub fn split(&mut self, count: u64) -> Permit {
        assert!(count <= self.count, "a permit cannot give more than it holds");
        self.count -= count;
        Permit { owner: self.owner.clone(), count }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.owner.free.set(self.owner.free.get() + self.count);
        self.owner.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use core::pin::Pin;
    use core::task::Context;

    fn poll<T>(f: &mut Pin<Box<impl Future<Output = T>>>) -> Poll<T> {
        f.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_notification_between_look_and_wait_is_seen() {
        let event = Event::new();
        let ticket = event.ticket();
        event.notify();
        let mut wait = Box::pin(event.after(ticket));
        assert!(poll(&mut wait).is_ready());
        let mut wait = Box::pin(event.wait());
        assert!(poll(&mut wait).is_pending());
        event.notify();
        assert!(poll(&mut wait).is_ready());
    }

    #[test]
    fn permits_are_granted_in_order_and_come_back() {
        let pool = Semaphore::new(10);
        let first = pool.try_take(8).unwrap();
        let mut large = Box::pin(pool.take(6));
        let mut small = Box::pin(pool.take(1));
        assert!(poll(&mut large).is_pending());
        assert!(poll(&mut small).is_pending(), "a small request must not overtake a large one for ever");
        drop(first);
        let Poll::Ready(held) = poll(&mut large) else { panic!("six of ten are free") };
        assert!(poll(&mut small).is_ready());
        drop(held);
        assert_eq!(pool.free(), 10);
        let usage = pool.usage("pool");
        assert_eq!((usage.limit, usage.used, usage.peak, usage.refused), (10, 0, 8, 2));
        let mut abandoned = Box::pin(pool.take(11));
        assert!(poll(&mut abandoned).is_pending());
        drop(abandoned);
        assert!(pool.try_take(10).is_some());
    }

    #[test]
    fn what_comes_back_wakes_the_first_who_waits_and_nobody_else() {
        use alloc::sync::Arc;
        use core::sync::atomic::{AtomicUsize, Ordering};
        struct Count(AtomicUsize);
        impl alloc::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let pool = Semaphore::new(2);
        let mut held = pool.try_take(2).unwrap();
        let mut crowd: Vec<_> = (0..100).map(|_| Box::pin(pool.take(1))).collect();
        assert!(crowd.iter_mut().all(|one| one.as_mut().poll(&mut cx).is_pending()));
        drop(held.split(1));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        drop(held);
        assert_eq!(
            woken.0.load(Ordering::Relaxed),
            1,
            "it is awake already, and passes on what it does not take"
        );
        let Poll::Ready(first) = crowd[0].as_mut().poll(&mut cx) else { panic!("one unit is free") };
        assert_eq!(woken.0.load(Ordering::Relaxed), 2, "the next");
        // The next gives up: the one behind it is woken instead.
        drop(crowd.remove(1));
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
        drop(first);
        assert!(crowd[1].as_mut().poll(&mut cx).is_ready());
    }
}
