//! A node in memory: its keys with their values, in order.
//!
//! They lie in small chunks, each sorted and packed tightly, and a list of the chunks' first keys. So a look-up is two
//! binary searches over a few kilobytes, an update moves at most one chunk, memory is about the live bytes, and however
//! large a node is on disk, nobody needs more than a few contiguous kilobytes for it: in little memory, after days, there
//! are no large pieces. Values that fit a page of memory stay within one: a heap gives out whole pages, so a few bytes more
//! would cost as much again.

use crate::tx::Value;
use alloc::vec::Vec;
use moraine_format::Pos;
use moraine_format::node::{Entry, entry_bytes};

/// Keys of a full chunk.
const CHUNK_KEYS: usize = 64;
/// The most bytes of values in a chunk, but for a single value that is longer: a page.
const CHUNK_BYTES: usize = 4096;
/// Least room that values grow by.
const GROW_BYTES: usize = 64;

/// Keys of one node with their values.
#[derive(Default)]
pub(super) struct Keys {
    chunks: Vec<Chunk>,
    /// The first key of each chunk.
    firsts: Vec<Pos>,
    /// Bytes that the keys take as entries on disk.
    live_bytes: usize,
    count: usize,
    /// Memory that the chunks hold.
    memory: usize,
}

/// Some keys that follow each other. Never empty.
#[derive(Default)]
struct Chunk {
    keys: Vec<Pos>,
    /// End of each value in `heap`.
    ends: Vec<u32>,
    heap: Vec<u8>,
}

impl Chunk {
    fn one(pos: Pos, value: &[u8]) -> Chunk {
        let mut chunk = Chunk::default();
        chunk.insert(0, pos, value);
        chunk
    }

    fn start(&self, i: usize) -> usize {
        if i == 0 { 0 } else { self.ends[i - 1] as usize }
    }

    fn value(&self, i: usize) -> &[u8] {
        &self.heap[self.start(i)..self.ends[i] as usize]
    }

    fn memory(&self) -> usize {
        self.keys.capacity() * size_of::<Pos>()
            + self.ends.capacity() * size_of::<u32>()
            + self.heap.capacity()
    }

    /// Whether another value of so many bytes is too much.
    fn is_full_for(&self, bytes: usize) -> bool {
        self.keys.len() >= CHUNK_KEYS || self.heap.len() + bytes > CHUNK_BYTES
    }

    /// Puts `value` where `old` bytes lie at `at`, and moves the ends from `i` on.
    fn splice(&mut self, i: usize, at: usize, old: usize, value: &[u8]) {
        let (len, end) = (self.heap.len(), at + old);
        if value.len() > old {
            let more = value.len() - old;
            if self.heap.capacity() < len + more {
                // Never past a page for the sake of values to come.
                let ahead = (len / 4).max(GROW_BYTES).min(CHUNK_BYTES.saturating_sub(len));
                self.heap.reserve_exact(more.max(ahead));
            }
            self.heap.resize(len + more, 0);
            self.heap.copy_within(end..len, end + more);
        } else {
            self.heap.copy_within(end.., at + value.len());
            self.heap.truncate(len - (old - value.len()));
        }
        self.heap[at..at + value.len()].copy_from_slice(value);
        for end in &mut self.ends[i..] {
            *end = (*end as usize + value.len() - old) as u32;
        }
    }

    fn insert(&mut self, i: usize, pos: Pos, value: &[u8]) {
        let at = self.start(i);
        self.keys.insert(i, pos);
        self.ends.insert(i, at as u32);
        self.splice(i, at, 0, value);
    }

    fn replace(&mut self, i: usize, value: &[u8]) {
        let at = self.start(i);
        self.splice(i, at, self.ends[i] as usize - at, value);
    }

    fn remove(&mut self, i: usize) {
        let at = self.start(i);
        self.splice(i, at, self.ends[i] as usize - at, &[]);
        self.keys.remove(i);
        self.ends.remove(i);
    }

