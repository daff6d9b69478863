//! Record marking (RFC 5531 §11): a record is a row of fragments, each after a word with its length and a mark on the
//! last. Fragments may have any size, also none, so the *sum* is bounded and so is their number.

use core::fmt;

/// The most fragments a record may come in: honest clients send one, or a few.
pub(super) const FRAGMENTS_MAX: u32 = 4096;

const LAST: u32 = 1 << 31;

/// Why a stream can no longer be told into records. It must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordError {
    /// The record is longer than its bound.
    TooLong,
    /// It comes in more than [`FRAGMENTS_MAX`] fragments.
    TooManyFragments,
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecordError::TooLong => "record longer than allowed",
            RecordError::TooManyFragments => "record in too many fragments",
        })
    }
}

/// What a step through the stream found.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The input is used up.
    NeedMore,
    /// Bytes of the current record.
    Body(&'a [u8]),
    /// The current record is complete; the next one begins.
    End,
}

/// The state between bytes of a stream of records.
#[derive(Debug)]
pub struct Fragments {
    record_max: u32,
    mark: [u8; 4],
    mark_have: usize,
    in_fragment: bool,
    last: bool,
    left: u32,
    total: u32,
    count: u32,
}

impl Fragments {
    /// At the start of a stream whose records have at most `record_max` bytes.
    pub fn new(record_max: u32) -> Fragments {
        Fragments {
            record_max,
            mark: [0; 4],
            mark_have: 0,
            in_fragment: false,
            last: false,
            left: 0,
            total: 0,
            count: 0,
        }
    }

    /// Whether nothing of a further record was seen.
    pub fn at_boundary(&self) -> bool {
        self.count == 0 && self.mark_have == 0
    }

    /// Takes the next piece off the front of `input`; a body piece has at most `max` bytes, and `max` is not zero.
    pub fn step<'a>(&mut self, input: &mut &'a [u8], max: usize) -> Result<Piece<'a>, RecordError> {
        assert!(max > 0, "a step of nothing would never end");
        loop {
            if self.in_fragment && self.left > 0 {
                if input.is_empty() {
                    return Ok(Piece::NeedMore);
                }
                let take = input.len().min(max).min(self.left as usize);
                let (body, rest) = input.split_at(take);
                *input = rest;
                self.left -= take as u32;
                return Ok(Piece::Body(body));
            }
            if self.in_fragment {
                self.in_fragment = false;
                if self.last {
                    *self = Fragments::new(self.record_max);
                    return Ok(Piece::End);
                }
            }
            while self.mark_have < 4 {
                let Some((&byte, rest)) = input.split_first() else { return Ok(Piece::NeedMore) };
                *input = rest;
                self.mark[self.mark_have] = byte;
                self.mark_have += 1;
            }
            let mark = u32::from_be_bytes(self.mark);
            self.mark_have = 0;
            self.in_fragment = true;
            self.last = mark & LAST != 0;
            self.left = mark & !LAST;
            self.total = self.total.saturating_add(self.left);
            self.count += 1;
            if self.total > self.record_max {
                return Err(RecordError::TooLong);
            }
            if self.count > FRAGMENTS_MAX {
                return Err(RecordError::TooManyFragments);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn records(chunks: &[&[u8]], max: usize) -> Result<Vec<Vec<u8>>, RecordError> {
        let mut fragments = Fragments::new(1000);
        let (mut done, mut current) = (Vec::new(), Vec::new());
        for mut chunk in chunks.iter().copied() {
            loop {
                match fragments.step(&mut chunk, max)? {
                    Piece::NeedMore => break,
                    Piece::Body(body) => current.extend_from_slice(body),
                    Piece::End => done.push(core::mem::take(&mut current)),
                }
            }
        }
        assert!(current.is_empty());
        assert!(fragments.at_boundary());
        Ok(done)
    }

    #[test]
    fn r_01_a_record_is_the_same_however_it_is_cut() {
        // "ab" + "" + "c", then an empty record, then "defg".
        let stream: &[u8] = &[
            0, 0, 0, 2, b'a', b'b', 0, 0, 0, 0, 0x80, 0, 0, 1, b'c', 0x80, 0, 0, 0, 0x80, 0, 0, 4, b'd',
            b'e', b'f', b'g',
        ];
        let want = [b"abc".to_vec(), Vec::new(), b"defg".to_vec()];
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let chunks = [&stream[..first], &stream[first..second], &stream[second..]];
                for max in [1, 2, 100] {
                    assert_eq!(records(&chunks, max).unwrap(), want, "cut at {first} and {second}");
                }
            }
        }
    }

    #[test]
    fn r_01_the_sum_of_fragments_and_their_number_are_bounded() {
        assert_eq!(records(&[&[0xff, 0xff, 0xff, 0xff]], 9), Err(RecordError::TooLong));
        assert_eq!(records(&[&[0x7f, 0xff, 0xff, 0xff]], 9), Err(RecordError::TooLong));
        let mut two = Vec::from([0, 0, 3, 232]);
        two.extend_from_slice(&[7; 1000]);
        two.extend_from_slice(&[0x80, 0, 0, 1]);
        assert_eq!(records(&[&two], 9), Err(RecordError::TooLong));
        let empties = [0u8; 4 * (FRAGMENTS_MAX as usize + 1)];
        assert_eq!(records(&[&empties], 9), Err(RecordError::TooManyFragments));
    }
}
