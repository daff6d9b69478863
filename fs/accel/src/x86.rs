//! CRC-32C on x86-64 with the `crc32` instruction: one stream, and three at once (it has a latency of three cycles and a
//! throughput of one) joined by carry-less multiplication.

use crate::crc::power_of_x;
use core::arch::x86_64::{
    __cpuid, _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u64, _mm_cvtsi64_si128, _mm_cvtsi128_si64,
};

/// Stream lengths in bytes: three long ones make 4080 of a block's 4096 bytes, three short ones 504 of 512.
const LONG: usize = 1360;
const SHORT: usize = 168;

/// Factors that move a stream's checksum past the `n` streams of `length` bytes behind it.
///
/// The carry-less product of two reflected 32-bit polynomials, read as a reflected 64-bit one, is their product
/// times x; `crc32` of that with state 0 multiplies by x³² and reduces. So the factor is x^(8·n·length − 33).
const fn factor(n: usize, length: usize) -> i64 {
    power_of_x((8 * n * length - 33) as u64) as i64
}

const PCLMULQDQ: u32 = 1 << 1;
const SSE4_2: u32 = 1 << 20;

/// Whether this processor has all of these features (they need only the SSE state that every x86-64 system keeps).
fn has(features: u32) -> bool {
    __cpuid(1).ecx & features == features
}

/// Whether this processor has SSE4.2.
pub(crate) fn has_crc32() -> bool {
    has(SSE4_2)
}

/// Whether this processor has SSE4.2 and PCLMULQDQ.
pub(crate) fn has_crc32_and_pclmul() -> bool {
    has(SSE4_2 | PCLMULQDQ)
}

/// As [`crate::crc::crc32c_scalar`]. Only for processors where [`has_crc32`]: those of 2008 have no PCLMULQDQ.
pub(crate) fn crc32c_one_way(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: the dispatch table offers this routine only after `has_crc32` said yes.
    unsafe { one_way(crc, bytes) }
}

#[target_feature(enable = "sse4.2")]
fn one_way(crc: u32, bytes: &[u8]) -> u32 {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut crc = u64::from(!crc);
    for word in words {
        crc = _mm_crc32_u64(crc, u64::from_le_bytes(*word));
    }
    let mut crc = crc as u32;
    for byte in tail {
        crc = _mm_crc32_u8(crc, *byte);
    }
    !crc
}

/// As [`crate::crc::crc32c_scalar`]. Only for processors where [`has_crc32_and_pclmul`].
pub(crate) fn crc32c_three_way(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: the dispatch table offers this routine only after `has_crc32_and_pclmul` said yes.
    unsafe { three_way(crc, bytes) }
}

#[target_feature(enable = "sse4.2,pclmulqdq")]
fn three_way(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = u64::from(!crc);
    let mut rest = bytes;
    (crc, rest) = streams::<LONG, { factor(2, LONG) }, { factor(1, LONG) }>(crc, rest);
    (crc, rest) = streams::<SHORT, { factor(2, SHORT) }, { factor(1, SHORT) }>(crc, rest);
    one_way(!(crc as u32), rest)
}

/// Eats groups of three streams of `LEN` bytes (a multiple of eight) from the front of `bytes`.
#[target_feature(enable = "sse4.2,pclmulqdq")]
fn streams<const LEN: usize, const PAST_TWO: i64, const PAST_ONE: i64>(
    mut crc: u64,
    mut bytes: &[u8],
) -> (u64, &[u8]) {
    while bytes.len() >= 3 * LEN {
        let (group, rest) = bytes.split_at(3 * LEN);
        let (words, _) = group.as_chunks::<8>();
        let (first, words) = words.split_at(LEN / 8);
        let (second, third) = words.split_at(LEN / 8);
        let (mut a, mut b, mut c) = (crc, 0, 0);
        for ((x, y), z) in first.iter().zip(second).zip(third) {
            a = _mm_crc32_u64(a, u64::from_le_bytes(*x));
            b = _mm_crc32_u64(b, u64::from_le_bytes(*y));
            c = _mm_crc32_u64(c, u64::from_le_bytes(*z));
        }
        crc = moved(a, PAST_TWO) ^ moved(b, PAST_ONE) ^ c;
        bytes = rest;
    }
    (crc, bytes)
}

#[target_feature(enable = "sse4.2,pclmulqdq")]
fn moved(crc: u64, factor: i64) -> u64 {
    let product = _mm_clmulepi64_si128::<0>(_mm_cvtsi64_si128(crc as i64), _mm_cvtsi64_si128(factor));
    _mm_crc32_u64(0, _mm_cvtsi128_si64(product) as u64)
}
