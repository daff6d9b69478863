//! File handles: what a client holds instead of an open file, for as long as the pool lives.
//!
//! | bytes | what |
//! |---|---|
//! | 0 | format version, 1 |
//! | 1..4 | zero |
//! | 4..20 | pool id |
//! | 20..24 | subvolume or snapshot, little-endian |
//! | 24..32 | inode number, little-endian; never reused, so no generation is needed |
//! | 32..40 | SipHash-2-4 of the bytes before, keyed by the pool's handle key, little-endian |
//!
//! A handle is bit for bit the same after a reboot or a rename. One that fails the check was not made by this pool
//! (`BADHANDLE`); one that passes but whose object is gone is stale (`STALE`), which only the filesystem can say.

use core::hash::Hasher;
use moraine_fs::FsError;
use moraine_fs::planted::{self, Fault};
use moraine_fs::vfs::{ObjectId, PoolInfo};
use siphasher::sip::SipHasher24;

/// Length of every handle made here, in bytes; the protocol allows 64.
pub const HANDLE_LEN: usize = 40;
/// The longest handle a client may send, in bytes (RFC 1813 §2.4).
pub const HANDLE_MAX: usize = 64;

const VERSION: u8 = 1;
const MAC_AT: usize = 32;

/// Makes and checks the handles of one pool.
#[derive(Clone)]
pub struct Handles {
    pool_id: [u8; 16],
    key: [u8; 16],
}

impl Handles {
    /// For the pool described by `info`.
    pub fn new(info: &PoolInfo) -> Handles {
        let mut key = info.handle_key;
        if planted::is(Fault::HandleOfOneBoot) {
            key[0] ^= info.boot_epoch as u8;
        }
        Handles { pool_id: info.pool_id, key }
    }

    /// The handle of `object`.
    pub fn encode(&self, object: ObjectId) -> [u8; HANDLE_LEN] {
        let mut bytes = [0; HANDLE_LEN];
        bytes[0] = VERSION;
        bytes[4..20].copy_from_slice(&self.pool_id);
        bytes[20..24].copy_from_slice(&object.subvolume.to_le_bytes());
        bytes[24..32].copy_from_slice(&object.inode.to_le_bytes());
        let mac = self.mac(&bytes);
        bytes[MAC_AT..].copy_from_slice(&mac);
        bytes
    }

    /// The object a handle names, or [`FsError::BadHandle`].
    pub fn decode(&self, handle: &[u8]) -> Result<ObjectId, FsError> {
        let bytes: &[u8; HANDLE_LEN] = handle.try_into().map_err(|_| FsError::BadHandle)?;
        let differs = self.mac(bytes).iter().zip(&bytes[MAC_AT..]).fold(0, |all, (a, b)| all | (a ^ b));
        if differs != 0 || bytes[0] != VERSION || bytes[4..20] != self.pool_id {
            return Err(FsError::BadHandle);
        }
        let subvolume = u32::from_le_bytes(bytes[20..24].try_into().expect("four bytes"));
        let inode = u64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"));
        Ok(ObjectId { subvolume, inode })
    }

    fn mac(&self, bytes: &[u8; HANDLE_LEN]) -> [u8; 8] {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&bytes[..MAC_AT]);
        hasher.finish().to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handles(pool: u8, key: u8) -> Handles {
        Handles::new(&PoolInfo { pool_id: [pool; 16], handle_key: [key; 16], boot_epoch: 3 })
    }

    #[test]
    fn v3_12_a_handle_is_the_same_after_a_reboot_and_says_what_it_names() {
        let object = ObjectId { subvolume: 1, inode: 0x1122_3344_5566_7788 };
        let made = handles(7, 9).encode(object);
        assert_eq!(made, handles(7, 9).encode(object));
        assert_eq!(handles(7, 9).decode(&made), Ok(object));
        assert_eq!(made[..4], [1, 0, 0, 0]);
        assert_eq!(made[24..32], object.inode.to_le_bytes());
    }

    #[test]
    fn v3_12_every_bit_flip_every_other_length_and_every_other_pool_is_a_bad_handle() {
        let made = handles(7, 9).encode(ObjectId { subvolume: 2, inode: 5 });
        for bit in 0..HANDLE_LEN * 8 {
            let mut forged = made;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(handles(7, 9).decode(&forged), Err(FsError::BadHandle), "bit {bit}");
        }
        for len in (0..HANDLE_LEN).chain([HANDLE_LEN + 1, 64]) {
            let mut other = [0; 64];
            other[..HANDLE_LEN].copy_from_slice(&made);
            assert_eq!(handles(7, 9).decode(&other[..len]), Err(FsError::BadHandle), "length {len}");
        }
        assert_eq!(handles(7, 8).decode(&made), Err(FsError::BadHandle), "another key");
        assert_eq!(handles(8, 9).decode(&made), Err(FsError::BadHandle), "another pool");
    }
}
