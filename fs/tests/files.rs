//! Files by example: what each call of the façade promises, one test a promise.

mod common;

use common::*;
use moraine_fs::filesystem::Options;
use moraine_fs::vfs::*;
use moraine_fs::{Filesystem, FsError};
use moraine_platform::{BLOCK_SIZE, Buf, Timestamp};
use moraine_sim::World;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

const BLOCK: u64 = BLOCK_SIZE as u64;

fn one(test: impl AsyncFnOnce(&World, Filesystem)) {
    run(1, Shape::default(), test);
}

/// In several worlds: other orders of tasks, other yields.
fn many(test: impl AsyncFn(&World, Filesystem)) {
    for seed in 0..30 {
        run(seed, Shape::default(), async |world, fs| test(world, fs).await);
    }
}

/// Runs tasks side by side in the world and waits for all.
async fn together(world: &World, tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>>) {
    let left = Rc::new(Cell::new(tasks.len()));
    let done = Rc::new(moraine_platform::sync::Event::new());
    for task in tasks {
        let (left, done) = (left.clone(), done.clone());
        world.platform().spawn.spawn(
            "test",
            Box::pin(async move {
                task.await;
                left.set(left.get() - 1);
                done.notify();
            }),
        );
    }
    done.until(|| (left.get() == 0).then_some(())).await;
}

#[test]
fn a_new_pool_has_a_root_and_volumes() {
    one(async |_, fs| {
        let attr = fs.getattr(fs.root()).await.unwrap();
        assert_eq!((attr.kind, attr.mode, attr.nlink, attr.uid), (Kind::Dir, 0o755, 3, 0));
        let (volumes, attr) = fs.lookup(&root(), fs.root(), b"volumes").await.unwrap();
        assert_eq!((attr.kind, attr.mode, attr.nlink), (Kind::Dir, 0o755, 2));
        assert_eq!(fs.lookup(&root(), volumes, b"..").await.unwrap().0, fs.root());
        assert_eq!(fs.lookup(&root(), fs.root(), b"..").await.unwrap().0, fs.root());
    });
}

#[test]
fn unsynced_writes_are_seen_and_lost_together_with_their_size() {
    one(async |_, fs| {
        let f = file(&fs, b"f").await;
        write(&fs, f, 0, &pattern(1, 10_000), Stability::FileSync).await;
        let lost = write(&fs, f, 8_000, &pattern(2, 90_000), Stability::Unstable).await;
        assert_eq!((lost.pre.size, lost.post.size), (10_000, 98_000));
        assert_eq!(fs.getattr(f).await.unwrap(), lost.post, "strictly the same attributes");
        let mut expected = pattern(1, 10_000);
        expected.truncate(8_000);
        expected.extend(pattern(2, 90_000));
        assert!(content(&fs, f).await == expected);
        // The machine dies: only what was committed is there.
        let again = open(engine_of(&fs), Shape::default()).await;
        let attr = again.getattr(f).await.unwrap();
        assert_eq!(attr.size, 10_000);
        assert!(content(&again, f).await == pattern(1, 10_000));
        assert_ne!(again.write_verifier(), fs.write_verifier(), "v3_01: clients must send it again");
    });
}

#[test]
fn commit_makes_data_size_and_times_survive() {
    one(async |_, fs| {
        let f = file(&fs, b"f").await;
        let written = write(&fs, f, 5 * BLOCK + 7, &pattern(3, 300_000), Stability::Unstable).await;
        let done = fs.commit(f, 0, 0).await.unwrap();
        assert_eq!(done.value.verifier, written.value.verifier);
        let again = open(engine_of(&fs), Shape::default()).await;
        let attr = again.getattr(f).await.unwrap();
        assert_eq!((attr.size, attr.mtime, attr.change), (done.post.size, done.post.mtime, done.post.change));
        let mut expected = vec![0; 5 * BLOCK_SIZE + 7];
        expected.extend(pattern(3, 300_000));
        assert!(content(&again, f).await == expected);
        assert_eq!(attr.used, 74 * BLOCK, "the hole before it takes nothing");
    });
}

