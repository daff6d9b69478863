//! What a process does with the content of its files: WRITE of every stability, several at once; COMMIT, and writing
//! again what a new verifier says may be lost; READ; SETATTR of the size.

use super::calls::OK;
use super::client::{Client, Loose, bytes_of, stamp_of};
use super::promises::Token;
use super::scene::CELL;
use crate::harness::all;
use std::ops::Range;

const UNSTABLE: u32 = 0;
const DATA_SYNC: u32 = 1;
const FILE_SYNC: u32 = 2;
/// Cells of one WRITE at most.
const WRITE_CELLS: usize = 40;
/// Writes under way at once, at most.
const WRITES: u64 = 3;

/// A write to be sent.
struct Write {
    file: usize,
    cells: Range<usize>,
    stamps: Vec<u64>,
    stable: u32,
    /// The mark before it was sent.
    since: u64,
}

/// A part of it that was answered.
struct Part {
    cells: Range<usize>,
    told: super::calls::Told,
    committed: u32,
    verifier: u64,
}

impl Client {
    /// Some cells of a file.
    fn some_cells(&mut self, most: usize) -> Range<usize> {
        let count = 1 + self.random.index(most.min(self.file_cells));
        // Mostly near the front, so that writes meet.
        let room = self.file_cells - count + 1;
        let first =
            if self.random.percent(70) { self.random.index(room.min(24)) } else { self.random.index(room) };
        first..first + count
    }

    /// Writes, up to three at once, each somewhere else.
    pub(super) async fn write_some(&mut self) -> Result<(), String> {
        let mut writes: Vec<Write> = Vec::new();
        for _ in 0..1 + self.random.below(WRITES) {
            let Some(file) = self.some_file() else { return self.create().await };
            let most = *self.random.pick(&[1, 8, WRITE_CELLS, WRITE_CELLS]);
            let cells = self.some_cells(most);
            let meets = |w: &Write| w.file == file && w.cells.start < cells.end && cells.start < w.cells.end;
            if writes.iter().any(meets) {
                continue;
            }
            let stable = *self.random.pick(&[UNSTABLE, UNSTABLE, UNSTABLE, DATA_SYNC, FILE_SYNC]);
            let stamps = self.new_cells(cells.len());
            writes.push(Write { file, cells, stamps, stable, since: 0 });
        }
        self.write_all(writes).await
    }

    /// Sends writes at once, and notes what their answers say.
    async fn write_all(&mut self, mut writes: Vec<Write>) -> Result<(), String> {
        for write in &mut writes {
            write.since = self.scene.mark();
            let file = &mut self.files[write.file];
            file.sizes.write_sent((write.cells.end * CELL) as u64);
            for (cell, stamp) in write.cells.clone().zip(&write.stamps) {
                file.cells[cell].sent(*stamp, write.since);
            }
        }
        let answers: Vec<_> = writes.iter().map(|_| std::cell::RefCell::new(Ok(Vec::new()))).collect();
        let this = &*self;
        let mut tasks = Vec::new();
        for (write, answer) in writes.iter().zip(&answers) {
            tasks.push(Box::pin(async move {
                *answer.borrow_mut() = this.send(write).await;
            }));
        }
        all(tasks).await;
        let answers: Vec<Result<Vec<Part>, String>> = answers.into_iter().map(|a| a.into_inner()).collect();
        for (write, parts) in writes.iter().zip(answers) {
            for part in parts? {
                self.written(write, &part)?;
            }
        }
        Ok(())
    }

    /// Sends a write until all of it was taken.
    async fn send(&self, write: &Write) -> Result<Vec<Part>, String> {
        let mut parts = Vec::new();
        let mut first = write.cells.start;
        while first < write.cells.end {
            let data = bytes_of(&write.stamps[first - write.cells.start..]);
            let handle = &self.files[write.file].handle;
            let (told, written) = self.nfs.write(handle, (first * CELL) as u64, write.stable, &data).await?;
            let count = written.count as usize / CELL;
            if count == 0 || written.count as usize > data.len() {
                return Err(format!("a WRITE of {} bytes took {}", data.len(), written.count));
            }
            let cells = first..first + count;
            first = cells.end;
            parts.push(Part { cells, told, committed: written.committed, verifier: written.verifier });
        }
        Ok(parts)
    }

    fn written(&mut self, write: &Write, part: &Part) -> Result<(), String> {
        let stable = part.committed > UNSTABLE;
        let what = if part.committed == FILE_SYNC { "WRITE, FILE_SYNC" } else { "WRITE, DATA_SYNC" };
        let (since, boot) = (write.since, part.told.boot);
        let file = &mut self.files[write.file];
        file.sizes.written((part.cells.end * CELL) as u64, stable, boot);
        let mut promised = Vec::new();
        for cell in part.cells.clone() {
            let stamp = write.stamps[cell - write.cells.start];
            file.cells[cell].answered(since, boot);
            match stable {
                true => {
                    file.cells[cell].stable(since);
                    file.loose.remove(&cell);
                    promised.push(stamp);
                }
                false => {
                    file.loose.insert(cell, Loose { stamp, verifier: part.verifier, since, boot });
                }
            }
        }
        promised.into_iter().for_each(|stamp| self.promise_cell(stamp, since, &part.told, what));
        Ok(())
    }

