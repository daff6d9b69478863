//! READDIR (§3.3.16) and READDIRPLUS (§3.3.17): as many entries as the client's limits hold, never one byte more.
//!
//! Cookies are the filesystem's and good for ever, so the verifier is constant and never looked at.

use super::{Hold, Nfs, refuse};
use crate::handle::HANDLE_LEN;
use crate::v3::status::Status;
use crate::v3::wire::{ATTR_LEN, Procedure, Results};
use crate::xdr::{Encoder, padding};
use moraine_fs::FsError;
use moraine_fs::vfs::{Attr, Caller, DirEntry, FsResult, ObjectId, Vfs, WithAttributes};

const VERIFIER: u64 = 0;
/// Entries asked of the filesystem at once: bounds what a listing holds in memory beside the reply.
const BATCH_MAX: usize = 256;
/// Status, the directory's attributes, the verifier, and behind the entries the end of the list and `eof`.
const FRAME_LEN: usize = 4 + 4 + ATTR_LEN + 8 + 4 + 4;
/// Of an entry without its name: a mark that it follows, fileid, length of the name, cookie.
const ENTRY_LEN: usize = 4 + 8 + 4 + 8;

/// What the client has room for, in bytes.
struct Limits {
    /// Of names, fileids and cookies; a first entry may exceed it, so that a listing always gets on.
    names: usize,
    /// Of the whole result.
    result: usize,
    attributes: WithAttributes,
}

impl Limits {
    /// Whose they are.
    fn procedure(&self) -> Procedure {
        match self.attributes {
            WithAttributes::No => Procedure::ReadDir,
            WithAttributes::Yes => Procedure::ReadDirPlus,
        }
    }
}

/// What was put into a result.
struct Listed {
    eof: bool,
    attr: Attr,
}

impl<V: Vfs> Nfs<V> {
    pub(super) async fn readdir(
        &self,
        caller: &Caller,
        dir: &[u8],
        cookie: u64,
        count: u32,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let limits =
            Limits { names: usize::MAX, result: self.result_max(count), attributes: WithAttributes::No };
        self.list(caller, dir, cookie, &limits, out).await
    }

    pub(super) async fn readdirplus(
        &self,
        caller: &Caller,
        dir: &[u8],
        cookie: u64,
        dircount: u32,
        maxcount: u32,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let limits = Limits {
            names: dircount as usize,
            result: self.result_max(maxcount),
            attributes: WithAttributes::Yes,
        };
        self.list(caller, dir, cookie, &limits, out).await
    }

    fn result_max(&self, asked: u32) -> usize {
        asked.min(self.transfer.listing_max) as usize
    }

    async fn list(
        &self,
        caller: &Caller,
        dir: &[u8],
        cookie: u64,
        limits: &Limits,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let dir = self.object(dir);
        // The attributes in front of the entries are those of the moment the last of them was read, so the entries are
        // written first, into a buffer of their own.
        let mut entries = Encoder::default();
        let listed = async { self.fill(caller, dir?, cookie, limits, &mut entries).await }.await;
        match listed {
            Ok(Some(listed)) => {
                out.status(Status::Ok).post_attr(Some(&listed.attr)).u64(VERIFIER);
                out.raw(&entries.into_bytes()).bool(false).bool(listed.eof);
            }
            Ok(None) => {
                out.status(Status::TooSmall).post_attr(self.attributes(dir).await.as_ref());
            }
            Err(error) => {
                refuse(limits.procedure(), error, out)?;
                out.post_attr(self.attributes(dir).await.as_ref());
            }
        }
        Ok(())
    }

    /// Writes entries after `cookie` until the directory or the room ends; `None` if not even one fits.
    async fn fill(
        &self,
        caller: &Caller,
        dir: ObjectId,
        mut cookie: u64,
        limits: &Limits,
        out: &mut Encoder,
    ) -> FsResult<Option<Listed>> {
        let mut names = 0;
        loop {
            let batch = (limits.result / ENTRY_LEN).clamp(1, BATCH_MAX);
            let listing = self.vfs.readdir(caller, dir, cookie, batch, limits.attributes).await?;
            if listing.entries.is_empty() && !listing.eof {
                // It could neither go on nor end: a client would ask for ever.
                return Err(FsError::Corrupt);
            }
            for entry in &listing.entries {
                let before = out.len();
                let name_len = 8 + 4 + entry.name.len() + padding(entry.name.len()) + 8;
                self.entry(dir, entry, limits.attributes, out);
                let over_names = names > 0 && names + name_len > limits.names;
                if FRAME_LEN + out.len() > limits.result || over_names {
                    out.truncate(before);
                    return Ok((before > 0).then_some(Listed { eof: false, attr: listing.attr }));
                }
                names += name_len;
                cookie = entry.cookie;
            }
            if listing.eof {
                let fits = FRAME_LEN + out.len() <= limits.result;
                return Ok(fits.then_some(Listed { eof: true, attr: listing.attr }));
            }
        }
    }

    fn entry(&self, dir: ObjectId, entry: &DirEntry, attributes: WithAttributes, out: &mut Encoder) {
        out.bool(true).u64(entry.object.inode).opaque(&entry.name).u64(entry.cookie);
        match attributes {
            WithAttributes::No => {}
            // At a boundary the entry's inode number belongs to another filesystem id: clients must LOOKUP it.
            WithAttributes::Yes if entry.object.subvolume != dir.subvolume => {
                out.post_attr(None).post_handle(None);
            }
            WithAttributes::Yes => {
                let handle: [u8; HANDLE_LEN] = self.handle(entry.object);
                out.post_attr(entry.attr.as_ref()).post_handle(Some(&handle));
            }
        }
    }
}