#[test]
fn small_sync_writes_go_into_keys_and_move_out_later() {
    one(async |world, fs| {
        let f = file(&fs, b"f").await;
        let mut expected = vec![0u8; 400 * BLOCK_SIZE];
        fs.setattr(&root(), f, &with_size(expected.len() as u64), None).await.unwrap();
        for n in 0..100u64 {
            let at = n * 7919 % (399 * BLOCK);
            let bytes = pattern(n, 512);
            expected[at as usize..][..512].copy_from_slice(&bytes);
            write(&fs, f, at, &bytes, Stability::DataSync).await;
        }
        let again = open(engine_of(&fs), Shape::default()).await;
        assert!(content(&again, f).await == expected, "before anything moved");
        let used = fs.getattr(f).await.unwrap().used;
        world.platform().clock.sleep(std::time::Duration::from_secs(20)).await;
        let after = open(engine_of(&fs), Shape::default()).await;
        assert!(content(&after, f).await == expected, "after all moved");
        assert_eq!(fs.getattr(f).await.unwrap().used, used);
    });
}

#[test]
fn whole_blocks_are_adopted_and_partial_ones_merged() {
    one(async |_, fs| {
        let f = file(&fs, b"f").await;
        write(&fs, f, 0, &[1; 3 * BLOCK_SIZE], Stability::FileSync).await;
        let mut buf = Buf::zeroed(4 * BLOCK_SIZE).unwrap();
        buf.fill(2);
        let data = WriteData { buf, skip: 100, len: 3 * BLOCK_SIZE };
        fs.write(&root(), f, BLOCK + 100, data, Stability::Unstable).await.unwrap();
        let mut expected = vec![1; BLOCK_SIZE + 100];
        expected.extend([2; 3 * BLOCK_SIZE]);
        assert!(content(&fs, f).await == expected);
        fs.sync_all().await.unwrap();
        assert!(content(&open(engine_of(&fs), Shape::default()).await, f).await == expected);
    });
}

#[test]
fn concurrent_writers_to_one_block_lose_nothing() {
    many(async |world, fs| {
        let f = file(&fs, b"f").await;
        write(&fs, f, 0, &[9; 2 * BLOCK_SIZE], Stability::FileSync).await;
        // Nothing of it in memory: everybody has to load first.
        let fs = open(engine_of(&fs), Shape::default()).await;
        let mut tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
        for n in 0..8u64 {
            let fs = fs.clone();
            tasks.push(Box::pin(async move {
                let stability = if n % 2 == 0 { Stability::Unstable } else { Stability::FileSync };
                write(&fs, f, n * 512 + 3000, &[n as u8; 512], stability).await;
            }));
        }
        together(world, tasks).await;
        let mut expected = vec![9; 2 * BLOCK_SIZE];
        for n in 0..8 {
            expected[n * 512 + 3000..][..512].fill(n as u8);
        }
        assert!(content(&fs, f).await == expected);
        fs.commit(f, 0, 0).await.unwrap();
        assert!(content(&open(engine_of(&fs), Shape::default()).await, f).await == expected);
        fs.shutdown().await.unwrap();
    });
}

#[test]
fn a_sync_write_is_never_overtaken_by_an_older_write_back() {
    many(async |world, fs| {
        let f = file(&fs, b"f").await;
        let mut tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
        for n in 0..6u8 {
            let fs = fs.clone();
            tasks.push(Box::pin(async move {
                for round in 0..5u8 {
                    let value = [n * 5 + round; BLOCK_SIZE];
                    write(&fs, f, n as u64 * BLOCK, &value, Stability::Unstable).await;
                    if round % 2 == 0 {
                        fs.commit(f, 0, 0).await.unwrap();
                    }
                    write(&fs, f, n as u64 * BLOCK, &value, Stability::FileSync).await;
                    let again = open(engine_of(&fs), Shape::default()).await;
                    let read = again.read(&root(), f, n as u64 * BLOCK, 1).await.unwrap();
                    assert_eq!(read.to_vec(), [value[0]], "what was acknowledged is what survives");
                    again.shutdown().await.unwrap();
                }
            }));
        }
        together(world, tasks).await;
    });
}

