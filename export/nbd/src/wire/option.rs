//! The handshake (specification: "Fixed newstyle negotiation", "Option types").

use super::fields::Fields;
use alloc::vec::Vec;

/// Opens the greeting.
const GREETING_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Opens the newstyle part of the greeting and every option.
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Opens every option reply.
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Bytes of the greeting.
pub const GREETING_LEN: usize = 18;
/// Bytes of the client's answer to the greeting.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Bytes of an option before its data.
pub const OPTION_HEADER_LEN: usize = 16;
/// The longest string of the protocol, export names among them.
pub const STRING_MAX: usize = 4096;
/// Zeroes after the answer to EXPORT_NAME, unless [`HandshakeFlags::NO_ZEROES`].
pub const EXPORT_NAME_ZEROES: usize = 124;

bitflags::bitflags! {
    /// Flags of the greeting and of the client's answer; the same bits both ways.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HandshakeFlags: u16 {
        /// Options have replies; unknown ones are refused politely.
        const FIXED_NEWSTYLE = 1;
        /// No padding after the answer to EXPORT_NAME.
        const NO_ZEROES = 2;
    }

    /// What an export can do.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// The flags are there at all.
        const HAS_FLAGS = 1;
        /// Writes are refused.
        const READ_ONLY = 1 << 1;
        /// FLUSH.
        const SEND_FLUSH = 1 << 2;
        /// The FUA flag.
        const SEND_FUA = 1 << 3;
        /// TRIM.
        const SEND_TRIM = 1 << 5;
        /// WRITE_ZEROES.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// The DF flag; only with structured replies.
        const SEND_DF = 1 << 7;
        /// A flush on one connection covers the writes of all.
        const CAN_MULTI_CONN = 1 << 8;
        /// CACHE.
        const SEND_CACHE = 1 << 10;
        /// The FAST_ZERO flag.
        const SEND_FAST_ZERO = 1 << 11;
    }
}

/// The server's first words.
pub fn greeting(flags: HandshakeFlags) -> [u8; GREETING_LEN] {
    let mut out = [0; GREETING_LEN];
    out[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&flags.bits().to_be_bytes());
    out
}

/// The client's answer to the greeting; `None` if it sets a bit nobody offered.
pub fn client_flags(bytes: [u8; CLIENT_FLAGS_LEN]) -> Option<HandshakeFlags> {
    HandshakeFlags::from_bits(u16::try_from(u32::from_be_bytes(bytes)).ok()?)
}

/// Options this server knows; the rest are answered with [`OptionReply::Unsupported`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OptionKind {
    /// Enter the transmission phase; no way to refuse but to hang up.
    ExportName = 1,
    /// End the session.
    Abort = 2,
    /// Name the exports.
    List = 3,
    /// Describe an export.
    Info = 6,
    /// Describe an export and enter the transmission phase.
    Go = 7,
    /// Answer in chunks from now on.
    StructuredReply = 8,
    /// Name metadata contexts of an export.
    ListMetaContext = 9,
    /// Choose metadata contexts of an export.
    SetMetaContext = 10,
}

impl OptionKind {
    /// Every known option.
    pub const ALL: [OptionKind; 8] = [
        OptionKind::ExportName,
        OptionKind::Abort,
        OptionKind::List,
        OptionKind::Info,
        OptionKind::Go,
        OptionKind::StructuredReply,
        OptionKind::ListMetaContext,
        OptionKind::SetMetaContext,
    ];

    /// The option with this number.
    pub fn from_u32(n: u32) -> Option<OptionKind> {
        OptionKind::ALL.into_iter().find(|kind| *kind as u32 == n)
    }
}

/// The head of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// Its number as sent, known or not.
    pub number: u32,
    /// Bytes of data that follow.
    pub len: u32,
}

impl OptionHeader {
    /// Reads one; `None` if it does not begin as options do.
    pub fn parse(bytes: &[u8; OPTION_HEADER_LEN]) -> Option<OptionHeader> {
        let mut fields = Fields(bytes);
        if fields.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(OptionHeader { number: fields.u32()?, len: fields.u32()? })
    }
}

/// Data of INFO and GO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportQuery<'a> {
    /// The export's name.
    pub name: &'a [u8],
    /// Whether the client asks to be told the name back.
    pub wants_name: bool,
}

