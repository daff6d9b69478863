//! The servers as clients reach them. After every hostile client an honest one is served, and nothing stays held.

use crate::seeds::{go, nfs_call, record};
use crate::served::{CLIENT, Served, at, with_server};
use core::cell::Cell;
use core::net::SocketAddr;
use core::time::Duration;
use moraine_platform::{Datagram, Stream};
use moraine_sim::world::WorldConfig;
use std::rc::Rc;

/// Polls of all tasks that one input may cost: a few thousand requests fit an input, each costs a few polls.
const POLLS_MAX: u64 = 2_000_000;
/// Bytes of answers that are read at most before the client leaves.
const ANSWERS_MAX: usize = 8 << 20;

fn config() -> WorldConfig {
    WorldConfig { forced_yield_percent: 5, poll_limit: POLLS_MAX, ..WorldConfig::new(1) }
}

/// Sends `bytes`, closes, reads what comes until the server closes too, and leaves.
async fn throw(served: &Served<'_>, stream: &Rc<dyn Stream>, bytes: &[u8]) {
    let reader = stream.clone();
    let read = async move {
        let (mut buf, mut total) = ([0; 4096], 0);
        while let Ok(count) = reader.recv(&mut buf).await
            && count > 0
            && total < ANSWERS_MAX
        {
            total += count;
        }
    };
    served.platform.spawn.spawn("reader", Box::pin(read));
    // The server may hang up on what it reads.
    if stream.send_all(bytes).await.is_ok() {
        stream.close();
    }
    // Long enough for every answer, less than any time limit.
    served.platform.clock.sleep(Duration::from_secs(5)).await;
    stream.abort();
}

/// Bytes on a connection to NFS's port.
pub(super) fn nfs_stream(bytes: &[u8]) {
    with_server(config(), async |served| {
        let stream = served.network.connect(at(2049)).await.expect("the server accepts");
        throw(served, &stream, bytes).await;
    });
}

/// Calls whose heads are right, so that every byte reaches a procedure: program and procedure, which handle the arguments
/// begin with, their length, and the rest of them.
pub(super) fn nfs_calls(bytes: &[u8]) {
    with_server(config(), async |served| {
        let mut calls = Vec::new();
        let (mut rest, mut xid) = (bytes, 0);
        while let Some(([which, handle, len], behind)) = rest.split_first_chunk() {
            let (args, behind) = behind.split_at(behind.len().min(usize::from(*len)));
            rest = behind;
            let (program, version) = match which >> 5 {
                0 => (100_005, 3),
                1 => (100_000, 2),
                _ => (100_003, 3),
            };
            let mut body = Vec::new();
            let object: &[u8] = match handle % 4 {
                0 => &[],
                1 => &served.root_handle,
                _ => &served.file_handle,
            };
            if !object.is_empty() {
                body.extend((object.len() as u32).to_be_bytes());
                body.extend(object);
            }
            body.extend(args);
            xid += 1;
            calls.extend(record(&nfs_call(xid, program, version, u32::from(which & 31), &body)));
        }
        let stream = served.network.connect(at(2049)).await.expect("the server accepts");
        throw(served, &stream, &calls).await;
    });
}

/// Datagrams to the port mapper, each behind its length.
pub(super) fn nfs_datagrams(bytes: &[u8]) {
    with_server(config(), async |served| {
        let socket = served.network.bind(SocketAddr::new(CLIENT, 0)).expect("a free port");
        let mut rest = bytes;
        while let Some(([len], behind)) = rest.split_first_chunk() {
            let (datagram, behind) = behind.split_at(behind.len().min(usize::from(*len) * 4));
            rest = behind;
            let _ = socket.send(at(111), datagram.to_vec()).await;
        }
        served.platform.clock.sleep(Duration::from_secs(5)).await;
    });
}

/// Calls of MOUNT and the port mapper whose heads are right: transport, program and procedure; the length of the arguments;
/// the arguments. None over UDP is answered with more than four times its bytes.
pub(super) fn mount(bytes: &[u8]) {
    with_server(config(), async |served| {
        let socket: Rc<dyn Datagram> =
            Rc::from(served.network.bind(SocketAddr::new(CLIENT, 0)).expect("a free port"));
        let (mut stream, mut rest, mut xid) = (Vec::new(), bytes, 0);
        let (mut asked, longest) = (0, Rc::new(Cell::new(0)));
        let (reads, seen) = (socket.clone(), longest.clone());
        let read = async move {
            while let Ok((reply, _)) = reads.recv().await {
                seen.set(seen.get().max(reply.len()));
            }
        };
        served.platform.spawn.spawn("answers", Box::pin(read));
        while let Some(([which, len], behind)) = rest.split_first_chunk() {
            let (args, behind) = behind.split_at(behind.len().min(usize::from(*len)));
            rest = behind;
            let (program, version) = if which & 0x40 == 0 { (100_005, 3) } else { (100_000, 2) };
            xid += 1;
            let call = nfs_call(xid, program, version, u32::from(which & 0x1f), args);
            if which & 0x80 != 0 {
                asked = asked.max(call.len());
                let _ = socket.send(at(111), call).await;
            } else {
                stream.extend(record(&call));
            }
        }
        let connection = served.network.connect(at(111)).await.expect("the server accepts");
        throw(served, &connection, &stream).await;
        assert!(longest.get() <= 4 * asked, "{} bytes answer {asked}", longest.get());
    });
}

/// Bytes on a connection to NBD's port, from the client's flags on.
pub(super) fn nbd_handshake(bytes: &[u8]) {
    with_server(config(), async |served| {
        let stream = served.network.connect(at(10809)).await.expect("the server accepts");
        throw(served, &stream, bytes).await;
    });
}

/// Requests to the volume whose magic is right: flags, command, offset and length in eight bytes each; a WRITE's payload
/// is made, and every ninth request lacks some of it.
pub(super) fn nbd_transmission(bytes: &[u8]) {
    const WRITE: u8 = 1;
    with_server(config(), async |served| {
        let mut stream = go(b"vm");
        for (n, fields) in bytes.chunks_exact(8).take(200).enumerate() {
            let (flags, command) = (u16::from(fields[0]), fields[1] % 9);
            let coarse = u32::from_be_bytes([0, fields[2], fields[3], fields[4]]);
            // Around the volume, and far beyond it.
            let offset = u64::from(coarse) << if fields[0] & 0x80 != 0 { 32 } else { 0 };
            let len = u32::from_be_bytes([0, fields[5] & 0x1f, fields[6], fields[7]]);
            stream.extend(0x2560_9513_u32.to_be_bytes());
            stream.extend(flags.to_be_bytes());
            stream.extend(u16::from(command).to_be_bytes());
            stream.extend((n as u64).to_be_bytes());
            stream.extend(offset.to_be_bytes());
            stream.extend(len.to_be_bytes());
            if command == WRITE {
                let short = if n % 9 == 8 { 1 } else { 0 };
                stream.resize(stream.len() + (len as usize).saturating_sub(short).min(256 << 10), n as u8);
            }
        }
        let connection = served.network.connect(at(10809)).await.expect("the server accepts");
        throw(served, &connection, &stream).await;
    });
}
