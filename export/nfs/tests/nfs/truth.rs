//! What replies promise: stability, consistency of caches, identity, permission.

use crate::support::client::{mode_sattr, no_sattr, post_attr, record};
use crate::support::{Client, Limits, NF, World};
use moraine_fs::vfs::{ObjectId, Vfs};
use moraine_nfs::handle::Handles;
use moraine_nfs::v3::wire::Procedure;
use moraine_nfs::xdr::{Decoder, Encoder};
use moraine_nfs::{Identities, Squash, Transfer};

const UNSTABLE: u32 = 0;
const DATA_SYNC: u32 = 1;
const FILE_SYNC: u32 = 2;

#[test]
fn v3_01_the_verifier_changes_when_unstable_writes_may_be_lost() {
    let world = World::new();
    let (client, fs) = (world.client(), world.fs.clone());
    let (file, before) = world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"f").await.unwrap();
        let verifier = client.write(&file, 0, b"data", UNSTABLE).await.0.unwrap().2;
        assert_eq!(client.commit(&file, 0, 0).await.0, Ok(verifier), "nothing happened: the same");
        let verifier = client.write(&file, 0, b"data", UNSTABLE).await.0.unwrap().2;
        // A write-back fails; the device recovers. The COMMIT after it must not look as if all were well.
        fs.model.change_verifier();
        let after = client.commit(&file, 0, 0).await.0.unwrap();
        assert_ne!(verifier, after);
        (file, after)
    });
    let rebooted = World::over(world.fs.model.rebooted());
    let client = rebooted.client();
    rebooted.run(async move {
        assert_ne!(client.commit(&file, 0, 0).await.0.unwrap(), before, "a boot is a loss");
    });
}

#[test]
fn v3_01_a_device_error_is_an_io_error() {
    let world = World::new();
    let (client, fs) = (world.client(), world.fs.clone());
    world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"f").await.unwrap();
        fs.fail("commit", moraine_fs::FsError::DeviceWrite, 1);
        assert_eq!(client.commit(&file, 0, 0).await.0, Err(NF::IO));
        fs.fail("durable", moraine_fs::FsError::DeviceWrite, 1);
        assert_eq!(client.create(&root, b"g").await, Err(NF::IO));
        fs.fail("durable", moraine_fs::FsError::NoMemory, 1);
        assert_eq!(
            client.create(&root, b"h").await,
            Err(NF::IO),
            "it happened: there is no running it again"
        );
    });
}

#[test]
fn v3_02_committed_is_never_less_than_asked_and_true() {
    let world = World::new();
    let (client, fs) = (world.client(), world.fs.clone());
    world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"f").await.unwrap();
        for asked in [UNSTABLE, DATA_SYNC, FILE_SYNC] {
            let (_, committed, _) = client.write(&file, 0, b"data", asked).await.0.unwrap();
            assert!(committed >= asked);
            if committed > UNSTABLE {
                assert_eq!(fs.model.durable_seq(), fs.model.seq());
            }
        }
        client.write(&file, 0, b"more", UNSTABLE).await.0.unwrap();
        client.commit(&file, 0, 0).await.0.unwrap();
        assert_eq!(fs.model.durable_seq(), fs.model.seq());
    });
}

