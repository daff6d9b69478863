//! The order police for protocols: each answer on the wire that called something stable is proved from the log of what
//! the disks saw: what it promised was written, and that write was flushed or had FUA, before the server handed the
//! answer to its network.
//!
//! Cells of content and names carry numbers that are found again wherever they lie in the payload of a write. A change
//! that leaves no such number (a name is gone, a mode is another) is proved by something that became durable meanwhile.

use super::scene::CELL;
use crate::trace::{Command, CommandId, Event, Payload};
use moraine_platform::Fua;
use std::collections::{BTreeMap, BTreeSet};

/// How a cell begins, eight bytes with its number, which fill it.
const CELL_MAGIC: [u8; 4] = [0xc5, 0xa3, 0x91, 0xe7];
/// How a name begins; its number follows in hexadecimal.
const NAME_MAGIC: &[u8] = b"~m#";
const NAME_DIGITS: usize = 8;

/// What is to be found in what the disks saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Token {
    /// A cell filled with its stamp.
    Cell(u64),
    /// A name.
    Name(u32),
    /// Anything at all.
    Change,
}

/// The stamp that fills the cell of this number.
pub(super) fn stamp(number: u32) -> u64 {
    u64::from(u32::from_be_bytes(CELL_MAGIC)) << 32 | u64::from(number)
}

/// The name of this number.
pub(super) fn name(number: u32) -> Vec<u8> {
    [NAME_MAGIC, format!("{number:0width$x}", width = NAME_DIGITS).as_bytes()].concat()
}

/// A promise: when the answer with this mark left, one of these was on media, in a write submitted after the other mark.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    pub(super) tokens: Vec<Token>,
    pub(super) since: u64,
    pub(super) answered: u64,
    /// For people.
    pub(super) what: &'static str,
}

/// A write as the disk saw it.
struct Written {
    position: usize,
    disk: usize,
    fua: bool,
    completed: bool,
    durable: bool,
}

/// Checks all promises against the log; says how many there were.
pub(super) fn check(events: &[Event], promises: &[Promise]) -> Result<usize, String> {
    let mut due: BTreeMap<u64, Vec<&Promise>> = BTreeMap::new();
    promises.iter().for_each(|p| due.entry(p.answered).or_default().push(p));
    let mut marks: BTreeMap<u64, usize> = BTreeMap::from([(0, 0)]);
    let mut writes: BTreeMap<CommandId, Written> = BTreeMap::new();
    let mut loose: BTreeSet<CommandId> = BTreeSet::new();
    let mut flushes: BTreeMap<CommandId, Vec<CommandId>> = BTreeMap::new();
    let mut found: BTreeMap<Token, Vec<CommandId>> = BTreeMap::new();
    let mut last_durable = 0;
    let mut proved = 0;
    for (position, event) in events.iter().enumerate() {
        match event {
            Event::Submit { disk, id, command: Command::Write { payload, fua, .. } } => {
                if let Payload::Bytes(bytes) = payload {
                    tokens(bytes, |token| found.entry(token).or_default().push(*id));
                }
                let (fua, completed, durable) = (*fua == Fua::Yes, false, false);
                writes.insert(*id, Written { position, disk: *disk, fua, completed, durable });
            }
            Event::Submit { disk, id, command: Command::Flush } => {
                let covered = loose.iter().filter(|id| writes[*id].disk == *disk).copied();
                flushes.insert(*id, covered.collect());
            }
            Event::Submit { .. } => {}
            Event::Complete { id, result: Ok(()), .. } => {
                if let Some(write) = writes.get_mut(id) {
                    (write.completed, write.durable) = (true, write.fua);
                    match write.fua {
                        true => last_durable = last_durable.max(write.position),
                        false => drop(loose.insert(*id)),
                    }
                }
                for covered in flushes.remove(id).unwrap_or_default() {
                    let write = writes.get_mut(&covered).expect("writes are kept");
                    write.durable = true;
                    last_durable = last_durable.max(write.position);
                    loose.remove(&covered);
                }
            }
            Event::Complete { .. } => {}
            Event::Mark(mark) => {
                marks.insert(*mark, position);
                for promise in due.remove(mark).into_iter().flatten() {
                    let since = *marks.get(&promise.since).ok_or("a promise begins after its answer")?;
                    let (mut written, mut durable) = (false, false);
                    for token in &promise.tokens {
                        if *token == Token::Change {
                            (written, durable) = (true, last_durable > since);
                        }
                        for id in found.get(token).into_iter().flatten() {
                            let write = &writes[id];
                            written |= write.position > since;
                            durable |= write.position > since && write.durable;
                        }
                    }
                    if !durable {
                        return Err(format!(
                            "{} of {:x?} was answered at {position} of the log, and {}",
                            promise.what,
                            promise.tokens,
                            if written { "was written, but not flushed" } else { "was never written" }
                        ));
                    }
                    proved += 1;
                }
            }
        }
    }
    match due.is_empty() {
        true => Ok(proved),
        false => Err(String::from("an answer is not in the log")),
    }
}

