//! A client that builds and reads every byte itself, so that it can also be wrong on purpose.

use moraine_platform::Stream;
use std::rc::Rc;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZERO: u16 = 6;
pub const STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST: u16 = 16;

pub const EPERM: u32 = 1;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const ENOSPC: u32 = 28;
pub const EOVERFLOW: u32 = 75;
pub const ENOTSUP: u32 = 95;
pub const ESHUTDOWN: u32 = 108;

pub const ACK: u32 = 1;
pub const ERR_UNSUP: u32 = 0x8000_0001;
pub const ERR_POLICY: u32 = 0x8000_0002;
pub const ERR_INVALID: u32 = 0x8000_0003;
pub const ERR_UNKNOWN: u32 = 0x8000_0006;
pub const ERR_TOO_BIG: u32 = 0x8000_0009;

/// A whole answer to one request, chunks folded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub cookie: u64,
    pub error: u32,
    /// Data chunks (or a simple reply's data): offset and bytes, in order of arrival.
    pub data: Vec<(u64, Vec<u8>)>,
    /// Extents of a block status: length and flags.
    pub extents: Vec<(u32, u32)>,
    pub chunks: usize,
}

impl Reply {
    /// The data, put together and required to cover `offset .. offset + len` exactly.
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        assert_eq!(self.error, 0, "the read failed");
        let mut chunks = self.data.clone();
        chunks.sort();
        let mut out = Vec::new();
        for (at, bytes) in chunks {
            assert_eq!(at, offset + out.len() as u64, "chunks neither overlap nor leave gaps");
            out.extend(bytes);
        }
        assert_eq!(out.len(), len);
        out
    }
}

pub struct Client {
    pub stream: Rc<dyn Stream>,
    pub structured: bool,
    pub size: u64,
    pub flags: u16,
    next_cookie: u64,
    /// Length and offset of reads in flight: simple replies do not tell.
    reads: Vec<(u64, u64, usize)>,
}

impl Client {
    pub fn new(stream: Rc<dyn Stream>) -> Client {
        Client { stream, structured: false, size: 0, flags: 0, next_cookie: 1, reads: Vec::new() }
    }

    pub async fn send(&self, bytes: &[u8]) {
        self.stream.send_all(bytes).await.unwrap();
    }

    pub async fn take(&self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        assert!(self.stream.recv_exact(&mut out).await.unwrap() || len == 0, "the server hung up");
        out
    }

    /// Whether the server has ended the stream; panics if it sends something instead.
    pub async fn hung_up(&self) -> bool {
        let mut byte = [0];
        match self.stream.recv(&mut byte).await {
            Ok(0) | Err(_) => true,
            Ok(_) => panic!("the server sent a byte more"),
        }
    }

    pub async fn u16(&self) -> u16 {
        u16::from_be_bytes(self.take(2).await.try_into().unwrap())
    }

    pub async fn u32(&self) -> u32 {
        u32::from_be_bytes(self.take(4).await.try_into().unwrap())
    }

    pub async fn u64(&self) -> u64 {
        u64::from_be_bytes(self.take(8).await.try_into().unwrap())
    }

    pub async fn greet(&mut self, flags: u32) {
        assert_eq!(self.take(18).await, b"NBDMAGICIHAVEOPT\x00\x03");
        self.send(&flags.to_be_bytes()).await;
    }

    pub async fn option(&self, option: u32, data: &[u8]) {
        self.send(&option_bytes(option, data)).await;
    }

    /// One option reply: kind and data.
    pub async fn option_reply(&self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(self.u64().await, 0x3e889045565a9);
        assert_eq!(self.u32().await, option);
        let kind = self.u32().await;
        let len = self.u32().await as usize;
        (kind, self.take(len).await)
    }

