//! Replies (RFC 5531 §9): heads of accepted and denied ones, and a whole reply as it waits to be sent: one buffer with
//! record mark and head, then shared slices of file data that are never copied into a message.

use super::call::Denied;
use super::{REPLY, RPC_VERSION};
use crate::xdr::{Encoder, padding};
use alloc::vec::Vec;
use moraine_fs::vfs::Bytes;

const MSG_ACCEPTED: u32 = 0;
const MSG_DENIED: u32 = 1;
const RECORD_MARK_LEN: usize = 4;
const LAST_FRAGMENT: u32 = 1 << 31;

/// How an accepted call fared (`accept_stat`), but for success, whose results follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptStat {
    /// The program is not served here.
    ProgramUnavailable,
    /// The program is served in this version only.
    ProgramMismatch {
        /// The lowest and highest version served.
        only: u32,
    },
    /// The program has no such procedure.
    ProcedureUnavailable,
    /// The arguments could not be read.
    GarbageArgs,
    /// The call cannot be answered as it came.
    SystemError,
}

/// Begins the reply of a call that succeeded as a call: its results are written behind. The record mark has its place
/// in front.
pub fn begin_success(xid: u32, capacity: usize) -> Encoder {
    begin_accepted(xid, 0, capacity)
}

fn begin_accepted(xid: u32, stat: u32, capacity: usize) -> Encoder {
    let mut e = Encoder::with_capacity(RECORD_MARK_LEN + 24 + capacity);
    e.u32(0).u32(xid).u32(REPLY).u32(MSG_ACCEPTED);
    e.u32(super::AUTH_NONE).opaque(&[]).u32(stat);
    e
}

/// The reply of an accepted call that did not run.
pub fn encode_accept(xid: u32, stat: AcceptStat) -> Reply {
    let (code, versions) = match stat {
        AcceptStat::ProgramUnavailable => (1, None),
        AcceptStat::ProgramMismatch { only } => (2, Some(only)),
        AcceptStat::ProcedureUnavailable => (3, None),
        AcceptStat::GarbageArgs => (4, None),
        AcceptStat::SystemError => (5, None),
    };
    let mut e = begin_accepted(xid, code, 8);
    if let Some(only) = versions {
        e.u32(only).u32(only);
    }
    Reply::new(e)
}

/// The reply of a denied call.
pub fn encode_denied(xid: u32, why: Denied) -> Reply {
    let mut e = Encoder::with_capacity(RECORD_MARK_LEN + 24);
    e.u32(0).u32(xid).u32(REPLY).u32(MSG_DENIED);
    match why {
        Denied::RpcMismatch => e.u32(0).u32(RPC_VERSION).u32(RPC_VERSION),
        Denied::Auth(stat) => e.u32(1).u32(stat as u32),
    };
    Reply::new(e)
}

/// A reply ready to be sent: head, data, padding.
#[derive(Clone, Debug)]
pub struct Reply {
    head: Vec<u8>,
    data: Vec<Bytes>,
    data_len: usize,
}

impl Reply {
    /// A reply without file data.
    pub fn new(message: Encoder) -> Reply {
        Reply::with_data(message, Vec::new())
    }

    /// A reply whose last item is opaque data in pieces; `message` ends with its length.
    pub fn with_data(mut message: Encoder, data: Vec<Bytes>) -> Reply {
        let data_len: usize = data.iter().map(|part| part.len()).sum();
        let len = message.len() - RECORD_MARK_LEN + data_len + padding(data_len);
        message.set_u32(0, LAST_FRAGMENT | u32::try_from(len).expect("replies are far below 2 GiB"));
        Reply { head: message.into_bytes(), data, data_len }
    }

    /// A reply sent before, from [`Reply::message`].
    pub fn from_message(message: &[u8]) -> Reply {
        let mut e = Encoder::with_capacity(RECORD_MARK_LEN + message.len());
        e.u32(0).raw(message);
        Reply::new(e)
    }

    /// The bytes without record mark, of a reply without file data.
    pub fn message(&self) -> &[u8] {
        assert!(self.data.is_empty(), "replies with file data are not kept");
        &self.head[RECORD_MARK_LEN..]
    }

    /// Bytes in all, record mark included.
    pub fn wire_len(&self) -> usize {
        self.head.len() + self.data_len + padding(self.data_len)
    }

    /// Copies as much as fits of what follows the first `sent` bytes into `room`; returns how much.
    pub fn copy_to(&self, sent: usize, room: &mut [u8]) -> usize {
        let pad = &[0; 3][..padding(self.data_len)];
        let slices = core::iter::once(&self.head[..]).chain(self.data.iter().map(|b| &**b)).chain([pad]);
        let (mut skip, mut at) = (sent, 0);
        for slice in slices {
            let from = skip.min(slice.len());
            skip -= from;
            let take = (slice.len() - from).min(room.len() - at);
            room[at..at + take].copy_from_slice(&slice[from..from + take]);
            at += take;
            if at == room.len() {
                break;
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::AuthStat;
    use alloc::rc::Rc;

    fn bytes(reply: &Reply) -> Vec<u8> {
        let mut out = alloc::vec![0; reply.wire_len() + 5];
        let n = reply.copy_to(0, &mut out);
        assert_eq!(n, reply.wire_len());
        out.truncate(n);
        out
    }

    #[test]
    fn golden_replies() {
        let mismatch = encode_accept(7, AcceptStat::ProgramMismatch { only: 3 });
        assert_eq!(
            bytes(&mismatch),
            [
                0x80, 0, 0, 32, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0,
                0, 3, 0, 0, 0, 3
            ]
        );
        let denied = encode_denied(7, Denied::Auth(AuthStat::BadCredential));
        assert_eq!(
            bytes(&denied),
            [0x80, 0, 0, 20, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
        );
        let version = encode_denied(7, Denied::RpcMismatch);
        assert_eq!(
            bytes(&version),
            [0x80, 0, 0, 24, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
        );
        assert_eq!(bytes(&Reply::from_message(denied.message())), bytes(&denied));
    }

    #[test]
    fn a_reply_with_data_is_the_same_from_each_position_and_through_each_room() {
        let shared: Rc<dyn AsRef<[u8]>> = Rc::new(b"0123456789".to_vec());
        let mut e = begin_success(9, 8);
        e.u32(9);
        let parts =
            [Bytes::new(shared.clone(), 1, 4), Bytes::new(shared.clone(), 0, 0), Bytes::new(shared, 5, 5)];
        let reply = Reply::with_data(e, parts.to_vec());
        let whole = bytes(&reply);
        assert_eq!(&whole[whole.len() - 12..], b"123456789\0\0\0");
        assert_eq!(whole[..4], (LAST_FRAGMENT | (whole.len() as u32 - 4)).to_be_bytes());
        for room in 1..whole.len() {
            let (mut got, mut buffer) = (Vec::new(), alloc::vec![0; room]);
            while got.len() < whole.len() {
                let n = reply.copy_to(got.len(), &mut buffer);
                got.extend_from_slice(&buffer[..n]);
            }
            assert_eq!(got, whole);
        }
    }
}