    /// Takes off the second half, by what there is too much of; both halves have keys.
    fn split(&mut self) -> Chunk {
        let by_bytes = self.ends.partition_point(|end| (*end as usize) < self.heap.len() / 2);
        let middle = if self.keys.len() >= CHUNK_KEYS { self.keys.len() / 2 } else { by_bytes };
        let at = middle.clamp(1, self.keys.len() - 1);
        let start = self.start(at);
        let second = Chunk {
            keys: self.keys.split_off(at),
            ends: self.ends[at..].iter().map(|end| *end - start as u32).collect(),
            heap: self.heap[start..].into(),
        };
        self.ends.truncate(at);
        self.heap.truncate(start);
        second
    }

    /// Adds all of `next`, whose keys follow.
    fn append(&mut self, next: &Chunk) {
        let shift = self.heap.len() as u32;
        self.keys.extend_from_slice(&next.keys);
        self.ends.extend(next.ends.iter().map(|end| end + shift));
        self.heap.extend_from_slice(&next.heap);
    }

    /// Whether both fit one chunk with room for more.
    fn fits(&self, next: &Chunk) -> bool {
        self.keys.len() + next.keys.len() <= CHUNK_KEYS / 2
            && self.heap.len() + next.heap.len() <= CHUNK_BYTES / 2
    }
}

