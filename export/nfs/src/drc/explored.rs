//! The cache in every state that three calls reach in one with room for two.
//!
//! What must hold is told of what clients see: when each call ran, ended and was answered, from the beginning on.

use super::*;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use moraine_sim::explore::{Core, expect_a_fault, expect_all_to_hold};

const ROOM: usize = 2;
/// Calls; the last is one whose reply is not kept.
const CALLS: u32 = 3;
/// Half the age at which a reply is forgotten.
const TICK: Duration = Duration::from_secs(AGE_MAX.as_secs() / 2);
/// Ticks, and runs of one call, until an exploration has seen enough.
const TICKS_MAX: u64 = 4;
const RUNS_MAX: u32 = 3;

fn key(call: u32) -> Key {
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Key { client, xid: call, program: 100_003, version: 3, procedure: 12, hash: 5, len: 60 }
}

fn keep(call: u32) -> Keep {
    if call + 1 == CALLS { Keep::Nothing } else { Keep::Reply }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Arrive(u32),
    /// A call ends, with a reply or without.
    End(u32, bool),
    Tick,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Running calls make room for others.
    RunningEvicted,
    /// Replies are forgotten at half their age.
    ForgottenEarly,
    /// A reply goes to whoever asked first.
    FirstAskerAnswered,
    /// A reply is not kept.
    Miss,
}

/// What clients saw of a call.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Seen {
    /// How often it ran to an end.
    runs: u32,
    /// It runs, and this one asked last.
    running_for: Option<u32>,
    /// When it last ended with a reply that is kept, and the calls that ran then or began since.
    replied: Option<(u64, Vec<u32>)>,
}

struct Client {
    fault: Fault,
    cache: Cache<u32>,
    now: u64,
    /// Whoever asks is a new place.
    asked: u32,
    seen: BTreeMap<u32, Seen>,
}

impl Client {
    fn new(fault: Fault) -> Client {
        let cache = Cache { entries_max: ROOM, ..Cache::default() };
        let seen = (0..CALLS).map(|call| (call, Seen::default())).collect();
        Client { fault, cache, now: 0, asked: 0, seen }
    }

    fn instant(&self) -> Instant {
        Instant(self.now * TICK.as_nanos() as u64)
    }

    fn reply(call: u32, run: u32) -> Vec<u8> {
        Vec::from([call as u8, run as u8])
    }

