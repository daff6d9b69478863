//! The model against the rules it stands for, and its sparse content against a plain vector.

use crate::Model;
use crate::content::Content;
use crate::tree::now;
use alloc::vec;
use alloc::vec::Vec;
use moraine_fs::vfs::*;
use moraine_platform::{BLOCK_SIZE, Timestamp};

const ALICE: u32 = 1000;
const BOB: u32 = 1001;
const STAFF: u32 = 50;

fn user(uid: u32, gid: u32) -> Caller {
    Caller { uid, gid, groups: vec![STAFF], owner_override: false }
}

fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

fn file(m: &Model, caller: &Caller, dir: ObjectId, name: &[u8], bits: u32) -> ObjectId {
    now(m.create(caller, dir, name, CreateMode::Guarded, &mode(bits))).unwrap().value.0
}

fn dir(m: &Model, caller: &Caller, at: ObjectId, name: &[u8], bits: u32) -> ObjectId {
    now(m.make(caller, at, name, NewNode::Dir, &mode(bits))).unwrap().value.0
}

fn put(m: &Model, caller: &Caller, at: ObjectId, offset: u64, bytes: &[u8]) -> FsResult<Change<Written>> {
    now(m.write(caller, at, offset, WriteData::copy_of(offset, bytes).unwrap(), Stability::Unstable))
}

/// A root directory everybody may write to.
fn open_world() -> Model {
    let m = Model::for_tests();
    now(m.setattr(&Caller::root(), m.root(), &mode(0o777), None)).unwrap();
    m
}

#[test]
fn a_new_pool_has_a_root_and_volumes() {
    let m = Model::for_tests();
    let (volumes, attr) = now(m.lookup(&Caller::root(), m.root(), b"volumes")).unwrap();
    assert_eq!((attr.kind, attr.nlink), (Kind::Dir, 2));
    assert_eq!(now(m.getattr(m.root())).unwrap().nlink, 3);
    assert_eq!(now(m.lookup(&Caller::root(), volumes, b"..")).unwrap().0, m.root());
    assert_eq!(now(m.lookup(&Caller::root(), m.root(), b"..")).unwrap().0, m.root());
}

#[test]
fn sparse_content_equals_a_plain_vector_and_whole_punched_blocks_are_holes() {
    let mut seed = 7u64;
    let mut next = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    let (mut sparse, mut plain) = (Content::default(), Vec::<u8>::new());
    for step in 0..3000 {
        let (offset, len) = (next(40_000), next(12_000));
        match next(4) {
            0 | 1 => {
                let data = vec![step as u8 | 1; len as usize];
                if len > 0 {
                    plain.resize(plain.len().max((offset + len) as usize), 0);
                    plain[offset as usize..(offset + len) as usize].copy_from_slice(&data);
                    sparse.write(offset, &data);
                }
            }
            2 => {
                sparse.truncate(offset);
                plain.resize(offset as usize, 0);
            }
            _ => {
                sparse.punch(offset, len);
                let end = ((offset + len) as usize).min(plain.len());
                if (offset as usize) < end {
                    plain[offset as usize..end].fill(0);
                    let whole = offset.div_ceil(BLOCK_SIZE as u64)..(offset + len) / BLOCK_SIZE as u64;
                    assert!(whole.into_iter().all(|block| sparse.is_hole(block)));
                }
            }
        }
        assert_eq!(sparse.size, plain.len() as u64);
        assert_eq!(sparse.read(0, u32::MAX), plain);
        let mut at = 0;
        for s in sparse.segments(0, u64::MAX) {
            assert!(s.offset == at && s.len > 0);
            at += s.len;
            assert!(!s.hole || plain[s.offset as usize..at as usize].iter().all(|b| *b == 0));
        }
        assert_eq!(at, sparse.size);
    }
}

#[test]
fn v3_11_ctime_strictly_rises_and_the_change_counter_with_it() {
    struct Stopped;
    impl moraine_platform::Clock for Stopped {
        fn now(&self) -> moraine_platform::Instant {
            moraine_platform::Instant(0)
        }
        fn wall(&self) -> Timestamp {
            Timestamp(5)
        }
        fn sleep_until(&self, _: moraine_platform::Instant) -> moraine_platform::LocalFuture<()> {
            alloc::boxed::Box::pin(core::future::pending())
        }
    }
    let m = Model { clock: alloc::rc::Rc::new(Stopped), ..Model::for_tests() };
    let f = file(&m, &Caller::root(), m.root(), b"f", 0o644);
    let mut last = now(m.getattr(f)).unwrap();
    for _ in 0..1000 {
        let change = put(&m, &Caller::root(), f, 0, b"x").unwrap();
        assert_eq!(change.pre, last.pre());
        assert!(change.post.ctime > last.ctime && change.post.change > last.change);
        last = change.post;
    }
}

