//! Streams in memory, as narrow and as choppy as a test likes.

use moraine_platform::{NetError, Stream};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// How a stream behaves, both ways.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes it holds before the sender has to wait.
    pub capacity: usize,
    /// The most bytes handed over in one call.
    pub piece: usize,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape { capacity: 256 << 10, piece: 64 << 10 }
    }
}

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    ended: bool,
    reset: bool,
    wakers: Vec<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        self.wakers.push(cx.waker().clone());
        Poll::Pending
    }
}

/// One end.
pub struct End {
    shape: Shape,
    incoming: Rc<RefCell<Pipe>>,
    outgoing: Rc<RefCell<Pipe>>,
}

/// Both ends of a new stream.
pub fn pair(shape: Shape) -> (Rc<End>, Rc<End>) {
    let (a, b): (Rc<RefCell<Pipe>>, Rc<RefCell<Pipe>>) = Default::default();
    let one = End { shape, incoming: a.clone(), outgoing: b.clone() };
    (Rc::new(one), Rc::new(End { shape, incoming: b, outgoing: a }))
}

impl Stream for End {
    fn peer(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 2))
    }

    fn local(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, 1))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        let mut pipe = self.incoming.borrow_mut();
        if pipe.reset {
            return Poll::Ready(Err(NetError::Reset));
        }
        if pipe.bytes.is_empty() {
            return if pipe.ended { Poll::Ready(Ok(0)) } else { pipe.wait(cx) };
        }
        let len = pipe.bytes.len().min(self.shape.piece);
        let taken = take(&pipe.bytes.make_contiguous()[..len]);
        assert!(taken <= len, "more was taken than given");
        pipe.bytes.drain(..taken);
        pipe.wake();
        Poll::Ready(Ok(taken))
    }

    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        give: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Poll<Result<usize, NetError>> {
        let mut pipe = self.outgoing.borrow_mut();
        if pipe.reset {
            return Poll::Ready(Err(NetError::Reset));
        }
        if pipe.ended {
            return Poll::Ready(Err(NetError::Closed));
        }
        let room = (self.shape.capacity - pipe.bytes.len()).min(self.shape.piece);
        if room == 0 {
            return pipe.wait(cx);
        }
        let mut bytes = vec![0; room];
        let given = give(&mut bytes);
        pipe.bytes.extend(&bytes[..given]);
        pipe.wake();
        Poll::Ready(Ok(given))
    }

    fn close(&self) {
        let mut pipe = self.outgoing.borrow_mut();
        pipe.ended = true;
        pipe.wake();
    }

    fn abort(&self) {
        for pipe in [&self.incoming, &self.outgoing] {
            let mut pipe = pipe.borrow_mut();
            pipe.reset = true;
            pipe.wake();
        }
    }
}

impl Drop for End {
    /// Whoever held it is gone, and the system ends the stream for it.
    fn drop(&mut self) {
        self.close();
    }
}
