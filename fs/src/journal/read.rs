//! Reading the journal: every bucket of every device that is here, whatever garbage it holds; then the decision; then
//! the items of the entries that are history.

use super::JournalError;
use super::choose::{Candidate, Decision, choose};
use super::ring::{Bucket, RingDevice};
use crate::device::{DeviceError, Devices};
use alloc::vec::Vec;
use core::fmt;
use hashbrown::HashMap;
use moraine_format::Superblock;
use moraine_format::journal::{self, ENTRY_BLOCK, Entry, Item, ItemKind, Items, Seq};
use moraine_platform::Buf;
use smallvec::SmallVec;

/// Numbers skipped at a mount, so that none seen on disk is used again even if a few were not seen.
const SEQ_GAP: u64 = 64;
/// The same when entries are known to be gone: more than a pool can have written since it was last seen whole.
const SEQ_GAP_AFTER_LOSS: u64 = 1 << 40;
/// Bytes read at once where a whole bucket cannot be read.
const SALVAGE_BYTES: usize = 4 << 10;

/// Why the journal could not be read as history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoverError {
    /// Entries that were durable are damaged or gone: starting without them would lose acknowledged writes.
    Rot {
        /// The newest entry known to have been durable.
        claimed: Seq,
        /// Where the newest whole chain ends, if there is one.
        end: Option<Seq>,
    },
    /// So many journal devices are missing that they may hold entries nobody here knows of.
    TooManyMissing {
        /// Journal devices that are not here.
        missing: usize,
        /// Copies of each entry.
        replicas: usize,
    },
    /// An entry that was there when the journal was scanned could not be read again.
    Unreadable(Seq),
    /// A flush before the decision failed, so what was read may not be durable.
    Flush(u8, DeviceError),
    /// The journal could not be started or its first entry not written.
    Journal(JournalError),
    /// No memory.
    OutOfMemory,
}

impl fmt::Display for RecoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoverError::Rot { claimed, end } => {
                write!(f, "the journal is damaged: entry {claimed} was durable, but ")?;
                match end {
                    Some(end) => write!(f, "what can be read whole ends at {end}"),
                    None => f.write_str("nothing can be read whole"),
                }
            }
            RecoverError::TooManyMissing { missing, replicas } => {
                write!(f, "{missing} journal devices are missing, entries have {replicas} copies")
            }
            RecoverError::Unreadable(seq) => write!(f, "journal entry {seq} cannot be read"),
            RecoverError::Flush(device, error) => {
                write!(f, "flush of device {device} before recovery: {error}")
            }
            RecoverError::Journal(error) => error.fmt(f),
            RecoverError::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

impl core::error::Error for RecoverError {}

/// What was seen while the journal was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Buckets read.
    pub buckets: usize,
    /// Valid copies of entries found, of this and earlier laps of the ring.
    pub copies: usize,
    /// Blocks that look like the beginning of an entry but are not valid.
    pub damaged: usize,
    /// Bytes that could not be read.
    pub unreadable_bytes: u64,
    /// Entries newer than the end of history: written, but never acknowledged.
    pub dead: usize,
    /// Journal devices that are not here.
    pub missing: usize,
}

/// One entry of history.
#[derive(Clone, Debug)]
pub struct HistoryEntry {
    /// Its number.
    pub seq: Seq,
    /// The mount epoch it was written in.
    pub epoch: u64,
    items: Vec<u8>,
}

impl HistoryEntry {
    /// Its items in order.
    pub fn items(&self) -> impl Iterator<Item = Item<'_>> {
        Items::new(&self.items).filter_map(|(_, item)| item)
    }

    /// Bytes its items take.
    pub fn bytes(&self) -> usize {
        self.items.len()
    }
}

/// What the journal says happened since the oldest entry needed.
#[derive(Clone, Debug)]
pub struct History {
    /// The entries, oldest first. Later items replace earlier ones of the same key.
    pub entries: Vec<HistoryEntry>,
    /// What was seen on the way.
    pub report: Report,
    /// The newest mount epoch of any entry seen, history or not.
    pub(crate) epoch: u64,
    pub(super) end: (Seq, u64),
    pub(super) next_seq: Seq,
    pub(super) rings: Vec<RingDevice>,
}

impl History {
    /// The newest entry; zero in a new pool.
    pub fn end(&self) -> Seq {
        self.end.0
    }

    /// The oldest entry needed; zero in a new pool.
    pub fn tail(&self) -> Seq {
        self.entries.first().map_or(Seq::ZERO, |e| e.seq)
    }

    /// All items with their entries' seqs, oldest first.
    pub fn items(&self) -> impl Iterator<Item = (Seq, Item<'_>)> {
        self.entries.iter().flat_map(|e| e.items().map(move |item| (e.seq, item)))
    }

