//! The async part: it moves bytes between a stream, the filesystem and buffers, and waits where there is no budget.
//!
//! | file | what it does |
//! |---|---|
//! | `connection` | a connection from greeting to close: the handshake, then the receive loop |
//! | `write` | receives a payload piece by piece into aligned buffers and writes it |
//! | `work` | everything else a request asks for, and its answer |
//! | `volume` | finds and lists volumes; what the connections to one volume share |
//! | `flush` | one flush for many |
//! | `budget` | memory for payload, shared fairly between connections |
//! | `link` | a stream with deadlines and turns at sending |

mod budget;
mod connection;
mod flush;
mod link;
mod volume;
mod work;
mod write;

pub(crate) use budget::{Budget, PIECE};
pub(crate) use connection::converse;
pub(crate) use link::{Link, STALL};
pub(crate) use volume::Volumes;

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

/// Which of two futures was ready first.
pub(crate) enum Either<A, B> {
    /// The first.
    First(A),
    /// The second.
    Second(B),
}

/// Waits for the first of two futures and drops the other; the first one wins a tie.
pub(crate) async fn either<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> Either<A, B> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        if let Poll::Ready(a) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::First(a));
        }
        b.as_mut().poll(cx).map(Either::Second)
    })
    .await
}
