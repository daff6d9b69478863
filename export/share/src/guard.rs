//! The share table between tasks of one reactor: what is held ends when its guard is dropped.

use crate::names::{NameHold, Names, key};
use crate::table::{Claim, Class, Event as Change, Mask, Owner, Refused, Table};
use alloc::rc::Rc;
use core::cell::{Cell, RefCell};
use core::fmt;
use moraine_fs::vfs::ObjectId;
use moraine_platform::sync::Event;

/// The one share table of an appliance.
#[derive(Default)]
pub struct Share {
    table: RefCell<Table>,
    next_owner: Cell<u64>,
    names: Rc<Names>,
    ended: Event,
}

/// An open; closed when dropped.
pub struct Open {
    held: Held,
}

/// A change under way; ends when dropped.
pub struct Act {
    _held: Held,
}

struct Held {
    share: Rc<Share>,
    object: ObjectId,
    owner: Owner,
}

impl Share {
    /// A table in which nothing is held.
    pub fn new() -> Rc<Share> {
        Rc::new(Share::default())
    }

    /// Opens a block volume for reading and writing: file protocols may read it meanwhile, and nothing else. Its users
    /// must wait for [`Open::settled`] before they believe its size.
    pub fn open_volume(self: &Rc<Self>, object: ObjectId) -> Result<Open, Refused> {
        let owner = self.owner(Class::Block);
        let claim = Claim {
            owner,
            does: Mask::READ | Mask::WRITE,
            denies: Mask::WRITE | Mask::RESIZE | Mask::REMOVE,
            denies_to: Class::File,
        };
        self.table.borrow_mut().apply(Change::Open(object, claim))?;
        Ok(Open { held: self.hold(object, owner) })
    }

    /// A file protocol without opens is about to do `does` to the object: keep the guard until the filesystem's call
    /// returned. [`Refused`] becomes [`FsError::Busy`](moraine_fs::FsError::Busy).
    pub fn act(self: &Rc<Self>, object: ObjectId, does: Mask) -> Result<Act, Refused> {
        let owner = self.owner(Class::File);
        let claim = Claim { owner, does, denies: Mask::empty(), denies_to: Class::File };
        self.table.borrow_mut().apply(Change::Act(object, claim))?;
        Ok(Act { _held: self.hold(object, owner) })
    }

    /// Waits until nobody else is changing what `name` in `dir` leads to. Every file protocol holds a name from before it
    /// looks what an [act](Share::act) on it would hit until the filesystem's call returned.
    pub async fn hold_name(&self, dir: ObjectId, name: &[u8]) -> NameHold {
        self.names.hold(key(dir, name), None).await
    }

    /// The same for the two names of a rename.
    pub async fn hold_names(&self, from: (ObjectId, &[u8]), to: (ObjectId, &[u8])) -> NameHold {
        self.names.hold(key(from.0, from.1), Some(key(to.0, to.1))).await
    }

    /// Opens and acts held now.
    pub fn claims(&self) -> usize {
        self.table.borrow().claims()
    }

    fn owner(&self, class: Class) -> Owner {
        let number = self.next_owner.get();
        self.next_owner.set(number + 1);
        Owner { class, number }
    }

    fn hold(self: &Rc<Self>, object: ObjectId, owner: Owner) -> Held {
        Held { share: self.clone(), object, owner }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table.borrow().fmt(f)
    }
}

impl Open {
    /// The object held open.
    pub fn object(&self) -> ObjectId {
        self.held.object
    }

    /// Waits until every act that this open denies, and that began before it, has ended. None begins any more.
    pub async fn settled(&self) {
        let Held { share, object, owner } = &self.held;
        share.ended.until(|| (!share.table.borrow().unsettled(*object, *owner)).then_some(())).await
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let ended = self.share.table.borrow_mut().apply(Change::End(self.object, self.owner));
        assert!(ended.is_ok(), "ending a claim is never refused");
        self.share.ended.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use core::future::Future;
    use core::task::{Context, Waker};

    #[test]
    fn guards_end_what_they_hold_and_settle_an_open() {
        let object = ObjectId { subvolume: 1, inode: 3 };
        let share = Share::new();
        let resize = share.act(object, Mask::RESIZE).unwrap();
        let open = share.open_volume(object).unwrap();
        let mut settled = Box::pin(open.settled());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(settled.as_mut().poll(&mut cx).is_pending());
        assert!(matches!(share.act(object, Mask::REMOVE), Err(Refused::Denied)));
        drop(resize);
        assert!(settled.as_mut().poll(&mut cx).is_ready());
        drop(settled);
        drop(open);
        assert_eq!(share.claims(), 0);
        share.act(object, Mask::REMOVE).unwrap();
    }
}
