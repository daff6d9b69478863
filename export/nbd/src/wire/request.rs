//! Requests of the transmission phase (specification: "Request message", "Request types").

use super::fields::Fields;

/// Opens every request.
const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Bytes of a request before its payload.
pub const REQUEST_LEN: usize = 28;

bitflags::bitflags! {
    /// Flags of a request, unknown ones kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// What this request changes is durable when it is answered.
        const FUA = 1;
        /// The range must stay provisioned.
        const NO_HOLE = 1 << 1;
        /// Answer a read in one chunk.
        const DF = 1 << 2;
        /// One extent is enough, and none past the request's end.
        const REQ_ONE = 1 << 3;
        /// Fail at once if zeroing is no faster than writing.
        const FAST_ZERO = 1 << 4;
        const _ = !0;
    }
}

/// Commands this server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Read.
    Read = 0,
    /// Write; the payload follows.
    Write = 1,
    /// The client goes away.
    Disconnect = 2,
    /// Make everything answered so far durable.
    Flush = 3,
    /// The range's content is no longer needed.
    Trim = 4,
    /// The range will be read soon.
    Cache = 5,
    /// Make the range read as zeroes.
    WriteZeroes = 6,
    /// Tell what is data and what is hole.
    BlockStatus = 7,
}

impl Command {
    /// Every known command.
    pub const ALL: [Command; 8] = [
        Command::Read,
        Command::Write,
        Command::Disconnect,
        Command::Flush,
        Command::Trim,
        Command::Cache,
        Command::WriteZeroes,
        Command::BlockStatus,
    ];

    /// The command with this number.
    pub fn from_u16(n: u16) -> Option<Command> {
        Command::ALL.into_iter().find(|command| *command as u16 == n)
    }
}

/// What a client recognises its answer by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie(pub u64);

/// A request, not yet checked against the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its flags.
    pub flags: CommandFlags,
    /// What it asks; `None` for a number unknown here.
    pub command: Option<Command>,
    /// Comes back with the answer.
    pub cookie: Cookie,
    /// First byte it is about.
    pub offset: u64,
    /// How many bytes it is about.
    pub len: u32,
}

impl Request {
    /// Reads one; `None` if it does not begin as requests do: the stream is out of step.
    pub fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Request> {
        let mut fields = Fields(bytes);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Request {
            flags: CommandFlags::from_bits_retain(fields.u16()?),
            command: Command::from_u16(fields.u16()?),
            cookie: Cookie(fields.u64()?),
            offset: fields.u64()?,
            len: fields.u32()?,
        })
    }

    /// Bytes of payload that follow, whatever becomes of the request.
    pub fn payload_len(&self) -> u32 {
        if self.command == Some(Command::Write) { self.len } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_field_by_field() {
        let bytes = b"\x25\x60\x95\x13\x00\x81\x00\x01\x01\x02\x03\x04\x05\x06\x07\x08\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x02\x00";
        let request = Request::parse(bytes).unwrap();
        assert_eq!(request.flags.bits(), 0x81);
        assert_eq!(request.command, Some(Command::Write));
        assert_eq!(request.cookie, Cookie(0x0102_0304_0506_0708));
        assert_eq!((request.offset, request.len), (0x1_0000, 512));
        assert_eq!(request.payload_len(), 512);
        let mut other = *bytes;
        other[0] = 0;
        assert_eq!(Request::parse(&other), None);
        other = *bytes;
        other[7] = 99;
        assert_eq!(Request::parse(&other).map(|r| (r.command, r.payload_len())), Some((None, 0)));
    }
}