    /// The newest root of each tree that is mentioned, with the seq of its entry.
    pub fn roots(&self) -> Vec<(Seq, Item<'_>)> {
        let mut roots: Vec<(Seq, Item<'_>)> = Vec::new();
        for (seq, item) in self.items().filter(|(_, item)| item.kind == ItemKind::Root) {
            match roots.iter_mut().find(|(_, have)| have.tree == item.tree) {
                Some(have) => *have = (seq, item),
                None => roots.push((seq, item)),
            }
        }
        roots
    }
}

impl fmt::Display for HistoryEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} epoch {} {} bytes", self.seq, self.epoch, self.items.len())?;
        self.items().try_for_each(|item| write!(f, "\n  {item}"))
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.report;
        writeln!(f, "journal from {} to {}: {} entries", self.tail(), self.end(), self.entries.len())?;
        write!(f, "  {} buckets read, {} valid copies, {} dead entries", r.buckets, r.copies, r.dead)?;
        write!(
            f,
            ", {} damaged, {} bytes unreadable, {} devices missing",
            r.damaged, r.unreadable_bytes, r.missing
        )?;
        self.entries.iter().try_for_each(|entry| write!(f, "\n{entry}"))
    }
}

/// Where a copy lies.
#[derive(Clone, Copy)]
struct Copy {
    device: u8,
    bucket: usize,
    at: u64,
    bytes: usize,
}

struct Found {
    candidates: Vec<Candidate>,
    copies: Vec<SmallVec<[Copy; 2]>>,
    known: HashMap<(u64, Seq, u64), usize>,
    report: Report,
}

/// Reads the journal that `superblock` describes and decides what is history. Writes nothing, but flushes all devices
/// before the decision: what was read may lie in a volatile cache since before a crash of the program alone.
pub async fn read_history(devices: &Devices, superblock: &Superblock) -> Result<History, RecoverError> {
    read(devices, superblock, Rot::Refuse).await
}

/// As [`read_history`], but goes on with what can be read whole where entries that were durable are gone: for a repair, and
/// for people who look.
pub async fn read_what_is_left(devices: &Devices, superblock: &Superblock) -> Result<History, RecoverError> {
    read(devices, superblock, Rot::Accept).await
}

/// What to do when entries that were durable are gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rot {
    Refuse,
    Accept,
}

async fn read(devices: &Devices, superblock: &Superblock, rot: Rot) -> Result<History, RecoverError> {
    let tag = superblock.pool_tag();
    let mut found = Found {
        candidates: Vec::new(),
        copies: Vec::new(),
        known: HashMap::new(),
        report: Report::default(),
    };
    let mut rings = Vec::new();
    for (index, member) in superblock.members.iter().enumerate() {
        let device = index as u8;
        if member.journal.is_empty() {
            continue;
        }
        if devices.info(device).is_none() {
            found.report.missing += 1;
            continue;
        }
        let bucket_bytes = u64::from(member.bucket_bytes);
        let buckets: Vec<Bucket> = member
            .journal_buckets()
            .map(|b| Bucket { start: b * bucket_bytes, newest: Seq::ZERO, filled: 0 })
            .collect();
        let mut buf = Buf::zeroed(bucket_bytes as usize).map_err(|_| RecoverError::OutOfMemory)?;
        for (n, bucket) in buckets.iter().enumerate() {
            buf = read_bucket(devices, device, bucket.start, buf, &mut found.report).await?;
            scan(device, n, &buf, tag, &mut found);
        }
        rings.push(RingDevice {
            index: device,
            bucket_bytes,
            buckets,
            current: None,
            failed: false,
            free: 0,
        });
    }
    let replicas = usize::from(superblock.journal_replicas);
    if found.report.missing >= replicas {
        return Err(RecoverError::TooManyMissing { missing: found.report.missing, replicas });
    }
    for device in devices.present() {
        devices.flush_earlier(device).await.map_err(|e| RecoverError::Flush(device, e))?;
    }
    let chain = match choose(&found.candidates, Seq(superblock.journal_floor)) {
        Decision::Empty => Vec::new(),
        Decision::History(chain) => chain,
        Decision::Rot { .. } if rot == Rot::Accept => {
            // The newest whole chain, as if nobody had claimed that there was more.
            found.candidates.iter_mut().for_each(|c| c.flushed_upto = Seq::ZERO);
            match choose(&found.candidates, Seq::ZERO) {
                Decision::History(chain) => chain,
                Decision::Empty | Decision::Rot { .. } => Vec::new(),
            }
        }
        Decision::Rot { claimed, end } => return Err(RecoverError::Rot { claimed, end }),
    };
    let mut entries = Vec::new();
    for i in &chain {
        entries.push(load(devices, &found, *i, &rings, tag).await?);
        for copy in &found.copies[*i] {
            let ring = rings.iter_mut().find(|r| r.index == copy.device);
            if let Some(bucket) = ring.map(|r| &mut r.buckets[copy.bucket]) {
                bucket.newest = bucket.newest.max(found.candidates[*i].seq);
                bucket.filled = bucket.filled.max(copy.at + copy.bytes as u64);
            }
        }
    }
    let end = chain.last().map_or((Seq::ZERO, 0), |i| (found.candidates[*i].seq, found.candidates[*i].hash));
    let newest = found.candidates.iter().map(|c| c.seq).max().unwrap_or(Seq::ZERO).max(end.0);
    found.report.dead = found.candidates.iter().filter(|c| c.seq > end.0).count();
    // What is gone had numbers, too: nodes know them, and what is newer must be told from what is older.
    let gap = if rot == Rot::Accept { SEQ_GAP_AFTER_LOSS } else { SEQ_GAP };
    let next_seq = Seq(newest.0.max(superblock.journal_floor) + gap);
    let epoch = found.candidates.iter().map(|c| c.epoch).max().unwrap_or(0);
    Ok(History { entries, report: found.report, epoch, end, next_seq, rings })
}

