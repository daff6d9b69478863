//! Calls captured from a real Linux client, byte for byte: each is read as what it is, to its last byte.

use moraine_fs::vfs::{CreateMode, NewNode, Stability};
use moraine_nfs::rpc::{Call, Credential, Program};
use moraine_nfs::v3::wire::{Args, DirOp, Located, Node, Procedure, locate_write};

const CALLS: &str = include_str!("linux-calls.txt");

struct Captured {
    target: (u32, u32, u32),
    record: Vec<u8>,
}

fn captured() -> Vec<Captured> {
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let mut number = || words.next().unwrap().parse().unwrap();
        let target = (number(), number(), number());
        let hex = words.next().unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        Captured { target, record: (0..hex.len()).step_by(2).map(byte).collect() }
    };
    CALLS.lines().filter(|line| !line.starts_with('#')).map(parse).collect()
}

#[test]
fn every_captured_call_is_read_to_its_last_byte() {
    let calls = captured();
    assert!(calls.len() > 20);
    for Captured { target, record } in &calls {
        let call = Call::parse(record).unwrap();
        assert_eq!((call.program, call.version, call.procedure), *target);
        if target.2 != 0 {
            assert!(matches!(call.credential, Credential::Sys(sys) if sys.uid == 0));
        }
        let Some(procedure) =
            Procedure::from_number(call.procedure).filter(|_| call.program == Program::Nfs.number())
        else {
            continue;
        };
        let args = match locate_write(record) {
            Located::Write(head) => {
                assert!(head.consistent);
                assert_eq!(record.len() - head.args_end, (4 + head.len as usize).next_multiple_of(4));
                &call.args[..call.args.len() - (record.len() - head.args_end)]
            }
            Located::NotWrite | Located::NeedMore(_) => call.args,
        };
        Args::parse(procedure, args).unwrap();
        for len in 0..args.len() {
            assert!(Args::parse(procedure, &args[..len]).is_err(), "{procedure:?} has {len} bytes to spare");
        }
    }
}

#[test]
fn captured_calls_mean_what_the_client_was_told_to_do() {
    let calls = captured();
    let find = |procedure: Procedure| {
        let target = (Program::Nfs.number(), 3, procedure as u32);
        let call = &calls.iter().find(|c| c.target == target).unwrap().record;
        Args::parse(procedure, Call::parse(call).unwrap().args).unwrap()
    };
    fn name<'a>(op: &DirOp<'a>) -> &'a [u8] {
        assert_eq!(op.dir.len(), 40);
        op.name
    }
    assert!(
        matches!(find(Procedure::MkDir), Args::MkDir { at, set } if name(&at) == b"d" && set.mode.is_some())
    );
    let Args::Create { at, how, set } = find(Procedure::Create) else { panic!() };
    assert_eq!((name(&at), how, set.mode), (&b"f"[..], CreateMode::Unchecked, Some(0o644)));
    let Args::Write { offset, count, stable, .. } = find(Procedure::Write) else { panic!() };
    assert_eq!((offset, count, stable), (0, 6, Stability::FileSync));
    let Args::SymLink { at, target, .. } = find(Procedure::SymLink) else { panic!() };
    assert_eq!((name(&at), target), (&b"s"[..], &b"target"[..]));
    let Args::MkNod { at, node } = find(Procedure::MkNod) else { panic!() };
    assert_eq!(name(&at), b"p");
    assert!(matches!(node, Node::Special(NewNode::Fifo, set) if set.mode == Some(0o644)));
    let Args::Rename { from, to } = find(Procedure::Rename) else { panic!() };
    assert_eq!((name(&from), name(&to)), (&b"h"[..], &b"i"[..]));
    let Args::Link { to, .. } = find(Procedure::Link) else { panic!() };
    assert_eq!(name(&to), b"h");
    let Args::SetAttr { set, guard, .. } = find(Procedure::SetAttr) else { panic!() };
    assert_eq!((set.mode, set.size, guard), (Some(0o600), None, None));
    let Args::ReadDirPlus { cookie, dircount, maxcount, .. } = find(Procedure::ReadDirPlus) else { panic!() };
    assert!(cookie == 0 && dircount > 0 && maxcount >= dircount);
}
