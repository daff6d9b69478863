//! What may be in work at once: calls, and bytes of file data. A waiting connection does not read its socket.
//!
//! Half of the data's budget is divided among the connections, an equal piece each, and each connection has a call of its
//! own. So peers that stop reading or sending, however many, hold at most what all share, and an honest one always has
//! something to go on with: while nothing else of it is in work it need not wait for others, and what does not fit its piece
//! is read or written short, which its client makes up for.
//!
//! A connection that ended leaves its calls in work behind, and they keep what they hold until they end. So calls and pieces
//! of connections' own are counted over all connections that ever were: there are as many as connections may be open, and
//! who opens one after another while the disk stands still gets no more of them.
//!
//! The other half is granted from three purses, always in the same order: the connection's, its client's (half of what is
//! shared, so that one client can never starve the rest of it, however many connections it opens), and the server's.

use super::config::{CALLS_MAX, CONNECTION_CALLS_MAX, CONNECTION_PAYLOAD_MAX, Config, PIECE_MIN};
use alloc::rc::{Rc, Weak};
use core::cell::{Cell, RefCell};
use core::net::IpAddr;
use hashbrown::HashMap;
use moraine_platform::BLOCK_SIZE;
use moraine_platform::memory::Usage;
use moraine_platform::sync::{Either, Event, Permit, Semaphore, either};

/// The server's purses.
pub(super) struct Budget {
    calls: Rc<Semaphore>,
    payload: Rc<Semaphore>,
    shared_max: u64,
    /// What each connection has for itself.
    piece: u64,
    /// The pieces of all connections, in bytes.
    pieces: Rc<Semaphore>,
    /// The calls of all connections that nobody else can take.
    reserved_calls: Rc<Semaphore>,
    clients: RefCell<HashMap<IpAddr, Weak<Semaphore>>>,
}

/// The purses one connection draws on.
pub(super) struct Purses {
    own_calls: Rc<Semaphore>,
    own_payload: Rc<Semaphore>,
    client_payload: Rc<Semaphore>,
    all_calls: Rc<Semaphore>,
    all_payload: Rc<Semaphore>,
    /// The call that nobody else can take, and those of all connections.
    reserved_call: Rc<Semaphore>,
    reserved_calls: Rc<Semaphore>,
    reserve: Rc<Reserve>,
}

/// The piece that nobody else can take.
struct Reserve {
    bytes: u64,
    /// Those of all connections.
    pieces: Rc<Semaphore>,
    /// Grants that this connection holds, of whatever kind.
    held: Cell<u64>,
    /// It holds none.
    alone: Event,
}

/// The right to have one call in work, from its first byte until its reply was sent.
pub(super) struct Slot {
    _own: Permit,
    /// Of all calls, or the connection's own and one of all connections'. Nothing before it may run.
    _admitted: [Option<Permit>; 2],
}

/// The right to hold bytes of file data.
pub(super) struct Grant {
    bytes: u64,
    reserve: Rc<Reserve>,
    _own: Permit,
    /// The client's and the server's, or the connection's piece.
    _granted: [Option<Permit>; 2],
}

impl Grant {
    /// How many.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.reserve.held.set(self.reserve.held.get() - 1);
        if self.reserve.held.get() == 0 {
            self.reserve.alone.notify();
        }
    }
}

impl Budget {
    pub(super) fn new(payload_max: u64, connections_max: usize) -> Budget {
        let half = Config::payload(payload_max) / 2;
        let block = BLOCK_SIZE as u64;
        let piece = (half / connections_max as u64 / block * block).clamp(PIECE_MIN, CONNECTION_PAYLOAD_MAX);
        Budget {
            calls: Semaphore::new(CALLS_MAX),
            payload: Semaphore::new(half),
            shared_max: half,
            piece,
            pieces: Semaphore::new(piece * connections_max as u64),
            reserved_calls: Semaphore::new(connections_max as u64),
            clients: RefCell::default(),
        }
    }

    /// Bytes of file data that every connection can have in work, whatever the others do.
    pub(super) fn piece(&self) -> u64 {
        self.piece
    }

    /// The purses of a new connection of `client`.
    pub(super) fn purses(&self, client: IpAddr) -> Purses {
        let mut clients = self.clients.borrow_mut();
        let client_payload = clients.get(&client).and_then(Weak::upgrade).unwrap_or_else(|| {
            let purse = Semaphore::new(self.shared_max / 2);
            clients.insert(client, Rc::downgrade(&purse));
            purse
        });
        Purses {
            own_calls: Semaphore::new(CONNECTION_CALLS_MAX),
            own_payload: Semaphore::new(CONNECTION_PAYLOAD_MAX),
            client_payload,
            all_calls: self.calls.clone(),
            all_payload: self.payload.clone(),
            reserved_call: Semaphore::new(1),
            reserved_calls: self.reserved_calls.clone(),
            reserve: Rc::new(Reserve {
                bytes: self.piece,
                pieces: self.pieces.clone(),
                held: Cell::new(0),
                alone: Event::new(),
            }),
        }
    }

