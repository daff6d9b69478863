//! The head of a call (RFC 5531 §9): from bytes to a program, a version, a procedure and a credential, or to the
//! denial that answers it.

use super::auth::{AUTH_BODY_MAX, AUTH_NONE, AUTH_SYS, AuthSys, Credential};
use super::{CALL, RPC_VERSION};
use crate::xdr::{Decoder, Malformed};

/// A call whose head made sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// The client's number for it; the reply carries it back.
    pub xid: u32,
    /// Program number.
    pub program: u32,
    /// Program version.
    pub version: u32,
    /// Procedure.
    pub procedure: u32,
    /// Who calls.
    pub credential: Credential,
    /// The procedure's arguments.
    pub args: &'a [u8],
}

/// Why a credential is refused (`auth_stat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AuthStat {
    /// AUTH_BADCRED: malformed, or of a flavour that is not served.
    BadCredential = 1,
}

/// A call that is answered with `MSG_DENIED`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Not RPC version 2.
    RpcMismatch,
    /// The credential is refused.
    Auth(AuthStat),
}

/// Why a record is not a call that can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Not a call at all: nothing can be answered, the connection is of no use.
    NotACall,
    /// Answer the call `xid` with a denial.
    Denied {
        /// The call's number.
        xid: u32,
        /// Why.
        why: Denied,
    },
}

impl<'a> Call<'a> {
    /// Reads the head of a record.
    pub fn parse(record: &'a [u8]) -> Result<Call<'a>, CallError> {
        let mut d = Decoder::new(record);
        let not_a_call = |_: Malformed| CallError::NotACall;
        let xid = d.u32().map_err(not_a_call)?;
        if d.u32().map_err(not_a_call)? != CALL {
            return Err(CallError::NotACall);
        }
        if d.u32().map_err(not_a_call)? != RPC_VERSION {
            return Err(CallError::Denied { xid, why: Denied::RpcMismatch });
        }
        let mut word = || d.u32().map_err(not_a_call);
        let (program, version, procedure) = (word()?, word()?, word()?);
        let credential = credential(&mut d)
            .map_err(|_| CallError::Denied { xid, why: Denied::Auth(AuthStat::BadCredential) })?;
        Ok(Call { xid, program, version, procedure, credential, args: d.rest() })
    }
}

/// Reads the credential and skips the verifier, which no served flavour uses.
fn credential(d: &mut Decoder<'_>) -> Result<Credential, Malformed> {
    let flavour = d.u32()?;
    let body = d.opaque(AUTH_BODY_MAX)?;
    let credential = match flavour {
        AUTH_NONE => Credential::None,
        AUTH_SYS => Credential::Sys(AuthSys::parse(body)?),
        _ => return Err(Malformed::BadArm),
    };
    let _verifier_flavour = d.u32()?;
    d.opaque(AUTH_BODY_MAX)?;
    Ok(credential)
}

#[cfg(test)]
mod tests {
    use super::super::auth::AUTH_TLS;
    use super::*;
    use crate::xdr::Encoder;
    use alloc::vec::Vec;

    fn head(rpc_version: u32, flavour: u32, body: &[u8]) -> Vec<u8> {
        let mut e = Encoder::default();
        e.u32(0xabcd).u32(CALL).u32(rpc_version).u32(100_003).u32(3).u32(1);
        e.u32(flavour).opaque(body).u32(AUTH_NONE).opaque(&[]).u32(42);
        e.into_bytes()
    }

    #[test]
    fn a_golden_call_is_read_and_each_cut_of_its_head_is_refused() {
        let bytes = head(2, AUTH_NONE, &[]);
        let call = Call::parse(&bytes).unwrap();
        assert_eq!((call.xid, call.program, call.version, call.procedure), (0xabcd, 100_003, 3, 1));
        assert_eq!(call.credential, Credential::None);
        assert_eq!(call.args, [0, 0, 0, 42]);
        for len in 0..bytes.len() - 4 {
            assert!(Call::parse(&bytes[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn r_04_the_tls_probe_and_other_flavours_are_refused_as_bad_credentials() {
        for flavour in [2, 3, 6, AUTH_TLS, 390_000, u32::MAX] {
            let why = Denied::Auth(AuthStat::BadCredential);
            assert_eq!(Call::parse(&head(2, flavour, &[])), Err(CallError::Denied { xid: 0xabcd, why }));
        }
    }

    #[test]
    fn another_rpc_version_is_denied_and_a_reply_is_no_call() {
        let why = Denied::RpcMismatch;
        assert_eq!(Call::parse(&head(3, 0, &[])), Err(CallError::Denied { xid: 0xabcd, why }));
        let mut reply = head(2, 0, &[]);
        reply[7] = 1;
        assert_eq!(Call::parse(&reply), Err(CallError::NotACall));
    }
}
