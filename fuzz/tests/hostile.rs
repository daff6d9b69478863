//! What honest clients keep while hostile ones do their worst: counted in polls of the world's tasks, which is what one core
//! has to give, not in seconds.

use core::cell::Cell;
use core::time::Duration;
use moraine_fuzz::seeds::{go, nfs_call, record};
use moraine_fuzz::served::{Served, at, with_server};
use moraine_platform::{LocalFuture, Stream};
use moraine_sim::world::WorldConfig;
use std::rc::Rc;

const NFS: u16 = 2049;
const NBD: u16 = 10809;
/// Operations an honest client does in each measurement.
const OPERATIONS: u32 = 200;
/// Bytes written and read by each.
const BYTES: usize = 16 << 10;

/// A hostile client's first bytes, and on which port.
type Attack = fn(&Served<'_>, u32) -> (u16, Vec<u8>);

async fn connect(served: &Served<'_>, port: u16, bytes: &[u8]) -> Rc<dyn Stream> {
    let stream = served.network.connect(at(port)).await.expect("the server accepts");
    // A server that has hung up by now has defended itself.
    let _ = stream.send_all(bytes).await;
    stream
}

/// Writes and reads over NFS, stable, one call at a time.
async fn honest_nfs(served: &Served<'_>, stream: &Rc<dyn Stream>, first: u32) {
    let handle = [&40u32.to_be_bytes()[..], &served.file_handle].concat();
    for xid in first..first + OPERATIONS / 2 {
        let len = (BYTES as u32).to_be_bytes();
        let write = [&handle[..], &[0; 8], &len, &2u32.to_be_bytes(), &len, &vec![xid as u8; BYTES]].concat();
        call(stream, xid, 7, &write).await;
        let data = call(stream, !xid, 6, &[&handle[..], &[0; 8], &len].concat()).await;
        assert!(data.ends_with(&[xid as u8; BYTES]), "what was written is read");
    }
}

/// One call and its reply.
async fn call(stream: &Rc<dyn Stream>, xid: u32, procedure: u32, args: &[u8]) -> Vec<u8> {
    stream.send_all(&record(&nfs_call(xid, 100_003, 3, procedure, args))).await.expect("it stays connected");
    let mut mark = [0; 4];
    assert!(stream.recv_exact(&mut mark).await.expect("it stays connected"));
    let mut reply = vec![0; (u32::from_be_bytes(mark) & 0x7fff_ffff) as usize];
    assert!(stream.recv_exact(&mut reply).await.expect("it stays connected"));
    assert_eq!((&reply[..4], &reply[24..28]), (&xid.to_be_bytes()[..], &[0; 4][..]), "the call succeeds");
    reply
}

/// Writes over NBD, each answered.
async fn honest_nbd(stream: &Rc<dyn Stream>) {
    for n in 0..OPERATIONS {
        let head = [
            &0x2560_9513_u32.to_be_bytes()[..],
            &[0, 0, 0, 1],
            &u64::from(n).to_be_bytes(),
            &[0; 8],
            &(BYTES as u32).to_be_bytes(),
        ];
        stream.send_all(&[&head.concat()[..], &vec![n as u8; BYTES]].concat()).await.expect("connected");
        let mut reply = [0; 16];
        assert!(stream.recv_exact(&mut reply).await.expect("it stays connected"));
        assert_eq!((&reply[..8], reply[15]), (&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], n as u8));
    }
}

/// Polls that the honest clients' work costs beside `attackers` who begin as `attack` says and then stand still.
fn cost(attackers: u32, attack: Attack) -> u64 {
    let (report, result) = std::sync::mpsc::channel();
    with_server(WorldConfig { forced_yield_percent: 0, ..WorldConfig::new(3) }, async |served| {
        let mut hostile = Vec::new();
        let nfs = connect(served, NFS, &[]).await;
        let nbd = connect(served, NBD, &go(b"vm")).await;
        // Greeting, structured replies, the context and its ACK, INFO and GO with theirs.
        assert!(nbd.recv_exact(&mut [0; 18 + 20 + 59 + 86 + 86]).await.unwrap());
        let mut xid = 1;
        for n in 0..attackers {
            let (port, bytes) = attack(served, n);
            hostile.push(connect(served, port, &bytes).await);
            if n % 20 == 0 {
                // Honest clients go on meanwhile: a server that is full closes who has been idle longest.
                let handle = [&40u32.to_be_bytes()[..], &served.file_handle].concat();
                call(&nfs, xid + 1_000_000, 1, &handle).await;
                flush(&nbd).await;
                xid += 1;
            }
        }
        // What they asked for first is under way; what stays is what counts.
        served.platform.clock.sleep(Duration::from_secs(1)).await;
        let before = served.world.polls();
        honest_nfs(served, &nfs, 10_000).await;
        honest_nbd(&nbd).await;
        report.send(served.world.polls() - before).unwrap();
        hostile.iter().for_each(|stream| stream.abort());
        nfs.abort();
        nbd.abort();
    });
    result.recv().unwrap()
}

