//! The kernel's filesystems through system calls, and a bare device.

use super::{BLOCK, DEPTH, Files, PER_DIR, block};
use crate::disk;
use crate::random::Random;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of a write when a file is prepared.
const LARGE: usize = 1 << 20;

pub(super) struct Posix {
    dir: PathBuf,
}

impl Posix {
    pub(super) fn open(dir: &Path) -> Posix {
        Posix { dir: dir.to_owned() }
    }

    fn file(&self) -> PathBuf {
        self.dir.join("overwritten")
    }
}

impl Files for Posix {
    fn prepare(&mut self, bytes: u64) {
        let file = File::create(self.file()).unwrap();
        for offset in (0..bytes).step_by(LARGE) {
            file.write_all_at(&vec![1; LARGE], offset).unwrap();
        }
        file.sync_all().unwrap();
    }

    fn overwrite(&mut self, bytes: u64, count: u64, random: &mut Random) {
        let file = OpenOptions::new().write(true).open(self.file()).unwrap();
        for _ in 0..count {
            let at = random.below(bytes / BLOCK as u64) * BLOCK as u64;
            file.write_all_at(&block(random), at).unwrap();
        }
        file.sync_all().unwrap();
    }

    fn overwrite_direct(&mut self, bytes: u64, count: u64) -> bool {
        let status = Command::new("fio")
            .args([
                "--name=direct",
                "--rw=randwrite",
                "--bs=4k",
                "--direct=1",
                "--ioengine=libaio",
                "--thread",
            ])
            .args(["--norandommap", "--gtod_reduce=1", "--end_fsync=1", "--output=/dev/null"])
            .arg(format!("--iodepth={DEPTH}"))
            .arg(format!("--filename={}", self.file().display()))
            .arg(format!("--size={bytes}"))
            .arg(format!("--io_size={}", count * BLOCK as u64))
            .status()
            .expect("fio is there");
        assert!(status.success());
        true
    }

    fn synced(&mut self, bytes: u64, count: u64, random: &mut Random) {
        let file = OpenOptions::new().write(true).open(self.file()).unwrap();
        for _ in 0..count {
            let at = random.below(bytes / BLOCK as u64) * BLOCK as u64;
            file.write_all_at(&block(random), at).unwrap();
            file.sync_data().unwrap();
        }
    }

    fn create(&mut self, name: &str, count: u64) {
        let mut random = Random(3);
        let top = self.dir.join(name);
        std::fs::create_dir(&top).unwrap();
        for number in 0..count {
            let dir = top.join(format!("d{}", number / PER_DIR));
            if number % PER_DIR == 0 {
                std::fs::create_dir(&dir).unwrap();
            }
            let file = File::create_new(dir.join(format!("file{number}"))).unwrap();
            file.write_all_at(&block(&mut random), 0).unwrap();
        }
        self.sync();
    }

    fn create_synced(&mut self, name: &str, count: u64) {
        let dir = self.dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        for number in 0..count {
            let file = File::create_new(dir.join(format!("file{number}"))).unwrap();
            file.write_all_at(&[1; BLOCK], 0).unwrap();
            file.sync_all().unwrap();
        }
    }

    fn sync(&mut self) {
        rustix::fs::syncfs(File::open(&self.dir).unwrap()).unwrap();
    }
}

/// A bare device: a block written and flushed, one behind the other in a region that is written already.
pub(super) struct Raw {
    disk: disk::Inline,
}

impl Raw {
    /// Bytes of the region.
    const REGION: u64 = 64 << 20;

    pub(super) fn open(device: &Path) -> Raw {
        let disk = disk::Inline::open(device);
        for at in (0..Raw::REGION).step_by(BLOCK) {
            disk.write_now(at, &block(&mut Random(at)));
        }
        disk.flush_now();
        Raw { disk }
    }
}

impl Files for Raw {
    fn commit(&mut self, count: u64, random: &mut Random) {
        for n in 0..count {
            self.disk.write_now(n * BLOCK as u64 % Raw::REGION, &block(random));
            self.disk.flush_now();
        }
    }

    fn synced(&mut self, _: u64, count: u64, random: &mut Random) {
        self.commit(count, random);
    }

    fn prepare(&mut self, _: u64) {}
    fn overwrite(&mut self, _: u64, _: u64, _: &mut Random) {
        panic!("kind raw has phases commit and sync: a device has no cache of its own")
    }
    fn overwrite_direct(&mut self, _: u64, _: u64) -> bool {
        false
    }
    fn create(&mut self, _: &str, _: u64) {
        panic!("kind raw has phases commit and sync: a device has no files")
    }
    fn create_synced(&mut self, _: &str, _: u64) {
        panic!("kind raw has phases commit and sync: a device has no files")
    }
    fn sync(&mut self) {
        self.disk.flush_now();
    }
}

/// Mounts `device` on `dir` and lists a directory; how many entries it has.
pub(super) fn mount(device: &Path, dir: &Path) -> usize {
    let status = Command::new("mount").arg(device).arg(dir).status().expect("mount is there");
    assert!(status.success());
    std::fs::read_dir(dir.join("fill/d0")).unwrap().count()
}
