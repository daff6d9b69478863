//! `nfsstat3` (RFC 1813 §2.6), and what each error of the filesystem tells an NFSv3 client, in the words each procedure has.

use super::wire::Procedure;
use moraine_fs::FsError;

/// The status of a procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are the protocol's, said in RFC 1813 §2.6")]
pub enum Status {
    Ok = 0,
    Perm = 1,
    NoEnt = 2,
    Io = 5,
    Nxio = 6,
    Acces = 13,
    Exist = 17,
    XDev = 18,
    NoDev = 19,
    NotDir = 20,
    IsDir = 21,
    Inval = 22,
    FBig = 27,
    NoSpc = 28,
    RoFs = 30,
    MLink = 31,
    NameTooLong = 63,
    NotEmpty = 66,
    DQuot = 69,
    Stale = 70,
    Remote = 71,
    BadHandle = 10001,
    NotSync = 10002,
    BadCookie = 10003,
    NotSupp = 10004,
    TooSmall = 10005,
    ServerFault = 10006,
    BadType = 10007,
    Jukebox = 10008,
}

/// How an error is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With a status.
    Status(Status),
    /// Not yet: the call runs again when there is memory. A client is never told that we have none.
    Later,
    /// Not at all: the connection closes, and the client asks again when we are back.
    Close,
}

/// How `procedure` answers `error`.
pub fn answer(procedure: Procedure, error: FsError) -> Answer {
    match plainly(error) {
        Answer::Status(status) => Answer::Status(fitting(procedure, status)),
        other => other,
    }
}

/// `status` if `procedure` may answer it, or the nearest that it may; `SERVERFAULT` may be answered by all.
fn fitting(procedure: Procedure, status: Status) -> Status {
    use Status::*;
    let nearest = match status {
        Perm | RoFs => Acces,
        IsDir if procedure == Procedure::Create => Exist,
        _ => Inval,
    };
    let told = |status: &Status| listed(procedure, *status) || beyond(procedure, *status);
    [status, nearest].into_iter().find(told).unwrap_or(ServerFault)
}

/// Whether `status` is among the procedure's ERRORS in RFC 1813 §3.3; `JUKEBOX` is in none of them and may come from any
/// (§2.6).
fn listed(procedure: Procedure, status: Status) -> bool {
    use Procedure::*;
    match status {
        Status::Stale | Status::BadHandle | Status::ServerFault | Status::Jukebox => true,
        Status::Ok | Status::NoDev | Status::Remote => false,
        Status::Io => !matches!(procedure, FsInfo | PathConf),
        Status::Perm | Status::NotSync => procedure == SetAttr,
        Status::NoEnt => matches!(procedure, Lookup | Remove | RmDir | Rename),
        Status::Nxio => procedure == Read,
        Status::Acces => !matches!(procedure, GetAttr | Access | FsStat | FsInfo | PathConf | Commit),
        Status::Exist => matches!(procedure, Create | MkDir | SymLink | MkNod | RmDir | Rename | Link),
        Status::XDev | Status::MLink => matches!(procedure, Rename | Link),
        Status::NotDir => names(procedure) || matches!(procedure, Lookup | ReadDir | ReadDirPlus),
        Status::IsDir => procedure == Rename,
        Status::Inval => matches!(procedure, SetAttr | ReadLink | Read | Write | RmDir | Rename | Link),
        Status::FBig => procedure == Write,
        Status::NoSpc | Status::DQuot => {
            matches!(procedure, SetAttr | Write | Create | MkDir | SymLink | MkNod | Rename | Link)
        }
        Status::RoFs => names(procedure) || matches!(procedure, SetAttr | Write),
        Status::NameTooLong => names(procedure) || procedure == Lookup,
        Status::NotEmpty => matches!(procedure, RmDir | Rename),
        Status::BadCookie | Status::TooSmall => matches!(procedure, ReadDir | ReadDirPlus),
        Status::NotSupp => {
            names(procedure) && procedure != Remove || matches!(procedure, SetAttr | ReadLink | ReadDirPlus)
        }
        Status::BadType => procedure == MkNod,
    }
}

/// Whether `procedure` makes names or takes them away.
fn names(procedure: Procedure) -> bool {
    use Procedure::*;
    matches!(procedure, Create | MkDir | SymLink | MkNod | Remove | RmDir | Rename | Link)
}