#[test]
fn v3_05_exclusive_create_knows_its_own_repeat() {
    let m = open_world();
    let (root, me) = (m.root(), user(ALICE, STAFF));
    let how = CreateMode::Exclusive(*b"verifier");
    let first = now(m.create(&me, root, b"f", how, &SetAttr::default())).unwrap();
    let again = now(m.create(&me, root, b"f", how, &SetAttr::default())).unwrap();
    assert_eq!(first.value.0, again.value.0);
    assert_eq!(again.pre, again.post.pre(), "a repeat changes nothing");
    let other = CreateMode::Exclusive(*b"another!");
    assert_eq!(now(m.create(&me, root, b"f", other, &mode(0))).unwrap_err(), FsError::Exists);
    let unchecked = SetAttr { size: Some(9), mode: Some(0o777), ..SetAttr::default() };
    let opened = now(m.create(&me, root, b"f", CreateMode::Unchecked, &unchecked)).unwrap();
    assert_eq!((opened.value.1.size, opened.value.1.mode), (9, 0o600), "only the size is applied");
}

#[test]
fn v3_07_cookies_survive_removal_of_their_entry_and_are_never_reused() {
    let m = open_world();
    let (root, me) = (m.root(), Caller::root());
    for n in 0..10u8 {
        file(&m, &me, root, &[b'a' + n], 0o644);
    }
    let page = now(m.readdir(&me, root, 0, 5, WithAttributes::Yes)).unwrap();
    assert_eq!(page.entries.iter().take(2).map(|e| e.cookie).collect::<Vec<_>>(), [1, 2]);
    assert!(!page.eof && page.entries.iter().all(|e| e.attr.is_some()));
    let last = page.entries.last().unwrap().clone();
    now(m.remove(&me, root, &last.name)).unwrap();
    let rest = now(m.readdir(&me, root, last.cookie, 100, WithAttributes::No)).unwrap();
    assert!(rest.eof);
    assert_eq!(rest.entries.len() + 5, 2 + 1 + 10);
    file(&m, &me, root, &last.name, 0o644);
    let all = now(m.readdir(&me, root, 0, 100, WithAttributes::No)).unwrap();
    assert!(all.entries.iter().all(|e| e.cookie != last.cookie), "a cookie is never reused");
}

#[test]
fn renames_follow_posix() {
    let m = open_world();
    let (root, me) = (m.root(), Caller::root());
    let mv = |from: (ObjectId, &[u8]), to: (ObjectId, &[u8])| now(m.rename(&me, from, to)).map(|_| ());
    let (a, b) = (dir(&m, &me, root, b"a", 0o755), dir(&m, &me, root, b"b", 0o755));
    let inner = dir(&m, &me, a, b"inner", 0o755);
    let f = file(&m, &me, root, b"f", 0o644);
    assert_eq!(mv((root, b"a"), (inner, b"x")), Err(FsError::Invalid), "into itself");
    assert_eq!(mv((a, b"inner"), (root, b"a")), Err(FsError::NotEmpty), "onto its own ancestor");
    assert_eq!(mv((root, b"f"), (root, b"a")), Err(FsError::IsDir));
    assert_eq!(mv((root, b"a"), (root, b"f")), Err(FsError::NotDir));
    assert_eq!(mv((root, b"b"), (root, b"a")), Err(FsError::NotEmpty));
    assert_eq!(mv((root, b"none"), (root, b"x")), Err(FsError::NotFound));
    assert_eq!(mv((root, b"."), (root, b"x")), Err(FsError::BadName));
    now(m.link(&me, f, root, b"g")).unwrap();
    let before = now(m.getattr(root)).unwrap();
    assert_eq!(mv((root, b"f"), (root, b"g")), Ok(()), "two names of one object: nothing happens");
    assert_eq!(now(m.getattr(root)).unwrap(), before);
    assert_eq!(mv((a, b"inner"), (b, b"moved")), Ok(()));
    assert_eq!(now(m.lookup(&me, inner, b"..")).unwrap().0, b);
    let links = |o| now(m.getattr(o)).unwrap().nlink;
    assert_eq!((links(a), links(b), links(root)), (2, 3, 5));
    assert_eq!(mv((root, b"b"), (root, b"a")), Ok(()), "an empty directory is replaced");
    assert_eq!(now(m.getattr(a)), Err(FsError::Stale));
    assert_eq!(links(root), 4);
    let h = file(&m, &me, root, b"h", 0o644);
    let (_, to) = now(m.rename(&me, (root, b"h"), (root, b"f"))).unwrap();
    assert_eq!(to.value, Some(f));
    assert_eq!((links(f), now(m.lookup(&me, root, b"f")).unwrap().0), (1, h));
}

