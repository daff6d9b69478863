//! Keys: removed, replaced, moved, of every kind that the trees know. The structure is whole and every checksum right.

use moraine_format::dirent::{Dirent, Target};
use moraine_format::inode::{Inode, InodeKind, ROOT_INODE, VOLUMES_INODE};
use moraine_format::key::ROOT_SNAPSHOT;
use moraine_format::record::{INODE_CURSOR, LoggedOp, cursor_value, deleted_value};
use moraine_format::space::{Alloc, need_discard_pos};
use moraine_format::{Pos, Tree};
use moraine_fs::FsError;
use moraine_fs::engine::Engine;
use moraine_fs::repair::{FindingKind, Repair};
use moraine_fs::tx::Class;
use moraine_sim::Image;
use moraine_sim::damage::{
    Exact, Left, Sample, Told, budget, choose, fsck, ordeal, plug, read_all, use_all, world,
};
use std::collections::BTreeMap;

type Keys = BTreeMap<Pos, Vec<u8>>;

/// All trees of a pool, to look at and to change.
struct Trees(BTreeMap<Tree, Keys>);

fn key(inode: u64, offset: u64) -> Pos {
    Pos::new(inode, offset, ROOT_SNAPSHOT)
}

impl Trees {
    fn inode(&self, number: u64) -> Inode {
        Inode::parse(&self.0[&Tree::Inodes][&key(0, number)]).unwrap()
    }

    fn set_inode(&mut self, number: u64, edit: impl FnOnce(&mut Inode)) {
        let mut inode = self.inode(number);
        edit(&mut inode);
        self.put(Tree::Inodes, key(0, number), inode.to_value());
    }

    fn put(&mut self, tree: Tree, at: Pos, value: Vec<u8>) {
        self.0.get_mut(&tree).unwrap().insert(at, value);
    }

    fn delete(&mut self, tree: Tree, at: Pos) -> Vec<u8> {
        self.0.get_mut(&tree).unwrap().remove(&at).unwrap()
    }

    /// Where a path's last name is, and what it leads to.
    fn find(&self, path: &str) -> (Pos, u64, InodeKind) {
        let mut at = (Pos::MIN, ROOT_INODE, InodeKind::Dir);
        for part in path[1..].split('/') {
            let range = Pos::new(at.1, 0, 0)..=Pos::new(at.1, u64::MAX, u32::MAX);
            let found =
                self.0[&Tree::Dirents].range(range).find_map(|(pos, value)| match Dirent::parse(value) {
                    Ok(Dirent::Entry { target: Target::Inode { inode, kind }, name })
                        if name == part.as_bytes() =>
                    {
                        Some((*pos, inode, kind))
                    }
                    _ => None,
                });
            at = found.unwrap();
        }
        at
    }

    fn first(&self, tree: Tree) -> Pos {
        *self.0[&tree].keys().next().unwrap()
    }
}

/// Changes keys of an image: what `edit` leaves of the trees is put into the pool, space follows by itself.
fn changed(image: &Image, edit: impl FnOnce(&mut Trees)) -> Image {
    let world = world(5);
    let (disk, disks) = plug(&world, image);
    world.run(async {
        let engine = Engine::mount(&world.platform(), &disks, &budget()).await.unwrap();
        let mut trees = Trees(BTreeMap::new());
        for tree in Tree::ALL {
            trees.0.insert(*tree, keys(&engine, *tree).await);
        }
        let before: BTreeMap<Tree, Keys> = trees.0.clone();
        edit(&mut trees);
        for (tree, keys) in trees.0 {
            let old = &before[&tree];
            let gone = old.keys().filter(|at| !keys.contains_key(at)).map(|at| (*at, None));
            let new =
                keys.iter().filter(|(at, v)| old.get(at) != Some(v)).map(|(at, v)| (*at, Some(v.clone())));
            for (at, value) in gone.chain(new).collect::<Vec<_>>() {
                let done = engine.transact(Class::Delete, async |tx| {
                    match &value {
                        Some(value) => tx.put(tree, at, value.as_slice()),
                        None => tx.delete(tree, at),
                    }
                    Ok(())
                });
                // What makes no sense at all the engine does not take.
                assert!(matches!(done.await, Ok(_) | Err(FsError::Corrupt)));
            }
        }
        // Left as a power cut leaves it: with derived keys changed, the engine may not be able to end in good order.
        engine.durable(engine.last_seq()).await.unwrap();
    });
    disk.durable_image()
}