#[test]
fn truncate_forgets_what_was_cut_for_ever() {
    one(async |_, fs| {
        let f = file(&fs, b"f").await;
        for sync in [Stability::Unstable, Stability::FileSync] {
            write(&fs, f, 0, &[7; 50_000], sync).await;
            fs.setattr(&root(), f, &with_size(10_001), None).await.unwrap();
            fs.setattr(&root(), f, &with_size(50_000), None).await.unwrap();
            let mut expected = vec![7; 10_001];
            expected.resize(50_000, 0);
            assert!(content(&fs, f).await == expected);
            let again = open(engine_of(&fs), Shape::default()).await;
            let survived = content(&again, f).await;
            assert!(survived[10_001..].iter().all(|b| *b == 0), "nothing old shows behind the cut");
        }
    });
}

#[test]
fn a_big_truncate_takes_bounded_commits_and_goes_on_after_a_crash() {
    let options = Options { cut_keys: 3, ..Options::default() };
    let shape = Shape { options, ..Shape::default() };
    run(5, shape, async |_, fs| {
        let f = file(&fs, b"f").await;
        for n in 0..100 {
            write(&fs, f, n * 2 * BLOCK, &pattern(n, BLOCK_SIZE), Stability::FileSync).await;
        }
        fs.sync_all().await.unwrap();
        let change = fs.setattr(&root(), f, &with_size(5 * BLOCK + 9), None).await.unwrap();
        assert_eq!(change.post.size, 5 * BLOCK + 9);
        // Whoever writes behind the cut waits for it: nothing of this may be deleted by the steps.
        let engine = engine_of(&fs);
        let again = open(engine.clone(), shape).await;
        assert_eq!(again.getattr(f).await.unwrap().size, 5 * BLOCK + 9);
        again.setattr(&root(), f, &with_size(200 * BLOCK), None).await.unwrap();
        let read = again.read(&root(), f, 6 * BLOCK, 194 * BLOCK as u32).await.unwrap();
        assert!(read.to_vec().iter().all(|b| *b == 0));
        write(&again, f, 60 * BLOCK, &[5; BLOCK_SIZE], Stability::FileSync).await;
        again.shutdown().await.unwrap();
        let last = open(engine, shape).await;
        assert_eq!(last.read(&root(), f, 60 * BLOCK, 4096).await.unwrap().to_vec(), [5; BLOCK_SIZE]);
        assert_eq!(last.getattr(f).await.unwrap().used, 4 * BLOCK);
        last.shutdown().await.unwrap();
    });
}

#[test]
fn holes_are_told_from_cached_and_stored_data_alike() {
    one(async |_, fs| {
        let f = file(&fs, b"f").await;
        write(&fs, f, 4 * BLOCK, &[1; BLOCK_SIZE], Stability::FileSync).await;
        fs.sync_all().await.unwrap();
        write(&fs, f, 8 * BLOCK, &[1; BLOCK_SIZE], Stability::Unstable).await;
        write(&fs, f, 12 * BLOCK, &[1; BLOCK_SIZE], Stability::FileSync).await;
        fs.setattr(&root(), f, &with_size(20 * BLOCK), None).await.unwrap();
        let found: Vec<_> = fs
            .segments(f, 0, 20 * BLOCK)
            .await
            .unwrap()
            .iter()
            .map(|s| (s.offset / BLOCK, s.len / BLOCK, s.hole))
            .collect();
        assert_eq!(
            found,
            [
                (0, 4, true),
                (4, 1, false),
                (5, 3, true),
                (8, 1, false),
                (9, 3, true),
                (12, 1, false),
                (13, 7, true)
            ]
        );
        fs.punch(&root(), f, 4 * BLOCK, 5 * BLOCK).await.unwrap();
        let found: Vec<_> = fs
            .segments(f, BLOCK, 18 * BLOCK)
            .await
            .unwrap()
            .iter()
            .map(|s| (s.offset / BLOCK, s.len / BLOCK, s.hole))
            .collect();
        assert_eq!(found, [(1, 11, true), (12, 1, false), (13, 6, true)]);
    });
}

