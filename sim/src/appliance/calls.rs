//! NFSv3 as a client speaks it: what is asked, and what the answers say.

use super::promises::Token;
use super::rpc::{Mount, Reply};
use super::scene::Scene;
use super::times::{Times, When};
use moraine_nfs::v3::wire::Procedure;
use moraine_nfs::xdr::{Decoder, Encoder, Malformed};
use std::rc::Rc;
use std::time::Duration;

pub(super) const OK: u32 = 0;
pub(super) const NOENT: u32 = 2;
const IO: u32 = 5;
pub(super) const EXIST: u32 = 17;
pub(super) const NOTEMPTY: u32 = 66;
pub(super) const STALE: u32 = 70;
const JUKEBOX: u32 = 10008;
const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;
const MNT: u32 = 1;
const JUKEBOX_PAUSE: Duration = Duration::from_secs(1);
const HANDLE_MAX: usize = 64;
const TARGET_MAX: usize = 4096;
const READ_MAX: usize = 1 << 20;
/// Room asked for a listing: little, so that it takes several calls.
const LISTING: u32 = 1200;

/// What names an object.
pub(super) type Handle = Vec<u8>;

/// The part of an object's attributes that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attr {
    pub(super) kind: u32,
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) size: u64,
    pub(super) fileid: u64,
    /// When it was changed last, in the answer's own form, which compares as it should.
    pub(super) ctime: u64,
}

/// The answer to a call, and what is known about when it was given.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) status: u32,
    /// What follows the status.
    body: Vec<u8>,
    /// The mark before the call was first sent.
    pub(super) since: u64,
    /// When the server handed the answer over.
    pub(super) mark: u64,
    /// In which boot.
    pub(super) boot: u64,
    /// The call may have run in an earlier boot, or after an answer that said that it failed.
    pub(super) repeated: bool,
}

/// An entry of a listing.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) fileid: u64,
    /// With READDIRPLUS.
    pub(super) attr: Option<Attr>,
    pub(super) handle: Option<Handle>,
}

impl Told {
    fn decode<T>(&self, read: impl FnOnce(&mut Decoder<'_>) -> Result<T, Malformed>) -> Result<T, String> {
        read(&mut Decoder::new(&self.body)).map_err(|why| format!("an answer that cannot be read: {why}"))
    }

    /// Whether a change was done: by this call, or, as a call that may have run before tells with `otherwise`, earlier.
    pub(super) fn done(&self, otherwise: u32) -> Result<bool, String> {
        match self.status {
            OK => Ok(true),
            status if status == otherwise && self.repeated => Ok(false),
            status => Err(format!("answered {status}{}", if self.repeated { ", repeated" } else { "" })),
        }
    }

    /// The status must be this one.
    pub(super) fn must(&self, status: u32) -> Result<(), String> {
        match self.status == status {
            true => Ok(()),
            false => Err(format!("answered {}, not {status}", self.status)),
        }
    }

    /// `post_op_fh3` and `post_op_attr` of what was made.
    pub(super) fn made(&self) -> Result<(Handle, Attr), String> {
        let made = self.decode(|d| {
            let handle = d.optional(|d| d.opaque(HANDLE_MAX))?.map(<[u8]>::to_vec);
            Ok((handle, d.optional(attr)?))
        })?;
        match made {
            (Some(handle), Some(attr)) => Ok((handle, attr)),
            _ => Err(String::from("made, without a handle or attributes")),
        }
    }
}

fn attr(d: &mut Decoder<'_>) -> Result<Attr, Malformed> {
    let (kind, mode, nlink) = (d.u32()?, d.u32()?, d.u32()?);
    let (_uid, _gid, size, _used, _rdev, _fsid) =
        (d.u32()?, d.u32()?, d.u64()?, d.u64()?, d.u64()?, d.u64()?);
    let fileid = d.u64()?;
    let (_atime, _mtime, ctime) = (d.u64()?, d.u64()?, d.u64()?);
    Ok(Attr { kind, mode, nlink, size, fileid, ctime })
}

fn wcc(d: &mut Decoder<'_>) -> Result<Option<Attr>, Malformed> {
    d.optional(|d| Ok((d.u64()?, d.u64()?, d.u64()?)))?;
    d.optional(attr)
}

/// How a file is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Create {
    Unchecked,
    Guarded,
    Exclusive([u8; 8]),
}

