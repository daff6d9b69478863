//! Values of keys as text: what they mean where this build knows it, bytes where not.

use moraine_format::dirent::Dirent;
use moraine_format::extent::Extent;
use moraine_format::inode::Inode;
use moraine_format::journal::{Item, ItemKind};
use moraine_format::node::NodePointer;
use moraine_format::record::{LoggedOp, parse_cursor, parse_deleted};
use moraine_format::space::{Alloc, Backpointer, DeviceUsage, PoolUsage, parse_free_range};
use moraine_format::text::Text;
use moraine_format::xattr::Xattr;
use moraine_format::{FormatError, Pos, Tree};
use std::fmt::Debug;

/// Bytes of a value of unknown meaning that are shown.
const SHOWN_MAX: usize = 64;

/// What the value of a key in `tree` at `level` says.
pub(super) fn value_text(tree: Tree, level: u8, pos: Pos, value: &[u8]) -> String {
    if level > 0 {
        return debug(value, NodePointer::parse(value));
    }
    match tree {
        Tree::Extents => debug(value, Extent::parse(pos, value)),
        Tree::Inodes => debug(value, Inode::parse(value)),
        Tree::Dirents => match Dirent::parse(value) {
            Ok(Dirent::Entry { target, name }) => format!("{:?} -> {target:?}", Text(name)),
            other => debug(value, other),
        },
        Tree::Xattrs => match Xattr::parse(value) {
            Ok(Xattr::Entry { namespace, name, value }) => {
                format!("{}{:?} = {}", namespace.prefix(), Text(name), bytes(value))
            }
            other => debug(value, other),
        },
        Tree::Alloc => debug(value, Alloc::parse(value)),
        Tree::Freespace => debug(value, parse_free_range(pos, value).map(|first| first..=pos.offset)),
        Tree::Backpointers => debug(value, Backpointer::parse(value)),
        Tree::Accounting if pos == PoolUsage::pos() => debug(value, PoolUsage::parse(value)),
        Tree::Accounting => debug(value, DeviceUsage::parse(value)),
        Tree::LoggedOps => debug(value, LoggedOp::parse(value)),
        Tree::DeletedInodes => debug(value, parse_deleted(value)),
        Tree::Settings if value.len() == 8 => debug(value, parse_cursor(value)),
        _ => bytes(value),
    }
}

/// What a journal item says.
pub(super) fn item_text(item: &Item<'_>, tree: Option<Tree>) -> String {
    match (item.kind, tree) {
        (ItemKind::Put, Some(tree)) => value_text(tree, item.level, item.pos, item.value),
        (ItemKind::Root, _) => debug(item.value, NodePointer::parse(item.value)),
        (ItemKind::Log, _) => format!("{:?}", Text(item.value)),
        (ItemKind::Epoch | ItemKind::Time, _) => match <[u8; 8]>::try_from(item.value) {
            Ok(number) => u64::from_le_bytes(number).to_string(),
            Err(_) => bytes(item.value),
        },
        _ => bytes(item.value),
    }
}

fn debug<T: Debug>(value: &[u8], parsed: Result<T, FormatError>) -> String {
    match parsed {
        Ok(parsed) => format!("{parsed:?}"),
        Err(e) => format!("DAMAGED ({e}) {}", bytes(value)),
    }
}

fn bytes(value: &[u8]) -> String {
    let shown = hex(&value[..value.len().min(SHOWN_MAX)]);
    if value.len() > SHOWN_MAX { format!("{shown}… ({} bytes)", value.len()) } else { shown }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
