//! Replies of the transmission phase (specification: "Simple reply message", "Structured reply chunk message",
//! "Error values"). Heads only: a read's data follow them straight from the page cache.

use super::request::Cookie;
use alloc::vec::Vec;

const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a simple reply before its data.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes of a chunk before its payload.
const CHUNK_LEN: usize = 20;
/// Bytes of a data chunk before its data.
pub const DATA_CHUNK_LEN: usize = CHUNK_LEN + 8;
/// Bytes of an error chunk; it carries no text.
pub const ERROR_CHUNK_LEN: usize = CHUNK_LEN + 6;

/// Errors the protocol has numbers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: the export is read-only.
    Perm = 1,
    /// The device failed.
    Io = 5,
    /// The request makes no sense.
    Inval = 22,
    /// No space, or beyond the end in a write.
    NoSpace = 28,
    /// Too long for one chunk.
    Overflow = 75,
    /// Zeroing would not be fast.
    NotSupported = 95,
    /// The server, or the export, is going away.
    Shutdown = 108,
}

/// Whether more chunks of the same reply follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Last {
    /// More follow.
    No = 0,
    /// The reply is complete.
    Yes = 1,
}

#[derive(Clone, Copy)]
#[repr(u16)]
enum ChunkKind {
    None = 0,
    OffsetData = 1,
    BlockStatus = 5,
    Error = 0x8001,
}

/// A simple reply; for a read that succeeded the data follow.
pub fn simple_reply(cookie: Cookie, result: Result<(), Errno>) -> [u8; SIMPLE_REPLY_LEN] {
    let error = result.err().map_or(0, |e| e as u32);
    let mut out = [0; SIMPLE_REPLY_LEN];
    out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.to_be_bytes());
    out[8..].copy_from_slice(&cookie.0.to_be_bytes());
    out
}

fn chunk(out: &mut [u8], cookie: Cookie, last: Last, kind: ChunkKind, len: u32) {
    out[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&(last as u16).to_be_bytes());
    out[6..8].copy_from_slice(&(kind as u16).to_be_bytes());
    out[8..16].copy_from_slice(&cookie.0.to_be_bytes());
    out[16..20].copy_from_slice(&len.to_be_bytes());
}

/// A chunk without payload, which ends a reply that has no content.
pub fn none_chunk(cookie: Cookie) -> [u8; CHUNK_LEN] {
    let mut out = [0; CHUNK_LEN];
    chunk(&mut out, cookie, Last::Yes, ChunkKind::None, 0);
    out
}

/// The head of a data chunk for `len` bytes at `offset`, which follow.
pub fn data_chunk(cookie: Cookie, last: Last, offset: u64, len: u32) -> [u8; DATA_CHUNK_LEN] {
    let mut out = [0; DATA_CHUNK_LEN];
    chunk(&mut out, cookie, last, ChunkKind::OffsetData, len + 8);
    out[CHUNK_LEN..].copy_from_slice(&offset.to_be_bytes());
    out
}

/// An error chunk, which ends the reply.
pub fn error_chunk(cookie: Cookie, error: Errno) -> [u8; ERROR_CHUNK_LEN] {
    let mut out = [0; ERROR_CHUNK_LEN];
    chunk(&mut out, cookie, Last::Yes, ChunkKind::Error, 6);
    out[CHUNK_LEN..CHUNK_LEN + 4].copy_from_slice(&(error as u32).to_be_bytes());
    out
}

bitflags::bitflags! {
    /// State of an extent in the context `base:allocation`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ExtentState: u32 {
        /// Takes no space.
        const HOLE = 1;
        /// Reads as zeroes.
        const ZERO = 2;
    }
}

/// One extent of a block status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes; never zero.
    pub len: u32,
    /// What they are.
    pub state: ExtentState,
}

/// A whole block status reply for the context with this id.
pub fn status_chunk(cookie: Cookie, context: u32, extents: &[Extent]) -> Vec<u8> {
    let len = 4 + extents.len() * 8;
    let mut out = Vec::with_capacity(CHUNK_LEN + len);
    out.resize(CHUNK_LEN, 0);
    let len = u32::try_from(len).expect("extents are bounded");
    chunk(&mut out, cookie, Last::Yes, ChunkKind::BlockStatus, len);
    out.extend_from_slice(&context.to_be_bytes());
    for extent in extents {
        out.extend_from_slice(&extent.len.to_be_bytes());
        out.extend_from_slice(&extent.state.bits().to_be_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOKIE: Cookie = Cookie(0x0102_0304_0506_0708);

    #[test]
    fn replies_are_the_bytes_of_the_specification() {
        assert_eq!(
            &simple_reply(COOKIE, Err(Errno::NoSpace)),
            b"\x67\x44\x66\x98\x00\x00\x00\x1c\x01\x02\x03\x04\x05\x06\x07\x08"
        );
        assert_eq!(
            &data_chunk(COOKIE, Last::Yes, 0x1000, 512),
            b"\x66\x8e\x33\xef\x00\x01\x00\x01\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x02\x08\x00\x00\x00\x00\x00\x00\x10\x00"
        );
        assert_eq!(
            &error_chunk(COOKIE, Errno::Io),
            b"\x66\x8e\x33\xef\x00\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x06\x00\x00\x00\x05\x00\x00"
        );
        assert_eq!(
            &none_chunk(COOKIE),
            b"\x66\x8e\x33\xef\x00\x01\x00\x00\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x00"
        );
        let hole = Extent { len: 4096, state: ExtentState::HOLE | ExtentState::ZERO };
        assert_eq!(
            &status_chunk(COOKIE, 1, &[hole])[6..],
            b"\x00\x05\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x0c\x00\x00\x00\x01\x00\x00\x10\x00\x00\x00\x00\x03"
        );
    }
}
