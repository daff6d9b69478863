//! The filesystem against the reference model, one random call after the other: same answers, same tree.

mod common;

use common::{Shape, data, run};
use moraine_fs::Filesystem;
use moraine_fs::filesystem::Options;
use moraine_fs::vfs::*;
use moraine_model::Model;
use moraine_model::tree::{Tree, now};
use moraine_platform::Timestamp;
use moraine_sim::{Random, World};

const NAMES: [&[u8]; 8] = [b"a", b"b", b"c", b"d", b"e", b"longer name", b"f", b"\xff\xfe"];
const FILE_BYTES: u64 = 300 << 10;

/// The same object on both sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Both {
    model: ObjectId,
    real: ObjectId,
}

struct Pair {
    model: Model,
    real: Filesystem,
    known: Vec<Both>,
}

/// What of a change must be equal: not times, numbers, seqs, space.
fn visible(attr: &Attr) -> (Kind, u32, u32, u32, u32, u64, (u32, u32)) {
    let size = if attr.kind == Kind::Dir { 0 } else { attr.size };
    (attr.kind, attr.mode, attr.nlink, attr.uid, attr.gid, size, attr.rdev)
}

fn check_change<T>(change: &Change<T>) {
    let Change { pre, post, .. } = change;
    assert!(post.ctime > pre.ctime || post.change == pre.change, "v3_11: ctime rises with each change");
    assert!(post.change >= pre.change);
}

fn same<T, U>(what: &str, model: FsResult<T>, real: FsResult<U>) -> Option<(T, U)> {
    match (model, real) {
        (Ok(m), Ok(r)) => Some((m, r)),
        (Err(m), Err(r)) => {
            assert_eq!(m, r, "{what}: errors");
            None
        }
        (m, r) => panic!("{what}: model {:?}, real {:?}", m.err(), r.err()),
    }
}

impl Pair {
    fn learn(&mut self, model: ObjectId, real: ObjectId) {
        let both = Both { model, real };
        match self.known.iter().find(|b| b.model == model || b.real == real) {
            Some(known) => assert_eq!(*known, both, "the same object"),
            None => self.known.push(both),
        }
    }

