//! Each kind of inconsistency, with an id that never changes.

use alloc::string::String;
use core::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Derived data is off; rebuilt without loss.
    Derived,
    /// Names or attributes are off; mended with a choice.
    Structure,
    /// Something is lost.
    Loss,
}

macro_rules! kinds {
    ($($id:literal $name:ident $severity:ident $text:literal;)*) => {
        /// What can be wrong. Ids are persistent and never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum FindingKind { $(#[doc = $text] $name = $id,)* }

        impl FindingKind {
            /// Every kind.
            pub const ALL: &[FindingKind] = &[$(FindingKind::$name,)*];

            /// What it means.
            pub fn text(self) -> &'static str {
                match self { $(FindingKind::$name => $text,)* }
            }

            /// How bad it is.
            pub fn severity(self) -> Severity {
                match self { $(FindingKind::$name => Severity::$severity,)* }
            }
        }
    };
}

kinds! {
    1 NodeUnreadable Loss "a node of a tree cannot be read";
    2 NodeRange Loss "nodes of a tree leave a gap or overlap";
    3 ValueUnreadable Loss "a key's value cannot be understood";
    10 AllocWrong Derived "a bucket's counters are not what keys refer to";
    11 FreeRangeWrong Derived "a bucket is free and in no free range, or in one and not free";
    12 NeedDiscardWrong Derived "a bucket waits for its discard without a key, or has one and does not wait";
    13 BackpointerMissing Derived "bytes are referred to without a backpointer";
    14 BackpointerStray Derived "a backpointer without a reference";
    15 UsageWrong Derived "a device's counters are not the sum of its buckets";
    16 PoolUsageWrong Derived "the pool's counters are not the number of its inodes";
    17 ReferenceOutside Loss "a key refers to bytes outside the buckets of its device";
    18 ReferencesOverlap Loss "two keys refer to the same bytes";
    19 GenerationWrong Loss "a key refers to an earlier use of a bucket";
    20 FragmentedWrong Derived "the list of fragmented buckets is off";
    30 InodeMissing Structure "a name refers to no inode";
    31 LinkCountWrong Structure "an inode's link count is not its number of names";
    32 InodeUnreferenced Structure "an inode has no name and is not on its way out";
    33 DirentMisplaced Structure "a name is not where its hash says";
    34 ExtentWithoutInode Structure "extents belong to no inode";
    35 ExtentsOverlap Loss "two extents of a file overlap";
    36 DirectoryUnreachable Structure "a directory cannot be reached from the root";
    37 DirentKindWrong Structure "a name's kind is not its inode's";
    38 ParentWrong Structure "a directory's parent does not have it";
    39 XattrWithoutInode Structure "extended attributes belong to no inode";
    40 DataDamaged Loss "file content does not match its checksum";
    41 RootMissing Loss "the pool has no root directory";
    42 UsedWrong Derived "an inode's used bytes are not the sum of its extents";
}

/// One inconsistency.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// Where, and what exactly.
    pub text: String,
    /// Whether it was mended.
    pub repaired: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}: {}", self.kind as u16, self.kind.text(), self.text)?;
        if self.repaired { f.write_str(" (repaired)") } else { Ok(()) }
    }
}
