//! Which entries are history? A pure decision over what was found on the journal devices after a crash.
//!
//! History is the newest valid flush entry whose chain of hashes reaches the entry it names as the oldest needed. All
//! other entries are dead, for ever: the next mount chains to the chosen end under a new epoch and with numbers above
//! all that were seen.
//!
//! **Torn or rotten?** Entries behind the chosen end may be missing because power went while they were written: they
//! were never acknowledged. But every entry claims in `flushed_upto` what was durable when it was submitted. If history
//! would end before such a claim, an acknowledged entry is gone: that is rot, and no start is safe.

use crate::planted::{self, Fault};
use alloc::vec::Vec;
use hashbrown::HashMap;
use moraine_format::journal::Seq;

/// A valid entry found on a device, as far as the decision goes. Copies of one entry count once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Mount epoch in which it was written.
    pub epoch: u64,
    /// Its number.
    pub seq: Seq,
    /// Its hash.
    pub hash: u64,
    /// The entry before it in history; zero for the first of a pool.
    pub prev_seq: Seq,
    /// That entry's hash.
    pub prev_hash: u64,
    /// Oldest entry needed, according to it.
    pub last_seq: Seq,
    /// Newest entry known durable when it was submitted.
    pub flushed_upto: Seq,
    /// Whether history may end here.
    pub flush: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing was ever durable: a new pool.
    Empty,
    /// History: indices of the candidates, oldest first.
    History(Vec<usize>),
    /// Entries that were durable are gone. `end` is where the newest whole chain ends.
    Rot {
        /// The newest seq that is known to have been durable.
        claimed: Seq,
        /// Where the newest whole chain ends, if there is one.
        end: Option<Seq>,
    },
}