async fn keys(engine: &Engine, tree: Tree) -> Keys {
    let mut keys = Keys::new();
    let mut from = Some(Pos::MIN);
    while let Some(at) = from {
        let (found, _) =
            engine.transact(Class::Delete, async |tx| tx.first(tree, at..=Pos::MAX).await).await.unwrap();
        let Some((at, value)) = found else { break };
        keys.insert(at, value.to_vec());
        from = at.successor();
    }
    keys
}

/// Changes keys, and expects these kinds of findings among those of the repair; returns the image after it.
fn expect(kinds: &[FindingKind], edit: impl FnOnce(&mut Trees)) -> (Told, Image) {
    let sample = Sample::new(Left::Clean);
    let image = changed(&sample.image, edit);
    let told = ordeal(&sample, &image, None).unwrap();
    for kind in kinds {
        assert!(told.kinds().contains(kind), "{kind:?} is missing:{}", told.text());
    }
    let (_, _, after) = fsck(&image, Repair::Yes);
    // The change itself may say that a file holds something else; reading must come to an end all the same.
    let _ = read_all(&sample, &after, Exact::AfterRepair);
    (told, after)
}

/// The trees of an image.
fn look(image: &Image) -> Trees {
    let mut found = None;
    changed(image, |trees| found = Some(Trees(trees.0.clone())));
    found.unwrap()
}

#[test]
fn inodes_and_their_lists() {
    use FindingKind::*;
    expect(&[RootMissing], |t| drop(t.delete(Tree::Inodes, key(0, ROOT_INODE))));
    expect(&[VolumesMissing], |t| drop(t.delete(Tree::Inodes, key(0, VOLUMES_INODE))));
    expect(&[CursorLow], |t| t.put(Tree::Settings, INODE_CURSOR, cursor_value(1030)));
    expect(&[CursorLow], |t| drop(t.delete(Tree::Settings, INODE_CURSOR)));
    expect(&[LinkCountWrong], |t| t.set_inode(t.find("/a/file4").1, |i| i.nlink = 9));
    expect(&[LinkCountWrong], |t| t.set_inode(t.find("/a/hard").1, |i| i.nlink = 0));
    expect(&[LinkCountWrong], |t| t.set_inode(t.find("/a").1, |i| i.nlink = 7));
    expect(&[DirectorySizeWrong], |t| t.set_inode(t.find("/a").1, |i| i.size = 7));
    expect(&[UsedWrong], |t| t.set_inode(t.find("/a/file0").1, |i| i.used = 4096));
    expect(&[DeletedEntryWrong], |t| {
        t.put(Tree::DeletedInodes, key(t.find("/a/b").1, 0), deleted_value(1));
        t.put(Tree::DeletedInodes, key(77_777, 0), deleted_value(1));
        t.put(Tree::DeletedInodes, key(77_777, 5), vec![1]);
    });
    expect(&[ValueUnreadable, LoggedOpStray], |t| {
        let op = LoggedOp::Punch { start: 0, end: 4096, cursor: 0 };
        t.put(Tree::LoggedOps, Pos::new(77_777, 0, 0), op.to_value());
        t.put(Tree::LoggedOps, Pos::new(t.find("/a").1, 0, 0), op.to_value());
        t.put(Tree::LoggedOps, Pos::new(t.find("/a/file1").1, 0, 0), vec![9]);
    });
}