#[test]
fn v3_05_exclusive_create_is_repeatable_by_its_verifier_only() {
    one(async |_, fs| {
        let create = async |verifier| {
            let how = CreateMode::Exclusive(verifier);
            fs.create(&root(), fs.root(), b"x", how, &SetAttr::default()).await
        };
        let first = create([1; 8]).await.unwrap().value;
        let again = create([1; 8]).await.unwrap().value;
        assert_eq!(first, again, "the same file, its times untouched");
        assert_eq!(create([2; 8]).await.unwrap_err(), FsError::Exists);
        let reopened = open(engine_of(&fs), Shape::default()).await;
        let how = CreateMode::Exclusive([1; 8]);
        let after = reopened.create(&root(), fs.root(), b"x", how, &SetAttr::default()).await.unwrap();
        assert_eq!(after.value.0, first.0, "the verifier survives");
    });
}

#[test]
fn v3_10_a_change_tells_what_was_just_before_it() {
    many(async |world, fs| {
        let d = dir(&fs, fs.root(), b"d").await;
        let f = file(&fs, b"f").await;
        let seen = Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
        for n in 0..4u8 {
            let (fs, seen) = (fs.clone(), seen.clone());
            tasks.push(Box::pin(async move {
                for round in 0..5u8 {
                    let name = [b'a' + n, b'0' + round];
                    let made =
                        fs.create(&root(), d, &name, CreateMode::Guarded, &SetAttr::default()).await.unwrap();
                    seen.borrow_mut().push((
                        0,
                        made.pre.change,
                        made.post.change,
                        made.pre.ctime,
                        made.post.ctime,
                    ));
                    let wrote = write(&fs, f, round as u64 * 3000, &name, Stability::Unstable).await;
                    seen.borrow_mut().push((
                        1,
                        wrote.pre.change,
                        wrote.post.change,
                        wrote.pre.ctime,
                        wrote.post.ctime,
                    ));
                    let set = fs.setattr(&root(), f, &with_mode(0o600 + round as u32), None).await.unwrap();
                    seen.borrow_mut().push((
                        1,
                        set.pre.change,
                        set.post.change,
                        set.pre.ctime,
                        set.post.ctime,
                    ));
                }
            }));
        }
        together(world, tasks).await;
        for which in [0, 1] {
            let mut chain: Vec<_> = seen.borrow().iter().filter(|s| s.0 == which).copied().collect();
            chain.sort();
            for pair in chain.windows(2) {
                assert!(pair[0].2 <= pair[1].1, "changes do not overlap: {pair:?}");
                assert!(pair[0].4 <= pair[1].3, "nor do their times: {pair:?}");
                if pair[0].2 == pair[1].1 {
                    assert_eq!(pair[0].4, pair[1].3, "the same state has the same ctime");
                }
            }
            assert!(chain.iter().all(|c| c.2 > c.1 && c.4 > c.3));
        }
    });
}

#[test]
fn v3_11_ctime_rises_while_the_clock_stands() {
    one(async |world, fs| {
        world.jump_wall_clock(-1_000_000_000_000);
        let f = file(&fs, b"f").await;
        let mut last = fs.getattr(f).await.unwrap();
        for n in 0..1000u64 {
            let post = match n % 3 {
                0 => write(&fs, f, n, b"x", Stability::Unstable).await.post,
                1 => fs.setattr(&root(), f, &with_mode(0o600), None).await.unwrap().post,
                _ => fs.link(&root(), f, fs.root(), format!("l{n}").as_bytes()).await.unwrap().value,
            };
            assert!(post.ctime > last.ctime && post.change > last.change);
            last = post;
        }
    });
}

#[test]
fn v3_17_a_guard_compares_ctime_exactly() {
    one(async |_, fs| {
        let f = file(&fs, b"f").await;
        let attr = fs.getattr(f).await.unwrap();
        let off = Timestamp(attr.ctime.0 + 1);
        let set = with_mode(0o600);
        assert_eq!(fs.setattr(&root(), f, &set, Some(off)).await.unwrap_err(), FsError::NotSync);
        fs.setattr(&root(), f, &set, Some(attr.ctime)).await.unwrap();
        assert_eq!(fs.setattr(&root(), f, &set, Some(attr.ctime)).await.unwrap_err(), FsError::NotSync);
    });
}