/// The answer to a WRITE that was done.
pub(super) struct Written {
    pub(super) count: u32,
    pub(super) committed: u32,
    pub(super) verifier: u64,
}

/// NFSv3 over a hard mount.
pub(super) struct Nfs {
    pub(super) mount: Rc<Mount>,
    pub(super) scene: Rc<Scene>,
    times: Times,
}

impl Nfs {
    pub(super) fn new(mount: Rc<Mount>, scene: Rc<Scene>) -> Nfs {
        Nfs { mount, scene, times: Times::default() }
    }

    /// Looks at the change time of what an answer tells of.
    fn look(&self, told: &Told, attr: Option<Attr>, changed: bool) -> Result<(), String> {
        let when = When { since: told.since, received: self.scene.last_mark(), boot: told.boot };
        attr.map_or(Ok(()), |attr| self.times.look(attr.fileid, attr.ctime, when, changed))
    }

    /// Asks until there is an answer that says more than "not now" or "it failed".
    async fn ask(&self, procedure: Procedure, args: Encoder) -> Result<Told, String> {
        let (since, args) = (self.scene.mark(), args.into_bytes());
        let (mut first_boot, mut failed_in) = (self.scene.boot(), None);
        loop {
            let reply = self.mount.call(NFS, procedure as u32, &args).await?;
            let (status, body) = reply.result.split_first_chunk().ok_or("a result without a status")?;
            let (status, boot) = (u32::from_be_bytes(*status), reply.boot);
            match status {
                IO if self.scene.may_fail(boot) => {
                    failed_in = Some(boot);
                    self.scene.count(|seen| seen.failures += 1);
                    self.scene.after_failure(boot).await;
                }
                JUKEBOX => {
                    self.scene.count(|seen| seen.not_now += 1);
                    self.scene.clock.sleep(JUKEBOX_PAUSE).await;
                }
                // It was done before, said the answer that said that it failed: only another boot can tell.
                status if status != OK && failed_in == Some(boot) => self.scene.another_boot(boot).await,
                _ => {
                    let repeated = failed_in.is_some() || first_boot != boot;
                    self.scene.count(|seen| seen.repeated_over_boots += u64::from(first_boot != boot));
                    let body = body.to_vec();
                    return Ok(Told { status, body, since, mark: reply.mark, boot, repeated });
                }
            }
            first_boot = first_boot.min(boot);
        }
    }

    /// Notes what the answer promised.
    pub(super) fn promise(&self, told: &Told, token: Token, what: &'static str) {
        self.scene.promise(vec![token], told.since, told.mark, told.boot, what);
    }

    /// The root's handle.
    pub(super) async fn root(&self) -> Result<Handle, String> {
        let mut e = Encoder::default();
        e.opaque(b"/");
        let Reply { result, .. } = self.mount.call(MOUNT, MNT, &e.into_bytes()).await?;
        let mut d = Decoder::new(&result);
        match (d.u32(), d.opaque(HANDLE_MAX)) {
            (Ok(OK), Ok(handle)) => Ok(handle.to_vec()),
            other => Err(format!("MNT answered {other:?}")),
        }
    }

    pub(super) async fn getattr(&self, handle: &[u8]) -> Result<(Told, Option<Attr>), String> {
        let mut e = Encoder::default();
        e.opaque(handle);
        let told = self.ask(Procedure::GetAttr, e).await?;
        let attr = (told.status == OK).then(|| told.decode(attr)).transpose()?;
        self.look(&told, attr, false)?;
        Ok((told, attr))
    }

    pub(super) async fn setattr(
        &self,
        handle: &[u8],
        mode: Option<u32>,
        size: Option<u64>,
    ) -> Result<Told, String> {
        let mut e = Encoder::default();
        e.opaque(handle);
        sattr(&mut e, mode, size);
        e.bool(false);
        let told = self.ask(Procedure::SetAttr, e).await?;
        self.look(&told, told.decode(wcc)?, told.status == OK)?;
        Ok(told)
    }

