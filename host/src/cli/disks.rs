//! Disks on a command line: opened, locked and named.

use super::Failure;
use crate::os::{FileDisk, OpenMode};
use moraine_platform::BlockDevice;
use std::path::PathBuf;
use std::rc::Rc;

/// Opens every disk; the first that cannot be opened ends it.
pub(super) fn open_all(paths: &[PathBuf], mode: OpenMode) -> Result<Vec<Rc<dyn BlockDevice>>, Failure> {
    let mut disks: Vec<Rc<dyn BlockDevice>> = Vec::new();
    for path in paths {
        disks.push(Rc::new(FileDisk::open(path, mode)?));
    }
    Ok(disks)
}
