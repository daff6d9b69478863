//! The volatile cache: writes in the order they completed, and what a power cut may make of those not yet durable.
//!
//! A write is *under way* until it completes, then *cached*, then *durable*. At a power cut each write that is not
//! durable is kept, lost or torn at the logical block, by choice; of two that overlap the later completion wins, and
//! two that were under way at the same time may also land the other way round.

use super::Image;
use crate::random::Random;
use crate::trace::{CommandId, Payload};

/// What a power cut makes of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// It is on the medium.
    Keep,
    /// It never was.
    Drop,
    /// Some of its logical blocks are, by this seed: at least one and not all.
    Torn(u64),
}

/// What a power cut makes of all pending writes of one disk.
#[derive(Clone, Debug)]
pub struct Fate {
    /// One for each pending write, in order.
    pub pieces: Vec<Piece>,
    /// Two neighbours (this and the next) that land in the other order.
    pub swapped: Option<usize>,
}

impl Fate {
    /// The same for all of `count` writes.
    pub fn all(piece: Piece, count: usize) -> Fate {
        Fate { pieces: vec![piece; count], swapped: None }
    }

    /// Any.
    pub fn random(count: usize, random: &mut Random) -> Fate {
        // Whole worlds of only lost or only kept writes matter as much as mixed ones.
        let (keep, torn) = *random.pick(&[(50, 20), (90, 5), (10, 5), (100, 0), (0, 0), (80, 0)]);
        let piece = |random: &mut Random| match random.below(100) as u32 {
            n if n < torn => Piece::Torn(random.next_u64()),
            _ if random.percent(keep) => Piece::Keep,
            _ => Piece::Drop,
        };
        Fate { pieces: (0..count).map(|_| piece(random)).collect(), swapped: None }
    }

    /// The same with one piece changed.
    pub fn with(mut self, at: usize, piece: Piece) -> Fate {
        self.pieces[at] = piece;
        self
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    UnderWay,
    Cached,
    Durable,
}

#[derive(Clone)]
struct Pending {
    id: CommandId,
    /// When it was submitted and completed, in steps of this cache.
    submitted: u64,
    completed: u64,
    offset: u64,
    payload: Payload,
    stage: Stage,
}

impl Pending {
    fn end(&self) -> u64 {
        self.offset + self.payload.len()
    }
}

/// A disk's medium and cache. Cloning is cheap.
#[derive(Clone)]
pub struct Cache {
    /// What is on the medium for sure, before `writes`.
    base: Image,
    visible: Image,
    /// Not yet folded into `base`: completed ones in order of completion, then those under way.
    writes: Vec<Pending>,
    step: u64,
    tear_unit: u64,
}

impl Cache {
    /// A quiet disk that holds `image`.
    pub fn new(image: Image) -> Cache {
        Cache { visible: image.clone(), base: image, writes: Vec::new(), step: 0, tear_unit: 512 }
    }

    /// What a reader sees.
    pub fn visible(&self) -> &Image {
        &self.visible
    }

    /// How many writes are not durable: the length of a [`Fate`].
    pub fn pending(&self) -> usize {
        self.writes.iter().filter(|w| w.stage != Stage::Durable).count()
    }

    /// Offset and length of the pending writes, in the order of a [`Fate`].
    pub fn pending_ranges(&self) -> Vec<(u64, u64)> {
        let volatile = self.writes.iter().filter(|w| w.stage != Stage::Durable);
        volatile.map(|w| (w.offset, w.payload.len())).collect()
    }

    /// A write begins.
    pub fn submit(&mut self, id: CommandId, offset: u64, payload: Payload) {
        self.step += 1;
        let (submitted, completed) = (self.step, u64::MAX);
        self.writes.push(Pending { id, submitted, completed, offset, payload, stage: Stage::UnderWay });
    }

    /// A write completes; from now on readers see it.
    pub fn complete(&mut self, id: CommandId, durable: bool) {
        let Some(mut write) = self.take_under_way(id) else { return };
        self.visible.put(write.offset, &write.payload, 0, write.payload.len());
        self.step += 1;
        write.completed = self.step;
        write.stage = if durable { Stage::Durable } else { Stage::Cached };
        let at = self.writes.iter().position(|w| w.stage == Stage::UnderWay).unwrap_or(self.writes.len());
        self.writes.insert(at, write);
        self.fold();
    }

    /// A write fails and leaves some of its blocks.
    pub fn complete_torn(&mut self, id: CommandId, seed: u64) {
        let Some(write) = self.take_under_way(id) else { return };
        for (from, to) in torn_parts(write.payload.len(), self.tear_unit, seed) {
            self.submit(id, write.offset + from, write.payload.part(from, to));
            self.complete(id, false);
        }
    }

