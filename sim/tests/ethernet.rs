//! Hosts with TCP/IP on an Ethernet that does to frames what it likes: what one sends is what the other receives.

use moraine_platform::{Listener, Stream};
use moraine_sim::ethernet::{Ethernet, Frames, Treatment};
use moraine_sim::{World, WorldConfig};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const PORT: u16 = 7;
const BYTES: usize = 150_000;

/// Gives back what it gets.
async fn echo(listener: Box<dyn Listener>) {
    let Ok(stream) = listener.accept().await else { return };
    let mut bytes = vec![0; BYTES];
    if stream.recv_exact(&mut bytes).await == Ok(true) && stream.send_all(&bytes).await.is_ok() {
        stream.close();
    }
}

/// Sends bytes there and back; what came back, what happened to frames, and how long it took.
fn there_and_back(seed: u64, treatment: Treatment, outage: bool) -> (bool, Frames, Duration) {
    let world = World::with(WorldConfig::new(seed));
    let ethernet = Ethernet::new(&world, 1500, treatment);
    let (here, there) = (ethernet.cable(1), ethernet.cable(2));
    let server = Ethernet::host(&here, &world, SERVER);
    let client = Ethernet::host(&there, &world, CLIENT);
    let listener = server.listen(SocketAddr::new(SERVER, PORT)).expect("nobody has the port");
    let platform = world.platform();
    platform.spawn.spawn("echo", Box::pin(echo(listener)));
    if outage {
        let clock = platform.clock.clone();
        let cut = async move {
            clock.sleep(Duration::from_millis(3)).await;
            there.set_link(false);
            clock.sleep(Duration::from_secs(2)).await;
            there.set_link(true);
        };
        platform.spawn.spawn("outage", Box::pin(cut));
    }
    let sent: Vec<u8> = (0..BYTES as u32).map(|n| (n.wrapping_mul(n) >> 5) as u8).collect();
    let same = world.run(async {
        let stream: Rc<dyn Stream> = client.connect(SocketAddr::new(SERVER, PORT)).await.expect("connected");
        let mut back = vec![0; BYTES];
        let receive = async { stream.recv_exact(&mut back).await };
        let (given, taken) = futures(stream.send_all(&sent), receive).await;
        given.is_ok() && taken == Ok(true) && back == sent
    });
    (same, ethernet.frames(), Duration::from_nanos(world.now().0))
}

/// Waits for both.
async fn futures<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    let (mut first, mut second) = (None, None);
    std::future::poll_fn(|cx| {
        if first.is_none()
            && let std::task::Poll::Ready(value) = a.as_mut().poll(cx)
        {
            first = Some(value);
        }
        if second.is_none()
            && let std::task::Poll::Ready(value) = b.as_mut().poll(cx)
        {
            second = Some(value);
        }
        match first.is_some() && second.is_some() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    (first.expect("it is ready"), second.expect("it is ready"))
}

const FINE: Treatment = Treatment { delay_ns: (2_000, 50_000), lost: 0, late: 0, damaged: 0, doubled: 0 };
const BAD: Treatment = Treatment { lost: 10, late: 10, damaged: 10, doubled: 10, ..FINE };

#[test]
fn bytes_come_whole_over_a_bad_ethernet() {
    let mut all = Frames::default();
    for seed in 0..12 {
        let (same, frames, _) = there_and_back(seed, BAD, seed.is_multiple_of(3));
        assert!(same, "seed {seed}: {frames:?}");
        all.lost += frames.lost;
        all.late += frames.late;
        all.damaged += frames.damaged;
        all.doubled += frames.doubled;
    }
    assert!(all.lost > 20 && all.late > 20 && all.damaged > 20 && all.doubled > 20, "{all:?}");
}

#[test]
fn nothing_happens_to_frames_on_a_good_one_and_a_seed_is_a_run() {
    let (same, frames, took) = there_and_back(1, FINE, false);
    assert!(same && frames.sent > 200 && frames == Frames { sent: frames.sent, ..Frames::default() });
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(there_and_back(5, BAD, true), there_and_back(5, BAD, true));
}
