//! What a process does to the names in its directories. Each change is answered once; the same call again, over another
//! connection, gets the first answer, and after a boot it may find its own work done.

use super::calls::{Create, EXIST, Handle, NOENT, NOTEMPTY, OK, STALE, Told};
use super::client::{Client, DIR, Dir, Node, Symlink};
use super::promises::Token;
use moraine_nfs::v3::wire::Procedure;
use std::collections::BTreeMap;

/// Directories of a process, at most.
const DIRS: usize = 5;

impl Client {
    /// CREATE of any kind, of a new name or one that is there.
    pub(super) async fn create(&mut self) -> Result<(), String> {
        if self.random.percent(15)
            && let Some((dir, name, _)) = self.some_entry(|node| matches!(node, Node::File(_)))
        {
            // A name that is taken.
            let (how, status) = *self.random.pick(&[
                (Create::Guarded, EXIST),
                (Create::Exclusive(*b"mismatch"), EXIST),
                (Create::Unchecked, OK),
            ]);
            return self.nfs.create(&self.dirs[dir].handle, &name, how, 0o644).await?.must(status);
        }
        let (dir, (number, name)) = (self.some_dir(), self.new_name());
        let verifier = self.random.next_u64().to_be_bytes();
        let how = *self.random.pick(&[Create::Unchecked, Create::Guarded, Create::Exclusive(verifier)]);
        let handle = self.dirs[dir].handle.clone();
        let told = self.nfs.create(&handle, &name, how, 0o640).await?;
        // Only GUARDED may find its own work in its way: the others are made to be repeated.
        let made = match how {
            Create::Guarded => told.done(EXIST),
            _ => told.must(OK).map(|()| true),
        };
        let made = made.map_err(|why| format!("CREATE {how:?}: {why}"))?;
        let (file, attr) = self.made(&told, made, dir, &name, Token::Name(number), "CREATE").await?;
        let mode = match how {
            Create::Exclusive(_) => 0o600,
            _ => 0o640,
        };
        if matches!(how, Create::Exclusive(_)) {
            let told = self.nfs.setattr(&file, Some(mode), None).await?;
            told.must(OK)?;
        }
        self.add_file(dir, name, file, mode, (attr, told.boot));
        Ok(())
    }

    /// The handle and number of what was made, by this answer or, if it was made before, by its name.
    async fn made(
        &self,
        told: &Told,
        made: bool,
        dir: usize,
        name: &[u8],
        token: Token,
        what: &'static str,
    ) -> Result<(Handle, u64), String> {
        if made {
            // UNCHECKED and EXCLUSIVE say OK also to what an earlier boot made.
            if !told.repeated {
                self.nfs.promise(told, token, what);
            }
            let (handle, attr) = told.made()?;
            return Ok((handle, attr.fileid));
        }
        self.scene.count(|seen| seen.found_done += 1);
        let (_, found) = self.nfs.lookup(&self.dirs[dir].handle, name).await?;
        let (handle, attr) =
            found.ok_or(format!("{what} found the name taken, and LOOKUP does not find it"))?;
        Ok((handle, attr.fileid))
    }

    /// The first directory of all, in the root.
    pub(super) async fn make_dir_in(&mut self, root: Handle) -> Result<(), String> {
        let (number, name) = self.new_name();
        let told = self.nfs.mkdir(&root, &name).await?;
        self.dirs.push(Dir { handle: root, fileid: 0, entries: BTreeMap::new(), alive: false });
        let made = told.done(EXIST)?;
        let (handle, fileid) = self.made(&told, made, 0, &name, Token::Name(number), "MKDIR").await?;
        self.dirs[0] = Dir { handle, fileid, entries: BTreeMap::new(), alive: true };
        Ok(())
    }

    pub(super) async fn mkdir(&mut self) -> Result<(), String> {
        if self.dirs.iter().filter(|dir| dir.alive).count() >= DIRS {
            return self.rmdir().await;
        }
        let (dir, (number, name)) = (self.some_dir(), self.new_name());
        let told = self.nfs.mkdir(&self.dirs[dir].handle, &name).await?;
        let made = told.done(EXIST).map_err(|why| format!("MKDIR {why}"))?;
        let (handle, fileid) = self.made(&told, made, dir, &name, Token::Name(number), "MKDIR").await?;
        let node = Node::Dir(self.dirs.len());
        self.dirs[dir].entries.insert(name, node);
        self.dirs.push(Dir { handle, fileid, entries: BTreeMap::new(), alive: true });
        Ok(())
    }

    pub(super) async fn rmdir(&mut self) -> Result<(), String> {
        let Some((dir, name, Node::Dir(gone))) = self.some_entry(|node| matches!(node, Node::Dir(_))) else {
            return Ok(());
        };
        let told = self.nfs.remove(Procedure::RmDir, &self.dirs[dir].handle, &name).await?;
        if !self.dirs[gone].entries.is_empty() {
            return told.must(NOTEMPTY).map_err(|why| format!("RMDIR {why}"));
        }
        self.removed(&told, dir, &name, "RMDIR")?;
        self.dirs[gone].alive = false;
        Ok(())
    }

    /// A name is gone, by this answer or before.
    fn removed(&mut self, told: &Told, dir: usize, name: &[u8], what: &'static str) -> Result<(), String> {
        let done = told.done(NOENT).map_err(|why| format!("{what} {why}"))?;
        if done && !told.repeated {
            self.nfs.promise(told, Token::Change, what);
        }
        self.scene.count(|seen| seen.found_done += u64::from(!done));
        self.dirs[dir].entries.remove(name);
        Ok(())
    }

