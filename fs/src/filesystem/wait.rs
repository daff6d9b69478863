//! Waiting for several things: all of a set of futures, or an event with a deadline.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::task::Poll;

/// Runs all futures side by side and returns their results in order. All are polled at once, in the step of the first
/// poll.
pub(crate) async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    enum State<F: Future> {
        Running(Pin<Box<F>>),
        Done(Option<F::Output>),
    }
    let mut states: Vec<State<F>> = futures.map(|f| State::Running(Box::pin(f))).collect();
    poll_fn(|cx| {
        let mut running = false;
        for state in &mut states {
            if let State::Running(future) = state {
                match future.as_mut().poll(cx) {
                    Poll::Ready(output) => *state = State::Done(Some(output)),
                    Poll::Pending => running = true,
                }
            }
        }
        if running { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    let results = states.into_iter().filter_map(|state| match state {
        State::Done(output) => output,
        State::Running(_) => None,
    });
    results.collect()
}

/// Waits for whichever is ready first.
pub(crate) async fn either(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        let ready = a.as_mut().poll(cx).is_ready() || b.as_mut().poll(cx).is_ready();
        if ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await
}
