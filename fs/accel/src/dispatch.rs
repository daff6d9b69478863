//! Which variant of each routine is used: a table of variants, one chosen by name, by the processor or by the clock.

use crate::crc::crc32c_scalar;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

/// One set of routines. All sets give the same answers.
#[derive(Clone, Copy, Debug)]
pub struct Routines {
    name: &'static str,
    crc32c: fn(u32, &[u8]) -> u32,
    usable: fn() -> bool,
}

/// What [`Routines::calibrate`] measured of one set.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The set.
    pub routines: &'static Routines,
    /// Throughput of CRC-32C over 4 KiB blocks, in bytes per microsecond; 0 if the clock did not move.
    pub crc32c_bytes_per_us: u64,
}

/// All sets, slowest first. The order is the preference of [`Routines::detect`], last usable wins.
static ALL: &[Routines] = &[
    Routines { name: "scalar", crc32c: crc32c_scalar, usable: || true },
    #[cfg(target_arch = "x86_64")]
    Routines { name: "sse4.2", crc32c: crate::x86::crc32c_one_way, usable: crate::x86::has_crc32 },
    #[cfg(target_arch = "x86_64")]
    Routines {
        name: "pclmul",
        crc32c: crate::x86::crc32c_three_way,
        usable: crate::x86::has_crc32_and_pclmul,
    },
];

/// Index of the set in use plus one; 0 as long as nobody chose.
static CHOSEN: AtomicUsize = AtomicUsize::new(0);

impl Routines {
    /// The portable set: the fixed choice of the simulator.
    pub fn scalar() -> &'static Routines {
        &ALL[0]
    }

    /// The best set that this processor can run.
    pub fn detect() -> &'static Routines {
        Routines::usable().last().unwrap_or(&ALL[0])
    }

    /// The sets this processor can run, slowest first as far as known without measuring.
    pub fn usable() -> impl DoubleEndedIterator<Item = &'static Routines> {
        ALL.iter().filter(|r| (r.usable)())
    }

    /// The set called `name`, if it exists and this processor can run it.
    pub fn by_name(name: &str) -> Option<&'static Routines> {
        Routines::usable().find(|r| r.name == name)
    }

    /// The set in use: the one [`Routines::choose`]n, else what [`Routines::detect`] finds.
    pub fn current() -> &'static Routines {
        let chosen = CHOSEN.load(Ordering::Relaxed);
        if chosen != 0 {
            return &ALL[chosen - 1];
        }
        let found = Routines::detect();
        found.choose();
        found
    }

    /// Uses this set from now on.
    pub fn choose(&'static self) {
        let index = ALL.iter().position(|r| r.name == self.name).unwrap_or(0);
        CHOSEN.store(index + 1, Ordering::Relaxed);
    }

    /// Its name, as on the boot command line.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// CRC-32C of a message whose first part has checksum `crc` (0 for none) and whose rest is `bytes`.
    pub fn crc32c(&self, crc: u32, bytes: &[u8]) -> u32 {
        (self.crc32c)(crc, bytes)
    }

    /// Measures all usable sets with `now`, a clock in nanoseconds, and says how fast each is; the caller chooses.
    /// Takes less than a millisecond in all on a real processor, a few on an emulated one.
    pub fn calibrate(mut now: impl FnMut() -> u64) -> Vec<Measured> {
        const TRIES: u64 = 4;
        const BLOCKS: u64 = 8;
        let block = [0x5A_u8; 4096];
        let measure = |routines: &'static Routines| {
            let mut crc = routines.crc32c(0, &block); // warms caches and tables
            let mut least_ns = u64::MAX;
            // The best of a few tries: an interrupt in the middle of one must not decide.
            for _ in 0..TRIES {
                let start = now();
                for _ in 0..BLOCKS {
                    crc = routines.crc32c(crc, core::hint::black_box(&block));
                }
                core::hint::black_box(crc);
                least_ns = least_ns.min(now().saturating_sub(start));
            }
            let bytes = BLOCKS * block.len() as u64;
            Measured { routines, crc32c_bytes_per_us: (bytes * 1000).checked_div(least_ns).unwrap_or(0) }
        };
        Routines::usable().map(measure).collect()
    }
}

/// CRC-32C of `bytes`, by the set in use.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c_append(0, bytes)
}

/// CRC-32C of a message whose first part has checksum `crc` and whose rest is `bytes`, by the set in use.
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    Routines::current().crc32c(crc, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn every_set_agrees_with_the_oracle_at_every_length_and_alignment() {
        let bytes = noise(9000);
        assert!(Routines::usable().count() >= 1);
        for routines in Routines::usable() {
            for length in (0..600).chain([1023, 4079, 4080, 4081, 4096, 8160, 8192, 8999]) {
                for start in [0, 1, 3, 8] {
                    let Some(part) = bytes.get(start..start + length) else { continue };
                    let oracle = ::crc32c::crc32c_append(0x1234_5678, part);
                    assert_eq!(
                        routines.crc32c(0x1234_5678, part),
                        oracle,
                        "{} of {length} bytes at {start}",
                        routines.name()
                    );
                }
            }
        }
    }

    #[test]
    fn a_set_is_found_by_name_and_measured_with_the_callers_clock() {
        assert_eq!(Routines::by_name("scalar").map(|r| r.name()), Some("scalar"));
        assert!(Routines::by_name("no such set").is_none());
        let mut ticks = 0;
        let measured = Routines::calibrate(|| {
            ticks += 1000;
            ticks
        });
        assert_eq!(measured.len(), Routines::usable().count());
        assert!(measured.iter().all(|m| m.crc32c_bytes_per_us == 8 * 4096));
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c_append(crc32c(b"12345"), b"6789"), 0xE306_9283);
    }
}
