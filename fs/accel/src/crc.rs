//! CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) in portable Rust, and the algebra of CRCs.
//!
//! A CRC is a remainder of polynomials over GF(2). In the reflected representation used here bit 31 of a word is
//! the coefficient of x⁰ and bit 0 that of x³¹.

/// The polynomial without its x³² term, reflected.
pub const POLYNOMIAL: u32 = 0x82F6_3B78;

const SLICES: usize = 8;
static TABLES: [[u32; 256]; SLICES] = tables();

const fn tables() -> [[u32; 256]; SLICES] {
    let mut out = [[0u32; 256]; SLICES];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        out[0][byte] = crc;
        byte += 1;
    }
    let mut slice = 1;
    while slice < SLICES {
        let mut byte = 0;
        while byte < 256 {
            let before = out[slice - 1][byte];
            out[slice][byte] = before >> 8 ^ out[0][(before & 0xFF) as usize];
            byte += 1;
        }
        slice += 1;
    }
    out
}

/// Checksum of a message whose first part has checksum `crc` (0 for none) and whose rest is `bytes`: eight bytes a
/// step through eight tables.
pub fn crc32c_scalar(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = !crc;
    let (chunks, rest) = bytes.as_chunks::<SLICES>();
    for chunk in chunks {
        let word = u64::from_le_bytes(*chunk) ^ u64::from(crc);
        let at = |slice: usize, shift: u32| TABLES[slice][(word >> shift & 0xFF) as usize];
        crc = at(7, 0) ^ at(6, 8) ^ at(5, 16) ^ at(4, 24) ^ at(3, 32) ^ at(2, 40) ^ at(1, 48) ^ at(0, 56);
    }
    for byte in rest {
        crc = crc >> 8 ^ TABLES[0][((crc ^ u32::from(*byte)) & 0xFF) as usize];
    }
    !crc
}

/// Product of two reflected polynomials modulo the CRC's.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut mask = 1u32 << 31;
    let mut product = 0;
    while mask != 0 {
        if a & mask != 0 {
            product ^= b;
        }
        mask >>= 1;
        b = if b & 1 != 0 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
    }
    product
}

/// x to the power of `exponent`, modulo the CRC's polynomial, reflected.
pub const fn power_of_x(mut exponent: u64) -> u32 {
    let mut square = 1u32 << 30; // x¹
    let mut result = 1u32 << 31; // x⁰
    while exponent != 0 {
        if exponent & 1 != 0 {
            result = multiply(result, square);
        }
        square = multiply(square, square);
        exponent >>= 1;
    }
    result
}

/// Checksum of `A ‖ B` from the checksums of both and the length of B in bytes, without looking at the bytes.
pub const fn combine(crc_a: u32, crc_b: u32, length_b: u64) -> u32 {
    // P is (x + 1) times a primitive polynomial of degree 31, so powers of x repeat after 2³¹ − 1.
    let exponent = (length_b % 0x7FFF_FFFF) * 8;
    multiply(crc_a, power_of_x(exponent)) ^ crc_b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_rfc_3720() {
        assert_eq!(crc32c_scalar(0, b"123456789"), 0xE306_9283);
        assert_eq!(crc32c_scalar(0, &[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c_scalar(0, &[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c_scalar(0, b""), 0);
    }

    #[test]
    fn combining_parts_is_the_checksum_of_the_whole() {
        let bytes: std::vec::Vec<u8> = (0..5000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        for cut in [0, 1, 7, 8, 100, 4096, 4999, 5000] {
            let (a, b) = bytes.split_at(cut);
            let combined = combine(crc32c_scalar(0, a), crc32c_scalar(0, b), b.len() as u64);
            assert_eq!(combined, crc32c_scalar(0, &bytes), "cut at {cut}");
        }
    }

    #[test]
    fn lengths_beyond_the_period_of_x_combine_too() {
        let half = combine(0xDEAD_BEEF, 0, 1 << 39);
        assert_eq!(combine(half, 0, 1 << 39), combine(0xDEAD_BEEF, 0, 1 << 40));
    }

    #[test]
    fn a_zero_run_of_any_length_can_be_appended_without_its_bytes() {
        let crc = crc32c_scalar(0, b"head");
        let mut whole = std::vec::Vec::from(*b"head");
        whole.resize(4 + 100_000, 0);
        let zeroes = crc32c_scalar(0, &whole[4..]);
        assert_eq!(combine(crc, zeroes, 100_000), crc32c_scalar(0, &whole));
    }
}
