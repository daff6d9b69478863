//! ONC RPC version 2 (RFC 5531): the calls and replies all served programs share. Pure codec, no I/O.
//!
//! | file | what |
//! |---|---|
//! | `record.rs` | record marking: how messages lie in a byte stream (§11) |
//! | `call.rs` | the head of a call, with its credential (§9) |
//! | `auth.rs` | AUTH_NONE and AUTH_SYS (§8.1, appendix A), and who the caller is after squashing |
//! | `reply.rs` | accepted and denied replies; a reply with the file data that follows it |

mod auth;
mod call;
mod record;
mod reply;

pub use auth::{
    AUTH_BODY_MAX, AUTH_NONE, AUTH_SYS, AUTH_TLS, AuthSys, Credential, GROUPS_MAX, Identities, Squash,
};
pub use call::{AuthStat, Call, CallError, Denied};
pub use record::{Fragments, Piece, RecordError};
pub use reply::{AcceptStat, Reply, begin_success, encode_accept, encode_denied};

/// The RPC version everybody speaks.
pub const RPC_VERSION: u32 = 2;
/// `msg_type`: a call.
pub const CALL: u32 = 0;
/// `msg_type`: a reply.
pub const REPLY: u32 = 1;

/// A program of the RPC world; told apart by number alone, so that all may share one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Program {
    /// The port mapper, version 2 (RFC 1833 §3).
    Portmap,
    /// NFS, version 3 (RFC 1813).
    Nfs,
    /// MOUNT, version 3 (RFC 1813 appendix I).
    Mount,
}

impl Program {
    /// Every served program.
    pub const ALL: [Program; 3] = [Program::Portmap, Program::Nfs, Program::Mount];

    /// Its assigned number.
    pub const fn number(self) -> u32 {
        match self {
            Program::Portmap => 100_000,
            Program::Nfs => 100_003,
            Program::Mount => 100_005,
        }
    }

    /// The one version of it that is served.
    pub const fn version(self) -> u32 {
        match self {
            Program::Portmap => 2,
            Program::Nfs | Program::Mount => 3,
        }
    }

    /// The program numbered `number`, if it is served.
    pub fn from_number(number: u32) -> Option<Program> {
        Program::ALL.into_iter().find(|p| p.number() == number)
    }
}
