//! virtio-net (virtio 1.2 §5.1): one pair of queues, with checksums, TCP segmentation and large receive done by the
//! other side where it can, because a frame costs the same whether it carries 1 or 64 KiB.

use super::queue::Virtqueue;
use super::rx::{Received, Receiver};
use super::transport::{self, Transport, VirtioError};
use super::tx::Sender;
use crate::hal::{Hal, Service};
use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::{Cell, RefCell};
use core::time::Duration;
use moraine_platform::sync::Event;
use moraine_platform::{Instant, NicCapabilities, NicDevice, RxMeta, TxMeta, info};

const FEATURE_CSUM: u64 = 1 << 0;
const FEATURE_GUEST_CSUM: u64 = 1 << 1;
const FEATURE_MTU: u64 = 1 << 3;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_GUEST_TSO4: u64 = 1 << 7;
const FEATURE_GUEST_TSO6: u64 = 1 << 8;
const FEATURE_HOST_TSO4: u64 = 1 << 11;
const FEATURE_HOST_TSO6: u64 = 1 << 12;
const FEATURE_MRG_RXBUF: u64 = 1 << 15;
const FEATURE_STATUS: u64 = 1 << 16;
/// Legacy devices only: header and data may share a descriptor. Modern ones always take that.
const FEATURE_ANY_LAYOUT: u64 = 1 << 27;

const CONFIG_MAC: usize = 0;
const CONFIG_STATUS: usize = 6;
const CONFIG_MTU: usize = 10;
const STATUS_LINK_UP: u16 = 1;

const QUEUE_RECEIVE: u16 = 0;
const QUEUE_TRANSMIT: u16 = 1;
/// Receive slots: 1 MiB with mergeable buffers.
const RECEIVE_MAX: u16 = 256;
const TRANSMIT_MAX: u16 = 256;

const MTU_DEFAULT: u16 = 1500;
/// Least IPv6 MTU; and jumbo frames.
const MTU_BELIEVED: core::ops::RangeInclusive<u16> = 1280..=9216;
const ETHERNET_HEADER: usize = 14;
/// Longest frame with segmentation: an IP packet of 65535 bytes.
const FRAME_LARGE: usize = ETHERNET_HEADER + u16::MAX as usize;

/// How often the link's state is read.
const LINK_INTERVAL: Duration = Duration::from_secs(1);
/// Senseless receive entries skipped in one call.
const DROPS_MAX: usize = 64;

/// A network card.
pub(crate) struct VirtioNet {
    hal: Rc<dyn Hal>,
    transport: Box<dyn Transport>,
    name: String,
    mac: [u8; 6],
    mtu: u16,
    capabilities: NicCapabilities,
    has_status: bool,
    /// Taken only by `drop`.
    receiver: RefCell<Option<Receiver>>,
    sender: RefCell<Option<Sender>>,
    link_up: Cell<bool>,
    next_link_look: Cell<Instant>,
    armed: Cell<bool>,
    dropped: Cell<u64>,
    activity: Event,
}

/// The features worth accepting of those offered: some need others (§5.1.3.1).
fn choose(offered: u64) -> u64 {
    let mut wanted = FEATURE_MTU | FEATURE_MAC | FEATURE_STATUS | FEATURE_MRG_RXBUF | FEATURE_ANY_LAYOUT;
    wanted |= FEATURE_CSUM | FEATURE_GUEST_CSUM;
    if offered & FEATURE_CSUM != 0 {
        wanted |= FEATURE_HOST_TSO4 | FEATURE_HOST_TSO6;
    }
    // Large frames without mergeable buffers would need 64 KiB for each of them.
    if offered & FEATURE_GUEST_CSUM != 0 && offered & FEATURE_MRG_RXBUF != 0 {
        wanted |= FEATURE_GUEST_TSO4 | FEATURE_GUEST_TSO6;
    }
    wanted
}

