//! LOOKUP (§3.3.3) and every procedure that makes or takes away a name (§3.3.8 to §3.3.15).

use super::{Hold, Nfs};
use crate::v3::status::Status;
use crate::v3::wire::{DirOp, Node, Procedure, Results};
use crate::xdr::Encoder;
use moraine_fs::FsError;
use moraine_fs::vfs::{Attr, Caller, Change, CreateMode, FsResult, NewNode, ObjectId, SetAttr, Vfs};
use moraine_share::Mask;

impl<V: Vfs> Nfs<V> {
    pub(super) async fn lookup(&self, caller: &Caller, at: DirOp<'_>, out: &mut Encoder) -> Result<(), Hold> {
        let dir = self.dir(at);
        let found = async { self.vfs.lookup(caller, dir?, at.name).await }.await;
        match found {
            Ok((object, attr)) => {
                let dir_attr = self.attributes(dir).await;
                out.status(Status::Ok).handle(&self.handle(object));
                out.post_attr(Some(&attr)).post_attr(dir_attr.as_ref());
                Ok(())
            }
            Err(error) => self.attr_failure(Procedure::Lookup, dir, error, out).await,
        }
    }

    pub(super) async fn create(
        &self,
        caller: &Caller,
        at: DirOp<'_>,
        how: CreateMode,
        set: &SetAttr,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let dir = self.dir(at);
        let result = async {
            let dir = dir?;
            let change = {
                let _name = self.share.hold_name(dir, at.name).await;
                // An existing file is only ever touched by its size.
                let _act = match (how, set.size) {
                    (CreateMode::Unchecked, Some(_)) => {
                        self.act_on_name(caller, dir, at.name, Mask::RESIZE).await?
                    }
                    _ => None,
                };
                self.vfs.create(caller, dir, at.name, how, set).await
            };
            self.durably(change).await
        };
        let result = result.await;
        self.made(Procedure::Create, dir, result, out).await
    }

    pub(super) async fn mkdir(
        &self,
        caller: &Caller,
        at: DirOp<'_>,
        set: &SetAttr,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        self.make(Procedure::MkDir, caller, at, (NewNode::Dir, set), out).await
    }

    pub(super) async fn symlink(
        &self,
        caller: &Caller,
        at: DirOp<'_>,
        set: &SetAttr,
        target: &[u8],
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        self.make(Procedure::SymLink, caller, at, (NewNode::Symlink(target), set), out).await
    }

    pub(super) async fn mknod(
        &self,
        caller: &Caller,
        at: DirOp<'_>,
        node: Node,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        match node {
            Node::Special(node, set) => self.make(Procedure::MkNod, caller, at, (node, &set), out).await,
            Node::BadType => self.wcc_failure(Procedure::MkNod, self.dir(at), FsError::BadType, out).await,
        }
    }

    async fn make(
        &self,
        procedure: Procedure,
        caller: &Caller,
        at: DirOp<'_>,
        (node, set): (NewNode<'_>, &SetAttr),
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let dir = self.dir(at);
        let result = async {
            let dir = dir?;
            let change = {
                let _name = self.share.hold_name(dir, at.name).await;
                self.vfs.make(caller, dir, at.name, node, set).await
            };
            self.durably(change).await
        };
        let result = result.await;
        self.made(procedure, dir, result, out).await
    }

    /// The result of making something.
    async fn made(
        &self,
        procedure: Procedure,
        dir: FsResult<ObjectId>,
        result: FsResult<Change<(ObjectId, Attr)>>,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        match result {
            Ok(change) => {
                let (object, attr) = &change.value;
                out.status(Status::Ok).post_handle(Some(&self.handle(*object))).post_attr(Some(attr));
                out.wcc_of(&change);
                Ok(())
            }
            Err(error) => self.wcc_failure(procedure, dir, error, out).await,
        }
    }

    pub(super) async fn remove(&self, caller: &Caller, at: DirOp<'_>, out: &mut Encoder) -> Result<(), Hold> {
        let dir = self.dir(at);
        let result = async {
            let dir = dir?;
            let change = {
                let _name = self.share.hold_name(dir, at.name).await;
                let _act = self.act_on_name(caller, dir, at.name, Mask::REMOVE).await?;
                self.vfs.remove(caller, dir, at.name).await
            };
            self.durably(change).await
        };
        let result = result.await;
        self.change_result(Procedure::Remove, dir, result, out).await
    }

    pub(super) async fn rmdir(&self, caller: &Caller, at: DirOp<'_>, out: &mut Encoder) -> Result<(), Hold> {
        let dir = self.dir(at);
        let result = async {
            let dir = dir?;
            let change = {
                let _name = self.share.hold_name(dir, at.name).await;
                self.vfs.rmdir(caller, dir, at.name).await
            };
            self.durably(change).await
        };
        let result = result.await;
        self.change_result(Procedure::RmDir, dir, result, out).await
    }

    pub(super) async fn rename(
        &self,
        caller: &Caller,
        from: DirOp<'_>,
        to: DirOp<'_>,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let (from_dir, to_dir) = (self.dir(from), self.dir(to));
        let result = async {
            let (from_dir, to_dir) = (from_dir?, to_dir?);
            let (from, to) = ((from_dir, from.name), (to_dir, to.name));
            let (left, arrived) = {
                let _names = self.share.hold_names(from, to).await;
                // What is renamed stays what it is; what it replaces loses its name.
                let _act = self.act_on_name(caller, to.0, to.1, Mask::REMOVE).await?;
                self.vfs.rename(caller, from, to).await?
            };
            self.on_media(left.seq.max(arrived.seq)).await?;
            Ok((left, arrived))
        };
        match result.await {
            Ok((left, arrived)) => {
                out.status(Status::Ok).wcc_of(&left).wcc_of(&arrived);
            }
            Err(error) => {
                self.wcc_failure(Procedure::Rename, from_dir, error, out).await?;
                out.wcc(None, self.attributes(to_dir).await.as_ref());
            }
        }
        Ok(())
    }

    pub(super) async fn link(
        &self,
        caller: &Caller,
        object: &[u8],
        to: DirOp<'_>,
        out: &mut Encoder,
    ) -> Result<(), Hold> {
        let (object, dir) = (self.object(object), self.dir(to));
        let result = async {
            let (object, dir) = (object?, dir?);
            let change = {
                let _name = self.share.hold_name(dir, to.name).await;
                self.vfs.link(caller, object, dir, to.name).await
            };
            self.durably(change).await
        };
        match result.await {
            Ok(change) => {
                out.status(Status::Ok).post_attr(Some(&change.value)).wcc_of(&change);
            }
            Err(error) => {
                self.attr_failure(Procedure::Link, object, error, out).await?;
                out.wcc(None, self.attributes(dir).await.as_ref());
            }
        }
        Ok(())
    }
}
