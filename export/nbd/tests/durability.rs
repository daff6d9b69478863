//! What is durable when it is answered: the order of the filesystem's calls against the order of the answers.

mod support;

use moraine_fs::FsError;
use moraine_fs::vfs::{Seq, Stability};
use std::cell::RefCell;
use support::client::*;
use support::{Bench, Call, Client, Dice};

const SIZE: u64 = 4 << 20;

fn commits(log: &[Call]) -> usize {
    log.iter().filter(|c| matches!(c, Call::CommitBegun(..))).count()
}

#[test]
fn nbd_06_a_flush_covers_every_write_answered_on_any_connection_before_it_was_sent() {
    for seed in 0..20 {
        let bench = Bench::new();
        bench.world.run(async {
            bench.volume("vm1", SIZE).await;
            let mut clients = Vec::new();
            for _ in 0..4 {
                clients.push(bench.open("vm1").await);
            }
            // Flushes in flight: cookie, and how long the log was when it was sent.
            let pending = RefCell::new(vec![Vec::<(u64, usize)>::new(); 4]);
            let mut in_flight = [0; 4];
            let (mut dice, mut flushes) = (Dice::new(seed), 0);
            for round in 0..600 {
                let n = dice.below(4) as usize;
                match dice.below(6) {
                    0 if in_flight[n] < 16 => {
                        let at = bench.vfs.log.borrow().len();
                        let cookie = clients[n].request(FLUSH, 0, 0, 0, &[]).await;
                        pending.borrow_mut()[n].push((cookie, at));
                        in_flight[n] += 1;
                    }
                    1 | 2 if in_flight[n] < 16 => {
                        let offset = dice.below(SIZE - 4096);
                        clients[n].request(WRITE, 0, offset, 4096, &[round as u8; 4096]).await;
                        in_flight[n] += 1;
                    }
                    3 => bench.vfs.hold(["commit", "write"][dice.below(2) as usize]),
                    4 => bench.vfs.release_all(),
                    _ if in_flight[n] > 0 => {
                        bench.vfs.release_all();
                        let reply = clients[n].reply().await;
                        assert_eq!(reply.error, 0);
                        in_flight[n] -= 1;
                        let mut pending = pending.borrow_mut();
                        if let Some(at) = pending[n].iter().position(|f| f.0 == reply.cookie) {
                            let (_, sent) = pending[n].remove(at);
                            let log = bench.vfs.log.borrow();
                            let begun = log[sent..].iter().position(|c| matches!(c, Call::CommitBegun(0, 0)));
                            let begun = sent + begun.expect("a flush began after it was asked for");
                            assert!(log[begun..].contains(&Call::CommitEnded), "and ended before the answer");
                            flushes += 1;
                        }
                    }
                    _ => bench.world.settle().await,
                }
            }
            assert!(flushes > 10);
            assert!(commits(&bench.vfs.log.borrow()) <= flushes + 64, "one flush serves many");
        });
    }
}

#[test]
fn nbd_06_flushes_that_wait_share_one_and_one_that_has_begun_takes_no_more() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", SIZE).await;
        let mut clients = [bench.open("vm1").await, bench.open("vm1").await];
        bench.vfs.hold("commit");
        for n in 0..20 {
            clients[n % 2].request(FLUSH, 0, 0, 0, &[]).await;
            bench.world.settle().await;
        }
        assert_eq!(commits(&bench.vfs.log.borrow()), 1, "the first began at once, alone");
        bench.vfs.release_all();
        for n in 0..20 {
            assert_eq!(clients[n % 2].reply().await.error, 0);
        }
        assert_eq!(commits(&bench.vfs.log.borrow()), 2, "the other nineteen shared one");
    });
}

#[test]
fn nbd_06_a_failed_flush_fails_for_all_who_share_it() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", SIZE).await;
        let mut client = bench.open("vm1").await;
        bench.vfs.hold("commit");
        for _ in 0..4 {
            client.request(FLUSH, 0, 0, 0, &[]).await;
        }
        bench.world.settle().await;
        bench.vfs.fail("commit", FsError::DeviceWrite, 2);
        bench.vfs.release_all();
        for _ in 0..4 {
            assert_eq!(client.reply().await.error, EIO);
        }
        client.flush().await;
    });
}

