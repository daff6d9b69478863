//! The share table as plain data: `apply(event)` changes it or refuses, and nothing else does.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use moraine_fs::FsError;
use moraine_fs::vfs::ObjectId;

/// The most opens and acts held at once, over all objects.
pub const CLAIMS_MAX: usize = 16_384;

bitflags::bitflags! {
    /// What a user of an object does, or what it denies others.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Mask: u8 {
        /// Read its content.
        const READ = 1;
        /// Change its content.
        const WRITE = 2;
        /// Change its size.
        const RESIZE = 4;
        /// Take away a name of it, or put something else in the name's place.
        const REMOVE = 8;
    }
}

/// What kind of protocol an owner belongs to. A block volume's open denies to file protocols only: any number of
/// block connections share a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// NFS and other protocols that see files.
    File,
    /// NBD and other protocols that see volumes.
    Block,
}

/// Who holds something: a block connection, an NFSv4 open-owner, one call of NFSv3. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Its kind of protocol.
    pub class: Class,
    /// Its number within the table.
    pub number: u64,
}

/// Something an owner holds on an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who.
    pub owner: Owner,
    /// What it does.
    pub does: Mask,
    /// What it denies other owners of `denies_to`.
    pub denies: Mask,
    /// Whom it denies that.
    pub denies_to: Class,
}

impl Claim {
    /// Whether this claim stands in the way of `other`.
    fn bars(&self, other: &Claim) -> bool {
        self.owner != other.owner && self.denies_to == other.owner.class && self.denies.intersects(other.does)
    }
}

/// A change to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The object is opened. Refused if a present *open* bars it or is barred by it; acts under way do not refuse it
    /// (they end soon: see [`Table::unsettled`]), but from now on it refuses new ones.
    Open(ObjectId, Claim),
    /// One change begins. Refused if an open bars it.
    Act(ObjectId, Claim),
    /// What the owner held on the object ends. Never refused.
    End(ObjectId, Owner),
}

/// Why the table refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another owner's open denies it.
    Denied,
    /// The table is full; try again later.
    Exhausted,
}

impl From<Refused> for FsError {
    fn from(why: Refused) -> FsError {
        match why {
            Refused::Denied | Refused::Exhausted => FsError::Busy,
        }
    }
}

#[derive(Default)]
struct Uses {
    opens: Vec<Claim>,
    acts: Vec<Claim>,
}

/// Every object in use and by whom. Bounded by [`CLAIMS_MAX`].
#[derive(Default)]
pub struct Table {
    objects: BTreeMap<ObjectId, Uses>,
    claims: usize,
}

impl Table {
    /// An empty table.
    pub fn new() -> Table {
        Table::default()
    }

    /// Applies one event; a refused one has changed nothing.
    pub fn apply(&mut self, event: Event) -> Result<(), Refused> {
        match event {
            Event::Open(object, claim) => {
                let bars = |o: &Claim| o.bars(&claim) || claim.bars(o);
                self.add(object, bars, |uses| uses.opens.push(claim))
            }
            Event::Act(object, claim) => self.add(object, |o| o.bars(&claim), |uses| uses.acts.push(claim)),
            Event::End(object, owner) => {
                self.end(object, owner);
                Ok(())
            }
        }
    }

    fn add(
        &mut self,
        object: ObjectId,
        bars: impl Fn(&Claim) -> bool,
        put: impl FnOnce(&mut Uses),
    ) -> Result<(), Refused> {
        if self.objects.get(&object).is_some_and(|uses| uses.opens.iter().any(bars)) {
            return Err(Refused::Denied);
        }
        if self.claims >= CLAIMS_MAX {
            return Err(Refused::Exhausted);
        }
        put(self.objects.entry(object).or_default());
        self.claims += 1;
        Ok(())
    }

    fn end(&mut self, object: ObjectId, owner: Owner) {
        let Some(uses) = self.objects.get_mut(&object) else { return };
        let before = uses.opens.len() + uses.acts.len();
        uses.opens.retain(|c| c.owner != owner);
        uses.acts.retain(|c| c.owner != owner);
        let left = uses.opens.len() + uses.acts.len();
        self.claims -= before - left;
        if left == 0 {
            self.objects.remove(&object);
        }
    }

    /// Whether an act that `owner`'s open bars is still under way on the object. It began before the open did.
    pub fn unsettled(&self, object: ObjectId, owner: Owner) -> bool {
        let Some(uses) = self.objects.get(&object) else { return false };
        let mut own = uses.opens.iter().filter(|o| o.owner == owner);
        own.any(|open| uses.acts.iter().any(|act| open.bars(act)))
    }