#[test]
fn v3_13_without_a_name_a_handle_is_stale_and_everything_of_it_goes() {
    one(async |_, fs| {
        let f = file(&fs, b"f").await;
        fs.link(&root(), f, fs.root(), b"g").await.unwrap();
        write(&fs, f, 0, &[1; 100_000], Stability::FileSync).await;
        fs.setxattr(&root(), f, b"user.a", b"b", XattrMode::Create).await.unwrap();
        write(&fs, f, 0, &[2; 100_000], Stability::Unstable).await;
        fs.remove(&root(), fs.root(), b"f").await.unwrap();
        assert_eq!(fs.getattr(f).await.unwrap().nlink, 1, "the other name keeps it");
        fs.remove(&root(), fs.root(), b"g").await.unwrap();
        assert_eq!(fs.getattr(f).await.unwrap_err(), FsError::Stale);
        let bytes = data(0, b"x");
        assert_eq!(fs.write(&root(), f, 0, bytes, Stability::FileSync).await.unwrap_err(), FsError::Stale);
        assert_eq!(fs.commit(f, 0, 0).await.unwrap_err(), FsError::Stale);
    });
}

#[test]
fn orphans_of_a_crash_are_reaped_at_the_next_mount() {
    one(async |_, fs| {
        let f = file(&fs, b"f").await;
        for n in 0..500 {
            write(&fs, f, n * 2 * BLOCK, &[1; 10], Stability::Unstable).await;
        }
        fs.commit(f, 0, 0).await.unwrap();
        fs.shutdown().await.unwrap();
        assert_eq!(fs.getattr(f).await.unwrap_err(), FsError::ShuttingDown);
        let engine = engine_of(&fs);
        assert!(keys_of(&engine, f.inode).await > 500);
        let again = open(engine.clone(), Shape::default()).await;
        again.remove(&root(), fs.root(), b"f").await.unwrap();
        // It dies before the reaper had its turn, or after some of its steps.
        again.shutdown().await.unwrap();
        let last = open(engine.clone(), Shape::default()).await;
        last.reap().await.unwrap();
        assert_eq!(keys_of(&engine, f.inode).await, 0, "nothing is left of it in any tree");
        last.shutdown().await.unwrap();
    });
}

#[test]
fn v3_07_listing_by_single_entries_is_complete_whatever_others_do() {
    let options = Options { hash_bits: 3, ..Options::default() };
    for seed in 0..20 {
        run(seed, Shape { options, ..Shape::default() }, async |world, fs| {
            let d = dir(&fs, fs.root(), b"d").await;
            let mut stay = BTreeSet::new();
            for n in 0..40 {
                let name = format!("stay{n}").into_bytes();
                fs.create(&root(), d, &name, CreateMode::Guarded, &SetAttr::default()).await.unwrap();
                stay.insert(name);
            }
            let stop = Rc::new(Cell::new(false));
            let other = {
                let (fs, stop, mut random) = (fs.clone(), stop.clone(), world.random("other"));
                async move {
                    let caller = root();
                    while !stop.get() {
                        let name = format!("other{}", random.below(30)).into_bytes();
                        let to = format!("other{}", random.below(30)).into_bytes();
                        let _ = match random.below(3) {
                            0 => fs
                                .create(&caller, d, &name, CreateMode::Guarded, &SetAttr::default())
                                .await
                                .map(|_| ()),
                            1 => fs.remove(&caller, d, &name).await.map(|_| ()),
                            _ => fs.rename(&caller, (d, &name), (d, &to)).await.map(|_| ()),
                        };
                        moraine_platform::sync::yield_point().await;
                    }
                }
            };
            let reader = {
                let (fs, stop) = (fs.clone(), stop.clone());
                async move {
                    for _ in 0..3 {
                        let (mut cookie, mut seen) = (0, Vec::new());
                        loop {
                            let page = fs.readdir(&root(), d, cookie, 1, WithAttributes::Yes).await.unwrap();
                            assert!(page.entries.len() <= 1);
                            for entry in page.entries {
                                assert!(entry.cookie > cookie && entry.cookie < 1 << 63);
                                cookie = entry.cookie;
                                seen.push(entry.name.to_vec());
                            }
                            if page.eof {
                                break;
                            }
                        }
                        let unique: BTreeSet<_> = seen.iter().cloned().collect();
                        for name in &stay {
                            assert!(unique.contains(name), "an entry that stays is listed");
                            assert_eq!(seen.iter().filter(|n| *n == name).count(), 1, "and once");
                        }
                        assert_eq!(&seen[..2], [b".".to_vec(), b"..".to_vec()]);
                    }
                    stop.set(true);
                }
            };
            together(world, vec![Box::pin(other), Box::pin(reader)]).await;
        });
    }
}