#[test]
fn names() {
    use FindingKind::*;
    let (_, after) = expect(&[LinkCountWrong], |t| drop(t.delete(Tree::Dirents, t.find("/a/file5").0)));
    // The other name of the file is there still; the record's hint is not what counts.
    look(&after).find("/a/hard");
    let (_, after) = expect(&[InodeUnreferenced], |t| drop(t.delete(Tree::Dirents, t.find("/a/file4").0)));
    let after = look(&after);
    let orphan = after.0[&Tree::Dirents].values().filter_map(|v| match Dirent::parse(v) {
        Ok(Dirent::Entry { target: Target::Inode { inode, .. }, name }) if name[0] == b'#' => {
            Some((inode, name))
        }
        _ => None,
    });
    let orphan: Vec<_> = orphan.collect();
    assert_eq!(orphan.len(), 1);
    let path = format!("/a/#{}", orphan[0].0);
    assert_eq!(after.find(&path).1, orphan[0].0, "it is where it was");
    expect(&[InodeMissing], |t| {
        let (at, inode, _) = t.find("/a/soft");
        t.put(Tree::Dirents, at, entry(inode + 77_777, InodeKind::Symlink, b"soft"));
        t.delete(Tree::Inodes, key(0, inode));
    });
    expect(&[DirentKindWrong], |t| {
        let (at, inode, _) = t.find("/a/file2");
        t.put(Tree::Dirents, at, entry(inode, InodeKind::Fifo, b"file2"));
    });
    expect(&[DirentMisplaced], |t| {
        let (at, ..) = t.find("/a/file2");
        let value = t.delete(Tree::Dirents, at);
        t.put(Tree::Dirents, key(at.inode, at.offset + 5000), value);
    });
    expect(&[NameTwice, NameOfDeleted], |t| {
        let (at, inode, kind) = t.find("/c/file2");
        let free = (at.offset + 1..).find(|o| !t.0[&Tree::Dirents].contains_key(&key(at.inode, *o))).unwrap();
        t.put(Tree::Dirents, key(at.inode, free), entry(t.find("/c/file3").1, kind, b"file2"));
        let gone = t.find("/a/file0").1;
        t.set_inode(gone, |i| i.nlink = 0);
        t.put(Tree::DeletedInodes, key(gone, 0), deleted_value(1));
        assert_ne!(inode, gone);
    });
    expect(&[KeyForeign, ValueUnreadable, NamesOutsideDirectory], |t| {
        t.put(Tree::Dirents, key(t.find("/a").1, 3), entry(9, InodeKind::File, b"x"));
        t.put(Tree::Dirents, key(t.find("/a").1, 99), vec![7]);
        t.put(Tree::Dirents, key(t.find("/a/file1").1, 99), entry(t.find("/a").1, InodeKind::Dir, b"x"));
    });
}

fn entry(inode: u64, kind: InodeKind, name: &[u8]) -> Vec<u8> {
    Dirent::Entry { target: Target::Inode { inode, kind }, name }.to_value()
}