impl VirtioNet {
    /// Brings the card up, waiting for it. It becomes card number `index`.
    pub(crate) fn new(
        hal: &Rc<dyn Hal>,
        transport: Box<dyn Transport>,
        index: usize,
    ) -> Result<Rc<VirtioNet>, VirtioError> {
        transport::reset(&**hal, &*transport)?;
        let features = transport::negotiate(&*transport, choose(transport.features()))?;
        let has = |feature| features & feature != 0;
        if !has(FEATURE_MAC) {
            return Err(VirtioError::Unsupported("it has no address of its own"));
        }
        let mac = core::array::from_fn(|i| transport.config8(CONFIG_MAC + i));
        let told = if has(FEATURE_MTU) { transport.config16(CONFIG_MTU) } else { MTU_DEFAULT };
        let mtu = if MTU_BELIEVED.contains(&told) { told } else { MTU_DEFAULT };
        let rx_large = has(FEATURE_GUEST_TSO4) || has(FEATURE_GUEST_TSO6);
        let tx_large = has(FEATURE_HOST_TSO4) || has(FEATURE_HOST_TSO6);
        let frame_small = ETHERNET_HEADER + usize::from(mtu);
        let capabilities = NicCapabilities {
            tx_checksum: has(FEATURE_CSUM),
            rx_checksum: has(FEATURE_GUEST_CSUM),
            tx_tcp4_segmentation: has(FEATURE_HOST_TSO4),
            tx_tcp6_segmentation: has(FEATURE_HOST_TSO6),
            rx_large,
            max_frame: if rx_large || tx_large { FRAME_LARGE } else { frame_small },
        };
        let mergeable = has(FEATURE_MRG_RXBUF);
        let header_len = if mergeable || !transport.is_legacy() { 12 } else { 10 };
        let split_header = transport.is_legacy() && !has(FEATURE_ANY_LAYOUT);
        let queue = |index, max| Virtqueue::new(hal, &*transport, index, max, features);
        let rx_max = if rx_large { FRAME_LARGE } else { frame_small };
        let receiver = Receiver::new(hal, queue(QUEUE_RECEIVE, RECEIVE_MAX)?, header_len, mergeable, rx_max)?;
        let tx_max = if tx_large { FRAME_LARGE } else { frame_small };
        let sender =
            Sender::new(hal, queue(QUEUE_TRANSMIT, TRANSMIT_MAX)?, header_len, split_header, tx_max)?;
        transport::drive(&*transport);
        let card = VirtioNet {
            hal: hal.clone(),
            transport,
            name: format!("net{index}"),
            mac,
            mtu,
            capabilities,
            has_status: has(FEATURE_STATUS),
            receiver: RefCell::new(Some(receiver)),
            sender: RefCell::new(Some(sender)),
            link_up: Cell::new(true),
            next_link_look: Cell::new(hal.now()),
            armed: Cell::new(false),
            dropped: Cell::new(0),
            activity: Event::new(),
        };
        card.look_at_link();
        card.with_receiver(|r| r.kick(&*card.transport));
        info!("virtio", "{}: mtu {mtu}, {:?}", card.name, card.capabilities);
        Ok(Rc::new(card))
    }

    fn with_receiver<R>(&self, run: impl FnOnce(&mut Receiver) -> R) -> R {
        run(self.receiver.borrow_mut().as_mut().expect("not dropped"))
    }

    fn with_sender<R>(&self, run: impl FnOnce(&mut Sender) -> R) -> R {
        run(self.sender.borrow_mut().as_mut().expect("not dropped"))
    }

    /// Reads the link's state now and then; whether it changed.
    fn look_at_link(&self) -> bool {
        if !self.has_status || self.hal.now() < self.next_link_look.get() {
            return false;
        }
        self.next_link_look.set(self.hal.now() + LINK_INTERVAL);
        let up = self.transport.config16(CONFIG_STATUS) & STATUS_LINK_UP != 0;
        self.link_up.replace(up) != up
    }
}

impl NicDevice for VirtioNet {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn mtu(&self) -> usize {
        self.mtu.into()
    }

    fn capabilities(&self) -> NicCapabilities {
        self.capabilities
    }

    fn link_up(&self) -> bool {
        self.link_up.get()
    }

    fn can_receive(&self) -> bool {
        self.with_receiver(|r| r.is_pending())
    }

    fn receive(&self, take: &mut dyn FnMut(&mut [u8], RxMeta)) -> bool {
        for _ in 0..DROPS_MAX {
            match self.with_receiver(|r| r.receive(take)) {
                Received::Nothing => return false,
                Received::Frame => return true,
                Received::Dropped => self.dropped.set(self.dropped.get() + 1),
            }
        }
        false
    }

    fn can_transmit(&self) -> bool {
        self.with_sender(|s| s.can_transmit())
    }

    fn transmit(&self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> TxMeta) -> bool {
        self.with_sender(|s| s.transmit(len, &self.capabilities, fill))
    }

    fn activity(&self) -> &Event {
        &self.activity
    }
}

impl Service for VirtioNet {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll(&self) -> bool {
        if self.armed.replace(false) {
            self.transport.acknowledge_interrupt();
            self.with_receiver(|r| r.disarm());
            self.with_sender(|s| s.disarm());
        }
        self.with_receiver(|r| r.kick(&*self.transport));
        self.with_sender(|s| s.kick(&*self.transport));
        let arrived = self.with_receiver(|r| r.has_news());
        let room = self.with_sender(|s| s.has_news());
        let worked = arrived || room || self.look_at_link();
        if worked {
            self.activity.notify();
        }
        worked
    }

    fn arm(&self) -> bool {
        self.armed.set(true);
        self.transport.acknowledge_interrupt();
        self.with_receiver(|r| r.arm()) & self.with_sender(|s| s.arm())
    }

    fn deadline(&self) -> Option<Instant> {
        Some(self.hal.now() + self.transport.look_interval()?)
    }
}

impl Drop for VirtioNet {
    fn drop(&mut self) {
        if !self.transport.cut_off() {
            // The device may still write into them, for ever.
            self.receiver.take().into_iter().for_each(Receiver::leak);
            self.sender.take().into_iter().for_each(Sender::leak);
        }
    }
}
