//! Nodes, the inode table, and the rules every operation shares: finding, naming, stamping.

use crate::content::Content;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use moraine_fs::access::{self, EXEC, WRITE};
use moraine_fs::vfs::*;
use moraine_platform::{BLOCK_SIZE, Timestamp};

/// The only subvolume the model has.
pub(crate) const ROOT_SUBVOLUME: u32 = 1;
/// The root directory.
pub(crate) const ROOT_INODE: u64 = 1;
/// The first cookie a real entry may have; `.` and `..` have 1 and 2.
const FIRST_COOKIE: u64 = 16;
/// What `statfs` calls the size of the pool.
const POOL_BYTES: u64 = 1 << 40;
/// Space a directory entry is said to take.
const ENTRY_BYTES: u64 = 64;

/// set-user-id bit.
pub(crate) const SUID: u32 = 0o4000;
/// set-group-id bit.
pub(crate) const SGID: u32 = 0o2000;
/// execute permission of the group.
const GROUP_EXEC: u32 = 0o010;

/// A directory's entries.
#[derive(Clone)]
pub(crate) struct Entries {
    pub(crate) parent: u64,
    pub(crate) by_name: BTreeMap<Box<[u8]>, (u64, u64)>,
    pub(crate) by_cookie: BTreeMap<u64, Box<[u8]>>,
    next_cookie: u64,
    subdirs: u32,
}

impl Entries {
    pub(crate) fn new(parent: u64) -> Entries {
        Entries {
            parent,
            by_name: BTreeMap::new(),
            by_cookie: BTreeMap::new(),
            next_cookie: FIRST_COOKIE,
            subdirs: 0,
        }
    }
}

/// What makes an object the kind it is.
#[derive(Clone)]
pub(crate) enum Body {
    File(Content),
    Dir(Entries),
    Symlink(Box<[u8]>),
    Block(u32, u32),
    Char(u32, u32),
    Socket,
    Fifo,
}

/// One inode.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) body: Body,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Names of a non-directory; a directory's count follows from its entries.
    pub(crate) links: u32,
    pub(crate) atime: Timestamp,
    pub(crate) mtime: Timestamp,
    pub(crate) ctime: Timestamp,
    pub(crate) btime: Timestamp,
    pub(crate) change: u64,
    pub(crate) verifier: Option<[u8; 8]>,
    pub(crate) xattrs: BTreeMap<Box<[u8]>, Rc<[u8]>>,
}

