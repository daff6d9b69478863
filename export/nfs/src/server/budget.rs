//! What may be in work at once: calls, and bytes of file data. A waiting connection does not read its socket.
//!
//! Data is granted from three purses, always in the same order: the connection's, its client's (half of everything, so
//! that one client can never starve the rest, however many connections it opens), and the server's.

use super::config::{CALLS_MAX, CONNECTION_CALLS_MAX, CONNECTION_PAYLOAD_MAX, Config};
use alloc::rc::{Rc, Weak};
use core::cell::RefCell;
use core::net::IpAddr;
use hashbrown::HashMap;
use moraine_platform::memory::Usage;
use moraine_platform::sync::{Permit, Semaphore};

/// The server's purses.
pub(super) struct Budget {
    calls: Rc<Semaphore>,
    payload: Rc<Semaphore>,
    payload_max: u64,
    clients: RefCell<HashMap<IpAddr, Weak<Semaphore>>>,
}

/// The purses one connection draws on.
pub(super) struct Purses {
    own_calls: Rc<Semaphore>,
    own_payload: Rc<Semaphore>,
    client_payload: Rc<Semaphore>,
    all_calls: Rc<Semaphore>,
    all_payload: Rc<Semaphore>,
}

/// The right to have one call in work, from its first byte until its reply was sent.
pub(super) struct Slot {
    _own: Permit,
    all: Option<Permit>,
}

/// The right to hold bytes of file data.
pub(super) struct Grant {
    _permits: [Permit; 3],
}

impl Budget {
    pub(super) fn new(payload_max: u64) -> Budget {
        let payload_max = Config::payload(payload_max);
        Budget {
            calls: Semaphore::new(CALLS_MAX),
            payload: Semaphore::new(payload_max),
            payload_max,
            clients: RefCell::default(),
        }
    }

    /// The purses of a new connection of `client`.
    pub(super) fn purses(&self, client: IpAddr) -> Purses {
        let mut clients = self.clients.borrow_mut();
        let client_payload = clients.get(&client).and_then(Weak::upgrade).unwrap_or_else(|| {
            let purse = Semaphore::new(self.payload_max / 2);
            clients.insert(client, Rc::downgrade(&purse));
            purse
        });
        Purses {
            own_calls: Semaphore::new(CONNECTION_CALLS_MAX),
            own_payload: Semaphore::new(CONNECTION_PAYLOAD_MAX),
            client_payload,
            all_calls: self.calls.clone(),
            all_payload: self.payload.clone(),
        }
    }

    /// What file data takes of memory.
    pub(super) fn usage(&self) -> Usage {
        self.payload.usage("nfs")
    }

    /// Drops the purses of clients without a connection.
    pub(super) fn forget_absent_clients(&self) {
        self.clients.borrow_mut().retain(|_, purse| purse.strong_count() > 0);
    }
}

impl Purses {
    /// Waits until this connection may receive another call.
    pub(super) async fn slot(&self) -> Slot {
        Slot { _own: self.own_calls.take(1).await, all: None }
    }

    /// Waits until the call received with `slot` may run.
    pub(super) async fn admit(&self, slot: &mut Slot) {
        slot.all = Some(self.all_calls.take(1).await);
    }

    /// Waits until `bytes` of file data may be held.
    pub(super) async fn grant(&self, bytes: u64) -> Grant {
        let bytes = bytes.min(CONNECTION_PAYLOAD_MAX);
        let own = self.own_payload.take(bytes).await;
        let client = self.client_payload.take(bytes).await;
        Grant { _permits: [own, client, self.all_payload.take(bytes).await] }
    }

    /// Whether no call of this connection is in work.
    pub(super) fn idle(&self) -> bool {
        self.own_calls.free() == CONNECTION_CALLS_MAX
    }
}