#[test]
fn directories() {
    use FindingKind::*;
    // The only name of a directory is in itself.
    expect(&[LinkCountWrong, DirentMisplaced, ParentWrong, DirectorySizeWrong], |t| {
        let (at, inode, _) = t.find("/volumes");
        let value = t.delete(Tree::Dirents, at);
        t.put(Tree::Dirents, key(inode, at.offset), value);
    });
    let (_, after) = expect(&[DirectoryMissing], |t| drop(t.delete(Tree::Inodes, key(0, t.find("/a/b").1))));
    look(&after).find("/a/b/file3");
    expect(&[DirectoryLinkedTwice], |t| {
        let (b, c) = (t.find("/a/b").1, t.find("/c").1);
        let home = t.0[&Tree::Dirents].range(key(c, 0)..).next().unwrap().0.offset;
        t.put(Tree::Dirents, key(c, home + 9999), entry(b, InodeKind::Dir, b"again"));
    });
    let (_, after) = expect(&[DirectoryLoop], |t| {
        // `/a` moves into `/a/b`.
        let (at, a, _) = t.find("/a");
        let (b_at, b, _) = t.find("/a/b");
        t.delete(Tree::Dirents, at);
        let soft = t.find_in(b, "soft");
        t.delete(Tree::Inodes, key(0, t.inode_at(soft)));
        let value = entry(a, InodeKind::Dir, b"soft");
        t.put(Tree::Dirents, soft, value);
        t.set_inode(a, |i| (i.parent, i.parent_offset) = (b, soft.offset));
        assert_eq!(b_at.inode, a);
    });
    let after = look(&after);
    let found = after.find("/lost+found").1;
    let range = Pos::new(found, 0, 0)..=Pos::new(found, u64::MAX, u32::MAX);
    assert_eq!(after.0[&Tree::Dirents].range(range).count(), 1);
    expect(&[ParentWrong], |t| t.set_inode(t.find("/a/b").1, |i| i.parent = 3));
}

impl Trees {
    fn find_in(&self, dir: u64, name: &str) -> Pos {
        let range = Pos::new(dir, 0, 0)..=Pos::new(dir, u64::MAX, u32::MAX);
        let has = |v: &Vec<u8>| matches!(Dirent::parse(v), Ok(Dirent::Entry { name: n, .. }) if n == name.as_bytes());
        *self.0[&Tree::Dirents].range(range).find(|(_, v)| has(v)).unwrap().0
    }

    fn inode_at(&self, at: Pos) -> u64 {
        match Dirent::parse(&self.0[&Tree::Dirents][&at]).unwrap() {
            Dirent::Entry { target: Target::Inode { inode, .. }, .. } => inode,
            _ => unreachable!("a name of an inode"),
        }
    }
}

#[test]
fn content() {
    use FindingKind::*;
    let (_, after) =
        expect(&[ExtentWithoutInode], |t| drop(t.delete(Tree::Inodes, key(0, t.find("/a/file8").1))));
    assert_eq!(look(&after).find("/a/file8").2, InodeKind::File);
    expect(&[ExtentBeyondEnd], |t| t.set_inode(t.find("/a/file8").1, |i| i.size = 5000));
    expect(&[ReferencesOverlap, ExtentOutsideFile], |t| {
        // Two files claim the same bytes; the extents of a third are a directory's.
        let (from, to, dir) = (t.find("/a/file5").1, t.find("/a/file0").1, t.find("/a").1);
        let extents: Vec<(Pos, Vec<u8>)> = t.of(from);
        for (at, value) in &extents {
            t.put(Tree::Extents, key(to, at.offset), value.clone());
        }
        let size = t.inode(from).size;
        t.set_inode(to, |i| i.size = size);
        for (at, value) in t.of(t.find("/c/file6").1) {
            t.put(Tree::Extents, key(dir, at.offset), value);
        }
    });
    expect(&[ValueUnreadable, KeyForeign, InodeUnreferenced], |t| {
        t.put(Tree::Extents, key(t.find("/c/file0").1, 4096), vec![4, 4, 4]);
        t.put(
            Tree::Extents,
            Pos::new(t.find("/c/file0").1, 8192, 5),
            t.of(t.find("/c/file1").1)[0].1.clone(),
        );
        t.put(Tree::Inodes, key(0, 88_888), vec![1; 144]);
        t.put(Tree::Inodes, Pos::new(5, 0, 0), vec![0; 8]);
        let at = t.find("/c/file7").0;
        t.delete(Tree::Dirents, at);
        t.put(Tree::Settings, INODE_CURSOR, cursor_value(100_000));
    });
    expect(&[XattrWithoutInode, XattrMisplaced], |t| {
        let (at, value) = t.0[&Tree::Xattrs].iter().next().map(|(a, v)| (*a, v.clone())).unwrap();
        t.put(Tree::Xattrs, key(77_777, at.offset), value);
        let value = t.delete(Tree::Xattrs, at);
        t.put(Tree::Xattrs, key(at.inode, at.offset + 100), value);
    });
}

