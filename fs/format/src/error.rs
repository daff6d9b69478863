//! Why bytes from a disk are not what they should be.

use core::fmt;

/// Bytes that are not a valid structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// Fewer bytes than the structure has.
    Short,
    /// Not this structure, or not of this pool.
    Magic,
    /// The checksum does not match.
    Checksum,
    /// A length or count does not fit.
    Length,
    /// Entries out of order or out of range.
    Order,
    /// A version or type this build does not know.
    Unsupported,
    /// A field has a value it cannot have.
    Value,
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FormatError::Short => "too short",
            FormatError::Magic => "wrong magic",
            FormatError::Checksum => "checksum mismatch",
            FormatError::Length => "impossible length",
            FormatError::Order => "entries out of order",
            FormatError::Unsupported => "unknown version or type",
            FormatError::Value => "impossible value",
        })
    }
}

impl core::error::Error for FormatError {}
