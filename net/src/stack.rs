//! The handle on a stack, the task that drives it, and the `Network` on top.

use crate::address::reachable;
use crate::config::{Config, ConfigError};
use crate::datagram::UdpDatagram;
use crate::hub::{Counters, Egress, Hub};
use crate::stream::{TcpListener, connect};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::{Future, poll_fn};
use core::net::{IpAddr, SocketAddr};
use core::pin::pin;
use core::task::Poll;
use moraine_platform::memory::Usage;
use moraine_platform::sync::Event;
use moraine_platform::{
    Clock, Connecting, Datagram, Instant, Listener, LocalFuture, NetError, Network, NicDevice, Platform, Rng,
};

/// Turns of the other ready tasks after data came and before anything is sent: a server's tasks that receive a call,
/// answer it and send the reply, each woken by the one before. An acknowledgement that left earlier would be a packet of
/// its own for each call; one that waits for a reply from the disk would hold up who sends much.
const REPLY_TURNS: usize = 3;

/// A TCP/IP stack on one network card. Clones share it.
///
/// Nothing happens unless [`Stack::run`] is polled.
#[derive(Clone)]
pub struct Stack {
    shared: Rc<Shared>,
}

/// What handles, streams and the driving task share.
pub(crate) struct Shared {
    pub(crate) hub: RefCell<Hub>,
    /// Local ends of UDP endpoints.
    pub(crate) bound: RefCell<Vec<SocketAddr>>,
    /// Notified when a protocol left something to do.
    pub(crate) work: Event,
    /// Notified when addresses may have changed.
    addressed: Event,
    pub(crate) clock: Rc<dyn Clock>,
    pub(crate) rng: Rc<dyn Rng>,
    nic: Rc<dyn NicDevice>,
}

impl Stack {
    /// A stack on `nic`. Static addresses are in force at once, others when they are found.
    pub fn new(platform: &Platform, nic: Rc<dyn NicDevice>, config: &Config) -> Result<Stack, ConfigError> {
        config.check()?;
        let (clock, rng) = (platform.clock.clone(), platform.rng.clone());
        let hub = Hub::new(nic.clone(), config, rng.next_u64(), clock.now());
        let shared = Shared {
            hub: RefCell::new(hub),
            bound: RefCell::default(),
            work: Event::new(),
            addressed: Event::new(),
            clock,
            rng,
            nic,
        };
        Ok(Stack { shared: Rc::new(shared) })
    }

    /// Drives the stack for ever: to be spawned as a task. Sleeps while there is nothing to do.
    pub async fn run(self) {
        let shared = &*self.shared;
        let mut known: Vec<IpAddr> = self.addresses();
        loop {
            let tickets = (shared.nic.activity().ticket(), shared.work.ticket());
            let received = shared.hub.borrow_mut().ingress(shared.clock.now());
            if received > 0 {
                // Let the protocols answer first: their replies then carry our acknowledgements.
                for _ in 0..REPLY_TURNS {
                    yield_now().await;
                }
            }
            let left = shared.hub.borrow_mut().egress(shared.clock.now());
            let addresses = self.addresses();
            if addresses != known {
                known = addresses;
                shared.addressed.notify();
            }
            if left == Egress::More || shared.nic.can_receive() {
                yield_now().await;
                continue;
            }
            let due = shared.hub.borrow().due();
            self.idle(tickets, due).await;
        }
    }

    /// Waits for the card, for a protocol, or for `due`.
    async fn idle(&self, (activity, work): (u64, u64), due: Option<Instant>) {
        let shared = &*self.shared;
        let mut activity = pin!(shared.nic.activity().after(activity));
        let mut work = pin!(shared.work.after(work));
        let mut timer: Option<LocalFuture<()>> = None;
        poll_fn(|cx| {
            if activity.as_mut().poll(cx).is_ready() || work.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let Some(due) = due else { return Poll::Pending };
            timer.get_or_insert_with(|| shared.clock.sleep_until(due)).as_mut().poll(cx)
        })
        .await
    }

    /// Addresses others can reach it by, without link-local ones.
    pub fn addresses(&self) -> Vec<IpAddr> {
        reachable(&self.shared.hub.borrow().iface).collect()
    }

    /// Waits until there is an address, and returns the first.
    pub async fn addressed(&self) -> IpAddr {
        self.shared.addressed.until(|| self.addresses().first().copied()).await
    }

    /// What it counted.
    pub fn counters(&self) -> Counters {
        self.shared.hub.borrow().counters
    }

    /// What buffers of connections take of memory.
    pub fn memory(&self) -> Usage {
        self.shared.hub.borrow().memory()
    }

    /// TCP connections there are, half-open and closing ones included.
    pub fn connections(&self) -> usize {
        self.shared.hub.borrow().connections_now()
    }
}

impl Network for Stack {
    fn listen(&self, address: SocketAddr) -> Result<Box<dyn Listener>, NetError> {
        Ok(Box::new(TcpListener::open(self.shared.clone(), address)?))
    }

    fn bind(&self, address: SocketAddr) -> Result<Box<dyn Datagram>, NetError> {
        Ok(Box::new(UdpDatagram::bind(self.shared.clone(), address)?))
    }

    fn connect(&self, peer: SocketAddr) -> Connecting {
        connect(self.shared.clone(), peer)
    }
}

/// Lets every other ready task run once.
async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}
