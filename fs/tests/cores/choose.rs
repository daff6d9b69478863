//! Which entries are history after a crash: every pool of a few entries, written, cut, mounted and cut again.
//!
//! What must hold is told without a look at the decision: a pool's true history is a list that only grows, but for a
//! crash, which may shorten it by what was not acknowledged. Entries are a device's business: those under way may be
//! lost in any combination, those that nobody needs any more may be written over, and every other stays for ever, also
//! those of branches that a mount left behind.

use moraine_fs::journal::{Candidate, Decision, Seq, choose};
use moraine_sim::explore::{Core, expect_a_fault, expect_all_to_hold};

/// Entries written, over all mounts.
const ENTRIES_MAX: usize = 6;
/// Mounts.
const MOUNTS_MAX: u64 = 3;
/// Entries under way at a time.
const IN_FLIGHT_MAX: usize = 2;
/// Seqs that a mount leaves out.
const SEQ_GAP: u64 = 10;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    epoch: u64,
    seq: u64,
    /// The entry before it in history, by its place in the list of all.
    before: Option<usize>,
    last_seq: u64,
    flushed_upto: u64,
    flush: bool,
    /// On its way: a crash may lose it.
    loose: bool,
    /// On the device.
    there: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// An entry is submitted; a flush entry may say that nothing before it is needed.
    Write { flush: bool, needs_before: bool },
    /// The oldest flush entry under way is durable, with all before it: whoever waited is told.
    Acknowledge,
    /// An entry that is not needed any more is written over.
    Reuse,
    /// The superblock takes note of what is durable.
    Note,
    /// Power goes; of what was under way the bits say what stays. The pool is mounted.
    Crash { kept: u8 },
}

/// What is wrong with the decision, on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Entries that may not end history end it.
    AnyEntryEnds,
    /// A chain counts however far it reaches.
    ChainIgnored,
    /// An older mount's entries win.
    OldestFirst,
    /// Nobody's claim about what was durable is believed.
    NoWitness,
}

struct Pool {
    fault: Fault,
    entries: Vec<Entry>,
    epoch: u64,
    /// The true history, as places in the list, the newest last.
    history: Vec<usize>,
    /// So much of it was acknowledged.
    acknowledged: usize,
    noted: u64,
    next_seq: u64,
}

impl Pool {
    fn new(fault: Fault) -> Pool {
        let mut pool = Pool {
            fault,
            entries: Vec::new(),
            epoch: 1,
            history: Vec::new(),
            acknowledged: 0,
            noted: 0,
            next_seq: 1,
        };
        pool.write(true, false);
        pool
    }

    fn seq_of(&self, place: Option<usize>) -> u64 {
        place.map_or(0, |i| self.entries[i].seq)
    }

    fn write(&mut self, flush: bool, needs_before: bool) {
        let seq = self.next_seq;
        self.next_seq += 1;
        let before = self.history.last().copied();
        // What flush entries need moves forward only.
        let oldest = self.history.iter().rev().map(|i| &self.entries[*i]).find(|e| e.flush);
        let last_seq = match oldest {
            Some(e) if needs_before => e.last_seq,
            _ => seq,
        };
        let durable = self.history[..self.acknowledged].last().copied();
        let flushed_upto = self.seq_of(durable);
        let entry =
            Entry { epoch: self.epoch, seq, before, last_seq, flushed_upto, flush, loose: true, there: true };
        self.history.push(self.entries.len());
        self.entries.push(entry);
    }

    /// The seq before which nothing is needed, by what is durable.
    fn tail(&self) -> u64 {
        let durable = self.history[..self.acknowledged].iter().rev().map(|i| &self.entries[*i]);
        durable.filter(|e| e.flush).map(|e| e.last_seq).next().unwrap_or(0)
    }

    fn reusable(&self) -> Option<usize> {
        let tail = self.tail();
        self.entries.iter().position(|e| e.there && !e.loose && e.seq < tail)
    }