#[test]
fn two_renames_cannot_make_a_loop_together() {
    let mut both_orders = BTreeSet::new();
    for seed in 0..60 {
        run(seed, Shape::default(), async |world, fs| {
            let a = dir(&fs, fs.root(), b"a").await;
            let b = dir(&fs, fs.root(), b"b").await;
            let below_a = dir(&fs, a, b"x").await;
            let below_b = dir(&fs, b, b"y").await;
            let results = Rc::new(std::cell::RefCell::new(Vec::new()));
            let top = fs.root();
            let mut tasks: Vec<std::pin::Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
            for (name, into) in [(&b"a"[..], below_b), (b"b", below_a)] {
                let (fs, results) = (fs.clone(), results.clone());
                tasks.push(Box::pin(async move {
                    let result = fs.rename(&root(), (top, name), (into, b"moved")).await.map(|_| ());
                    results.borrow_mut().push((name, result));
                }));
            }
            together(world, tasks).await;
            let results = results.take();
            let won: Vec<_> = results.iter().filter(|r| r.1.is_ok()).collect();
            assert_eq!(won.len(), 1, "one of them: {results:?}");
            assert!(results.iter().any(|r| r.1 == Err(FsError::Invalid)));
            both_orders.insert(won[0].0);
            // Everything is still reached from the root.
            moraine_model::tree::Tree::walk(&fs).await.unwrap();
        });
    }
    assert_eq!(both_orders.len(), 2, "each wins in some world");
}

#[test]
fn a_rename_over_a_file_leaves_old_or_new_content() {
    one(async |_, fs| {
        let old = file(&fs, b"config").await;
        write(&fs, old, 0, b"old", Stability::FileSync).await;
        let new = file(&fs, b"config.tmp").await;
        write(&fs, new, 0, &pattern(4, 20_000), Stability::Unstable).await;
        let top = fs.root();
        let (_, to) = fs.rename(&root(), (top, b"config.tmp"), (top, b"config")).await.unwrap();
        assert_eq!(to.value, Some(old));
        let again = open(engine_of(&fs), Shape::default()).await;
        let (found, _) = again.lookup(&root(), top, b"config").await.unwrap();
        assert_eq!(found, new);
        assert!(content(&again, new).await == pattern(4, 20_000), "never an empty file");
    });
}

#[test]
fn a_full_pool_says_so_and_deleting_works() {
    let shape = Shape { pool_bytes: FULL_POOL_BYTES, cache_bytes: 4 << 20, ..Shape::default() };
    run(9, shape, async |_, fs| {
        let mut files = Vec::new();
        let full = 'fill: loop {
            let name = format!("f{}", files.len());
            let created =
                fs.create(&root(), fs.root(), name.as_bytes(), CreateMode::Guarded, &with_mode(0o644)).await;
            let f = match created {
                Ok(made) => made.value.0,
                Err(e) => break e,
            };
            files.push((name, f));
            for n in 0..16 {
                let bytes = data(0, &pattern(n, 65536));
                if let Err(e) = fs.write(&root(), f, n * 65536, bytes, Stability::Unstable).await {
                    break 'fill e;
                }
            }
        };
        assert_eq!(full, FsError::NoSpace);
        assert!(files.len() > 4);
        fs.sync_all().await.expect("what was accepted has its space");
        for (name, f) in &files[..files.len() - 1] {
            assert!(content(&fs, *f).await.chunks(65536).zip(0..).all(|(c, n)| c == pattern(n, 65536)));
            fs.remove(&root(), fs.root(), name.as_bytes()).await.expect("deleting always works");
        }
    });
}