impl<'a> ExportQuery<'a> {
    /// Reads it; `None` if lengths do not agree.
    pub fn parse(data: &'a [u8]) -> Option<ExportQuery<'a>> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let mut wants_name = false;
        for _ in 0..fields.u16()? {
            wants_name |= fields.u16()? == InfoKind::Name as u16;
        }
        (fields.is_empty() && name.len() <= STRING_MAX).then_some(ExportQuery { name, wants_name })
    }
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextQuery<'a> {
    /// The export's name.
    pub name: &'a [u8],
    /// How many queries there are.
    pub queries: u32,
    /// Whether one of them is exactly `base:allocation`.
    pub allocation: bool,
    /// Whether one of them is `base:`, which lists that namespace and chooses nothing.
    pub base: bool,
}

/// The one metadata context of this server.
pub const BASE_ALLOCATION: &[u8] = b"base:allocation";
/// Its id on a connection.
pub const BASE_ALLOCATION_ID: u32 = 1;

impl<'a> ContextQuery<'a> {
    /// Reads it; `None` if lengths do not agree. The number of queries is bounded by the data, four bytes each.
    pub fn parse(data: &'a [u8]) -> Option<ContextQuery<'a>> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let queries = fields.u32()?;
        let (mut allocation, mut base) = (false, false);
        for _ in 0..queries {
            let query = fields.string()?;
            allocation |= query == BASE_ALLOCATION;
            base |= query == b"base:";
        }
        let whole = fields.is_empty() && name.len() <= STRING_MAX;
        whole.then_some(ContextQuery { name, queries, allocation, base })
    }
}

/// Items of information in the replies to INFO and GO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum InfoKind {
    /// Size and transmission flags.
    Export = 0,
    /// The name.
    Name = 1,
    /// Block sizes.
    BlockSize = 3,
}

const ERROR_BIT: u32 = 1 << 31;

/// What an option reply says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OptionReply {
    /// Done; the last reply to an option.
    Ack = 1,
    /// One export, in answer to LIST.
    Server = 2,
    /// One item of information.
    Info = 3,
    /// One metadata context.
    MetaContext = 4,
    /// This server does not know the option.
    Unsupported = ERROR_BIT | 1,
    /// Not now: the export cannot be opened.
    Policy = ERROR_BIT | 2,
    /// The option's data make no sense.
    Invalid = ERROR_BIT | 3,
    /// No export of that name.
    Unknown = ERROR_BIT | 6,
    /// The server is going down.
    Shutdown = ERROR_BIT | 7,
    /// The option's data are too long.
    TooBig = ERROR_BIT | 9,
}

/// Appends an option reply with `data`, which is at most a string and a few numbers long.
pub fn option_reply(out: &mut Vec<u8>, option: u32, reply: OptionReply, data: &[&[u8]]) {
    let len: usize = data.iter().map(|d| d.len()).sum();
    let len = u32::try_from(len).expect("option replies are short");
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&(reply as u32).to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    data.iter().for_each(|d| out.extend_from_slice(d));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_is_the_one_of_the_specification() {
        let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
        assert_eq!(&greeting(flags), b"NBDMAGICIHAVEOPT\x00\x03");
        assert_eq!(client_flags([0, 0, 0, 3]), Some(flags));
        assert_eq!(client_flags([0, 0, 0, 4]), None);
        assert_eq!(client_flags([0, 1, 0, 0]), None);
    }

    #[test]
    fn option_headers_need_their_magic() {
        let bytes = *b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x01\x00";
        assert_eq!(OptionHeader::parse(&bytes), Some(OptionHeader { number: 7, len: 256 }));
        assert_eq!(OptionHeader::parse(b"IHAVEOPX\x00\x00\x00\x07\x00\x00\x01\x00"), None);
    }

    #[test]
    fn every_cut_and_every_extension_of_a_query_is_refused() {
        let go = b"\x00\x00\x00\x03vm1\x00\x02\x00\x01\x00\x03";
        assert_eq!(ExportQuery::parse(go), Some(ExportQuery { name: b"vm1", wants_name: true }));
        let context =
            b"\x00\x00\x00\x03vm1\x00\x00\x00\x02\x00\x00\x00\x05base:\x00\x00\x00\x0fbase:allocation";
        let both = ContextQuery { name: b"vm1", queries: 2, allocation: true, base: true };
        assert_eq!(ContextQuery::parse(context), Some(both));
        for cut in 0..go.len() {
            assert_eq!(ExportQuery::parse(&go[..cut]), None);
        }
        for cut in 0..context.len() {
            assert_eq!(ContextQuery::parse(&context[..cut]), None);
        }
        assert_eq!(ExportQuery::parse(&[&go[..], b"x"].concat()), None);
        assert_eq!(ContextQuery::parse(&[&context[..], b"x"].concat()), None);
        assert_eq!(ContextQuery::parse(b"\xff\xff\xff\xffvm1"), None);
        assert_eq!(ContextQuery::parse(b"\x00\x00\x00\x00\xff\xff\xff\xff"), None);
    }
}
