//! A process on an NFS client: it works in a directory of its own, so that what it must find there is known exactly, and
//! in one that all share, where it is not.

use super::calls::{Create, EXIST, Handle, NOENT, NOTEMPTY, Nfs, OK};
use super::cells::{Cell, Sizes};
use super::promises::{Token, name};
use super::scene::{CELL, Scene};
use crate::random::Random;
use moraine_nfs::v3::wire::Procedure;
use std::collections::BTreeMap;
use std::rc::Rc;

/// The directory that all share; it is made with the pool.
pub(super) const SHARED: &[u8] = b"shared";
/// Names in it.
const SHARED_NAMES: u64 = 6;
pub(super) const FILE: u32 = 1;
pub(super) const DIR: u32 = 2;
pub(super) const SYMLINK: u32 = 5;

/// An object by the list it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    Dir(usize),
    File(usize),
    Symlink(usize),
}

/// A directory.
pub(super) struct Dir {
    pub(super) handle: Handle,
    pub(super) fileid: u64,
    pub(super) entries: BTreeMap<Vec<u8>, Node>,
    pub(super) alive: bool,
}

/// A written cell that is not on media for all the client knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loose {
    pub(super) stamp: u64,
    pub(super) verifier: u64,
    pub(super) since: u64,
    pub(super) boot: u64,
}

/// A file.
pub(super) struct File {
    pub(super) handle: Handle,
    pub(super) fileid: u64,
    pub(super) nlink: u32,
    pub(super) mode: u32,
    pub(super) cells: Vec<Cell>,
    pub(super) sizes: Sizes,
    pub(super) loose: BTreeMap<usize, Loose>,
}

/// A symbolic link.
pub(super) struct Symlink {
    pub(super) handle: Handle,
    pub(super) fileid: u64,
    pub(super) nlink: u32,
    pub(super) target: Vec<u8>,
}

/// The process.
pub(super) struct Client {
    pub(super) nfs: Nfs,
    pub(super) scene: Rc<Scene>,
    pub(super) random: Random,
    /// Cells in each of its files.
    pub(super) file_cells: usize,
    pub(super) dirs: Vec<Dir>,
    pub(super) files: Vec<File>,
    pub(super) symlinks: Vec<Symlink>,
    shared: Handle,
}

impl Client {
    /// One that is to work through `nfs`.
    pub(super) fn new(nfs: Nfs, mut random: Random) -> Client {
        let scene = nfs.scene.clone();
        let file_cells = *random.pick(&[48, 48, 96, 700]);
        let (dirs, files, symlinks) = (Vec::new(), Vec::new(), Vec::new());
        Client { nfs, scene, random, file_cells, dirs, files, symlinks, shared: Vec::new() }
    }

    /// Works for so many steps, then looks at everything in the last boot.
    pub(super) async fn run(mut self, number: usize, steps: usize) {
        if let Err(why) = self.work(steps).await {
            return self.scene.fail(format!("NFS client {number}: {why}"));
        }
        self.scene.worked.set(self.scene.worked.get() + 1);
        self.scene.changed.notify();
        self.scene.changed.until(|| self.scene.finale.get().then_some(())).await;
        if let Err(why) = self.look_at_all().await {
            return self.scene.fail(format!("NFS client {number}, in the end: {why}"));
        }
        self.scene.satisfied.set(self.scene.satisfied.get() + 1);
        self.scene.changed.notify();
    }

    async fn work(&mut self, steps: usize) -> Result<(), String> {
        let root = self.nfs.root().await?;
        let (_, shared) = self.nfs.lookup(&root, SHARED).await?;
        self.shared = shared.ok_or("the shared directory is not there")?.0;
        self.make_dir_in(root).await.map_err(|why| format!("its directory: {why}"))?;
        let mut boot = self.scene.boot();
        for step in 0..steps {
            if self.scene.boot() != boot {
                boot = self.scene.boot();
                // Now and then it looks whether all is as it was.
                if self.random.percent(30) {
                    self.look_at_all().await.map_err(|why| format!("step {step}, after a boot: {why}"))?;
                }
            }
            let kind = self.random.below(100);
            self.step(kind).await.map_err(|why| format!("step {step} ({kind}): {why}"))?;
            self.scene.count(|seen| seen.steps += 1);
        }
        Ok(())
    }

    async fn step(&mut self, kind: u64) -> Result<(), String> {
        match kind {
            0..=9 => self.create().await,
            10..=39 => self.write_some().await,
            40..=49 => self.commit_some().await,
            50..=57 => self.read_some().await,
            58..=61 => self.set_size().await,
            62..=63 => self.set_mode().await,
            64..=69 => self.remove().await,
            70..=75 => self.rename().await,
            76..=79 => self.link().await,
            80..=83 => self.mkdir().await,
            84..=85 => self.rmdir().await,
            86..=87 => self.symlink().await,
            88..=91 => self.list_some().await,
            92..=95 => self.look_up_some().await,
            _ => self.in_the_shared_directory().await,
        }
    }

