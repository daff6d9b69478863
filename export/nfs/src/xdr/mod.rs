//! XDR (RFC 4506): the byte order and padding under every message here, over slices, without I/O.
//!
//! | file | what |
//! |---|---|
//! | `decode.rs` | [`Decoder`]: checked reading of bytes from outside |
//! | `encode.rs` | [`Encoder`]: writing into one growing buffer |

mod decode;
mod encode;

pub use decode::{Decoder, Malformed};
pub use encode::Encoder;

/// Bytes of padding after `len` bytes of opaque data: XDR items fill whole words of four.
pub const fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}
