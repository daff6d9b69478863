//! A set of pool members by index: 32 bytes on disk, bit `i % 8` of byte `i / 8` for member `i`.

use core::fmt;

/// The most members a pool can have; indices run from 0 to 254 and are never reused.
pub const MEMBERS_MAX: usize = 255;

/// A set of member indices.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceSet([u8; 32]);

impl DeviceSet {
    /// The empty set.
    pub const EMPTY: DeviceSet = DeviceSet([0; 32]);

    /// From its bytes on disk; every value is valid.
    pub fn from_bytes(bytes: [u8; 32]) -> DeviceSet {
        DeviceSet(bytes)
    }

    /// As on disk.
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Adds a member.
    pub fn insert(&mut self, index: u8) {
        self.0[index as usize / 8] |= 1 << (index % 8);
    }

    /// Takes a member out.
    pub fn remove(&mut self, index: u8) {
        self.0[index as usize / 8] &= !(1 << (index % 8));
    }

    /// Whether a member is in it.
    pub fn contains(&self, index: u8) -> bool {
        self.0[index as usize / 8] & 1 << (index % 8) != 0
    }

    /// Its members in order.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|i| self.contains(*i))
    }

    /// How many members it has.
    pub fn len(&self) -> usize {
        self.0.iter().map(|b| b.count_ones() as usize).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 32]
    }
}

impl FromIterator<u8> for DeviceSet {
    fn from_iter<I: IntoIterator<Item = u8>>(indices: I) -> DeviceSet {
        let mut set = DeviceSet::EMPTY;
        indices.into_iter().for_each(|i| set.insert(i));
        set
    }
}

impl fmt::Display for DeviceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for index in self.iter() {
            write!(f, "{separator}{index}")?;
            separator = ",";
        }
        if self.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

impl fmt::Debug for DeviceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}