    pub(super) async fn symlink(&mut self) -> Result<(), String> {
        let (dir, (number, name)) = (self.some_dir(), self.new_name());
        let target = format!("a target of {number}").into_bytes();
        let told = self.nfs.symlink(&self.dirs[dir].handle, &name, &target).await?;
        let made = told.done(EXIST).map_err(|why| format!("SYMLINK {why}"))?;
        let (handle, fileid) = self.made(&told, made, dir, &name, Token::Name(number), "SYMLINK").await?;
        self.dirs[dir].entries.insert(name, Node::Symlink(self.symlinks.len()));
        self.symlinks.push(Symlink { handle, fileid, nlink: 1, target });
        Ok(())
    }

    /// REMOVE of a file or a symbolic link; who lost the last name is no more.
    pub(super) async fn remove(&mut self) -> Result<(), String> {
        let Some((dir, name, node)) = self.some_entry(|node| !matches!(node, Node::Dir(_))) else {
            return self.create().await;
        };
        let told = self.nfs.remove(Procedure::Remove, &self.dirs[dir].handle, &name).await?;
        self.removed(&told, dir, &name, "REMOVE")?;
        self.lost_a_name(node).await
    }

    async fn lost_a_name(&mut self, node: Node) -> Result<(), String> {
        let (handle, left) = match node {
            Node::File(n) => {
                let file = &mut self.files[n];
                file.nlink -= 1;
                (file.handle.clone(), file.nlink)
            }
            Node::Symlink(n) => {
                let link = &mut self.symlinks[n];
                link.nlink -= 1;
                (link.handle.clone(), link.nlink)
            }
            Node::Dir(n) => {
                self.dirs[n].alive = false;
                (self.dirs[n].handle.clone(), 0)
            }
        };
        if left == 0 && self.random.percent(30) {
            let (told, _) = self.nfs.getattr(&handle).await?;
            told.must(STALE).map_err(|why| format!("what has no name any more {why}"))?;
        }
        Ok(())
    }

    /// RENAME to a new name or over one that is there.
    pub(super) async fn rename(&mut self) -> Result<(), String> {
        let Some((from, name, node)) = self.some_entry(|_| true) else { return self.create().await };
        // A directory stays where it is, or moves to the first, so that it never comes to lie in itself.
        let to = match node {
            Node::Dir(_) => *self.random.pick(&[from, 0]),
            _ => self.some_dir(),
        };
        let is_dir = matches!(node, Node::Dir(_));
        let taken: Vec<(Vec<u8>, Node)> = self.dirs[to]
            .entries
            .iter()
            .filter(|(_, there)| matches!(there, Node::Dir(_)) == is_dir && !self.is_full(**there))
            .map(|(name, there)| (name.clone(), *there))
            .collect();
        let mut over = None;
        let (number, mut new_name) = self.new_name();
        if !taken.is_empty() && self.random.percent(30) {
            let (name, there) = self.random.pick(&taken).clone();
            (new_name, over) = (name, Some(there));
        }
        let (from_handle, to_handle) = (self.dirs[from].handle.clone(), self.dirs[to].handle.clone());
        let told = self.nfs.rename((&from_handle, &name), (&to_handle, &new_name)).await?;
        if over == Some(node) {
            // Another name of the same object, or the same name: nothing happens.
            return told.must(OK).map_err(|why| format!("RENAME of an object onto itself {why}"));
        }
        let done = told.done(NOENT).map_err(|why| format!("RENAME {why}"))?;
        if done && !told.repeated {
            let token = if over.is_some() { Token::Change } else { Token::Name(number) };
            self.nfs.promise(&told, token, "RENAME");
        }
        self.dirs[from].entries.remove(&name);
        self.dirs[to].entries.insert(new_name, node);
        match over {
            Some(lost) => self.lost_a_name(lost).await,
            None => Ok(()),
        }
    }

    fn is_full(&self, node: Node) -> bool {
        matches!(node, Node::Dir(n) if !self.dirs[n].entries.is_empty())
    }

    /// LINK of a file or a symbolic link.
    pub(super) async fn link(&mut self) -> Result<(), String> {
        let Some((_, _, node)) = self.some_entry(|node| matches!(node, Node::File(_))) else {
            return self.create().await;
        };
        let Node::File(file) = node else { return Ok(()) };
        let (dir, (number, name)) = (self.some_dir(), self.new_name());
        let told = self.nfs.link(&self.files[file].handle, &self.dirs[dir].handle, &name).await?;
        if told.done(EXIST).map_err(|why| format!("LINK {why}"))? && !told.repeated {
            self.nfs.promise(&told, Token::Name(number), "LINK");
        }
        self.files[file].nlink += 1;
        self.dirs[dir].entries.insert(name, node);
        Ok(())
    }

    /// SETATTR of the mode.
    pub(super) async fn set_mode(&mut self) -> Result<(), String> {
        let Some(number) = self.some_file() else { return self.create().await };
        let mode = *self.random.pick(&[0o600, 0o644, 0o751]);
        let told = self.nfs.setattr(&self.files[number].handle, Some(mode), None).await?;
        told.must(OK)?;
        if !told.repeated {
            self.nfs.promise(&told, Token::Change, "SETATTR");
        }
        self.files[number].mode = mode;
        let (_, attr) = self.nfs.getattr(&self.files[number].handle).await?;
        match attr {
            Some(attr) if attr.mode == mode && attr.kind != DIR => Ok(()),
            other => Err(format!("after SETATTR of mode {mode:o}: {other:?}")),
        }
    }
}
