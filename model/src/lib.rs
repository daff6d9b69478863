//! The reference model: the whole namespace in memory, small enough to be seen to be right.
//!
//! [`Model`] implements [`moraine_fs::Vfs`] with maps and nothing else: no device, no cache, no journal. Every call
//! is one synchronous step. Tests compare the engine with it, exports are tested on it, and the crash oracle keeps
//! clones of it as its histories (a clone is a cheap snapshot: nodes and blocks are shared until written).
//!
//! | file | what lives there |
//! |---|---|
//! | `state.rs` | nodes, the inode table, names, stamps of time: the rules every operation shares |
//! | `content.rs` | a sparse file's bytes as a map of blocks |
//! | `names.rs` | create, make, link, remove, rename, lookup, readdir |
//! | `attributes.rs` | setattr, permissions of times and owners, extended attributes |
//! | `vfs.rs` | the façade: [`moraine_fs::Vfs`] on top of these |
//! | [`double`] | filesystems for tests: a gate in front of calls, and passing on all others |
//! | [`tree`] | what any `Vfs` holds, walked into a comparable value: [`tree::Tree`] |
//!
//! # Order of checks
//! Where several errors apply, the first of this list is reported, and the engine does the same: object is gone
//! (`Stale`), wrong type of the object addressed (`NotDir`, `IsDir`, `Invalid`), malformed arguments (`BadName`,
//! `NameTooLong`, `TooBig`, `XattrTooBig`), guard (`NotSync`), search permission on directories, whether the name is
//! there (`NotFound`, `Exists`), directory loops (`Invalid`, `NotEmpty`), write permission on directories, sticky
//! bit, types of source and target (`NotDir`, `IsDir`), and last `NotEmpty`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod attributes;
mod content;
pub mod double;
mod names;
mod state;
#[cfg(test)]
mod tests;
pub mod tree;
mod vfs;

use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use moraine_fs::vfs::{ObjectId, PoolInfo, Seq};
use moraine_platform::{Clock, Instant, LocalFuture, Rng, Timestamp};
use state::State;

/// A filesystem in memory. Clone it to keep what it is now.
#[derive(Clone)]
pub struct Model {
    pool: PoolInfo,
    clock: Rc<dyn Clock>,
    verifier: Cell<u64>,
    durable: Cell<Seq>,
    state: RefCell<State>,
}

impl Model {
    /// An empty pool: a root directory with an empty `volumes` directory in it, both owned by root with mode 0755.
    pub fn new(clock: Rc<dyn Clock>, rng: Rc<dyn Rng>) -> Model {
        let mut pool = PoolInfo { pool_id: [0; 16], handle_key: [0; 16], boot_epoch: 1 };
        rng.fill(&mut pool.pool_id);
        rng.fill(&mut pool.handle_key);
        let state = State::new(clock.wall());
        let (verifier, durable) = (Cell::new(rng.next_u64()), Cell::new(Seq(0)));
        Model { pool, clock, verifier, durable, state: RefCell::new(state) }
    }

    /// A model with a clock of its own (1 µs later at every look) and fixed keys, for tests that have no world.
    pub fn for_tests() -> Model {
        Model::new(Rc::new(TickingClock::default()), Rc::new(FixedRng(Cell::new(1))))
    }

    /// The same files after a clean restart: next boot epoch, other write verifier.
    pub fn rebooted(&self) -> Model {
        let mut next = self.clone();
        next.pool.boot_epoch += 1;
        next.change_verifier();
        next
    }

    /// Makes the write verifier another one, as a failed write-back does.
    pub fn change_verifier(&self) {
        self.verifier.set(self.verifier.get().wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1));
    }

    /// The number of the latest change.
    pub fn seq(&self) -> Seq {
        self.state.borrow().seq
    }

    /// The latest change some caller made durable, by `durable`, `commit` or a stable write: what an export that
    /// answered "stable" must have waited for.
    pub fn durable_seq(&self) -> Seq {
        self.durable.get()
    }

    /// Everything it holds, as a comparable value.
    pub fn tree(&self) -> tree::Tree {
        tree::now(tree::Tree::walk(self)).expect("the model can always be walked")
    }

    /// A canonical listing as text: one line an object, with hashes of content.
    pub fn dump(&self) -> alloc::string::String {
        alloc::format!("{}", self.tree())
    }

    fn inode(object: ObjectId) -> Option<u64> {
        (object.subvolume == state::ROOT_SUBVOLUME).then_some(object.inode)
    }
}

/// A clock that moves by one microsecond whenever somebody looks.
#[derive(Default)]
struct TickingClock(Cell<u64>);

impl Clock for TickingClock {
    fn now(&self) -> Instant {
        self.0.set(self.0.get() + 1000);
        Instant(self.0.get())
    }
    fn wall(&self) -> Timestamp {
        Timestamp(1_700_000_000_000_000_000 + self.now().0)
    }
    fn sleep_until(&self, deadline: Instant) -> LocalFuture<()> {
        self.0.set(self.0.get().max(deadline.0));
        alloc::boxed::Box::pin(core::future::ready(()))
    }
}

/// Numbers from a fixed start.
struct FixedRng(Cell<u64>);

impl Rng for FixedRng {
    fn fill(&self, out: &mut [u8]) {
        for byte in out {
            let next = self.0.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            self.0.set(next);
            *byte = (next >> 56) as u8;
        }
    }
}