impl Trees {
    fn of(&self, inode: u64) -> Vec<(Pos, Vec<u8>)> {
        let range = Pos::new(inode, 0, 0)..=Pos::new(inode, u64::MAX, u32::MAX);
        self.0[&Tree::Extents].range(range).map(|(at, value)| (*at, value.clone())).collect()
    }
}

#[test]
fn space() {
    let mut noticed = 0;
    for tree in [Tree::Alloc, Tree::Freespace, Tree::Backpointers, Tree::Lru, Tree::Accounting] {
        noticed += exactly(|t| drop(t.delete(tree, t.first(tree))));
        noticed += exactly(|t| t.put(tree, t.first(tree), vec![0xee; 9]));
        noticed += exactly(|t| t.put(tree, Pos::new(200, 7, 0), t.0[&tree][&t.first(tree)].clone()));
    }
    noticed += exactly(|t| t.put(Tree::NeedDiscard, Pos::new(u64::MAX, 20, 0), vec![]));
    noticed += exactly(|t| t.0.get_mut(&Tree::Backpointers).unwrap().clear());
    // Some of it the engine itself puts right with its next commit.
    assert!(noticed >= 14, "{noticed}");
}

/// Changes keys that derive from others: after a repair all is as it was. Says whether anything was found.
fn exactly(edit: impl FnOnce(&mut Trees)) -> usize {
    let sample = Sample::new(Left::Clean);
    let image = changed(&sample.image, edit);
    let told = ordeal(&sample, &image, Some(Exact::Yes)).unwrap();
    usize::from(!told.findings.is_empty())
}

#[test]
fn any_key_gone_or_with_another_value() {
    let sample = Sample::new(Left::Clean);
    let trees = look(&sample.image);
    let mut all = Vec::new();
    for (tree, keys) in &trees.0 {
        for at in keys.keys() {
            all.extend([0, 1, 2].map(|how| (*tree, *at, how)));
        }
    }
    for (tree, at, how) in choose("keys", all, 40) {
        let image = changed(&sample.image, |t| match how {
            0 => drop(t.delete(tree, at)),
            1 => t.put(tree, at, vec![]),
            _ => {
                let value = t.delete(tree, at);
                t.put(tree, Pos::new(at.inode ^ 1, at.offset, at.snapshot), value);
            }
        });
        if let Err(e) = ordeal(&sample, &image, None) {
            panic!("{} {at} changed by way {how}: {e}", tree.name());
        }
    }
}

#[test]
fn a_cursor_that_was_set_back_costs_no_inode() {
    let sample = Sample::new(Left::Clean);
    // Below the numbers of all files, the first of which was made and removed.
    let image = changed(&sample.image, |t| t.put(Tree::Settings, INODE_CURSOR, cursor_value(1030)));
    let used = use_all(&image).unwrap();
    let kept = look(&used);
    assert_eq!(kept.find("/a/file7").1, look(&sample.image).find("/a/file7").1);
}

#[test]
fn a_key_that_calls_a_bucket_in_use_empty_frees_nothing() {
    let sample = Sample::new(Left::Clean);
    let trees = look(&sample.image);
    let in_use =
        trees.0[&Tree::Alloc].iter().find(|(_, v)| Alloc::parse(v).unwrap().live_bytes > 0).unwrap().0;
    let stale = need_discard_pos(1, in_use.inode as u8, in_use.offset);
    let image = changed(&sample.image, |t| t.put(Tree::NeedDiscard, stale, vec![]));
    // Neither is the bucket discarded, nor does the work on it never end.
    let used = use_all(&image).unwrap();
    assert!(look(&used).0[&Tree::NeedDiscard].contains_key(&stale));
}
