//! What each procedure does: handles to objects, the filesystem's call, its result to bytes.
//!
//! | file | procedures |
//! |---|---|
//! | `attributes.rs` | GETATTR, SETATTR, ACCESS |
//! | `names.rs` | LOOKUP, CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR, RENAME, LINK |
//! | `content.rs` | READ, WRITE, COMMIT, READLINK |
//! | `listing.rs` | READDIR, READDIRPLUS |
//! | `limits.rs` | FSSTAT, FSINFO, PATHCONF |
//!
//! Three rules hold for all of them. A change is answered after [`Vfs::durable`] returned for it, but for unstable
//! writes. Attributes "before" are sent only as the filesystem gave them with the change, in one step. A failed call
//! still tells the attributes of the objects it names, where there are any.

mod attributes;
mod content;
mod limits;
mod listing;
mod names;

use super::status::{Answer, answer};
use super::wire::{Args, DirOp, Procedure, Results};
use crate::handle::{HANDLE_LEN, Handles};
use crate::xdr::Encoder;
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_fs::FsError;
use moraine_fs::planted::{self, Fault};
use moraine_fs::vfs::{Attr, Bytes, Caller, Change, FsResult, ObjectId, Seq, Vfs, WriteData};
use moraine_share::{Act, Mask, Share};

pub use limits::{TRANSFER_MAX, Transfer};

/// Why a procedure has no result to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// There was no memory: nothing happened, run it again later.
    Later,
    /// The appliance is going down: say nothing and close.
    Close,
}

/// The file data that follows a result; empty but for READ.
pub type Served = Result<Vec<Bytes>, Hold>;

/// NFSv3 over one filesystem. Holds no state of its own: whatever a client may compare is the filesystem's.
pub struct Nfs<V> {
    vfs: Rc<V>,
    handles: Handles,
    share: Rc<Share>,
    transfer: Transfer,
}

impl<V: Vfs> Nfs<V> {
    /// Serves `vfs`, minding who uses its objects by way of other protocols.
    pub fn new(vfs: Rc<V>, share: Rc<Share>, transfer: Transfer) -> Nfs<V> {
        let handles = Handles::new(vfs.pool());
        Nfs { vfs, handles, share, transfer }
    }

    /// The filesystem.
    pub fn vfs(&self) -> &V {
        &self.vfs
    }

    /// Its handles.
    pub fn handles(&self) -> &Handles {
        &self.handles
    }

    /// The largest transfers it offers.
    pub fn transfer(&self) -> &Transfer {
        &self.transfer
    }

    /// Runs one procedure for `caller` and writes its result; `data` belongs to a WRITE.
    pub async fn call(
        &self,
        caller: &Caller,
        args: &Args<'_>,
        data: Option<WriteData>,
        out: &mut Encoder,
    ) -> Served {
        match *args {
            Args::Null => {}
            Args::GetAttr { object } => self.getattr(object, out).await?,
            Args::SetAttr { object, set, guard } => self.setattr(caller, object, &set, guard, out).await?,
            Args::Lookup(at) => self.lookup(caller, at, out).await?,
            Args::Access { object, access } => self.access(caller, object, access, out).await?,
            Args::ReadLink { object } => self.readlink(object, out).await?,
            Args::Read { object, offset, count } => {
                return self.read(caller, object, offset, count, out).await;
            }
            Args::Write { object, offset, stable, .. } => {
                let data = data.expect("a WRITE is run with its data");
                self.write(caller, object, offset, stable, data, out).await?;
            }
            Args::Create { at, how, set } => self.create(caller, at, how, &set, out).await?,
            Args::MkDir { at, set } => self.mkdir(caller, at, &set, out).await?,
            Args::SymLink { at, set, target } => self.symlink(caller, at, &set, target, out).await?,
            Args::MkNod { at, node } => self.mknod(caller, at, node, out).await?,
            Args::Remove(at) => self.remove(caller, at, out).await?,
            Args::RmDir(at) => self.rmdir(caller, at, out).await?,
            Args::Rename { from, to } => self.rename(caller, from, to, out).await?,
            Args::Link { object, to } => self.link(caller, object, to, out).await?,
            Args::ReadDir { dir, cookie, count } => self.readdir(caller, dir, cookie, count, out).await?,
            Args::ReadDirPlus { dir, cookie, dircount, maxcount } => {
                self.readdirplus(caller, dir, cookie, dircount, maxcount, out).await?;
            }
            Args::FsStat { object } => self.fsstat(object, out).await?,
            Args::FsInfo { object } => self.fsinfo(object, out).await?,
            Args::PathConf { object } => self.pathconf(object, out).await?,
            Args::Commit { object, offset, count } => self.commit(object, offset, count, out).await?,
        }
        Ok(Vec::new())
    }

