//! Which programs answer where, and how calls that cannot run are refused.

use crate::support::client::{Cred, accepted, message, record, refusal};
use crate::support::{Client, Datagrams, Limits, Socket, World};
use moraine_nfs::rpc::AUTH_TLS;
use moraine_nfs::xdr::{Decoder, Encoder};
use std::rc::Rc;

const PORTMAP: u32 = 100_000;
const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;

async fn null(client: &Client, program: u32, version: u32) -> Vec<u32> {
    refusal(&client.exchange(client.message((program, version, 0), |_| ())).await)
}

const SUCCESS: [u32; 4] = [0, 0, 0, 0];

fn unavailable() -> Vec<u32> {
    [0, 0, 0, 1].to_vec()
}

fn mismatch(only: u32) -> Vec<u32> {
    [0, 0, 0, 2, only, only].to_vec()
}

#[test]
fn r_02_every_program_answers_on_the_one_port_and_others_are_told_apart() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        assert_eq!(null(&client, PORTMAP, 2).await, SUCCESS);
        assert_eq!(null(&client, NFS, 3).await, SUCCESS);
        assert_eq!(null(&client, MOUNT, 3).await, SUCCESS);
        // NFSACL, NLM, NSM: asked for by clients at mount; silence would stall them.
        for program in [100_227, 100_021, 100_024, 0, u32::MAX] {
            assert_eq!(null(&client, program, 3).await, unavailable());
        }
        for version in [0, 1, 2, 4, u32::MAX] {
            assert_eq!(null(&client, NFS, version).await, mismatch(3));
            assert_eq!(null(&client, MOUNT, version).await, mismatch(3));
        }
        for version in [3, 4] {
            assert_eq!(null(&client, PORTMAP, version).await, mismatch(2));
        }
        for (program, version, procedure) in
            [(NFS, 3, 22), (MOUNT, 3, 6), (PORTMAP, 2, 5), (NFS, 3, u32::MAX)]
        {
            let reply = client.exchange(client.message((program, version, procedure), |_| ())).await;
            assert_eq!(refusal(&reply), [0, 0, 0, 3], "no such procedure");
        }
    });
}

#[test]
fn r_02_portmap_and_mount_answer_datagrams_and_nfs_does_not() {
    let world = World::new();
    let net = Rc::new(Datagrams::default());
    world.start(world.server.clone().serve_datagrams(Box::new(Socket(net.clone()))));
    let ask = |bytes: Vec<u8>| {
        net.put("10.0.0.3:700", &bytes);
        world.settle();
        net.sent().map(|(to, reply)| {
            assert_eq!(to, "10.0.0.3:700".parse().unwrap());
            reply
        })
    };
    let none = Cred(0, Vec::new());
    let getport = |e: &mut Encoder| {
        e.u32(NFS).u32(3).u32(6).u32(0);
    };
    let reply = ask(message(1, (PORTMAP, 2, 3), &none, getport)).unwrap();
    assert_eq!(accepted(&reply), 2049u32.to_be_bytes());
    let dump = ask(message(2, (PORTMAP, 2, 4), &none, |_| ())).unwrap();
    assert_eq!(accepted(&dump).len(), 5 * 20 + 4);
    assert_eq!(refusal(&ask(message(3, (PORTMAP, 2, 5), &none, |_| ())).unwrap()), [0, 0, 0, 3], "CALLIT");
    let mnt = |e: &mut Encoder| {
        e.opaque(b"/volumes");
    };
    assert_eq!(accepted(&ask(message(4, (MOUNT, 3, 1), &none, mnt)).unwrap())[..4], [0; 4]);
    assert_eq!(refusal(&ask(message(5, (NFS, 3, 0), &none, |_| ())).unwrap()), unavailable());
    // Garbage is dropped, and what would be far longer than its call is not sent to whoever it claims to come from.
    assert!(ask(b"garbage".to_vec()).is_none());
    for i in 0..40u32 {
        net.put(&format!("10.0.1.{i}:700"), &message(6, (MOUNT, 3, 1), &none, mnt));
    }
    world.settle();
    while net.sent().is_some() {}
    assert_eq!(refusal(&ask(message(7, (MOUNT, 3, 2), &none, |_| ())).unwrap()), [0, 0, 0, 5]);
}

