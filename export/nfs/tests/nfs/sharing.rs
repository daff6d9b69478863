//! Volumes in use beside files: what a name leads to does not change between the question whether it may be touched and
//! the touch.

use crate::support::client::{Fh, accepted, mode_sattr, record};
use crate::support::{Client, Limits, NF, World};
use moraine_fs::FsError;
use moraine_fs::vfs::{ObjectId, Vfs};
use moraine_nfs::v3::wire::Procedure;
use moraine_nfs::xdr::Encoder;
use moraine_share::Open;

/// A world with `volumes/vm` in use by NBD and the plain file `volumes/plain`.
fn world() -> (World, Client, Fh, Open) {
    let world = World::new();
    let client = world.client();
    let (share, fs, ours) = (world.share.clone(), world.fs.clone(), client.clone());
    let (volumes, open) = world.run(async move {
        let root = ours.root().await;
        let volumes = ours.lookup(&root, b"volumes").await.unwrap().0;
        ours.create(&volumes, b"vm").await.unwrap();
        ours.create(&volumes, b"plain").await.unwrap();
        let (_, attr) = ours.lookup(&volumes, b"vm").await.unwrap();
        let object = ObjectId { subvolume: fs.root().subvolume, inode: attr.fileid };
        (volumes, share.open_volume(object).unwrap())
    });
    (world, client, volumes, open)
}

/// The status of a reply.
fn status(reply: Option<Vec<u8>>) -> u32 {
    let result = accepted(&reply.expect("the server answers"));
    u32::from_be_bytes(result[..4].try_into().unwrap())
}

/// Holds `call` at the filesystem's door while another client gives the call's name to the volume in use; both are then
/// answered. The statuses of both, and how `volumes/vm`'s inode is called in the end.
fn race(call: &'static str, first: Procedure, args: impl Fn(&mut Encoder, &Fh)) -> (u32, u32, Vec<u8>) {
    let (world, one, volumes, open) = world();
    let two = world.client_from("10.0.0.2:900", Limits::default());
    world.fs.hold(call);
    let (a, dir) = (one.clone(), volumes.clone());
    let message = one.nfs(first, |e| args(e, &dir));
    world.run(async move { a.send(&record(&message)).await });
    world.settle();
    assert_eq!(world.fs.waiting(), 1, "it has asked, and is about to act");
    let (b, dir) = (two.clone(), volumes.clone());
    // Under another name of the call, so that only the first is held.
    let rename = two.nfs(Procedure::Rename, |e| {
        e.opaque(&dir).opaque(b"vm").opaque(&dir).opaque(b"plain");
    });
    world.run(async move { b.send(&record(&rename)).await });
    world.settle();
    assert_eq!(world.fs.waiting(), 1, "the other waits for the name, not at the door");
    world.fs.release(call);
    let share = world.share.clone();
    world.run(async move {
        let statuses = (status(one.receive().await), status(two.receive().await));
        let vm = open.object().inode;
        let mut called = Vec::new();
        for name in [&b"vm"[..], b"plain"] {
            if one.lookup(&volumes, name).await.is_ok_and(|(_, attr)| attr.fileid == vm) {
                called = name.to_vec();
            }
        }
        drop(open);
        assert_eq!(share.claims(), 0);
        (statuses.0, statuses.1, called)
    })
}

#[test]
fn nbd_14_a_remove_never_hits_a_volume_that_took_the_name_meanwhile() {
    let (removed, renamed, called) = race("remove", Procedure::Remove, |e, dir| {
        e.opaque(dir).opaque(b"plain");
    });
    assert_eq!((removed, renamed, &called[..]), (0, 0, &b"plain"[..]), "first one, then the other");
}

#[test]
fn nbd_14_a_truncating_create_never_hits_a_volume_that_took_the_name_meanwhile() {
    let (created, renamed, called) = race("create", Procedure::Create, |e, dir| {
        e.opaque(dir).opaque(b"plain");
        // UNCHECKED with size 0.
        e.u32(0).u32(0).u32(0).u32(0).u32(1).u64(0).u32(0).u32(0);
    });
    assert_eq!((created, renamed, &called[..]), (0, 0, &b"plain"[..]));
}

#[test]
fn nbd_14_a_rename_never_replaces_a_volume_that_took_the_name_meanwhile() {
    // The first rename makes `other` `plain`; the second then gives that name to the volume.
    let (world, one, volumes, open) = world();
    let two = world.client_from("10.0.0.2:900", Limits::default());
    let (a, dir) = (one.clone(), volumes.clone());
    world.run(async move {
        a.create(&dir, b"other").await.unwrap();
    });
    world.fs.hold("rename");
    let renames = [(&one, &b"other"[..]), (&two, b"vm")].map(|(client, name)| {
        let call = client.nfs(Procedure::Rename, |e| {
            e.opaque(&volumes).opaque(name).opaque(&volumes).opaque(b"plain");
        });
        (client.clone(), record(&call))
    });
    for (client, call) in renames {
        world.run(async move { client.send(&call).await });
        world.settle();
        assert_eq!(world.fs.waiting(), 1, "one of them at a time");
    }
    world.fs.release("rename");
    world.run(async move {
        for client in [&one, &two] {
            assert_eq!(status(client.receive().await), 0);
        }
        let (_, attr) = one.lookup(&volumes, b"plain").await.unwrap();
        assert_eq!(attr.fileid, open.object().inode);
        assert!(one.lookup(&volumes, b"other").await.is_err());
    });
}

#[test]
fn nbd_14_names_wait_only_for_themselves() {
    let (world, one, volumes, _open) = world();
    world.fs.hold("remove");
    let call = one.nfs(Procedure::Remove, |e| {
        e.opaque(&volumes).opaque(b"plain");
    });
    let (a, two) = (one.clone(), world.client_from("10.0.0.2:900", Limits::default()));
    world.run(async move { a.send(&record(&call)).await });
    world.settle();
    world.run(async move {
        two.create_how(&volumes, b"more", |e| {
            e.u32(1);
            mode_sattr(e, 0o644);
        })
        .await
        .unwrap();
        assert_eq!(two.rename((&volumes, b"vm"), (&volumes, b"vm2")).await.0, 0);
    });
}

#[test]
fn nbd_14_a_volume_that_cannot_be_looked_at_for_want_of_memory_is_not_removed() {
    let (world, client, volumes, _open) = world();
    let fs = world.fs.clone();
    world.run(async move {
        for procedure in [Procedure::Remove, Procedure::Rename, Procedure::Create] {
            // The look-up that asks whether it is in use finds no memory; the call that follows would.
            fs.fail("lookup", FsError::NoMemory, 1);
            let status = match procedure {
                Procedure::Remove => client.unlink(procedure, &volumes, b"vm").await.0,
                Procedure::Rename => client.rename((&volumes, b"plain"), (&volumes, b"vm")).await.0,
                _ => {
                    let cut = |e: &mut Encoder| {
                        e.u32(0).u32(0).u32(0).u32(0).u32(1).u64(0).u32(0).u32(0);
                    };
                    client.create_how(&volumes, b"vm", cut).await.map_or_else(|status| status, |_| 0)
                }
            };
            assert_eq!(status, NF::JUKEBOX, "{procedure:?}");
        }
        assert!(client.lookup(&volumes, b"vm").await.is_ok(), "it is still there");
    });
}