    /// COMMIT of a whole file or a part of it.
    pub(super) async fn commit_some(&mut self) -> Result<(), String> {
        let with_loose: Vec<usize> = (0..self.files.len())
            .filter(|n| self.files[*n].nlink > 0 && !self.files[*n].loose.is_empty())
            .collect();
        if with_loose.is_empty() {
            return self.write_some().await;
        }
        let file = *self.random.pick(&with_loose);
        let range = match self.random.percent(75) {
            true => None,
            false => Some(self.some_cells(self.file_cells)),
        };
        self.commit(file, range).await
    }

    async fn commit(&mut self, number: usize, range: Option<Range<usize>>) -> Result<(), String> {
        let handle = self.files[number].handle.clone();
        let (offset, count) =
            range.as_ref().map_or((0, 0), |r| ((r.start * CELL) as u64, (r.len() * CELL) as u32));
        let (told, verifier) = self.nfs.commit(&handle, offset, count).await?;
        let file = &mut self.files[number];
        let covered = range.clone().unwrap_or(0..self.file_cells);
        let (mut promised, mut again) = (Vec::new(), Vec::new());
        for cell in covered {
            let Some(loose) = file.loose.remove(&cell) else { continue };
            if loose.verifier != verifier {
                again.push((cell, loose.stamp));
                continue;
            }
            if loose.boot != told.boot {
                return Err(String::from("a COMMIT has the verifier of another boot"));
            }
            file.cells[cell].stable(loose.since);
            promised.push(loose);
        }
        if file.loose.is_empty() && again.is_empty() {
            file.sizes.committed(told.boot);
        }
        promised.iter().for_each(|loose| self.promise_cell(loose.stamp, loose.since, &told, "COMMIT"));
        self.write_again(number, again).await
    }

    /// The server has another verifier: what was not on media before is written again.
    async fn write_again(&mut self, file: usize, cells: Vec<(usize, u64)>) -> Result<(), String> {
        self.scene.count(|seen| seen.written_again += cells.len() as u64);
        let mut writes: Vec<Write> = Vec::new();
        let stable = *self.random.pick(&[UNSTABLE, UNSTABLE, FILE_SYNC]);
        for (cell, stamp) in cells {
            match writes.last_mut().filter(|write| write.cells.end == cell) {
                Some(write) => {
                    write.cells.end += 1;
                    write.stamps.push(stamp);
                }
                None => {
                    writes.push(Write { file, cells: cell..cell + 1, stamps: vec![stamp], stable, since: 0 })
                }
            }
        }
        self.write_all(writes).await
    }

    /// READ of some cells.
    pub(super) async fn read_some(&mut self) -> Result<(), String> {
        let Some(file) = self.some_file() else { return self.create().await };
        let cells = self.some_cells(WRITE_CELLS);
        self.look_at_content(file, cells.start, cells.len()).await
    }

    /// Reads so many cells, in as many calls as the server likes, and sees whether they hold what they may.
    pub(super) async fn look_at_content(
        &mut self,
        number: usize,
        first: usize,
        count: usize,
    ) -> Result<(), String> {
        let (mut at, end) = (first, first + count);
        while at < end {
            let handle = self.files[number].handle.clone();
            let (offset, len) = ((at * CELL) as u64, (end - at) * CELL);
            let (told, bytes, eof, attr) = self.nfs.read(&handle, offset, len as u32).await?;
            let file = &mut self.files[number];
            file.sizes.seen(attr.size, told.boot).map_err(|why| format!("file {}, {why}", file.fileid))?;
            let left = attr.size.saturating_sub(offset);
            let ends = left <= bytes.len() as u64;
            if bytes.len() as u64 > left || eof != ends || !bytes.len().is_multiple_of(CELL) {
                return Err(format!(
                    "READ gave {} bytes at {offset} of {}, end {eof}",
                    bytes.len(),
                    attr.size
                ));
            }
            // Behind the end there is what a longer file would show there: nothing.
            let seen = if eof { end } else { at + bytes.len() / CELL };
            for cell in at..seen {
                let stamp = bytes.get((cell - at) * CELL..(cell - at + 1) * CELL).map_or(Ok(0), stamp_of);
                let decided = u64::from(file.cells[cell].is_open(told.boot));
                self.scene.count(|seen| seen.decided += decided);
                let right = stamp.and_then(|stamp| file.cells[cell].seen(stamp, told.boot));
                right
                    .map_err(|why| format!("file {}, cell {cell} {why}, boot {}", file.fileid, told.boot))?;
            }
            at = seen;
        }
        Ok(())
    }

    /// SETATTR of the size, shorter or longer.
    pub(super) async fn set_size(&mut self) -> Result<(), String> {
        let Some(number) = self.some_file() else { return self.create().await };
        let cells = self.random.index(self.file_cells + 1);
        let size = (cells * CELL) as u64;
        let (since, handle) = (self.scene.mark(), self.files[number].handle.clone());
        let file = &mut self.files[number];
        file.sizes.set_sent(size);
        file.cells[cells..].iter_mut().for_each(|cell| cell.sent(0, since));
        file.loose.retain(|cell, _| *cell < cells);
        let told = self.nfs.setattr(&handle, None, Some(size)).await?;
        told.must(OK)?;
        let file = &mut self.files[number];
        file.sizes.set(size, told.boot);
        for cell in &mut file.cells[cells..] {
            cell.answered(since, told.boot);
            cell.stable(since);
        }
        if !told.repeated {
            self.nfs.promise(&told, Token::Change, "SETATTR of a size");
        }
        Ok(())
    }
}
