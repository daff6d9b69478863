//! The port mapper and MOUNT over UDP: one datagram, one call, one reply. Calls run one after the other; a sender that
//! gets no answer asks again.

use super::Inner;
use super::dispatch::{Outcome, Plan, Transport};
use super::intake::Incoming;
use crate::rpc::{AcceptStat, Reply, encode_accept};
use alloc::vec::Vec;
use moraine_fs::vfs::Vfs;
use moraine_platform::{Datagram, NetError, warn};

/// A reply is at most so many times as long as its call: a forged sender gains little by it.
const AMPLIFICATION_MAX: usize = 4;

/// Serves `socket` until it fails or the server stops.
pub(super) async fn serve<V: Vfs + 'static>(server: &Inner<V>, socket: &dyn Datagram) {
    while let Some(received) = server.unless_stopped(socket.recv()).await {
        let (call, sender) = match received {
            Ok(received) => received,
            // What became of a datagram sent before: nothing of ours.
            Err(NetError::Unreachable | NetError::Reset) => continue,
            Err(error) => {
                warn!("nfs", "no longer answering datagrams on {}: {error}", socket.local());
                return;
            }
        };
        let len = call.len();
        if let Some(reply) = answer(server, sender.ip(), call).await {
            let message = if reply.message().len() <= AMPLIFICATION_MAX * len {
                reply.message().to_vec()
            } else {
                let xid = reply.message()[..4].try_into().expect("every reply begins with its number");
                encode_accept(u32::from_be_bytes(xid), AcceptStat::SystemError).message().to_vec()
            };
            // A datagram that cannot be sent is lost like any other.
            let _ = socket.send(sender, message).await;
        }
    }
}

async fn answer<V: Vfs + 'static>(
    server: &Inner<V>,
    client: core::net::IpAddr,
    call: Vec<u8>,
) -> Option<Reply> {
    let incoming = Incoming { head: call, data: None, broken: false };
    match server.plan(client.to_canonical(), Transport::Datagram, incoming) {
        Plan::Hopeless => None,
        Plan::Answer(reply) => Some(reply),
        Plan::Run(job) => match server.run(job).await {
            Outcome::Reply(reply) => Some(reply),
            Outcome::Close => None,
        },
    }
}