    pub(super) async fn lookup(
        &self,
        dir: &[u8],
        name: &[u8],
    ) -> Result<(Told, Option<(Handle, Attr)>), String> {
        let mut e = Encoder::default();
        e.opaque(dir).opaque(name);
        let told = self.ask(Procedure::Lookup, e).await?;
        if told.status != OK {
            return Ok((told, None));
        }
        let (handle, attr) = told.decode(|d| Ok((d.opaque(HANDLE_MAX)?.to_vec(), d.optional(attr)?)))?;
        self.look(&told, attr, false)?;
        Ok((told, Some((handle, attr.ok_or("LOOKUP tells no attributes")?))))
    }

    pub(super) async fn readlink(&self, handle: &[u8]) -> Result<Vec<u8>, String> {
        let mut e = Encoder::default();
        e.opaque(handle);
        let told = self.ask(Procedure::ReadLink, e).await?;
        told.must(OK)?;
        told.decode(|d| {
            d.optional(attr)?;
            Ok(d.opaque(TARGET_MAX)?.to_vec())
        })
    }

    /// Up to so many bytes, whether they end the file, and its attributes.
    pub(super) async fn read(
        &self,
        handle: &[u8],
        offset: u64,
        count: u32,
    ) -> Result<(Told, Vec<u8>, bool, Attr), String> {
        let mut e = Encoder::default();
        e.opaque(handle).u64(offset).u32(count);
        let told = self.ask(Procedure::Read, e).await?;
        told.must(OK)?;
        let (attr, bytes, eof) = told.decode(|d| {
            let attr = d.optional(attr)?;
            let (_count, eof) = (d.u32()?, d.bool()?);
            Ok((attr, d.opaque(READ_MAX)?.to_vec(), eof))
        })?;
        let attr = attr.ok_or("READ tells no attributes")?;
        self.look(&told, Some(attr), false)?;
        match bytes.is_empty() && !eof {
            true => Err(String::from("READ gave no bytes and no end")),
            false => Ok((told, bytes, eof, attr)),
        }
    }

    pub(super) async fn write(
        &self,
        handle: &[u8],
        offset: u64,
        stable: u32,
        data: &[u8],
    ) -> Result<(Told, Written), String> {
        let mut e = Encoder::default();
        e.opaque(handle).u64(offset).u32(data.len() as u32).u32(stable).opaque(data);
        let told = self.ask(Procedure::Write, e).await?;
        told.must(OK)?;
        let (attr, written) = told.decode(|d| {
            let attr = wcc(d)?;
            Ok((attr, Written { count: d.u32()?, committed: d.u32()?, verifier: d.u64()? }))
        })?;
        self.look(&told, attr, true)?;
        if written.committed < stable {
            return Err(format!("a WRITE of stability {stable} was committed as {}", written.committed));
        }
        self.scene.verifier(written.verifier, told.boot)?;
        Ok((told, written))
    }

    /// The verifier.
    pub(super) async fn commit(&self, handle: &[u8], offset: u64, count: u32) -> Result<(Told, u64), String> {
        let mut e = Encoder::default();
        e.opaque(handle).u64(offset).u32(count);
        let told = self.ask(Procedure::Commit, e).await?;
        told.must(OK)?;
        let (attr, verifier) = told.decode(|d| Ok((wcc(d)?, d.u64()?)))?;
        self.look(&told, attr, false)?;
        self.scene.verifier(verifier, told.boot)?;
        Ok((told, verifier))
    }

    pub(super) async fn create(
        &self,
        dir: &[u8],
        name: &[u8],
        how: Create,
        mode: u32,
    ) -> Result<Told, String> {
        let mut e = Encoder::default();
        e.opaque(dir).opaque(name);
        match how {
            Create::Unchecked => sattr(e.u32(0), Some(mode), None),
            Create::Guarded => sattr(e.u32(1), Some(mode), None),
            Create::Exclusive(verifier) => {
                e.u32(2).raw(&verifier);
            }
        }
        self.ask(Procedure::Create, e).await
    }

    pub(super) async fn mkdir(&self, dir: &[u8], name: &[u8]) -> Result<Told, String> {
        let mut e = Encoder::default();
        e.opaque(dir).opaque(name);
        sattr(&mut e, Some(0o755), None);
        self.look_at_parent(self.ask(Procedure::MkDir, e).await?)
    }

