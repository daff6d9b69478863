//! Content: extents fit their files and each other, and every stored byte matches its checksum.

use super::mend::{is_in_view, is_number};
use super::topology::is_usable;
use super::walk::{Found, Keys};
use super::{Check, FindingKind};
use crate::engine::Placed;
use crate::namespace::pos;
use crate::tx::Value;
use crate::vfs::FsResult;
use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;
use moraine_format::extent::{BLOCK, Content, Extent, Pointer, Stored};
use moraine_format::inode::{Inode, InodeKind};
use moraine_format::record::LoggedOp;
use moraine_format::{Pos, Tree};
use moraine_platform::BLOCK_SIZE;

/// The longest stretch that one key calls lost, in bytes.
const GAP_MAX: u64 = 1 << 40;
/// Keys that call stretches of one file lost, at most.
const GAPS_MAX: usize = 1 << 12;

/// The file whose extents are being looked at.
struct File {
    inode: u64,
    /// None if nothing is known of it.
    size: Option<u64>,
    /// Ranges that read as holes whatever lies there.
    masked: Vec<Range<u64>>,
    /// Its bytes of space as its record says.
    used: u64,
    counted: u64,
    /// End of the last extent.
    end: u64,
    /// Of a file with lost extents: where there are some.
    covered: Vec<Range<u64>>,
    /// Content that is not of a file's, or that cannot be kept.
    unwanted: bool,
}

pub(super) async fn check(check: &mut Check<'_>) -> FsResult<()> {
    let mut keys = Keys::all(Tree::Extents, 0);
    let mut file: Option<File> = None;
    let mut next_inode = Pos::MIN;
    while let Some((at, value)) = keys.next(check).await? {
        if file.as_ref().is_none_or(|f| f.inode != at.inode) {
            if let Some(file) = file.take() {
                finish(check, &file).await?;
            }
            // Files without extents use no space.
            empty(check, next_inode..pos(0, at.inode)).await?;
            next_inode = pos(0, at.inode.saturating_add(1));
            file = Some(open(check, at.inode).await?);
        }
        let file = file.as_mut().expect("opened above");
        let extent = match Extent::parse(at, &value) {
            _ if !is_in_view(at) || !is_number(at.inode) => {
                check.drop_key(FindingKind::KeyForeign, Tree::Extents, at, "no file is there").await?;
                continue;
            }
            Ok(extent) if is_served(&extent) => extent,
            Ok(_) => {
                let why = "of a kind that is not made yet";
                check.drop_key(FindingKind::ValueUnreadable, Tree::Extents, at, why).await?;
                continue;
            }
            Err(e) => {
                let why = format!("{e}");
                check.drop_key(FindingKind::ValueUnreadable, Tree::Extents, at, &why).await?;
                continue;
            }
        };
        one(check, file, at, extent).await?;
        check.tell_progress();
    }
    if let Some(file) = file.take() {
        finish(check, &file).await?;
    }
    empty(check, next_inode..Pos::MAX).await
}

fn is_served(extent: &Extent) -> bool {
    matches!(extent.content, Content::Inline(_) | Content::Stored(_) | Content::Error)
}

async fn open(check: &mut Check<'_>, inode: u64) -> FsResult<File> {
    let mut file = File {
        inode,
        size: None,
        masked: Vec::new(),
        used: 0,
        counted: 0,
        end: 0,
        covered: Vec::new(),
        unwanted: false,
    };
    match check.get(Tree::Inodes, pos(0, inode)).await? {
        Found::Unknown => {}
        Found::Missing => rebuild(check, &mut file).await?,
        Found::Value(value) => match Inode::parse(&value) {
            Ok(i) if i.kind == InodeKind::File => {
                // Of a deleted file any part may be gone, or left.
                file.size = (i.nlink > 0).then_some(i.size);
                file.used = i.used;
            }
            Ok(_) => {
                check.found(FindingKind::ExtentOutsideFile, format!("inode {inode}"));
                file.unwanted = true;
            }
            // Reported, and removed if this is a repair.
            Err(_) => {}
        },
    }
    let mut keys =
        Keys::within(Tree::LoggedOps, 0, Pos::new(inode, 0, 0)..=Pos::new(inode, u64::MAX, u32::MAX));
    while let Some((_, value)) = keys.next(check).await? {
        if let Ok(LoggedOp::Punch { start, end, .. }) = LoggedOp::parse(&value) {
            file.masked.push(start..end);
        }
    }
    Ok(file)
}