    async fn step(&mut self, random: &mut Random) {
        let caller = match random.below(4) {
            0 => Caller { uid: 10, gid: 20, groups: vec![30], owner_override: random.percent(50) },
            _ => Caller::root(),
        };
        let (a, b) = (*random.pick(&self.known), *random.pick(&self.known));
        let name = *random.pick(&NAMES);
        let other = *random.pick(&NAMES);
        let (m, r) = (&self.model, &self.real);
        let offset = if random.percent(30) { random.below(40) * 4096 } else { random.below(FILE_BYTES) };
        let len = match random.below(4) {
            0 => random.below(64),
            1 => random.below(5000),
            2 => 4096 * random.below(20),
            _ => random.below(100_000),
        };
        match random.below(34) {
            0..=3 => {
                let how = match random.below(3) {
                    0 => CreateMode::Unchecked,
                    1 => CreateMode::Guarded,
                    _ => CreateMode::Exclusive([random.below(3) as u8; 8]),
                };
                let mut set = SetAttr { mode: Some(random.below(0o10000) as u32), ..SetAttr::default() };
                if random.percent(20) {
                    set.size = Some(random.below(10_000));
                }
                let left = now(m.create(&caller, a.model, name, how, &set));
                let right = r.create(&caller, a.real, name, how, &set).await;
                if let Some((m, r)) = same("create", left, right) {
                    assert_eq!(visible(&m.value.1), visible(&r.value.1));
                    self.learn(m.value.0, r.value.0);
                }
            }
            4..=5 => {
                let node = match random.below(5) {
                    0 => NewNode::Symlink(b"some/where"),
                    1 => NewNode::Char(5, 6),
                    2 => NewNode::Fifo,
                    _ => NewNode::Dir,
                };
                let set = SetAttr { mode: Some(random.below(0o10000) as u32), ..SetAttr::default() };
                let left = now(m.make(&caller, a.model, name, node, &set));
                let right = r.make(&caller, a.real, name, node, &set).await;
                if let Some((m, r)) = same("make", left, right) {
                    check_change(&r);
                    assert_eq!(visible(&m.post), visible(&r.post));
                    self.learn(m.value.0, r.value.0);
                }
            }
            6 => {
                let left = now(m.remove(&caller, a.model, name));
                same("remove", left, r.remove(&caller, a.real, name).await);
            }
            7 => {
                let left = now(m.rmdir(&caller, a.model, name));
                same("rmdir", left, r.rmdir(&caller, a.real, name).await);
            }
            8..=10 => {
                let left = now(m.rename(&caller, (a.model, name), (b.model, other)));
                let right = r.rename(&caller, (a.real, name), (b.real, other)).await;
                if let Some((m, r)) = same("rename", left, right) {
                    check_change(&r.0);
                    check_change(&r.1);
                    assert_eq!(visible(&m.0.post), visible(&r.0.post));
                    assert_eq!(visible(&m.1.post), visible(&r.1.post));
                    assert_eq!(m.1.value.is_some(), r.1.value.is_some());
                }
            }
            11 => {
                let left = now(m.link(&caller, a.model, b.model, name));
                let right = r.link(&caller, a.real, b.real, name).await;
                if let Some((m, r)) = same("link", left, right) {
                    assert_eq!(visible(&m.value), visible(&r.value));
                }
            }
            12..=13 => {
                let left = now(m.lookup(&caller, a.model, name));
                let right = r.lookup(&caller, a.real, name).await;
                if let Some((m, r)) = same("lookup", left, right) {
                    assert_eq!(visible(&m.1), visible(&r.1));
                    self.learn(m.0, r.0);
                }
            }
            14..=15 => {
                let mut set = SetAttr::default();
                if random.percent(40) {
                    set.mode = Some(random.below(0o10000) as u32);
                }
                if random.percent(20) {
                    set.uid = Some(if random.percent(50) { 10 } else { 0 });
                }
                if random.percent(20) {
                    set.gid = Some(if random.percent(50) { 20 } else { 30 });
                }
                if random.percent(30) {
                    set.mtime = Some(SetTime::To(Timestamp(random.below(1 << 40))));
                }
                if random.percent(50) {
                    set.size = Some(if random.percent(80) { offset } else { u64::MAX });
                }
                let left = now(m.setattr(&caller, a.model, &set, None));
                let right = r.setattr(&caller, a.real, &set, None).await;
                if let Some((m, r)) = same("setattr", left, right) {
                    check_change(&r);
                    assert_eq!(visible(&m.post), visible(&r.post));
                    if m.post.kind != Kind::Dir {
                        assert_eq!(
                            (m.pre.size, m.post.size),
                            (r.pre.size, r.post.size),
                            "sizes before and after"
                        );
                    }
                    if let Some(SetTime::To(time)) = set.mtime {
                        assert_eq!(r.post.mtime, time);
                    }
                }
            }
            16..=22 => {
                let stability = match random.below(4) {
                    0 => Stability::DataSync,
                    1 => Stability::FileSync,
                    _ => Stability::Unstable,
                };
                let bytes = common::pattern(random.next_u64(), len as usize);
                let left = now(m.write(&caller, a.model, offset, data(offset, &bytes), stability));
                let right = r.write(&caller, a.real, offset, data(offset, &bytes), stability).await;
                if let Some((m, r)) = same("write", left, right) {
                    check_change(&r);
                    assert_eq!(visible(&m.post), visible(&r.post));
                    assert_eq!((m.pre.size, m.value.count), (r.pre.size, r.value.count));
                    assert!(r.value.stability >= stability);
                }
            }
            23..=26 => {
                let len = len as u32;
                let left = now(m.read(&caller, a.model, offset, len));
                let right = r.read(&caller, a.real, offset, len).await;
                if let Some((m, r)) = same("read", left, right) {
                    assert!(m.to_vec() == r.to_vec(), "bytes at {offset}+{len}");
                    assert_eq!((m.eof, visible(&m.attr)), (r.eof, visible(&r.attr)));
                }
            }
            27 => {
                let left = now(m.commit(a.model, 0, 0));
                same("commit", left, r.commit(a.real, offset, len).await);
            }
            28..=29 => {
                let left = now(m.punch(&caller, a.model, offset, len));
                let right = r.punch(&caller, a.real, offset, len).await;
                if let Some((m, r)) = same("punch", left, right) {
                    check_change(&r);
                    assert_eq!(visible(&m.post), visible(&r.post));
                }
            }
            30 => {
                let names = [&b"user.x"[..], b"user.y", b"trusted.z"];
                let (name, value) = (*random.pick(&names), [7; 9]);
                let left = now(m.setxattr(&caller, a.model, name, &value, XattrMode::Either));
                same("setxattr", left, r.setxattr(&caller, a.real, name, &value, XattrMode::Either).await);
            }
            31 => {
                let left = now(m.removexattr(&caller, a.model, b"user.x"));
                same("removexattr", left, r.removexattr(&caller, a.real, b"user.x").await);
            }
            32 => {
                let left = now(m.getattr(a.model));
                if let Some((m, r)) = same("getattr", left, r.getattr(a.real).await) {
                    assert_eq!(visible(&m), visible(&r));
                }
            }
            _ => {
                let left = now(m.segments(a.model, offset, len + 1));
                if let Some((_, r)) = same("segments", left, r.segments(a.real, offset, len + 1).await) {
                    let mut at = offset;
                    for segment in r {
                        assert!(segment.offset == at && segment.len > 0, "segments leave no gap");
                        at += segment.len;
                    }
                    assert!(at > offset && at <= offset + len + 1);
                }
            }
        }
    }
}

