//! `platform` on Linux: a single-threaded tokio reactor, files as disks, the system's sockets as the network.
//!
//! | file | what lives there |
//! |---|---|
//! | `os/disk.rs` | files and block devices as [`moraine_platform::BlockDevice`], locked against a second opener |
//! | `os/overlay.rs` | a disk whose writes go nowhere |
//! | `os/net.rs` | listeners, datagrams, outbound connections |
//! | `os/stream.rs` | TCP streams with bounded buffers on both sides |
//! | `os/log.rs` | log lines on standard error |

mod disk;
mod log;
mod net;
mod overlay;
mod stream;

pub use disk::{DiskError, FileDisk, OpenMode};
pub use log::log_to_stderr;
pub use net::OsNetwork;
pub use overlay::Overlay;

use moraine_platform::{Clock, Instant, LocalFuture, Offload, Platform, Rng, Spawn, Timestamp};
use std::io;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

/// Threads that may run blocking disk calls and offloaded jobs at once.
const BLOCKING_THREADS_MAX: usize = 32;

/// Runs `main` on a fresh reactor with the platform of this process, and returns its result. Device commands under
/// way are finished before this returns.
pub fn run<T>(main: impl AsyncFnOnce(Platform) -> T) -> io::Result<T> {
    let reactor = Reactor::new()?;
    let platform = reactor.platform();
    Ok(reactor.block_on(main(platform)))
}

/// A reactor for callers that are not async themselves: it runs only while they wait for something.
pub struct Reactor {
    // Tasks go before the reactor they run on.
    tasks: tokio::task::LocalSet,
    runtime: tokio::runtime::Runtime,
}

impl Reactor {
    /// A fresh one.
    pub fn new() -> io::Result<Reactor> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .build()?;
        Ok(Reactor { tasks: tokio::task::LocalSet::new(), runtime })
    }

    /// The platform of this process, for use inside [`Reactor::block_on`].
    pub fn platform(&self) -> Platform {
        Platform {
            clock: Rc::new(OsClock { start: tokio::time::Instant::now() }),
            rng: Rc::new(OsRng),
            spawn: Rc::new(OsSpawn),
            offload: Rc::new(OsOffload),
        }
    }

    /// Runs `main`, and with it all tasks that were spawned, until it returns.
    pub fn block_on<T>(&self, main: impl Future<Output = T>) -> T {
        self.tasks.block_on(&self.runtime, main)
    }
}

/// Monotonic time since the process started its reactor; the system's wall clock.
struct OsClock {
    start: tokio::time::Instant,
}

impl Clock for OsClock {
    fn now(&self) -> Instant {
        Instant(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn wall(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    fn sleep_until(&self, deadline: Instant) -> LocalFuture<()> {
        // tokio panics on deadlines it cannot represent; a century is as good as for ever.
        const FOREVER: Duration = Duration::from_secs(100 * 365 * 86_400);
        let after = Duration::from_nanos(deadline.0).min(FOREVER);
        Box::pin(tokio::time::sleep_until(self.start + after))
    }
}

/// The kernel's random number generator.
struct OsRng;

impl Rng for OsRng {
    fn fill(&self, out: &mut [u8]) {
        let mut at = 0;
        while at < out.len() {
            match rustix::rand::getrandom(&mut out[at..], rustix::rand::GetRandomFlags::empty()) {
                Ok(n) => at += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => panic!("the system has no random numbers: {e}"),
            }
        }
    }
}

/// Tasks of the reactor's own thread.
struct OsSpawn;

impl Spawn for OsSpawn {
    fn spawn(&self, _name: &'static str, task: LocalFuture<()>) {
        tokio::task::spawn_local(task);
    }
}

/// Jobs on the pool of blocking threads.
struct OsOffload;

impl Offload for OsOffload {
    fn run(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()> {
        let handle = tokio::task::spawn_blocking(job);
        Box::pin(async move {
            if let Err(e) = handle.await
                && e.is_panic()
            {
                std::panic::resume_unwind(e.into_panic());
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::mpsc;

    #[test]
    fn time_passes_tasks_run_and_jobs_return() {
        run(async |platform| {
            let before = platform.clock.now();
            platform.clock.sleep(Duration::from_millis(2)).await;
            assert!(platform.clock.now().since(before) >= Duration::from_millis(2));

            let ran = Rc::new(Cell::new(false));
            let done = Rc::new(moraine_platform::sync::Event::new());
            let (r, d) = (ran.clone(), done.clone());
            platform.spawn.spawn(
                "test",
                Box::pin(async move {
                    r.set(true);
                    d.notify();
                }),
            );
            done.until(|| ran.get().then_some(())).await;

            let (send, receive) = mpsc::channel();
            platform.offload.run(Box::new(move || send.send(6 * 7).unwrap())).await;
            assert_eq!(receive.try_recv(), Ok(42));
            assert_ne!(platform.rng.next_u64(), platform.rng.next_u64());
        })
        .unwrap();
    }
}
