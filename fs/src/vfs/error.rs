//! The one error type of the filesystem's façade.

use core::fmt;

macro_rules! fs_errors {
    ($($name:ident = $text:literal, $doc:literal;)*) => {
        /// Why a call failed. Each protocol maps every variant, without a catch-all, to its own status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FsError { $(#[doc = $doc] $name,)* }

        impl FsError {
            /// Every variant, for table tests.
            pub const ALL: &[FsError] = &[$(FsError::$name,)*];
        }

        impl fmt::Display for FsError {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(FsError::$name => $text,)* })
            }
        }
    };
}

fs_errors! {
    NotFound = "no such file or directory", "No entry of that name.";
    NotDir = "not a directory", "A directory was needed.";
    IsDir = "is a directory", "Anything but a directory was needed.";
    Exists = "file exists", "The name is taken.";
    NotEmpty = "directory not empty", "The directory still has entries.";
    CrossDevice = "crosses a subvolume", "Link or rename across subvolumes.";
    TooManyLinks = "too many links", "The link count is at its limit.";
    NotPermitted = "operation not permitted", "Only the owner (or root) may do this.";
    AccessDenied = "permission denied", "The mode bits deny it.";
    ReadOnly = "read-only", "Snapshot, read-only export or read-only pool.";
    NoSpace = "no space left", "The pool is full; deleting always works.";
    Quota = "quota exceeded", "A quota is reached.";
    TooBig = "file too large", "Offset or size beyond the largest file.";
    NameTooLong = "name too long", "A name has at most 255 bytes.";
    BadName = "bad name", "Empty, with a slash or a NUL byte, or `.`/`..` where these cannot be.";
    Stale = "stale handle", "The object is gone.";
    BadHandle = "bad handle", "Not a handle of this pool.";
    BadCookie = "bad cookie", "Not a readdir position.";
    Invalid = "invalid argument", "The call makes no sense for this object.";
    Unsupported = "not supported", "The filesystem does not do this.";
    BadType = "bad file type", "The type cannot be made.";
    NoXattr = "no such attribute", "No extended attribute of that name.";
    XattrTooBig = "attribute too big", "Name or value beyond its limit.";
    NotSync = "changed meanwhile", "The guard of a setattr did not match.";
    Checksum = "checksum mismatch, no good copy", "Stored bytes are damaged and no good copy is left.";
    DeviceRead = "device read failed", "A device could not read.";
    DeviceWrite = "device write failed", "A device could not write or flush.";
    Busy = "busy", "In conflict with another user of the object; try again.";
    NoMemory = "out of memory", "No memory within the budget; the caller waits and tries again.";
    Stopped = "pool stopped after a failure", "The pool went read-only after an I/O failure.";
    ShuttingDown = "shutting down", "The appliance is going down.";
    Corrupt = "filesystem is inconsistent", "A broken invariant was found; run fsck.";
}

impl core::error::Error for FsError {}