impl Node {
    pub(crate) fn new(body: Body, mode: u32, uid: u32, gid: u32, now: Timestamp) -> Node {
        Node {
            body,
            mode,
            uid,
            gid,
            links: 1,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            change: 1,
            verifier: None,
            xattrs: BTreeMap::new(),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.body {
            Body::File(_) => Kind::File,
            Body::Dir(_) => Kind::Dir,
            Body::Symlink(_) => Kind::Symlink,
            Body::Block(..) => Kind::Block,
            Body::Char(..) => Kind::Char,
            Body::Socket => Kind::Socket,
            Body::Fifo => Kind::Fifo,
        }
    }

    pub(crate) fn attr(&self, inode: u64) -> Attr {
        let (size, used, nlink, rdev) = match &self.body {
            Body::File(content) => (content.size, content.used(), self.links, (0, 0)),
            Body::Dir(entries) => {
                let size = (2 + entries.by_name.len() as u64) * ENTRY_BYTES;
                (size, size.next_multiple_of(BLOCK_SIZE as u64), 2 + entries.subdirs, (0, 0))
            }
            Body::Symlink(target) => (target.len() as u64, 0, self.links, (0, 0)),
            Body::Block(major, minor) | Body::Char(major, minor) => (0, 0, self.links, (*major, *minor)),
            Body::Socket | Body::Fifo => (0, 0, self.links, (0, 0)),
        };
        Attr {
            kind: self.kind(),
            mode: self.mode,
            nlink,
            uid: self.uid,
            gid: self.gid,
            size,
            used,
            rdev,
            fsid: u64::from(ROOT_SUBVOLUME),
            fileid: inode,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            change: self.change,
        }
    }

    /// The moment of the next change: the wall clock, but later than the last change whatever the clock says.
    pub(crate) fn next_time(&self, wall: Timestamp) -> Timestamp {
        wall.max(Timestamp(self.ctime.0 + 1))
    }

    /// Marks a change of attributes.
    pub(crate) fn touch(&mut self, wall: Timestamp) {
        self.ctime = self.next_time(wall);
        self.change += 1;
    }

    /// Marks a change of content.
    pub(crate) fn touch_content(&mut self, wall: Timestamp) {
        self.touch(wall);
        self.mtime = self.ctime;
    }

    /// A change of content by anybody but root takes set-user-id away, and set-group-id where it means that.
    pub(crate) fn drop_privileges(&mut self, caller: &Caller) {
        if caller.uid != 0 {
            self.mode = without_privileges(self.mode);
        }
    }

    pub(crate) fn entries(&self) -> FsResult<&Entries> {
        match &self.body {
            Body::Dir(entries) => Ok(entries),
            _ => Err(FsError::NotDir),
        }
    }

    pub(crate) fn content(&self) -> FsResult<&Content> {
        match &self.body {
            Body::File(content) => Ok(content),
            Body::Dir(_) => Err(FsError::IsDir),
            _ => Err(FsError::Invalid),
        }
    }

    pub(crate) fn content_mut(&mut self) -> &mut Content {
        match &mut self.body {
            Body::File(content) => content,
            _ => unreachable!("the caller checked that it is a regular file"),
        }
    }
}

/// The mode without set-user-id, and without set-group-id unless that bit means mandatory locking (no group execute).
pub(crate) fn without_privileges(mode: u32) -> u32 {
    let drop_group = if mode & GROUP_EXEC != 0 { SGID } else { 0 };
    mode & !SUID & !drop_group
}

/// Whether `name` can name an entry that is made, removed or renamed.
pub(crate) fn check_name(name: &[u8]) -> FsResult<()> {
    if name == b"." || name == b".." { Err(FsError::BadName) } else { check_name_to_find(name) }
}

/// Whether `name` can be looked up; `.` and `..` can.
pub(crate) fn check_name_to_find(name: &[u8]) -> FsResult<()> {
    if name.is_empty() || name.iter().any(|b| *b == b'/' || *b == 0) {
        Err(FsError::BadName)
    } else if name.len() > NAME_MAX {
        Err(FsError::NameTooLong)
    } else {
        Ok(())
    }
}

/// The name of object `inode` for the outside.
pub(crate) fn object(inode: u64) -> ObjectId {
    ObjectId { subvolume: ROOT_SUBVOLUME, inode }
}

/// All inodes. Cloning shares every node until one side changes it.
#[derive(Clone)]
pub(crate) struct State {
    nodes: BTreeMap<u64, Rc<Node>>,
    next_inode: u64,
    pub(crate) seq: Seq,
}

impl State {
    pub(crate) fn new(now: Timestamp) -> State {
        let mut state = State { nodes: BTreeMap::new(), next_inode: ROOT_INODE + 1, seq: Seq(1) };
        let root = Node::new(Body::Dir(Entries::new(ROOT_INODE)), 0o755, 0, 0, now);
        state.nodes.insert(ROOT_INODE, Rc::new(root));
        let volumes = Node::new(Body::Dir(Entries::new(ROOT_INODE)), 0o755, 0, 0, now);
        let inode = state.add(volumes);
        state.enter(ROOT_INODE, b"volumes", inode);
        state
    }

    pub(crate) fn node(&self, inode: u64) -> FsResult<&Node> {
        self.nodes.get(&inode).map(|n| &**n).ok_or(FsError::Stale)
    }

    /// A live node to change. The caller looked it up before.
    pub(crate) fn node_mut(&mut self, inode: u64) -> &mut Node {
        Rc::make_mut(self.nodes.get_mut(&inode).expect("a node looked up in the same step is there"))
    }

    pub(crate) fn attr(&self, inode: u64) -> FsResult<Attr> {
        Ok(self.node(inode)?.attr(inode))
    }

    /// The next number in the history.
    pub(crate) fn advance(&mut self) -> Seq {
        self.seq.0 += 1;
        self.seq
    }

    /// Gives a new node its number, which is never used again.
    pub(crate) fn add(&mut self, node: Node) -> u64 {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.nodes.insert(inode, Rc::new(node));
        inode
    }

    /// Directory `dir`'s entry `name`, after the search permission was checked.
    pub(crate) fn search(&self, caller: &Caller, dir: u64, name: &[u8]) -> FsResult<Option<u64>> {
        let node = self.node(dir)?;
        let entries = node.entries()?;
        access::check(&node.attr(dir), caller, EXEC)?;
        Ok(entries.by_name.get(name).map(|(inode, _)| *inode))
    }