/// A flush over NBD: keeps the connection among the active.
async fn flush(stream: &Rc<dyn Stream>) {
    let head = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0, 0, 3], &[9; 8], &[0; 12]].concat();
    stream.send_all(&head).await.expect("it stays connected");
    let mut reply = [0; 16];
    assert!(stream.recv_exact(&mut reply).await.expect("it stays connected"));
    assert_eq!(reply[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
}

/// Honest clients keep half of what they had.
fn keeps_half(attackers: u32, attack: Attack) {
    let (alone, beside) = (cost(0, attack), cost(attackers, attack));
    println!("{alone} polls alone, {beside} beside {attackers}");
    assert!(beside <= 2 * alone, "{beside} polls beside {attackers} hostile clients, {alone} alone");
}

#[test]
fn a_thousand_connections_that_stall() {
    keeps_half(1000, |_, n| if n % 2 == 0 { (NFS, Vec::new()) } else { (NBD, Vec::new()) });
}

#[test]
fn a_thousand_half_requests() {
    keeps_half(1000, |served, n| {
        let write =
            [&40u32.to_be_bytes()[..], &served.file_handle, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]].concat();
        let whole = match n % 3 {
            0 => return (NFS, [0x80, 0].to_vec()),
            // A WRITE of a mebibyte whose data never comes.
            1 => [&0x8010_0080_u32.to_be_bytes()[..], &nfs_call(n, 100_003, 3, 7, &write)].concat(),
            _ => return (NBD, go(b"vm")[..30].to_vec()),
        };
        (NFS, whole)
    });
}

#[test]
fn record_marks_of_four_gibibytes_and_garbage() {
    keeps_half(500, |_, n| {
        let junk = (0..200 + n % 100).map(|i| (i * n).wrapping_mul(2_654_435_761) as u8 | 1);
        match n % 4 {
            0 => (NFS, vec![0xff; 4]),
            1 => (NFS, [vec![0x7f, 0xff, 0xff, 0xff], vec![0; 4096]].concat()),
            2 => (NFS, junk.collect()),
            _ => (NBD, junk.collect()),
        }
    });
}

#[test]
fn clients_that_ask_for_much_and_read_nothing() {
    keeps_half(150, |served, n| {
        let handle = [&40u32.to_be_bytes()[..], &served.file_handle].concat();
        let read = [&handle[..], &[0; 8], &(1u32 << 20).to_be_bytes()].concat();
        let calls: Vec<u8> =
            (0..20).flat_map(|i| record(&nfs_call(n << 8 | i, 100_003, 3, 6, &read))).collect();
        let reads = (0..20u64).flat_map(|i| {
            [
                &0x2560_9513_u32.to_be_bytes()[..],
                &[0; 4],
                &i.to_be_bytes(),
                &[0; 8],
                &(1u32 << 20).to_be_bytes(),
            ]
            .concat()
        });
        if n % 4 < 3 { (NFS, calls) } else { (NBD, [go(b"vm"), reads.collect()].concat()) }
    });
}

#[test]
fn clients_that_ask_for_little_ten_thousand_times_and_read_nothing() {
    // Seventeen of them have all the calls in work that there can be over all connections.
    keeps_half(20, |served, n| {
        let handle = [&40u32.to_be_bytes()[..], &served.file_handle].concat();
        (NFS, (0..10_000).flat_map(|i| record(&nfs_call(n << 16 | i, 100_003, 3, 1, &handle))).collect())
    });
}

