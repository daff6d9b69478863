//! Submission queue entries (NVMe Base 2.0 §3.3.3.1, §5; NVM Command Set 1.0 §3.2). Built as eight 64-bit words.

use super::prp::Prp;

/// A 64-byte command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command(pub(crate) [u64; 8]);

const ADMIN_CREATE_SQ: u8 = 0x01;
const ADMIN_CREATE_CQ: u8 = 0x05;
const ADMIN_IDENTIFY: u8 = 0x06;
const ADMIN_ABORT: u8 = 0x08;
const ADMIN_SET_FEATURES: u8 = 0x09;

const NVM_FLUSH: u8 = 0x00;
const NVM_WRITE: u8 = 0x01;
const NVM_READ: u8 = 0x02;
const NVM_WRITE_ZEROES: u8 = 0x08;
const NVM_DATASET_MANAGEMENT: u8 = 0x09;

/// Force unit access, in double word 12.
const FUA: u32 = 1 << 30;
/// Deallocate, in double word 11 of Dataset Management.
const DEALLOCATE: u32 = 1 << 2;
const FEATURE_QUEUES: u32 = 7;

/// What Identify is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identify {
    Controller,
    Namespace(u32),
    /// Active namespaces with ids above this one.
    NamespacesAfter(u32),
}

fn words(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

impl Command {
    fn new(opcode: u8, id: u16, namespace: u32) -> Command {
        Command([words(u32::from(opcode) | u32::from(id) << 16, namespace), 0, 0, 0, 0, 0, 0, 0])
    }

    fn data(mut self, prp: Prp) -> Command {
        self.0[3] = prp.first;
        self.0[4] = prp.second;
        self
    }

    /// Double words 10 and 11.
    fn cdw10(mut self, low: u32, high: u32) -> Command {
        self.0[5] = words(low, high);
        self
    }

    /// Double word 12.
    fn cdw12(mut self, low: u32) -> Command {
        self.0[6] = words(low, 0);
        self
    }

    /// Identify into the page at `bus`.
    pub(crate) fn identify(id: u16, what: Identify, bus: u64) -> Command {
        let (namespace, cns) = match what {
            Identify::Namespace(namespace) => (namespace, 0),
            Identify::Controller => (0, 1),
            Identify::NamespacesAfter(namespace) => (namespace, 2),
        };
        Command::new(ADMIN_IDENTIFY, id, namespace).data(Prp { first: bus, second: 0 }).cdw10(cns, 0)
    }

    /// Asks for one I/O submission and one completion queue.
    pub(crate) fn set_queue_count(id: u16) -> Command {
        Command::new(ADMIN_SET_FEATURES, id, 0).cdw10(FEATURE_QUEUES, 0)
    }

    /// Creates completion queue `queue`, contiguous at `bus`, on interrupt `vector` if there is one.
    pub(crate) fn create_completion_queue(
        id: u16,
        queue: u16,
        entries: u16,
        bus: u64,
        vector: Option<u16>,
    ) -> Command {
        let interrupt = vector.map_or(0, |v| u32::from(v) << 16 | 1 << 1);
        Command::new(ADMIN_CREATE_CQ, id, 0)
            .data(Prp { first: bus, second: 0 })
            .cdw10(u32::from(entries - 1) << 16 | u32::from(queue), interrupt | 1)
    }

    /// Creates submission queue `queue`, contiguous at `bus`, completing into the queue of the same number.
    pub(crate) fn create_submission_queue(id: u16, queue: u16, entries: u16, bus: u64) -> Command {
        Command::new(ADMIN_CREATE_SQ, id, 0)
            .data(Prp { first: bus, second: 0 })
            .cdw10(u32::from(entries - 1) << 16 | u32::from(queue), u32::from(queue) << 16 | 1)
    }

    /// Asks that command `victim` of submission queue `queue` be given up.
    pub(crate) fn abort(id: u16, queue: u16, victim: u16) -> Command {
        Command::new(ADMIN_ABORT, id, 0).cdw10(u32::from(victim) << 16 | u32::from(queue), 0)
    }

    /// Flush of one namespace.
    pub(crate) fn flush(id: u16, namespace: u32) -> Command {
        Command::new(NVM_FLUSH, id, namespace)
    }

    /// Read of `blocks` ≤ 65536 blocks from `lba`.
    pub(crate) fn read(id: u16, namespace: u32, lba: u64, blocks: u32, prp: Prp) -> Command {
        Command::new(NVM_READ, id, namespace).data(prp).range(lba, blocks, 0)
    }

    /// Write, durable on completion if `force_unit_access`.
    pub(crate) fn write(
        id: u16,
        namespace: u32,
        lba: u64,
        blocks: u32,
        prp: Prp,
        fua: moraine_platform::Fua,
    ) -> Command {
        let flags = if fua == moraine_platform::Fua::Yes { FUA } else { 0 };
        Command::new(NVM_WRITE, id, namespace).data(prp).range(lba, blocks, flags)
    }

    /// Write Zeroes. Blocks are not deallocated, so that their space stays theirs.
    pub(crate) fn write_zeroes(id: u16, namespace: u32, lba: u64, blocks: u32) -> Command {
        Command::new(NVM_WRITE_ZEROES, id, namespace).range(lba, blocks, 0)
    }

    /// Deallocates the one range that [`dataset_range`] described, stored at `bus`.
    pub(crate) fn deallocate(id: u16, namespace: u32, bus: u64) -> Command {
        Command::new(NVM_DATASET_MANAGEMENT, id, namespace)
            .data(Prp { first: bus, second: 0 })
            .cdw10(0, DEALLOCATE)
    }

    fn range(self, lba: u64, blocks: u32, flags: u32) -> Command {
        assert!((1..=1 << 16).contains(&blocks), "a command covers 1 to 65536 blocks");
        self.cdw10(lba as u32, (lba >> 32) as u32).cdw12((blocks - 1) | flags)
    }
}

/// One range of Dataset Management, as two words.
pub(crate) fn dataset_range(lba: u64, blocks: u32) -> [u64; 2] {
    [words(0, blocks), lba]
}