    pub(super) async fn symlink(&self, dir: &[u8], name: &[u8], target: &[u8]) -> Result<Told, String> {
        let mut e = Encoder::default();
        e.opaque(dir).opaque(name);
        sattr(&mut e, None, None);
        e.opaque(target);
        self.look_at_parent(self.ask(Procedure::SymLink, e).await?)
    }

    /// Looks at the change time of the directory in which something was made.
    fn look_at_parent(&self, told: Told) -> Result<Told, String> {
        if told.status == OK {
            let parent = told.decode(|d| {
                d.optional(|d| d.opaque(HANDLE_MAX))?;
                d.optional(attr)?;
                wcc(d)
            })?;
            self.look(&told, parent, true)?;
        }
        Ok(told)
    }

    /// REMOVE or RMDIR.
    pub(super) async fn remove(&self, what: Procedure, dir: &[u8], name: &[u8]) -> Result<Told, String> {
        let mut e = Encoder::default();
        e.opaque(dir).opaque(name);
        let told = self.ask(what, e).await?;
        self.look(&told, told.decode(wcc)?, told.status == OK)?;
        Ok(told)
    }

    pub(super) async fn rename(&self, from: (&[u8], &[u8]), to: (&[u8], &[u8])) -> Result<Told, String> {
        let mut e = Encoder::default();
        e.opaque(from.0).opaque(from.1).opaque(to.0).opaque(to.1);
        let told = self.ask(Procedure::Rename, e).await?;
        let (from, to) = told.decode(|d| Ok((wcc(d)?, wcc(d)?)))?;
        // Nothing happens where both names are one object's.
        self.look(&told, from, false)?;
        self.look(&told, to, false)?;
        Ok(told)
    }

    pub(super) async fn link(&self, handle: &[u8], dir: &[u8], name: &[u8]) -> Result<Told, String> {
        let mut e = Encoder::default();
        e.opaque(handle).opaque(dir).opaque(name);
        let told = self.ask(Procedure::Link, e).await?;
        let (file, dir) = told.decode(|d| Ok((d.optional(attr)?, wcc(d)?)))?;
        self.look(&told, file, told.status == OK)?;
        self.look(&told, dir, told.status == OK)?;
        Ok(told)
    }

    /// All entries but `.` and `..`.
    pub(super) async fn list(&self, dir: &[u8], plus: bool) -> Result<Vec<Entry>, String> {
        let (mut entries, mut cookie) = (Vec::new(), 0);
        loop {
            let mut e = Encoder::default();
            e.opaque(dir).u64(cookie).u64(0);
            let told = match plus {
                true => self.ask(Procedure::ReadDirPlus, take(e, &[LISTING, LISTING])).await?,
                false => self.ask(Procedure::ReadDir, take(e, &[LISTING])).await?,
            };
            told.must(OK)?;
            let eof = told.decode(|d| {
                d.optional(attr)?;
                d.u64()?;
                while d.bool()? {
                    let (fileid, name) = (d.u64()?, d.opaque(TARGET_MAX)?.to_vec());
                    cookie = d.u64()?;
                    let (mut attrs, mut handle) = (None, None);
                    if plus {
                        attrs = d.optional(attr)?;
                        handle = d.optional(|d| d.opaque(HANDLE_MAX))?.map(<[u8]>::to_vec);
                    }
                    if name != b"." && name != b".." {
                        entries.push(Entry { name, fileid, attr: attrs, handle });
                    }
                }
                d.bool()
            })?;
            if eof {
                return Ok(entries);
            }
        }
    }
}

fn take(mut e: Encoder, words: &[u32]) -> Encoder {
    for word in words {
        e.u32(*word);
    }
    e
}

/// `sattr3` with a mode and a size.
fn sattr(e: &mut Encoder, mode: Option<u32>, size: Option<u64>) {
    match mode {
        Some(mode) => e.bool(true).u32(mode),
        None => e.bool(false),
    };
    e.bool(false).bool(false);
    match size {
        Some(size) => e.bool(true).u64(size),
        None => e.bool(false),
    };
    e.u32(0).u32(0);
}