#[test]
fn an_object_without_names_is_stale() {
    let m = open_world();
    let (root, me) = (m.root(), Caller::root());
    let f = file(&m, &me, root, b"f", 0o644);
    now(m.link(&me, f, root, b"g")).unwrap();
    now(m.remove(&me, root, b"f")).unwrap();
    assert_eq!(now(m.getattr(f)).unwrap().nlink, 1, "V3-12: never stale after one of two links");
    now(m.remove(&me, root, b"g")).unwrap();
    assert_eq!(now(m.getattr(f)).unwrap_err(), FsError::Stale);
    assert_eq!(put(&m, &me, f, 0, b"x").unwrap_err(), FsError::Stale);
    let d = dir(&m, &me, root, b"d", 0o755);
    assert_eq!(now(m.remove(&me, root, b"d")).unwrap_err(), FsError::IsDir);
    now(m.rmdir(&me, root, b"d")).unwrap();
    assert_eq!(now(m.create(&me, d, b"x", CreateMode::Guarded, &mode(0))).unwrap_err(), FsError::Stale);
    assert_ne!(file(&m, &me, root, b"f", 0o644), f, "inode numbers are never reused");
}

#[test]
fn permissions_decide_by_the_first_class_that_fits() {
    let m = open_world();
    let root = m.root();
    let (alice, bob) = (user(ALICE, 7), user(BOB, 8));
    let f = file(&m, &alice, root, b"f", 0o064);
    let denied = FsError::AccessDenied;
    assert_eq!(put(&m, &alice, f, 0, b"x").unwrap_err(), denied, "the owner's class has no bits");
    let nfs = Caller { owner_override: true, ..alice.clone() };
    put(&m, &nfs, f, 0, b"x").expect("V3-06: the owner writes whatever the mode");
    now(m.read(&bob, f, 0, 10)).expect("others may read");
    assert_eq!(put(&m, &bob, f, 0, b"y").unwrap_err(), denied);
    let d = dir(&m, &alice, root, b"d", 0o700);
    assert_eq!(now(m.lookup(&bob, d, b"x")).unwrap_err(), denied, "no search before not found");
    assert_eq!(now(m.readdir(&bob, d, 0, 9, WithAttributes::No)).unwrap_err(), denied);
    let make = NewNode::Block(1, 2);
    assert_eq!(now(m.make(&bob, root, b"dev", make, &mode(0))).unwrap_err(), FsError::NotPermitted);
}

#[test]
fn the_sticky_bit_protects_names_of_others() {
    let m = open_world();
    let root = m.root();
    let (alice, bob) = (user(ALICE, 7), user(BOB, 8));
    let tmp = dir(&m, &Caller::root(), root, b"tmp", 0o1777);
    let f = file(&m, &alice, tmp, b"f", 0o666);
    file(&m, &bob, tmp, b"g", 0o666);
    assert_eq!(now(m.remove(&bob, tmp, b"f")).unwrap_err(), FsError::NotPermitted);
    assert_eq!(now(m.rename(&bob, (tmp, b"f"), (root, b"f"))).unwrap_err(), FsError::NotPermitted);
    assert_eq!(now(m.rename(&bob, (tmp, b"g"), (tmp, b"f"))).unwrap_err(), FsError::NotPermitted);
    now(m.rename(&alice, (tmp, b"f"), (tmp, b"h"))).unwrap();
    assert_eq!(now(m.lookup(&alice, tmp, b"h")).unwrap().0, f);
}

