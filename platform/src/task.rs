//! Tasks on the reactor, and pure work on other cores.

use alloc::boxed::Box;
use core::future::Future;
use core::pin::Pin;

/// A boxed future that stays on the reactor it was made on.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Starts tasks on the reactor. A task runs until it ends; nothing cancels it but the end of the world.
pub trait Spawn {
    /// Runs `task` beside the others. `name` shows in logs and traces.
    fn spawn(&self, name: &'static str, task: LocalFuture<()>);
}

/// Runs pure computation, on another core where there is one and inline where there is none. The job owns its
/// input and leaves its output where the returned future's owner finds it (usually a channel it captured).
pub trait Offload {
    /// Runs `job` once; completes when it ran. Dropping the future does not stop the job.
    fn run(&self, job: Box<dyn FnOnce() + Send>) -> LocalFuture<()>;
}
