//! The duplicate request cache: a call that arrives twice runs once.
//!
//! A client that got no answer sends the same call again, often over a new connection. Running a REMOVE or an exclusive
//! CREATE twice would answer "no such file" to somebody whose call succeeded. So replies of non-idempotent calls are
//! kept a while, and a call that is still running is joined: its reply goes to whoever asked *last*, since that
//! connection is alive (dropping the repeat would stall the client for a minute).
//!
//! WRITE is joined too but its reply is not kept. That is what stops ghost writes: a write begun on a connection that
//! died ends before the repeat of it is answered, so it can never land over something the client wrote later.
//!
//! The cache lives in memory: after a reboot a repeated REMOVE that had succeeded says `NOENT` (docs/nfs.md).

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use core::hash::Hasher;
use core::net::IpAddr;
use core::time::Duration;
use hashbrown::HashMap;
use moraine_fs::planted::{self, Fault};
use moraine_platform::Instant;
use siphasher::sip::SipHasher13;

/// The most calls remembered, running ones included.
pub const ENTRIES_MAX: usize = 2048;
/// The longest reply remembered, in bytes; every reply of a non-idempotent procedure is shorter.
pub const REPLY_MAX: usize = 512;
/// How long a reply is remembered.
pub const AGE_MAX: Duration = Duration::from_secs(120);
/// File data that takes part in a call's fingerprint, in bytes.
pub const DATA_HASHED: usize = 256;

/// What makes two calls the same call. Not the port: behind address translation it changes with each reconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The client's address.
    pub client: IpAddr,
    /// The client's number for the call.
    pub xid: u32,
    /// Program number.
    pub program: u32,
    /// Program version.
    pub version: u32,
    /// Procedure.
    pub procedure: u32,
    /// Fingerprint of user and arguments, see [`Fingerprint`].
    pub hash: u64,
    /// Length of arguments and data, in bytes.
    pub len: u64,
}

/// Computes keyed fingerprints, so that a client cannot aim for collisions with another's calls.
#[derive(Clone)]
pub struct Fingerprint {
    key: [u8; 16],
}

impl Fingerprint {
    /// With a random key of this boot.
    pub fn new(key: [u8; 16]) -> Fingerprint {
        Fingerprint { key }
    }

    /// The fingerprint of a call by `uid` with these arguments and (of a WRITE) this data.
    pub fn of(&self, uid: u32, args: &[u8], data: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write(&uid.to_le_bytes());
        hasher.write(&(args.len() as u64).to_le_bytes());
        hasher.write(args);
        hasher.write(&data[..data.len().min(DATA_HASHED)]);
        hasher.finish()
    }
}

/// Whether a call's reply is remembered after it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Until it is too old: the call must not run again.
    Reply,
    /// No: running it again does no harm, once the first run has ended.
    Nothing,
}

/// What the cache knows about a call that arrived.
#[derive(Debug)]
pub enum Arrival<T> {
    /// It is new; run it, then call [`Cache::finish`] with this key.
    Run,
    /// It runs already; the reply goes to the given place. Here is the place it would have gone to.
    Joined(T),
    /// It ran; here is its reply, and the place to send it.
    Replay(Box<[u8]>, T),
    /// Every entry is a running call: the caller must wait.
    Full(T),
}

enum Entry<T> {
    Running { reply_to: T, keep: Keep },
    Done { reply: Box<[u8]>, at: Instant },
}

/// The cache. `T` is the place a reply goes to.
pub struct Cache<T> {
    entries: HashMap<Key, Entry<T>>,
    /// Finished entries, oldest first: exactly the keys of `entries` that are `Done`.
    done: VecDeque<Key>,
    /// [`ENTRIES_MAX`]; less in a test of every state.
    entries_max: usize,
}

impl<T> Default for Cache<T> {
    fn default() -> Cache<T> {
        Cache { entries: HashMap::new(), done: VecDeque::new(), entries_max: ENTRIES_MAX }
    }
}

impl<T> Cache<T> {
    /// Calls remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A call arrived and wants its reply sent to `reply_to`. Room for the reply is set aside before it runs; for
    /// that the oldest finished entries go, never running ones.
    pub fn arrive(&mut self, key: Key, keep: Keep, reply_to: T, now: Instant) -> Arrival<T> {
        self.expire(now);
        match self.entries.get_mut(&key) {
            Some(Entry::Running { reply_to: place, .. }) => {
                return Arrival::Joined(core::mem::replace(place, reply_to));
            }
            Some(Entry::Done { reply, .. }) => return Arrival::Replay(reply.clone(), reply_to),
            None => {}
        }
        if self.entries.len() >= self.entries_max {
            let Some(oldest) = self.done.pop_front() else { return Arrival::Full(reply_to) };
            self.entries.remove(&oldest);
        }
        self.entries.insert(key, Entry::Running { reply_to, keep });
        Arrival::Run
    }