#[test]
fn owners_and_privileges_follow_posix() {
    let m = open_world();
    let root = m.root();
    let (alice, bob) = (user(ALICE, 7), user(BOB, 8));
    let f = file(&m, &alice, root, b"f", 0o6775);
    let set = |who: &Caller, set: SetAttr| now(m.setattr(who, f, &set, None)).map(|c| c.post);
    let perm = Err(FsError::NotPermitted);
    assert_eq!(set(&bob, mode(0o777)), perm);
    assert_eq!(set(&alice, SetAttr { uid: Some(BOB), ..SetAttr::default() }), perm);
    assert_eq!(set(&alice, SetAttr { gid: Some(99), ..SetAttr::default() }), perm);
    let attr = set(&alice, SetAttr { gid: Some(STAFF), ..SetAttr::default() }).unwrap();
    assert_eq!((attr.gid, attr.mode), (STAFF, 0o775), "giving it away drops privileges");
    set(&Caller::root(), mode(0o6777)).unwrap();
    let attr = put(&m, &bob, f, 0, b"x").unwrap().post;
    assert_eq!(attr.mode, 0o777, "a write by a user drops privileges");
    set(&Caller::root(), mode(0o6777)).unwrap();
    assert_eq!(put(&m, &Caller::root(), f, 0, b"x").unwrap().post.mode, 0o6777);
    set(&Caller::root(), SetAttr { gid: Some(99), ..SetAttr::default() }).unwrap();
    assert_eq!(set(&alice, mode(0o2770)).unwrap().mode, 0o770, "set-group-id only for members");
}

#[test]
fn set_group_id_directories_hand_on_their_group() {
    let m = open_world();
    let d = dir(&m, &Caller::root(), m.root(), b"d", 0o777);
    let set = SetAttr { mode: Some(0o2777), gid: Some(77), ..SetAttr::default() };
    now(m.setattr(&Caller::root(), d, &set, None)).unwrap();
    let alice = user(ALICE, 7);
    let f = file(&m, &alice, d, b"f", 0o2755);
    let sub = dir(&m, &alice, d, b"sub", 0o755);
    let (f, sub) = (now(m.getattr(f)).unwrap(), now(m.getattr(sub)).unwrap());
    assert_eq!((f.gid, f.mode), (77, 0o755));
    assert_eq!((sub.gid, sub.mode), (77, 0o2755));
}

#[test]
fn v3_17_times_and_guards() {
    let m = open_world();
    let (alice, bob) = (user(ALICE, 7), user(BOB, 8));
    let f = file(&m, &alice, m.root(), b"f", 0o666);
    let now_set = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
    let to_set = SetAttr { mtime: Some(SetTime::To(Timestamp(9))), ..SetAttr::default() };
    now(m.setattr(&bob, f, &now_set, None)).expect("server time needs write permission only");
    assert_eq!(now(m.setattr(&bob, f, &to_set, None)).unwrap_err(), FsError::NotPermitted);
    let before = now(m.getattr(f)).unwrap();
    let stale = Some(Timestamp(before.ctime.0 - 1));
    assert_eq!(now(m.setattr(&alice, f, &to_set, stale)).unwrap_err(), FsError::NotSync);
    let attr = now(m.setattr(&alice, f, &to_set, Some(before.ctime))).unwrap().post;
    assert_eq!(attr.mtime, Timestamp(9));
    assert!(attr.ctime > before.ctime);
    now(m.setattr(&alice, f, &mode(0o644), None)).unwrap();
    assert_eq!(now(m.setattr(&bob, f, &now_set, None)).unwrap_err(), FsError::AccessDenied);
}

#[test]
fn sizes_have_a_limit_and_reads_end_at_the_end() {
    let m = open_world();
    let me = Caller::root();
    let f = file(&m, &me, m.root(), b"f", 0o644);
    assert_eq!(put(&m, &me, f, FILE_SIZE_MAX, b"x").unwrap_err(), FsError::TooBig);
    assert_eq!(put(&m, &me, f, u64::MAX, b"x").unwrap_err(), FsError::TooBig);
    let set = SetAttr { size: Some(FILE_SIZE_MAX), ..SetAttr::default() };
    now(m.setattr(&me, f, &set, None)).unwrap();
    let set = SetAttr { size: Some(10_000), ..SetAttr::default() };
    now(m.setattr(&me, f, &set, None)).unwrap();
    put(&m, &me, f, 5000, b"hello").unwrap();
    let read = now(m.read(&me, f, 4998, 100_000)).unwrap();
    assert!(read.eof && read.to_vec().starts_with(b"\0\0hello\0") && read.len() == 5002);
    assert!(now(m.read(&me, f, u64::MAX, 1)).unwrap().eof);
    let attr = now(m.getattr(f)).unwrap();
    assert_eq!((attr.size, attr.used), (10_000, 4096));
    assert_eq!(now(m.read(&me, m.root(), 0, 1)).unwrap_err(), FsError::IsDir);
}