    /// What file data takes of memory.
    pub(super) fn usage(&self) -> Usage {
        let shared = self.payload.usage("nfs");
        let pieces = self.pieces.usage("nfs");
        Usage {
            limit: shared.limit + pieces.limit,
            used: shared.used + pieces.used,
            peak: shared.peak + pieces.peak,
            refused: shared.refused + pieces.refused,
            ..shared
        }
    }

    /// Drops the purses of clients without a connection.
    pub(super) fn forget_absent_clients(&self) {
        self.clients.borrow_mut().retain(|_, purse| purse.strong_count() > 0);
    }
}

impl Purses {
    /// Waits until this connection may receive another call.
    pub(super) async fn slot(&self) -> Slot {
        Slot { _own: self.own_calls.take(1).await, _admitted: [None, None] }
    }

    /// Waits until the call received with `slot` may run.
    pub(super) async fn admit(&self, slot: &mut Slot) {
        let reserved = async {
            let own = self.reserved_call.take(1).await;
            [own, at_once(&self.reserved_calls, 1).await]
        };
        slot._admitted = match either(self.all_calls.take(1), reserved).await {
            Either::First(permit) => [Some(permit), None],
            Either::Second(permits) => permits.map(Some),
        };
    }

    /// Waits until file data may be held: `bytes` of it, or as much of that as the connection's own piece if the
    /// connection holds nothing else.
    pub(super) async fn grant(&self, bytes: u64) -> Grant {
        let bytes = bytes.min(CONNECTION_PAYLOAD_MAX);
        let own = self.own_payload.take(bytes).await;
        let shared = async {
            let client = self.client_payload.take(bytes).await;
            [client, self.all_payload.take(bytes).await]
        };
        let reserve = &self.reserve;
        let piece = async {
            reserve.alone.until(|| (reserve.held.get() == 0).then_some(())).await;
            at_once(&reserve.pieces, bytes.min(reserve.bytes)).await
        };
        let (bytes, granted) = match either(shared, piece).await {
            Either::First(permits) => (bytes, permits.map(Some)),
            Either::Second(permit) => (permit.count(), [Some(permit), None]),
        };
        reserve.held.set(reserve.held.get() + 1);
        Grant { bytes, reserve: reserve.clone(), _own: own, _granted: granted }
    }

    /// Whether no call of this connection is in work.
    pub(super) fn idle(&self) -> bool {
        self.own_calls.free() == CONNECTION_CALLS_MAX
    }
}

/// Units of what only connections that have ended can use up: free but for that.
async fn at_once(pool: &Rc<Semaphore>, count: u64) -> Permit {
    match pool.try_take(count) {
        Some(permit) => permit,
        None => pool.take(count).await,
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
    fn those_who_hold_what_is_shared_leave_everybody_a_piece_and_a_call() {
        let budget = Budget::new(8 << 20, 256);
        assert_eq!(budget.piece(), 16 << 10);
        let greedy: Vec<_> = (0..100).map(|n| budget.purses([10, 0, 0, n].into())).collect();
        let (mut grants, mut slots) = (Vec::new(), Vec::new());
        for purses in &greedy {
            while let Some(grant) = now(purses.grant(1 << 20)) {
                grants.push(grant);
            }
            while let Some(mut slot) = now(purses.slot())
                && now(purses.admit(&mut slot)).is_some()
            {
                slots.push(slot);
            }
        }
        let held: u64 = grants.iter().map(Grant::bytes).sum();
        assert_eq!(
            held,
            (4 << 20) + 98 * budget.piece(),
            "two hold all that is shared, the others a piece each"
        );
        assert_eq!(budget.usage().used, held);
        let honest = budget.purses([10, 0, 1, 1].into());
        let mut slot = now(honest.slot()).expect("nobody else's");
        now(honest.admit(&mut slot)).expect("a call of its own");
        let piece = now(honest.grant(1 << 20)).expect("a piece of its own");
        assert_eq!(piece.bytes(), budget.piece());
        assert!(now(honest.grant(1)).is_none(), "and no more");
        drop(piece);
        assert_eq!(now(honest.grant(100)).map(|grant| grant.bytes()), Some(100));
        drop((grants, slots));
        assert_eq!(now(honest.grant(1 << 20)).map(|grant| grant.bytes()), Some(1 << 20));
        assert_eq!(budget.usage().used, 0);
    }

    #[test]
    fn who_has_data_in_work_waits_for_room_instead_of_going_on_in_pieces() {
        let budget = Budget::new(8 << 20, 256);
        let (one, other) = (budget.purses([10, 0, 0, 1].into()), budget.purses([10, 0, 0, 1].into()));
        let first = now(one.grant(1 << 20)).unwrap();
        let rest = now(other.grant(1 << 20)).unwrap();
        let mut waiting = Box::pin(one.grant(1 << 20));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending(), "the client's half is taken");
        drop(first);
        assert!(matches!(waiting.as_mut().poll(&mut cx), Poll::Ready(grant) if grant.bytes() == 1 << 20));
        drop(rest);
    }
}
