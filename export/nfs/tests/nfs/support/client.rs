//! A client of ONC RPC and NFSv3 for tests. It writes and reads the protocol word by word, apart from the server's own
//! message types, so that a mistake there shows.

use super::stream::End;
use moraine_nfs::rpc::Program;
use moraine_nfs::v3::wire::Procedure;
use moraine_nfs::xdr::{Decoder, Encoder};
use moraine_platform::Stream;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A handle as a client holds it.
pub type Fh = Vec<u8>;

/// The numbers of `nfsstat3` that tests name.
#[allow(non_snake_case)]
pub mod NF {
    pub const PERM: u32 = 1;
    pub const NOENT: u32 = 2;
    pub const IO: u32 = 5;
    pub const NXIO: u32 = 6;
    pub const ACCES: u32 = 13;
    pub const EXIST: u32 = 17;
    pub const XDEV: u32 = 18;
    pub const NOTDIR: u32 = 20;
    pub const ISDIR: u32 = 21;
    pub const INVAL: u32 = 22;
    pub const FBIG: u32 = 27;
    pub const NOSPC: u32 = 28;
    pub const ROFS: u32 = 30;
    pub const MLINK: u32 = 31;
    pub const NAMETOOLONG: u32 = 63;
    pub const NOTEMPTY: u32 = 66;
    pub const DQUOT: u32 = 69;
    pub const STALE: u32 = 70;
    pub const BADHANDLE: u32 = 10001;
    pub const NOT_SYNC: u32 = 10002;
    pub const BAD_COOKIE: u32 = 10003;
    pub const NOTSUPP: u32 = 10004;
    pub const TOOSMALL: u32 = 10005;
    pub const SERVERFAULT: u32 = 10006;
    pub const BADTYPE: u32 = 10007;
    pub const JUKEBOX: u32 = 10008;
}

/// `fattr3` as read by the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub kind: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub used: u64,
    pub rdev: (u32, u32),
    pub fsid: u64,
    pub fileid: u64,
    pub atime: (u32, u32),
    pub mtime: (u32, u32),
    pub ctime: (u32, u32),
}

/// Size, mtime and ctime of an object before a change.
pub type Before = (u64, (u32, u32), (u32, u32));

/// `wcc_data` as read by the client: size, mtime, ctime before; attributes after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wcc {
    pub pre: Option<Before>,
    pub post: Option<Attributes>,
}

pub fn time(d: &mut Decoder<'_>) -> (u32, u32) {
    (d.u32().unwrap(), d.u32().unwrap())
}

pub fn fattr(d: &mut Decoder<'_>) -> Attributes {
    let mut w = || d.u32().unwrap();
    let (kind, mode, nlink, uid, gid) = (w(), w(), w(), w(), w());
    let (size, used) = (d.u64().unwrap(), d.u64().unwrap());
    let rdev = (d.u32().unwrap(), d.u32().unwrap());
    let (fsid, fileid) = (d.u64().unwrap(), d.u64().unwrap());
    let (atime, mtime, ctime) = (time(d), time(d), time(d));
    Attributes { kind, mode, nlink, uid, gid, size, used, rdev, fsid, fileid, atime, mtime, ctime }
}

pub fn post_attr(d: &mut Decoder<'_>) -> Option<Attributes> {
    d.bool().unwrap().then(|| fattr(d))
}

pub fn wcc(d: &mut Decoder<'_>) -> Wcc {
    let pre = d.bool().unwrap().then(|| (d.u64().unwrap(), time(d), time(d)));
    Wcc { pre, post: post_attr(d) }
}

pub fn fh(d: &mut Decoder<'_>) -> Fh {
    d.opaque(64).unwrap().to_vec()
}

pub fn no_sattr(e: &mut Encoder) {
    e.u32(0).u32(0).u32(0).u32(0).u32(0).u32(0);
}

pub fn mode_sattr(e: &mut Encoder, mode: u32) {
    e.u32(1).u32(mode).u32(0).u32(0).u32(0).u32(0).u32(0);
}

/// A credential for calls.
#[derive(Clone)]
pub struct Cred(pub u32, pub Vec<u8>);