#[test]
fn v3_02_no_change_is_answered_before_it_is_on_media() {
    let world = World::new();
    let client = world.client();
    let setup = client.clone();
    let (root, file, dir) = world.run(async move {
        let root = setup.root().await;
        let file = setup.create(&root, b"file").await.unwrap();
        setup.create(&root, b"victim").await.unwrap();
        setup.mkdir(&root, b"empty").await.unwrap();
        let dir = setup.mkdir(&root, b"dir").await.unwrap().0;
        (root, file, dir)
    });
    let at = |name: &'static [u8]| {
        let root = root.clone();
        move |e: &mut Encoder| {
            e.opaque(&root).opaque(name);
        }
    };
    let changes = [
        client.nfs(Procedure::SetAttr, |e| {
            e.opaque(&file);
            mode_sattr(e, 0o600);
            e.bool(false);
        }),
        client.nfs(Procedure::Write, |e| {
            e.opaque(&file).u64(0).u32(4).u32(FILE_SYNC).opaque(b"data");
        }),
        client.nfs(Procedure::Write, |e| {
            e.opaque(&file).u64(0).u32(4).u32(DATA_SYNC).opaque(b"data");
        }),
        client.nfs(Procedure::Commit, |e| {
            e.opaque(&file).u64(0).u32(0);
        }),
        client.nfs(Procedure::Create, |e| {
            at(b"new")(e);
            e.u32(2).raw(b"verifier");
        }),
        client.nfs(Procedure::MkDir, |e| {
            at(b"newdir")(e);
            no_sattr(e);
        }),
        client.nfs(Procedure::SymLink, |e| {
            at(b"sym")(e);
            no_sattr(e);
            e.opaque(b"t");
        }),
        client.nfs(Procedure::MkNod, |e| {
            at(b"fifo")(e);
            e.u32(7);
            no_sattr(e);
        }),
        client.nfs(Procedure::Remove, at(b"victim")),
        client.nfs(Procedure::RmDir, at(b"empty")),
        client.nfs(Procedure::Link, |e| {
            e.opaque(&file);
            at(b"hard")(e);
        }),
        client.nfs(Procedure::Rename, |e| {
            at(b"file")(e);
            e.opaque(&dir).opaque(b"moved");
        }),
    ];
    for call in changes {
        world.fs.calls();
        world.fs.hold("durable");
        let (sender, bytes) = (client.clone(), record(&call));
        world.run(async move { sender.send(&bytes).await });
        world.settle();
        assert_eq!(world.fs.count("durable"), 1, "one wait for media, procedure {}", call[23]);
        let receiver = client.clone();
        let got = std::rc::Rc::new(std::cell::Cell::new(false));
        let mark = got.clone();
        world.start(async move {
            let reply = receiver.receive().await.unwrap();
            assert_eq!(reply[24..28], [0; 4], "status");
            mark.set(true);
        });
        world.pass(std::time::Duration::from_secs(30));
        assert!(!got.get(), "answered before it was on media: procedure {}", call[23]);
        world.fs.release("durable");
        world.settle();
        assert!(got.get());
        assert_eq!(world.fs.model.durable_seq(), world.fs.model.seq());
    }
}

#[test]
fn v3_06_the_owner_writes_a_read_only_file_and_access_tells_the_plain_truth() {
    let world = World::new();
    let root_client = world.client();
    let (owner, other) = (root_client.user(1000, 1000), root_client.user(2000, 2000));
    world.run(async move {
        let root = root_client.root().await;
        let open = |e: &mut Encoder| {
            mode_sattr(e, 0o777);
        };
        assert_eq!(root_client.setattr(&root, open, None).await.0, 0);
        let how = |e: &mut Encoder| {
            e.u32(1);
            mode_sattr(e, 0o444);
        };
        let (file, ..) = owner.create_how(&root, b"object", how).await.unwrap();
        assert!(owner.write(&file, 0, b"git", UNSTABLE).await.0.is_ok());
        assert_eq!(other.write(&file, 0, b"no!", UNSTABLE).await.0, Err(NF::ACCES));
        assert_eq!(owner.access(&file, 0x3f).await, Ok(0x01), "read, and no more");
        let program = |e: &mut Encoder| {
            e.u32(1);
            mode_sattr(e, 0o711);
        };
        let (run, ..) = owner.create_how(&root, b"program", program).await.unwrap();
        owner.write(&run, 0, b"#!", UNSTABLE).await.0.unwrap();
        assert_eq!(other.access(&run, 0x3f).await, Ok(0x20), "execute, and no more");
        assert_eq!(other.read(&run, 0, 9).await.unwrap().0, b"#!", "what may be run may be paged in");
        assert_eq!(owner.access(&root, 0x3f).await, Ok(0x1f));
        let closed = |e: &mut Encoder| {
            e.u32(1);
            mode_sattr(e, 0o600);
        };
        let (private, ..) = owner.create_how(&root, b"private", closed).await.unwrap();
        assert_eq!(other.read(&private, 0, 9).await, Err(NF::ACCES));
        assert_eq!(other.access(&private, 0x3f).await, Ok(0));
        assert_eq!(root_client.access(&private, 0x3f).await, Ok(0x0d), "root, but nobody may run it");
    });
}

#[test]
fn v3_09_a_client_is_never_told_to_try_the_same_again_for_nothing() {
    let world = World::new();
    let (client, fs) = (world.client(), world.fs.clone());
    world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"f").await.unwrap();
        assert_eq!(client.read(&file, 0, 10).await, Ok((vec![], true)));
        assert_eq!(
            client.write(&file, 0, b"", UNSTABLE).await.0.unwrap().0,
            0,
            "nothing asked, nothing done"
        );
        client.write(&file, 0, b"12345", UNSTABLE).await.0.unwrap();
        assert_eq!(client.read(&file, 5, 10).await, Ok((vec![], true)));
        assert_eq!(client.read(&file, 99, 10).await, Ok((vec![], true)));
        assert!(client.read(&file, 2, 0).await.is_ok());
        fs.reads_nothing.set(true);
        assert_eq!(client.read(&file, 0, 10).await, Err(NF::SERVERFAULT));
        fs.reads_nothing.set(false);
        fs.writes_nothing.set(true);
        assert_eq!(client.write(&file, 0, b"x", UNSTABLE).await.0, Err(NF::IO));
    });
}

