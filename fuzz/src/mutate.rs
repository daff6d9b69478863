//! Changed bytes out of good ones. The same seed makes the same bytes, so a number replays an input.

/// Longest input made, in bytes.
const LEN_MAX: usize = 64 << 10;
/// Most changes to one input.
const CHANGES_MAX: u64 = 6;
/// Bytes of a record, in inputs that are made of such.
const RECORD: usize = 16;
/// Numbers that decoders get wrong.
const ODD: [u64; 14] = [
    0,
    1,
    2,
    3,
    7,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

/// A small generator (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, which is not zero.
    pub fn below(&mut self, n: usize) -> usize {
        (self.roll() % n as u64) as usize
    }
}

/// One of `inputs`, changed in a few places as `seed` says.
pub fn mutate(inputs: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    let bytes = inputs[dice.below(inputs.len())].clone();
    change_some(bytes, inputs, &mut dice)
}

/// `bytes`, changed in a few places; `inputs` lend parts of theirs.
pub fn change_some(mut bytes: Vec<u8>, inputs: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    for _ in 0..1 + dice.roll() % CHANGES_MAX {
        change(&mut bytes, inputs, dice);
    }
    bytes.truncate(LEN_MAX);
    bytes
}

fn change(bytes: &mut Vec<u8>, inputs: &[Vec<u8>], dice: &mut Dice) {
    let len = bytes.len();
    let at = dice.below(len + 1);
    match dice.below(11) {
        0 if len > 0 => bytes[at.min(len - 1)] ^= 1 << dice.below(8),
        1 if len > 0 => bytes[at.min(len - 1)] = dice.roll() as u8,
        2 => {
            let (width, odd) = ([1, 2, 4, 8][dice.below(4)], ODD[dice.below(ODD.len())]);
            let number = odd.wrapping_sub(dice.roll() % 2);
            let raw = if dice.below(2) == 0 {
                number.to_be_bytes()[8 - width..].to_vec()
            } else {
                number.to_le_bytes()[..width].to_vec()
            };
            // Fields lie at multiples of their width more often than not.
            let at = at / width * width;
            if at + width <= len {
                bytes[at..at + width].copy_from_slice(&raw);
            }
        }
        3 => bytes.truncate(at),
        4 => {
            let new = (0..1 + dice.below(16)).map(|_| dice.roll() as u8).collect::<Vec<_>>();
            bytes.splice(at..at, new);
        }
        5 => drop(bytes.drain(at..len.min(at + 1 + dice.below(16)))),
        6 => {
            let end = len.min(at + 1 + dice.below(64));
            let copy = bytes[at..end].to_vec();
            let to = dice.below(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        7 => {
            let other = &inputs[dice.below(inputs.len())];
            let from = dice.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        // Records of a fixed size, which targets of many small steps are made of: gone, or from another place.
        8 if len > RECORD => {
            let at = record(dice, len);
            bytes.drain(at..len.min(at + RECORD));
        }
        9 => {
            let other = &inputs[dice.below(inputs.len())];
            let from = record(dice, other.len());
            let copy = other[from..other.len().min(from + RECORD)].to_vec();
            let at = record(dice, len);
            bytes.splice(at..at, copy);
        }
        _ => {
            let end = len.min(at + dice.below(32));
            bytes[at..end].fill(ODD[dice.below(4)] as u8);
        }
    }
}

/// Where a record begins, behind the first byte.
fn record(dice: &mut Dice, len: usize) -> usize {
    (1 + dice.below(len / RECORD + 1) * RECORD).min(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_an_input_and_inputs_differ() {
        let inputs = [b"some bytes to begin with".to_vec(), vec![7; 100], Vec::new()];
        let made: Vec<_> = (0..1000).map(|seed| mutate(&inputs, seed)).collect();
        assert_eq!(made, (0..1000).map(|seed| mutate(&inputs, seed)).collect::<Vec<_>>());
        let distinct: std::collections::BTreeSet<_> = made.iter().collect();
        assert!(distinct.len() > 700, "{}", distinct.len());
        assert!(made.iter().all(|bytes| bytes.len() <= LEN_MAX));
    }
}
