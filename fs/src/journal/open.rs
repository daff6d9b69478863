//! An entry being filled: items in a buffer of the entry's final shape, later values of a key in place of earlier ones.

use super::ring::Placement;
use hashbrown::HashMap;
use moraine_format::Pos;
use moraine_format::journal::{self, ENTRY_HEADER_BYTES, Item, ItemKind, Items, Seq};
use moraine_platform::{Buf, Instant};

/// Kind of an item that a later one replaced. It never reaches the disk.
const DEAD: u8 = 0;

/// What a later item replaces: the same key, or the same tree's root. An entry is atomic, so only the last value counts.
type Target = (bool, u8, u8, Pos);

/// An entry that takes items.
pub(super) struct OpenEntry {
    pub(super) seq: Seq,
    pub(super) placement: Placement,
    pub(super) born: Instant,
    /// Bytes that reservations bound to this entry may still append.
    pub(super) promised: usize,
    /// Header and items so far.
    pub(super) used: usize,
    /// First entry of the mount.
    pub(super) mount: bool,
    buf: Buf,
    items: usize,
    replaced: u64,
    latest: HashMap<Target, u32>,
}

/// An entry that takes no more items: its bytes but for the header.
pub(super) struct ClosedEntry {
    pub(super) seq: Seq,
    pub(super) placement: Placement,
    pub(super) mount: bool,
    /// Header and items, without padding.
    pub(super) used: usize,
    pub(super) items: usize,
    /// Items that later ones of the same entry replaced.
    pub(super) replaced: u64,
    /// The whole entry, padding included.
    pub(super) buf: Buf,
}

impl OpenEntry {
    /// An empty entry; `buf` is zeroed and has room for the longest one.
    pub(super) fn new(seq: Seq, placement: Placement, born: Instant, mut buf: Buf) -> OpenEntry {
        buf.set_len(placement.room);
        OpenEntry {
            seq,
            placement,
            born,
            promised: 0,
            used: ENTRY_HEADER_BYTES,
            mount: false,
            buf,
            items: 0,
            replaced: 0,
            latest: HashMap::new(),
        }
    }

    /// Whether no item is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Whether `bytes` more fit beside what is promised.
    pub(super) fn fits(&self, bytes: usize) -> bool {
        self.used + self.promised + bytes <= self.placement.room
    }

    /// Bytes of items it may come to with all that is promised.
    pub(super) fn items_bytes(&self) -> usize {
        self.used - ENTRY_HEADER_BYTES + self.promised
    }

    /// Adds an item, or overwrites the one it replaces.
    pub(super) fn push(&mut self, item: &Item<'_>) {
        let bytes = item.bytes();
        let target = match item.kind {
            ItemKind::Put | ItemKind::Delete => Some((false, item.tree, item.level, item.pos)),
            ItemKind::Root => Some((true, item.tree, 0, Pos::MIN)),
            _ => None,
        };
        if let Some(target) = target
            && let Some(at) = self.latest.insert(target, self.used as u32)
        {
            self.replaced += 1;
            let at = at as usize;
            let old = Items::new(&self.buf[at..self.used]).next().map_or(0, |(whole, _)| whole.len());
            if old == bytes {
                self.latest.insert(target, at as u32);
                item.write(&mut self.buf[at..at + bytes]);
                return;
            }
            self.buf[at] = DEAD;
        }
        item.write(&mut self.buf[self.used..self.used + bytes]);
        self.used += bytes;
        self.items += 1;
    }

    /// Ends it: drops replaced items and cuts the buffer to the bytes that go to disk.
    pub(super) fn close(mut self) -> ClosedEntry {
        let (mut from, mut to) = (ENTRY_HEADER_BYTES, ENTRY_HEADER_BYTES);
        while from < self.used {
            let len = Items::new(&self.buf[from..self.used]).next().map_or(0, |(whole, _)| whole.len());
            assert!(len != 0, "the items of an open entry are whole");
            if self.buf[from] == DEAD {
                self.items -= 1;
            } else {
                self.buf.copy_within(from..from + len, to);
                to += len;
            }
            from += len;
        }
        self.buf[to..from].fill(0);
        self.buf.set_len(journal::entry_bytes(to - ENTRY_HEADER_BYTES));
        ClosedEntry {
            seq: self.seq,
            placement: self.placement,
            mount: self.mount,
            used: to,
            items: self.items,
            replaced: self.replaced,
            buf: self.buf,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moraine_format::Tree;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn later_values_of_a_key_replace_earlier_ones_whatever_their_length() {
        let placement = Placement { room: 64 << 10, ..Placement::default() };
        let mut open = OpenEntry::new(Seq(1), placement, Instant(0), Buf::zeroed(64 << 10).unwrap());
        let pos = |n| Pos::new(n, 0, 0);
        open.push(&Item::put(Tree::Inodes, 0, pos(1), b"same length 1"));
        open.push(&Item::put(Tree::Inodes, 1, pos(1), b"another level"));
        open.push(&Item::put(Tree::Inodes, 0, pos(2), b"short"));
        open.push(&Item::root(Tree::Inodes, 0, b"old root"));
        open.push(&Item::put(Tree::Inodes, 0, pos(1), b"same length 2"));
        open.push(&Item::put(Tree::Inodes, 0, pos(2), &[7; 5000]));
        open.push(&Item::note(ItemKind::Log, b"a"));
        open.push(&Item::note(ItemKind::Log, b"b"));
        open.push(&Item::delete(Tree::Inodes, 0, pos(2)));
        open.push(&Item::root(Tree::Inodes, 1, b"a new, longer root"));
        let closed = open.close();
        assert_eq!(closed.buf.len(), 4096, "what was replaced takes no room on disk");
        let seen: Vec<_> =
            Items::new(&closed.buf[ENTRY_HEADER_BYTES..closed.used]).map(|(_, i)| i.unwrap()).collect();
        let expected = vec![
            Item::put(Tree::Inodes, 0, pos(1), b"same length 2"),
            Item::put(Tree::Inodes, 1, pos(1), b"another level"),
            Item::note(ItemKind::Log, b"a"),
            Item::note(ItemKind::Log, b"b"),
            Item::delete(Tree::Inodes, 0, pos(2)),
            Item::root(Tree::Inodes, 1, b"a new, longer root"),
        ];
        assert_eq!(seen, expected);
        assert_eq!((closed.items, closed.replaced), (6, 4));
        assert!(closed.buf[closed.used..].iter().all(|b| *b == 0));
    }
}
