//! Looking at all disks, and what is to be done about them. Nothing here writes.
//!
//! The rule that keeps other people's data: a disk is made a member only if it is entirely blank, or one of ours whose
//! making did not end, only if the command line says so, and only if no disk shows any trace of another pool; everything
//! else is left alone and named.

use crate::BlankDisks;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use moraine_fs::superblock::{Found, probe};
use moraine_platform::BlockDevice;

/// A disk and what was found on it.
#[derive(Clone, Debug)]
pub struct Disk {
    /// As people find it.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What it holds.
    pub found: Found,
}

/// What to do, with the positions of the disks to do it to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Mount the pool these disks belong to.
    Mount(Vec<usize>),
    /// Make a pool of these disks, which hold nothing, then mount it.
    Format(Vec<usize>),
    /// Serve nothing.
    Idle,
}

/// Looks at every disk.
pub async fn survey(devices: &[Rc<dyn BlockDevice>]) -> Vec<Disk> {
    let mut disks = Vec::new();
    for device in devices {
        let found = probe(&**device).await;
        disks.push(Disk { name: device.info().name.clone(), size: device.info().size, found });
    }
    disks
}

/// Decides what to do about disks like these.
pub fn plan(disks: &[Disk], blank: BlankDisks) -> Plan {
    let which = |wanted: &dyn Fn(&Found) -> bool| -> Vec<usize> {
        (0..disks.len()).filter(|i| wanted(&disks[*i].found)).collect()
    };
    let members = which(&|found| matches!(found, Found::Ours(_)));
    // One that was never finished was never mounted either: nobody has put anything into it.
    let unfinished = which(&|found| matches!(found, Found::Ours(sb) if sb.is_being_made()));
    if members != unfinished || blank == BlankDisks::Leave && !members.is_empty() {
        return Plan::Mount(members);
    }
    // A disk that was or may have been a member means that there is a pool, if not one that can be opened here.
    let traces = which(&|found| match found {
        Found::OtherLayout(_) | Found::UnknownFeatures(_) | Found::Damaged(_) | Found::Unreadable(_) => true,
        Found::Ours(_) | Found::Blank | Found::Foreign(_) | Found::TooSmall => false,
    });
    let free = which(&|found| *found == Found::Blank || matches!(found, Found::Ours(_)));
    if blank == BlankDisks::Format && traces.is_empty() && !free.is_empty() {
        return Plan::Format(free);
    }
    if members.is_empty() { Plan::Idle } else { Plan::Mount(members) }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.name, Size(self.size), self.found)
    }
}

/// A size as people read it.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut unit = 0;
        let mut tenths = u128::from(self.0) * 10;
        while tenths >= 10_240 && unit + 1 < UNITS.len() {
            tenths /= 1024;
            unit += 1;
        }
        match tenths % 10 {
            0 => write!(f, "{} {}", tenths / 10, UNITS[unit]),
            tenth => write!(f, "{}.{tenth} {}", tenths / 10, UNITS[unit]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use moraine_platform::IoError;

    fn disks(found: &[Found]) -> Vec<Disk> {
        let disk = |found: &Found| Disk { name: "vda".into(), size: 0, found: found.clone() };
        found.iter().map(disk).collect()
    }

    #[test]
    fn only_blank_disks_are_formatted_and_only_on_demand() {
        let blank_and_foreign = disks(&[Found::Foreign("ext4"), Found::Blank, Found::TooSmall, Found::Blank]);
        assert_eq!(plan(&blank_and_foreign, BlankDisks::Leave), Plan::Idle);
        assert_eq!(plan(&blank_and_foreign, BlankDisks::Format), Plan::Format([1, 3].into()));
        assert_eq!(plan(&disks(&[Found::Foreign("ext4")]), BlankDisks::Format), Plan::Idle);
        assert_eq!(plan(&[], BlankDisks::Format), Plan::Idle);
    }

    #[test]
    fn no_disk_is_formatted_beside_the_traces_of_a_pool() {
        for trace in
            [Found::OtherLayout("1-x".into()), Found::UnknownFeatures(4), Found::Unreadable(IoError::Media)]
        {
            let found = disks(&[Found::Blank, trace.clone()]);
            assert_eq!(plan(&found, BlankDisks::Format), Plan::Idle, "{trace}");
        }
    }

    #[test]
    fn a_disk_is_described_in_one_line() {
        let disk = Disk { name: "nvme0n1".into(), size: (21 << 30) / 2, found: Found::Blank };
        assert_eq!(disk.to_string(), "nvme0n1 (10.5 GiB): blank");
        assert_eq!(Size(512).to_string(), "512 B");
        assert_eq!(Size(8 << 30).to_string(), "8 GiB");
        assert_eq!(Size(u64::MAX).to_string(), "16383.9 PiB");
    }
}