/// Calls `found` for each cell and each name in a payload.
fn tokens(bytes: &[u8], mut found: impl FnMut(Token)) {
    let mut at = 0;
    while at + CELL_MAGIC.len() < bytes.len() {
        let rest = &bytes[at..];
        if rest[0] == CELL_MAGIC[0] && rest.starts_with(&CELL_MAGIC) {
            // As long as it repeats, in words of eight bytes.
            let Some(word) = rest.first_chunk::<8>() else { return };
            let run = rest.chunks_exact(8).take_while(|next| next == word).count() * 8;
            if run >= CELL {
                found(Token::Cell(u64::from_be_bytes(*word)));
            }
            at += run;
        } else if rest[0] == NAME_MAGIC[0] && rest.starts_with(NAME_MAGIC) {
            let digits = rest.get(NAME_MAGIC.len()..NAME_MAGIC.len() + NAME_DIGITS);
            let number = digits.and_then(|digits| std::str::from_utf8(digits).ok());
            if let Some(number) = number.and_then(|digits| u32::from_str_radix(digits, 16).ok()) {
                found(Token::Name(number));
            }
            at += NAME_MAGIC.len();
        } else {
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn cells_and_names_are_found_wherever_they_lie() {
        let mut bytes = vec![7; 13];
        bytes.extend(stamp(5).to_be_bytes().repeat(CELL / 8));
        bytes.extend(stamp(6).to_be_bytes().repeat(CELL / 8 - 1));
        bytes.extend(name(0xabc));
        bytes.push(0);
        let mut all = Vec::new();
        tokens(&bytes, |token| all.push(token));
        assert_eq!(all, [Token::Cell(stamp(5)), Token::Name(0xabc)], "and not the cell that is cut short");
    }

    #[test]
    fn an_answer_before_the_flush_or_before_the_write_is_caught() {
        let promise = Promise { tokens: vec![Token::Name(3)], since: 1, answered: 2, what: "CREATE" };
        let payload = Payload::Bytes(Rc::from([&name(3)[..], &[0]].concat()));
        let write = Command::Write { offset: 0, payload, fua: Fua::No };
        let submit = |id, command| Event::Submit { disk: 0, id, command };
        let complete = |id| Event::Complete { disk: 0, id, result: Ok(()) };
        let (asked, answered) = (Event::Mark(1), Event::Mark(2));
        let good = [
            asked.clone(),
            submit(1, write.clone()),
            complete(1),
            submit(2, Command::Flush),
            complete(2),
            answered.clone(),
        ];
        assert_eq!(check(&good, std::slice::from_ref(&promise)), Ok(1));
        let orders: [&[usize]; 4] = [&[0, 5], &[0, 1, 2, 3, 5, 4], &[0, 1, 3, 2, 4, 5], &[1, 2, 3, 4, 0, 5]];
        for order in orders {
            let events: Vec<Event> = order.iter().map(|n| good[*n].clone()).collect();
            assert!(check(&events, std::slice::from_ref(&promise)).is_err(), "{order:?}");
        }
    }
}