    /// What is on the device, as the decision sees it, with the place of each in the list.
    fn candidates(&self) -> (Vec<Candidate>, Vec<usize>) {
        let there = self.entries.iter().enumerate().filter(|(_, e)| e.there);
        there
            .map(|(place, e)| {
                let candidate = Candidate {
                    epoch: e.epoch,
                    seq: Seq(e.seq),
                    hash: 100 + place as u64,
                    prev_seq: Seq(self.seq_of(e.before)),
                    prev_hash: e.before.map_or(0, |i| 100 + i as u64),
                    last_seq: Seq(e.last_seq),
                    flushed_upto: Seq(e.flushed_upto),
                    flush: e.flush,
                };
                (candidate, place)
            })
            .unzip()
    }

    fn decide(&self, mut candidates: Vec<Candidate>) -> Decision {
        let mut floor = Seq(self.noted);
        match self.fault {
            Fault::None => {}
            Fault::AnyEntryEnds => candidates.iter_mut().for_each(|c| c.flush = true),
            Fault::ChainIgnored => candidates.iter_mut().for_each(|c| c.last_seq = c.seq),
            Fault::OldestFirst => {
                let oldest = candidates.iter().map(|c| c.epoch).min();
                candidates.iter_mut().filter(|c| Some(c.epoch) != oldest).for_each(|c| c.flush = false);
            }
            Fault::NoWitness => {
                candidates.iter_mut().for_each(|c| c.flushed_upto = Seq::ZERO);
                floor = Seq::ZERO;
            }
        }
        choose(&candidates, floor)
    }

    fn mount(&mut self) -> Result<(), String> {
        let (candidates, places) = self.candidates();
        let chain = match self.decide(candidates) {
            Decision::Rot { claimed, .. } => {
                return Err(format!("it calls a crash rot: {claimed} is missing"));
            }
            Decision::Empty => Vec::new(),
            Decision::History(chain) => chain.into_iter().map(|i| places[i]).collect(),
        };
        let end = match chain.last() {
            None => 0,
            Some(end) => match self.history.iter().position(|i| i == end) {
                Some(at) => at + 1,
                None => return Err(format!("entry {} is none of history's", self.entries[*end].seq)),
            },
        };
        if end < self.acknowledged {
            let lost = self.entries[self.history[self.acknowledged - 1]].seq;
            return Err(format!("entry {lost} was acknowledged and is not in what is chosen"));
        }
        if let Some(last) = chain.last() {
            if !self.entries[*last].flush {
                let seq = self.entries[*last].seq;
                return Err(format!("what entry {seq}, the end, refers to was not flushed"));
            }
            let needed = self.entries[*last].last_seq;
            let whole: Vec<usize> =
                self.history[..end].iter().copied().filter(|i| self.entries[*i].seq >= needed).collect();
            if whole != chain || self.entries[whole[0]].seq != needed {
                return Err(format!(
                    "what is chosen is not all that entry {} needs",
                    self.entries[*last].seq
                ));
            }
        }
        self.history.truncate(end);
        // What a mount found is on media: reading it again gives it again.
        self.entries.iter_mut().for_each(|e| e.loose = false);
        self.epoch += 1;
        self.next_seq = self.entries.iter().map(|e| e.seq).max().unwrap_or(0).max(self.noted) + SEQ_GAP;
        self.write(true, true);
        Ok(())
    }
}

