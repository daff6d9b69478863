//! The whole way down, and the power cut: clients over NBD, the real filesystem, a disk with a volatile cache. Whatever
//! was answered before a flush that was answered is there afterwards, on whichever connection.

mod support;

use moraine_fs::engine::{Budget, Engine, FormatOptions};
use moraine_fs::vfs::{Caller, CreateMode, SetAttr};
use moraine_fs::{CacheBudget, Filesystem, Vfs};
use moraine_nbd::{Config, Server};
use moraine_platform::{BLOCK_SIZE, BlockDevice};
use moraine_share::Share;
use moraine_sim::{DiskConfig, Ended, Image, World};
use std::cell::RefCell;
use std::rc::Rc;
use support::client::*;
use support::{Client, Dice, Shape, pair};

const POOL_BYTES: u64 = 256 << 20;
const CLIENTS: usize = 4;
/// Blocks that one client writes; each has its own.
const BLOCKS: usize = 96;
const VOLUME_BYTES: u64 = (CLIENTS * BLOCKS * BLOCK_SIZE) as u64;

/// What one block may hold: a block is filled with the number of the write that came last, 0 if none did.
#[derive(Clone)]
struct History {
    /// Every number ever sent, in order.
    sent: Vec<u64>,
    /// How many of them were answered.
    answered: usize,
    /// The oldest that may be there after a power cut.
    floor: usize,
}

struct Oracle {
    blocks: Vec<History>,
    next: u64,
    flushes: u64,
}

impl Oracle {
    fn new() -> Oracle {
        let fresh = History { sent: vec![0], answered: 1, floor: 0 };
        Oracle { blocks: vec![fresh; CLIENTS * BLOCKS], next: 0, flushes: 0 }
    }
}

fn disks(world: &World) -> Vec<Rc<dyn BlockDevice>> {
    world.disks().into_iter().map(|d| d as Rc<dyn BlockDevice>).collect()
}

/// A disk with a pool with a volume.
fn formatted() -> Image {
    let world = World::new(1);
    let disk = world.disk(POOL_BYTES, DiskConfig::default());
    world.run(async {
        let (platform, caller) = (world.platform(), Caller::root());
        let disks = disks(&world);
        let made = Engine::format(&platform, &disks, &FormatOptions::default(), &Budget::default()).await;
        let engine = made.unwrap();
        Filesystem::format_root(&engine).await.unwrap();
        let fs = Filesystem::open(engine, CacheBudget::of(4 << 20)).await.unwrap();
        let (volumes, _) = fs.lookup(&caller, fs.root(), b"volumes").await.unwrap();
        let set = SetAttr { mode: Some(0o644), size: Some(VOLUME_BYTES), ..SetAttr::default() };
        fs.create(&caller, volumes, b"vm1", CreateMode::Guarded, &set).await.unwrap();
        fs.shutdown().await.unwrap();
        fs.engine().unmount().await.unwrap();
    });
    disk.durable_image()
}

async fn mount(world: &World) -> Filesystem {
    let engine = Engine::mount(&world.platform(), &disks(world), &Budget::default()).await.unwrap();
    Filesystem::open(engine, CacheBudget::of(4 << 20)).await.unwrap()
}