/// Content without an inode: a file is made of it.
async fn rebuild(check: &mut Check<'_>, file: &mut File) -> FsResult<()> {
    let inode = file.inode;
    check.found(FindingKind::ExtentWithoutInode, format!("inode {inode}"));
    if !check.repairs() || !is_number(inode) {
        return Ok(());
    }
    let range = Pos::new(inode, 0, 0)..=Pos::new(inode, u64::MAX, u32::MAX);
    let (mut size, mut keys) = (0, Keys::within(Tree::Extents, 0, range));
    while let Some((at, value)) = keys.next(check).await? {
        match Extent::parse(at, &value).map(|e| e.content) {
            // What of an inline block belongs to the file is not known better.
            Ok(Content::Inline(bytes)) => size = at.offset - BLOCK + bytes.len() as u64,
            Ok(_) => size = at.offset,
            Err(_) => {}
        }
    }
    let size = size.min(1 << 62);
    check.make_inode(inode, InodeKind::File, |i| i.size = size).await?;
    file.size = Some(size);
    super::inodes::raise_cursor(check, inode).await
}

async fn one(check: &mut Check<'_>, file: &mut File, at: Pos, extent: Extent) -> FsResult<()> {
    let text = |extent: &Extent| format!("inode {}, {extent}", at.inode);
    if file.unwanted {
        return check.set(Tree::Extents, at, None).await;
    }
    let mut now = Some(extent);
    if let Some(extent) = now.take_if(|e| e.start < file.end) {
        check.found(FindingKind::ExtentsOverlap, text(&extent));
        now = (file.end < extent.end).then(|| extent.cut(file.end, extent.end));
    }
    file.end = at.offset;
    if let (Some(size), Some(extent)) = (file.size, &now)
        && extent.end > size.next_multiple_of(BLOCK)
        && !file
            .masked
            .iter()
            .any(|m| m.start <= extent.start.max(size.next_multiple_of(BLOCK)) && extent.end <= m.end)
    {
        let keep = size.next_multiple_of(BLOCK);
        let record = pos(0, at.inode);
        if check.was_lost(Tree::Inodes, record, record) {
            // The record is an old one: content is worth more than its size.
            let end = extent.end;
            check.found(FindingKind::ExtentBeyondEnd, format!("{}, the file ends at {size}", text(extent)));
            check.edit_inode(at.inode, |i| i.size = end).await?;
            file.size = Some(end);
            return stored(check, file, at, now).await;
        }
        check.found(FindingKind::ExtentBeyondEnd, format!("{}, the file ends at {size}", text(extent)));
        now = (extent.start < keep).then(|| extent.cut(extent.start, keep));
    }
    stored(check, file, at, now).await
}

/// Verifies what is left of an extent, and writes it if it changed.
async fn stored(check: &mut Check<'_>, file: &mut File, at: Pos, now: Option<Extent>) -> FsResult<()> {
    if check.was_lost(Tree::Extents, Pos::new(at.inode, 0, 0), Pos::new(at.inode, u64::MAX, u32::MAX)) {
        file.covered.extend(now.iter().map(|e| e.start..e.end));
    }
    let parts = match &now {
        None => Vec::new(),
        Some(extent) => match &extent.content {
            Content::Stored(stored) => verify(check, at, extent, stored).await?,
            _ => alloc::vec![extent.clone()],
        },
    };
    file.counted += parts.iter().map(Extent::used).sum::<u64>();
    for lost in parts.iter().filter(|p| matches!(p.content, Content::Error)) {
        check.note_lost(file.inode, lost.start, lost.end);
    }
    replace(check, at, &parts).await
}

