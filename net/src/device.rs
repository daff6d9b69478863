//! A network card as smoltcp sees one: frames are parsed and built in the card's own memory, and what the card can
//! do (checksums, segmentation) is told to smoltcp, what smoltcp wants is told to the card.

use crate::flow::{ETHERNET_HEADER, tcp_headers};
use alloc::vec::Vec;
use core::num::{NonZeroU16, NonZeroUsize};
use moraine_platform::{NicDevice, Segmentation, TxChecksum, TxMeta, TxSegmentation};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

/// The largest frame with which IP's 16-bit lengths still tell the truth, in bytes.
const FRAME_MAX: usize = 65_535;
/// Where TCP keeps its checksum within its header.
const TCP_CHECKSUM_OFFSET: usize = 16;

/// What smoltcp is told about `nic`.
pub(crate) fn capabilities(nic: &dyn NicDevice) -> DeviceCapabilities {
    let has = nic.capabilities();
    let mut tells = DeviceCapabilities::default();
    tells.medium = Medium::Ethernet;
    tells.max_transmission_unit = nic.mtu() + ETHERNET_HEADER;
    tells.checksum.tcp = match (has.rx_checksum, has.tx_checksum) {
        (false, false) => Checksum::Both,
        (false, true) => Checksum::Rx,
        (true, false) => Checksum::Tx,
        (true, true) => Checksum::None,
    };
    // UDP is rare here: always summed in software on the way out; on the way in as for TCP.
    tells.checksum.udp = if has.rx_checksum { Checksum::Tx } else { Checksum::Both };
    let large = has.max_frame.min(FRAME_MAX);
    if has.tx_checksum && large > tells.max_transmission_unit {
        // Not over IPv6: smoltcp 0.14 builds large segments there and then drops them for being longer than the MTU
        // (the test `megabytes_pass…` shows when that is mended).
        tells.segmentation.tcpv4 = NonZeroUsize::new(large).filter(|_| has.tx_tcp4_segmentation);
    }
    tells
}

/// One look of smoltcp at the card: with a received frame in hand or none.
pub(crate) struct Card<'a> {
    pub(crate) nic: &'a dyn NicDevice,
    pub(crate) capabilities: &'a DeviceCapabilities,
    /// The frame to process; taken once.
    pub(crate) frame: Option<&'a [u8]>,
    /// Set when the card had no room for a frame.
    pub(crate) full: bool,
    /// Memory for frames the card did not take after all.
    pub(crate) spill: &'a mut Vec<u8>,
}

impl Device for Card<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sending<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let frame = self.frame.take()?;
        Some((Received(frame), Sending { nic: self.nic, spill: self.spill, meta: PacketMeta::default() }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        if !self.nic.can_transmit() {
            self.full = true;
            return None;
        }
        Some(Sending { nic: self.nic, spill: self.spill, meta: PacketMeta::default() })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.capabilities.clone()
    }
}

/// A received frame.
pub(crate) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// Leave to send one frame.
pub(crate) struct Sending<'a> {
    nic: &'a dyn NicDevice,
    spill: &'a mut Vec<u8>,
    meta: PacketMeta,
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let offloads = self.nic.capabilities().tx_checksum;
        let segment = self.meta.segmentation_offload_size;
        let (mut f, mut result) = (Some(f), None);
        self.nic.transmit(len, &mut |frame| {
            let Some(f) = f.take() else { return TxMeta::default() };
            result = Some(f(frame));
            if offloads { offload(frame, segment) } else { TxMeta::default() }
        });
        match (result, f) {
            (Some(result), _) => result,
            // The card had no room although it said so, or this is an answer sent while it was full: the frame is
            // lost like any other, and whoever misses it will ask again.
            (None, Some(f)) => {
                self.spill.clear();
                self.spill.resize(len, 0);
                f(self.spill)
            }
            (None, None) => unreachable!("the closure is gone only when it ran"),
        }
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}

/// Prepares a finished frame for a card that sums: the pseudo header's sum goes into the checksum field.
fn offload(frame: &mut [u8], segment: Option<NonZeroU16>) -> TxMeta {
    let Some(tcp) = tcp_headers(frame) else { return TxMeta::default() };
    let field = tcp.start + TCP_CHECKSUM_OFFSET;
    frame[field..field + 2].copy_from_slice(&tcp.pseudo_sum.to_be_bytes());
    let is_v6 = frame[ETHERNET_HEADER] >> 4 == 6;
    TxMeta {
        checksum: Some(TxChecksum { start: tcp.start as u16, offset: TCP_CHECKSUM_OFFSET as u16 }),
        segmentation: segment.map(|size| TxSegmentation {
            kind: if is_v6 { Segmentation::Tcp6 } else { Segmentation::Tcp4 },
            segment_size: size.get(),
            header_len: tcp.end as u16,
        }),
    }
}
