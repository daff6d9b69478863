//! Each kind of inconsistency, with an id that never changes.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::hash::Hasher;
use siphasher::sip::SipHasher24;

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
    4 SuperblockCopyBad Derived "a copy of the superblock is damaged or older than the others";
    5 RepairUnfinished Structure "a repair began and did not end";
    6 JournalDamaged Loss "entries of the journal that were durable are damaged";
    7 KeyForeign Structure "a key is where none can be";
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
    43 DirectoryLinkedTwice Structure "a directory has a second name";
    44 DirectoryLoop Structure "a directory is above itself";
    45 NameTwice Structure "a name is in its directory twice";
    46 DirectorySizeWrong Derived "a directory's size is not the sum of its names";
    47 DirectoryMissing Structure "names lie in a directory that does not exist";
    48 NamesOutsideDirectory Structure "names lie in an inode that is no directory";
    49 ExtentBeyondEnd Structure "content lies behind its file's end";
    50 ExtentOutsideFile Structure "content belongs to an inode that is no file";
    51 CursorLow Structure "the inode cursor is not above every inode in use";
    52 NameOfDeleted Structure "a name refers to a deleted inode";
    53 XattrMisplaced Structure "an extended attribute is not where its hash says";
    54 DeletedEntryWrong Derived "an inode is listed as deleted and is not, or is gone already";
    55 LoggedOpStray Derived "an operation under way belongs to no file";
    56 VolumesMissing Structure "the directory of volumes is missing";
}

/// Content of a file that is known to be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file's inode.
    pub inode: u64,
    /// Its path from the root, `/` first; empty if no name leads to it.
    pub path: Vec<u8>,
    /// The first byte that is lost.
    pub start: u64,
    /// The end of what is lost there, excluding.
    pub end: u64,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.escape_ascii();
        write!(f, "lost: {path} (inode {}), bytes {}..{}", self.inode, self.start, self.end)
    }
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

impl Finding {
    /// The same for what names the same inconsistency, mended or not.
    pub(super) fn hash(&self) -> u64 {
        let mut hasher = SipHasher24::new();
        hasher.write_u16(self.kind as u16);
        hasher.write(self.text.as_bytes());
        hasher.finish()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}: {}", self.kind as u16, self.kind.text(), self.text)?;
        if self.repaired { f.write_str(" (repaired)") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    #[test]
    fn every_kind_is_in_the_manual() {
        let manual = include_str!("../../../docs/fsck.md");
        for kind in FindingKind::ALL {
            let severity = format!("{:?}", kind.severity()).to_lowercase();
            let row = format!("| {} | {} | {severity} |", *kind as u16, kind.text());
            assert!(manual.lines().any(|line| line == row), "{row}");
        }
        let rows = manual.lines().filter(|l| l.starts_with("| ") && !l.starts_with("| id"));
        assert_eq!(rows.count(), FindingKind::ALL.len());
    }
}
