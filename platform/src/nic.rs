//! Network cards: frames in, frames out, with the offloads that let one frame carry 64 KiB of TCP.
//!
//! Frames are handed over by closure, straight from and into the card's own DMA memory, so that the network stack
//! parses and builds in place. Both directions are synchronous; [`NicDevice::activity`] says when to look again.

use crate::sync::Event;

/// What a card does for the stack. All false is a plain card which the stack serves by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicCapabilities {
    /// [`TxMeta::checksum`] is honoured: the card fills in TCP and UDP checksums.
    pub tx_checksum: bool,
    /// Received frames may come with [`RxChecksum::Valid`] or [`RxChecksum::Partial`].
    pub rx_checksum: bool,
    /// [`TxMeta::segmentation`] with [`Segmentation::Tcp4`] is honoured.
    pub tx_tcp4_segmentation: bool,
    /// [`TxMeta::segmentation`] with [`Segmentation::Tcp6`] is honoured.
    pub tx_tcp6_segmentation: bool,
    /// Received frames may be larger than the MTU: several TCP segments joined into one, up to `max_frame` bytes.
    pub rx_large: bool,
    /// Longest frame that `transmit` takes and `receive` delivers, in bytes with its Ethernet header.
    pub max_frame: usize,
}

/// What is known about a received frame's TCP or UDP checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RxChecksum {
    /// Nothing: the stack verifies it.
    #[default]
    Unknown,
    /// The card verified it.
    Valid,
    /// The frame never left this host, so its checksum field holds only the pseudo header's sum; the data was not
    /// on a wire and is to be taken as valid.
    Partial,
}

/// What came with a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RxMeta {
    /// What is known about its checksum.
    pub checksum: RxChecksum,
    /// If the card joined several TCP segments: payload bytes of each (the last may be shorter); otherwise 0.
    pub segment_size: u16,
}

/// A checksum for the card to fill in: the ones' complement sum from `start` to the end of the frame, stored at
/// `start + offset`, where the stack has already put the pseudo header's (not complemented) sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxChecksum {
    /// First summed byte, counted from the start of the Ethernet header.
    pub start: u16,
    /// Position of the checksum field relative to `start`: 16 for TCP, 6 for UDP.
    pub offset: u16,
}

/// How the card is to cut one large frame into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// A large TCP segment for the card to cut. It needs [`TxMeta::checksum`] too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxSegmentation {
    /// The protocols.
    pub kind: Segmentation,
    /// Payload bytes in each segment sent (the MSS).
    pub segment_size: u16,
    /// Length of Ethernet, IP and TCP headers together, in bytes.
    pub header_len: u16,
}

/// What the card is to do with a frame beside sending it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TxMeta {
    /// Fill in a checksum; only with [`NicCapabilities::tx_checksum`].
    pub checksum: Option<TxChecksum>,
    /// Cut into segments; only with the matching capability.
    pub segmentation: Option<TxSegmentation>,
}

/// A network card.
///
/// No method may be called from inside the closures given to `receive` and `transmit`, with two exceptions: `transmit`
/// and `can_transmit` inside `receive`'s (to answer a frame while it is being parsed), and the constant properties.
pub trait NicDevice {
    /// Its Ethernet address.
    fn mac(&self) -> [u8; 6];

    /// Largest IP packet on this link, in bytes, without the Ethernet header.
    fn mtu(&self) -> usize;

    /// What it does for the stack; constant while the device lives.
    fn capabilities(&self) -> NicCapabilities;

    /// Whether the link is up, as far as the card can tell.
    fn link_up(&self) -> bool;

    /// Whether a received frame is waiting.
    fn can_receive(&self) -> bool;

    /// Calls `take` once with the next received frame (Ethernet header first, no checksum sequence at the end), if
    /// there is one; whether there was. The frame's memory goes back to the card when `take` returns.
    fn receive(&self, take: &mut dyn FnMut(&mut [u8], RxMeta)) -> bool;

    /// Whether a frame of `max_frame` bytes would be accepted now.
    fn can_transmit(&self) -> bool;

    /// Calls `fill` once with exactly `len` bytes (of any content) to be overwritten with a frame, which then leaves
    /// by the end of the reactor's turn. What `fill` returns says what the card is to do with the frame: the stack
    /// knows it only when the frame is built. Returns false, without the call, if there is no room now or if `len`
    /// is beyond `max_frame`. A frame whose meta asks for more than the capabilities breaks the contract; the device
    /// drops it and counts it. Short frames are padded by the device.
    fn transmit(&self, len: usize, fill: &mut dyn FnMut(&mut [u8]) -> TxMeta) -> bool;

    /// Notified when frames arrived, when room to transmit came back after `transmit` returned false, and when the
    /// link changed.
    fn activity(&self) -> &Event;
}