    /// Replies to an option up to its last.
    pub async fn option_replies(&self, option: u32) -> Vec<(u32, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            let reply = self.option_reply(option).await;
            let last = reply.0 == ACK || reply.0 >> 31 == 1;
            all.push(reply);
            if last {
                return all;
            }
        }
    }

    pub async fn structured(&mut self) {
        self.option(8, &[]).await;
        assert_eq!(self.option_reply(8).await, (ACK, vec![]));
        self.structured = true;
    }

    pub async fn choose_allocation(&self, name: &str) {
        self.option(10, &context_query(name, &["base:allocation"])).await;
        let replies = self.option_replies(10).await;
        assert_eq!(replies.len(), 2, "{replies:?}");
        assert_eq!(replies[0], (4, [&1u32.to_be_bytes()[..], b"base:allocation"].concat()));
    }

    /// GO; on success the export's size and flags are kept.
    pub async fn try_go(&mut self, name: &str) -> Result<(), u32> {
        self.option(7, &export_query(name, &[3])).await;
        let replies = self.option_replies(7).await;
        let last = replies.last().unwrap().0;
        for (_, info) in &replies {
            if info.starts_with(&[0, 0]) && info.len() == 12 {
                self.size = u64::from_be_bytes(info[2..10].try_into().unwrap());
                self.flags = u16::from_be_bytes(info[10..].try_into().unwrap());
            }
        }
        if last == ACK { Ok(()) } else { Err(last) }
    }

    pub async fn go(&mut self, name: &str) {
        assert_eq!(self.try_go(name).await, Ok(()));
    }

    /// Sends a request and returns its cookie.
    pub async fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        if command == READ {
            self.reads.push((cookie, offset, len as usize));
        }
        let mut bytes = request_bytes(command, flags, cookie, offset, len).to_vec();
        bytes.extend_from_slice(payload);
        self.send(&bytes).await;
        cookie
    }

    /// The next whole answer, whichever request it is for. Chunks of different answers must not be mixed here.
    pub async fn reply(&mut self) -> Reply {
        let mut reply = Reply::default();
        loop {
            match self.u32().await {
                0x6744_6698 => {
                    reply.error = self.u32().await;
                    reply.cookie = self.u64().await;
                    if let Some(at) = self.reads.iter().position(|r| r.0 == reply.cookie) {
                        let (_, offset, len) = self.reads.remove(at);
                        assert!(!self.structured, "a read is answered in chunks");
                        if reply.error == 0 {
                            reply.data.push((offset, self.take(len).await));
                        }
                    }
                    return reply;
                }
                0x668e_33ef => {
                    assert!(self.structured);
                    let (flags, kind) = (self.u16().await, self.u16().await);
                    let cookie = self.u64().await;
                    assert!(reply.chunks == 0 || reply.cookie == cookie, "answers are not mixed");
                    reply.cookie = cookie;
                    reply.chunks += 1;
                    let len = self.u32().await as usize;
                    self.chunk(&mut reply, kind, len).await;
                    if flags & 1 == 1 {
                        self.reads.retain(|r| r.0 != reply.cookie);
                        return reply;
                    }
                }
                magic => panic!("no reply begins with {magic:#x}"),
            }
        }
    }

    async fn chunk(&mut self, reply: &mut Reply, kind: u16, len: usize) {
        match kind {
            0 => assert_eq!(len, 0),
            1 => {
                let offset = self.u64().await;
                assert!(len > 8, "a data chunk has data");
                reply.data.push((offset, self.take(len - 8).await));
            }
            5 => {
                assert_eq!(self.u32().await, 1, "the context's id");
                for _ in 0..(len - 4) / 8 {
                    let extent = (self.u32().await, self.u32().await);
                    assert!(extent.0 > 0);
                    reply.extents.push(extent);
                }
            }
            0x8001 => {
                reply.error = self.u32().await;
                let text = self.u16().await as usize;
                assert_eq!(len, 6 + text);
                self.take(text).await;
            }
            kind => panic!("unknown chunk {kind:#x}"),
        }
    }

    /// A request and its answer.
    pub async fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32, payload: &[u8]) -> Reply {
        let cookie = self.request(command, flags, offset, len, payload).await;
        let reply = self.reply().await;
        assert_eq!(reply.cookie, cookie);
        reply
    }

    pub async fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.ask(READ, 0, offset, len, &[]).await.bytes(offset, len as usize)
    }

    pub async fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.ask(WRITE, 0, offset, data.len() as u32, data).await.error, 0);
    }

    pub async fn flush(&mut self) {
        assert_eq!(self.ask(FLUSH, 0, 0, 0, &[]).await.error, 0);
    }
}

pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

pub fn export_query(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend(name.bytes());
    bytes.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|i| bytes.extend(i.to_be_bytes()));
    bytes
}

pub fn context_query(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = (name.len() as u32).to_be_bytes().to_vec();
    bytes.extend(name.bytes());
    bytes.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        bytes.extend((query.len() as u32).to_be_bytes());
        bytes.extend(query.bytes());
    }
    bytes
}

pub fn request_bytes(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&len.to_be_bytes());
    bytes
}
