//! Workloads from a seed: steps that make sense for what is there by now, and some that do not.

use crate::ops::{Guard, Made, Name, Op, Slot, Step, Who};
use crate::random::Random;
use moraine_fs::vfs::*;
use moraine_platform::Timestamp;

/// What a workload is like. Weights are relative to each other.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name on the command line.
    pub name: &'static str,
    /// Weight of operations on names.
    pub names: u64,
    /// Weight of writes, truncations and holes.
    pub data: u64,
    /// Weight of attributes and extended attributes.
    pub attributes: u64,
    /// Weight of calls that only look.
    pub looks: u64,
    /// Weight of commits and waits for durability.
    pub syncs: u64,
    /// Distinct ordinary names.
    pub name_count: u64,
    /// Files reach about this many bytes.
    pub file_bytes: u64,
    /// How often, in percent, somebody else than root asks.
    pub users_percent: u32,
    /// How often, in percent, a call is nonsense: bad names, wrong kinds, objects that are gone.
    pub nonsense_percent: u32,
    /// The filesystem starts full, with about this many bytes left.
    pub room: Option<u64>,
}

impl Profile {
    /// All workloads.
    pub const ALL: &[Profile] = &[
        Profile {
            name: "mixed",
            names: 30,
            data: 30,
            attributes: 10,
            looks: 20,
            syncs: 10,
            name_count: 12,
            file_bytes: 256 << 10,
            users_percent: 30,
            nonsense_percent: 5,
            room: None,
        },
        Profile {
            name: "names",
            names: 70,
            data: 5,
            attributes: 5,
            looks: 15,
            syncs: 5,
            name_count: 60,
            file_bytes: 8 << 10,
            users_percent: 20,
            nonsense_percent: 5,
            room: None,
        },
        Profile {
            name: "data",
            names: 8,
            data: 60,
            attributes: 2,
            looks: 20,
            syncs: 10,
            name_count: 5,
            file_bytes: 2 << 20,
            users_percent: 0,
            nonsense_percent: 1,
            room: None,
        },
        Profile {
            name: "rules",
            names: 40,
            data: 10,
            attributes: 35,
            looks: 15,
            syncs: 0,
            name_count: 8,
            file_bytes: 16 << 10,
            users_percent: 70,
            nonsense_percent: 15,
            room: None,
        },
    ];

    /// A filesystem at the edge of full: much grows, much is cut and removed.
    pub const FULL: &Profile = &Profile {
        name: "full",
        names: 30,
        data: 60,
        attributes: 2,
        looks: 3,
        syncs: 8,
        name_count: 10,
        file_bytes: 512 << 10,
        users_percent: 0,
        nonsense_percent: 1,
        room: Some(2 << 20),
    };

    /// The workload called `name`.
    pub fn named(name: &str) -> Option<&'static Profile> {
        Profile::ALL.iter().chain([Profile::FULL]).find(|profile| profile.name == name)
    }

    /// As this one, for crash worlds: content is only changed by root, whose writes leave the mode alone.
    pub fn for_crashes(&self) -> Profile {
        Profile { users_percent: 0, nonsense_percent: self.nonsense_percent.min(2), ..self.clone() }
    }
}

/// An object as the generator knows it.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Its slot.
    pub slot: Slot,
    /// Its kind.
    pub kind: Kind,
    /// Whether it still has a name.
    pub alive: bool,
}

/// Draws steps.
pub struct Generator {
    random: Random,
    profile: Profile,
    next: u32,
    stride: u32,
}

impl Generator {
    /// A generator of `profile`'s steps.
    pub fn new(profile: Profile, random: Random) -> Generator {
        Generator { random, profile, next: 0, stride: 1 }
    }

    /// The same with steps numbered `first`, `first + stride` and so on, so that several share one set of slots.
    pub fn numbered(self, first: u32, stride: u32) -> Generator {
        Generator { next: first, stride, ..self }
    }

    /// The next step, given the objects made so far; the first is the home directory.
    pub fn step(&mut self, known: &[Known]) -> Step {
        let number = self.next;
        self.next += self.stride;
        let who = match self.random.percent(self.profile.users_percent) {
            true => *self.random.pick(&[Who::Alice, Who::Bob]),
            false => Who::Root,
        };
        let Profile { names, data, attributes, looks, syncs, .. } = self.profile;
        let mut draw = self.random.below(names + data + attributes + looks + syncs);
        let mut falls = |weight: u64| {
            let hit = draw < weight;
            draw = draw.wrapping_sub(weight);
            hit
        };
        let op = if falls(names) {
            self.on_names(known)
        } else if falls(data) {
            self.on_data(known)
        } else if falls(attributes) {
            self.on_attributes(known)
        } else if falls(looks) {
            self.look(known)
        } else {
            self.sync(known)
        };
        Step { number, who, op }
    }

