//! Many clients on one file with too little memory: each owns some bytes of every block and always reads what it wrote
//! last; what was made durable survives at any moment.

mod common;

use common::*;
use moraine_fs::Filesystem;
use moraine_fs::filesystem::Options;
use moraine_fs::vfs::*;
use moraine_platform::BLOCK_SIZE;
use moraine_sim::{Random, World};
use std::cell::Cell;
use std::rc::Rc;

const BLOCK: u64 = BLOCK_SIZE as u64;
const CLIENTS: u64 = 6;
const BLOCKS: u64 = 96;
/// Bytes of a block that belong to one client.
const SHARE: u64 = BLOCK / CLIENTS;

/// One client: for each block the byte its share is filled with, and what is known to be durable.
struct Client {
    number: u64,
    now: Vec<u8>,
    /// The value made durable last, and those written since.
    admissible: Vec<Vec<u8>>,
}

impl Client {
    fn at(&self, block: u64) -> u64 {
        block * BLOCK + self.number * SHARE
    }

    async fn step(&mut self, fs: &Filesystem, f: ObjectId, random: &mut Random) {
        let block = random.below(BLOCKS);
        match random.below(12) {
            0..=5 => {
                let value = 1 + random.below(255) as u8;
                let stability = match random.below(4) {
                    0 => Stability::FileSync,
                    _ => Stability::Unstable,
                };
                self.admissible[block as usize].push(value);
                write(fs, f, self.at(block), &[value; SHARE as usize], stability).await;
                self.now[block as usize] = value;
                if stability == Stability::FileSync {
                    self.admissible[block as usize] = vec![value];
                }
            }
            6..=9 => {
                let read = fs.read(&root(), f, self.at(block), SHARE as u32).await.unwrap().to_vec();
                let expected = vec![self.now[block as usize]; SHARE as usize];
                assert!(read == expected, "client {} block {block}: {:?}", self.number, &read[..4]);
            }
            10 => {
                // All others may write meanwhile: only what this client wrote before is promised.
                let promised = self.now.clone();
                fs.commit(f, 0, 0).await.unwrap();
                for (values, now) in self.admissible.iter_mut().zip(promised) {
                    *values = vec![now];
                }
            }
            _ => {
                self.admissible[block as usize].push(0);
                fs.punch(&root(), f, self.at(block), SHARE).await.unwrap();
                self.now[block as usize] = 0;
            }
        }
    }

    async fn check_survival(&self, fs: &Filesystem, f: ObjectId) {
        for block in 0..BLOCKS {
            let read = fs.read(&root(), f, self.at(block), SHARE as u32).await.unwrap().to_vec();
            let values = &self.admissible[block as usize];
            assert!(
                read.iter().all(|b| *b == read[0]) && values.contains(&read[0]),
                "client {} block {block}: {} is not in {values:?}",
                self.number,
                read[0]
            );
        }
    }
}

fn stress(seed: u64, cache_bytes: usize, cut_keys: usize) {
    let shape =
        Shape { cache_bytes, options: Options { cut_keys, ..Options::default() }, ..Shape::default() };
    run(seed, shape, async |world: &World, fs: Filesystem| {
        let f = file(&fs, b"f").await;
        fs.setattr(&root(), f, &with_size(BLOCKS * BLOCK), None).await.unwrap();
        let left = Rc::new(Cell::new(CLIENTS));
        let event = Rc::new(moraine_platform::sync::Event::new());
        for number in 0..CLIENTS {
            let (fs, left, event) = (fs.clone(), left.clone(), event.clone());
            let mut random = world.random(&format!("client {number}"));
            let task = async move {
                let mut client = Client {
                    number,
                    now: vec![0; BLOCKS as usize],
                    admissible: vec![vec![0]; BLOCKS as usize],
                };
                for step in 0..150 {
                    client.step(&fs, f, &mut random).await;
                    if step % 50 == 49 {
                        let survivor = open(engine_of(&fs), shape).await;
                        client.check_survival(&survivor, f).await;
                        survivor.shutdown().await.unwrap();
                    }
                }
                left.set(left.get() - 1);
                event.notify();
            };
            world.platform().spawn.spawn("client", Box::pin(task));
        }
        event.until(|| (left.get() == 0).then_some(())).await;
        fs.sync_all().await.unwrap();
    });
}

#[test]
fn own_bytes_are_always_the_newest_and_synced_ones_survive() {
    for seed in 0..30 {
        stress(seed, 4 << 20, 256);
    }
}

#[test]
fn so_with_hardly_any_memory() {
    for seed in 100..130 {
        stress(seed, 192 << 10, 2);
    }
}