/// One client: writes, zeroes, reads and flushes in its own blocks until the power goes.
async fn work(mut client: Client, number: usize, seed: u64, oracle: Rc<RefCell<Oracle>>) {
    let mut dice = Dice::new(seed * 31 + number as u64);
    loop {
        let first = dice.below(BLOCKS as u64) as usize;
        let most = [1, 4, BLOCKS][dice.below(3) as usize].min(BLOCKS - first);
        let count = 1 + dice.below(most as u64) as usize;
        let blocks = number * BLOCKS + first..number * BLOCKS + first + count;
        let (offset, len) = ((blocks.start * BLOCK_SIZE) as u64, count * BLOCK_SIZE);
        let fua = u16::from(dice.below(4) == 0);
        match dice.below(8) {
            0 => {
                let before: Vec<_> = oracle.borrow().blocks.iter().map(|b| b.answered - 1).collect();
                client.flush().await;
                let mut oracle = oracle.borrow_mut();
                oracle.flushes += 1;
                for (block, before) in oracle.blocks.iter_mut().zip(before) {
                    block.floor = block.floor.max(before);
                }
            }
            1 => {
                let bytes = client.read(offset, len as u32).await;
                let oracle = oracle.borrow();
                for (block, bytes) in blocks.zip(bytes.chunks(BLOCK_SIZE)) {
                    assert_eq!(stamp(bytes), *oracle.blocks[block].sent.last().unwrap());
                }
            }
            kind => {
                let zero = kind == 2;
                let stamp = if zero { 0 } else { oracle.borrow().next + 1 };
                {
                    let mut oracle = oracle.borrow_mut();
                    oracle.next += 1;
                    oracle.blocks[blocks.clone()].iter_mut().for_each(|b| b.sent.push(stamp));
                }
                let reply = if zero {
                    let command = [TRIM, ZERO][dice.below(2) as usize];
                    client.ask(command, fua, offset, len as u32, &[]).await
                } else {
                    client.ask(WRITE, fua, offset, len as u32, &stamp.to_le_bytes().repeat(len / 8)).await
                };
                assert_eq!(reply.error, 0);
                for block in &mut oracle.borrow_mut().blocks[blocks] {
                    block.answered = block.sent.len();
                    if fua == FUA {
                        block.floor = block.sent.len() - 1;
                    }
                }
            }
        }
    }
}

/// The number that fills a block.
fn stamp(block: &[u8]) -> u64 {
    let (words, _) = block.as_chunks::<8>();
    assert!(words.iter().all(|w| *w == words[0]), "a block holds one write, not a mix");
    u64::from_le_bytes(words[0])
}

/// Runs to a power cut, recovers, compares; returns what the disk holds and how many flushes were answered.
fn cut(seed: u64, image: Image, commands: u64) -> u64 {
    let world = World::new(seed);
    world.disk_with(image, DiskConfig::default());
    let oracle = Rc::new(RefCell::new(Oracle::new()));
    let serve = async {
        let fs = Rc::new(mount(&world).await);
        let server = Server::new(world.platform(), fs, Share::new(), Config::default());
        for number in 0..CLIENTS {
            let (ours, theirs) = pair(Shape::default());
            server.serve_stream(theirs);
            let mut client = Client::new(ours);
            client.greet(3).await;
            client.structured().await;
            client.go("vm1").await;
            world.platform().spawn.spawn("client", Box::pin(work(client, number, seed, oracle.clone())));
        }
        std::future::pending::<()>().await;
    };
    match world.run_to_power_cut(serve, commands) {
        Ok(Ended::PowerCut) => {}
        Ok(Ended::Done(())) => unreachable!("clients work for ever"),
        Err(stall) => panic!("seed {seed}: {stall}"),
    }
    let images = world.crash();
    drop(world);

    let world = World::new(seed + 1_000_000);
    images.into_iter().for_each(|image| drop(world.disk_with(image, DiskConfig::default())));
    world.run(async {
        let (fs, caller) = (mount(&world).await, Caller::root());
        let (volumes, _) = fs.lookup(&caller, fs.root(), b"volumes").await.unwrap();
        let (volume, attr) = fs.lookup(&caller, volumes, b"vm1").await.unwrap();
        assert_eq!(attr.size, VOLUME_BYTES);
        let bytes = fs.read(&caller, volume, 0, VOLUME_BYTES as u32).await.unwrap().to_vec();
        for (n, (block, history)) in bytes.chunks(BLOCK_SIZE).zip(&oracle.borrow().blocks).enumerate() {
            let (found, allowed) = (stamp(block), &history.sent[history.floor..]);
            assert!(
                allowed.contains(&found),
                "seed {seed}: block {n} holds {found}, allowed are {allowed:?}"
            );
        }
    });
    oracle.borrow().flushes
}

#[test]
fn nbd_06_07_08_what_was_flushed_or_forced_survives_the_power_cut() {
    let seeds = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(40);
    let image = formatted();
    let flushes: u64 = (0..seeds).map(|seed| cut(seed, image.clone(), 60 + Dice::new(seed).below(900))).sum();
    assert!(flushes > seeds, "flushes were answered before the cuts: {flushes}");
}