impl Cred {
    pub fn sys(uid: u32, gid: u32, groups: &[u32]) -> Cred {
        let mut e = Encoder::default();
        e.u32(0x1234).opaque(b"client").u32(uid).u32(gid).u32(groups.len() as u32);
        groups.iter().for_each(|g| {
            e.u32(*g);
        });
        Cred(1, e.into_bytes())
    }
}

/// A client on one connection.
#[derive(Clone)]
pub struct Client {
    pub stream: Rc<End>,
    pub xid: Rc<Cell<u32>>,
    pub cred: Rc<RefCell<Cred>>,
}

/// A call's bytes, without record mark.
pub fn message(xid: u32, target: (u32, u32, u32), cred: &Cred, args: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut e = Encoder::default();
    e.u32(xid).u32(0).u32(2).u32(target.0).u32(target.1).u32(target.2);
    e.u32(cred.0).opaque(&cred.1).u32(0).opaque(&[]);
    args(&mut e);
    e.into_bytes()
}

/// One record in one fragment.
pub fn record(message: &[u8]) -> Vec<u8> {
    let mut out = (message.len() as u32 | 1 << 31).to_be_bytes().to_vec();
    out.extend_from_slice(message);
    out
}

impl Client {
    pub fn new(stream: Rc<End>) -> Client {
        Client { stream, xid: Rc::new(Cell::new(100)), cred: Rc::new(RefCell::new(Cred::sys(0, 0, &[]))) }
    }

    /// The same client as another user.
    pub fn user(&self, uid: u32, gid: u32) -> Client {
        Client { cred: Rc::new(RefCell::new(Cred::sys(uid, gid, &[]))), ..self.clone() }
    }

    pub fn message(&self, target: (u32, u32, u32), args: impl FnOnce(&mut Encoder)) -> Vec<u8> {
        self.xid.set(self.xid.get() + 1);
        message(self.xid.get(), target, &self.cred.borrow(), args)
    }

    /// A call of an NFS procedure as a message.
    pub fn nfs(&self, procedure: Procedure, args: impl FnOnce(&mut Encoder)) -> Vec<u8> {
        self.message((Program::Nfs.number(), 3, procedure as u32), args)
    }

    pub async fn send(&self, bytes: &[u8]) {
        let stream: &dyn Stream = &*self.stream;
        stream.send_all(bytes).await.unwrap();
    }