#[test]
fn v3_10_before_is_what_was_after_the_change_before_it() {
    let world = World::new();
    let (one, two) = (world.client(), world.client_from("10.0.0.2:900", Limits::default()));
    let fs = world.fs.clone();
    world.run(async move {
        let root = one.root().await;
        let dir = one.mkdir(&root, b"d").await.unwrap().0;
        // Two clients change one directory; each change's "before" is the other's "after".
        let summary = |a: &crate::support::client::Attributes| (a.size, a.mtime, a.ctime);
        let mut last = summary(&one.getattr(&dir).await.unwrap());
        for round in 0..20 {
            let client = if round % 2 == 0 { &one } else { &two };
            let name = format!("n{}", round / 2);
            let wcc = if round % 2 == 0 {
                client.mkdir(&dir, name.as_bytes()).await.unwrap().2
            } else {
                client.unlink(Procedure::RmDir, &dir, name.as_bytes()).await.1
            };
            assert_eq!(wcc.pre, Some(last), "round {round}");
            last = summary(&wcc.post.unwrap());
        }
        // The size after a write counts what is only in memory.
        let file = one.create(&dir, b"f").await.unwrap();
        let (_, wcc) = one.write(&file, 100, b"x", UNSTABLE).await;
        assert_eq!((wcc.pre.unwrap().0, wcc.post.unwrap().size), (0, 101));
        // A change that is held back by the device while another one happens still tells its own before and after.
        fs.hold("durable");
        let slow = one.nfs(Procedure::Create, |e| {
            e.opaque(&dir).opaque(b"slow").u32(2).u64(1);
        });
        one.send(&record(&slow)).await;
        let fast = two.nfs(Procedure::Create, |e| {
            e.opaque(&dir).opaque(b"fast").u32(2).u64(1);
        });
        two.send(&record(&fast)).await;
        fs.release("durable");
        let (a, b) = (one.receive().await.unwrap(), two.receive().await.unwrap());
        let [a, b] = [a, b].map(|r| crate::support::client::made(&r[24..]).unwrap().2);
        let (first, second) =
            if a.pre.as_ref().unwrap().2 < b.pre.as_ref().unwrap().2 { (a, b) } else { (b, a) };
        assert_eq!(second.pre, Some(summary(&first.post.unwrap())));
    });
}

#[test]
fn v3_11_ctime_rises_with_every_change_though_the_clock_stands() {
    let world = World::new();
    let client = world.client();
    let before = world.platform.clock.now();
    let clock = world.platform.clock.clone();
    world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"f").await.unwrap();
        let mut last = client.getattr(&file).await.unwrap().ctime;
        for i in 0..1000u32 {
            let ctime = match i % 3 {
                0 => client.write(&file, 0, b"x", UNSTABLE).await.1.post.unwrap().ctime,
                1 => {
                    client.setattr(&file, |e| mode_sattr(e, 0o600 + i % 8), None).await.1.post.unwrap().ctime
                }
                _ => {
                    let cut = |e: &mut Encoder| {
                        e.u32(0).u32(0).u32(0).u32(1).u64(i.into()).u32(0).u32(0);
                    };
                    client.setattr(&file, cut, None).await.1.post.unwrap().ctime
                }
            };
            assert!(ctime > last, "change {i}");
            last = ctime;
        }
        assert_eq!(clock.now(), before, "all in one tick");
    });
}

#[test]
fn v3_12_a_handle_names_its_file_through_renames_links_and_reboots_until_it_is_gone() {
    let world = World::new();
    let client = world.client();
    let (root, file) = world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"f").await.unwrap();
        client.write(&file, 0, b"content", FILE_SYNC).await.0.unwrap();
        assert_eq!(client.rename((&root, b"f"), (&root, b"g")).await.0, 0);
        let result = client
            .call(Procedure::Link, |e| {
                e.opaque(&file).opaque(&root).opaque(b"h");
            })
            .await;
        assert_eq!(result[..4], [0; 4]);
        assert_eq!(client.unlink(Procedure::Remove, &root, b"g").await.0, 0);
        (root, file)
    });
    let rebooted = World::over(world.fs.model.rebooted());
    let client = rebooted.client();
    rebooted.run(async move {
        assert_eq!(client.root().await, root);
        assert_eq!(client.read(&file, 0, 99).await.unwrap().0, b"content");
        assert_eq!(client.lookup(&root, b"h").await.unwrap().0, file);
        for bit in 0..file.len() * 8 {
            let mut forged = file.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(client.getattr(&forged).await, Err(NF::BADHANDLE), "bit {bit}");
        }
        assert_eq!(client.unlink(Procedure::Remove, &root, b"h").await.0, 0);
        assert_eq!(client.getattr(&file).await, Err(NF::STALE));
        let again = client.create(&root, b"h").await.unwrap();
        assert_ne!(again, file, "a new file is not the old one");
        assert_eq!(client.getattr(&file).await, Err(NF::STALE));
    });
}

