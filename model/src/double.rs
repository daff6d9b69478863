//! Building a filesystem for tests around another: what it does not do itself it passes on, and what it does can be
//! watched, held up and made to fail.
//!
//! [`forward!`](crate::forward) writes the calls that are passed on; a [`Gate`] stands in front of the others.

use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use moraine_fs::FsError;
use moraine_fs::vfs::FsResult;
use moraine_platform::sync::Event;

/// What stands in front of the calls of a filesystem. Calls go by their names in [`Vfs`](moraine_fs::Vfs).
#[derive(Default)]
pub struct Gate {
    log: RefCell<Vec<&'static str>>,
    held: RefCell<Vec<&'static str>>,
    failures: RefCell<Vec<(&'static str, FsError)>>,
    waiting: Cell<usize>,
    opened: Event,
}

impl Gate {
    /// Calls named `call` wait from now on.
    pub fn hold(&self, call: &'static str) {
        self.held.borrow_mut().push(call);
    }

    /// Lets calls named `call` go on.
    pub fn release(&self, call: &'static str) {
        self.held.borrow_mut().retain(|held| *held != call);
        self.opened.notify();
    }

    /// Lets all calls go on.
    pub fn release_all(&self) {
        self.held.borrow_mut().clear();
        self.opened.notify();
    }

    /// Calls that wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// The next `times` calls named `call` fail, without having happened.
    pub fn fail(&self, call: &'static str, error: FsError, times: usize) {
        self.failures.borrow_mut().extend(core::iter::repeat_n((call, error), times));
    }

    /// Names of the calls since the last time this was asked.
    pub fn calls(&self) -> Vec<&'static str> {
        self.log.take()
    }

    /// How often `call` was made since the log was last taken.
    pub fn count(&self, call: &'static str) -> usize {
        self.log.borrow().iter().filter(|c| **c == call).count()
    }

    /// Passes a call: notes it, waits while it is held, fails if it is to.
    pub async fn pass(&self, call: &'static str) -> FsResult<()> {
        self.log.borrow_mut().push(call);
        let held = || self.held.borrow().contains(&call);
        if held() {
            self.waiting.set(self.waiting.get() + 1);
            let wait = Waiting(&self.waiting);
            self.opened.until(|| (!held()).then_some(())).await;
            drop(wait);
        }
        let mut failures = self.failures.borrow_mut();
        match failures.iter().position(|(c, _)| *c == call) {
            Some(at) => Err(failures.remove(at).1),
            None => Ok(()),
        }
    }
}

/// Counts a call out, also one that is dropped while it waits.
struct Waiting<'a>(&'a Cell<usize>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// What the calls of [`forward!`](crate::forward) are written with.
#[doc(hidden)]
pub mod names {
    pub use alloc::boxed::Box;
    pub use alloc::vec::Vec;
    pub use moraine_fs::vfs::*;
    pub use moraine_platform::Timestamp;
}

/// Inside an `impl Vfs`: passes the named calls on to a field, `forward!(model; pool root getattr)`, or with a [`Gate`] in
/// another field passed first, `forward!(model, gate; write commit)`.
#[macro_export]
macro_rules! forward {
    ($to:ident; $($call:ident)*) => { $($crate::forward_call! { $to [] $call })* };
    ($to:ident, $gate:ident; $($call:ident)*) => { $($crate::forward_call! { $to [$gate] $call })* };
}

