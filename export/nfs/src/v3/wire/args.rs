//! Arguments of the procedures: borrowed from the call's bytes, every length checked.

use super::Procedure;
use crate::handle::HANDLE_MAX;
use crate::xdr::{Decoder, Malformed};
use moraine_fs::vfs::{CreateMode, NewNode, SYMLINK_MAX, SetAttr, SetTime, Stability};
use moraine_platform::Timestamp;

/// The longest name that is read at all, in bytes; names the filesystem cannot hold are its to refuse, by status.
const NAME_READ_MAX: usize = 4096;
/// The longest link target that is read at all, in bytes.
const TARGET_READ_MAX: usize = SYMLINK_MAX + 1;
/// Permission bits; clients also send the file type.
const MODE_BITS: u32 = 0o7777;
const NANOS_PER_SEC: u32 = 1_000_000_000;

/// A name in a directory (`diropargs3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirOp<'a> {
    /// The directory's handle.
    pub dir: &'a [u8],
    /// The name.
    pub name: &'a [u8],
}

/// What MKNOD is asked to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// Something MKNOD makes, with its attributes.
    Special(NewNode<'static>, SetAttr),
    /// A type that is made otherwise, or none at all.
    BadType,
}

/// Arguments of a call. Handles are as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the protocol's, said in RFC 1813 §3.3")]
pub enum Args<'a> {
    Null,
    GetAttr { object: &'a [u8] },
    SetAttr { object: &'a [u8], set: SetAttr, guard: Option<Timestamp> },
    Lookup(DirOp<'a>),
    Access { object: &'a [u8], access: u32 },
    ReadLink { object: &'a [u8] },
    Read { object: &'a [u8], offset: u64, count: u32 },
    Write { object: &'a [u8], offset: u64, count: u32, stable: Stability },
    Create { at: DirOp<'a>, how: CreateMode, set: SetAttr },
    MkDir { at: DirOp<'a>, set: SetAttr },
    SymLink { at: DirOp<'a>, set: SetAttr, target: &'a [u8] },
    MkNod { at: DirOp<'a>, node: Node },
    Remove(DirOp<'a>),
    RmDir(DirOp<'a>),
    Rename { from: DirOp<'a>, to: DirOp<'a> },
    Link { object: &'a [u8], to: DirOp<'a> },
    ReadDir { dir: &'a [u8], cookie: u64, count: u32 },
    ReadDirPlus { dir: &'a [u8], cookie: u64, dircount: u32, maxcount: u32 },
    FsStat { object: &'a [u8] },
    FsInfo { object: &'a [u8] },
    PathConf { object: &'a [u8] },
    Commit { object: &'a [u8], offset: u64, count: u32 },
}

impl<'a> Args<'a> {
    /// Reads the arguments of `procedure`. Of a WRITE, `bytes` end before the data's length, which was checked when it
    /// was received. Further bytes behind the arguments are ignored.
    pub fn parse(procedure: Procedure, bytes: &'a [u8]) -> Result<Args<'a>, Malformed> {
        let mut d = Decoder::new(bytes);
        let d = &mut d;
        Ok(match procedure {
            Procedure::Null => Args::Null,
            Procedure::GetAttr => Args::GetAttr { object: handle(d)? },
            Procedure::SetAttr => {
                Args::SetAttr { object: handle(d)?, set: sattr(d)?, guard: d.optional(time)? }
            }
            Procedure::Lookup => Args::Lookup(dir_op(d)?),
            Procedure::Access => Args::Access { object: handle(d)?, access: d.u32()? },
            Procedure::ReadLink => Args::ReadLink { object: handle(d)? },
            Procedure::Read => Args::Read { object: handle(d)?, offset: d.u64()?, count: d.u32()? },
            Procedure::Write => {
                let (object, offset, count) = (handle(d)?, d.u64()?, d.u32()?);
                Args::Write { object, offset, count, stable: stability(d)? }
            }
            Procedure::Create => {
                let at = dir_op(d)?;
                let (how, set) = match d.u32()? {
                    0 => (CreateMode::Unchecked, sattr(d)?),
                    1 => (CreateMode::Guarded, sattr(d)?),
                    2 => (CreateMode::Exclusive(d.array()?), SetAttr::default()),
                    _ => return Err(Malformed::BadArm),
                };
                Args::Create { at, how, set }
            }
            Procedure::MkDir => Args::MkDir { at: dir_op(d)?, set: sattr(d)? },
            Procedure::SymLink => {
                Args::SymLink { at: dir_op(d)?, set: sattr(d)?, target: d.opaque(TARGET_READ_MAX)? }
            }
            Procedure::MkNod => Args::MkNod { at: dir_op(d)?, node: node(d)? },
            Procedure::Remove => Args::Remove(dir_op(d)?),
            Procedure::RmDir => Args::RmDir(dir_op(d)?),
            Procedure::Rename => Args::Rename { from: dir_op(d)?, to: dir_op(d)? },
            Procedure::Link => Args::Link { object: handle(d)?, to: dir_op(d)? },
            Procedure::ReadDir => {
                let (dir, cookie, _verifier) = (handle(d)?, d.u64()?, d.u64()?);
                Args::ReadDir { dir, cookie, count: d.u32()? }
            }
            Procedure::ReadDirPlus => {
                let (dir, cookie, _verifier) = (handle(d)?, d.u64()?, d.u64()?);
                Args::ReadDirPlus { dir, cookie, dircount: d.u32()?, maxcount: d.u32()? }
            }
            Procedure::FsStat => Args::FsStat { object: handle(d)? },
            Procedure::FsInfo => Args::FsInfo { object: handle(d)? },
            Procedure::PathConf => Args::PathConf { object: handle(d)? },
            Procedure::Commit => Args::Commit { object: handle(d)?, offset: d.u64()?, count: d.u32()? },
        })
    }

    /// The same with a reply of at most so many bytes of file data or entries.
    pub fn within(mut self, bytes: u64) -> Args<'a> {
        let most = u32::try_from(bytes).unwrap_or(u32::MAX);
        match &mut self {
            Args::Read { count, .. }
            | Args::ReadDir { count, .. }
            | Args::ReadDirPlus { maxcount: count, .. } => *count = most.min(*count),
            _ => {}
        }
        self
    }
}

fn handle<'a>(d: &mut Decoder<'a>) -> Result<&'a [u8], Malformed> {
    d.opaque(HANDLE_MAX)
}

fn dir_op<'a>(d: &mut Decoder<'a>) -> Result<DirOp<'a>, Malformed> {
    Ok(DirOp { dir: handle(d)?, name: d.opaque(NAME_READ_MAX)? })
}

fn stability(d: &mut Decoder<'_>) -> Result<Stability, Malformed> {
    match d.u32()? {
        0 => Ok(Stability::Unstable),
        1 => Ok(Stability::DataSync),
        2 => Ok(Stability::FileSync),
        _ => Err(Malformed::BadArm),
    }
}

fn time(d: &mut Decoder<'_>) -> Result<Timestamp, Malformed> {
    let (seconds, nanos) = (d.u32()?, d.u32()?);
    if nanos >= NANOS_PER_SEC {
        return Err(Malformed::BadArm);
    }
    Ok(Timestamp(u64::from(seconds) * u64::from(NANOS_PER_SEC) + u64::from(nanos)))
}

fn set_time(d: &mut Decoder<'_>) -> Result<Option<SetTime>, Malformed> {
    match d.u32()? {
        0 => Ok(None),
        1 => Ok(Some(SetTime::Now)),
        2 => Ok(Some(SetTime::To(time(d)?))),
        _ => Err(Malformed::BadArm),
    }
}

/// `sattr3` (§2.6).
fn sattr(d: &mut Decoder<'_>) -> Result<SetAttr, Malformed> {
    Ok(SetAttr {
        mode: d.optional(Decoder::u32)?.map(|mode| mode & MODE_BITS),
        uid: d.optional(Decoder::u32)?,
        gid: d.optional(Decoder::u32)?,
        size: d.optional(Decoder::u64)?,
        atime: set_time(d)?,
        mtime: set_time(d)?,
    })
}

/// `mknoddata3` (§3.3.11).
fn node(d: &mut Decoder<'_>) -> Result<Node, Malformed> {
    let kind = d.u32()?;
    Ok(match kind {
        3 | 4 => {
            let (set, major, minor) = (sattr(d)?, d.u32()?, d.u32()?);
            let node = if kind == 3 { NewNode::Block(major, minor) } else { NewNode::Char(major, minor) };
            Node::Special(node, set)
        }
        6 => Node::Special(NewNode::Socket, sattr(d)?),
        7 => Node::Special(NewNode::Fifo, sattr(d)?),
        _ => Node::BadType,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdr::Encoder;
    use alloc::vec::Vec;

    fn empty_sattr(e: &mut Encoder) {
        e.u32(0).u32(0).u32(0).u32(0).u32(0).u32(0);
    }

    fn op(e: &mut Encoder) {
        e.opaque(b"dir").opaque(b"name");
    }

    /// Arguments of each procedure as bytes, with what they must be read as.
    fn samples() -> Vec<(Procedure, Vec<u8>, Args<'static>)> {
        let (object, at) = (&b"obj"[..], DirOp { dir: b"dir", name: b"name" });
        let set = SetAttr {
            mode: Some(0o644),
            uid: Some(7),
            gid: None,
            size: Some(1 << 40),
            atime: Some(SetTime::Now),
            mtime: Some(SetTime::To(Timestamp(3_000_000_004))),
        };
        let full_sattr = |e: &mut Encoder| {
            e.u32(1).u32(0o100_644).u32(1).u32(7).u32(0).u32(1).u64(1 << 40).u32(1).u32(2).u32(3).u32(4);
        };
        let none = SetAttr::default();
        let mut all = Vec::new();
        let mut add = |procedure, write: &dyn Fn(&mut Encoder), args| {
            let mut e = Encoder::default();
            write(&mut e);
            all.push((procedure, e.into_bytes(), args));
        };
        let fh = |e: &mut Encoder| {
            e.opaque(b"obj");
        };
        use Procedure as P;
        add(P::Null, &|_| (), Args::Null);
        add(P::GetAttr, &fh, Args::GetAttr { object });
        let guard = Some(Timestamp(5_000_000_006));
        let guarded = |e: &mut Encoder| {
            fh(e);
            full_sattr(e);
            e.u32(1).u32(5).u32(6);
        };
        add(P::SetAttr, &guarded, Args::SetAttr { object, set, guard });
        add(P::Lookup, &op, Args::Lookup(at));
        let access = |e: &mut Encoder| {
            e.opaque(b"obj").u32(0x3f);
        };
        add(P::Access, &access, Args::Access { object, access: 0x3f });
        add(P::ReadLink, &fh, Args::ReadLink { object });
        let range = |e: &mut Encoder| {
            e.opaque(b"obj").u64(9).u32(10);
        };
        add(P::Read, &range, Args::Read { object, offset: 9, count: 10 });
        let write = |e: &mut Encoder| {
            range(e);
            e.u32(1);
        };
        let stable = Stability::DataSync;
        add(P::Write, &write, Args::Write { object, offset: 9, count: 10, stable });
        let create = |e: &mut Encoder| {
            op(e);
            e.u32(0);
            full_sattr(e);
        };
        add(P::Create, &create, Args::Create { at, how: CreateMode::Unchecked, set });
        let exclusive = |e: &mut Encoder| {
            op(e);
            e.u32(2).raw(b"verifier");
        };
        add(P::Create, &exclusive, Args::Create { at, how: CreateMode::Exclusive(*b"verifier"), set: none });
        let dir = |e: &mut Encoder| {
            op(e);
            full_sattr(e);
        };
        add(P::MkDir, &dir, Args::MkDir { at, set });
        let link = |e: &mut Encoder| {
            op(e);
            empty_sattr(e);
            e.opaque(b"target");
        };
        add(P::SymLink, &link, Args::SymLink { at, set: none, target: b"target" });
        let device = |e: &mut Encoder| {
            op(e);
            e.u32(3);
            empty_sattr(e);
            e.u32(8).u32(1);
        };
        add(P::MkNod, &device, Args::MkNod { at, node: Node::Special(NewNode::Block(8, 1), none) });
        let fifo = |e: &mut Encoder| {
            op(e);
            e.u32(7);
            empty_sattr(e);
        };
        add(P::MkNod, &fifo, Args::MkNod { at, node: Node::Special(NewNode::Fifo, none) });
        add(P::Remove, &op, Args::Remove(at));
        add(P::RmDir, &op, Args::RmDir(at));
        let two = |e: &mut Encoder| {
            op(e);
            e.opaque(b"dir2").opaque(b"name2");
        };
        add(P::Rename, &two, Args::Rename { from: at, to: DirOp { dir: b"dir2", name: b"name2" } });
        let hard = |e: &mut Encoder| {
            fh(e);
            op(e);
        };
        add(P::Link, &hard, Args::Link { object, to: at });
        let list = |e: &mut Encoder| {
            e.opaque(b"obj").u64(5).u64(0).u32(4096);
        };
        add(P::ReadDir, &list, Args::ReadDir { dir: object, cookie: 5, count: 4096 });
        let plus = |e: &mut Encoder| {
            list(e);
            e.u32(8192);
        };
        let plus_args = Args::ReadDirPlus { dir: object, cookie: 5, dircount: 4096, maxcount: 8192 };
        add(P::ReadDirPlus, &plus, plus_args);
        add(P::FsStat, &fh, Args::FsStat { object });
        add(P::FsInfo, &fh, Args::FsInfo { object });
        add(P::PathConf, &fh, Args::PathConf { object });
        add(P::Commit, &range, Args::Commit { object, offset: 9, count: 10 });
        all
    }

    #[test]
    fn every_procedure_reads_its_arguments_and_refuses_every_cut_of_them() {
        for (procedure, bytes, want) in samples() {
            assert_eq!(Args::parse(procedure, &bytes), Ok(want));
            for len in 0..bytes.len() {
                assert_eq!(
                    Args::parse(procedure, &bytes[..len]),
                    Err(Malformed::Truncated),
                    "{procedure:?} cut to {len}"
                );
            }
        }
    }

    #[test]
    fn hostile_words_anywhere_never_pass_as_lengths() {
        // Every word of every sample replaced by extreme values: an answer or an error, never a panic, and a slice can
        // never be longer than the bytes it came from.
        for (procedure, bytes, _) in samples() {
            for word in 0..bytes.len() / 4 {
                for value in [1u32, 2, 65, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
                    let mut hostile = bytes.clone();
                    hostile[word * 4..word * 4 + 4].copy_from_slice(&value.to_be_bytes());
                    if let Ok(Args::Lookup(op)) = Args::parse(procedure, &hostile) {
                        assert!(op.dir.len() <= HANDLE_MAX && op.name.len() <= hostile.len());
                    }
                }
            }
        }
    }

    #[test]
    fn handles_beyond_64_bytes_bad_enumerations_and_impossible_times_are_malformed() {
        let mut e = Encoder::default();
        e.opaque(&[1; 65]);
        assert_eq!(Args::parse(Procedure::GetAttr, &e.into_bytes()), Err(Malformed::TooLong));
        let mut e = Encoder::default();
        op(&mut e);
        e.u32(3);
        assert_eq!(Args::parse(Procedure::Create, &e.into_bytes()), Err(Malformed::BadArm));
        let mut e = Encoder::default();
        e.opaque(b"obj");
        empty_sattr(&mut e);
        e.u32(1).u32(5).u32(NANOS_PER_SEC);
        assert_eq!(Args::parse(Procedure::SetAttr, &e.into_bytes()), Err(Malformed::BadArm));
        let mut e = Encoder::default();
        op(&mut e);
        e.u32(1);
        let regular = e.into_bytes();
        let node = Args::parse(Procedure::MkNod, &regular);
        assert!(matches!(node, Ok(Args::MkNod { node: Node::BadType, .. })), "a type MKNOD does not make");
    }
}
