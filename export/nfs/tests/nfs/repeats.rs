//! Calls that arrive twice: once on a connection that died, once on the one after it.

use crate::support::client::{accepted, made, mode_sattr, record, status_and_wcc};
use crate::support::{Client, Limits, NF, World};
use moraine_nfs::v3::wire::Procedure;
use moraine_nfs::xdr::Encoder;
use moraine_platform::Stream;

fn name_args(dir: &[u8], name: &[u8]) -> impl Fn(&mut Encoder) {
    move |e| {
        e.opaque(dir).opaque(name);
    }
}

#[test]
fn r_05_the_answer_goes_to_the_newest_connection_and_the_call_runs_once() {
    let world = World::new();
    let (old, new) = (world.client(), world.client_from("10.0.0.1:901", Limits::default()));
    let (client, root) = (
        old.clone(),
        world.run({
            let old = old.clone();
            async move { old.root().await }
        }),
    );
    let dir = root.clone();
    world.run(async move {
        client.create(&dir, b"victim").await.unwrap();
    });
    world.fs.hold("remove");
    let call = old.nfs(Procedure::Remove, name_args(&root, b"victim"));
    let (a, b) = (record(&call), record(&call));
    world.run({
        let (old, new) = (old.clone(), new.clone());
        async move {
            old.send(&a).await;
            new.send(&b).await;
        }
    });
    world.settle();
    assert_eq!(world.server.counters().joined, 1);
    world.fs.release("remove");
    world.run(async move {
        let reply = new.receive().await.unwrap();
        assert_eq!(reply[..4], call[..4]);
        assert_eq!(status_and_wcc(&accepted(&reply)).0, 0);
        // The old connection was not answered: the next thing on it is the reply of a later call.
        old.getattr(&root).await.unwrap();
    });
    assert_eq!(world.fs.count("remove"), 1);
}

#[test]
fn r_05_a_joined_connection_that_closes_its_half_is_still_answered() {
    let world = World::new();
    let (old, new) = (world.client(), world.client_from("10.0.0.1:901", Limits::default()));
    world.fs.hold("make");
    let setup = old.clone();
    let root = world.run(async move { setup.root().await });
    let call = old.nfs(Procedure::MkDir, |e| {
        e.opaque(&root).opaque(b"d");
        mode_sattr(e, 0o755);
    });
    world.run({
        let new = new.clone();
        async move {
            old.send(&record(&call)).await;
            new.send(&record(&call)).await;
            new.stream.close();
        }
    });
    world.settle();
    world.fs.release("make");
    world.run(async move {
        assert!(made(&accepted(&new.receive().await.unwrap())).is_ok());
        assert!(new.receive().await.is_none(), "and then the connection ends");
    });
}

#[test]
fn r_06_an_old_write_never_lands_over_a_newer_one() {
    let world = World::new();
    let old = world.client();
    let setup = old.clone();
    let file = world.run(async move {
        let root = setup.root().await;
        setup.create(&root, b"f").await.unwrap()
    });
    // A write begins, its connection dies, the client sends it again on a new one and is not answered before the first
    // has ended; then it writes something else.
    world.fs.hold("write");
    let write = old.nfs(Procedure::Write, |e| {
        e.opaque(&file).u64(0).u32(3).u32(2).opaque(b"old");
    });
    let sent = record(&write);
    world.run({
        let (old, sent) = (old.clone(), sent.clone());
        async move { old.send(&sent).await }
    });
    world.settle();
    old.stream.abort();
    world.settle();
    let new = world.client_from("10.0.0.1:901", Limits::default());
    world.run({
        let new = new.clone();
        async move { new.send(&sent).await }
    });
    world.settle();
    assert_eq!(world.fs.count("write"), 1, "the repeat waits for the first");
    world.fs.release("write");
    let target = file.clone();
    let client = new.clone();
    world.run(async move {
        let reply = client.receive().await.unwrap();
        assert_eq!(reply[..4], write[..4]);
        client.write(&target, 0, b"new", 2).await.0.unwrap();
        assert_eq!(client.read(&target, 0, 9).await.unwrap().0, b"new");
    });
    world.pass(std::time::Duration::from_secs(10));
    assert_eq!(world.fs.count("write"), 2);
}

#[test]
fn r_06_a_write_not_wholly_received_dies_with_its_connection() {
    let world = World::new();
    let client = world.client();
    let setup = client.clone();
    let file = world.run(async move {
        let root = setup.root().await;
        setup.create(&root, b"f").await.unwrap()
    });
    world.fs.calls();
    let write = record(&client.nfs(Procedure::Write, |e| {
        e.opaque(&file).u64(0).u32(4000).u32(2).opaque(&[7; 4000]);
    }));
    for cut in [10, 60, 200, 3000, write.len() - 1] {
        let dying = world.client();
        let part = write[..cut].to_vec();
        world.run({
            let dying = dying.clone();
            async move { dying.send(&part).await }
        });
        world.settle();
        dying.stream.abort();
        world.pass(std::time::Duration::from_secs(100));
    }
    assert_eq!(world.fs.count("write"), 0);
    assert_eq!(world.server.connections(), 1);
}