#[test]
fn v3_12_a_true_handle_of_an_object_that_never_was_is_stale() {
    let world = World::new();
    let handles = Handles::new(world.fs.pool());
    let client = world.client();
    world.run(async move {
        for (subvolume, inode) in [(1, u64::MAX), (2, 1), (u32::MAX, 0), (1, 0)] {
            let handle = handles.encode(ObjectId { subvolume, inode });
            assert_eq!(client.getattr(&handle).await, Err(NF::STALE), "{subvolume}:{inode}");
        }
    });
}

#[test]
fn v3_13_a_removed_file_lives_under_its_silly_name_and_is_stale_after_it() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        for round in 0..50 {
            let file = client.create(&root, b"open").await.unwrap();
            client.write(&file, 0, b"data", UNSTABLE).await.0.unwrap();
            let silly = format!(".nfs{round:08}");
            assert_eq!(client.rename((&root, b"open"), (&root, silly.as_bytes())).await.0, 0);
            assert_eq!(client.read(&file, 0, 9).await.unwrap().0, b"data");
            assert_eq!(client.unlink(Procedure::Remove, &root, silly.as_bytes()).await.0, 0);
            assert_eq!(client.read(&file, 0, 9).await, Err(NF::STALE));
        }
    });
}

#[test]
fn v3_16_squashed_root_is_nobody_everywhere() {
    let squash = Identities { squash: Squash::Root, ..Identities::default() };
    let world = World::with(|config| config.identities = squash);
    let plain = World::new();
    assert_eq!(plain.server.counters().refused, 0);
    let root_client = world.client();
    let user = root_client.user(1000, 1000);
    world.run(async move {
        let root = root_client.root().await;
        // The root directory is root's, mode 0755: nobody may write there.
        assert_eq!(root_client.create(&root, b"f").await, Err(NF::ACCES));
        assert_eq!(root_client.access(&root, 0x3f).await, Ok(0x03));
        assert_eq!(root_client.setattr(&root, |e| mode_sattr(e, 0o777), None).await.0, NF::PERM);
        let result = root_client
            .call(Procedure::MkNod, |e| {
                e.opaque(&root).opaque(b"dev").u32(3);
                no_sattr(e);
                e.u32(1).u32(1);
            })
            .await;
        let status = u32::from_be_bytes(result[..4].try_into().unwrap());
        assert!([NF::ACCES, NF::PERM].contains(&status));
        assert_eq!(user.access(&root, 0x3f).await, Ok(0x03), "others are themselves");
    });
}

#[test]
fn v3_16_root_is_root_by_default() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let (_, attr, _) = client.mkdir(&root, b"d").await.unwrap();
        assert_eq!((attr.uid, attr.gid), (0, 0));
    });
}

#[test]
fn v3_17_the_guard_is_exact_and_times_need_what_posix_says() {
    let world = World::new();
    let client = world.client();
    let other = client.user(2000, 2000);
    world.run(async move {
        let root = client.root().await;
        let file = client.create(&root, b"f").await.unwrap();
        let (s, n) = client.getattr(&file).await.unwrap().ctime;
        let chmod = |e: &mut Encoder| mode_sattr(e, 0o666);
        assert_eq!(client.setattr(&file, chmod, Some((s, n + 1))).await.0, NF::NOT_SYNC);
        assert_eq!(client.setattr(&file, chmod, Some((s, n))).await.0, 0);
        assert_eq!(client.setattr(&file, chmod, Some((s, n))).await.0, NF::NOT_SYNC, "it changed since");
        let now = |e: &mut Encoder| {
            e.u32(0).u32(0).u32(0).u32(0).u32(1).u32(1);
        };
        let past = |e: &mut Encoder| {
            e.u32(0).u32(0).u32(0).u32(0).u32(2).u32(5).u32(6).u32(2).u32(7).u32(8);
        };
        assert_eq!(other.setattr(&file, now, None).await.0, 0, "may write, so may touch");
        assert_eq!(other.setattr(&file, past, None).await.0, NF::PERM, "but not set any time");
        let (status, wcc) = client.setattr(&file, past, None).await;
        let attr = wcc.post.unwrap();
        assert_eq!((status, attr.atime, attr.mtime), (0, (5, 6), (7, 8)));
        assert_eq!(client.setattr(&file, |e| mode_sattr(e, 0o644), None).await.0, 0);
        assert_eq!(other.setattr(&file, now, None).await.0, NF::ACCES);
        assert_eq!(other.setattr(&file, |e| mode_sattr(e, 0o777), None).await.0, NF::PERM);
    });
}

