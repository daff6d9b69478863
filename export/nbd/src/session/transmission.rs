//! Whether a request is admitted, and as what work: the checks of the transmission phase in one place.

use super::Range;
use crate::wire::{Command, CommandFlags, Errno, Request, TransmissionFlags};
use moraine_fs::planted::{self, Fault};

/// The longest READ or WRITE, in bytes. Clients ask 32 MiB without being told so; it is served in pieces.
pub const REQUEST_LEN_MAX: u32 = 32 << 20;
/// A longer WRITE is no client's mistake: its payload is not even drained.
const PAYLOAD_DRAIN_MAX: u32 = 256 << 20;
/// The longest READ in a single chunk with DF, in bytes. At least 64 KiB are demanded.
const SINGLE_CHUNK_MAX: u32 = 1 << 20;

/// What was agreed on when transmission began; constant for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Bytes of the volume.
    pub(crate) size: u64,
    /// What it can do.
    pub(crate) flags: TransmissionFlags,
    /// Whether replies come in chunks.
    pub(crate) structured: bool,
    /// Whether block status may be asked for `base:allocation`.
    pub(crate) allocation: bool,
}

/// Whether a change must be durable when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// At the next flush.
    Later,
    /// Before the answer.
    Now,
}

/// Whether zeroes may be a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provision {
    /// They may.
    MayBeHole,
    /// The space stays taken.
    Keep,
}

/// How many extents the client wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extents {
    /// Only the first.
    One,
    /// As many as fit.
    Many,
}

/// What an admitted request is to do. Its range lies within the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Send the range in as many chunks as it pleases.
    ReadChunks(Range),
    /// Send the range in one chunk (or as a simple reply).
    ReadWhole(Range),
    /// Write the payload.
    Write(Range, Durability),
    /// Make the range read as zeroes.
    Zero(Range, Provision, Durability),
    /// Make durable whatever was answered.
    Flush,
    /// Read the range into the cache.
    Cache(Range),
    /// Tell data from holes.
    Status(Range, Extents),
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is done.
    Do(Work),
    /// It is answered with an error, after its payload was thrown away.
    Refuse(Errno),
    /// The client says good-bye: finish what is in work, send nothing more, close.
    Finish,
    /// The client is out of its mind: close at once.
    HangUp,
}

impl Terms {
    /// What an export of `size` bytes can do on a connection.
    pub(crate) fn flags(read_only: bool, structured: bool) -> TransmissionFlags {
        use TransmissionFlags as F;
        let mut flags = F::HAS_FLAGS | F::SEND_FLUSH | F::SEND_FUA | F::SEND_TRIM | F::SEND_WRITE_ZEROES;
        flags |= F::CAN_MULTI_CONN | F::SEND_CACHE | F::SEND_FAST_ZERO;
        flags.set(F::READ_ONLY, read_only);
        flags.set(F::SEND_DF, structured);
        flags
    }

    /// Decides about one request.
    pub(crate) fn admit(&self, request: &Request) -> Verdict {
        let Some(command) = request.command else { return Verdict::Refuse(Errno::Inval) };
        match command {
            Command::Disconnect => return Verdict::Finish,
            Command::Write if request.len > PAYLOAD_DRAIN_MAX => return Verdict::HangUp,
            _ => {}
        }
        match self.work(command, request) {
            Ok(work) => Verdict::Do(work),
            Err(error) => Verdict::Refuse(error),
        }
    }