/// Reads a bucket, around what cannot be read.
async fn read_bucket(
    devices: &Devices,
    device: u8,
    start: u64,
    buf: Buf,
    report: &mut Report,
) -> Result<Buf, RecoverError> {
    let bytes = buf.len();
    report.buckets += 1;
    let (mut buf, result) = devices.read(device, start, buf).await;
    if result.is_err() {
        buf.fill(0);
        for at in (0..bytes).step_by(SALVAGE_BYTES) {
            let len = SALVAGE_BYTES.min(bytes - at);
            let part = Buf::zeroed(len).map_err(|_| RecoverError::OutOfMemory)?;
            match devices.read(device, start + at as u64, part).await {
                (part, Ok(())) => buf[at..at + len].copy_from_slice(&part),
                _ => report.unreadable_bytes += len as u64,
            }
        }
    }
    Ok(buf)
}

/// Takes note of all valid entries of a bucket.
fn scan(device: u8, bucket: usize, bytes: &[u8], tag: u64, found: &mut Found) {
    let mut at = 0;
    while at + ENTRY_BLOCK <= bytes.len() {
        let rest = &bytes[at..];
        at += match Entry::parse(rest, tag) {
            Ok(entry) => {
                found.add(&entry, Copy { device, bucket, at: at as u64, bytes: entry.disk_bytes });
                entry.disk_bytes
            }
            Err(_) => {
                found.report.damaged += usize::from(journal::looks_like_entry(rest, tag));
                ENTRY_BLOCK
            }
        };
    }
}

impl Found {
    fn add(&mut self, entry: &Entry<'_>, copy: Copy) {
        let h = &entry.header;
        self.report.copies += 1;
        let n = *self.known.entry((h.epoch, h.seq, entry.hash)).or_insert_with(|| {
            self.candidates.push(Candidate {
                epoch: h.epoch,
                seq: h.seq,
                hash: entry.hash,
                prev_seq: h.prev_seq,
                prev_hash: h.prev_hash,
                last_seq: h.last_seq,
                flushed_upto: h.flushed_upto,
                flush: h.flush,
            });
            self.copies.push(SmallVec::new());
            self.candidates.len() - 1
        });
        self.copies[n].push(copy);
    }
}

/// Reads an entry again, from whichever copy still verifies.
async fn load(
    devices: &Devices,
    found: &Found,
    candidate: usize,
    rings: &[RingDevice],
    tag: u64,
) -> Result<HistoryEntry, RecoverError> {
    let wanted = &found.candidates[candidate];
    for copy in &found.copies[candidate] {
        let Some(ring) = rings.iter().find(|r| r.index == copy.device) else { continue };
        let buf = Buf::zeroed(copy.bytes).map_err(|_| RecoverError::OutOfMemory)?;
        let (buf, result) = devices.read(copy.device, ring.buckets[copy.bucket].start + copy.at, buf).await;
        if result.is_ok()
            && let Ok(entry) = Entry::parse(&buf, tag)
            && entry.hash == wanted.hash
        {
            return Ok(HistoryEntry {
                seq: wanted.seq,
                epoch: wanted.epoch,
                items: entry.item_bytes().to_vec(),
            });
        }
    }
    Err(RecoverError::Unreadable(wanted.seq))
}
