//! The contract between Moraine and whatever it runs on.
//!
//! Everything the filesystem and the protocol servers need from the outside world comes in through the
//! traits of this crate: devices, streams, time, randomness, tasks. Three siblings implement them: `kernel`
//! (bare metal), `host` (a Linux process) and `sim` (a seeded world). Because nothing above this line does
//! I/O, reads a clock, draws randomness or owns a thread, the same code runs, bit for bit, on all three.
//!
//! Everything here is single-threaded: futures are `!Send` and run on one reactor. The one exception is
//! [`Offload`], which moves owned input to another core and brings owned output back.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod block;
mod buf;
pub mod log;
pub mod memory;
mod net;
mod nic;
pub mod sync;
mod task;
mod time;

pub use block::{BlockDevice, DeviceInfo, Fua, IoDone, IoError, IoFuture};
pub use buf::{BLOCK_SIZE, Buf, OutOfMemory};
pub use net::{Connecting, Datagram, Listener, NetError, NetFuture, Network, Stream};
pub use nic::{
    NicCapabilities, NicDevice, RxChecksum, RxMeta, Segmentation, TxChecksum, TxMeta, TxSegmentation,
};
pub use task::{LocalFuture, Offload, Spawn};
pub use time::{Clock, Instant, Timestamp};

use alloc::rc::Rc;

/// A source of unpredictable bytes. In the simulator it is drawn from the world's seed.
pub trait Rng {
    /// Fills `out` with random bytes.
    fn fill(&self, out: &mut [u8]);

    /// One random 64-bit number.
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// The whole world as the filesystem and the servers see it, apart from devices and the network.
#[derive(Clone)]
pub struct Platform {
    /// Monotonic and wall time, and timers.
    pub clock: Rc<dyn Clock>,
    /// Randomness for keys, seeds and identities.
    pub rng: Rc<dyn Rng>,
    /// Starts background tasks.
    pub spawn: Rc<dyn Spawn>,
    /// Runs pure computation elsewhere.
    pub offload: Rc<dyn Offload>,
}