/// Sends one call on one connection, cuts it, and sends the same bytes on another: both replies, equal but for nothing.
fn twice(world: &World, call: Vec<u8>) -> Vec<u8> {
    let (first, second) = (world.client(), world.client_from("10.0.0.1:7", Limits::default()));
    world.run(async move {
        let a = first.exchange(call.clone()).await;
        first.stream.abort();
        let b = second.exchange(call).await;
        assert_eq!(a, b, "a repeat is answered as the call was");
        accepted(&b)
    })
}

#[test]
fn v3_03_remove_rename_mkdir_and_exclusive_create_are_repeated_without_harm() {
    let world = World::new();
    let client = world.client();
    let setup = client.clone();
    let root = world.run(async move {
        let root = setup.root().await;
        setup.create(&root, b"a").await.unwrap();
        setup.create(&root, b"b").await.unwrap();
        root
    });
    let remove = client.nfs(Procedure::Remove, name_args(&root, b"a"));
    assert_eq!(status_and_wcc(&twice(&world, remove)).0, 0);
    let rename = client.nfs(Procedure::Rename, |e| {
        e.opaque(&root).opaque(b"b").opaque(&root).opaque(b"c");
    });
    assert_eq!(twice(&world, rename)[..4], [0; 4]);
    let mkdir = client.nfs(Procedure::MkDir, |e| {
        e.opaque(&root).opaque(b"d");
        mode_sattr(e, 0o755);
    });
    assert!(made(&twice(&world, mkdir)).is_ok());
    let exclusive = client.nfs(Procedure::Create, |e| {
        e.opaque(&root).opaque(b"x").u32(2).raw(b"verifier");
    });
    assert!(made(&twice(&world, exclusive)).is_ok());
    assert_eq!(world.server.counters().replayed, 4);
    for call in ["remove", "rename", "make"] {
        assert_eq!(world.fs.count(call), 1, "{call}");
    }
}

#[test]
fn v3_03_an_equal_number_from_another_host_or_with_other_arguments_runs() {
    let world = World::new();
    let (one, two) = (world.client(), world.client_from("10.0.0.2:900", Limits::default()));
    world.run(async move {
        let root = one.root().await;
        for name in [b"a", b"b", b"c"] {
            one.create(&root, name).await.unwrap();
        }
        let remove = async |client: &Client, name: &[u8]| {
            client.xid.set(5000);
            client.unlink(Procedure::Remove, &root, name).await.0
        };
        assert_eq!(remove(&one, b"a").await, 0);
        assert_eq!(remove(&one, b"b").await, 0, "same number, other arguments");
        assert_eq!(remove(&two, b"c").await, 0);
        assert_eq!(remove(&two, b"a").await, NF::NOENT, "same number and arguments, another host");
        assert_eq!(remove(&one, b"a").await, 0, "the very call: its first answer");
        assert_eq!(remove(&one.user(7, 7), b"a").await, NF::NOENT, "another user");
    });
}

#[test]
fn v3_04_after_a_reboot_a_repeated_remove_says_noent() {
    // Documented in docs/nfs.md: the cache lives in memory.
    let world = World::new();
    let client = world.client();
    let setup = client.clone();
    let root = world.run(async move {
        let root = setup.root().await;
        setup.create(&root, b"a").await.unwrap();
        root
    });
    let remove = client.nfs(Procedure::Remove, name_args(&root, b"a"));
    let first = remove.clone();
    world.run(async move { assert_eq!(status_and_wcc(&accepted(&client.exchange(first).await)).0, 0) });
    let rebooted = World::over(world.fs.model.rebooted());
    let client = rebooted.client();
    rebooted.run(async move {
        assert_eq!(status_and_wcc(&accepted(&client.exchange(remove).await)).0, NF::NOENT);
    });
}

#[test]
fn v3_05_exclusive_create_is_one_file_per_verifier_also_after_a_reboot() {
    let world = World::new();
    let client = world.client();
    let exclusive = |verifier: [u8; 8]| {
        move |e: &mut Encoder| {
            e.u32(2).raw(&verifier);
        }
    };
    let setup = client.clone();
    let (root, file) = world.run(async move {
        let root = setup.root().await;
        let (file, ..) = setup.create_how(&root, b"x", exclusive(*b"verifier")).await.unwrap();
        // The same call with a new number: the same file.
        let (again, ..) = setup.create_how(&root, b"x", exclusive(*b"verifier")).await.unwrap();
        assert_eq!(file, again);
        assert_eq!(setup.create_how(&root, b"x", exclusive(*b"another!")).await.unwrap_err(), NF::EXIST);
        assert_eq!(setup.create(&root, b"x").await, Err(NF::EXIST));
        (root, file)
    });
    let rebooted = World::over(world.fs.model.rebooted());
    let client = rebooted.client();
    rebooted.run(async move {
        let (again, ..) = client.create_how(&root, b"x", exclusive(*b"verifier")).await.unwrap();
        assert_eq!(file, again);
        assert_eq!(client.create_how(&root, b"x", exclusive(*b"another!")).await.unwrap_err(), NF::EXIST);
    });
}
