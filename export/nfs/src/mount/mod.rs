//! MOUNT, version 3 (RFC 1813 appendix I): from a path to the first file handle. The pool's root is exported, and with
//! it every directory below it.
//!
//! Paths are resolved as root, since the protocol has no place for a "permission denied" that depends on the user who
//! happens to mount; the handle gives nothing away that NFS itself would not check.

use crate::handle::Handles;
use crate::rpc::{AUTH_SYS, AcceptStat};
use crate::v3::procedures::Hold;
use crate::xdr::{Decoder, Encoder};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::net::IpAddr;
use moraine_fs::vfs::{Caller, Kind, ObjectId, Vfs};
use moraine_fs::{FsError, vfs::FsResult};

/// The longest path of a mount, in bytes (`MNTPATHLEN`).
pub const PATH_MAX: usize = 1024;
/// Mounts remembered for DUMP; the list is a courtesy and the oldest entry goes first.
pub const MOUNTS_MAX: usize = 256;

const NULL: u32 = 0;
const MNT: u32 = 1;
const DUMP: u32 = 2;
const UMNT: u32 = 3;
const UMNTALL: u32 = 4;
const EXPORT: u32 = 5;

/// `mountstat3` (appendix I §5.1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MountStatus {
    /// No error.
    Ok = 0,
    /// Not owner.
    Perm = 1,
    /// No such file or directory.
    NoEnt = 2,
    /// I/O error.
    Io = 5,
    /// Permission denied.
    Acces = 13,
    /// Not a directory.
    NotDir = 20,
    /// Invalid argument.
    Inval = 22,
    /// Path too long.
    NameTooLong = 63,
    /// Operation not supported.
    NotSupp = 10004,
    /// A failure on the server.
    ServerFault = 10006,
}

/// The status that tells `error` to somebody who mounts.
pub fn mount_status(error: FsError) -> MountStatus {
    use FsError::*;
    match error {
        NotFound | Stale => MountStatus::NoEnt,
        NotDir | IsDir | CrossDevice => MountStatus::NotDir,
        NotPermitted => MountStatus::Perm,
        AccessDenied | ReadOnly | BadName => MountStatus::Acces,
        NameTooLong => MountStatus::NameTooLong,
        Invalid | BadType | BadHandle | BadCookie | NotSync | Exists | NotEmpty | TooManyLinks | TooBig
        | NoXattr | XattrTooBig => MountStatus::Inval,
        Unsupported => MountStatus::NotSupp,
        Checksum | DeviceRead | DeviceWrite | Stopped | NoSpace | Quota => MountStatus::Io,
        Busy | NoMemory | ShuttingDown | Corrupt => MountStatus::ServerFault,
    }
}

/// Why a call has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is refused.
    Refused(AcceptStat),
    /// It is not answered, or not yet.
    Hold(Hold),
}

impl From<AcceptStat> for Failure {
    fn from(stat: AcceptStat) -> Failure {
        Failure::Refused(stat)
    }
}

/// The list of mounts: who mounted what. It lives in memory and means nothing to NFS itself.
#[derive(Default)]
pub struct Mounts {
    list: RefCell<VecDeque<(IpAddr, Vec<u8>)>>,
}

impl Mounts {
    fn add(&self, client: IpAddr, path: &[u8]) {
        let mut list = self.list.borrow_mut();
        list.retain(|(c, p)| (*c, &p[..]) != (client, path));
        if list.len() == MOUNTS_MAX {
            list.pop_front();
        }
        list.push_back((client, path.to_vec()));
    }
}

/// Runs one procedure for `client`. That there is no memory, or soon no server, is not told but waited out.
pub async fn call<V: Vfs>(
    procedure: u32,
    args: &[u8],
    client: IpAddr,
    vfs: &V,
    handles: &Handles,
    mounts: &Mounts,
    out: &mut Encoder,
) -> Result<(), Failure> {
    let path = || Decoder::new(args).opaque(PATH_MAX).map_err(|_| AcceptStat::GarbageArgs);
    match procedure {
        NULL => {}
        MNT => {
            let path = path()?;
            match resolve(vfs, path).await {
                Ok(object) => {
                    mounts.add(client, path);
                    out.u32(MountStatus::Ok as u32).opaque(&handles.encode(object));
                    out.u32(1).u32(AUTH_SYS);
                }
                Err(FsError::NoMemory) => return Err(Failure::Hold(Hold::Later)),
                Err(FsError::ShuttingDown) => return Err(Failure::Hold(Hold::Close)),
                Err(error) => {
                    out.u32(mount_status(error) as u32);
                }
            }
        }
        DUMP => {
            for (client, path) in mounts.list.borrow().iter() {
                out.bool(true).opaque(alloc::format!("{client}").as_bytes()).opaque(path);
            }
            out.bool(false);
        }
        UMNT => {
            let path = path()?;
            mounts.list.borrow_mut().retain(|(c, p)| (*c, &p[..]) != (client, path));
        }
        UMNTALL => mounts.list.borrow_mut().retain(|(c, _)| *c != client),
        EXPORT => {
            out.bool(true).opaque(b"/").bool(false).bool(false);
        }
        _ => return Err(AcceptStat::ProcedureUnavailable.into()),
    }
    Ok(())
}

/// The directory at `path`: empty, `/`, or any directory, with or without slashes around it. `.` and `..` are no names
/// of an export.
async fn resolve<V: Vfs>(vfs: &V, path: &[u8]) -> FsResult<ObjectId> {
    let mut at = vfs.root();
    let mut kind = Kind::Dir;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        if name == b"." || name == b".." {
            return Err(FsError::BadName);
        }
        let (object, attr) = vfs.lookup(&Caller::root(), at, name).await?;
        (at, kind) = (object, attr.kind);
    }
    if kind == Kind::Dir { Ok(at) } else { Err(FsError::NotDir) }
}