fn lockstep(seed: u64, steps: u32, shape: Shape) {
    run(seed, shape, async |world: &World, fs: Filesystem| {
        let mut random = world.random("lockstep");
        let model = Model::new(world.platform().clock, world.platform().rng);
        let roots = Both { model: model.root(), real: fs.root() };
        let volumes = Both {
            model: now(model.lookup(&Caller::root(), roots.model, b"volumes")).unwrap().0,
            real: fs.lookup(&Caller::root(), roots.real, b"volumes").await.unwrap().0,
        };
        let mut pair = Pair { model, real: fs.clone(), known: vec![roots, volumes] };
        for step in 0..steps {
            pair.step(&mut random).await;
            if step % 64 == 63 {
                // Objects without a name may go from the list, so that the live ones are drawn more often.
                let gone: Vec<bool> =
                    pair.known.iter().map(|b| now(pair.model.getattr(b.model)).is_err()).collect();
                let mut gone = gone.into_iter();
                pair.known.retain(|_| !gone.next().unwrap());
            }
        }
        compare(&pair).await;
        fs.sync_all().await.unwrap();
        compare(&pair).await;
    });
}

async fn compare(pair: &Pair) {
    let real = Tree::walk(&pair.real).await.unwrap();
    if let Some(difference) = pair.model.tree().difference(&real) {
        panic!("{difference}");
    }
}

#[test]
fn same_answers_as_the_model() {
    for seed in 0..40 {
        lockstep(seed, 600, Shape::default());
    }
}

#[test]
fn same_answers_with_colliding_names_and_a_tiny_cache() {
    let options = Options { hash_bits: 3, cut_keys: 2 };
    for seed in 0..40 {
        lockstep(1000 + seed, 600, Shape { cache_bytes: 1 << 20, options, ..Shape::default() });
    }
}
