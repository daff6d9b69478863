//! One flush for many: a flush covers everything answered before it began, so requests that arrive while one runs
//! join the next, and nobody joins one that has begun.

use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::future::Future;
use moraine_fs::vfs::FsResult;
use moraine_platform::sync::Event;

/// The flushes of one volume.
#[derive(Default)]
pub(crate) struct Flushes {
    /// The one that has not begun.
    next: RefCell<Rc<Generation>>,
    running: Cell<bool>,
    ended: Event,
}

#[derive(Default)]
struct Generation {
    result: Cell<Option<FsResult<()>>>,
}

impl Flushes {
    /// Completes when a flush that began after this call has ended, with its result. `run` is called by one of those
    /// who wait for it. The caller must not be dropped half-way: others wait for the flush it runs.
    pub(crate) async fn flush<F: Future<Output = FsResult<()>>>(
        &self,
        run: impl FnOnce() -> F,
    ) -> FsResult<()> {
        let mine = self.next.borrow().clone();
        let lead = self.ended.until(|| match mine.result.get() {
            Some(result) => Some(Err(result)),
            None => (!self.running.replace(true)).then_some(Ok(())),
        });
        if let Err(result) = lead.await {
            return result;
        }
        // Nothing ran, so nobody has begun this generation: it is begun now, and later calls join another.
        self.next.replace(Rc::default());
        let result = run().await;
        mine.result.set(Some(result));
        self.running.set(false);
        self.ended.notify();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use core::pin::Pin;
    use core::task::{Context, Poll, Waker};
    use moraine_fs::FsError;

    type Call<'a> = Pin<Box<dyn Future<Output = FsResult<()>> + 'a>>;

    fn poll(call: &mut Call<'_>) -> Poll<FsResult<()>> {
        call.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn nbd_06_those_who_come_while_a_flush_runs_share_the_next_one() {
        let (flushes, begun, gate) = (Flushes::default(), Cell::new(0), Event::new());
        let call = || -> Call<'_> {
            Box::pin(flushes.flush(|| {
                begun.set(begun.get() + 1);
                let result = if begun.get() == 2 { Err(FsError::DeviceWrite) } else { Ok(()) };
                let gate = &gate;
                async move {
                    gate.wait().await;
                    result
                }
            }))
        };
        let mut first = call();
        assert!(poll(&mut first).is_pending());
        let mut later = [call(), call(), call()];
        assert!(later.iter_mut().all(|c| poll(c).is_pending()));
        assert_eq!(begun.get(), 1, "they wait, they do not run");
        gate.notify();
        assert_eq!(poll(&mut first), Poll::Ready(Ok(())));
        assert!(later.iter_mut().all(|c| poll(c).is_pending()), "the first flush does not cover them");
        assert_eq!(begun.get(), 2);
        let mut last = call();
        assert!(poll(&mut last).is_pending());
        gate.notify();
        for call in &mut later {
            assert_eq!(poll(call), Poll::Ready(Err(FsError::DeviceWrite)), "one flush, one result for all");
        }
        assert!(poll(&mut last).is_pending());
        gate.notify();
        assert_eq!(poll(&mut last), Poll::Ready(Ok(())));
        assert_eq!(begun.get(), 3);
    }
}
