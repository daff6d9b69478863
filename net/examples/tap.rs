//! The exports over this stack on a Linux tap interface, with an in-memory filesystem: real clients of this machine
//! against our own TCP, without a virtual machine.
//!
//! ```text
//! ip netns exec NS cargo run --release -p moraine-net --example tap -- tap0 10.77.0.2/24
//! ```
//! The interface is made if it is missing; give it an address and set it up from outside.

use moraine_appliance::{Listen, Memory, Squash, serve_exports};
use moraine_host::os;
use moraine_model::Model;
use moraine_net::{Addressing, Config, Stack, StaticAddress};
use moraine_platform::log::Level;
use moraine_platform::sync::Event;
use moraine_platform::{NicCapabilities, NicDevice, RxMeta, TxMeta};
use smoltcp::phy::{Device, Medium, RxToken, TunTapInterface, TxToken};
use smoltcp::time::Instant;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use tokio::io::unix::AsyncFd;

/// Frames read ahead of the stack.
const RING: usize = 512;

struct Tap {
    interface: RefCell<TunTapInterface>,
    received: RefCell<VecDeque<Vec<u8>>>,
    activity: Event,
    taken: Event,
}

struct Fd(RawFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Tap {
    /// Reads frames for ever.
    async fn pump(self: Rc<Self>) {
        #[expect(deprecated, reason = "smoltcp lends its descriptor only in the raw form")]
        let ready = AsyncFd::new(Fd(self.interface.borrow().as_raw_fd())).expect("a tap can be waited for");
        loop {
            self.taken.until(|| (self.received.borrow().len() < RING).then_some(())).await;
            let mut guard = ready.readable().await.expect("a tap stays open");
            while self.received.borrow().len() < RING {
                let mut interface = self.interface.borrow_mut();
                let Some((frame, _)) = interface.receive(Instant::ZERO) else {
                    guard.clear_ready();
                    break;
                };
                let frame = frame.consume(<[u8]>::to_vec);
                self.received.borrow_mut().push_back(frame);
                self.activity.notify();
            }
        }
    }
}

impl NicDevice for Tap {
    fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0x77, 0, 2]
    }
    fn mtu(&self) -> usize {
        1500
    }
    fn capabilities(&self) -> NicCapabilities {
        NicCapabilities { max_frame: 1514, ..NicCapabilities::default() }
    }
    fn link_up(&self) -> bool {
        true
    }
    fn can_receive(&self) -> bool {
        !self.received.borrow().is_empty()
    }
    fn receive(&self, take: &mut dyn FnMut(&mut [u8], RxMeta)) -> bool {
        let Some(mut frame) = self.received.borrow_mut().pop_front() else { return false };
        take(&mut frame, RxMeta::default());
        self.taken.notify();
        true
    }
    fn can_transmit(&self) -> bool {
        true
    }
    fn transmit(&self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> TxMeta) -> bool {
        let Some(token) = self.interface.borrow_mut().transmit(Instant::ZERO) else { return false };
        token.consume(len, |frame| {
            fill(frame);
        });
        true
    }
    fn activity(&self) -> &Event {
        &self.activity
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(name), Some(address)) = (args.next(), args.next()) else {
        eprintln!("usage: tap INTERFACE ADDRESS/PREFIX");
        std::process::exit(2);
    };
    let (address, prefix) = address.split_once('/').expect("an address with its prefix");
    let address = StaticAddress {
        address: address.parse().expect("an address"),
        prefix: prefix.parse().expect("a prefix"),
        gateway: None,
    };
    os::log_to_stderr(Level::Info);
    let served = os::run(async move |platform| {
        let tap = Rc::new(Tap {
            interface: RefCell::new(TunTapInterface::new(&name, Medium::Ethernet).expect("a tap interface")),
            received: RefCell::default(),
            activity: Event::new(),
            taken: Event::new(),
        });
        platform.spawn.spawn("tap", Box::pin(tap.clone().pump()));
        let config = Config {
            addressing: Addressing::Static(vec![address]),
            buffer_bytes: 64 << 20,
            ..Config::default()
        };
        let stack = Stack::new(&platform, tap, &config).expect("a host's address");
        platform.spawn.spawn("net", Box::pin(stack.clone().run()));
        let model = Rc::new(Model::new(platform.clock.clone(), platform.rng.clone()));
        let exports = serve_exports(
            &platform,
            model,
            Rc::new(stack.clone()),
            Listen::everywhere(),
            &Memory::of(512 << 20),
            Squash::default(),
        );
        let exports = exports.expect("every port of a new stack is free");
        println!("{}", exports.ready_line(platform.clock.now().since(Default::default()), None));
        loop {
            platform.clock.sleep(std::time::Duration::from_secs(5)).await;
            eprintln!("{} connections, {:?}", stack.connections(), stack.counters());
        }
    });
    served.expect("a reactor");
}