#[test]
fn xattrs_keep_to_their_namespaces() {
    let m = open_world();
    let (me, root) = (user(ALICE, 7), Caller::root());
    let f = file(&m, &me, m.root(), b"f", 0o600);
    let set = |who: &Caller, name: &[u8], how| now(m.setxattr(who, f, name, b"v", how)).map(|_| ());
    assert_eq!(set(&me, b"user.a", XattrMode::Create), Ok(()));
    assert_eq!(set(&me, b"user.a", XattrMode::Create), Err(FsError::Exists));
    assert_eq!(set(&me, b"user.b", XattrMode::Replace), Err(FsError::NoXattr));
    assert_eq!(set(&me, b"trusted.a", XattrMode::Either), Err(FsError::NotPermitted));
    assert_eq!(set(&root, b"trusted.a", XattrMode::Either), Ok(()));
    assert_eq!(set(&me, b"system.acl", XattrMode::Either), Err(FsError::Unsupported));
    assert_eq!(set(&me, b"user.", XattrMode::Either), Err(FsError::Invalid));
    assert_eq!(now(m.getxattr(&me, f, b"user.a")).unwrap(), b"v");
    assert_eq!(now(m.getxattr(&me, f, b"trusted.a")), Err(FsError::NoXattr));
    assert_eq!(now(m.getxattr(&user(BOB, 8), f, b"user.a")), Err(FsError::AccessDenied));
    assert_eq!(now(m.listxattr(f)).unwrap().len(), 2);
    now(m.removexattr(&me, f, b"user.a")).unwrap();
    assert_eq!(now(m.removexattr(&me, f, b"user.a")).unwrap_err(), FsError::NoXattr);
    let long = vec![0; XATTR_VALUE_MAX + 1];
    let too_big = now(m.setxattr(&me, f, b"user.x", &long, XattrMode::Either));
    assert_eq!(too_big.unwrap_err(), FsError::XattrTooBig);
}

#[test]
fn names_are_checked() {
    let m = open_world();
    let (root, me) = (m.root(), Caller::root());
    let make = |name: &[u8]| now(m.create(&me, root, name, CreateMode::Guarded, &mode(0))).map(|_| ());
    assert_eq!(make(&[b'n'; NAME_MAX]), Ok(()));
    assert_eq!(make(&[b'n'; NAME_MAX + 1]), Err(FsError::NameTooLong));
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert_eq!(make(bad), Err(FsError::BadName));
    }
    let link = NewNode::Symlink(&[b't'; SYMLINK_MAX + 1]);
    assert_eq!(now(m.make(&me, root, b"s", link, &mode(0))).unwrap_err(), FsError::NameTooLong);
    let s = now(m.make(&me, root, b"s", NewNode::Symlink(b"to/here"), &SetAttr::default())).unwrap();
    assert_eq!(now(m.readlink(s.value.0)).unwrap().0, b"to/here");
    assert_eq!(now(m.link(&me, m.root(), root, b"r")).unwrap_err(), FsError::IsDir);
}

#[test]
fn a_clone_is_a_snapshot_and_trees_compare() {
    let m = open_world();
    let me = Caller::root();
    let f = file(&m, &me, m.root(), b"f", 0o644);
    put(&m, &me, f, 8192, b"one").unwrap();
    now(m.link(&me, f, m.root(), b"g")).unwrap();
    let (kept, text) = (m.clone(), m.dump());
    assert_eq!(kept.tree().difference(&m.tree()), None);
    assert_eq!(kept.tree().paths[&b"g"[..]].id, kept.tree().paths[&b"f"[..]].id);
    put(&m, &me, f, 8192, b"two").unwrap();
    assert!(kept.tree().difference(&m.tree()).unwrap().starts_with("/f differs"));
    assert_eq!(kept.dump(), text);
    assert_ne!(m.dump(), text);
    assert_eq!(m.durable_seq(), Seq(0));
    now(m.commit(f, 0, 0)).unwrap();
    assert_eq!(m.durable_seq(), m.seq());
    assert_ne!(m.rebooted().write_verifier(), m.write_verifier());
}