    /// A live directory of its own.
    pub(super) fn some_dir(&mut self) -> usize {
        let alive: Vec<usize> = (0..self.dirs.len()).filter(|n| self.dirs[*n].alive).collect();
        *self.random.pick(&alive)
    }

    /// A name that is there, its directory and what it names; of any kind that `fits`.
    pub(super) fn some_entry(&mut self, fits: impl Fn(Node) -> bool) -> Option<(usize, Vec<u8>, Node)> {
        let mut all = Vec::new();
        for (n, dir) in self.dirs.iter().enumerate().filter(|(_, dir)| dir.alive) {
            let fitting = dir.entries.iter().filter(|(_, node)| fits(**node));
            all.extend(fitting.map(|(name, node)| (n, name.clone(), *node)));
        }
        (!all.is_empty()).then(|| self.random.pick(&all).clone())
    }

    /// A file that has a name.
    pub(super) fn some_file(&mut self) -> Option<usize> {
        let alive: Vec<usize> = (0..self.files.len()).filter(|n| self.files[*n].nlink > 0).collect();
        (!alive.is_empty()).then(|| *self.random.pick(&alive))
    }

    /// A name nobody used, and its number.
    pub(super) fn new_name(&self) -> (u32, Vec<u8>) {
        let number = self.scene.token();
        (number, name(number))
    }

    /// A file that is new and on media.
    pub(super) fn add_file(
        &mut self,
        dir: usize,
        name: Vec<u8>,
        handle: Handle,
        mode: u32,
        seen: (u64, u64),
    ) {
        let (fileid, boot) = seen;
        let cells = vec![Cell::new(); self.file_cells];
        let (sizes, loose) = (Sizes::new(boot), BTreeMap::new());
        let file = File { handle, fileid, nlink: 1, mode, cells, sizes, loose };
        self.dirs[dir].entries.insert(name, Node::File(self.files.len()));
        self.files.push(file);
    }

    async fn list_some(&mut self) -> Result<(), String> {
        let (dir, plus) = (self.some_dir(), self.random.percent(50));
        self.look_at_dir(dir, plus).await
    }

    /// The listing of a directory: these names and no others, each once, naming what they must.
    async fn look_at_dir(&mut self, dir: usize, plus: bool) -> Result<(), String> {
        let entries = self.nfs.list(&self.dirs[dir].handle, plus).await?;
        let mut names: Vec<&Vec<u8>> = entries.iter().map(|entry| &entry.name).collect();
        names.sort();
        let expected: Vec<&Vec<u8>> = self.dirs[dir].entries.keys().collect();
        if names != expected {
            let text = |names: &[&Vec<u8>]| -> Vec<String> {
                names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
            };
            return Err(format!("a listing has {:?}, should have {:?}", text(&names), text(&expected)));
        }
        for entry in &entries {
            let (handle, fileid, kind) = self.identity(self.dirs[dir].entries[&entry.name]);
            let named = entry.attr.is_none_or(|attr| (attr.fileid, attr.kind) == (fileid, kind));
            if entry.fileid != fileid || !named || entry.handle.as_ref().is_some_and(|h| *h != handle) {
                return Err(format!(
                    "in a listing, {} is another object",
                    String::from_utf8_lossy(&entry.name)
                ));
            }
        }
        Ok(())
    }

    /// What a node is known by: its handle, number and kind.
    fn identity(&self, node: Node) -> (Handle, u64, u32) {
        match node {
            Node::Dir(n) => (self.dirs[n].handle.clone(), self.dirs[n].fileid, DIR),
            Node::File(n) => (self.files[n].handle.clone(), self.files[n].fileid, FILE),
            Node::Symlink(n) => (self.symlinks[n].handle.clone(), self.symlinks[n].fileid, SYMLINK),
        }
    }

    /// A name leads to what it names; one that was never given, nowhere.
    async fn look_up_some(&mut self) -> Result<(), String> {
        let dir = self.some_dir();
        let (_, missing) = self.new_name();
        self.nfs.lookup(&self.dirs[dir].handle, &missing).await?.0.must(NOENT)?;
        match self.some_entry(|_| true) {
            Some((dir, name, node)) => self.look_at_name(dir, &name, node).await,
            None => Ok(()),
        }
    }