    /// A write never lands.
    pub fn forget(&mut self, id: CommandId) {
        self.take_under_way(id);
    }

    /// A write under way lands somewhere else.
    pub(crate) fn redirect(&mut self, id: CommandId, to: impl FnOnce(u64, u64) -> u64) {
        if let Some(write) = self.writes.iter_mut().find(|w| w.id == id) {
            write.offset = to(write.offset, write.payload.len());
        }
    }

    fn take_under_way(&mut self, id: CommandId) -> Option<Pending> {
        let at = self.writes.iter().position(|w| w.id == id && w.stage == Stage::UnderWay)?;
        Some(self.writes.remove(at))
    }

    /// Writes completed and not durable: what a flush submitted now covers.
    pub fn completed(&self) -> Vec<CommandId> {
        self.writes.iter().filter(|w| w.stage == Stage::Cached).map(|w| w.id).collect()
    }

    /// A flush that covers `ids` completes.
    pub fn make_durable(&mut self, ids: &[CommandId]) {
        for write in &mut self.writes {
            if write.stage == Stage::Cached && ids.contains(&write.id) {
                write.stage = Stage::Durable;
            }
        }
        self.fold();
    }

    /// A flush fails and what it covered is gone, also for readers.
    pub fn lose(&mut self, ids: &[CommandId]) {
        self.writes.retain(|w| w.stage != Stage::Cached || !ids.contains(&w.id));
        self.visible = self.base.clone();
        for write in self.writes.iter().filter(|w| w.stage != Stage::UnderWay) {
            self.visible.put(write.offset, &write.payload, 0, write.payload.len());
        }
    }

    /// A bit flips on the medium and for readers.
    pub fn rot(&mut self, offset: u64, mask: u8) {
        self.base.flip(offset, mask);
        self.visible.flip(offset, mask);
    }

    /// Whether nothing in the range is pending.
    pub fn is_durable(&self, offset: u64, len: u64) -> bool {
        let mut volatile = self.writes.iter().filter(|w| w.stage != Stage::Durable);
        !volatile.any(|w| w.offset < offset + len && offset < w.end())
    }

    /// Durable writes at the front are history.
    fn fold(&mut self) {
        let front = self.writes.iter().take_while(|w| w.stage == Stage::Durable).count();
        for write in self.writes.drain(..front) {
            self.base.put(write.offset, &write.payload, 0, write.payload.len());
        }
    }

    /// Whether pending write `at` and the next may land in either order: they overlap and were under way together.
    pub fn may_swap(&self, at: usize) -> bool {
        let volatile: Vec<&Pending> = self.writes.iter().filter(|w| w.stage != Stage::Durable).collect();
        let (a, b) = (volatile[at], volatile[at + 1]);
        let together = b.submitted < a.completed && a.submitted < b.completed;
        together && a.offset < b.end() && b.offset < a.end()
    }

    /// What is on the medium after a power cut of this fate.
    pub fn crash(&self, fate: &Fate) -> Image {
        assert_eq!(fate.pieces.len(), self.pending(), "a fate decides about every pending write");
        let mut image = self.base.clone();
        let mut order: Vec<(&Pending, Piece)> = Vec::with_capacity(self.writes.len());
        let mut pieces = fate.pieces.iter();
        let mut swap_at = None;
        let mut volatile = 0;
        for write in &self.writes {
            let piece = match write.stage {
                Stage::Durable => Piece::Keep,
                _ => {
                    if fate.swapped == Some(volatile) {
                        swap_at = Some(order.len());
                    }
                    volatile += 1;
                    *pieces.next().expect("counted above")
                }
            };
            order.push((write, piece));
        }
        if let Some(at) = swap_at {
            let next = order.iter().skip(at + 1).position(|(w, _)| w.stage != Stage::Durable);
            order.swap(at, at + 1 + next.expect("the last write has no neighbour to swap with"));
        }
        for (write, piece) in order {
            let len = write.payload.len();
            match piece {
                Piece::Keep => image.put(write.offset, &write.payload, 0, len),
                Piece::Drop => {}
                Piece::Torn(seed) => {
                    for (from, to) in torn_parts(len, self.tear_unit, seed) {
                        image.put(write.offset, &write.payload, from, to);
                    }
                }
            }
        }
        image
    }

