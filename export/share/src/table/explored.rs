//! The table in every state that four owners of both kinds reach on one object.
//!
//! What must hold is told of what is held: nobody who was let in is in the way of another open.

use super::*;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use moraine_sim::explore::{Core, expect_a_fault, expect_all_to_hold};

const OBJECT: ObjectId = ObjectId { subvolume: 1, inode: 7 };
/// Claims of one owner at a time.
const HELD_MAX: usize = 2;

/// What each owner may claim: a reader, a writer that denies removal to files, a volume, a call that removes.
const CLAIMS: [(Class, u64, Mask, Mask, Class); 5] = [
    (Class::File, 1, Mask::READ, Mask::empty(), Class::File),
    (Class::File, 2, Mask::WRITE, Mask::WRITE, Class::File),
    (Class::Block, 3, Mask::WRITE, Mask::RESIZE.union(Mask::REMOVE), Class::File),
    (Class::Block, 4, Mask::RESIZE, Mask::READ, Class::Block),
    (Class::File, 2, Mask::REMOVE, Mask::REMOVE, Class::File),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    /// The open of a claim, by its place in the list.
    Open(usize),
    Act(usize),
    End(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// An open that denies what another does is let in.
    NewcomerDeniesNobody,
    /// The end of one owner ends everybody.
    EndsAll,
    /// An act is not looked at.
    ActsUnseen,
}

struct Room {
    fault: Fault,
    table: Table,
    /// What is held: places in the list, opens and acts.
    opens: Vec<usize>,
    acts: Vec<usize>,
}

fn claim(place: usize) -> Claim {
    let (class, number, does, denies, denies_to) = CLAIMS[place];
    Claim { owner: Owner { class, number }, does, denies, denies_to }
}

/// Whether an open of `a` forbids `b` what it does.
fn forbids(a: usize, b: usize) -> bool {
    let (_, by, _, denies, to) = CLAIMS[a];
    let (class, who, does, _, _) = CLAIMS[b];
    by != who && to == class && !denies.intersection(does).is_empty()
}

impl Room {
    fn new(fault: Fault) -> Room {
        Room { fault, table: Table::new(), opens: Vec::new(), acts: Vec::new() }
    }

    fn owner(place: usize) -> u64 {
        CLAIMS[place].1
    }

    fn held_by(&self, owner: u64) -> usize {
        self.opens.iter().chain(&self.acts).filter(|p| Self::owner(**p) == owner).count()
    }
}

impl Core for Room {
    type Step = Step;
    type Key = (Vec<usize>, Vec<usize>, String);

    fn steps(&self) -> Vec<Step> {
        let free = |place: &usize| self.held_by(Self::owner(*place)) < HELD_MAX;
        let places = (0..CLAIMS.len()).filter(free);
        let mut steps: Vec<Step> = places.flat_map(|p| [Step::Open(p), Step::Act(p)]).collect();
        steps.extend((1..=4).filter(|owner| self.held_by(*owner) > 0).map(Step::End));
        steps
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Open(new) => {
                let mut asked = claim(new);
                if self.fault == Fault::NewcomerDeniesNobody {
                    asked.denies = Mask::empty();
                }
                let stands_in_the_way = self.opens.iter().any(|o| forbids(*o, new) || forbids(new, *o));
                let let_in = self.table.apply(Event::Open(OBJECT, asked)).is_ok();
                if let_in == stands_in_the_way {
                    return Err(format!("let in: {let_in}"));
                }
                self.opens.extend(let_in.then_some(new));
            }
            Step::Act(new) => {
                let forbidden = self.opens.iter().any(|o| forbids(*o, new));
                let let_in = self.table.apply(Event::Act(OBJECT, claim(new))).is_ok();
                if let_in == forbidden {
                    return Err(format!("let in: {let_in}"));
                }
                self.acts.extend(let_in.then_some(new));
            }
            Step::End(owner) => {
                for place in
                    (0..CLAIMS.len()).filter(|p| Self::owner(*p) == owner || self.fault == Fault::EndsAll)
                {
                    self.table
                        .apply(Event::End(OBJECT, claim(place).owner))
                        .map_err(|_| "an end is refused")?;
                }
                self.opens.retain(|p| Self::owner(*p) != owner);
                self.acts.retain(|p| Self::owner(*p) != owner);
            }
        }
        if self.table.claims() != self.opens.len() + self.acts.len() {
            return Err(format!("{} claims are held", self.table.claims()));
        }
        for open in &self.opens {
            let who = Self::owner(*open);
            // Only what began before an open that forbids it may still be under way.
            let own = self.opens.iter().filter(|o| Self::owner(**o) == who);
            let waits = own.flat_map(|o| self.acts.iter().map(move |a| (o, a))).any(|(o, a)| forbids(*o, *a));
            let told = self.table.unsettled(OBJECT, claim(*open).owner) && self.fault != Fault::ActsUnseen;
            if told != waits {
                return Err(format!("owner {who} is told that it must wait: {told}"));
            }
        }
        Ok(())
    }

    fn key(&self) -> Self::Key {
        // In whatever order they came: who is in the way of whom does not depend on it.
        let sorted = |list: &Vec<usize>| {
            let mut list = list.clone();
            list.sort_unstable();
            list
        };
        let mut inside: Vec<String> = format!("{}", self.table).lines().map(String::from).collect();
        inside.sort_unstable();
        (sorted(&self.opens), sorted(&self.acts), inside.join("\n"))
    }
}

#[test]
fn in_every_order_of_opens_acts_and_ends() {
    let explored = expect_all_to_hold("opens and acts", || Room::new(Fault::None), 32);
    assert!(explored.complete && explored.states > 1000, "{explored}");
}

#[test]
fn a_table_with_a_fault_is_noticed() {
    for (name, fault) in [
        ("an open that denies nobody anything", Fault::NewcomerDeniesNobody),
        ("an end that ends others", Fault::EndsAll),
        ("acts that nobody sees", Fault::ActsUnseen),
    ] {
        expect_a_fault(name, || Room::new(fault), 32);
    }
}