    fn nonsense(&mut self) -> bool {
        self.random.percent(self.profile.nonsense_percent)
    }

    /// An object of a kind; sometimes of any kind, or gone.
    fn object(&mut self, known: &[Known], fits: impl Fn(Kind) -> bool) -> Slot {
        let nonsense = self.nonsense();
        let fitting: Vec<Slot> =
            known.iter().filter(|k| nonsense || (k.alive && fits(k.kind))).map(|k| k.slot).collect();
        if fitting.is_empty() { Slot::HOME } else { *self.random.pick(&fitting) }
    }

    fn dir(&mut self, known: &[Known]) -> Slot {
        // The home directory is busy, as the top of a tree is.
        if self.random.percent(35) { Slot::HOME } else { self.object(known, |kind| kind == Kind::Dir) }
    }

    fn file(&mut self, known: &[Known]) -> Slot {
        self.object(known, |kind| kind == Kind::File)
    }

    fn any(&mut self, known: &[Known]) -> Slot {
        self.object(known, |_| true)
    }

    fn name(&mut self) -> Name {
        if self.nonsense() {
            let odd: [Name; 7] = [
                b".".to_vec(),
                b"..".to_vec(),
                Vec::new(),
                b"a/b".to_vec(),
                b"nul\0".to_vec(),
                vec![b'l'; NAME_MAX],
                vec![b'l'; NAME_MAX + 1],
            ];
            return self.random.pick(&odd).clone();
        }
        let number = self.random.below(self.profile.name_count);
        // Names of different lengths, so that entries of a directory differ in size.
        match number % 5 {
            0 => format!("n{number}-{}", "x".repeat((number * 13 % 200) as usize)).into_bytes(),
            _ => format!("n{number}").into_bytes(),
        }
    }

    fn new_attributes(&mut self) -> SetAttr {
        let mode = *self.random.pick(&[0o777, 0o755, 0o700, 0o644, 0o666, 0o1777, 0o2775, 0o4755, 0o000]);
        SetAttr { mode: (!self.random.percent(10)).then_some(mode), ..SetAttr::default() }
    }

    fn on_names(&mut self, known: &[Known]) -> Op {
        let (dir, name) = (self.dir(known), self.name());
        match self.random.below(100) {
            0..30 => {
                let how = match self.random.below(4) {
                    0 => CreateMode::Unchecked,
                    1 => CreateMode::Exclusive([self.random.below(2) as u8; 8]),
                    _ => CreateMode::Guarded,
                };
                let mut set = self.new_attributes();
                set.size = self.random.percent(10).then(|| self.random.below(self.profile.file_bytes));
                Op::Create { dir, name, how, set }
            }
            30..45 => Op::Make { dir, name, made: Made::Dir, set: self.new_attributes() },
            45..52 => {
                let made = match self.random.below(3) {
                    0 => Made::Char(self.random.below(300) as u32, self.random.below(300) as u32),
                    1 => Made::Fifo,
                    _ => Made::Symlink(vec![b't'; 1 + self.random.index(200)]),
                };
                Op::Make { dir, name, made, set: self.new_attributes() }
            }
            52..60 => Op::Link { object: self.object(known, |kind| kind != Kind::Dir), dir, name },
            60..74 => Op::Remove { dir, name },
            74..82 => Op::Rmdir { dir, name },
            _ => {
                let other = if self.random.percent(40) { dir } else { self.dir(known) };
                Op::Rename { from: (dir, name), to: (other, self.name()) }
            }
        }
    }

    fn offset(&mut self) -> u64 {
        let offset = self.random.below(self.profile.file_bytes);
        match self.random.below(4) {
            0 => offset,
            1 => 0,
            _ => offset & !4095,
        }
    }

    fn length(&mut self) -> u64 {
        match self.random.below(6) {
            0 => 1 + self.random.below(100),
            1 => 512,
            2 => 1 + self.random.below(20_000),
            3 => 65_536.min(self.profile.file_bytes),
            _ => 4096,
        }
    }

