//! A volume among its users: other connections, file protocols, and clients that are gone.

mod support;

use moraine_fs::Vfs;
use moraine_fs::vfs::{Caller, SetAttr};
use moraine_share::{Mask, Refused};
use support::client::*;
use support::{Bench, Dice};

const MIB: u64 = 1 << 20;

#[test]
fn nbd_14_a_served_volume_cannot_be_changed_or_removed_as_a_file() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let (mut a, b) = (bench.open("vm1").await, bench.open("vm1").await);
        let denied = |bench: &Bench| {
            let masks = [Mask::WRITE, Mask::RESIZE, Mask::REMOVE];
            masks.map(|mask| bench.share.act(object, mask).is_err())
        };
        assert_eq!(denied(&bench), [true; 3]);
        assert!(bench.share.act(object, Mask::READ).is_ok());
        assert_eq!(bench.share.act(object, Mask::RESIZE).err(), Some(Refused::Denied));
        drop(b);
        bench.world.settle().await;
        assert_eq!(denied(&bench), [true; 3], "one connection is enough");
        a.request(DISC, 0, 0, 0, &[]).await;
        assert!(a.hung_up().await);
        bench.world.settle().await;
        assert_eq!(denied(&bench), [false; 3]);
    });
}

#[test]
fn nbd_14_a_truncate_under_way_ends_before_the_size_is_told() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let act = bench.share.act(object, Mask::RESIZE).unwrap();
        let mut client = bench.connect();
        client.greet(3).await;
        client.option(7, &export_query("vm1", &[])).await;
        bench.world.settle().await;
        assert!(bench.share.act(object, Mask::RESIZE).is_err(), "no further one begins");
        let set = SetAttr { size: Some(4096), ..SetAttr::default() };
        bench.vfs.setattr(&Caller::root(), object, &set, None).await.unwrap();
        drop(act);
        let replies = client.option_replies(7).await;
        assert_eq!(replies[0].1[2..10], 4096u64.to_be_bytes());
        assert_eq!(client.read(0, 4096).await, [0; 4096]);
    });
}

#[test]
fn nbd_14_a_volume_removed_while_a_client_asks_for_it_is_not_there() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let act = bench.share.act(object, Mask::REMOVE).unwrap();
        let mut client = bench.connect();
        client.greet(3).await;
        client.option(7, &export_query("vm1", &[])).await;
        bench.world.settle().await;
        let (caller, vfs) = (Caller::root(), &bench.vfs);
        let (volumes, _) = vfs.lookup(&caller, vfs.root(), b"volumes").await.unwrap();
        vfs.remove(&caller, volumes, b"vm1").await.unwrap();
        drop(act);
        assert_eq!(client.option_replies(7).await.last().unwrap().0, ERR_UNKNOWN);
        // The session goes on, and holds nothing.
        bench.volume("vm2", MIB).await;
        client.go("vm2").await;
        assert_eq!(bench.share.claims(), 1);
    });
}

#[test]
fn nbd_14_a_rename_keeps_the_export_and_gives_it_another_name() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        bench.volume("archive/old", MIB).await;
        let mut client = bench.open("vm1").await;
        client.write(0, b"before").await;
        let (caller, vfs) = (Caller::root(), &bench.vfs);
        let (volumes, _) = vfs.lookup(&caller, vfs.root(), b"volumes").await.unwrap();
        let (archive, _) = vfs.lookup(&caller, volumes, b"archive").await.unwrap();
        vfs.rename(&caller, (volumes, b"vm1"), (archive, b"vm2")).await.unwrap();
        client.write(6, b" after").await;
        client.flush().await;
        assert_eq!(bench.get(object, 0, 12).await, b"before after");
        let mut other = bench.connect();
        other.greet(3).await;
        assert_eq!(other.try_go("vm1").await, Err(ERR_UNKNOWN));
        other.go("archive/vm2").await;
        assert_eq!(other.read(0, 12).await, b"before after");
    });
}

#[test]
fn r_06_writes_of_a_dead_connection_end_before_the_next_client_begins() {
    let bench = Bench::new();
    bench.world.run(async {
        let object = bench.volume("vm1", MIB).await;
        let mut dead = bench.open("vm1").await;
        bench.vfs.hold("write");
        dead.request(WRITE, 0, 0, 3, b"old").await;
        dead.request(TRIM, 0, 4096, 4096, &[]).await;
        bench.world.settle().await;
        // A request that has not wholly arrived never begins.
        dead.send(&request_bytes(WRITE, 0, 99, 100, 5)).await;
        dead.send(b"hal").await;
        bench.world.settle().await;
        dead.stream.abort();
        bench.world.settle().await;

        let mut next = bench.connect();
        next.greet(3).await;
        next.option(7, &export_query("vm1", &[])).await;
        bench.world.settle().await;
        let answered = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(next.stream.poll_recv(cx, &mut |_| 0).is_ready())
        });
        assert!(!answered.await, "the old write may still land");
        bench.vfs.release_all();
        assert_eq!(next.option_replies(7).await.last().unwrap().0, ACK);
        assert_eq!(bench.get(object, 0, 3).await, b"old");
        next.write(0, b"new").await;
        bench.world.settle().await;
        assert_eq!(bench.get(object, 0, 3).await, b"new");
        assert_eq!(bench.get(object, 100, 3).await, [0; 3]);
    });
}

#[test]
fn nbd_15_overlapping_writes_in_flight_leave_one_of_them_in_each_block() {
    let bench = Bench::new();
    bench.world.run(async {
        const BLOCKS: u64 = 96;
        let object = bench.volume("vm1", BLOCKS * 4096).await;
        let mut dice = Dice::new(15);
        let mut clients = [bench.open("vm1").await, bench.open("vm1").await, bench.open_simple("vm1").await];
        for storm in 0..40 {
            if storm % 2 == 0 {
                bench.vfs.hold("write");
            }
            for n in 0..30u64 {
                let first = dice.below(BLOCKS);
                let count = 1 + dice.below(BLOCKS - first);
                let client = &mut clients[n as usize % 3];
                let data = vec![n as u8 + 1; (count * 4096) as usize];
                client.request(WRITE, (n % 2) as u16, first * 4096, data.len() as u32, &data).await;
                if n % 7 == 0 {
                    bench.vfs.release_all();
                }
            }
            bench.vfs.release_all();
            for client in &mut clients {
                for _ in 0..10 {
                    assert_eq!(client.reply().await.error, 0);
                }
            }
            for block in bench.get(object, 0, (BLOCKS * 4096) as u32).await.chunks(4096) {
                assert!(block.iter().all(|b| *b == block[0]), "a block holds one write, not a mix");
            }
        }
    });
}
