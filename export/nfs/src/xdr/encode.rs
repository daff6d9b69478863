//! Writing XDR into one growing buffer. Sizes are bounded by the callers: a reply is at most a few hundred bytes, a
//! directory listing at most what the client asked for within the server's limit.

use super::padding;
use alloc::vec::Vec;

/// A message being written.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// An empty message with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Encoder {
        Encoder { bytes: Vec::with_capacity(capacity) }
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The message.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Forgets everything after the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    /// Bytes as they are; their number must be a multiple of four.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Encoder {
        assert!(bytes.len().is_multiple_of(4), "XDR items fill whole words");
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// An unsigned integer.
    pub fn u32(&mut self, value: u32) -> &mut Encoder {
        self.raw(&value.to_be_bytes())
    }

    /// An unsigned hyper integer.
    pub fn u64(&mut self, value: u64) -> &mut Encoder {
        self.raw(&value.to_be_bytes())
    }

    /// A boolean.
    pub fn bool(&mut self, value: bool) -> &mut Encoder {
        self.u32(value as u32)
    }

    /// Variable-length opaque data or a string.
    pub fn opaque(&mut self, bytes: &[u8]) -> &mut Encoder {
        self.u32(u32::try_from(bytes.len()).expect("messages are far below 4 GiB"));
        self.bytes.extend_from_slice(bytes);
        self.bytes.extend_from_slice(&[0; 3][..padding(bytes.len())]);
        self
    }

    /// Overwrites the word at byte `at`.
    pub fn set_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_of_each_item() {
        let mut e = Encoder::default();
        e.u32(1).u64(2).bool(true).opaque(b"abcde").raw(&[9, 8, 7, 6]);
        e.set_u32(0, 0x0102_0304);
        assert_eq!(
            e.into_bytes(),
            [
                1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 5, b'a', b'b', b'c', b'd', b'e', 0,
                0, 0, 9, 8, 7, 6
            ]
        );
    }
}
