//! The log ring: the last lines of this boot in a piece of memory that a warm reset leaves alone, so that the next
//! boot can tell why the last one ended.
//!
//! Bytes 0..8 magic, 8..16 total bytes ever written, 16..20 how it ended, 20..24 check over all of these; then text.

/// Bytes of the head.
const HEAD: usize = 24;
const MAGIC: u64 = 0x676f_4c65_6e69_6172;

/// How a boot ended, as far as it could say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Ending {
    /// It said nothing: power cut, reset, or it still runs.
    Silent = 0,
    /// It shut down in order.
    Clean = 1,
    /// It panicked; the ring's end says why.
    Panic = 2,
}

/// A ring over a piece of memory.
pub struct Ring<'a> {
    memory: &'a mut [u8],
}

impl<'a> Ring<'a> {
    /// Takes the memory over as it is; [`Ring::previous`] tells whether it holds a ring.
    pub fn over(memory: &'a mut [u8]) -> Ring<'a> {
        assert!(memory.len() > HEAD, "a ring has room for text");
        Ring { memory }
    }

    /// How the boot that wrote this ring ended, and its text in two parts, older first. None if this is no ring.
    pub fn previous(&self) -> Option<(Ending, &[u8], &[u8])> {
        let total = self.word64(8);
        let ending = match self.word32(16) {
            0 => Ending::Silent,
            1 => Ending::Clean,
            2 => Ending::Panic,
            _ => return None,
        };
        if self.word64(0) != MAGIC || self.word32(20) != check(total, ending) {
            return None;
        }
        let text = &self.memory[HEAD..];
        let at = (total % text.len() as u64) as usize;
        let older = if total > text.len() as u64 { &text[at..] } else { &[] };
        Some((ending, older, &text[..at]))
    }

    /// Starts anew.
    pub fn clear(&mut self) {
        self.memory[..8].copy_from_slice(&MAGIC.to_le_bytes());
        self.set(0, Ending::Silent);
    }

    /// Appends text; the oldest goes.
    pub fn write(&mut self, bytes: &[u8]) {
        let total = self.word64(8);
        let room = self.memory.len() - HEAD;
        let mut at = (total % room as u64) as usize;
        for &byte in bytes {
            self.memory[HEAD + at] = byte;
            at = if at + 1 == room { 0 } else { at + 1 };
        }
        self.set(total.wrapping_add(bytes.len() as u64), Ending::Silent);
    }

    /// Notes how this boot ends; any later [`Ring::write`] takes it back.
    pub fn end(&mut self, ending: Ending) {
        self.set(self.word64(8), ending);
    }

    fn set(&mut self, total: u64, ending: Ending) {
        self.memory[8..16].copy_from_slice(&total.to_le_bytes());
        self.memory[16..20].copy_from_slice(&(ending as u32).to_le_bytes());
        self.memory[20..24].copy_from_slice(&check(total, ending).to_le_bytes());
    }

    fn word64(&self, at: usize) -> u64 {
        u64::from_le_bytes(core::array::from_fn(|i| self.memory[at + i]))
    }

    fn word32(&self, at: usize) -> u32 {
        u32::from_le_bytes(core::array::from_fn(|i| self.memory[at + i]))
    }
}

/// Tells a real head from memory that happens to begin like one.
fn check(total: u64, ending: Ending) -> u32 {
    let mixed = (total ^ MAGIC).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ending as u64;
    (mixed >> 32) as u32 ^ mixed as u32
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn the_next_boot_reads_what_the_last_one_wrote() {
        let mut memory = [0xa5; 64];
        let mut ring = Ring::over(&mut memory);
        assert!(ring.previous().is_none(), "arbitrary memory is not a log");
        ring.clear();
        ring.write(b"hello ");
        ring.write(b"world");
        ring.end(Ending::Panic);
        let again = Ring::over(&mut memory);
        assert_eq!(again.previous(), Some((Ending::Panic, &b""[..], &b"hello world"[..])));
    }

    #[test]
    fn the_oldest_text_goes_first() {
        let mut memory = [0; HEAD + 8];
        let mut ring = Ring::over(&mut memory);
        ring.clear();
        ring.write(b"0123456789ab");
        let (ending, older, newer) = ring.previous().unwrap();
        assert_eq!((ending, older, newer), (Ending::Silent, &b"4567"[..], &b"89ab"[..]));
    }

    #[test]
    fn a_damaged_head_is_no_log() {
        let mut memory = [0; 128];
        Ring::over(&mut memory).clear();
        memory[9] = 1;
        assert!(Ring::over(&mut memory).previous().is_none());
    }
}
