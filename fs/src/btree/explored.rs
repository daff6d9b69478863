//! Which runs of a node count: every short life of a node on a disk that loses, tears and keeps what it should not.
//!
//! What must hold is told of the blocks: a pointer leads to exactly the keys it was committed with if every block that it
//! counts holds what was written there for it, and to an error otherwise; never to fewer keys, or older ones.

use super::node::Keys;
use super::read::assemble;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use moraine_format::node::{
    NODE_BLOCK, NodeIdent, NodePlace, NodePointer, Run, RunInfo, entry_bytes, run_bytes, write_run,
};
use moraine_format::{Pos, Tree};
use moraine_sim::explore::{Core, expect_a_fault, expect_all_to_hold};
use smallvec::smallvec;

const TAG: u64 = 0x7461;
/// Blocks of a node: a run takes one.
const BLOCKS: usize = 3;
/// Positions of keys, and bytes of a value: so many that a tear goes through it.
const KEYS: u64 = 2;
const VALUE_BYTES: usize = 3000;
const TEAR_AT: usize = 512;
/// Writes in a life.
const WRITES_MAX: u64 = 5;
const SEQ: u64 = 9;

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Done,
    Lost,
    Torn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A run is appended that puts or deletes a key; the pointer to it is committed, or a crash comes before.
    Append { key: u64, put: bool, fate: Fate, committed: bool },
    /// The node is written anew, at the same place under another id.
    Rewrite(Fate),
    /// A block holds what another one should.
    Misdirected { from: usize, to: usize },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// If not all runs are there, those that are count.
    ShorterAccepted,
    /// Any runs count that fit each other, whatever the pointer says of them.
    StaleAccepted,
    /// A run counts wherever it lies in the node.
    OrderIgnored,
}

/// A pointer, with what it was committed for.
#[derive(Clone)]
struct Committed {
    pointer: NodePointer,
    blocks: Vec<Rc<Vec<u8>>>,
    keys: BTreeMap<u64, u64>,
}

struct Life {
    fault: Fault,
    disk: Vec<Vec<u8>>,
    /// Every pointer there was; the newest last.
    pointers: Vec<Committed>,
    writes: u64,
}

fn value(write: u64) -> Vec<u8> {
    alloc::vec![write as u8 + 1; VALUE_BYTES]
}

fn position(key: u64) -> Pos {
    Pos::new(1, key, 0)
}

fn ident(node: u64) -> NodeIdent {
    NodeIdent { node, tree: Tree::Inodes, level: 0, min: Pos::MIN, max: Pos::MAX }
}

fn run(node: u64, index: u16, previous: u64, entries: &[(u64, Option<u64>)]) -> (Rc<Vec<u8>>, u64) {
    let values: Vec<(Pos, Option<Vec<u8>>)> =
        entries.iter().map(|(key, write)| (position(*key), write.map(value))).collect();
    let bytes = values.iter().map(|(_, v)| entry_bytes(v.as_ref().map_or(0, Vec::len))).sum();
    let mut block = alloc::vec![0; run_bytes(bytes)];
    let info = RunInfo { index, epoch: 1, seq: SEQ, previous };
    let entries = values.iter().map(|(at, v)| (*at, v.as_deref()));
    let hash = write_run(&mut block, TAG, &ident(node), &info, entries);
    assert_eq!(block.len(), NODE_BLOCK, "a run takes one block here");
    (Rc::new(block), hash)
}

fn pointer(node: u64, runs: u16, last_hash: u64) -> NodePointer {
    NodePointer {
        node,
        level: 0,
        blocks_written: u32::from(runs),
        runs,
        last_hash,
        min: Pos::MIN,
        places: smallvec![NodePlace { device: 0, generation: 0, offset: 0 }],
    }
}

impl Life {
    fn new(fault: Fault) -> Life {
        let (block, hash) = run(1, 0, 0, &[(0, Some(0))]);
        let first = Committed {
            pointer: pointer(1, 1, hash),
            blocks: Vec::from([block.clone()]),
            keys: BTreeMap::from([(0, 0)]),
        };
        let mut disk = alloc::vec![alloc::vec![0; NODE_BLOCK]; BLOCKS];
        disk[0].copy_from_slice(&block);
        Life { fault, disk, pointers: Vec::from([first]), writes: 1 }
    }

    fn newest(&self) -> &Committed {
        self.pointers.last().expect("there is one from the beginning")
    }

    fn put(&mut self, at: usize, block: &[u8], fate: Fate) {
        let arrives = match fate {
            Fate::Done => NODE_BLOCK,
            Fate::Lost => 0,
            Fate::Torn => TEAR_AT,
        };
        self.disk[at][..arrives].copy_from_slice(&block[..arrives]);
    }