#[test]
fn permissions_are_checked_with_the_change() {
    one(async |_, fs| {
        let f = file(&fs, b"f").await;
        write(&fs, f, 0, b"secret", Stability::Unstable).await;
        fs.setattr(&root(), f, &with_mode(0o600), None).await.unwrap();
        let alice = user(7);
        assert_eq!(fs.read(&alice, f, 0, 10).await.unwrap_err(), FsError::AccessDenied);
        let denied = fs.write(&alice, f, 0, data(0, b"x"), Stability::Unstable).await.unwrap_err();
        assert_eq!(denied, FsError::AccessDenied);
        assert_eq!(fs.remove(&alice, fs.root(), b"f").await.unwrap_err(), FsError::AccessDenied);
        let tmp = dir(&fs, fs.root(), b"tmp").await;
        fs.setattr(&root(), tmp, &with_mode(0o1777), None).await.unwrap();
        let mine =
            fs.create(&alice, tmp, b"mine", CreateMode::Guarded, &with_mode(0o4777)).await.unwrap().value;
        assert_eq!((mine.1.uid, mine.1.mode), (7, 0o4777));
        assert_eq!(fs.remove(&user(8), tmp, b"mine").await.unwrap_err(), FsError::NotPermitted);
        let change = fs.write(&user(8), mine.0, 0, data(0, b"x"), Stability::Unstable).await.unwrap();
        assert_eq!(change.post.mode, 0o777, "a stranger's write takes set-user-id away");
        fs.commit(mine.0, 0, 0).await.unwrap();
        let again = open(engine_of(&fs), Shape::default()).await;
        assert_eq!(again.getattr(mine.0).await.unwrap().mode, 0o777);
    });
}

#[test]
fn extended_attributes_live_in_namespaces_and_survive_collisions() {
    let options = Options { hash_bits: 3, ..Options::default() };
    run(3, Shape { options, ..Shape::default() }, async |_, fs| {
        let f = file(&fs, b"f").await;
        for n in 0..50 {
            let name = format!("user.n{n}");
            fs.setxattr(&root(), f, name.as_bytes(), &[n; 20], XattrMode::Create).await.unwrap();
        }
        for n in (0..50).step_by(2) {
            fs.removexattr(&root(), f, format!("user.n{n}").as_bytes()).await.unwrap();
        }
        for n in 0..50 {
            let got = fs.getxattr(&root(), f, format!("user.n{n}").as_bytes()).await;
            if n % 2 == 0 {
                assert_eq!(got, Err(FsError::NoXattr));
            } else {
                assert_eq!(got, Ok(vec![n; 20]));
            }
        }
        assert_eq!(fs.listxattr(f).await.unwrap().len(), 25);
        let big = vec![1; XATTR_VALUE_MAX + 1];
        let too_big = fs.setxattr(&root(), f, b"user.big", &big, XattrMode::Either).await.unwrap_err();
        assert_eq!(too_big, FsError::XattrTooBig);
        fs.setxattr(&root(), f, b"user.big", &big[1..], XattrMode::Either).await.unwrap();
        assert_eq!(fs.getxattr(&root(), f, b"user.big").await.unwrap().len(), XATTR_VALUE_MAX);
    });
}

#[test]
fn inode_numbers_are_never_used_twice() {
    one(async |_, fs| {
        let mut seen = BTreeSet::new();
        let mut fs = fs;
        for round in 0..5 {
            for n in 0..300 {
                let name = format!("{round}-{n}");
                let f = file(&fs, name.as_bytes()).await;
                assert!(seen.insert(f.inode));
                if n % 3 == 0 {
                    fs.remove(&root(), fs.root(), name.as_bytes()).await.unwrap();
                }
            }
            let engine = engine_of(&fs);
            fs = open(engine, Shape::default()).await;
        }
    });
}

#[test]
fn writers_are_slowed_and_memory_stays_bounded() {
    let shape = Shape { cache_bytes: 2 << 20, ..Shape::default() };
    run(11, shape, async |_, fs| {
        let f = file(&fs, b"f").await;
        for n in 0..400u64 {
            write(&fs, f, n * 65536, &pattern(n, 65536), Stability::Unstable).await;
            let (held, dirty) = fs.cache_bytes();
            assert!(dirty <= (2 << 20) / 3 + 65536, "dirty {dirty}");
            assert!(held <= (2 << 20) + (1 << 20), "held {held}");
        }
        for n in 0..400u64 {
            let read = fs.read(&root(), f, n * 65536, 65536).await.unwrap();
            assert!(read.to_vec() == pattern(n, 65536), "chunk {n}");
            assert!(fs.cache_bytes().0 <= (2 << 20) + (1 << 20));
        }
    });
}