    fn arrive(&mut self, call: u32) -> Result<(), String> {
        self.asked += 1;
        let (place, now) = (self.asked, self.instant());
        match self.fault {
            Fault::RunningEvicted if self.cache.len() >= ROOM => {
                let running = (0..CALLS)
                    .map(key)
                    .find(|k| matches!(self.cache.entries.get(k), Some(Entry::Running { .. })));
                running.map(|k| self.cache.entries.remove(&k));
            }
            Fault::ForgottenEarly => self.cache.expire(Instant(now.0 + TICK.as_nanos() as u64)),
            _ => {}
        }
        let was_first = match self.cache.entries.get(&key(call)) {
            Some(Entry::Running { reply_to, .. }) => Some(*reply_to),
            _ => None,
        };
        let running = self.seen.values().filter(|s| s.running_for.is_some()).count();
        let answer = self.cache.arrive(key(call), keep(call), place, now);
        if let (Fault::FirstAskerAnswered, Some(first)) = (self.fault, was_first)
            && let Some(Entry::Running { reply_to, .. }) = self.cache.entries.get_mut(&key(call))
        {
            *reply_to = first;
        }
        let now = self.now;
        let seen = self.seen.get_mut(&call).expect("one of the calls");
        match answer {
            Arrival::Run => {
                if seen.running_for.is_some() {
                    return Err(format!("call {call} runs twice at a time"));
                }
                // A kept reply goes when it is old, or when so many others came that there was no room for it.
                if let Some((at, since)) = seen.replied.take()
                    && (now - at) * 2 * TICK.as_secs() < 2 * AGE_MAX.as_secs()
                    && since.len() < ROOM
                {
                    return Err(format!(
                        "call {call} runs again, and its reply need not have been forgotten"
                    ));
                }
                seen.running_for = Some(place);
                for (other, s) in &mut self.seen {
                    if let Some((_, since)) = &mut s.replied
                        && *other != call
                        && !since.contains(&call)
                    {
                        since.push(call);
                        since.sort_unstable();
                    }
                }
            }
            Arrival::Joined(before) => {
                if seen.running_for != Some(before) {
                    return Err(format!("{before} is let go, {:?} asked last", seen.running_for));
                }
                seen.running_for = Some(place);
            }
            Arrival::Replay(reply, to) => {
                let right =
                    seen.running_for.is_none() && *reply == *Self::reply(call, seen.runs) && to == place;
                let Some((at, _)) = seen.replied.as_ref().filter(|_| right) else {
                    return Err(format!("call {call} is answered with {reply:?}"));
                };
                if (now - at) * TICK.as_secs() >= AGE_MAX.as_secs() {
                    return Err(format!("a reply to call {call} of long ago"));
                }
            }
            Arrival::Full(to) => {
                if running < ROOM || to != place {
                    return Err(format!("no room, and {running} calls run"));
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, call: u32, replies: bool) -> Result<(), String> {
        let now = self.instant();
        let others = self.seen.iter().filter(|(other, s)| **other != call && s.running_for.is_some());
        let others: Vec<u32> = others.map(|(other, _)| *other).collect();
        let seen = self.seen.get_mut(&call).expect("one of the calls");
        let asked_last = seen.running_for.take();
        seen.runs += 1;
        let reply = Self::reply(call, seen.runs);
        let kept = replies && self.fault != Fault::Miss;
        let to = self.cache.finish(&key(call), kept.then_some(&reply), now);
        seen.replied = (replies && keep(call) == Keep::Reply).then_some((self.now, others));
        if asked_last == Some(to) {
            Ok(())
        } else {
            Err(format!("the reply goes to {to}, {asked_last:?} asked last"))
        }
    }
}

impl Core for Client {
    type Step = Step;
    type Key = (Vec<(u32, Seen)>, u64, Vec<String>);

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (call, seen) in &self.seen {
            if seen.runs < RUNS_MAX {
                steps.push(Step::Arrive(*call));
            }
            if seen.running_for.is_some() {
                steps.extend([Step::End(*call, true), Step::End(*call, false)]);
            }
        }
        steps.extend((self.now < TICKS_MAX).then_some(Step::Tick));
        steps
    }

    fn apply(&mut self, step: &Step) -> Result<(), String> {
        match *step {
            Step::Arrive(call) => self.arrive(call)?,
            Step::End(call, replies) => self.end(call, replies)?,
            Step::Tick => self.now += 1,
        }
        if self.cache.len() > ROOM {
            return Err(format!("{} calls are remembered", self.cache.len()));
        }
        Ok(())
    }

    /// Places are told apart only by whether they are the last that asked.
    fn key(&self) -> Self::Key {
        let seen = self
            .seen
            .iter()
            .map(|(call, s)| (*call, Seen { running_for: s.running_for.map(|_| 0), ..s.clone() }));
        let mut inside: Vec<String> = (0..CALLS)
            .map(|call| match self.cache.entries.get(&key(call)) {
                None => "-".to_string(),
                Some(Entry::Running { reply_to, .. }) => {
                    let last = self.seen[&call].running_for == Some(*reply_to);
                    format!("runs {last}")
                }
                Some(Entry::Done { reply, at }) => format!("{reply:?} {}", at.0),
            })
            .collect();
        inside.extend(self.cache.done.iter().map(|k| k.xid.to_string()));
        (seen.collect(), self.now, inside)
    }
}

#[test]
fn v3_03_in_every_order_of_three_calls_in_room_for_two() {
    let explored = expect_all_to_hold("duplicate requests", || Client::new(Fault::None), 13);
    assert!(explored.states > 10_000, "{explored}");
}

#[test]
fn v3_03_a_cache_with_a_fault_is_noticed() {
    for (name, fault) in [
        ("a running call evicted", Fault::RunningEvicted),
        ("a reply forgotten early", Fault::ForgottenEarly),
        ("the first who asked answered", Fault::FirstAskerAnswered),
        ("a reply not kept", Fault::Miss),
    ] {
        expect_a_fault(name, || Client::new(fault), 9);
    }
}