impl Core for Pool {
    type Step = Step;
    type Key = (Vec<Entry>, Vec<usize>, usize, u64, u64);

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let loose = self.entries.iter().filter(|e| e.loose).count();
        let mount_is_durable =
            self.acknowledged > 0 && self.entries[self.history[self.acknowledged - 1]].epoch == self.epoch;
        // Nothing is served, and nothing else written, before a mount's first entry is durable.
        if self.entries.len() < ENTRIES_MAX && loose < IN_FLIGHT_MAX && mount_is_durable {
            for (flush, needs_before) in [(false, true), (true, true), (true, false)] {
                steps.push(Step::Write { flush, needs_before });
            }
        }
        if self.history[self.acknowledged..].iter().any(|i| self.entries[*i].flush) {
            steps.push(Step::Acknowledge);
        }
        steps.extend(self.reusable().map(|_| Step::Reuse));
        if self.acknowledged > 0 && self.noted < self.seq_of(Some(self.history[self.acknowledged - 1])) {
            steps.push(Step::Note);
        }
        if self.epoch < MOUNTS_MAX && self.entries.len() < ENTRIES_MAX {
            steps.extend((0..1u8 << loose).map(|kept| Step::Crash { kept }));
        }
        steps
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Write { flush, needs_before } => self.write(flush, needs_before),
            Step::Acknowledge => {
                let rest = self.history[self.acknowledged..].iter();
                let first = rest.map(|i| self.entries[*i].flush).position(|flush| flush).ok_or("no flush")?;
                self.acknowledged += first + 1;
                for i in &self.history[..self.acknowledged] {
                    self.entries[*i].loose = false;
                }
            }
            Step::Reuse => {
                let gone = self.reusable().ok_or("nothing to reuse")?;
                self.entries[gone].there = false;
            }
            Step::Note => self.noted = self.seq_of(Some(self.history[self.acknowledged - 1])),
            Step::Crash { kept } => {
                for (n, e) in self.entries.iter_mut().filter(|e| e.loose).enumerate() {
                    e.there = kept >> n & 1 == 1;
                }
                self.mount()?;
            }
        }
        Ok(())
    }

    fn key(&self) -> Self::Key {
        (self.entries.clone(), self.history.clone(), self.acknowledged, self.noted, self.epoch)
    }
}

#[test]
fn history_after_any_crashes_is_a_prefix_with_all_that_was_acknowledged() {
    let explored = expect_all_to_hold("recovery", || Pool::new(Fault::None), 32);
    assert!(explored.complete && explored.states > 10_000, "{explored}");
}

#[test]
fn a_decision_with_a_fault_is_noticed() {
    for (name, fault) in [
        ("an end that is no flush entry", Fault::AnyEntryEnds),
        ("a chain that does not reach far enough", Fault::ChainIgnored),
        ("an older mount's history", Fault::OldestFirst),
    ] {
        expect_a_fault(name, || Pool::new(fault), 32);
    }
}

/// The same pools with one entry gone that is needed: rot, if anything that is left bears witness.
struct Rotten {
    pool: Pool,
    gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum RotStep {
    Pool(Step),
    /// The entry at this place of the list becomes unreadable, and the pool is mounted.
    Lose(usize),
}

impl Core for Rotten {
    type Step = RotStep;
    type Key = (<Pool as Core>::Key, bool);

    fn steps(&self) -> Vec<RotStep> {
        if self.gone {
            return Vec::new();
        }
        let there = self.pool.entries.iter().enumerate().filter(|(_, e)| e.there && !e.loose);
        let lose = there.map(|(place, _)| RotStep::Lose(place));
        self.pool.steps().into_iter().map(RotStep::Pool).chain(lose).collect()
    }

    fn apply(&mut self, step: &RotStep) -> Result<(), String> {
        let place = match step {
            RotStep::Pool(step) => return self.pool.apply(step),
            RotStep::Lose(place) => *place,
        };
        self.gone = true;
        self.pool.entries[place].there = false;
        let (candidates, places) = self.pool.candidates();
        let Decision::History(chain) = self.pool.decide(candidates) else { return Ok(()) };
        let end = chain.last().map(|i| self.pool.entries[places[*i]].seq).unwrap_or(0);
        let left = self.pool.entries.iter().filter(|e| e.there);
        let witness = left.map(|e| e.flushed_upto).max().unwrap_or(0).max(self.pool.noted);
        let acknowledged = self.pool.acknowledged;
        let durable = acknowledged.checked_sub(1).map_or(0, |n| self.pool.entries[self.pool.history[n]].seq);
        if end < durable && durable <= witness {
            return Err(format!(
                "entry {durable} was durable, {witness} says so, and {end} is called the end"
            ));
        }
        Ok(())
    }

    fn key(&self) -> Self::Key {
        (self.pool.key(), self.gone)
    }
}

#[test]
fn rot_that_anything_bears_witness_of_is_never_taken_for_a_crash() {
    let rotten = |fault| move || Rotten { pool: Pool::new(fault), gone: false };
    let explored = expect_all_to_hold("rot", rotten(Fault::None), 10);
    assert!(explored.states > 10_000, "{explored}");
    expect_a_fault("claims that nobody believes", rotten(Fault::NoWitness), 10);
}
