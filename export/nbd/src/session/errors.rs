//! One error of the filesystem, one answer of NBD. Total: a new error of the filesystem does not compile until it has
//! its answer here.

use crate::wire::{Errno, OptionReply};
use core::fmt;
use moraine_fs::FsError;

/// What becomes of a request whose filesystem call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This is the reply.
    Error(Errno),
    /// Nobody's fault and soon over: try again and answer then.
    Hold,
}

/// What a request asks of the filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Content.
    Read,
    /// What is data and what is hole.
    Segments,
    /// To take content.
    Write,
    /// To forget content.
    Punch,
    /// To make a range durable.
    Commit,
    /// To make everything durable.
    Flush,
}

impl Asked {
    /// Every kind of call.
    #[cfg(test)]
    const ALL: [Asked; 6] =
        [Asked::Read, Asked::Segments, Asked::Write, Asked::Punch, Asked::Commit, Asked::Flush];

    /// Whether it changes nothing.
    fn reads(self) -> bool {
        matches!(self, Asked::Read | Asked::Segments)
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Asked::Read => "read",
            Asked::Segments => "segments",
            Asked::Write => "write",
            Asked::Punch => "punch",
            Asked::Commit => "commit",
            Asked::Flush => "flush",
        })
    }
}

/// The answer to a request in the transmission phase that asked so. That there is no space, or that a change is not
/// permitted, is never told to who changes nothing.
pub(crate) fn answer(asked: Asked, error: FsError) -> Answer {
    use FsError as E;
    Answer::Error(match error {
        E::TooBig if asked.reads() => Errno::Inval,
        E::NotPermitted | E::AccessDenied | E::ReadOnly | E::NoSpace | E::Quota if asked.reads() => Errno::Io,
        E::NotPermitted | E::AccessDenied | E::ReadOnly => Errno::Perm,
        E::NoSpace | E::Quota => Errno::NoSpace,
        // Requests are held against the volume's end before; what is too big all the same has no place.
        E::TooBig => Errno::NoSpace,
        E::Invalid | E::Unsupported => Errno::Inval,
        E::Busy | E::NoMemory => return Answer::Hold,
        // The volume is no longer there: its export ends.
        E::Stale | E::NotFound | E::ShuttingDown => Errno::Shutdown,
        E::Checksum | E::DeviceRead | E::DeviceWrite | E::Stopped | E::Corrupt => Errno::Io,
        // None of these can come of reading and writing an open volume.
        E::NotDir
        | E::IsDir
        | E::Exists
        | E::NotEmpty
        | E::CrossDevice
        | E::TooManyLinks
        | E::NameTooLong
        | E::BadName
        | E::BadHandle
        | E::BadCookie
        | E::BadType
        | E::NoXattr
        | E::XattrTooBig
        | E::NotSync => Errno::Io,
    })
}

/// The answer to an option that names an export.
pub(crate) fn option_error(error: FsError) -> OptionReply {
    use FsError as E;
    match error {
        E::NotFound | E::NotDir | E::IsDir | E::Stale | E::BadType => OptionReply::Unknown,
        E::NameTooLong | E::BadName => OptionReply::Invalid,
        E::ShuttingDown => OptionReply::Shutdown,
        E::NotPermitted
        | E::AccessDenied
        | E::ReadOnly
        | E::NoSpace
        | E::Quota
        | E::TooBig
        | E::Invalid
        | E::Unsupported
        | E::Busy
        | E::NoMemory
        | E::Checksum
        | E::DeviceRead
        | E::DeviceWrite
        | E::Stopped
        | E::Corrupt
        | E::Exists
        | E::NotEmpty
        | E::CrossDevice
        | E::TooManyLinks
        | E::BadHandle
        | E::BadCookie
        | E::NoXattr
        | E::XattrTooBig
        | E::NotSync => OptionReply::Policy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_are_those_of_the_table() {
        let rows = [
            (FsError::NotPermitted, Answer::Error(Errno::Perm)),
            (FsError::ReadOnly, Answer::Error(Errno::Perm)),
            (FsError::NoSpace, Answer::Error(Errno::NoSpace)),
            (FsError::Quota, Answer::Error(Errno::NoSpace)),
            (FsError::TooBig, Answer::Error(Errno::NoSpace)),
            (FsError::Invalid, Answer::Error(Errno::Inval)),
            (FsError::Unsupported, Answer::Error(Errno::Inval)),
            (FsError::Checksum, Answer::Error(Errno::Io)),
            (FsError::DeviceRead, Answer::Error(Errno::Io)),
            (FsError::DeviceWrite, Answer::Error(Errno::Io)),
            (FsError::Stopped, Answer::Error(Errno::Io)),
            (FsError::Corrupt, Answer::Error(Errno::Io)),
            (FsError::Busy, Answer::Hold),
            (FsError::NoMemory, Answer::Hold),
            (FsError::ShuttingDown, Answer::Error(Errno::Shutdown)),
        ];
        for (error, wanted) in rows {
            assert_eq!(answer(Asked::Write, error), wanted, "{error:?}");
        }
    }

    #[test]
    fn nbd_12_every_error_has_an_answer_that_the_specification_has_for_what_was_asked() {
        // EOVERFLOW is for a READ that must not be cut, ENOTSUP for zeroes that would not be fast: both are decided before.
        let of_changes = [Errno::Perm, Errno::Io, Errno::Inval, Errno::NoSpace, Errno::Shutdown];
        let of_reading = [Errno::Io, Errno::Inval, Errno::Shutdown];
        for asked in Asked::ALL {
            let allowed = if asked.reads() { &of_reading[..] } else { &of_changes };
            for &error in FsError::ALL {
                match answer(asked, error) {
                    Answer::Error(errno) => assert!(allowed.contains(&errno), "{asked} {error:?}: {errno:?}"),
                    Answer::Hold => assert!(matches!(error, FsError::Busy | FsError::NoMemory), "{error:?}"),
                }
            }
        }
        assert_eq!(answer(Asked::Read, FsError::TooBig), Answer::Error(Errno::Inval));
    }

    #[test]
    fn names_that_lead_nowhere_are_unknown_and_impossible_ones_invalid() {
        assert_eq!(option_error(FsError::NotFound), OptionReply::Unknown);
        assert_eq!(option_error(FsError::NotDir), OptionReply::Unknown);
        assert_eq!(option_error(FsError::BadName), OptionReply::Invalid);
        assert_eq!(option_error(FsError::NameTooLong), OptionReply::Invalid);
        assert_eq!(option_error(FsError::Busy), OptionReply::Policy);
        for &error in FsError::ALL {
            assert!(option_error(error) as u32 >> 31 == 1, "{error:?} is answered by an error");
        }
    }
}