    fn work(&self, command: Command, request: &Request) -> Result<Work, Errno> {
        use CommandFlags as F;
        let known = match command {
            // FUA means nothing to commands that change nothing, but clients may set it on any.
            Command::Read if self.structured => F::FUA | F::DF,
            Command::WriteZeroes => F::FUA | F::NO_HOLE | F::FAST_ZERO,
            Command::BlockStatus => F::FUA | F::REQ_ONE,
            _ => F::FUA,
        };
        if !known.contains(request.flags) {
            return Err(Errno::Inval);
        }
        let has = |flag| request.flags.contains(flag);
        let durability =
            if has(F::FUA) && !planted::is(Fault::FuaIgnored) { Durability::Now } else { Durability::Later };
        let range = |beyond_end: Errno| {
            let end = request.offset.checked_add(u64::from(request.len));
            let within = end.is_some_and(|end| end <= self.size);
            let range = Range { offset: request.offset, len: u64::from(request.len) };
            within.then_some(range).ok_or(beyond_end)
        };
        let bounded = |longest: u32, too_long: Errno| {
            if request.len <= longest { Ok(()) } else { Err(too_long) }
        };
        match command {
            Command::Read => {
                bounded(REQUEST_LEN_MAX, Errno::Inval)?;
                let range = range(Errno::Inval)?;
                if self.structured && !has(F::DF) {
                    return Ok(Work::ReadChunks(range));
                }
                if has(F::DF) {
                    bounded(SINGLE_CHUNK_MAX, Errno::Overflow)?;
                }
                Ok(Work::ReadWhole(range))
            }
            Command::Write => {
                self.writable()?;
                bounded(REQUEST_LEN_MAX, Errno::Inval)?;
                Ok(Work::Write(range(Errno::NoSpace)?, durability))
            }
            Command::WriteZeroes => {
                self.writable()?;
                let range = range(Errno::NoSpace)?;
                match (has(F::NO_HOLE), has(F::FAST_ZERO)) {
                    (true, true) => Err(Errno::NotSupported),
                    (true, false) => Ok(Work::Zero(range, Provision::Keep, durability)),
                    (false, _) => Ok(Work::Zero(range, Provision::MayBeHole, durability)),
                }
            }
            Command::Trim => {
                self.writable()?;
                Ok(Work::Zero(range(Errno::Inval)?, Provision::MayBeHole, durability))
            }
            Command::Flush => Ok(Work::Flush),
            Command::Cache => Ok(Work::Cache(range(Errno::Inval)?)),
            Command::BlockStatus => {
                if !self.allocation || request.len == 0 {
                    return Err(Errno::Inval);
                }
                let extents = if has(F::REQ_ONE) { Extents::One } else { Extents::Many };
                Ok(Work::Status(range(Errno::Inval)?, extents))
            }
            Command::Disconnect => unreachable!("decided before"),
        }
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.flags.contains(TransmissionFlags::READ_ONLY) { Err(Errno::Perm) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Cookie;

    const SIZE: u64 = 1 << 30;

    fn terms(read_only: bool, structured: bool) -> Terms {
        let flags = Terms::flags(read_only, structured);
        Terms { size: SIZE, flags, structured, allocation: structured }
    }

    fn request(command: Command, flags: CommandFlags, offset: u64, len: u32) -> Request {
        Request { flags, command: Some(command), cookie: Cookie(1), offset, len }
    }

    fn ranged() -> impl Iterator<Item = Command> {
        Command::ALL.into_iter().filter(|c| !matches!(c, Command::Disconnect | Command::Flush))
    }

    #[test]
    fn nbd_12_each_command_has_its_error_past_the_end() {
        let none = CommandFlags::empty();
        for command in ranged() {
            let wanted = match command {
                Command::Write | Command::WriteZeroes => Errno::NoSpace,
                _ => Errno::Inval,
            };
            for (offset, len) in
                [(SIZE, 512), (SIZE - 511, 512), (u64::MAX, 1), (u64::MAX - 511, 512), (1 << 63, 4096)]
            {
                let verdict = terms(false, true).admit(&request(command, none, offset, len));
                assert_eq!(verdict, Verdict::Refuse(wanted), "{command:?} {offset} {len}");
            }
            let last = terms(false, true).admit(&request(command, none, SIZE - 512, 512));
            assert!(matches!(last, Verdict::Do(_)), "{command:?}");
        }
    }

    #[test]
    fn nbd_12_flags_a_command_does_not_know_are_refused() {
        for structured in [false, true] {
            for command in Command::ALL.into_iter().filter(|c| *c != Command::Disconnect) {
                for bit in 0..16 {
                    let flag = CommandFlags::from_bits_retain(1 << bit);
                    let known = match (command, bit) {
                        (_, 0) => true,
                        (Command::Read, 2) => structured,
                        (Command::WriteZeroes, 1 | 4) => true,
                        (Command::BlockStatus, 3) => structured,
                        _ => false,
                    };
                    let verdict = terms(false, structured).admit(&request(command, flag, 0, 512));
                    let without_context = command == Command::BlockStatus && !structured;
                    assert_eq!(
                        verdict == Verdict::Refuse(Errno::Inval),
                        !known || without_context,
                        "{command:?} {flag:?} structured={structured}"
                    );
                }
            }
        }
        let unknown = Request { command: None, ..request(Command::Read, CommandFlags::empty(), 0, 0) };
        assert_eq!(terms(false, false).admit(&unknown), Verdict::Refuse(Errno::Inval));
    }

    #[test]
    fn nbd_12_a_read_only_export_refuses_every_change() {
        for command in ranged() {
            let verdict = terms(true, true).admit(&request(command, CommandFlags::empty(), 0, 512));
            let changes = matches!(command, Command::Write | Command::WriteZeroes | Command::Trim);
            assert_eq!(verdict == Verdict::Refuse(Errno::Perm), changes, "{command:?}");
        }
        assert!(Terms::flags(true, false).contains(TransmissionFlags::READ_ONLY));
    }

    #[test]
    fn nbd_04_long_requests_are_served_and_absurd_ones_refused() {
        let none = CommandFlags::empty();
        for command in [Command::Read, Command::Write] {
            let served = terms(false, true).admit(&request(command, none, 0, REQUEST_LEN_MAX));
            assert!(matches!(served, Verdict::Do(_)));
            let refused = terms(false, true).admit(&request(command, none, 0, REQUEST_LEN_MAX + 1));
            assert_eq!(refused, Verdict::Refuse(Errno::Inval));
        }
        let flood = terms(false, true).admit(&request(Command::Write, none, 0, u32::MAX));
        assert_eq!(flood, Verdict::HangUp);
    }

    #[test]
    fn nbd_09_a_read_that_must_not_be_cut_is_whole_or_refused() {
        let df = CommandFlags::DF;
        let read = |len| terms(false, true).admit(&request(Command::Read, df, 0, len));
        assert_eq!(read(65536), Verdict::Do(Work::ReadWhole(Range { offset: 0, len: 65536 })));
        assert_eq!(read(SINGLE_CHUNK_MAX + 1), Verdict::Refuse(Errno::Overflow));
        let simple =
            terms(false, false).admit(&request(Command::Read, CommandFlags::empty(), 0, REQUEST_LEN_MAX));
        assert!(matches!(simple, Verdict::Do(Work::ReadWhole(_))));
    }

    #[test]
    fn nbd_11_zeroes_may_be_as_long_as_lengths_go() {
        let terms = Terms { size: 1 << 40, ..terms(false, true) };
        let len = u32::MAX - 4095;
        let zero = |flags| terms.admit(&request(Command::WriteZeroes, flags, 0, len));
        let range = Range { offset: 0, len: u64::from(len) };
        let hole = Verdict::Do(Work::Zero(range, Provision::MayBeHole, Durability::Later));
        let keep = Verdict::Do(Work::Zero(range, Provision::Keep, Durability::Later));
        assert_eq!(zero(CommandFlags::empty()), hole);
        assert_eq!(zero(CommandFlags::FAST_ZERO), hole);
        assert_eq!(zero(CommandFlags::NO_HOLE), keep);
        assert_eq!(
            zero(CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO),
            Verdict::Refuse(Errno::NotSupported)
        );
    }

    #[test]
    fn nbd_13_good_bye_is_understood_with_any_fields() {
        let bye = request(Command::Disconnect, CommandFlags::from_bits_retain(0xffff), 7, 7);
        assert_eq!(terms(true, true).admit(&bye), Verdict::Finish);
    }
}