#[test]
fn v3_18_a_small_appliance_advertises_less_and_takes_as_much_as_ever() {
    let world = World::with(|config| config.transfer = Transfer::for_memory(128 << 20));
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let result = client
            .call(Procedure::FsInfo, |e| {
                e.opaque(&root);
            })
            .await;
        let mut d = Decoder::new(&result[4..]);
        post_attr(&mut d).unwrap();
        let words: Vec<u32> = (0..7).map(|_| d.u32().unwrap()).collect();
        assert_eq!(words, [256 << 10, 256 << 10, 4096, 256 << 10, 256 << 10, 4096, 64 << 10]);
        let file = client.create(&root, b"f").await.unwrap();
        let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i ^ (i >> 9)) as u8).collect();
        for offset in [0, 1, 4095, 123_457] {
            assert_eq!(client.write(&file, offset, &data, UNSTABLE).await.0.unwrap().0, 1 << 20);
            assert!(client.read(&file, offset, 1 << 20).await.unwrap().0 == data);
        }
        // More than the largest READ: a short answer that is not the end.
        let (most, eof) = client.read(&file, 0, u32::MAX).await.unwrap();
        assert_eq!((most.len(), eof), (1 << 20, false));
    });
}

#[test]
fn v3_19_a_volume_in_use_is_busy_to_changes_and_open_to_reading() {
    let world = World::new();
    let client = world.client();
    let (share, fs) = (world.share.clone(), world.fs.clone());
    world.run(async move {
        let root = client.root().await;
        let volumes = client.lookup(&root, b"volumes").await.unwrap().0;
        let (volume, attr, _) = client
            .create_how(&volumes, b"vm", |e| {
                e.u32(1);
                mode_sattr(e, 0o644);
            })
            .await
            .unwrap();
        client.create(&volumes, b"other").await.unwrap();
        let open =
            share.open_volume(ObjectId { subvolume: fs.root().subvolume, inode: attr.fileid }).unwrap();
        let cut = |e: &mut Encoder| {
            e.u32(0).u32(0).u32(0).u32(1).u64(0).u32(0).u32(0);
        };
        let truncate = |e: &mut Encoder| {
            e.u32(0);
            cut(e);
        };
        async fn changes(
            client: &Client,
            volumes: &[u8],
            volume: &[u8],
            cut: impl Fn(&mut Encoder),
        ) -> [u32; 5] {
            let create = client.create_how(volumes, b"vm", |e| {
                e.u32(0);
                cut(e);
            });
            let created = create.await.err().unwrap_or(0);
            let written = client.write(volume, 0, b"x", UNSTABLE).await.0.err().unwrap_or(0);
            let shrunk = client.setattr(volume, &cut, None).await.0;
            let replaced = client.rename((volumes, b"other"), (volumes, b"vm")).await.0;
            let removed = client.unlink(Procedure::Remove, volumes, b"vm").await.0;
            [created, written, shrunk, replaced, removed]
        }
        assert_eq!(changes(&client, &volumes, &volume, cut).await, [NF::JUKEBOX; 5]);
        assert!(client.create_how(&volumes, b"vm", truncate).await.is_err());
        assert!(client.read(&volume, 0, 10).await.is_ok());
        assert_eq!(client.setattr(&volume, |e| mode_sattr(e, 0o600), None).await.0, 0);
        assert_eq!(client.link(&volume, &volumes, b"further").await, 0, "a further name is no change of it");
        assert_eq!(
            client.rename((&volumes, b"vm"), (&volumes, b"vm2")).await.0,
            0,
            "a new name keeps it open"
        );
        assert_eq!(client.rename((&volumes, b"vm2"), (&volumes, b"vm")).await.0, 0);
        drop(open);
        assert_eq!(changes(&client, &volumes, &volume, cut).await, [0; 5]);
        assert_eq!(share.claims(), 0);
    });
}
