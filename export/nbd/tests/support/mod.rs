//! A small world for the tests: tasks in virtual time, streams in memory, a filesystem that can be watched, held up
//! and made to fail, and a client that speaks the protocol byte by byte.
#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test uses a part of it")]

pub mod client;
pub mod probe;
pub mod stream;
pub mod world;

pub use client::{Client, Reply};
pub use probe::{Call, Probe};
pub use stream::{Shape, pair};
pub use world::World;

use moraine_fs::Vfs;
use moraine_fs::vfs::{Caller, CreateMode, NewNode, ObjectId, SetAttr, Stability, WriteData};
use moraine_nbd::{Config, Server};
use moraine_platform::Platform;
use moraine_share::Share;
use std::rc::Rc;

/// A server over a watched filesystem.
pub struct Bench {
    pub world: World,
    pub vfs: Rc<Probe>,
    pub share: Rc<Share>,
    pub server: Rc<Server<Probe>>,
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(Config::default())
    }

    pub fn with(config: Config) -> Bench {
        let world = World::new();
        let platform: Platform = world.platform();
        let vfs = Rc::new(Probe::new(platform.clock.clone()));
        let share = Share::new();
        let server = Server::new(platform, vfs.clone(), share.clone(), config);
        Bench { world, vfs, share, server }
    }

    /// Makes a volume, with the folders above it.
    pub async fn volume(&self, name: &str, size: u64) -> ObjectId {
        let (caller, vfs) = (Caller::root(), &*self.vfs);
        let (mut dir, _) = vfs.lookup(&caller, vfs.root(), b"volumes").await.unwrap();
        let (folders, file) = name.rsplit_once('/').map_or(("", name), |(folders, file)| (folders, file));
        for folder in folders.split('/').filter(|f| !f.is_empty()) {
            let made = vfs.make(&caller, dir, folder.as_bytes(), NewNode::Dir, &SetAttr::default()).await;
            dir = match made {
                Ok(change) => change.value.0,
                Err(_) => vfs.lookup(&caller, dir, folder.as_bytes()).await.unwrap().0,
            };
        }
        let set = SetAttr { mode: Some(0o644), size: Some(size), ..SetAttr::default() };
        let made = vfs.create(&caller, dir, file.as_bytes(), CreateMode::Guarded, &set).await.unwrap();
        made.value.0
    }

    /// Writes to a file past the server.
    pub async fn put(&self, object: ObjectId, offset: u64, bytes: &[u8]) {
        let data = WriteData::copy_of(offset, bytes).unwrap();
        self.vfs.model.write(&Caller::root(), object, offset, data, Stability::Unstable).await.unwrap();
    }

    /// Reads a file past the server.
    pub async fn get(&self, object: ObjectId, offset: u64, len: u32) -> Vec<u8> {
        self.vfs.model.read(&Caller::root(), object, offset, len).await.unwrap().to_vec()
    }

    /// A new connection whose streams are shaped as told.
    pub fn connect_shaped(&self, shape: Shape) -> Client {
        let (ours, theirs) = pair(shape);
        self.server.serve_stream(theirs);
        Client::new(ours)
    }

    /// A new connection.
    pub fn connect(&self) -> Client {
        self.connect_shaped(Shape::default())
    }

    /// A new connection in its transmission phase, with structured replies and block status.
    pub async fn open(&self, name: &str) -> Client {
        let mut client = self.connect();
        client.greet(3).await;
        client.structured().await;
        client.choose_allocation(name).await;
        client.go(name).await;
        client
    }

    /// As [`Bench::open`], with simple replies only.
    pub async fn open_simple(&self, name: &str) -> Client {
        let mut client = self.connect();
        client.greet(3).await;
        client.go(name).await;
        client
    }
}

/// Numbers that look random and are the same in every run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}