    /// Whether `caller` may add or remove names in `dir`.
    pub(crate) fn check_dir_write(&self, caller: &Caller, dir: u64) -> FsResult<()> {
        access::check(&self.attr(dir)?, caller, WRITE | EXEC)
    }

    /// Whether `caller` may take entry `target` out of `dir`.
    pub(crate) fn check_take(&self, caller: &Caller, dir: u64, target: u64) -> FsResult<()> {
        self.check_dir_write(caller, dir)?;
        access::check_sticky(&self.attr(dir)?, &self.attr(target)?, caller)
    }

    /// Puts an entry into a directory that has none of that name. Link counts of directories follow from it.
    pub(crate) fn enter(&mut self, dir: u64, name: &[u8], inode: u64) {
        let is_dir = self.is_dir(inode);
        let entries = self.entries_mut(dir);
        let cookie = entries.next_cookie;
        entries.next_cookie += 1;
        entries.by_cookie.insert(cookie, name.into());
        let before = entries.by_name.insert(name.into(), (inode, cookie));
        assert!(before.is_none(), "a name is entered once");
        entries.subdirs += u32::from(is_dir);
        if is_dir {
            self.entries_mut(inode).parent = dir;
        }
    }

    /// Takes an entry out of a directory, leaving the object's own link count alone.
    pub(crate) fn leave(&mut self, dir: u64, name: &[u8]) -> u64 {
        let entries = self.entries_mut(dir);
        let (inode, cookie) = entries.by_name.remove(name).expect("the entry was looked up in the same step");
        entries.by_cookie.remove(&cookie);
        let is_dir = self.is_dir(inode);
        self.entries_mut(dir).subdirs -= u32::from(is_dir);
        inode
    }

    /// Takes one name from an object; without names it is gone.
    pub(crate) fn drop_link(&mut self, inode: u64, wall: Timestamp) {
        let node = self.node_mut(inode);
        node.links -= 1;
        node.touch(wall);
        if node.links == 0 {
            self.nodes.remove(&inode);
        }
    }

    /// Whether `ancestor` is `dir` or lies above it.
    pub(crate) fn is_above(&self, ancestor: u64, mut dir: u64) -> bool {
        loop {
            if dir == ancestor {
                return true;
            }
            let parent = self.node(dir).and_then(|n| n.entries()).expect("parents are directories").parent;
            if parent == dir {
                return false;
            }
            dir = parent;
        }
    }

    pub(crate) fn is_dir(&self, inode: u64) -> bool {
        self.nodes.get(&inode).is_some_and(|n| n.kind() == Kind::Dir)
    }

    fn entries_mut(&mut self, dir: u64) -> &mut Entries {
        match &mut self.node_mut(dir).body {
            Body::Dir(entries) => entries,
            _ => unreachable!("the caller checked that it is a directory"),
        }
    }

    pub(crate) fn statfs(&self) -> FsStat {
        let used: u64 = self.nodes.iter().map(|(inode, node)| node.attr(*inode).used).sum();
        let free = POOL_BYTES.saturating_sub(used);
        let inodes_used = self.nodes.len() as u64;
        FsStat {
            total: POOL_BYTES,
            free,
            available: free,
            inodes_used,
            inodes_free: u64::MAX / 2 - inodes_used,
        }
    }

    /// A change of `inode` made by `edit`, with what it was and what it is.
    pub(crate) fn changed<T>(&mut self, inode: u64, value: T, edit: impl FnOnce(&mut State)) -> Change<T> {
        let pre = self.attr(inode).expect("the caller looked it up").pre();
        edit(self);
        let seq = self.advance();
        let post = self.attr(inode).expect("a changed object stays");
        Change { pre, post, seq, value }
    }

    /// "Nothing happened", as a change.
    pub(crate) fn unchanged<T>(&self, inode: u64, value: T) -> Change<T> {
        let post = self.attr(inode).expect("the caller looked it up");
        Change { pre: post.pre(), post, seq: self.seq, value }
    }

    /// Names of the extended attributes, in order.
    pub(crate) fn xattr_names(&self, inode: u64) -> FsResult<Vec<Box<[u8]>>> {
        Ok(self.node(inode)?.xattrs.keys().cloned().collect())
    }
}
