//! A node in memory: its keys, and which of them changed since it was last written.
//!
//! Keys live in two sorted sets: a *frozen* one, packed tightly, and a small *recent* one in front of it that takes
//! updates. When the recent set is full it is folded into the frozen one. So a lookup is two binary searches over
//! dense arrays, an update moves at most a few kilobytes, and memory is the live bytes, not the node size on disk.

use crate::tx::Value;
use alloc::vec::Vec;
use moraine_format::Pos;
use moraine_format::node::{Entry, entry_bytes};

/// Updates the recent set takes before it is folded.
const RECENT_MAX: usize = 96;

/// Keys of one node with their values.
#[derive(Default)]
pub(super) struct Keys {
    frozen: Frozen,
    /// Newer than the frozen set; `None` hides a frozen key.
    recent: Vec<(Pos, Option<Value>)>,
    /// Bytes that the live keys take as entries on disk.
    live_bytes: usize,
    /// Number of live keys.
    count: usize,
    /// Bytes of the values that the recent set was given since it was last empty.
    recent_bytes: usize,
}

#[derive(Default)]
struct Frozen {
    keys: Vec<Pos>,
    /// End of each value in `heap`.
    ends: Vec<u32>,
    heap: Vec<u8>,
}

impl Frozen {
    fn value(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.heap[start..self.ends[i] as usize]
    }

    fn push(&mut self, pos: Pos, value: &[u8]) {
        self.keys.push(pos);
        self.heap.extend_from_slice(value);
        self.ends.push(self.heap.len() as u32);
    }

    /// Adds the keys `range` of another set, all of which are greater than those here.
    fn extend(&mut self, other: &Frozen, range: core::ops::Range<usize>) {
        if range.is_empty() {
            return;
        }
        let from = if range.start == 0 { 0 } else { other.ends[range.start - 1] };
        let to = other.ends[range.end - 1];
        let shift = (self.heap.len() as u32).wrapping_sub(from);
        self.keys.extend_from_slice(&other.keys[range.clone()]);
        self.heap.extend_from_slice(&other.heap[from as usize..to as usize]);
        self.ends.extend(other.ends[range].iter().map(|end| end.wrapping_add(shift)));
    }

    fn with_capacity(keys: usize, bytes: usize) -> Frozen {
        Frozen {
            keys: Vec::with_capacity(keys),
            ends: Vec::with_capacity(keys),
            heap: Vec::with_capacity(bytes),
        }
    }
}

