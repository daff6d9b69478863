//! GETATTR (§3.3.1), SETATTR (§3.3.2), ACCESS (§3.3.4).

use super::{Hold, Nfs, refuse};
use crate::v3::status::Status;
use crate::v3::wire::{Procedure, Results};
use crate::xdr::Encoder;
use moraine_fs::access::{EXEC, READ, WRITE, granted};
use moraine_fs::vfs::{Attr, Caller, Kind, SetAttr, Vfs};
use moraine_platform::Timestamp;
use moraine_share::Mask;

const ACCESS_READ: u32 = 0x01;
const ACCESS_LOOKUP: u32 = 0x02;
const ACCESS_MODIFY: u32 = 0x04;
const ACCESS_EXTEND: u32 = 0x08;
const ACCESS_DELETE: u32 = 0x10;
const ACCESS_EXECUTE: u32 = 0x20;

/// What ACCESS answers for each right: the plain truth of the mode bits. That the owner may read and write whatever
/// the mode says is a rule for READ and WRITE alone.
const FILE_RIGHTS: [(u32, u32); 4] =
    [(ACCESS_READ, READ), (ACCESS_MODIFY, WRITE), (ACCESS_EXTEND, WRITE), (ACCESS_EXECUTE, EXEC)];
const DIR_RIGHTS: [(u32, u32); 5] = [
    (ACCESS_READ, READ),
    (ACCESS_LOOKUP, EXEC),
    (ACCESS_MODIFY, WRITE | EXEC),
    (ACCESS_EXTEND, WRITE | EXEC),
    (ACCESS_DELETE, WRITE | EXEC),
];

impl<V: Vfs> Nfs<V> {
    pub(super) async fn getattr(&self, object: &[u8], out: &mut Encoder) -> Result<(), Hold> {
        let attr = match self.object(object) {
            Ok(object) => self.vfs.getattr(object).await,
            Err(error) => Err(error),
        };
        match attr {
            Ok(attr) => {
                out.status(Status::Ok).attr(&attr);
                Ok(())
            }
            Err(error) => refuse(Procedure::GetAttr, error, out),
        }
    }

    pub(super) async fn setattr(
        &self,
        caller: &Caller,
        object: &[u8],
        set: &SetAttr,
        guard: Option<Timestamp>,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let object = self.object(object);
        let result = async {
            let object = object?;
            let _act = set.size.map(|_| self.act(object, Mask::RESIZE)).transpose()?;
            self.durably(self.vfs.setattr(caller, object, set, guard).await).await
        };
        let result = result.await;
        self.change_result(Procedure::SetAttr, object, result, out).await
    }

    pub(super) async fn access(
        &self,
        caller: &Caller,
        object: &[u8],
        want: u32,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let object = self.object(object);
        let attr = match object {
            Ok(object) => self.vfs.getattr(object).await,
            Err(error) => Err(error),
        };
        match attr {
            Ok(attr) => {
                out.status(Status::Ok).post_attr(Some(&attr)).u32(want & rights(&attr, caller));
                Ok(())
            }
            Err(error) => self.attr_failure(Procedure::Access, object, error, out).await,
        }
    }
}

/// Every right `caller` has.
fn rights(attr: &Attr, caller: &Caller) -> u32 {
    let table: &[(u32, u32)] = if attr.kind == Kind::Dir { &DIR_RIGHTS } else { &FILE_RIGHTS };
    table
        .iter()
        .filter(|(_, needs)| granted(attr, caller, *needs) == *needs)
        .fold(0, |rights, (right, _)| rights | right)
}