    /// Opens and acts held now.
    pub fn claims(&self) -> usize {
        self.claims
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (object, uses) in &self.objects {
            for (what, claims) in [("open", &uses.opens), ("act", &uses.acts)] {
                for c in claims {
                    writeln!(
                        f,
                        "{}:{} {what} by {:?} {}: does {:?}, denies {:?} to {:?}",
                        object.subvolume,
                        object.inode,
                        c.owner.class,
                        c.owner.number,
                        c.does,
                        c.denies,
                        c.denies_to
                    )?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod explored;

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    const A: ObjectId = ObjectId { subvolume: 1, inode: 7 };
    const B: ObjectId = ObjectId { subvolume: 1, inode: 8 };

    fn volume(number: u64) -> Claim {
        Claim {
            owner: Owner { class: Class::Block, number },
            does: Mask::READ | Mask::WRITE,
            denies: Mask::WRITE | Mask::RESIZE | Mask::REMOVE,
            denies_to: Class::File,
        }
    }

    fn act(number: u64, does: Mask) -> Claim {
        Claim {
            owner: Owner { class: Class::File, number },
            does,
            denies: Mask::empty(),
            denies_to: Class::File,
        }
    }

    #[test]
    fn a_served_volume_denies_every_change_to_files_and_nothing_to_blocks() {
        let mut table = Table::new();
        table.apply(Event::Open(A, volume(1))).unwrap();
        table.apply(Event::Open(A, volume(2))).unwrap();
        for does in [Mask::WRITE, Mask::RESIZE, Mask::REMOVE, Mask::READ | Mask::WRITE] {
            assert_eq!(table.apply(Event::Act(A, act(3, does))), Err(Refused::Denied));
            table.apply(Event::Act(B, act(3, does))).unwrap();
        }
        table.apply(Event::Act(A, act(3, Mask::READ))).unwrap();
        assert!(table.to_string().contains("1:7 open by Block 2"));
    }

    #[test]
    fn an_open_waits_for_the_acts_before_it_and_bars_those_after_it() {
        let mut table = Table::new();
        table.apply(Event::Act(A, act(1, Mask::RESIZE))).unwrap();
        table.apply(Event::Act(A, act(2, Mask::READ))).unwrap();
        table.apply(Event::Open(A, volume(3))).unwrap();
        assert!(table.unsettled(A, volume(3).owner));
        assert_eq!(table.apply(Event::Act(A, act(4, Mask::RESIZE))), Err(Refused::Denied));
        table.apply(Event::End(A, act(1, Mask::RESIZE).owner)).unwrap();
        assert!(!table.unsettled(A, volume(3).owner), "reading was never denied");
    }

    #[test]
    fn share_reservations_bar_both_ways() {
        let reserve = |number, does, denies| Claim {
            owner: Owner { class: Class::File, number },
            does,
            denies,
            denies_to: Class::File,
        };
        let mut table = Table::new();
        table.apply(Event::Open(A, reserve(1, Mask::READ, Mask::WRITE))).unwrap();
        assert_eq!(table.apply(Event::Open(A, reserve(2, Mask::WRITE, Mask::empty()))), Err(Refused::Denied));
        assert_eq!(table.apply(Event::Open(A, reserve(2, Mask::READ, Mask::READ))), Err(Refused::Denied));
        table.apply(Event::Open(A, reserve(2, Mask::READ, Mask::WRITE))).unwrap();
    }

    #[test]
    fn what_ended_leaves_nothing_behind_and_the_table_is_bounded() {
        let mut table = Table::new();
        for n in 0..CLAIMS_MAX as u64 {
            table.apply(Event::Act(ObjectId { subvolume: 1, inode: n % 9 }, act(n, Mask::WRITE))).unwrap();
        }
        assert_eq!(table.apply(Event::Act(A, act(1 << 40, Mask::WRITE))), Err(Refused::Exhausted));
        for n in 0..CLAIMS_MAX as u64 {
            let owner = Owner { class: Class::File, number: n };
            table.apply(Event::End(ObjectId { subvolume: 1, inode: n % 9 }, owner)).unwrap();
            table.apply(Event::End(ObjectId { subvolume: 1, inode: n % 9 }, owner)).unwrap();
        }
        assert_eq!(table.claims(), 0);
        assert!(table.objects.is_empty());
    }
}
