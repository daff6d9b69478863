//! How the end is asked for: the power button, a signal, or the simulator's script, once and for all to see.

use alloc::rc::Rc;
use core::cell::Cell;
use moraine_platform::sync::Event;

/// A request to shut down in good order. Clones share it; it cannot be taken back.
#[derive(Clone, Default)]
pub struct Stop {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: Cell<bool>,
    changed: Event,
}

impl Stop {
    /// A handle nobody has used yet.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Asks for the end.
    pub fn ask(&self) {
        self.shared.asked.set(true);
        self.shared.changed.notify();
    }

    /// Whether the end was asked for.
    pub fn asked(&self) -> bool {
        self.shared.asked.get()
    }

    /// Waits until the end is asked for.
    pub async fn wait(&self) {
        self.shared.changed.until(|| self.asked().then_some(())).await;
    }
}
