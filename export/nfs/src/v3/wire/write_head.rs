//! Finds the data inside a WRITE call while only its head has arrived, so that the data can be received straight into a
//! buffer placed for the file, without a record being put together first.

use crate::handle::HANDLE_MAX;
use crate::rpc::{AUTH_BODY_MAX, CALL, Program, RPC_VERSION};
use crate::v3::wire::Procedure;
use crate::xdr::padding;

/// Bytes up to and including the length of the credential: xid, type, RPC version, program, version, procedure,
/// flavour, length.
const FIXED_LEN: usize = 32;

/// Where a WRITE's data begins and belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteHead {
    /// Bytes of the record before the data's length, which are all of the call but its data.
    pub args_end: usize,
    /// Offset in the file.
    pub offset: u64,
    /// Bytes of data that follow the head.
    pub len: u32,
    /// Whether the length equals the count in the arguments, as it must.
    pub consistent: bool,
}

/// What the head of a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// Ask again once the record's first so many bytes are there.
    NeedMore(usize),
    /// Not a WRITE of ours, or a broken one: receive it as it is.
    NotWrite,
    /// A WRITE; its data follows the bytes given.
    Write(WriteHead),
}

/// Looks at the first bytes of a record. Given exactly as many bytes as were asked for each time, a [`WriteHead`] comes
/// when `head` ends right before the data.
pub fn locate_write(head: &[u8]) -> Located {
    let word = |at: usize| {
        head.get(at..at + 4).map(|w| u32::from_be_bytes(w.try_into().expect("four bytes were taken")))
    };
    let write = [CALL, RPC_VERSION, Program::Nfs.number(), Program::Nfs.version(), Procedure::Write as u32];
    for (i, want) in write.into_iter().enumerate() {
        match word(4 + 4 * i) {
            None => return Located::NeedMore(FIXED_LEN),
            Some(found) if found != want => return Located::NotWrite,
            Some(_) => {}
        }
    }
    // Credential, verifier and handle: three counted items, the first two after a flavour. Each length is bounded
    // before it moves the position.
    let mut at = FIXED_LEN - 4;
    for (before, max) in [(0, AUTH_BODY_MAX), (4, AUTH_BODY_MAX), (0, HANDLE_MAX)] {
        at += before;
        let Some(len) = word(at) else { return Located::NeedMore(at + 4) };
        let len = len as usize;
        if len > max {
            return Located::NotWrite;
        }
        at += 4 + len + padding(len);
    }
    let args_end = at + 16;
    let (Some(len), Some(high), Some(low), Some(count)) =
        (word(args_end), word(at), word(at + 4), word(at + 8))
    else {
        return Located::NeedMore(args_end + 4);
    };
    let offset = u64::from(high) << 32 | u64::from(low);
    Located::Write(WriteHead { args_end, offset, len, consistent: len == count })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdr::Encoder;
    use alloc::vec::Vec;

    fn head(procedure: u32, cred: &[u8], verf: &[u8], handle: &[u8], count: u32, len: u32) -> Vec<u8> {
        let mut e = Encoder::default();
        e.u32(1).u32(0).u32(2).u32(100_003).u32(3).u32(procedure).u32(1).opaque(cred).u32(0).opaque(verf);
        e.opaque(handle).u64(0x1_0000_0005).u32(count).u32(2).u32(len);
        e.into_bytes()
    }

    #[test]
    fn the_data_is_found_asking_only_for_bytes_that_must_come() {
        for (cred, handle) in [(0, 40), (20, 40), (83, 64), (400, 1), (399, 0)] {
            let head = head(7, &[0; 400][..cred], &[], &[9; 64][..handle], 4096, 4096);
            let (mut have, mut rounds) = (0, 0);
            let found = loop {
                match locate_write(&head[..have]) {
                    Located::NeedMore(n) => {
                        assert!(n > have && n <= head.len());
                        have = n;
                    }
                    Located::NotWrite => panic!("it is one"),
                    Located::Write(found) => break found,
                }
                rounds += 1;
                assert!(rounds < 6);
            };
            assert_eq!(have, head.len(), "not a byte of data was asked for");
            let want =
                WriteHead { args_end: head.len() - 4, offset: 0x1_0000_0005, len: 4096, consistent: true };
            assert_eq!(found, want);
        }
    }

    #[test]
    fn other_calls_and_broken_heads_are_left_alone() {
        assert_eq!(locate_write(&head(6, &[], &[], &[9; 40], 1, 1)), Located::NotWrite);
        assert_eq!(locate_write(&head(7, &[0; 404], &[], &[9; 40], 1, 1)), Located::NotWrite);
        assert_eq!(locate_write(&head(7, &[], &[0; 404], &[9; 40], 1, 1)), Located::NotWrite);
        assert_eq!(locate_write(&head(7, &[], &[], &[9; 68], 1, 1)), Located::NotWrite);
        let lie = locate_write(&head(7, &[], &[], &[9; 40], 5, 6));
        assert!(matches!(lie, Located::Write(WriteHead { consistent: false, len: 6, .. })));
        let mut huge = head(7, &[], &[], &[9; 40], 5, 6);
        huge[28..32].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(locate_write(&huge), Located::NotWrite);
    }
}