    /// The next reply's message, or `None` at the end of the stream.
    pub async fn receive(&self) -> Option<Vec<u8>> {
        let stream: &dyn Stream = &*self.stream;
        let mut mark = [0; 4];
        match stream.recv_exact(&mut mark).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return None,
        }
        let mark = u32::from_be_bytes(mark);
        assert_ne!(mark & 1 << 31, 0, "replies come in one fragment");
        let mut message = vec![0; (mark & !(1 << 31)) as usize];
        assert!(stream.recv_exact(&mut message).await.unwrap() || message.is_empty());
        Some(message)
    }

    /// Sends a message and returns the reply's message.
    pub async fn exchange(&self, message: Vec<u8>) -> Vec<u8> {
        self.send(&record(&message)).await;
        let reply = self.receive().await.expect("the server answers");
        assert_eq!(reply[..4], message[..4], "the reply carries the call's number");
        reply
    }

    /// Calls a procedure that must be accepted; returns its result.
    pub async fn call(&self, procedure: Procedure, args: impl FnOnce(&mut Encoder)) -> Vec<u8> {
        accepted(&self.exchange(self.nfs(procedure, args)).await)
    }

    /// MNT: the handle of a path, or the status.
    pub async fn mount(&self, path: &[u8]) -> Result<Fh, u32> {
        let message = self.message((Program::Mount.number(), 3, 1), |e| {
            e.opaque(path);
        });
        let result = accepted(&self.exchange(message).await);
        let mut d = Decoder::new(&result);
        match d.u32().unwrap() {
            0 => {
                let handle = fh(&mut d);
                assert_eq!((d.u32(), d.u32()), (Ok(1), Ok(1)), "AUTH_SYS, and nothing else");
                Ok(handle)
            }
            status => Err(status),
        }
    }

    pub async fn root(&self) -> Fh {
        self.mount(b"/").await.unwrap()
    }

    pub async fn getattr(&self, object: &[u8]) -> Result<Attributes, u32> {
        let result = self
            .call(Procedure::GetAttr, |e| {
                e.opaque(object);
            })
            .await;
        let mut d = Decoder::new(&result);
        match d.u32().unwrap() {
            0 => Ok(fattr(&mut d)),
            status => {
                assert!(d.rest().is_empty());
                Err(status)
            }
        }
    }

    pub async fn setattr(
        &self,
        object: &[u8],
        sattr: impl FnOnce(&mut Encoder),
        guard: Option<(u32, u32)>,
    ) -> (u32, Wcc) {
        let result = self
            .call(Procedure::SetAttr, |e| {
                e.opaque(object);
                sattr(e);
                match guard {
                    Some((s, n)) => e.bool(true).u32(s).u32(n),
                    None => e.bool(false),
                };
            })
            .await;
        status_and_wcc(&result)
    }

    pub async fn lookup(&self, dir: &[u8], name: &[u8]) -> Result<(Fh, Attributes), u32> {
        let result = self
            .call(Procedure::Lookup, |e| {
                e.opaque(dir).opaque(name);
            })
            .await;
        let mut d = Decoder::new(&result);
        match d.u32().unwrap() {
            0 => {
                let found = (fh(&mut d), post_attr(&mut d).unwrap());
                post_attr(&mut d);
                assert!(d.rest().is_empty());
                Ok(found)
            }
            status => {
                post_attr(&mut d);
                assert!(d.rest().is_empty());
                Err(status)
            }
        }
    }

    pub async fn access(&self, object: &[u8], want: u32) -> Result<u32, u32> {
        let result = self
            .call(Procedure::Access, |e| {
                e.opaque(object).u32(want);
            })
            .await;
        let mut d = Decoder::new(&result);
        match (d.u32().unwrap(), post_attr(&mut d)) {
            (0, _) => Ok(d.u32().unwrap()),
            (status, _) => Err(status),
        }
    }

    /// CREATE with `how`'s bytes; the new handle, its attributes, and the directory's wcc data.
    pub async fn create_how(
        &self,
        dir: &[u8],
        name: &[u8],
        how: impl FnOnce(&mut Encoder),
    ) -> Result<(Fh, Attributes, Wcc), u32> {
        let result = self
            .call(Procedure::Create, |e| {
                e.opaque(dir).opaque(name);
                how(e);
            })
            .await;
        made(&result)
    }

    /// CREATE, guarded, mode 0644.
    pub async fn create(&self, dir: &[u8], name: &[u8]) -> Result<Fh, u32> {
        let how = |e: &mut Encoder| {
            e.u32(1);
            mode_sattr(e, 0o644);
        };
        self.create_how(dir, name, how).await.map(|made| made.0)
    }

    pub async fn mkdir(&self, dir: &[u8], name: &[u8]) -> Result<(Fh, Attributes, Wcc), u32> {
        let result = self
            .call(Procedure::MkDir, |e| {
                e.opaque(dir).opaque(name);
                mode_sattr(e, 0o755);
            })
            .await;
        made(&result)
    }

    /// REMOVE or RMDIR.
    pub async fn unlink(&self, procedure: Procedure, dir: &[u8], name: &[u8]) -> (u32, Wcc) {
        let result = self
            .call(procedure, |e| {
                e.opaque(dir).opaque(name);
            })
            .await;
        status_and_wcc(&result)
    }

    pub async fn rename(&self, from: (&[u8], &[u8]), to: (&[u8], &[u8])) -> (u32, Wcc, Wcc) {
        let result = self
            .call(Procedure::Rename, |e| {
                e.opaque(from.0).opaque(from.1).opaque(to.0).opaque(to.1);
            })
            .await;
        let mut d = Decoder::new(&result);
        let out = (d.u32().unwrap(), wcc(&mut d), wcc(&mut d));
        assert!(d.rest().is_empty());
        out
    }

    /// LINK: the status.
    pub async fn link(&self, object: &[u8], dir: &[u8], name: &[u8]) -> u32 {
        let result = self
            .call(Procedure::Link, |e| {
                e.opaque(object).opaque(dir).opaque(name);
            })
            .await;
        let mut d = Decoder::new(&result);
        let status = d.u32().unwrap();
        post_attr(&mut d);
        wcc(&mut d);
        assert!(d.rest().is_empty());
        status
    }

    /// WRITE: count, committed and verifier, or the status; with the file's wcc data.
    pub async fn write(
        &self,
        object: &[u8],
        offset: u64,
        data: &[u8],
        stable: u32,
    ) -> (Result<(u32, u32, u64), u32>, Wcc) {
        let result = self
            .call(Procedure::Write, |e| {
                e.opaque(object).u64(offset).u32(data.len() as u32).u32(stable).opaque(data);
            })
            .await;
        let mut d = Decoder::new(&result);
        let status = d.u32().unwrap();
        let wcc = wcc(&mut d);
        if status != 0 {
            assert!(d.rest().is_empty());
            return (Err(status), wcc);
        }
        let out = (d.u32().unwrap(), d.u32().unwrap(), d.u64().unwrap());
        assert!(d.rest().is_empty());
        (Ok(out), wcc)
    }

    /// COMMIT: the verifier, or the status.
    pub async fn commit(&self, object: &[u8], offset: u64, count: u32) -> (Result<u64, u32>, Wcc) {
        let result = self
            .call(Procedure::Commit, |e| {
                e.opaque(object).u64(offset).u32(count);
            })
            .await;
        let mut d = Decoder::new(&result);
        let (status, wcc) = (d.u32().unwrap(), wcc(&mut d));
        (if status == 0 { Ok(d.u64().unwrap()) } else { Err(status) }, wcc)
    }

    /// READ: the bytes and whether they end the file, or the status.
    pub async fn read(&self, object: &[u8], offset: u64, count: u32) -> Result<(Vec<u8>, bool), u32> {
        let result = self
            .call(Procedure::Read, |e| {
                e.opaque(object).u64(offset).u32(count);
            })
            .await;
        let mut d = Decoder::new(&result);
        let (status, _attr) = (d.u32().unwrap(), post_attr(&mut d));
        if status != 0 {
            assert!(d.rest().is_empty());
            return Err(status);
        }
        let (count, eof) = (d.u32().unwrap(), d.bool().unwrap());
        let data = d.opaque(1 << 20).unwrap().to_vec();
        assert_eq!(data.len() as u32, count);
        assert!(d.rest().is_empty());
        Ok((data, eof))
    }
}

