//! `nfsstat3` (RFC 1813 §2.6), and what each error of the filesystem tells an NFSv3 client.

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

/// The answer to `error`. `JUKEBOX` is for [`FsError::Busy`] alone: clients sleep for seconds on it.
pub fn answer(error: FsError) -> Answer {
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
            let answer = answer(*error);
            assert_eq!(answer == Answer::Status(Status::Jukebox), *error == FsError::Busy, "{error:?}");
            assert_ne!(answer, Answer::Status(Status::Ok), "{error:?}");
        }
        assert_eq!(answer(FsError::NoMemory), Answer::Later);
        assert_eq!(answer(FsError::ShuttingDown), Answer::Close);
    }

    #[test]
    fn golden_numbers_of_every_error() {
        let number = |e| match answer(e) {
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
}
