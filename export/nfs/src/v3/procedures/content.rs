//! READ (§3.3.6), WRITE (§3.3.7), COMMIT (§3.3.21), READLINK (§3.3.5).

use super::{Hold, Nfs, Served};
use crate::v3::status::Status;
use crate::v3::wire::{Procedure, Results};
use crate::xdr::Encoder;
use moraine_fs::FsError;
use moraine_fs::planted::{self, Fault};
use moraine_fs::vfs::{
    Caller, Change, FILE_SIZE_MAX, FsResult, ObjectId, ReadData, Stability, Vfs, WriteData, Written,
};
use moraine_share::Mask;

impl<V: Vfs> Nfs<V> {
    /// Bytes of the file, as slices that follow the result.
    pub(super) async fn read(
        &self,
        caller: &Caller,
        object: &[u8],
        offset: u64,
        count: u32,
        out: &mut Encoder,
    ) -> Served {
        let object = self.object(object);
        let result: FsResult<ReadData> = async {
            let count = count.min(self.transfer.read_max);
            let data = self.vfs.read(caller, object?, offset, count).await?;
            // A client told "no bytes, and not the end" asks again for ever.
            if count > 0 && data.is_empty() && !data.eof {
                return Err(FsError::Corrupt);
            }
            Ok(data)
        }
        .await;
        match result {
            Ok(data) => {
                let len = u32::try_from(data.len()).expect("a read returns at most what was asked");
                out.status(Status::Ok).post_attr(Some(&data.attr));
                out.u32(len).bool(data.eof).u32(len);
                Ok(data.parts)
            }
            Err(error) => {
                self.attr_failure(Procedure::Read, object, error, out).await?;
                Ok(Default::default())
            }
        }
    }

    pub(super) async fn write(
        &self,
        caller: &Caller,
        object: &[u8],
        offset: u64,
        stable: Stability,
        data: WriteData,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let object = self.object(object);
        let result = async { self.write_to(caller, object?, offset, stable, data).await }.await;
        match result {
            Ok(change) => {
                out.status(Status::Ok).wcc_of(&change);
                out.u32(change.value.count).u32(committed(change.value.stability));
                out.u64(change.value.verifier);
                Ok(())
            }
            Err(error) => self.wcc_failure(Procedure::Write, object, error, out).await,
        }
    }

    async fn write_to(
        &self,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        stable: Stability,
        data: WriteData,
    ) -> FsResult<Change<Written>> {
        let len = data.len;
        if offset.checked_add(len as u64).is_none_or(|end| end > FILE_SIZE_MAX) {
            return Err(FsError::TooBig);
        }
        let _act = self.act(object, Mask::WRITE)?;
        if planted::is(Fault::StableForgotten) {
            let mut change = self.vfs.write(caller, object, offset, data, Stability::Unstable).await?;
            change.value.stability = stable;
            return Ok(change);
        }
        let change = self.vfs.write(caller, object, offset, data, stable).await?;
        // A client told "no bytes written" writes them again for ever.
        if len > 0 && change.value.count == 0 {
            return Err(FsError::DeviceWrite);
        }
        if change.value.stability > Stability::Unstable {
            self.on_media(change.seq).await?;
        }
        Ok(change)
    }

    pub(super) async fn commit(
        &self,
        object: &[u8],
        offset: u64,
        count: u32,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let object = self.object(object);
        if planted::is(Fault::CommitIgnored) {
            out.status(Status::Ok)
                .wcc(None, self.attributes(object).await.as_ref())
                .u64(self.vfs.write_verifier());
            return Ok(());
        }
        let result = async { self.durably(self.vfs.commit(object?, offset, count.into()).await).await }.await;
        match result {
            Ok(change) => {
                out.status(Status::Ok).wcc_of(&change).u64(change.value.verifier);
                Ok(())
            }
            Err(error) => self.wcc_failure(Procedure::Commit, object, error, out).await,
        }
    }

    pub(super) async fn readlink(&self, object: &[u8], out: &mut Encoder) -> Result<(), Hold> {
        let object = self.object(object);
        let result = async { self.vfs.readlink(object?).await }.await;
        match result {
            Ok((target, attr)) => {
                out.status(Status::Ok).post_attr(Some(&attr)).opaque(&target);
                Ok(())
            }
            Err(error) => self.attr_failure(Procedure::ReadLink, object, error, out).await,
        }
    }
}

/// `stable_how` on the wire.
fn committed(stability: Stability) -> u32 {
    match stability {
        Stability::Unstable => 0,
        Stability::DataSync => 1,
        Stability::FileSync => 2,
    }
}
