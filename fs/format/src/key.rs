//! Tree ids and key positions.

/// Snapshot id of the pool's first and, until snapshots are taken, only view. Ids are handed out downwards, so that a
/// parent's id is greater than its children's.
pub const ROOT_SNAPSHOT: u32 = u32::MAX;

/// Bytes of a position on disk.
pub const POS_BYTES: usize = 20;

/// A key's position: what all trees are ordered by. On disk 20 bytes, big-endian, so that byte order is key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pos {
    /// Inode number, or the first part of another tree's key.
    pub inode: u64,
    /// Offset in bytes (of extents: their *end*), hash, or the second part of another tree's key.
    pub offset: u64,
    /// Snapshot id in trees that are versioned, a third part in others.
    pub snapshot: u32,
}

impl Pos {
    /// Before every other position.
    pub const MIN: Pos = Pos { inode: 0, offset: 0, snapshot: 0 };
    /// After every other position.
    pub const MAX: Pos = Pos { inode: u64::MAX, offset: u64::MAX, snapshot: u32::MAX };

    /// A position.
    pub const fn new(inode: u64, offset: u64, snapshot: u32) -> Pos {
        Pos { inode, offset, snapshot }
    }

    /// As on disk.
    pub fn to_bytes(self) -> [u8; POS_BYTES] {
        let mut out = [0; POS_BYTES];
        out[..8].copy_from_slice(&self.inode.to_be_bytes());
        out[8..16].copy_from_slice(&self.offset.to_be_bytes());
        out[16..].copy_from_slice(&self.snapshot.to_be_bytes());
        out
    }

    /// From its bytes on disk; every value is valid.
    pub fn from_bytes(bytes: &[u8; POS_BYTES]) -> Pos {
        let part = |r: core::ops::Range<usize>| bytes[r].iter().fold(0u64, |v, b| v << 8 | *b as u64);
        Pos { inode: part(0..8), offset: part(8..16), snapshot: part(16..20) as u32 }
    }

    /// The next greater position, if there is one.
    pub fn successor(self) -> Option<Pos> {
        let Pos { inode, offset, snapshot } = self;
        if let Some(snapshot) = snapshot.checked_add(1) {
            return Some(Pos { inode, offset, snapshot });
        }
        if let Some(offset) = offset.checked_add(1) {
            return Some(Pos { inode, offset, snapshot: 0 });
        }
        inode.checked_add(1).map(|inode| Pos { inode, offset: 0, snapshot: 0 })
    }

    /// The next smaller position, if there is one.
    pub fn predecessor(self) -> Option<Pos> {
        let Pos { inode, offset, snapshot } = self;
        if let Some(snapshot) = snapshot.checked_sub(1) {
            return Some(Pos { inode, offset, snapshot });
        }
        if let Some(offset) = offset.checked_sub(1) {
            return Some(Pos { inode, offset, snapshot: u32::MAX });
        }
        inode.checked_sub(1).map(|inode| Pos { inode, offset: u64::MAX, snapshot: u32::MAX })
    }
}

impl core::fmt::Display for Pos {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.snapshot == ROOT_SNAPSHOT {
            write!(f, "{}:{}", self.inode, self.offset)
        } else {
            write!(f, "{}:{}:{}", self.inode, self.offset, self.snapshot)
        }
    }
}

macro_rules! trees {
    ($($id:literal $name:ident $text:literal $doc:literal;)*) => {
        /// The trees. Ids are persistent and never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Tree { $(#[doc = $doc] $name = $id,)* }

        impl Tree {
            /// Every tree, in order of id.
            pub const ALL: &[Tree] = &[$(Tree::$name,)*];

            /// The tree with this id.
            pub fn from_id(id: u8) -> Option<Tree> {
                match id { $($id => Some(Tree::$name),)* _ => None }
            }

            /// Its name, as in text dumps.
            pub fn name(self) -> &'static str {
                match self { $(Tree::$name => $text,)* }
            }
        }
    };
}

trees! {
    0 Extents "extents" "(inode, end, snapshot) -> where a file's bytes are.";
    1 Inodes "inodes" "(0, inode, snapshot) -> attributes.";
    2 Dirents "dirents" "(directory, hash of the name = cookie, snapshot) -> object and name.";
    3 Xattrs "xattrs" "(inode, hash of the name, snapshot) -> extended attribute.";
    4 Subvolumes "subvolumes" "(0, id) -> root inode, snapshot, parent, state, quota.";
    5 Snapshots "snapshots" "(0, id) -> parent, children, subvolume, state.";
    6 SubvolumeChildren "subvolume-children" "(parent, child) -> set.";
    7 Reflink "reflink" "(0, end) -> reference count and extent.";
    8 Alloc "alloc" "(device, bucket) -> generation, type, sectors, journal seqs.";
    9 Freespace "freespace" "(device, bucket) -> set: buckets that can be claimed.";
    10 NeedDiscard "need-discard" "(seq emptied, device << 48 | bucket) -> set: empty, not yet discarded or reusable.";
    11 Lru "lru" "(list, device, score | bucket) -> set.";
    12 Backpointers "backpointers" "(device, byte offset, n) -> which key points there.";
    13 Stripes "stripes" "(0, id) -> members, checksums, live counts.";
    14 BucketStripe "bucket-stripe" "(device, bucket) -> stripe id.";
    15 Accounting "accounting" "(counter type, id) -> counters.";
    16 Quotas "quotas" "(subvolume, kind | id) -> limits.";
    17 ReconcileWork "reconcile-work" "(priority | kind, position) -> work to do.";
    18 ReconcilePending "reconcile-pending" "(reason, position) -> work that waits for an event.";
    19 LoggedOps "logged-ops" "(inode, n) -> an operation that spans commits.";
    20 DeletedInodes "deleted-inodes" "(inode, 0, snapshot) -> boot epoch in which the inode lost its last name.";
    21 Settings "settings" "(domain, name hash) -> options and cursors.";
    22 Damage "damage" "(inode, offset, snapshot) -> bytes known to be lost.";
    23 Clients "clients" "(kind, hash) -> protocol records: clients, locks hosts, reservations, volume ids.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_is_key_order_and_ids_are_dense() {
        let samples = [
            Pos::MIN,
            Pos::new(0, 0, 1),
            Pos::new(0, 1, 0),
            Pos::new(0, 256, 0),
            Pos::new(1, 0, 0),
            Pos::new(1, u64::MAX, u32::MAX),
            Pos::new(2, 0, 0),
            Pos::MAX,
        ];
        for pair in samples.windows(2) {
            assert!(pair[0] < pair[1] && pair[0].to_bytes() < pair[1].to_bytes());
        }
        for p in samples {
            assert_eq!(Pos::from_bytes(&p.to_bytes()), p);
            assert!(p.successor().is_none_or(|n| n > p && n.predecessor() == Some(p)));
        }
        assert_eq!(Pos::new(1, u64::MAX, u32::MAX).successor(), Some(Pos::new(2, 0, 0)));
        for (i, tree) in Tree::ALL.iter().enumerate() {
            assert_eq!(Tree::from_id(i as u8), Some(*tree));
        }
    }
}