impl Keys {
    /// Keys from sorted entries without deletions.
    pub(super) fn from_sorted<'a>(entries: impl Iterator<Item = (Pos, &'a [u8])>) -> Keys {
        let mut keys = Keys::default();
        entries.for_each(|(pos, value)| keys.put(pos, value));
        keys
    }

    /// Applies a run of sorted entries over what is there.
    pub(super) fn fold<'a>(&mut self, entries: impl Iterator<Item = Entry<'a>>) {
        for (pos, value) in entries {
            match value {
                Some(value) => self.put(pos, value),
                None => self.remove(pos),
            }
        }
    }

    pub(super) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Memory held, in bytes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory + self.chunks.capacity() * size_of::<Chunk>() + self.firsts.capacity() * size_of::<Pos>()
    }

    /// The chunk that `pos` is in, or would be in; 0 if there is none.
    fn chunk_of(&self, pos: Pos) -> usize {
        self.firsts.partition_point(|first| *first <= pos).saturating_sub(1)
    }

    /// The value at `pos`.
    pub(super) fn get(&self, pos: Pos) -> Option<&[u8]> {
        let chunk = self.chunks.get(self.chunk_of(pos))?;
        let i = chunk.keys.binary_search(&pos).ok()?;
        Some(chunk.value(i))
    }

    /// The first key at or after `pos`.
    pub(super) fn first_from(&self, pos: Pos) -> Option<(Pos, &[u8])> {
        self.iter_from(pos).next()
    }

    /// The last key at or before `pos`.
    pub(super) fn last_to(&self, pos: Pos) -> Option<(Pos, &[u8])> {
        let chunk = self.chunks.get(self.chunk_of(pos))?;
        let i = chunk.keys.partition_point(|p| *p <= pos).checked_sub(1)?;
        Some((chunk.keys[i], chunk.value(i)))
    }

    /// All keys from `pos` on, in order.
    pub(super) fn iter_from(&self, pos: Pos) -> impl Iterator<Item = (Pos, &[u8])> {
        let at = self.chunk_of(pos);
        let skip = self.chunks.get(at).map_or(0, |chunk| chunk.keys.partition_point(|p| *p < pos));
        let mut rest = self.chunks.get(at..).unwrap_or_default().iter();
        let (mut chunk, mut i) = (rest.next(), skip);
        core::iter::from_fn(move || {
            while chunk.is_some_and(|c| i == c.keys.len()) {
                (chunk, i) = (rest.next(), 0);
            }
            let here = chunk?;
            i += 1;
            Some((here.keys[i - 1], here.value(i - 1)))
        })
    }

    /// All keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Pos, &[u8])> {
        self.iter_from(Pos::MIN)
    }

    /// Sets or removes `pos`.
    pub(super) fn set(&mut self, pos: Pos, value: Option<Value>) {
        match value {
            Some(value) => self.put(pos, &value),
            None => self.remove(pos),
        }
    }

    fn put(&mut self, pos: Pos, value: &[u8]) {
        let at = self.chunk_of(pos);
        let found = self.chunks.get(at).map(|chunk| match chunk.keys.last() {
            Some(last) if *last < pos => Err(chunk.keys.len()),
            _ => chunk.keys.binary_search(&pos),
        });
        self.live_bytes += entry_bytes(value.len());
        match found {
            Some(Ok(i)) => {
                self.live_bytes -= entry_bytes(self.chunks[at].value(i).len());
                self.change(at, |chunk| chunk.replace(i, value));
            }
            Some(Err(i)) if i < self.chunks[at].keys.len() || !self.chunks[at].is_full_for(value.len()) => {
                self.count += 1;
                self.change(at, |chunk| chunk.insert(i, pos, value));
            }
            // Behind the last key of a full chunk: before those of the next if it has room, so that neither rising nor
            // falling keys leave chunks of one key each.
            _ => {
                self.count += 1;
                let next = if found.is_some() { at + 1 } else { 0 };
                if self.chunks.get(next).is_some_and(|chunk| !chunk.is_full_for(value.len())) {
                    self.change(next, |chunk| chunk.insert(0, pos, value));
                } else {
                    let chunk = Chunk::one(pos, value);
                    self.memory += chunk.memory();
                    self.chunks.insert(next, chunk);
                    self.firsts.insert(next, pos);
                }
            }
        }
    }

    fn remove(&mut self, pos: Pos) {
        let at = self.chunk_of(pos);
        let Some(chunk) = self.chunks.get(at) else { return };
        let Ok(i) = chunk.keys.binary_search(&pos) else { return };
        self.live_bytes -= entry_bytes(chunk.value(i).len());
        self.count -= 1;
        if chunk.keys.len() == 1 {
            self.memory -= chunk.memory();
            self.chunks.remove(at);
            self.firsts.remove(at);
            return;
        }
        self.change(at, |chunk| chunk.remove(i));
        self.join(at);
        if let Some(before) = at.checked_sub(1) {
            self.join(before);
        }
    }

    /// Makes one of a chunk and the next if little is left of them.
    fn join(&mut self, at: usize) {
        if self.chunks.get(at + 1).is_some_and(|next| self.chunks[at].fits(next)) {
            let next = self.chunks.remove(at + 1);
            self.firsts.remove(at + 1);
            self.memory -= next.memory();
            self.change(at, |chunk| chunk.append(&next));
        }
    }

    /// Changes a chunk, which has keys before and after, and divides it if it came to be too full.
    fn change(&mut self, at: usize, change: impl FnOnce(&mut Chunk)) {
        let chunk = &mut self.chunks[at];
        let before = chunk.memory();
        change(chunk);
        self.firsts[at] = chunk.keys[0];
        let too_full = chunk.keys.len() > CHUNK_KEYS || chunk.heap.len() > CHUNK_BYTES;
        let second = (too_full && chunk.keys.len() > 1).then(|| chunk.split());
        self.memory = self.memory + chunk.memory() - before;
        if let Some(second) = second {
            self.memory += second.memory();
            self.firsts.insert(at + 1, second.keys[0]);
            self.chunks.insert(at + 1, second);
        }
    }

    /// Positions at which to cut the keys into parts of about `target` entry bytes: each is the last of its part.
    pub(super) fn cuts(&self, parts: usize) -> Vec<Pos> {
        let mut cuts = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        for (pos, value) in self.iter() {
            let due = self.live_bytes * (cuts.len() + 1) / parts;
            if bytes >= due && cuts.len() + 1 < parts {
                cuts.extend(last);
            }
            bytes += entry_bytes(value.len());
            last = Some(pos);
        }
        cuts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    /// What holds after each change; no chunk is larger than it may be, and the sums are exact.
    fn sound(keys: &Keys) {
        assert_eq!(keys.chunks.len(), keys.firsts.len());
        for (chunk, first) in keys.chunks.iter().zip(&keys.firsts) {
            assert_eq!(chunk.keys.first(), Some(first));
            assert_eq!(chunk.ends.len(), chunk.keys.len());
            assert_eq!(chunk.ends.last().map(|end| *end as usize), Some(chunk.heap.len()));
            assert!(chunk.keys.len() <= CHUNK_KEYS);
            assert!(chunk.keys.len() == 1 || chunk.heap.len() <= 2 * CHUNK_BYTES + 5000);
        }
        assert_eq!(keys.count, keys.chunks.iter().map(|c| c.keys.len()).sum::<usize>());
        assert_eq!(keys.memory, keys.chunks.iter().map(Chunk::memory).sum::<usize>());
    }

    #[test]
    fn chunks_are_well_filled_whatever_the_order() {
        let orders: [fn(u64) -> u64; 4] =
            [|n| n, |n| 9999 - n, |n| n.wrapping_mul(7919) % 10007, |n| n % 100 * 100 + n / 100];
        for order in orders {
            let mut keys = Keys::default();
            for n in 0..10_000 {
                keys.set(Pos::new(1, order(n), 0), Some([7; 40].as_slice().into()));
            }
            sound(&keys);
            assert!(keys.chunks.len() < 10_000 / CHUNK_KEYS * 2 + 2, "{} chunks", keys.chunks.len());
            assert!(keys.memory_bytes() < 10_000 * (40 + 24 + 4) * 5 / 2, "{} bytes", keys.memory_bytes());
            for n in 0..9_900 {
                keys.set(Pos::new(1, order(n), 0), None);
            }
            sound(&keys);
            assert!(keys.chunks.len() < 50, "{} chunks for 100 keys", keys.chunks.len());
        }
    }

    #[test]
    fn keys_behave_as_a_sorted_map() {
        let mut seed = 0x1234_5678_9abc_def1;
        let mut keys = Keys::default();
        let mut map: BTreeMap<Pos, Vec<u8>> = BTreeMap::new();
        for step in 0..20_000 {
            let pos = Pos::new(random(&mut seed) % 7, random(&mut seed) % 500, 0);
            // Sometimes most go.
            match random(&mut seed) % 4 {
                n if n == 0 || step / 4000 % 2 == 1 && n < 3 => {
                    keys.set(pos, None);
                    map.remove(&pos);
                }
                _ => {
                    let len =
                        if random(&mut seed).is_multiple_of(100) { 5000 } else { random(&mut seed) % 90 };
                    let value = alloc::vec![step as u8; len as usize];
                    keys.set(pos, Some(value.as_slice().into()));
                    map.insert(pos, value);
                }
            }
            let at = Pos::new(random(&mut seed) % 8, random(&mut seed) % 501, 0);
            assert_eq!(keys.get(at), map.get(&at).map(|v| v.as_slice()));
            assert_eq!(
                keys.first_from(at).map(|(p, v)| (p, v.to_vec())),
                map.range(at..).next().map(|(p, v)| (*p, v.clone()))
            );
            assert_eq!(
                keys.last_to(at).map(|(p, v)| (p, v.to_vec())),
                map.range(..=at).next_back().map(|(p, v)| (*p, v.clone()))
            );
            if step % 500 == 0 {
                assert!(
                    keys.iter().map(|(p, v)| (p, v.to_vec())).eq(map.iter().map(|(p, v)| (*p, v.clone())))
                );
                assert_eq!(keys.len(), map.len());
                sound(&keys);
                assert_eq!(keys.live_bytes(), map.values().map(|v| entry_bytes(v.len())).sum::<usize>());
            }
        }
        let run: Vec<(Pos, Option<Vec<u8>>)> =
            (0..50).map(|i| (Pos::new(3, i, 0), (i % 3 != 0).then(|| alloc::vec![i as u8; 5]))).collect();
        keys.fold(run.iter().map(|(p, v)| (*p, v.as_deref())));
        for (pos, value) in run {
            match value {
                Some(v) => map.insert(pos, v),
                None => map.remove(&pos),
            };
        }
        assert!(keys.iter().map(|(p, v)| (p, v.to_vec())).eq(map.iter().map(|(p, v)| (*p, v.clone()))));
        assert_eq!(keys.live_bytes(), map.values().map(|v| entry_bytes(v.len())).sum::<usize>());
        for parts in 1..9 {
            let cuts = keys.cuts(parts);
            assert!(cuts.len() < parts.max(1) && cuts.windows(2).all(|w| w[0] < w[1]));
        }
    }
}