/// One call of [`forward!`].
#[doc(hidden)]
#[macro_export]
macro_rules! forward_call {
    ($to:ident [] pool) => {
        fn pool(&self) -> &$crate::double::names::PoolInfo {
            self.$to.pool()
        }
    };
    ($to:ident [] root) => {
        fn root(&self) -> $crate::double::names::ObjectId {
            self.$to.root()
        }
    };
    ($to:ident [] write_verifier) => {
        fn write_verifier(&self) -> u64 {
            self.$to.write_verifier()
        }
    };
    ($to:ident $gate:tt durable) => {
        $crate::forward_call! { @ $to $gate durable(seq: $crate::double::names::Seq) -> () }
    };
    ($to:ident $gate:tt getattr) => {
        $crate::forward_call! { @ $to $gate getattr(object: $crate::double::names::ObjectId) -> $crate::double::names::Attr }
    };
    ($to:ident $gate:tt setattr) => {
        $crate::forward_call! { @ $to $gate setattr(
            caller: &$crate::double::names::Caller, object: $crate::double::names::ObjectId, set: &$crate::double::names::SetAttr,
            guard: Option<$crate::double::names::Timestamp>
        ) -> $crate::double::names::Change<()> }
    };
    ($to:ident $gate:tt lookup) => {
        $crate::forward_call! { @ $to $gate lookup(
            caller: &$crate::double::names::Caller, dir: $crate::double::names::ObjectId, name: &[u8]
        ) -> ($crate::double::names::ObjectId, $crate::double::names::Attr) }
    };
    ($to:ident $gate:tt readlink) => {
        $crate::forward_call! { @ $to $gate readlink(
            object: $crate::double::names::ObjectId
        ) -> ($crate::double::names::Vec<u8>, $crate::double::names::Attr) }
    };
    ($to:ident $gate:tt read) => {
        $crate::forward_call! { @ $to $gate read(
            caller: &$crate::double::names::Caller, object: $crate::double::names::ObjectId, offset: u64, len: u32
        ) -> $crate::double::names::ReadData }
    };
    ($to:ident $gate:tt write) => {
        $crate::forward_call! { @ $to $gate write(
            caller: &$crate::double::names::Caller, object: $crate::double::names::ObjectId, offset: u64,
            data: $crate::double::names::WriteData, stability: $crate::double::names::Stability
        ) -> $crate::double::names::Change<$crate::double::names::Written> }
    };
    ($to:ident $gate:tt commit) => {
        $crate::forward_call! { @ $to $gate commit(
            object: $crate::double::names::ObjectId, offset: u64, len: u64
        ) -> $crate::double::names::Change<$crate::double::names::Written> }
    };
    ($to:ident $gate:tt punch) => {
        $crate::forward_call! { @ $to $gate punch(
            caller: &$crate::double::names::Caller, object: $crate::double::names::ObjectId, offset: u64, len: u64
        ) -> $crate::double::names::Change<()> }
    };
    ($to:ident $gate:tt segments) => {
        $crate::forward_call! { @ $to $gate segments(
            object: $crate::double::names::ObjectId, offset: u64, len: u64
        ) -> $crate::double::names::Vec<$crate::double::names::Segment> }
    };
    ($to:ident $gate:tt create) => {
        $crate::forward_call! { @ $to $gate create(
            caller: &$crate::double::names::Caller, dir: $crate::double::names::ObjectId, name: &[u8],
            how: $crate::double::names::CreateMode, set: &$crate::double::names::SetAttr
        ) -> $crate::double::names::Change<($crate::double::names::ObjectId, $crate::double::names::Attr)> }
    };
    ($to:ident $gate:tt make) => {
        $crate::forward_call! { @ $to $gate make(
            caller: &$crate::double::names::Caller, dir: $crate::double::names::ObjectId, name: &[u8],
            node: $crate::double::names::NewNode<'_>, set: &$crate::double::names::SetAttr
        ) -> $crate::double::names::Change<($crate::double::names::ObjectId, $crate::double::names::Attr)> }
    };
    ($to:ident $gate:tt remove) => {
        $crate::forward_call! { @ $to $gate remove(
            caller: &$crate::double::names::Caller, dir: $crate::double::names::ObjectId, name: &[u8]
        ) -> $crate::double::names::Change<$crate::double::names::ObjectId> }
    };
    ($to:ident $gate:tt rmdir) => {
        $crate::forward_call! { @ $to $gate rmdir(
            caller: &$crate::double::names::Caller, dir: $crate::double::names::ObjectId, name: &[u8]
        ) -> $crate::double::names::Change<$crate::double::names::ObjectId> }
    };
    ($to:ident $gate:tt rename) => {
        $crate::forward_call! { @ $to $gate rename(
            caller: &$crate::double::names::Caller, from: ($crate::double::names::ObjectId, &[u8]), to: ($crate::double::names::ObjectId, &[u8])
        ) -> ($crate::double::names::Change<$crate::double::names::ObjectId>, $crate::double::names::Change<Option<$crate::double::names::ObjectId>>) }
    };
    ($to:ident $gate:tt link) => {
        $crate::forward_call! { @ $to $gate link(
            caller: &$crate::double::names::Caller, object: $crate::double::names::ObjectId, dir: $crate::double::names::ObjectId, name: &[u8]
        ) -> $crate::double::names::Change<$crate::double::names::Attr> }
    };
    ($to:ident $gate:tt readdir) => {
        $crate::forward_call! { @ $to $gate readdir(
            caller: &$crate::double::names::Caller, dir: $crate::double::names::ObjectId, cookie: u64, limit: usize,
            attributes: $crate::double::names::WithAttributes
        ) -> $crate::double::names::Listing }
    };
    ($to:ident $gate:tt statfs) => {
        $crate::forward_call! { @ $to $gate statfs() -> $crate::double::names::FsStat }
    };
    ($to:ident $gate:tt getxattr) => {
        $crate::forward_call! { @ $to $gate getxattr(
            caller: &$crate::double::names::Caller, object: $crate::double::names::ObjectId, name: &[u8]
        ) -> $crate::double::names::Vec<u8> }
    };
    ($to:ident $gate:tt setxattr) => {
        $crate::forward_call! { @ $to $gate setxattr(
            caller: &$crate::double::names::Caller, object: $crate::double::names::ObjectId, name: &[u8], value: &[u8],
            how: $crate::double::names::XattrMode
        ) -> $crate::double::names::Change<()> }
    };
    ($to:ident $gate:tt removexattr) => {
        $crate::forward_call! { @ $to $gate removexattr(
            caller: &$crate::double::names::Caller, object: $crate::double::names::ObjectId, name: &[u8]
        ) -> $crate::double::names::Change<()> }
    };
    ($to:ident $gate:tt listxattr) => {
        $crate::forward_call! { @ $to $gate listxattr(
            object: $crate::double::names::ObjectId
        ) -> $crate::double::names::Vec<$crate::double::names::Box<[u8]>> }
    };
    (@ $to:ident [$($gate:ident)?] $call:ident($($arg:ident: $kind:ty),*) -> $out:ty) => {
        async fn $call(&self, $($arg: $kind),*) -> $crate::double::names::FsResult<$out> {
            $(self.$gate.pass(stringify!($call)).await?;)?
            self.$to.$call($($arg),*).await
        }
    };
}
