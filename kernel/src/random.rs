//! Random numbers: ChaCha20, seeded from the processor's generator, or from timing jitter where it has none.

use crate::cpu::{self, features};
use crate::machine::clock;
use core::arch::asm;
use core::cell::RefCell;
use moraine_platform::{Rng, warn};
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

/// Tries for each word of the processor's generator, which may be drained for a moment.
const TRIES: usize = 100;
/// Time stamps mixed into each word of a seed without it.
const JITTER_ROUNDS: usize = 4096;

/// The generator of the reactor's core.
pub(crate) struct Random {
    stream: RefCell<ChaCha20Rng>,
}

impl Random {
    /// Seeds a generator.
    pub(crate) fn new() -> Random {
        let has_generator = features::get().random;
        if !has_generator {
            warn!("random", "this processor makes no random numbers; seeding from timing");
        }
        let mut seed = [0; 32];
        for (i, part) in seed.chunks_exact_mut(8).enumerate() {
            let mut word = jitter() ^ (clock::wall_ns().rotate_left(i as u32 * 16));
            if has_generator {
                word ^= (0..TRIES).find_map(|_| from_processor()).unwrap_or(0);
            }
            part.copy_from_slice(&word.to_le_bytes());
        }
        Random { stream: RefCell::new(ChaCha20Rng::from_seed(seed)) }
    }
}

impl Rng for Random {
    fn fill(&self, out: &mut [u8]) {
        self.stream.borrow_mut().fill_bytes(out);
    }
}

/// One word of the processor's generator.
fn from_processor() -> Option<u64> {
    let (word, good): (u64, u8);
    // SAFETY: the caller checked that the instruction exists; it only writes its operands.
    unsafe { asm!("rdrand {}", "setc {}", out(reg) word, out(reg_byte) good, options(nomem, nostack)) };
    (good != 0).then_some(word)
}

/// A word from the low bits of many time stamps, whose distances vary.
fn jitter() -> u64 {
    (0..JITTER_ROUNDS).fold(0x9e37_79b9_7f4a_7c15_u64, |word, _| {
        (word ^ cpu::cycles()).rotate_left(7).wrapping_mul(0xd6e8_feb8_6659_fd93)
    })
}
