//! Extended attributes, with the rules of Linux for their namespaces.

use super::hash::{self, Slot};
use super::{Names, corrupt, pos};
use crate::access::{self, READ, WRITE};
use crate::vfs::*;
use alloc::boxed::Box;
use alloc::vec::Vec;
use moraine_format::inode::Inode;
use moraine_format::xattr::{Namespace, Xattr};
use moraine_format::{Pos, Tree};

/// Attributes one object can have: bounds what a listing holds in memory.
const XATTRS_MAX: usize = 1024;

/// The parts of a well-formed full name whose namespace is served.
fn split(full: &[u8]) -> FsResult<(Namespace, &[u8])> {
    if full.len() > NAME_MAX {
        return Err(FsError::XattrTooBig);
    }
    let (namespace, name) = Namespace::split(full).ok_or(FsError::Unsupported)?;
    if namespace == Namespace::System {
        return Err(FsError::Unsupported);
    }
    if name.is_empty() || full.contains(&0) { Err(FsError::Invalid) } else { Ok((namespace, name)) }
}

fn parse<'a>(at: Pos, value: &'a [u8]) -> FsResult<Xattr<'a>> {
    Xattr::parse(value).map_err(|e| corrupt(Tree::Xattrs, at, e))
}

impl Names<'_> {
    async fn find_xattr(
        &mut self,
        number: u64,
        owner: &Inode,
        namespace: Namespace,
        name: &[u8],
    ) -> FsResult<Slot> {
        let home = hash::home(owner, &[&[namespace as u8], name]);
        hash::find(self.tx, Tree::Xattrs, number, home, |at, value| {
            Ok(matches!(parse(at, value)?,
                Xattr::Entry { namespace: ns, name: other, .. } if ns == namespace && other == name))
        })
        .await
    }

    /// An attribute's value.
    pub(crate) async fn getxattr(&mut self, caller: &Caller, number: u64, full: &[u8]) -> FsResult<Vec<u8>> {
        let record = self.live(number).await?;
        let attr = self.attr(number, &record);
        let (namespace, name) = split(full)?;
        match namespace {
            Namespace::User if !matches!(attr.kind, Kind::File | Kind::Dir) => return Err(FsError::NoXattr),
            Namespace::User => access::check_io(&attr, caller, READ)?,
            Namespace::Trusted if caller.uid != 0 => return Err(FsError::NoXattr),
            _ => {}
        }
        match self.find_xattr(number, &record, namespace, name).await? {
            Slot::Free(_) => Err(FsError::NoXattr),
            Slot::Found(offset, stored) => match parse(pos(number, offset), &stored)? {
                Xattr::Entry { value, .. } => Ok(value.into()),
                Xattr::Whiteout => Err(FsError::NoXattr),
            },
        }
    }

    /// Sets an attribute. Returns the object's record, stamped and stored.
    pub(crate) async fn setxattr(
        &mut self,
        caller: &Caller,
        number: u64,
        full: &[u8],
        value: &[u8],
        how: XattrMode,
    ) -> FsResult<Inode> {
        let mut record = self.live(number).await?;
        let (namespace, name) = split(full)?;
        if value.len() > XATTR_VALUE_MAX {
            return Err(FsError::XattrTooBig);
        }
        self.check_xattr_write(caller, number, &record, namespace)?;
        let offset = match (how, self.find_xattr(number, &record, namespace, name).await?) {
            (XattrMode::Create, Slot::Found(..)) => return Err(FsError::Exists),
            (XattrMode::Replace, Slot::Free(_)) => return Err(FsError::NoXattr),
            (_, Slot::Found(offset, _) | Slot::Free(offset)) => offset,
        };
        let entry = Xattr::Entry { namespace, name, value };
        self.tx.put(Tree::Xattrs, pos(number, offset), entry.to_value());
        self.touch(number, &mut record);
        self.store(number, &record);
        Ok(record)
    }

    /// Removes an attribute. Returns the object's record, stamped and stored.
    pub(crate) async fn removexattr(&mut self, caller: &Caller, number: u64, full: &[u8]) -> FsResult<Inode> {
        let mut record = self.live(number).await?;
        let (namespace, name) = split(full)?;
        self.check_xattr_write(caller, number, &record, namespace)?;
        let Slot::Found(offset, _) = self.find_xattr(number, &record, namespace, name).await? else {
            return Err(FsError::NoXattr);
        };
        hash::remove(self.tx, Tree::Xattrs, number, offset).await?;
        self.touch(number, &mut record);
        self.store(number, &record);
        Ok(record)
    }

    /// Full names of all attributes, sorted.
    pub(crate) async fn listxattr(&mut self, number: u64) -> FsResult<Vec<Box<[u8]>>> {
        self.live(number).await?;
        let mut names: Vec<Box<[u8]>> = Vec::new();
        let mut from = 0;
        let last = Pos::new(number, u64::MAX, u32::MAX);
        while let Some((at, stored)) = self.tx.first(Tree::Xattrs, Pos::new(number, from, 0)..=last).await? {
            from = at.offset + 1;
            if let Xattr::Entry { namespace, name, .. } = parse(at, &stored)? {
                if names.len() == XATTRS_MAX {
                    return Err(FsError::XattrTooBig);
                }
                names.push([namespace.prefix().as_bytes(), name].concat().into());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn check_xattr_write(
        &self,
        caller: &Caller,
        number: u64,
        record: &Inode,
        namespace: Namespace,
    ) -> FsResult<()> {
        let attr = self.attr(number, record);
        match namespace {
            Namespace::User => {
                if !matches!(attr.kind, Kind::File | Kind::Dir) {
                    return Err(FsError::NotPermitted);
                }
                // Else anybody could fill a shared directory's attributes.
                if attr.kind == Kind::Dir && attr.mode & 0o1000 != 0 && !access::is_owner(&attr, caller) {
                    return Err(FsError::NotPermitted);
                }
                access::check_io(&attr, caller, WRITE)
            }
            _ if caller.uid != 0 => Err(FsError::NotPermitted),
            _ => Ok(()),
        }
    }
}
