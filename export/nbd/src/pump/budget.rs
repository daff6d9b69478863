//! Memory for payload: nothing is received, and nothing read, before its bytes were granted.
//!
//! Half of the budget is divided among the connections, one piece each; the other half is for whoever comes first, up
//! to a bound. So clients that stop reading or sending can hold at most the common half, and honest ones always have
//! a piece of their own to go on with.

use alloc::rc::Rc;
use moraine_platform::memory::Meter;
use moraine_platform::sync::{Either, Permit, Semaphore, either};

/// What each connection has for itself, and the piece in which payload is received, in bytes: an extent's largest size.
pub(crate) const PIECE: u64 = 128 << 10;
/// What a connection may hold of the common half, in bytes.
const CONNECTION_MAX: u64 = 2 << 20;

/// A connection's view of the budget.
pub(crate) struct Budget {
    own: Rc<Semaphore>,
    mine_of_common: Rc<Semaphore>,
    common: Rc<Semaphore>,
    pieces: Rc<Meter>,
    most: u64,
}

/// Bytes granted; given back when dropped.
pub(crate) struct Grant {
    /// How many.
    pub(crate) bytes: u64,
    _permits: (Permit, Option<Permit>),
    _piece: Option<Piece>,
}

/// Counts bytes granted out of a connection's own.
struct Piece(Rc<Meter>, usize);

impl Piece {
    fn new(meter: &Rc<Meter>, bytes: u64) -> Piece {
        meter.add(bytes as usize);
        Piece(meter.clone(), bytes as usize)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.0.sub(self.1);
    }
}

impl Budget {
    /// For a new connection, beside the `common` half, which held `common_size` bytes at first; `pieces` counts what
    /// connections hold of their own.
    pub(crate) fn new(common: Rc<Semaphore>, common_size: u64, pieces: Rc<Meter>) -> Budget {
        let most = CONNECTION_MAX.min(common_size);
        Budget { own: Semaphore::new(PIECE), mine_of_common: Semaphore::new(most), common, pieces, most }
    }

    /// Waits for up to `wanted` bytes: all of them if they are at most [`PIECE`], and at least that many otherwise.
    pub(crate) async fn take(&self, wanted: u64) -> Grant {
        let wanted = wanted.min(self.most.max(PIECE));
        let least = wanted.min(PIECE);
        if let Some(mine) = self.mine_of_common.try_take(wanted)
            && let Some(common) = self.common.try_take(wanted)
        {
            return Grant { bytes: wanted, _permits: (mine, Some(common)), _piece: None };
        }
        let common = async {
            let mine = self.mine_of_common.take(wanted).await;
            (mine, Some(self.common.take(wanted).await))
        };
        match either(common, self.own.take(least)).await {
            Either::First(permits) => Grant { bytes: wanted, _permits: permits, _piece: None },
            Either::Second(own) => {
                let piece = Some(Piece::new(&self.pieces, least));
                Grant { bytes: least, _permits: (own, None), _piece: piece }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use alloc::vec::Vec;
    use core::future::Future;
    use core::task::{Context, Poll, Waker};

    fn now<T>(f: impl Future<Output = T>) -> Option<T> {
        match Box::pin(f).as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn those_who_hold_the_common_half_leave_everybody_a_piece() {
        let common = Semaphore::new(4 << 20);
        let pieces = Rc::new(Meter::default());
        let budget = |_| Budget::new(common.clone(), 4 << 20, pieces.clone());
        let budgets: Vec<_> = (0..8).map(budget).collect();
        let mut held = Vec::new();
        for greedy in &budgets[..4] {
            while let Some(grant) = now(greedy.take(1 << 20)) {
                held.push(grant);
            }
        }
        let total: u64 = held.iter().map(|g| g.bytes).sum();
        assert_eq!(total, (4 << 20) + 4 * PIECE, "the common half and a piece each");
        for honest in &budgets[4..] {
            let piece = now(honest.take(PIECE)).expect("its own piece is left");
            assert!(now(honest.take(1)).is_none(), "and no more");
            drop(piece);
            assert_eq!(now(honest.take(1 << 20)).map(|g| g.bytes), Some(PIECE));
        }
        drop(held);
        assert_eq!((common.free(), pieces.bytes()), (4 << 20, 0));
        assert_eq!(pieces.usage("", 0).peak, 5 * PIECE, "four of the greedy, one of an honest one at a time");
    }

    #[test]
    fn more_than_a_connection_may_hold_is_granted_in_part() {
        let budget = Budget::new(Semaphore::new(1 << 20), 1 << 20, Rc::default());
        assert_eq!(now(budget.take(1 << 30)).map(|g| g.bytes), Some(1 << 20));
    }
}