/// Puts what is left of an extent in the place of it, if anything of it changed.
async fn replace(check: &mut Check<'_>, at: Pos, parts: &[Extent]) -> FsResult<()> {
    if !check.repairs() {
        return Ok(());
    }
    let Some(old) = check.get(Tree::Extents, at).await?.value() else { return Ok(()) };
    if let [only] = parts
        && only.end == at.offset
        && only.to_value() == *old
    {
        return Ok(());
    }
    let mut changes = alloc::vec![((Tree::Extents, at), None)];
    changes.extend(
        parts.iter().map(|p| ((Tree::Extents, pos(at.inode, p.end)), Some(Value::from(p.to_value())))),
    );
    // The last change of a position counts.
    let last = changes.iter().rposition(|(k, _)| k.1 == at).unwrap_or(0);
    if last > 0 {
        changes.remove(0);
    }
    check.change(&changes).await
}

/// How a block of an extent is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    /// Some copy of it matches its checksum.
    Good,
    /// It can be read, and no copy matches.
    Wrong,
    /// The device does not hand it out.
    Unreadable,
}

/// Reads a stored extent; returns what it is but for the blocks that are lost.
async fn verify(check: &mut Check<'_>, at: Pos, extent: &Extent, stored: &Stored) -> FsResult<Vec<Extent>> {
    let mut blocks = alloc::vec![Block::Wrong; stored.checksums.len()];
    let mut outside = 0;
    for pointer in &stored.pointers {
        if !is_usable(check, pointer.device, pointer.offset_bytes, pointer.len_bytes as u64) {
            outside += 1;
            continue;
        }
        copy(check, pointer, &stored.checksums, &mut blocks).await?;
        if blocks.iter().all(|b| *b == Block::Good) {
            break;
        }
    }
    let text = |extent: &Extent| format!("inode {}, {extent}", at.inode);
    if outside > 0 {
        check.found(FindingKind::ReferenceOutside, text(extent));
    }
    if outside < stored.pointers.len() && blocks.contains(&Block::Wrong) {
        check.found(FindingKind::DataDamaged, text(extent));
    }
    if blocks.contains(&Block::Unreadable) {
        // The device may hand it out some other time: nothing is given up, and nothing is mended.
        check.report(
            FindingKind::DataDamaged,
            format!("{}: the device does not read it", text(extent)),
            false,
        );
    }
    let mut parts: Vec<Extent> = Vec::new();
    let mut from = 0;
    for run in blocks.chunk_by(|a, b| a == b) {
        let start = extent.start + from as u64 * BLOCK;
        let end = start + run.len() as u64 * BLOCK;
        from += run.len();
        match run[0] {
            Block::Good => parts.push(extent.cut(start, end)),
            Block::Wrong => parts.push(Extent { start, end, content: Content::Error }),
            Block::Unreadable => {
                check.note_lost(at.inode, start, end);
                parts.push(extent.cut(start, end));
            }
        }
    }
    // A pool where nothing is wrong is not to be written.
    if blocks.iter().all(|b| *b != Block::Wrong) { Ok(alloc::vec![extent.clone()]) } else { Ok(parts) }
}

/// Reads one copy of an extent and notes which blocks are good in it.
async fn copy(
    check: &mut Check<'_>,
    pointer: &Pointer,
    checksums: &[u32],
    blocks: &mut [Block],
) -> FsResult<()> {
    let place = Placed {
        device: pointer.device,
        generation: pointer.generation,
        offset: pointer.offset_bytes,
        len: pointer.len_bytes,
    };
    let whole = check.engine.read_data(place, 0, place.len).await;
    for (n, (state, sum)) in
        blocks.iter_mut().zip(checksums).enumerate().filter(|(_, (s, _))| **s != Block::Good)
    {
        let at = n * BLOCK_SIZE;
        let good = |bytes: &[u8]| moraine_accel::crc32c(bytes) == *sum;
        *state = match &whole {
            Ok(bytes) if good(&bytes[at..at + BLOCK_SIZE]) => Block::Good,
            Ok(_) => Block::Wrong,
            Err(crate::vfs::FsError::NoMemory) => return Err(crate::vfs::FsError::NoMemory),
            Err(_) => match check.engine.read_data(place, at as u32, BLOCK_SIZE as u32).await {
                Ok(bytes) if good(&bytes) => Block::Good,
                Ok(_) => Block::Wrong,
                Err(_) => Block::Unreadable,
            },
        };
    }
    check.summary.bytes_verified += place.len as u64;
    Ok(())
}

