//! Names under change: one change of a name at a time, from the look at what it names to the end of the change.
//!
//! A file protocol that takes a name away, or puts something else in its place, asks the share table about the *object* it
//! will hit. Between that question and the change, another call might give the name to another object, one in use. So
//! whoever changes which object a name leads to holds the name meanwhile.

use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use core::cell::RefCell;
use moraine_fs::vfs::ObjectId;
use moraine_platform::sync::Event;

/// A directory and a name in it, as a hash: two names that share one only wait for each other.
type Key = (ObjectId, u64);

/// The names under change. Bounded by the calls its users run at once, two names each.
#[derive(Default)]
pub(crate) struct Names {
    held: RefCell<BTreeSet<Key>>,
    freed: Event,
}

/// Names held; free again when dropped.
pub struct NameHold {
    names: Rc<Names>,
    keys: [Option<Key>; 2],
}

impl Names {
    /// Waits for each of the names in turn, in an order that is the same for everybody, so that nobody waits in a circle.
    pub(crate) async fn hold(self: &Rc<Self>, first: Key, second: Option<Key>) -> NameHold {
        let mut wanted = [Some(first), second.filter(|key| *key != first)];
        wanted.sort_by_key(|key| (key.is_none(), *key));
        let mut hold = NameHold { names: self.clone(), keys: [None; 2] };
        for (key, place) in wanted.into_iter().flatten().zip(&mut hold.keys) {
            self.freed.until(|| self.held.borrow_mut().insert(key).then_some(())).await;
            *place = Some(key);
        }
        hold
    }
}

/// What stands for a name in a directory.
pub(crate) fn key(dir: ObjectId, name: &[u8]) -> Key {
    // FNV-1a: the same in every run, and quick for short names.
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    (dir, name.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

impl Drop for NameHold {
    fn drop(&mut self) {
        let mut held = self.names.held.borrow_mut();
        for key in self.keys.iter().flatten() {
            let was = held.remove(key);
            assert!(was, "a name is held until its holder is gone");
        }
        drop(held);
        self.names.freed.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Share;
    use alloc::boxed::Box;
    use core::future::Future;
    use core::task::{Context, Poll, Waker};

    const DIR: ObjectId = ObjectId { subvolume: 1, inode: 2 };
    const OTHER: ObjectId = ObjectId { subvolume: 1, inode: 3 };

    fn poll<T>(future: &mut core::pin::Pin<Box<impl Future<Output = T>>>) -> Option<T> {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn nbd_14_one_holds_a_name_and_others_hold_others() {
        let share = Share::new();
        let held = poll(&mut Box::pin(share.hold_name(DIR, b"a"))).unwrap();
        let mut same = Box::pin(share.hold_name(DIR, b"a"));
        assert!(poll(&mut same).is_none());
        assert!(poll(&mut Box::pin(share.hold_name(DIR, b"b"))).is_some());
        assert!(poll(&mut Box::pin(share.hold_name(OTHER, b"a"))).is_some());
        drop(held);
        assert!(poll(&mut same).is_some());
    }

    #[test]
    fn nbd_14_renames_in_opposite_directions_follow_each_other() {
        let share = Share::new();
        let (a, b): ((_, &[u8]), (_, &[u8])) = ((DIR, b"a"), (DIR, b"b"));
        let there = poll(&mut Box::pin(share.hold_names(a, b))).unwrap();
        let mut back = Box::pin(share.hold_names(b, a));
        assert!(poll(&mut back).is_none());
        drop(there);
        let back = poll(&mut back).unwrap();
        drop(back);
        assert!(poll(&mut Box::pin(share.hold_names(a, a))).is_some(), "onto itself is one name");
        assert!(poll(&mut Box::pin(share.hold_name(DIR, b"a"))).is_some(), "nothing is left held");
    }

    #[test]
    fn nbd_14_who_gives_up_waiting_leaves_no_name_held() {
        let share = Share::new();
        let (a, b): ((_, &[u8]), (_, &[u8])) = ((DIR, b"a"), (DIR, b"b"));
        for held in [a, b] {
            let held = poll(&mut Box::pin(share.hold_name(held.0, held.1))).unwrap();
            let mut both = Box::pin(share.hold_names(a, b));
            assert!(poll(&mut both).is_none());
            drop(both);
            drop(held);
            assert!(poll(&mut Box::pin(share.hold_names(a, b))).is_some());
        }
    }
}
