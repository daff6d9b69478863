//! Many calls at once, slow and silent peers, bounds on what they can make the server hold, and its end.

use crate::support::client::{accepted, no_sattr, record};
use crate::support::{Client, Limits, World};
use moraine_fs::FsError;
use moraine_nfs::v3::wire::Procedure;
use moraine_platform::Stream;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

async fn file_of(client: &Client, len: usize) -> Vec<u8> {
    let root = client.root().await;
    let file = client.create(&root, b"f").await.unwrap();
    for at in (0..len).step_by(1 << 20) {
        client.write(&file, at as u64, &vec![at as u8 | 1; (len - at).min(1 << 20)], 0).await.0.unwrap();
    }
    file
}

#[test]
fn replies_leave_in_the_order_the_calls_complete() {
    let world = World::new();
    let client = world.client();
    let setup = client.clone();
    let file = world.run(async move { file_of(&setup, 10).await });
    world.fs.hold("read");
    let fs = world.fs.clone();
    world.run(async move {
        let slow = client.nfs(Procedure::Read, |e| {
            e.opaque(&file).u64(0).u32(10);
        });
        let fast = client.nfs(Procedure::GetAttr, |e| {
            e.opaque(&file);
        });
        let mut both = record(&slow);
        both.extend_from_slice(&record(&fast));
        client.send(&both).await;
        assert_eq!(client.receive().await.unwrap()[..4], fast[..4]);
        fs.release("read");
        assert_eq!(client.receive().await.unwrap()[..4], slow[..4]);
    });
}

#[test]
fn r_01_the_same_session_gives_the_same_replies_through_pieces_of_every_size() {
    let session = |piece: usize, buffer: usize| {
        let world = World::new();
        let client = world.client_from("10.0.0.1:900", Limits { buffer, piece });
        world.run(async move {
            let mut replies = Vec::new();
            let root = client.root().await;
            let file = client.create(&root, b"f").await.unwrap();
            for data in [&b"x"[..], &[7; 4097], &[]] {
                replies.push(
                    client
                        .call(Procedure::Write, |e| {
                            e.opaque(&file).u64(4093).u32(data.len() as u32).u32(0).opaque(data);
                        })
                        .await,
                );
            }
            replies.push(
                client
                    .call(Procedure::Read, |e| {
                        e.opaque(&file).u64(1).u32(9000);
                    })
                    .await,
            );
            replies.push(
                client
                    .call(Procedure::ReadDirPlus, |e| {
                        e.opaque(&root).u64(0).u64(0).u32(4096).u32(4096);
                    })
                    .await,
            );
            replies
        })
    };
    let whole = session(usize::MAX, 256 << 10);
    for piece in [1, 2, 3, 4, 5, 7, 13, 40, 41, 127, 4096] {
        assert!(session(piece, 256 << 10) == whole, "pieces of {piece}");
    }
    for buffer in [1, 3, 100] {
        assert!(session(usize::MAX, buffer) == whole, "a pipe of {buffer}");
    }
}

#[test]
fn a_client_that_reads_no_replies_is_not_read_either_and_others_are_served() {
    let world = World::new();
    let setup = world.client();
    let file = world.run(async move { file_of(&setup, 4 << 20).await });
    let greedy: Vec<Client> =
        (0..20).map(|i| world.client_from(&format!("10.0.0.7:{}", 100 + i), Limits::default())).collect();
    for client in &greedy {
        let (client, file) = (client.clone(), file.clone());
        world.start(async move {
            for _ in 0..200 {
                let read = client.nfs(Procedure::Read, |e| {
                    e.opaque(&file).u64(0).u32(1 << 20);
                });
                let stream: &dyn Stream = &*client.stream;
                if stream.send_all(&record(&read)).await.is_err() {
                    return;
                }
            }
        });
    }
    world.settle();
    // A quarter of 16 MiB is for one client at most, and 32 KiB for each connection.
    let held = world.server.memory().used;
    assert!(held <= (4 << 20) + (20 << 15), "{held} bytes of replies are held for one client");
    assert!(greedy.iter().all(|c| c.stream.untaken() > 0), "their calls wait in the network");
    // Somebody else still reads and writes at full size.
    let honest = world.client_from("10.0.0.8:900", Limits::default());
    let target = file.clone();
    world.run(async move {
        assert_eq!(honest.read(&target, 0, 1 << 20).await.unwrap().0.len(), 1 << 20);
        assert_eq!(honest.write(&target, 1, &vec![3; 1 << 20], 0).await.0.unwrap().0, 1 << 20);
    });
    // Each of them got a reply, and stalls for a minute.
    world.pass(Duration::from_secs(70));
    assert_eq!(world.server.connections(), 1 + 1, "those who take nothing for a minute are cut off");
}