    fn object(&self, handle: &[u8]) -> FsResult<ObjectId> {
        self.handles.decode(handle)
    }

    fn handle(&self, object: ObjectId) -> [u8; HANDLE_LEN] {
        self.handles.encode(object)
    }

    /// The attributes an object has now, for results that may carry them.
    async fn attributes(&self, object: FsResult<ObjectId>) -> Option<Attr> {
        self.vfs.getattr(object.ok()?).await.ok()
    }

    /// Waits until a change is on media. After a change has happened there is no "later" for it any more, so running
    /// out of memory while waiting is the device's failure to the client.
    async fn on_media(&self, seq: Seq) -> FsResult<()> {
        if planted::is(Fault::NamesNotAwaited) {
            return Ok(());
        }
        self.vfs.durable(seq).await.map_err(|e| if e == FsError::NoMemory { FsError::DeviceWrite } else { e })
    }

    /// The change, once it is on media.
    async fn durably<T>(&self, change: FsResult<Change<T>>) -> FsResult<Change<T>> {
        let change = change?;
        self.on_media(change.seq).await?;
        Ok(change)
    }

    /// Declares what is about to be done to `object` for as long as the guard lives; `Busy` if another protocol's open
    /// denies it.
    fn act(&self, object: ObjectId, does: Mask) -> FsResult<Act> {
        Ok(self.share.act(object, does)?)
    }

    /// Declares that the object now called `name`, if there is one, is about to suffer `does`. The caller holds the name, so
    /// that it goes on being called so.
    async fn act_on_name(
        &self,
        caller: &Caller,
        dir: ObjectId,
        name: &[u8],
        does: Mask,
    ) -> FsResult<Option<Act>> {
        match self.vfs.lookup(caller, dir, name).await {
            Ok((object, _)) => self.act(object, does).map(Some),
            Err(FsError::NotFound) => Ok(None),
            // What is there and cannot be looked at now may be in use.
            Err(error) => Err(error),
        }
    }

    /// The result of a change to a directory or a file that carries nothing but wcc data.
    async fn change_result<T>(
        &self,
        procedure: Procedure,
        object: FsResult<ObjectId>,
        result: FsResult<Change<T>>,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        match result {
            Ok(change) => {
                out.status(super::Status::Ok).wcc_of(&change);
            }
            Err(error) => self.wcc_failure(procedure, object, error, out).await?,
        }
        Ok(())
    }

    /// The result of a failed change: the status, and what the object is now.
    async fn wcc_failure(
        &self,
        procedure: Procedure,
        object: FsResult<ObjectId>,
        error: FsError,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        refuse(procedure, error, out)?;
        out.wcc(None, self.attributes(object).await.as_ref());
        Ok(())
    }

    /// The result of a failed call that tells what the object is now.
    async fn attr_failure(
        &self,
        procedure: Procedure,
        object: FsResult<ObjectId>,
        error: FsError,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        refuse(procedure, error, out)?;
        out.post_attr(self.attributes(object).await.as_ref());
        Ok(())
    }

    fn dir(&self, at: DirOp<'_>) -> FsResult<ObjectId> {
        self.object(at.dir)
    }
}

/// Writes the status by which `procedure` tells `error`, or says that there is none to write.
fn refuse(procedure: Procedure, error: FsError, out: &mut Encoder) -> Result<(), Hold> {
    match answer(procedure, error) {
        Answer::Status(status) => {
            out.status(status);
            Ok(())
        }
        Answer::Later => Err(Hold::Later),
        Answer::Close => Err(Hold::Close),
    }
}
