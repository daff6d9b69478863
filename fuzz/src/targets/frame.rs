//! Ethernet frames into the network stack, with somebody who listens behind it.

use core::cell::{Cell, RefCell};
use core::net::SocketAddr;
use core::time::Duration;
use moraine_net::{Addressing, Config, Stack, StaticAddress};
use moraine_platform::sync::Event;
use moraine_platform::{Network, NicCapabilities, NicDevice, RxMeta, TxMeta};
use moraine_sim::world::{World, WorldConfig};
use std::collections::VecDeque;
use std::rc::Rc;

/// Longest frame, in bytes.
const FRAME_MAX: usize = 1514;
/// Polls that one input may cost.
const POLLS_MAX: u64 = 500_000;

/// A card: frames to receive, and a count of those sent.
struct Card {
    arrived: RefCell<VecDeque<Vec<u8>>>,
    sent: Cell<usize>,
    activity: Event,
}

impl NicDevice for Card {
    fn mac(&self) -> [u8; 6] {
        crate::seeds::MAC
    }
    fn mtu(&self) -> usize {
        1500
    }
    fn capabilities(&self) -> NicCapabilities {
        NicCapabilities {
            tx_checksum: false,
            // Frames whose checksums are wrong would all end in one place.
            rx_checksum: true,
            tx_tcp4_segmentation: false,
            tx_tcp6_segmentation: false,
            rx_large: true,
            max_frame: FRAME_MAX,
        }
    }
    fn link_up(&self) -> bool {
        true
    }
    fn can_receive(&self) -> bool {
        !self.arrived.borrow().is_empty()
    }
    fn receive(&self, take: &mut dyn FnMut(&mut [u8], RxMeta)) -> bool {
        let Some(mut frame) = self.arrived.borrow_mut().pop_front() else { return false };
        let checksum = moraine_platform::RxChecksum::Valid;
        take(&mut frame, RxMeta { checksum, segment_size: 0 });
        true
    }
    fn can_transmit(&self) -> bool {
        true
    }
    fn transmit(&self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> TxMeta) -> bool {
        assert!(len <= FRAME_MAX);
        fill(&mut vec![0; len]);
        self.sent.set(self.sent.get() + 1);
        true
    }
    fn activity(&self) -> &Event {
        &self.activity
    }
}

/// Frames, each behind the number of its bytes (two bytes, little-endian). The first byte says whether the address comes by
/// DHCP or is given.
pub(super) fn frames(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    let addressing = if how & 1 == 0 {
        Addressing::Automatic
    } else {
        Addressing::Static(vec![StaticAddress {
            address: [10, 0, 0, 1].into(),
            prefix: 24,
            gateway: Some([10, 0, 0, 2].into()),
        }])
    };
    let world = World::with(WorldConfig { poll_limit: POLLS_MAX, ..WorldConfig::new(2) });
    let platform = world.platform();
    let ended = world.try_run(async move {
        let card = Rc::new(Card { arrived: RefCell::default(), sent: Cell::new(0), activity: Event::new() });
        let config = Config { addressing, buffer_bytes: 4 << 20, connections_max: 16 };
        let stack = Stack::new(&platform, card.clone(), &config).expect("the addresses are a host's");
        platform.spawn.spawn("network", Box::pin(stack.clone().run()));
        let any = |port| SocketAddr::from(([0; 16], port));
        let listener = stack.listen(any(2049)).expect("a free port");
        let datagrams = stack.bind(any(111)).expect("a free port");
        let accept = async move {
            let mut kept = Vec::new();
            while let Ok(stream) = listener.accept().await {
                kept.push(stream);
            }
        };
        platform.spawn.spawn("accept", Box::pin(accept));
        let echo = async move {
            while let Ok((bytes, from)) = datagrams.recv().await {
                let _ = datagrams.send(from, bytes).await;
            }
        };
        platform.spawn.spawn("echo", Box::pin(echo));
        let mut rest = bytes;
        let mut count = 0;
        while let Some((len, behind)) = rest.split_first_chunk() {
            let len = usize::from(u16::from_le_bytes(*len)).min(FRAME_MAX);
            let (frame, behind) = behind.split_at(behind.len().min(len));
            rest = behind;
            count += 1;
            card.arrived.borrow_mut().push_back(frame.to_vec());
            card.activity.notify();
            platform.clock.sleep(Duration::from_millis(if frame.len() % 2 == 0 { 1 } else { 700 })).await;
        }
        platform.clock.sleep(Duration::from_secs(2)).await;
        assert!(stack.connections() <= 16);
        assert!(stack.memory().peak <= stack.memory().limit);
        // Timers of DHCP, router solicitation and retransmission beside an answer to each.
        assert!(card.sent.get() <= 64 + 16 * (count + 1), "{} frames for {count}", card.sent.get());
    });
    if let Err(stall) = ended {
        panic!("the stack hangs: {stall}");
    }
}
