//! A namespace as a `BlockDevice`.

use super::controller::Controller;
use super::spec::{ControllerInfo, NamespaceInfo};
use crate::disk::{self, Disk};
use crate::hal::Hal;
use crate::request::Request;
use alloc::format;
use alloc::rc::Rc;
use moraine_platform::{BlockDevice, Buf, DeviceInfo, Fua, IoDone, IoError, IoFuture};

/// Largest range deallocated by one command, in bytes: bounded so that a disk does not vanish into one for seconds.
const DISCARD_MAX: u64 = 1 << 30;

/// One namespace.
pub(crate) struct Namespace {
    controller: Rc<Controller>,
    disk: Disk,
}

impl Namespace {
    pub(crate) fn new(
        controller: Rc<Controller>,
        id: u32,
        namespace: &NamespaceInfo,
        about: &ControllerInfo,
        transfer_max: u64,
        depth: u32,
    ) -> Namespace {
        let info = DeviceInfo {
            name: format!("{}n{id}", controller.name()),
            identity: format!("{} {}", about.model, about.serial),
            size: namespace.size,
            logical_block: 1 << namespace.block_shift,
            physical_block: namespace.physical_block,
            max_transfer: disk::reported_transfer_max(transfer_max),
            queue_depth: depth,
            volatile_cache: about.volatile_cache,
            fua: about.fua,
            discard: about.dataset_management,
            read_only: namespace.read_only,
        };
        let disk = Disk {
            info,
            target: id,
            block_shift: namespace.block_shift,
            transfer_max,
            discard_max: DISCARD_MAX,
            zeroes_max: about.write_zeroes.then_some(transfer_max),
        };
        Namespace { controller, disk }
    }
}

impl disk::Engine for Controller {
    fn submit(&self, request: Rc<Request>) {
        Controller::submit(self, request);
    }
    fn hal(&self) -> &dyn Hal {
        &**Controller::hal(self)
    }
}

impl BlockDevice for Namespace {
    fn info(&self) -> &DeviceInfo {
        &self.disk.info
    }
    fn read(&self, offset: u64, buf: Buf) -> IoFuture<IoDone> {
        self.disk.read(&*self.controller, offset, buf)
    }
    fn write(&self, offset: u64, buf: Buf, fua: Fua) -> IoFuture<IoDone> {
        self.disk.write(&*self.controller, offset, buf, fua)
    }
    fn flush(&self) -> IoFuture<Result<(), IoError>> {
        self.disk.flush(&*self.controller)
    }
    fn discard(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        self.disk.discard(&*self.controller, offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> IoFuture<Result<(), IoError>> {
        self.disk.write_zeroes(&*self.controller, offset, len)
    }
}