    fn read(&self, of: &Committed) -> Option<Keys> {
        let mut bytes: Vec<Vec<u8>> = self.disk[..of.blocks.len()].to_vec();
        if self.fault == Fault::OrderIgnored {
            let index = |b: &Vec<u8>| Run::parse(b, TAG).map_or(u16::MAX, |r| r.info.index);
            let mut all = self.disk.clone();
            all.sort_by_key(index);
            bytes = all[..of.blocks.len()].to_vec();
        }
        let mut pointer = of.pointer.clone();
        if self.fault == Fault::StaleAccepted
            && let Some(last) = bytes.last().and_then(|b| Run::parse(b, TAG).ok())
        {
            (pointer.last_hash, pointer.node) = (last.hash, last.ident.node);
        }
        loop {
            let bytes: Vec<u8> = bytes[..pointer.runs as usize].concat();
            match assemble(&bytes, Tree::Inodes, &pointer, Pos::MAX, TAG) {
                Ok(node) => return Some(node.keys),
                Err(_) if self.fault == Fault::ShorterAccepted && pointer.runs > 1 => {
                    pointer.runs -= 1;
                    pointer.blocks_written -= 1;
                    let last = (pointer.runs - 1) as usize;
                    pointer.last_hash = Run::parse(&bytes[last * NODE_BLOCK..], TAG).map_or(0, |r| r.hash);
                }
                Err(_) => return None,
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        for (n, of) in self.pointers.iter().enumerate() {
            let whole = of.blocks.iter().zip(&self.disk).all(|(should, is)| **should == *is);
            let Some(keys) = self.read(of) else {
                if whole {
                    return Err(format!("pointer {n}: all its blocks are there, and it is refused"));
                }
                continue;
            };
            if !whole {
                return Err(format!("pointer {n}: not all its blocks are there, and it is read"));
            }
            for key in 0..KEYS {
                let should = of.keys.get(&key).map(|write| value(*write));
                if keys.get(position(key)) != should.as_deref() {
                    return Err(format!("pointer {n}: key {key} should be of write {:?}", of.keys.get(&key)));
                }
            }
        }
        Ok(())
    }
}

impl Core for Life {
    type Step = Step;
    type Key = (u64, Vec<Vec<u8>>, Vec<Vec<u8>>);

    fn steps(&self) -> Vec<Step> {
        if self.writes == WRITES_MAX {
            return Vec::new();
        }
        let mut steps = Vec::new();
        for fate in [Fate::Done, Fate::Lost, Fate::Torn] {
            if self.newest().blocks.len() < BLOCKS {
                for (key, put) in [(0, true), (0, false), (1, true)] {
                    for committed in [true, false] {
                        steps.push(Step::Append { key, put, fate, committed });
                    }
                }
            }
            steps.push(Step::Rewrite(fate));
        }
        steps.extend([Step::Misdirected { from: 0, to: 1 }, Step::Misdirected { from: 2, to: 1 }]);
        steps
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        let write = self.writes;
        self.writes += 1;
        match *step {
            Step::Append { key, put, fate, committed } => {
                let old = self.newest().clone();
                let (node, index) = (old.pointer.node, old.pointer.runs);
                let entry = (key, put.then_some(write));
                let (block, hash) = run(node, index, old.pointer.last_hash, &[entry]);
                self.put(old.blocks.len(), &block, fate);
                if committed {
                    let mut new = old;
                    new.pointer = pointer(node, index + 1, hash);
                    new.blocks.push(block);
                    match put {
                        true => drop(new.keys.insert(key, write)),
                        false => drop(new.keys.remove(&key)),
                    }
                    self.pointers.push(new);
                }
            }
            Step::Rewrite(fate) => {
                let node = 10 + write;
                // What it holds is one value here: two would not fit a block.
                let keys = BTreeMap::from([(1, write)]);
                let (block, hash) = run(node, 0, 0, &[(1, Some(write))]);
                self.put(0, &block, fate);
                self.pointers.push(Committed {
                    pointer: pointer(node, 1, hash),
                    blocks: Vec::from([block]),
                    keys,
                });
            }
            Step::Misdirected { from, to } => self.disk[to] = self.disk[from].clone(),
        }
        self.check()
    }

    fn key(&self) -> Self::Key {
        let pointers = self.pointers.iter().map(|c| c.pointer.to_bytes()).collect();
        // The beginning of a block tells which run it is, its end whether all of it came.
        let short = |b: &Vec<u8>| [&b[..128], &b[TEAR_AT - 8..TEAR_AT + 8]].concat();
        (self.writes, self.disk.iter().map(short).collect(), pointers)
    }
}

#[test]
fn a_pointer_leads_to_what_it_was_committed_for_or_to_an_error() {
    let explored = expect_all_to_hold("runs of a node", || Life::new(Fault::None), WRITES_MAX as usize);
    assert!(explored.complete && explored.states > 1000, "{explored}");
}

#[test]
fn a_reader_with_a_fault_is_noticed() {
    for (name, fault) in [
        ("a node with fewer runs", Fault::ShorterAccepted),
        ("a stale node", Fault::StaleAccepted),
        ("runs in another order", Fault::OrderIgnored),
    ] {
        expect_a_fault(name, || Life::new(fault), WRITES_MAX as usize);
    }
}