async fn finish(check: &mut Check<'_>, file: &File) -> FsResult<()> {
    if let Some(size) = file.size
        && file.counted != file.used
        && !file.unwanted
    {
        gaps(check, file, size).await?;
        let text = format!("inode {}: {}, counted {}", file.inode, file.used, file.counted);
        check.found(FindingKind::UsedWrong, text);
        let counted = file.counted;
        check.edit_inode(file.inode, |i| i.used = counted).await?;
    }
    Ok(())
}

/// Extents of the file were lost, and by its record some are missing still: what would read as zeroes is called lost.
async fn gaps(check: &mut Check<'_>, file: &File, size: u64) -> FsResult<()> {
    let inode = file.inode;
    let lost: Vec<Range<u64>> = check
        .restored
        .iter()
        .filter(|(tree, ..)| *tree == Tree::Extents)
        .filter_map(|(_, min, max)| lost_of(inode, *min, *max))
        .collect();
    let end = size.next_multiple_of(BLOCK);
    let (mut from, mut holes) = (0, Vec::new());
    for covered in file.covered.iter().cloned().chain(core::iter::once(end..end)) {
        holes.extend((from < covered.start).then(|| from..covered.start.min(end)));
        from = from.max(covered.end);
    }
    let mut changes = Vec::new();
    for (hole, lost) in holes.iter().flat_map(|h| lost.iter().map(move |l| (h, l))) {
        let (start, end) = (hole.start.max(lost.start), hole.end.min(lost.end));
        if start >= end || changes.len() >= GAPS_MAX {
            continue;
        }
        check.found(FindingKind::DataDamaged, format!("inode {inode}, {start}..{end}: its extents are lost"));
        check.note_lost(inode, start, end);
        let mut from = start;
        while from < end && changes.len() < GAPS_MAX {
            let to = end.min(from.saturating_add(GAP_MAX));
            let extent = Extent { start: from, end: to, content: Content::Error };
            changes.push(((Tree::Extents, pos(inode, to)), Some(Value::from(extent.to_value()))));
            from = to;
        }
    }
    check.change(&changes).await
}

/// The bytes of a file whose extents a lost part of the tree may have held.
fn lost_of(inode: u64, min: Pos, max: Pos) -> Option<Range<u64>> {
    // An extent's key is its end: whoever ends in the lost part may begin before it.
    let start = match min.inode.cmp(&inode) {
        core::cmp::Ordering::Less => 0,
        core::cmp::Ordering::Equal => min.offset / BLOCK * BLOCK,
        core::cmp::Ordering::Greater => return None,
    };
    let end = match max.inode.cmp(&inode) {
        core::cmp::Ordering::Greater => u64::MAX / BLOCK * BLOCK,
        core::cmp::Ordering::Equal => max.offset / BLOCK * BLOCK,
        core::cmp::Ordering::Less => return None,
    };
    Some(start..end)
}

/// Files of a range without content use no space.
async fn empty(check: &mut Check<'_>, range: Range<Pos>) -> FsResult<()> {
    let Some(last) = range.end.predecessor().filter(|last| *last >= range.start) else { return Ok(()) };
    let mut keys = Keys::within(Tree::Inodes, 0, range.start..=last);
    while let Some((at, value)) = keys.next(check).await? {
        if let Ok(inode) = Inode::parse(&value)
            && inode.kind == InodeKind::File
            && inode.nlink > 0
            && inode.used != 0
        {
            let mut file = open(check, at.offset).await?;
            file.used = inode.used;
            finish(check, &file).await?;
        }
    }
    Ok(())
}
