//! The procedures of NFSv3 (RFC 1813 §3.3) and what the server must know of each before it runs.

use crate::drc::Keep;

/// A procedure, numbered as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are the protocol's, said in RFC 1813 §3.3")]
pub enum Procedure {
    Null = 0,
    GetAttr = 1,
    SetAttr = 2,
    Lookup = 3,
    Access = 4,
    ReadLink = 5,
    Read = 6,
    Write = 7,
    Create = 8,
    MkDir = 9,
    SymLink = 10,
    MkNod = 11,
    Remove = 12,
    RmDir = 13,
    Rename = 14,
    Link = 15,
    ReadDir = 16,
    ReadDirPlus = 17,
    FsStat = 18,
    FsInfo = 19,
    PathConf = 20,
    Commit = 21,
}

impl Procedure {
    /// Every procedure, in order of its number.
    pub const ALL: [Procedure; 22] = {
        use Procedure::*;
        [
            Null,
            GetAttr,
            SetAttr,
            Lookup,
            Access,
            ReadLink,
            Read,
            Write,
            Create,
            MkDir,
            SymLink,
            MkNod,
            Remove,
            RmDir,
            Rename,
            Link,
            ReadDir,
            ReadDirPlus,
            FsStat,
            FsInfo,
            PathConf,
            Commit,
        ]
    };

    /// The procedure numbered `n`.
    pub fn from_number(n: u32) -> Option<Procedure> {
        Procedure::ALL.get(usize::try_from(n).ok()?).copied()
    }

    /// How the duplicate request cache treats it; `None` if it may simply run again.
    pub fn replay(self) -> Option<Keep> {
        use Procedure::*;
        match self {
            SetAttr | Create | MkDir | SymLink | MkNod | Remove | RmDir | Rename | Link => Some(Keep::Reply),
            Write => Some(Keep::Nothing),
            Null | GetAttr | Lookup | Access | ReadLink | Read | ReadDir | ReadDirPlus | FsStat | FsInfo
            | PathConf | Commit => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_of_the_numbers() {
        for (n, procedure) in Procedure::ALL.into_iter().enumerate() {
            assert_eq!(procedure as usize, n);
            assert_eq!(Procedure::from_number(n as u32), Some(procedure));
        }
        assert_eq!(Procedure::from_number(22), None);
        assert_eq!(Procedure::from_number(u32::MAX), None);
    }
}