/// What those lists, which the RFC calls a guide, leave out and clients understand all the same.
fn beyond(procedure: Procedure, status: Status) -> bool {
    use Procedure::*;
    match status {
        // Sticky directories, owners and devices that only root may give and make.
        Status::Perm => names(procedure),
        // What RMDIR is for.
        Status::IsDir => procedure == Remove,
        // Times, targets and kinds of files for which the call makes no sense.
        Status::Inval => matches!(procedure, Create | MkDir | SymLink | MkNod | Commit),
        // A size beyond the largest.
        Status::FBig => matches!(procedure, SetAttr | Create),
        // Also a removal is a change of the disk, and a COMMIT may be what finds it full.
        Status::NoSpc | Status::DQuot => matches!(procedure, Remove | RmDir | Commit),
        // The parent's own links.
        Status::MLink => procedure == MkDir,
        _ => false,
    }
}

/// The answer to `error`, whatever was called. `JUKEBOX` is for [`FsError::Busy`] alone: clients sleep for seconds on it.
fn plainly(error: FsError) -> Answer {
    use FsError::*;
    Answer::Status(match error {
        NotFound => Status::NoEnt,
        NotDir => Status::NotDir,
        IsDir => Status::IsDir,
        Exists => Status::Exist,
        NotEmpty => Status::NotEmpty,
        CrossDevice => Status::XDev,
        TooManyLinks => Status::MLink,
        NotPermitted => Status::Perm,
        AccessDenied => Status::Acces,
        ReadOnly => Status::RoFs,
        NoSpace => Status::NoSpc,
        Quota => Status::DQuot,
        TooBig => Status::FBig,
        NameTooLong => Status::NameTooLong,
        BadName => Status::Acces,
        Stale => Status::Stale,
        BadHandle => Status::BadHandle,
        BadCookie => Status::BadCookie,
        Invalid => Status::Inval,
        Unsupported => Status::NotSupp,
        BadType => Status::BadType,
        NoXattr => Status::NoEnt,
        XattrTooBig => Status::Inval,
        NotSync => Status::NotSync,
        Checksum | DeviceRead | DeviceWrite | Stopped => Status::Io,
        Busy => Status::Jukebox,
        NoMemory => return Answer::Later,
        ShuttingDown => return Answer::Close,
        Corrupt => Status::ServerFault,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v3_19_only_busy_is_jukebox_and_no_error_becomes_success() {
        for error in FsError::ALL {
            for procedure in Procedure::ALL.into_iter().skip(1) {
                let answer = answer(procedure, *error);
                let busy = answer == Answer::Status(Status::Jukebox);
                assert_eq!(busy, *error == FsError::Busy, "{procedure:?} {error:?}");
                assert_ne!(answer, Answer::Status(Status::Ok), "{procedure:?} {error:?}");
                assert_eq!(answer == Answer::Later, *error == FsError::NoMemory, "{procedure:?}");
                assert_eq!(answer == Answer::Close, *error == FsError::ShuttingDown, "{procedure:?}");
            }
        }
    }

    #[test]
    fn golden_numbers_of_every_error() {
        let number = |e| match plainly(e) {
            Answer::Status(status) => status as u32,
            Answer::Later | Answer::Close => 0,
        };
        let all: alloc::vec::Vec<u32> = FsError::ALL.iter().map(|e| number(*e)).collect();
        let want = [
            2, 20, 21, 17, 66, 18, 31, 1, 13, 30, 28, 69, 27, 63, 13, 70, 10001, 10003, 22, 10004, 10007, 2,
            22, 10002, 5, 5, 5, 10008, 0, 5, 0, 10006,
        ];
        assert_eq!(all, want);
    }

    #[test]
    fn what_a_procedure_has_no_word_for_is_told_by_the_nearest_it_has() {
        use FsError::*;
        for (procedure, error, status) in [
            (Procedure::Lookup, NotFound, Status::NoEnt),
            (Procedure::Write, NoSpace, Status::NoSpc),
            (Procedure::Commit, NoSpace, Status::NoSpc),
            (Procedure::Remove, IsDir, Status::IsDir),
            (Procedure::Remove, NotPermitted, Status::Perm),
            (Procedure::Rename, NotEmpty, Status::NotEmpty),
            (Procedure::SetAttr, NotSync, Status::NotSync),
            (Procedure::MkNod, BadType, Status::BadType),
            (Procedure::ReadDir, BadCookie, Status::BadCookie),
            (Procedure::Create, IsDir, Status::Exist),
            (Procedure::Read, IsDir, Status::Inval),
            (Procedure::Link, IsDir, Status::Inval),
            (Procedure::Lookup, NotPermitted, Status::Acces),
            (Procedure::FsInfo, Checksum, Status::ServerFault),
            (Procedure::GetAttr, NotFound, Status::ServerFault),
        ] {
            assert_eq!(answer(procedure, error), Answer::Status(status), "{procedure:?} {error:?}");
        }
    }
}
