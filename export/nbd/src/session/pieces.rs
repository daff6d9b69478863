//! Long ranges are served in pieces, so that no request needs more memory than one piece.

/// Bytes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first.
    pub(crate) offset: u64,
    /// How many.
    pub(crate) len: u64,
}

/// Cuts a range at the multiples of `size`, so that only the first and the last piece may be shorter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    left: Range,
    size: u64,
}

impl Range {
    /// The pieces of at most `size` bytes.
    pub(crate) fn pieces(self, size: u64) -> Pieces {
        assert!(size > 0, "pieces have a size");
        Pieces { left: self, size }
    }
}

impl Iterator for Pieces {
    type Item = Range;

    fn next(&mut self) -> Option<Range> {
        if self.left.len == 0 {
            return None;
        }
        let len = (self.size - self.left.offset % self.size).min(self.left.len);
        let piece = Range { offset: self.left.offset, len };
        self.left = Range { offset: self.left.offset + len, len: self.left.len - len };
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn pieces_cover_the_range_in_order_and_end_on_boundaries() {
        for offset in [0, 1, 511, 512, 1000, 1024, 4095] {
            for len in [0, 1, 512, 1023, 1024, 1025, 5000] {
                let pieces: Vec<_> = Range { offset, len }.pieces(1024).collect();
                let mut at = offset;
                for (n, piece) in pieces.iter().enumerate() {
                    assert_eq!(piece.offset, at);
                    assert!(piece.len > 0 && piece.len <= 1024);
                    at += piece.len;
                    assert!(n + 1 == pieces.len() || at % 1024 == 0);
                }
                assert_eq!(at, offset + len);
            }
        }
    }
}