#[test]
fn calls_of_one_connection_in_work_are_bounded() {
    let world = World::new();
    let client = world.client();
    let setup = client.clone();
    let root = world.run(async move { setup.root().await });
    world.fs.calls();
    world.fs.hold("getattr");
    let sender = client.clone();
    world.start(async move {
        for _ in 0..500 {
            let call = sender.nfs(Procedure::GetAttr, |e| {
                e.opaque(&root);
            });
            sender.send(&record(&call)).await;
        }
    });
    world.settle();
    assert_eq!(world.fs.count("getattr"), 64);
    world.fs.release("getattr");
    world.run(async move {
        for _ in 0..500 {
            accepted(&client.receive().await.unwrap());
        }
    });
}

#[test]
fn half_a_record_and_silence_is_cut_off_and_idleness_is_not() {
    let world = World::new();
    let (idle, silent) = (world.client(), world.client());
    let setup = idle.clone();
    let root = world.run(async move { setup.root().await });
    let call = record(&silent.nfs(Procedure::Write, |e| {
        e.opaque(&root).u64(0).u32(5000).u32(0).opaque(&[0; 5000]);
    }));
    for cut in [1, 4, 20, 100, 3000] {
        let silent = world.client();
        let part = call[..cut].to_vec();
        world.run({
            let silent = silent.clone();
            async move { silent.send(&part).await }
        });
        world.pass(Duration::from_secs(50));
        assert_eq!(world.server.connections(), 3, "not yet, after {cut} bytes");
        world.pass(Duration::from_secs(20));
        assert_eq!(world.server.connections(), 2, "after {cut} bytes");
    }
    // One byte a second is as good as silence.
    let trickle = world.client();
    let bytes = call.clone();
    world.start({
        let (trickle, clock) = (trickle.clone(), world.platform.clock.clone());
        async move {
            for byte in bytes {
                let stream: &dyn Stream = &*trickle.stream;
                if stream.send_all(&[byte]).await.is_err() {
                    return;
                }
                clock.sleep(Duration::from_secs(1)).await;
            }
        }
    });
    world.pass(Duration::from_secs(150));
    assert_eq!(world.server.connections(), 2);
    world.pass(Duration::from_secs(3600));
    world.run(async move { assert!(idle.getattr(&root).await.is_ok(), "an idle client stays") });
}

#[test]
fn the_connection_longest_without_a_call_makes_room_for_a_new_one() {
    let world = World::with(|config| config.connections_max = 4);
    let clients: Vec<Client> = (0..4)
        .map(|_| {
            world.pass(Duration::from_millis(1));
            world.client()
        })
        .collect();
    world.settle();
    let first = clients[0].clone();
    world.pass(Duration::from_millis(1));
    world.run(async move {
        first.root().await;
    });
    let fifth = world.client();
    world.run(async move {
        fifth.root().await;
        clients[0].root().await;
        clients[2].root().await;
        assert!(clients[1].receive().await.is_none(), "the second had been silent longest");
    });
    assert_eq!(world.server.counters().evicted, 1);
    assert_eq!(world.server.connections(), 4);
}

#[test]
fn any_number_of_connections_one_after_another_leaves_a_bounded_number_of_calls_in_work() {
    // More than the duplicate request cache has entries, and twice as many as calls may be in work.
    const CONNECTIONS: usize = 2500;
    const CALLS_MAX: usize = 1024;
    for connections_max in [0, 1, 2] {
        let world = World::with(|config| config.connections_max = connections_max);
        let setup = world.client();
        let (root, file) = world.run(async move {
            let root = setup.root().await;
            let file = setup.create(&root, b"file").await.unwrap();
            (root, file)
        });
        world.fs.calls();
        world.fs.hold("create");
        world.fs.hold("write");
        for n in 0..CONNECTIONS {
            let client = world.client();
            let call = if n % 2 == 0 {
                client.nfs(Procedure::Create, |e| {
                    e.opaque(&root).opaque(format!("f{n}").as_bytes()).u32(0);
                    no_sattr(e);
                })
            } else {
                client.nfs(Procedure::Write, |e| {
                    e.opaque(&file).u64(n as u64).u32(1).u32(0).opaque(b"x");
                })
            };
            world.run(async move { client.send(&record(&call)).await });
            world.settle();
        }
        let open = connections_max.max(1);
        assert_eq!(world.server.connections(), open);
        let calls = world.fs.count("create") + world.fs.count("write");
        assert_eq!(calls, CALLS_MAX + open, "calls in work, of connections that are gone");
        let memory = world.server.memory();
        assert!(memory.used <= memory.limit, "{memory:?}");
        // Those calls, two tasks of each open connection, and the one that looks after them.
        assert!(world.tasks() <= calls + 2 * open + 1, "{} tasks", world.tasks());
        world.fs.release("create");
        world.fs.release("write");
        let client = world.client();
        world.run(async move {
            assert!(client.getattr(&root).await.is_ok());
            client.write(&file, 0, &[7; 1 << 20], 2).await.0.unwrap();
        });
        assert_eq!(world.server.connections(), open);
    }
}