    fn stability(&mut self) -> Stability {
        if self.profile.syncs == 0 {
            return Stability::Unstable;
        }
        let unstable = Stability::Unstable;
        *self.random.pick(&[unstable, unstable, unstable, unstable, Stability::DataSync, Stability::FileSync])
    }

    fn on_data(&mut self, known: &[Known]) -> Op {
        if !known.iter().any(|k| k.alive && k.kind == Kind::File) {
            let set = SetAttr { mode: Some(0o666), ..SetAttr::default() };
            return Op::Create { dir: self.dir(known), name: self.name(), how: CreateMode::Guarded, set };
        }
        let (file, offset, len) = (self.file(known), self.offset(), self.length());
        match self.random.below(100) {
            0..75 => {
                let offset = if self.nonsense() { FILE_SIZE_MAX - 100 } else { offset };
                let (fill, stability) = (self.random.next_u64(), self.stability());
                Op::Write { file, offset, len: len as u32, fill, stability }
            }
            75..88 => {
                let size = if self.nonsense() { u64::MAX } else { offset };
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                Op::SetAttr { object: file, set, guard: Guard::No }
            }
            _ => Op::Punch { file, offset, len: if self.random.percent(10) { u64::MAX } else { len * 3 } },
        }
    }

    fn xattr_name(&mut self) -> Name {
        let names: [&[u8]; 7] =
            [b"user.a", b"user.b", b"user.longer-name", b"trusted.t", b"security.s", b"system.x", b"user."];
        let usual = if self.nonsense() { names.len() } else { 5 };
        names[self.random.index(usual)].to_vec()
    }

    fn on_attributes(&mut self, known: &[Known]) -> Op {
        let object = self.any(known);
        match self.random.below(100) {
            0..55 => {
                let mut set = SetAttr::default();
                let time = |random: &mut Random| match random.below(2) {
                    0 => SetTime::Now,
                    _ => SetTime::To(Timestamp(random.below(1_000_000))),
                };
                if self.random.percent(40) {
                    set.mode = self.new_attributes().mode;
                }
                if self.random.percent(20) {
                    set.uid = Some(*self.random.pick(&[0, 1000, 1001]));
                }
                if self.random.percent(20) {
                    set.gid = Some(*self.random.pick(&[0, 50, 1000, 1001]));
                }
                if self.random.percent(25) {
                    set.mtime = Some(time(&mut self.random));
                }
                if self.random.percent(15) {
                    set.atime = Some(time(&mut self.random));
                }
                let guard = *self.random.pick(&[Guard::No, Guard::No, Guard::No, Guard::Right, Guard::Wrong]);
                Op::SetAttr { object, set, guard }
            }
            55..85 => {
                let (name, fill) = (self.xattr_name(), self.random.next_u64());
                let len = if self.nonsense() { XATTR_VALUE_MAX + 1 } else { self.random.index(300) };
                let how = *self.random.pick(&[
                    XattrMode::Either,
                    XattrMode::Either,
                    XattrMode::Create,
                    XattrMode::Replace,
                ]);
                Op::SetXattr { object, name, len, fill, how }
            }
            _ => Op::RemoveXattr { object, name: self.xattr_name() },
        }
    }

    fn look(&mut self, known: &[Known]) -> Op {
        match self.random.below(100) {
            0..20 => Op::Lookup { dir: self.dir(known), name: self.name() },
            20..40 => Op::Readdir { dir: self.dir(known), page: 1 + self.random.index(10) },
            40..45 => Op::Readlink { object: self.object(known, |kind| kind == Kind::Symlink) },
            45..55 => Op::GetAttr { object: self.any(known) },
            55..85 => {
                let (offset, len) = (self.offset(), self.length() as u32 * 4);
                Op::Read { file: self.file(known), offset, len }
            }
            85..92 => Op::Segments { file: self.file(known), offset: self.offset(), len: self.length() * 16 },
            92..95 => Op::GetXattr { object: self.any(known), name: self.xattr_name() },
            95..98 => Op::ListXattr { object: self.any(known) },
            _ => Op::Statfs,
        }
    }

    fn sync(&mut self, known: &[Known]) -> Op {
        match self.random.below(4) {
            0 => Op::Durable,
            1 => Op::Commit { file: self.file(known), offset: self.offset() & !4095, len: 65_536 },
            _ => Op::Commit { file: self.file(known), offset: 0, len: 0 },
        }
    }
}
