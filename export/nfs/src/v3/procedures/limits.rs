//! FSSTAT (§3.3.18), FSINFO (§3.3.19), PATHCONF (§3.3.20): what there is and how much of it.

use super::{Hold, Nfs};
use crate::v3::status::Status;
use crate::v3::wire::{Procedure, Results};
use crate::xdr::Encoder;
use moraine_fs::vfs::{FILE_SIZE_MAX, LINK_MAX, NAME_MAX, Vfs};

/// The largest WRITE that is always accepted and the largest READ ever answered, in bytes: clients remember what was
/// advertised to them, also over a restart with less memory.
pub const TRANSFER_MAX: u32 = 1 << 20;
/// What is advertised when memory is short, in bytes.
const TRANSFER_SMALL: u32 = 256 << 10;
/// Memory from which the largest transfers are advertised, in bytes: what a machine of 512 MiB has left once it booted.
const AMPLE_MEMORY: u64 = 448 << 20;
/// The preferred size of a directory listing, in bytes.
const LISTING_PREFERRED: u32 = 64 << 10;
/// Transfers should be multiples of this many bytes.
const TRANSFER_MULTIPLE: u32 = 4096;

const FSF_LINK: u32 = 0x01;
const FSF_SYMLINK: u32 = 0x02;
const FSF_HOMOGENEOUS: u32 = 0x08;
const FSF_CANSETTIME: u32 = 0x10;

/// How much goes into one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The largest READ advertised, in bytes.
    pub read_advertised: u32,
    /// The largest WRITE advertised, in bytes.
    pub write_advertised: u32,
    /// The largest READ answered in full, in bytes.
    pub read_max: u32,
    /// The largest directory listing, in bytes.
    pub listing_max: u32,
}

impl Transfer {
    /// For a machine with so many bytes of memory.
    pub fn for_memory(bytes: u64) -> Transfer {
        let advertised = if bytes >= AMPLE_MEMORY { TRANSFER_MAX } else { TRANSFER_SMALL };
        Transfer {
            read_advertised: advertised,
            write_advertised: advertised,
            read_max: TRANSFER_MAX,
            listing_max: LISTING_PREFERRED,
        }
    }
}

impl<V: Vfs> Nfs<V> {
    pub(super) async fn fsstat(&self, object: &[u8], out: &mut Encoder) -> Result<(), Hold> {
        let object = self.object(object);
        let result = async {
            let attr = self.vfs.getattr(object?).await?;
            Ok((attr, self.vfs.statfs().await?))
        };
        match result.await {
            Ok((attr, stat)) => {
                out.status(Status::Ok).post_attr(Some(&attr));
                out.u64(stat.total).u64(stat.free).u64(stat.available);
                out.u64(stat.inodes_used.saturating_add(stat.inodes_free));
                out.u64(stat.inodes_free).u64(stat.inodes_free).u32(0);
                Ok(())
            }
            Err(error) => self.attr_failure(Procedure::FsStat, object, error, out).await,
        }
    }

    pub(super) async fn fsinfo(&self, object: &[u8], out: &mut Encoder) -> Result<(), Hold> {
        let object = self.object(object);
        let result = async { self.vfs.getattr(object?).await }.await;
        match result {
            Ok(attr) => {
                let Transfer { read_advertised: read, write_advertised: write, .. } = self.transfer;
                out.status(Status::Ok).post_attr(Some(&attr));
                out.u32(read).u32(read).u32(TRANSFER_MULTIPLE).u32(write).u32(write).u32(TRANSFER_MULTIPLE);
                out.u32(LISTING_PREFERRED).u64(FILE_SIZE_MAX).u32(0).u32(1);
                out.u32(FSF_LINK | FSF_SYMLINK | FSF_HOMOGENEOUS | FSF_CANSETTIME);
                Ok(())
            }
            Err(error) => self.attr_failure(Procedure::FsInfo, object, error, out).await,
        }
    }

    pub(super) async fn pathconf(&self, object: &[u8], out: &mut Encoder) -> Result<(), Hold> {
        let object = self.object(object);
        let result = async { self.vfs.getattr(object?).await }.await;
        match result {
            Ok(attr) => {
                out.status(Status::Ok).post_attr(Some(&attr)).u32(LINK_MAX).u32(NAME_MAX as u32);
                // Long names are refused, not cut; only root gives files away; names keep their case and differ by it.
                out.bool(true).bool(true).bool(false).bool(true);
                Ok(())
            }
            Err(error) => self.attr_failure(Procedure::PathConf, object, error, out).await,
        }
    }
}