    /// The call ended with `reply` (none if it ended without one and may run again). Returns where the reply goes.
    /// Panics if the call was not running.
    pub fn finish(&mut self, key: &Key, reply: Option<&[u8]>, now: Instant) -> T {
        let Some(Entry::Running { reply_to, keep }) = self.entries.remove(key) else {
            panic!("a call ends exactly once, and running entries are never evicted");
        };
        let keep = if planted::is(Fault::ReplyForgotten) { Keep::Nothing } else { keep };
        if let (Some(reply), Keep::Reply) = (reply, keep) {
            assert!(reply.len() <= REPLY_MAX, "a reply of {} bytes is not remembered", reply.len());
            self.entries.insert(*key, Entry::Done { reply: reply.into(), at: now });
            self.done.push_back(*key);
        }
        reply_to
    }

    /// Forgets replies that are too old.
    pub fn expire(&mut self, now: Instant) {
        while let Some(key) = self.done.front() {
            match self.entries.get(key) {
                Some(Entry::Done { at, .. }) if now.since(*at) < AGE_MAX => break,
                _ => self.entries.remove(key),
            };
            self.done.pop_front();
        }
    }
}

#[cfg(test)]
mod explored;

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;

    fn key(xid: u32) -> Key {
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Key { client, xid, program: 100_003, version: 3, procedure: 12, hash: 5, len: 60 }
    }

    fn at(secs: u64) -> Instant {
        Instant(secs * 1_000_000_000)
    }

    #[test]
    fn v3_03_a_repeat_is_replayed_and_an_equal_xid_of_something_else_runs() {
        let mut cache = Cache::default();
        assert!(matches!(cache.arrive(key(1), Keep::Reply, 'a', at(0)), Arrival::Run));
        assert_eq!(cache.finish(&key(1), Some(b"done"), at(0)), 'a');
        let Arrival::Replay(reply, 'b') = cache.arrive(key(1), Keep::Reply, 'b', at(1)) else { panic!() };
        assert_eq!(&*reply, b"done");
        let others = [
            Key { client: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), ..key(1) },
            Key { xid: 2, ..key(1) },
            Key { procedure: 13, ..key(1) },
            Key { hash: 6, ..key(1) },
            Key { len: 64, ..key(1) },
        ];
        for other in others {
            assert!(matches!(cache.arrive(other, Keep::Reply, 'c', at(1)), Arrival::Run), "{other:?}");
        }
    }

    #[test]
    fn r_05_a_repeat_of_a_running_call_takes_over_its_reply() {
        let mut cache = Cache::default();
        assert!(matches!(cache.arrive(key(1), Keep::Nothing, "old", at(0)), Arrival::Run));
        assert!(matches!(cache.arrive(key(1), Keep::Nothing, "new", at(1)), Arrival::Joined("old")));
        assert_eq!(cache.finish(&key(1), Some(b"x"), at(2)), "new");
        assert!(cache.is_empty(), "a write's reply is not kept");
    }

    #[test]
    fn v3_03_running_entries_are_never_evicted_and_the_oldest_finished_go_first() {
        let mut cache = Cache::default();
        for xid in 0..ENTRIES_MAX as u32 {
            assert!(matches!(cache.arrive(key(xid), Keep::Reply, (), at(0)), Arrival::Run));
        }
        assert!(matches!(cache.arrive(key(9999), Keep::Reply, (), at(500)), Arrival::Full(())));
        cache.finish(&key(7), Some(b"7"), at(500));
        cache.finish(&key(3), Some(b"3"), at(500));
        assert!(matches!(cache.arrive(key(9999), Keep::Reply, (), at(500)), Arrival::Run));
        assert!(matches!(cache.arrive(key(3), Keep::Reply, (), at(500)), Arrival::Replay(..)));
        assert!(matches!(cache.arrive(key(0), Keep::Reply, (), at(500)), Arrival::Joined(())));
        assert_eq!(cache.len(), ENTRIES_MAX);
    }

    #[test]
    fn v3_03_replies_are_forgotten_after_two_minutes() {
        let mut cache = Cache::default();
        cache.arrive(key(1), Keep::Reply, (), at(0));
        cache.finish(&key(1), Some(b"x"), at(10));
        cache.expire(at(129));
        assert_eq!(cache.len(), 1);
        cache.expire(at(130));
        assert!(cache.is_empty());
        cache.arrive(key(2), Keep::Reply, (), at(0));
        cache.finish(&key(2), None, at(0));
        assert!(cache.is_empty(), "a call without a reply may run again");
    }

    #[test]
    fn v3_03_the_fingerprint_covers_user_arguments_and_the_first_data() {
        let f = Fingerprint::new([3; 16]);
        let mut data = [7; 300];
        let base = f.of(1, b"args", &data);
        assert_ne!(base, f.of(2, b"args", &data));
        assert_ne!(base, f.of(1, b"argz", &data));
        assert_ne!(base, Fingerprint::new([4; 16]).of(1, b"args", &data));
        data[299] = 0;
        assert_eq!(base, f.of(1, b"args", &data));
        data[255] = 0;
        assert_ne!(base, f.of(1, b"args", &data));
    }
}