#[test]
fn r_04_credentials_are_none_or_sys_with_at_most_sixteen_groups() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let denied = [1, 1, 1];
        let groups: Vec<u32> = (1..=17).collect();
        *client.cred.borrow_mut() = Cred::sys(5, 5, &groups[..16]);
        assert_eq!(null(&client, NFS, 3).await, SUCCESS);
        *client.cred.borrow_mut() = Cred::sys(5, 5, &groups);
        assert_eq!(null(&client, NFS, 3).await, denied);
        *client.cred.borrow_mut() = Cred(0, Vec::new());
        assert_eq!(null(&client, NFS, 3).await, SUCCESS);
        *client.cred.borrow_mut() = Cred(AUTH_TLS, Vec::new());
        let probe = client.exchange(client.message((NFS, 3, 0), |_| ())).await;
        assert_eq!(refusal(&probe), denied);
        assert!(!probe.windows(8).any(|w| w == b"STARTTLS"));
        *client.cred.borrow_mut() = Cred(1, vec![0; 404]);
        assert_eq!(null(&client, NFS, 3).await, denied);
        // And a wrong RPC version.
        *client.cred.borrow_mut() = Cred(0, Vec::new());
        let mut call = client.message((NFS, 3, 0), |_| ());
        call[11] = 3;
        assert_eq!(refusal(&client.exchange(call).await), [1, 0, 2, 2]);
    });
}

#[test]
fn mount_takes_an_empty_path_the_root_and_any_directory_with_or_without_slashes() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let root = client.root().await;
        let (a, ..) = client.mkdir(&root, b"a").await.unwrap();
        let (b, ..) = client.mkdir(&a, b"b").await.unwrap();
        client.create(&a, b"file").await.unwrap();
        for path in ["", "/", "//"] {
            assert_eq!(client.mount(path.as_bytes()).await.as_ref(), Ok(&root), "{path:?}");
        }
        for path in ["/a/b", "a/b", "a/b/", "//a//b//"] {
            assert_eq!(client.mount(path.as_bytes()).await.as_ref(), Ok(&b), "{path:?}");
        }
        assert_eq!(client.mount(b"/a/nothing").await, Err(2));
        assert_eq!(client.mount(b"/a/file").await, Err(20));
        assert_eq!(client.mount(b"/a/file/x").await, Err(20));
        assert_eq!(client.mount(b"/a/../a").await, Err(13));
        assert_eq!(client.mount(&[b'x'; 300]).await, Err(63));
        assert_eq!(
            refusal(
                &client
                    .exchange(client.message((MOUNT, 3, 1), |e| {
                        e.opaque(&[b'x'; 1025]);
                    }))
                    .await
            ),
            [0, 0, 0, 4]
        );
    });
}

#[test]
fn the_export_list_and_the_list_of_mounts() {
    let world = World::new();
    let (client, other) = (world.client(), world.client_from("10.0.0.2:900", Limits::default()));
    world.run(async move {
        let ask = async |client: &Client, procedure, path: Option<&'static [u8]>| {
            let args = |e: &mut Encoder| {
                if let Some(path) = path {
                    e.opaque(path);
                }
            };
            accepted(&client.exchange(client.message((MOUNT, 3, procedure), args)).await)
        };
        let mut export = Encoder::default();
        export.bool(true).opaque(b"/").bool(false).bool(false);
        assert_eq!(ask(&client, 5, None).await, export.into_bytes());

        let mounts = async || {
            let dump = ask(&client, 2, None).await;
            let mut d = Decoder::new(&dump);
            let mut list = Vec::new();
            while d.bool().unwrap() {
                list.push((d.opaque(255).unwrap().to_vec(), d.opaque(1024).unwrap().to_vec()));
            }
            list
        };
        client.mount(b"/").await.unwrap();
        client.mount(b"/").await.unwrap();
        other.mount(b"volumes").await.unwrap();
        client.mount(b"/volumes").await.unwrap();
        let entry = |ip: &str, path: &str| (ip.as_bytes().to_vec(), path.as_bytes().to_vec());
        assert_eq!(
            mounts().await,
            [entry("10.0.0.1", "/"), entry("10.0.0.2", "volumes"), entry("10.0.0.1", "/volumes")]
        );
        ask(&client, 3, Some(b"/")).await;
        assert_eq!(mounts().await.len(), 2);
        ask(&client, 4, None).await;
        assert_eq!(mounts().await, [entry("10.0.0.2", "volumes")]);
    });
}

#[test]
fn r_01_a_record_in_many_fragments_is_one_call() {
    let world = World::new();
    let client = world.client();
    world.run(async move {
        let call = client.message((NFS, 3, 0), |_| ());
        let mut bytes = Vec::new();
        for word in call.chunks(4) {
            bytes.extend_from_slice(&4u32.to_be_bytes());
            bytes.extend_from_slice(word);
        }
        bytes.extend_from_slice(&record(&[]));
        client.send(&bytes).await;
        assert_eq!(client.receive().await.unwrap()[..4], call[..4]);
    });
}