    /// A fate in which only the process died: completed writes stay.
    pub(crate) fn killed(&self, random: &mut Random) -> Fate {
        let mut fate = Fate::random(self.pending(), random);
        let volatile = self.writes.iter().filter(|w| w.stage != Stage::Durable);
        for (piece, write) in fate.pieces.iter_mut().zip(volatile) {
            if write.stage == Stage::Cached {
                *piece = Piece::Keep;
            }
        }
        fate
    }
}

/// The parts of a torn write that land: at least one unit and not all, unless it has only one, which then is lost.
fn torn_parts(len: u64, unit: u64, seed: u64) -> Vec<(u64, u64)> {
    let units = len.div_ceil(unit);
    if units < 2 {
        return Vec::new();
    }
    let mut random = Random::new(seed);
    let part = |n: u64| (n * unit, ((n + 1) * unit).min(len));
    match random.below(3) {
        0 => vec![(0, part(random.below(units - 1)).1)],
        1 => vec![(part(1 + random.below(units - 1)).0, len)],
        _ => {
            let (kept, lost) = (random.below(units), random.below(units - 1));
            let lost = if lost >= kept { lost + 1 } else { lost };
            (0..units).filter(|n| *n == kept || (*n != lost && random.percent(50))).map(part).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    fn bytes(value: u8, len: usize) -> Payload {
        Payload::Bytes(Rc::from(vec![value; len]))
    }

    fn first(image: &Image, offset: u64) -> u8 {
        let mut byte = [0];
        image.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn a_flush_covers_what_had_completed_and_nothing_else() {
        let mut cache = Cache::new(Image::new(1 << 16));
        cache.submit(1, 0, bytes(1, 512));
        cache.submit(2, 4096, bytes(2, 512));
        cache.complete(1, false);
        let covered = cache.completed();
        cache.complete(2, false);
        cache.make_durable(&covered);
        let lost = cache.crash(&Fate::all(Piece::Drop, cache.pending()));
        assert_eq!((first(&lost, 0), first(&lost, 4096)), (1, 0));
        assert!(cache.is_durable(0, 512) && !cache.is_durable(4096, 1));
        assert_eq!(first(cache.visible(), 4096), 2);
    }

    #[test]
    fn a_durable_write_over_a_cached_one_stays_on_top() {
        let mut cache = Cache::new(Image::new(1 << 16));
        cache.submit(1, 0, bytes(1, 1024));
        cache.complete(1, false);
        cache.submit(2, 0, bytes(2, 512));
        cache.complete(2, true);
        for (piece, second) in [(Piece::Keep, 1), (Piece::Drop, 0)] {
            let image = cache.crash(&Fate::all(piece, 1));
            assert_eq!((first(&image, 0), first(&image, 512)), (2, second));
        }
        assert_eq!(cache.pending(), 1);
    }

    #[test]
    fn only_writes_under_way_together_may_swap() {
        let mut cache = Cache::new(Image::new(1 << 16));
        cache.submit(1, 0, bytes(1, 512));
        cache.submit(2, 0, bytes(2, 512));
        assert!(cache.may_swap(0));
        cache.complete(1, false);
        assert!(cache.may_swap(0));
        cache.submit(3, 0, bytes(3, 512));
        cache.complete(2, false);
        cache.submit(4, 0, bytes(4, 512));
        assert!(cache.may_swap(0) && cache.may_swap(1) && cache.may_swap(2));
        cache.forget(3);
        assert!(!cache.may_swap(1), "2 had completed before 4 was submitted");
        let kept = Fate { swapped: Some(0), ..Fate::all(Piece::Keep, 3) };
        assert_eq!(first(&cache.crash(&kept), 0), 4);
        let two = Fate { swapped: Some(0), ..Fate::all(Piece::Keep, 3) }.with(2, Piece::Drop);
        assert_eq!(first(&cache.crash(&two), 0), 1);
    }

    #[test]
    fn a_torn_write_lands_in_part() {
        for seed in 0..200 {
            let mut cache = Cache::new(Image::new(1 << 16));
            cache.submit(1, 0, bytes(9, 4096));
            let image = cache.crash(&Fate::all(Piece::Torn(seed), 1));
            let landed = (0..8).filter(|n| first(&image, n * 512) == 9).count();
            assert!((1..8).contains(&landed), "seed {seed}: {landed}");
        }
    }

    #[test]
    fn a_failed_flush_that_loses_takes_it_from_readers_too() {
        let mut cache = Cache::new(Image::new(1 << 16));
        cache.submit(1, 0, bytes(1, 512));
        cache.complete(1, false);
        let covered = cache.completed();
        cache.submit(2, 0, bytes(2, 512));
        cache.complete(2, false);
        cache.lose(&covered);
        assert_eq!(first(cache.visible(), 0), 2);
        assert_eq!(cache.pending(), 1);
    }
}