#[test]
fn a_client_that_closes_its_half_gets_every_answer_first() {
    let world = World::new();
    let client = world.client();
    let setup = client.clone();
    let file = world.run(async move { file_of(&setup, 100).await });
    world.fs.hold("read");
    let sender = client.clone();
    world.run(async move {
        for _ in 0..5 {
            let read = sender.nfs(Procedure::Read, |e| {
                e.opaque(&file).u64(0).u32(100);
            });
            sender.send(&record(&read)).await;
        }
        sender.stream.close();
    });
    world.settle();
    world.fs.release("read");
    world.run(async move {
        for _ in 0..5 {
            accepted(&client.receive().await.unwrap());
        }
        assert!(client.receive().await.is_none());
    });
    world.settle();
    assert_eq!(world.server.connections(), 0);
}

#[test]
fn stopping_answers_what_is_in_work_and_then_ends() {
    let world = World::new();
    let (client, idle) = (world.client(), world.client());
    let setup = client.clone();
    let file = world.run(async move { file_of(&setup, 100).await });
    world.fs.hold("read");
    let sender = client.clone();
    let reader = file.clone();
    world.run(async move {
        let read = sender.nfs(Procedure::Read, |e| {
            e.opaque(&reader).u64(0).u32(100);
        });
        sender.send(&record(&read)).await;
    });
    world.settle();
    let stopped = Rc::new(Cell::new(false));
    world.start({
        let (server, stopped) = (world.server.clone(), stopped.clone());
        async move {
            server.stop().await;
            stopped.set(true);
        }
    });
    world.settle();
    assert!(!stopped.get(), "a call is in work");
    world.fs.release("read");
    world.run(async move {
        accepted(&client.receive().await.unwrap());
        assert!(client.receive().await.is_none());
        assert!(idle.receive().await.is_none());
    });
    assert!(stopped.get());
    let late = world.client();
    world.run(async move { assert!(late.receive().await.is_none(), "nobody is served any more") });
}

#[test]
fn a_stalled_call_does_not_keep_the_server_from_stopping() {
    let world = World::new();
    let client = world.client();
    let setup = client.clone();
    let root = world.run(async move { setup.root().await });
    world.fs.hold("getattr");
    world.run(async move {
        let call = client.nfs(Procedure::GetAttr, |e| {
            e.opaque(&root);
        });
        client.send(&record(&call)).await;
    });
    let server = world.server.clone();
    world.run(async move { server.stop().await });
    assert_eq!(world.server.connections(), 0);
}

#[test]
fn no_memory_is_waited_out_and_never_told() {
    let world = World::new();
    let (client, fs) = (world.client(), world.fs.clone());
    world.run(async move {
        for _ in 0..12 {
            fs.fail("lookup", FsError::NoMemory, 1);
        }
        assert!(client.mount(b"/volumes").await.is_ok());
        let root = client.root().await;
        for _ in 0..12 {
            fs.fail("lookup", FsError::NoMemory, 1);
        }
        assert!(client.lookup(&root, b"volumes").await.is_ok());
        for _ in 0..3 {
            fs.fail("create", FsError::NoMemory, 1);
        }
        assert!(client.create(&root, b"f").await.is_ok());
        assert_eq!(fs.count("create"), 4);
        // A WRITE's data is gone with the attempt: its client sends it again.
        let file = client.lookup(&root, b"f").await.unwrap().0;
        fs.fail("write", FsError::NoMemory, 1);
        let write = client.nfs(Procedure::Write, |e| {
            e.opaque(&file).u64(0).u32(1).u32(0).opaque(b"x");
        });
        client.send(&record(&write)).await;
        assert!(client.receive().await.is_none());
    });
}

#[test]
fn shutting_down_is_silence_and_a_closed_connection() {
    let world = World::new();
    let (client, fs) = (world.client(), world.fs.clone());
    world.run(async move {
        let root = client.root().await;
        fs.fail("remove", FsError::ShuttingDown, 1);
        let call = client.nfs(Procedure::Remove, |e| {
            e.opaque(&root).opaque(b"x");
        });
        client.send(&record(&call)).await;
        assert!(client.receive().await.is_none());
    });
    // The call left nothing behind in the cache: when we are back it runs.
    let again = world.client();
    world.run(async move {
        let root = again.root().await;
        again.xid.set(again.xid.get());
        assert_eq!(again.unlink(Procedure::Remove, &root, b"x").await.0, 2);
    });
}

#[test]
fn many_clients_at_once_each_see_their_own_answers() {
    let world = World::new();
    let done = Rc::new(RefCell::new(0));
    for i in 0..40u8 {
        let client = world.client_from(&format!("10.0.2.{i}:900"), Limits { buffer: 5000, piece: 1300 });
        let done = done.clone();
        world.start(async move {
            let root = client.root().await;
            let dir = client.mkdir(&root, &[b'a' + i / 10, b'0' + i % 10]).await.unwrap().0;
            for n in 0..5u8 {
                let file = client.create(&dir, &[b'f', b'0' + n]).await.unwrap();
                let data = vec![i ^ n; 20_000];
                client.write(&file, 7, &data, 2).await.0.unwrap();
                assert_eq!(client.read(&file, 7, 20_000).await.unwrap(), (data, true));
            }
            *done.borrow_mut() += 1;
        });
    }
    world.settle();
    assert_eq!(*done.borrow(), 40);
}