    async fn look_at_name(&mut self, dir: usize, name: &[u8], node: Node) -> Result<(), String> {
        let text = String::from_utf8_lossy(name).into_owned();
        let (told, found) = self.nfs.lookup(&self.dirs[dir].handle, name).await?;
        let (handle, attr) = found.ok_or(format!("LOOKUP of {text}: {}", told.status))?;
        let (expected, fileid, kind) = self.identity(node);
        if handle != expected {
            return Err(format!("{text} has another handle than it had"));
        }
        if (attr.fileid, attr.kind) != (fileid, kind) {
            return Err(format!("{text} is another object: {attr:?}"));
        }
        match node {
            Node::File(n) => {
                let file = &mut self.files[n];
                file.sizes.seen(attr.size, told.boot).map_err(|why| format!("{text} {why}"))?;
                if (attr.nlink, attr.mode) != (file.nlink, file.mode) {
                    let (nlink, mode) = (file.nlink, file.mode);
                    return Err(format!("{text} has {attr:?}, should have {nlink} names and mode {mode:o}"));
                }
            }
            Node::Symlink(n) => {
                let link = &self.symlinks[n];
                if attr.nlink != link.nlink || self.nfs.readlink(&link.handle).await? != link.target {
                    return Err(format!("{text} leads elsewhere"));
                }
            }
            Node::Dir(_) => {}
        }
        Ok(())
    }

    /// Every name, every attribute and every byte of its own.
    async fn look_at_all(&mut self) -> Result<(), String> {
        for dir in 0..self.dirs.len() {
            if !self.dirs[dir].alive {
                let (told, _) = self.nfs.getattr(&self.dirs[dir].handle).await?;
                told.must(super::calls::STALE).map_err(|why| format!("a directory that is gone {why}"))?;
                continue;
            }
            self.look_at_dir(dir, dir.is_multiple_of(2)).await?;
            for (name, node) in self.dirs[dir].entries.clone() {
                self.look_at_name(dir, &name, node).await?;
            }
        }
        for file in 0..self.files.len() {
            match self.files[file].nlink {
                0 => {
                    let (told, _) = self.nfs.getattr(&self.files[file].handle).await?;
                    told.must(super::calls::STALE).map_err(|why| format!("a file that is gone {why}"))?;
                }
                _ => self.look_at_content(file, 0, self.file_cells).await?,
            }
        }
        Ok(())
    }

    /// Something in the directory in which others are at work: all that must hold is that the answers make sense.
    async fn in_the_shared_directory(&mut self) -> Result<(), String> {
        let mut name = || format!("common-{}", self.random.below(SHARED_NAMES)).into_bytes();
        let (one, other) = (name(), name());
        let dir = self.shared.clone();
        let kind = self.random.below(6);
        let told = match kind {
            0 => self.nfs.create(&dir, &one, Create::Guarded, 0o644).await?,
            1 => self.nfs.create(&dir, &one, Create::Unchecked, 0o644).await?,
            2 => self.nfs.mkdir(&dir, &one).await?,
            3 => self.nfs.remove(Procedure::Remove, &dir, &one).await?,
            4 => self.nfs.remove(Procedure::RmDir, &dir, &one).await?,
            _ => self.nfs.rename((&dir, &one), (&dir, &other)).await?,
        };
        const NOTDIR: u32 = 20;
        const ISDIR: u32 = 21;
        let allowed: &[u32] = match kind {
            0 | 2 => &[OK, EXIST],
            1 => &[OK, EXIST, ISDIR],
            3 => &[OK, NOENT, ISDIR],
            4 => &[OK, NOENT, NOTDIR],
            _ => &[OK, NOENT, EXIST, NOTDIR, ISDIR, NOTEMPTY],
        };
        if !allowed.contains(&told.status) {
            return Err(format!("in the shared directory, {kind} answered {}", told.status));
        }
        let entries = self.nfs.list(&dir, true).await?;
        let mut names: Vec<&Vec<u8>> = entries.iter().map(|entry| &entry.name).collect();
        names.sort();
        names.dedup();
        // Entries may come and go while it is listed, but no name is there twice unless it was made anew meanwhile.
        match names.len() <= SHARED_NAMES as usize && entries.len() <= 2 * SHARED_NAMES as usize {
            true => Ok(()),
            false => Err(format!("the shared directory lists {} names", entries.len())),
        }
    }

    /// Stamps for so many cells, and the bytes.
    pub(super) fn new_cells(&self, count: usize) -> Vec<u64> {
        (0..count).map(|_| super::promises::stamp(self.scene.token())).collect()
    }

    /// Notes that a cell is on media.
    pub(super) fn promise_cell(&self, stamp: u64, since: u64, told: &super::calls::Told, what: &'static str) {
        self.scene.promise(vec![Token::Cell(stamp)], since, told.mark, told.boot, what);
    }
}

/// The bytes of cells with these stamps.
pub(super) fn bytes_of(stamps: &[u64]) -> Vec<u8> {
    stamps.iter().flat_map(|stamp| stamp.to_be_bytes().repeat(CELL / 8)).collect()
}

/// The stamp that fills a cell.
pub(super) fn stamp_of(cell: &[u8]) -> Result<u64, String> {
    let (words, rest) = cell.as_chunks::<8>();
    match words.iter().all(|word| *word == words[0]) && rest.is_empty() {
        true => Ok(u64::from_be_bytes(words[0])),
        false => Err(String::from("holds a mix of writes")),
    }
}
