//! Who uses an object, and what that denies others: one table for every protocol.
//!
//! A block volume in use is an *open* that denies writing, resizing and removing to file protocols. A file protocol
//! without opens (NFSv3) declares each change as an *act* while it runs. Both meet here, so that no export needs to
//! know of another.
//!
//! | file | what lives there |
//! |---|---|
//! | `table` | the table as plain data: events in, verdicts out; no futures, no clock |
//! | `guard` | the table shared between tasks: opens and acts that end when their guard is dropped |
//! | `names` | names under change: what a name leads to stays so from the question to the change |
//!
//! Share reservations of NFSv4 and NLM are opens with other masks; byte-range locks and delegations become further
//! lists of an object's entry in `table`, with an event each.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod guard;
mod names;
mod table;

pub use guard::{Act, Open, Share};
pub use names::NameHold;
pub use table::{CLAIMS_MAX, Claim, Class, Event, Mask, Owner, Refused, Table};