/// The result of an accepted, successful call.
pub fn accepted(reply: &[u8]) -> Vec<u8> {
    let mut d = Decoder::new(&reply[4..]);
    let mut w = || d.u32().unwrap();
    assert_eq!([w(), w(), w(), w(), w()], [1, 0, 0, 0, 0], "accepted, no verifier, success");
    d.rest().to_vec()
}

/// How an accepted call failed: `accept_stat`, or `(reject_stat, detail)` words of a denied one behind it.
pub fn refusal(reply: &[u8]) -> Vec<u32> {
    reply[8..].chunks(4).map(|w| u32::from_be_bytes(w.try_into().unwrap())).collect()
}

pub fn status_and_wcc(result: &[u8]) -> (u32, Wcc) {
    let mut d = Decoder::new(result);
    let out = (d.u32().unwrap(), wcc(&mut d));
    assert!(d.rest().is_empty());
    out
}

pub fn made(result: &[u8]) -> Result<(Fh, Attributes, Wcc), u32> {
    let mut d = Decoder::new(result);
    let status = d.u32().unwrap();
    if status != 0 {
        let wcc = wcc(&mut d);
        assert!(wcc.pre.is_none(), "nothing changed, nothing was before");
        return Err(status);
    }
    assert_eq!(d.bool(), Ok(true));
    let out = (fh(&mut d), post_attr(&mut d).unwrap(), wcc(&mut d));
    assert!(d.rest().is_empty());
    Ok(out)
}