impl Keys {
    /// Keys from sorted entries without deletions.
    pub(super) fn from_sorted<'a>(entries: impl Iterator<Item = (Pos, &'a [u8])>) -> Keys {
        let mut keys = Keys::default();
        for (pos, value) in entries {
            keys.live_bytes += entry_bytes(value.len());
            keys.count += 1;
            keys.frozen.push(pos, value);
        }
        keys
    }

    /// Applies a run of sorted entries over what is there.
    pub(super) fn fold<'a>(&mut self, entries: impl Iterator<Item = Entry<'a>>) {
        self.freeze();
        let old = core::mem::take(&mut self.frozen);
        let mut new = Frozen::with_capacity(old.keys.len(), old.heap.len());
        let mut done = 0;
        for (pos, value) in entries {
            let at = done + old.keys[done..].partition_point(|p| *p < pos);
            new.extend(&old, done..at);
            done = at;
            if old.keys.get(at) == Some(&pos) {
                self.forget(old.value(at).len());
                done += 1;
            }
            if let Some(value) = value {
                self.note(value.len());
                new.push(pos, value);
            }
        }
        new.extend(&old, done..old.keys.len());
        self.frozen = new;
    }

    fn note(&mut self, len: usize) {
        self.live_bytes += entry_bytes(len);
        self.count += 1;
    }

    fn forget(&mut self, len: usize) {
        self.live_bytes -= entry_bytes(len);
        self.count -= 1;
    }

    pub(super) fn live_bytes(&self) -> usize {
        self.live_bytes
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Memory held, in bytes, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.frozen.keys.capacity() * (size_of::<Pos>() + 4)
            + self.frozen.heap.capacity()
            + self.recent.capacity() * size_of::<(Pos, Option<Value>)>()
            + self.recent_bytes
    }

    /// The value at `pos`.
    pub(super) fn get(&self, pos: Pos) -> Option<&[u8]> {
        if let Ok(i) = self.recent.binary_search_by(|(p, _)| p.cmp(&pos)) {
            return self.recent[i].1.as_deref();
        }
        let i = self.frozen.keys.binary_search(&pos).ok()?;
        Some(self.frozen.value(i))
    }

    /// The first key at or after `pos`.
    pub(super) fn first_from(&self, pos: Pos) -> Option<(Pos, &[u8])> {
        self.iter_from(pos).next()
    }

    /// The last key at or before `pos`.
    pub(super) fn last_to(&self, pos: Pos) -> Option<(Pos, &[u8])> {
        let mut f = self.frozen.keys.partition_point(|p| *p <= pos);
        let mut r = self.recent.partition_point(|(p, _)| *p <= pos);
        loop {
            let frozen = f.checked_sub(1).map(|i| self.frozen.keys[i]);
            let recent = r.checked_sub(1).map(|i| self.recent[i].0);
            match (frozen, recent) {
                (None, None) => return None,
                (Some(k), None) => return Some((k, self.frozen.value(f - 1))),
                (Some(k), Some(n)) if k > n => return Some((k, self.frozen.value(f - 1))),
                (k, Some(n)) => {
                    if let Some(value) = &self.recent[r - 1].1 {
                        return Some((n, value));
                    }
                    r -= 1;
                    if k == Some(n) {
                        f -= 1;
                    }
                }
            }
        }
    }

    /// All live keys from `pos` on, in order.
    pub(super) fn iter_from(&self, pos: Pos) -> impl Iterator<Item = (Pos, &[u8])> {
        let mut f = self.frozen.keys.partition_point(|p| *p < pos);
        let mut r = self.recent.partition_point(|(p, _)| *p < pos);
        core::iter::from_fn(move || {
            loop {
                let frozen = self.frozen.keys.get(f).copied();
                let recent = self.recent.get(r);
                match (frozen, recent) {
                    (None, None) => return None,
                    (Some(k), None) => {
                        f += 1;
                        return Some((k, self.frozen.value(f - 1)));
                    }
                    (Some(k), Some((n, _))) if k < *n => {
                        f += 1;
                        return Some((k, self.frozen.value(f - 1)));
                    }
                    (k, Some((n, value))) => {
                        r += 1;
                        if k == Some(*n) {
                            f += 1;
                        }
                        if let Some(value) = value {
                            return Some((*n, value));
                        }
                    }
                }
            }
        })
    }

    /// All live keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Pos, &[u8])> {
        self.iter_from(Pos::MIN)
    }

    /// Sets or removes `pos`.
    pub(super) fn set(&mut self, pos: Pos, value: Option<Value>) {
        if let Some(old) = self.get(pos).map(|v| v.len()) {
            self.forget(old);
        }
        if let Some(value) = &value {
            self.note(value.len());
            self.recent_bytes += value.len() + 16;
        }
        match self.recent.binary_search_by(|(p, _)| p.cmp(&pos)) {
            Ok(i) => self.recent[i].1 = value,
            Err(i) => {
                self.recent.insert(i, (pos, value));
                if self.recent.len() > RECENT_MAX {
                    self.freeze();
                }
            }
        }
    }

    fn freeze(&mut self) {
        if self.recent.is_empty() {
            return;
        }
        let extra: usize = self.recent.iter().map(|(_, v)| v.as_ref().map_or(0, |v| v.len())).sum();
        let mut new =
            Frozen::with_capacity(self.frozen.keys.len() + self.recent.len(), self.frozen.heap.len() + extra);
        // Updates are few among many keys: what lies between two of them is copied as a whole.
        let mut done = 0;
        for (pos, value) in &self.recent {
            let at = done + self.frozen.keys[done..].partition_point(|p| p < pos);
            new.extend(&self.frozen, done..at);
            if let Some(value) = value {
                new.push(*pos, value);
            }
            done = at + usize::from(self.frozen.keys.get(at) == Some(pos));
        }
        new.extend(&self.frozen, done..self.frozen.keys.len());
        self.frozen = new;
        self.recent.clear();
        self.recent_bytes = 0;
        debug_assert_eq!(self.count, self.frozen.keys.len(), "the count of live keys is exact");
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

    #[test]
    fn keys_behave_as_a_sorted_map() {
        let mut seed = 0x1234_5678_9abc_def1;
        let mut keys = Keys::default();
        let mut map: BTreeMap<Pos, Vec<u8>> = BTreeMap::new();
        for step in 0..20_000 {
            let pos = Pos::new(random(&mut seed) % 7, random(&mut seed) % 50, 0);
            match random(&mut seed) % 4 {
                0 => {
                    keys.set(pos, None);
                    map.remove(&pos);
                }
                _ => {
                    let value = alloc::vec![step as u8; (random(&mut seed) % 40) as usize];
                    keys.set(pos, Some(value.as_slice().into()));
                    map.insert(pos, value);
                }
            }
            let at = Pos::new(random(&mut seed) % 8, random(&mut seed) % 51, 0);
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
