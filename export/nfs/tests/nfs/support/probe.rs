//! A filesystem that can be watched, held and made to fail: the model behind a gate at every call.

use moraine_fs::vfs::*;
use moraine_model::Model;
use moraine_model::double::Gate;
use std::cell::Cell;
use std::ops::Deref;

/// The model with a gate in front.
pub struct Probe {
    pub model: Model,
    gate: Gate,
    /// WRITE takes no bytes and says so.
    pub writes_nothing: Cell<bool>,
    /// READ returns no bytes and says that it is not the end.
    pub reads_nothing: Cell<bool>,
    /// Objects that READDIR shows as roots of another subvolume.
    pub boundary: Cell<Option<u64>>,
    /// Largest number of entries a listing returns.
    pub listing_limit: Cell<usize>,
}

impl Probe {
    pub fn new(model: Model) -> Probe {
        Probe {
            model,
            gate: Gate::default(),
            writes_nothing: Cell::new(false),
            reads_nothing: Cell::new(false),
            boundary: Cell::new(None),
            listing_limit: Cell::new(usize::MAX),
        }
    }
}

impl Deref for Probe {
    type Target = Gate;
    fn deref(&self) -> &Gate {
        &self.gate
    }
}

impl Vfs for Probe {
    moraine_model::forward!(model; pool root write_verifier punch segments getxattr setxattr removexattr listxattr);
    moraine_model::forward!(model, gate; durable getattr setattr lookup readlink commit create make remove rmdir);
    moraine_model::forward!(model, gate; rename link statfs);

    async fn read(&self, caller: &Caller, object: ObjectId, offset: u64, len: u32) -> FsResult<ReadData> {
        self.gate.pass("read").await?;
        let mut data = self.model.read(caller, object, offset, len).await?;
        if self.reads_nothing.get() {
            (data.parts, data.eof) = (Vec::new(), false);
        }
        Ok(data)
    }

    async fn write(
        &self,
        caller: &Caller,
        object: ObjectId,
        offset: u64,
        data: WriteData,
        stability: Stability,
    ) -> FsResult<Change<Written>> {
        assert!(data.len == 0 || data.skip as u64 == offset % 4096, "data lies where the file wants it");
        self.gate.pass("write").await?;
        let mut change = self.model.write(caller, object, offset, data, stability).await?;
        if self.writes_nothing.get() {
            change.value.count = 0;
        }
        Ok(change)
    }

    async fn readdir(
        &self,
        caller: &Caller,
        dir: ObjectId,
        cookie: u64,
        limit: usize,
        attributes: WithAttributes,
    ) -> FsResult<Listing> {
        self.gate.pass("readdir").await?;
        let limit = limit.min(self.listing_limit.get());
        let mut listing = self.model.readdir(caller, dir, cookie, limit, attributes).await?;
        for entry in listing.entries.iter_mut().filter(|e| self.boundary.get() == Some(e.object.inode)) {
            entry.object.subvolume += 1;
        }
        Ok(listing)
    }
}
