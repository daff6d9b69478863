//! Messages of NFS and its companions, and of NBD, one decoder at a time.

use moraine_nbd::wire::{ContextQuery, ExportQuery, OptionHeader, OptionKind, Request, client_flags};
use moraine_nfs::Ports;
use moraine_nfs::rpc::{AuthSys, Call, Fragments, Piece};
use moraine_nfs::v3::wire::{Args, Located, Procedure, locate_write};
use moraine_nfs::xdr::Encoder;

/// The longest record of the first target, in bytes.
const RECORD_MAX: u32 = 4096;

/// The first byte says in pieces of which size the rest arrives.
pub(super) fn record(bytes: &[u8]) {
    let Some((&size, stream)) = bytes.split_first() else { return };
    let mut fragments = Fragments::new(RECORD_MAX);
    let (mut record, mut steps) = (Vec::new(), 0);
    for mut part in stream.chunks(usize::from(size) + 1) {
        loop {
            steps += 1;
            assert!(steps <= 3 * bytes.len() + 3, "each step takes bytes or ends a record");
            match fragments.step(&mut part, 64) {
                Ok(Piece::NeedMore) => break,
                Ok(Piece::Body(body)) => {
                    assert!(!body.is_empty() && body.len() <= 64);
                    record.extend_from_slice(body);
                    assert!(record.len() <= RECORD_MAX as usize);
                }
                Ok(Piece::End) => {
                    call(&record);
                    record.clear();
                }
                Err(_) => return,
            }
        }
        assert!(part.is_empty(), "who needs more has taken all");
    }
}

pub(super) fn call(bytes: &[u8]) {
    // Asked again with exactly what it wants, the head of a WRITE is found after a few looks.
    let (mut have, mut looks) = (0, 0);
    while let Located::NeedMore(want) = locate_write(&bytes[..have]) {
        assert!(want > have && want <= 4096, "it wants more, and not much");
        looks += 1;
        assert!(looks < 8);
        if want > bytes.len() {
            break;
        }
        have = want;
    }
    let _ = AuthSys::parse(bytes).map(|auth| assert!(auth.groups().len() <= 16));
    let _ = Call::parse(bytes);
}

/// The first byte chooses the procedure.
pub(super) fn arguments(bytes: &[u8]) {
    let Some((procedure, bytes)) = bytes.split_first() else { return };
    let procedure = Procedure::ALL[usize::from(*procedure) % Procedure::ALL.len()];
    let _ = Args::parse(procedure, bytes);
}

/// The first byte is the procedure.
pub(super) fn portmap(bytes: &[u8]) {
    let Some((procedure, bytes)) = bytes.split_first() else { return };
    let mut out = Encoder::default();
    let _ = moraine_nfs::portmap::call((*procedure).into(), bytes, &Ports::all_on(2049), &mut out);
    assert!(out.into_bytes().len() <= 1024, "an answer over UDP is small whatever was asked");
}

/// The first byte chooses the decoder.
pub(super) fn nbd(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    match which % 5 {
        0 => drop(bytes.first_chunk().and_then(|flags| client_flags(*flags))),
        1 => {
            if let Some(header) = bytes.first_chunk().and_then(OptionHeader::parse) {
                let known = OptionKind::from_u32(header.number);
                assert!(known.is_none_or(|kind| kind as u32 == header.number));
            }
        }
        2 => {
            if let Some(query) = ExportQuery::parse(bytes) {
                assert!(query.name.len() <= bytes.len());
            }
        }
        3 => {
            if let Some(query) = ContextQuery::parse(bytes) {
                assert!(query.name.len() <= bytes.len());
            }
        }
        _ => {
            if let Some(request) = bytes.first_chunk().and_then(Request::parse) {
                assert!(request.payload_len() <= request.len);
            }
        }
    }
}