/// Decides. `floor` is the newest seq the superblock knows to have been durable.
pub fn choose(candidates: &[Candidate], floor: Seq) -> Decision {
    let claimed = candidates.iter().map(|c| c.flushed_upto).max().unwrap_or(Seq::ZERO).max(floor);
    let by_identity: HashMap<(Seq, u64), usize> =
        candidates.iter().enumerate().map(|(i, c)| ((c.seq, c.hash), i)).collect();
    let before = |c: &Candidate| by_identity.get(&(c.prev_seq, c.prev_hash)).copied();

    // How far back each chain goes. Predecessors have smaller numbers, so in that order each is known before it is asked.
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_unstable_by_key(|i| (candidates[*i].seq, candidates[*i].epoch, candidates[*i].hash));
    let mut reaches: Vec<Seq> = candidates.iter().map(|c| c.seq).collect();
    for i in &order {
        if let Some(prev) = before(&candidates[*i]) {
            reaches[*i] = reaches[prev];
        }
    }

    for end in order.iter().rev().copied().filter(|i| candidates[*i].flush) {
        let wanted = candidates[end].last_seq;
        if reaches[end] > wanted && !planted::is(Fault::ChainIgnored) {
            continue;
        }
        let mut chain = Vec::new();
        let mut at = Some(end);
        while let Some(i) = at.filter(|i| candidates[*i].seq >= wanted) {
            chain.push(i);
            at = before(&candidates[i]);
        }
        if chain.last().is_none_or(|i| candidates[*i].seq != wanted) && !planted::is(Fault::ChainIgnored) {
            continue;
        }
        let end = candidates[end].seq;
        if end < claimed {
            return Decision::Rot { claimed, end: Some(end) };
        }
        chain.reverse();
        return Decision::History(chain);
    }
    if claimed > Seq::ZERO { Decision::Rot { claimed, end: None } } else { Decision::Empty }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    /// A journal as it was written: each entry's flush flag, and how far back a flush entry still needs.
    fn written(flushes: u32, needs: u32, count: u64) -> Vec<Candidate> {
        let mut entries: Vec<Candidate> = vec![];
        let mut durable = Seq::ZERO;
        for n in 0..count {
            let flush = n == 0 || flushes >> n & 1 == 1;
            // The tail of flush entries moves forward only: at bit set, to the entry itself.
            let before = entries.iter().rev().find(|e| e.flush).map_or(Seq(1), |e| e.last_seq);
            let last_seq = if needs >> n & 1 == 1 { Seq(n + 1) } else { before };
            let prev = entries.last().copied();
            entries.push(Candidate {
                epoch: 1,
                seq: Seq(n + 1),
                hash: 100 + n,
                prev_seq: prev.map_or(Seq::ZERO, |p| p.seq),
                prev_hash: prev.map_or(0, |p| p.hash),
                last_seq,
                flushed_upto: durable,
                flush,
            });
            if flush {
                durable = Seq(n + 1);
            }
        }
        entries
    }

    /// All journals of up to six entries × every way a crash can leave the entries that were not yet durable: the
    /// choice is exactly the newest flush entry all of whose chain is there, and it is never called rot.
    #[test]
    fn whatever_a_crash_leaves_recovers_to_the_newest_whole_prefix() {
        let mut decided = 0;
        for count in 1..=6u64 {
            for flushes in 0..1u32 << count {
                for needs in 0..1u32 << count {
                    let all = written(flushes, needs, count);
                    // What is durable for sure: up to some flush entry (`acked`), or nothing.
                    let acks = all.iter().filter(|e| e.flush).map(|e| e.seq).chain([Seq::ZERO]);
                    for acked in acks {
                        // Submitted after it: at most the entries whose claim does not exceed it.
                        let loose: Vec<_> =
                            all.iter().filter(|e| e.seq > acked && e.flushed_upto <= acked).collect();
                        for kept in 0..1u32 << loose.len() {
                            let kept = loose.iter().enumerate().filter(|(i, _)| kept >> i & 1 == 1);
                            let left: Vec<Candidate> = all
                                .iter()
                                .filter(|e| e.seq <= acked)
                                .chain(kept.map(|(_, e)| *e))
                                .copied()
                                .collect();
                            let whole = |e: &&Candidate| {
                                e.flush && (e.last_seq.0..=e.seq.0).all(|s| left.iter().any(|l| l.seq.0 == s))
                            };
                            let expected = match left.iter().filter(whole).max_by_key(|e| e.seq) {
                                Some(end) => Decision::History(
                                    (end.last_seq.0..=end.seq.0)
                                        .map(|s| left.iter().position(|l| l.seq.0 == s).unwrap())
                                        .collect(),
                                ),
                                None => Decision::Empty,
                            };
                            assert_eq!(choose(&left, Seq::ZERO), expected, "{left:?}");
                            assert!(acked == Seq::ZERO || matches!(expected, Decision::History(_)));
                            decided += 1;
                        }
                    }
                }
            }
        }
        assert!(decided > 50_000, "{decided} cases");
    }

    /// The same journals, with any set of durable, still needed entries lost to rot: whenever a later entry or the
    /// superblock bears witness, the decision is rot; a shorter history is never passed off as whole.
    #[test]
    fn a_lost_durable_entry_that_anything_bears_witness_of_is_rot() {
        let (mut rot, mut survived) = (0, 0);
        for count in 2..=6u64 {
            for flushes in 0..1u32 << count {
                for needs in 0..1u32 << count {
                    let all = written(flushes, needs, count);
                    let durable = all.iter().rev().find(|e| e.flush).unwrap();
                    for lost in 1..1u32 << count {
                        let left: Vec<Candidate> =
                            all.iter().filter(|e| lost >> (e.seq.0 - 1) & 1 == 0).copied().collect();
                        for floor in [Seq::ZERO, durable.seq] {
                            let witness =
                                left.iter().map(|e| e.flushed_upto).max().unwrap_or(Seq::ZERO).max(floor);
                            match choose(&left, floor) {
                                Decision::Rot { claimed, end } => {
                                    assert_eq!(claimed, witness);
                                    assert!(end.is_none_or(|end| end < witness));
                                    rot += 1;
                                }
                                Decision::Empty => assert_eq!(witness, Seq::ZERO),
                                Decision::History(chain) => {
                                    assert!(left[*chain.last().unwrap()].seq >= witness);
                                    survived += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
        assert!(rot > 10_000 && survived > 10_000, "{rot} rotten, {survived} not");
    }

    #[test]
    fn dead_branches_of_an_earlier_mount_stay_dead() {
        // 1 ← 2 ← 3 (2 lost: 3 is dead); the second mount chained 70 to 1; then 2 comes back (a device returned).
        let old = written(0b111, 0, 3);
        let mount = Candidate {
            epoch: 2,
            seq: Seq(70),
            hash: 170,
            prev_seq: Seq(1),
            prev_hash: 100,
            last_seq: Seq(1),
            flushed_upto: Seq(1),
            flush: true,
        };
        let claims_nothing_new = Candidate { flushed_upto: Seq(1), ..old[2] };
        let all = [old[0], old[1], claims_nothing_new, mount];
        assert_eq!(choose(&all, Seq::ZERO), Decision::History(vec![0, 3]));
        assert_eq!(
            choose(&all[..3], Seq::ZERO),
            Decision::History(vec![0, 1, 2]),
            "had the mount not been durable"
        );
        assert_eq!(choose(&all, Seq(71)), Decision::Rot { claimed: Seq(71), end: Some(Seq(70)) });
    }

    #[test]
    fn equal_numbers_of_different_histories_are_told_apart_by_hash() {
        let old = written(0b11, 0, 2);
        let other = Candidate { epoch: 2, hash: 999, ..old[1] };
        let next = Candidate {
            epoch: 2,
            seq: Seq(3),
            hash: 300,
            prev_seq: Seq(2),
            prev_hash: 999,
            last_seq: Seq(1),
            flushed_upto: Seq(1),
            flush: true,
        };
        assert_eq!(choose(&[old[0], old[1], other, next], Seq::ZERO), Decision::History(vec![0, 2, 3]));
        assert_eq!(choose(&[old[0], old[1], next], Seq::ZERO), Decision::History(vec![0, 1]));
    }
}