/// What hostile clients that go on and on share with the test.
#[derive(Clone, Default)]
struct Siege {
    over: Rc<Cell<bool>>,
    /// What they did: connections made, bytes sent or read.
    done: Rc<Cell<u64>>,
}

impl Siege {
    fn goes_on(&self) -> bool {
        !self.over.get()
    }

    fn count(&self) {
        self.done.set(self.done.get() + 1);
    }
}

/// A hostile client that goes on until the siege is over.
type Besieger = fn(&Served<'_>, u32, Siege) -> LocalFuture<()>;

/// Each thing that `attackers` do, their own polls included, costs no more than `polls_each`, and honest work no more than
/// it does alone.
fn each_costs(polls_each: u64, attackers: u32, besieger: Besieger) {
    let alone = cost(0, |_, _| (NFS, Vec::new()));
    let config = WorldConfig { forced_yield_percent: 0, ..WorldConfig::new(3) };
    with_server(config, async |served| {
        let nfs = connect(served, NFS, &[]).await;
        let nbd = connect(served, NBD, &go(b"vm")).await;
        assert!(nbd.recv_exact(&mut [0; 18 + 20 + 59 + 86 + 86]).await.unwrap());
        let siege = Siege::default();
        for n in 0..attackers {
            served.platform.spawn.spawn("besieger", besieger(served, n, siege.clone()));
        }
        let before = served.world.polls();
        honest_nfs(served, &nfs, 10_000).await;
        honest_nbd(&nbd).await;
        let beside = served.world.polls() - before;
        siege.over.set(true);
        let done = siege.done.get();
        assert!(done > 100, "{done}");
        println!("{alone} polls alone, {beside} beside {done} things done by {attackers}");
        let each = beside.saturating_sub(alone) / done;
        assert!(each <= polls_each, "{each} polls each");
        nfs.abort();
        nbd.abort();
    });
}

/// Connects, sends `bytes` and hangs up, over and over.
fn flood(served: &Served<'_>, port: u16, bytes: Vec<u8>, siege: Siege) -> LocalFuture<()> {
    let network = served.network.clone();
    Box::pin(async move {
        while siege.goes_on() {
            let stream = network.connect(at(port)).await.expect("the server accepts");
            let _ = stream.send_all(&bytes).await;
            stream.abort();
            siege.count();
        }
    })
}

#[test]
fn floods_of_half_requests_cost_a_connection_each_and_no_more() {
    each_costs(24, 8, |served, n, siege| match n % 2 {
        0 => flood(served, NFS, record(&nfs_call(1, 100_003, 3, 1, &[0; 64]))[..50].to_vec(), siege),
        _ => flood(served, NBD, go(b"vm")[..40].to_vec(), siege),
    });
}

#[test]
fn floods_of_garbage_and_of_marks_of_four_gibibytes_cost_a_connection_each_and_no_more() {
    each_costs(24, 8, |served, n, siege| {
        let junk: Vec<u8> =
            (0..300u32).map(|i| (i * (n + 7)).wrapping_mul(2_654_435_761) as u8 | 1).collect();
        match n % 3 {
            0 => flood(served, NFS, vec![0xff; 4], siege),
            1 => flood(served, NFS, junk, siege),
            _ => flood(served, NBD, junk, siege),
        }
    });
}

/// How often a client that trickles sends or takes a byte.
const TRICKLE: Duration = Duration::from_micros(200);

#[test]
fn clients_that_take_a_byte_at_a_time_cost_what_their_bytes_cost() {
    each_costs(3, 100, |served, n, siege| {
        let (network, clock) = (served.network.clone(), served.platform.clock.clone());
        let handle = [&40u32.to_be_bytes()[..], &served.file_handle].concat();
        let read = [&handle[..], &[0; 8], &(1u32 << 20).to_be_bytes()].concat();
        let calls = (0..20)
            .flat_map(move |i| record(&nfs_call(n << 8 | i, 100_003, 3, 6, &read)))
            .collect::<Vec<_>>();
        Box::pin(async move {
            let stream = network.connect(at(NFS)).await.expect("the server accepts");
            let _ = stream.send_all(&calls).await;
            while siege.goes_on() {
                clock.sleep(TRICKLE).await;
                if stream.recv(&mut [0]).await.is_err() {
                    return;
                }
                siege.count();
            }
            stream.abort();
        })
    });
}