#[test]
fn nbd_06_a_flush_covers_zeroes_too() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", SIZE).await;
        let mut client = bench.open("vm1").await;
        client.write(0, &[1; 8192]).await;
        assert_eq!(client.ask(TRIM, 0, 0, 4096, &[]).await.error, 0);
        client.flush().await;
        let log = bench.vfs.take_log();
        let Some(Call::Durable(seq)) = log.last() else { panic!("{log:?}") };
        assert!(*seq > Seq(0));
    });
}

/// Asks with FUA while a flush of another connection is stuck, and returns the calls it made.
async fn with_fua(bench: &Bench, client: &mut Client, command: u16, flags: u16, len: u32) -> Vec<Call> {
    bench.vfs.take_log();
    let payload = vec![3; if command == WRITE { len as usize } else { 0 }];
    assert_eq!(client.ask(command, flags | FUA, 512, len, &payload).await.error, 0);
    bench.vfs.take_log()
}

#[test]
fn nbd_07_fua_is_durable_when_answered_and_is_no_flush() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", SIZE).await;
        let mut client = bench.open("vm1").await;
        let log = with_fua(&bench, &mut client, WRITE, 0, 4096).await;
        let wanted = Call::Written { offset: 512, len: 4096, skip: 512, stability: Stability::DataSync };
        assert_eq!(log, [wanted], "one call, which is durable itself");

        let log = with_fua(&bench, &mut client, WRITE, 0, 1 << 20).await;
        assert_eq!(log[log.len() - 2..], [Call::CommitBegun(512, 1 << 20), Call::CommitEnded]);
        assert_eq!(commits(&log), 1, "one commit for all pieces, of their range only");

        let log = with_fua(&bench, &mut client, ZERO, NO_HOLE, 4096).await;
        assert_eq!(log[log.len() - 2..], [Call::CommitBegun(512, 4096), Call::CommitEnded]);
        for command in [ZERO, TRIM] {
            let log = with_fua(&bench, &mut client, command, 0, 9000).await;
            assert!(matches!(log[..], [Call::Punched(512, 9000), Call::Durable(_)]), "{log:?}");
        }
    });
}

#[test]
fn nbd_07_fua_does_not_wait_for_a_flush() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", SIZE).await;
        let (mut a, mut b) = (bench.open("vm1").await, bench.open("vm1").await);
        bench.vfs.hold("commit");
        a.request(FLUSH, 0, 0, 0, &[]).await;
        bench.world.settle().await;
        assert_eq!(b.ask(WRITE, FUA, 0, 512, &[1; 512]).await.error, 0);
        assert_eq!(bench.vfs.waiting(), 1, "the flush still waits");
        bench.vfs.release_all();
        assert_eq!(a.reply().await.error, 0);
    });
}

#[test]
fn nbd_07_what_cannot_be_made_durable_is_an_error() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", SIZE).await;
        let mut client = bench.open("vm1").await;
        bench.vfs.fail("durable", FsError::DeviceWrite, 1);
        assert_eq!(client.ask(TRIM, FUA, 0, 4096, &[]).await.error, EIO);
        bench.vfs.fail("commit", FsError::Stopped, 1);
        assert_eq!(client.ask(WRITE, FUA, 0, 1 << 20, &[0; 1 << 20]).await.error, EIO);
    });
}

#[test]
fn nbd_08_a_flush_on_one_connection_covers_a_write_on_another() {
    let bench = Bench::new();
    bench.world.run(async {
        bench.volume("vm1", SIZE).await;
        let (mut a, mut b) = (bench.open("vm1").await, bench.open_simple("vm1").await);
        assert_eq!(a.flags & b.flags & (1 << 8), 1 << 8, "CAN_MULTI_CONN is promised");
        a.write(0, &[9; 512]).await;
        assert_eq!(b.read(0, 512).await, [9; 512]);
        bench.vfs.take_log();
        b.flush().await;
        assert_eq!(bench.vfs.take_log()[..2], [Call::CommitBegun(0, 0), Call::CommitEnded]);
    });
}
