//! Reading XDR: every length is checked against the bytes left and a bound given by the caller before it is used.

use super::padding;
use core::fmt;

/// Why bytes are not the message they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes end inside an item.
    Truncated,
    /// A counted item is longer than its bound.
    TooLong,
    /// A boolean other than 0 and 1.
    BadBool,
    /// An enumeration or union discriminant that does not exist.
    BadArm,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Malformed::Truncated => "ends inside an item",
            Malformed::TooLong => "an item is longer than allowed",
            Malformed::BadBool => "a boolean is neither 0 nor 1",
            Malformed::BadArm => "an unknown enumeration value",
        })
    }
}

/// A position in bytes from outside.
#[derive(Clone, Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        Decoder { rest: bytes }
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(Malformed::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    /// A fixed number of bytes that is a multiple of four, as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        const { assert!(N.is_multiple_of(4), "fixed opaque items here need no padding") };
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// An unsigned integer (§4.2).
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// An unsigned hyper integer (§4.5).
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A boolean (§4.4).
    pub fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed::BadBool),
        }
    }

    /// Variable-length opaque data or a string of at most `max` bytes (§4.10, §4.11). The value of padding bytes is
    /// not looked at: some clients leave them as they are.
    pub fn opaque(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let len = self.u32()? as usize;
        if len > max {
            return Err(Malformed::TooLong);
        }
        let bytes = self.take(len)?;
        self.take(padding(len))?;
        Ok(bytes)
    }

    /// An optional item: a boolean, then the item if it is true (§4.19).
    pub fn optional<T>(
        &mut self,
        item: impl FnOnce(&mut Decoder<'a>) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if self.bool()? { item(self).map(Some) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_read_in_order_and_nothing_beyond_the_end() {
        let bytes = [0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 5, 1, 2, 3, 4, 5, 9, 9, 9];
        let mut d = Decoder::new(&bytes);
        assert_eq!(d.u32(), Ok(7));
        assert_eq!(d.u64(), Ok(256));
        assert_eq!(d.bool(), Ok(true));
        assert_eq!(d.opaque(5), Ok(&[1, 2, 3, 4, 5][..]));
        assert!(d.rest().is_empty());
        assert_eq!(d.u32(), Err(Malformed::Truncated));
    }

    #[test]
    fn hostile_lengths_fail_before_they_are_used() {
        let huge = [0xff; 8];
        assert_eq!(Decoder::new(&huge).opaque(usize::MAX), Err(Malformed::Truncated));
        assert_eq!(Decoder::new(&huge).opaque(64), Err(Malformed::TooLong));
        assert_eq!(Decoder::new(&huge).bool(), Err(Malformed::BadBool));
        // The padding belongs to the item: without it the message is cut short.
        assert_eq!(Decoder::new(&[0, 0, 0, 1, 7]).opaque(64), Err(Malformed::Truncated));
    }
}
