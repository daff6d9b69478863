//! The handshake: which answer each option gets, and what was agreed on when it ends.

use super::Terms;
use crate::wire::*;
use alloc::vec::Vec;
use moraine_fs::FsError;

/// The smallest block a client may use: any byte. Clients that never ask assume 512 bytes.
const BLOCK_MIN: u32 = 1;
/// The block a client should use.
const BLOCK_PREFERRED: u32 = 4096;

/// The longest option data that is read, in bytes.
pub(crate) const OPTION_DATA_MAX: u32 = 8192;
/// The longest option data that is thrown away before an answer; more ends the session.
const OPTION_DRAIN_MAX: u32 = 1 << 20;

/// What was agreed on so far.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    client: HandshakeFlags,
    structured: bool,
    /// The export that `base:allocation` was chosen for.
    allocation: Option<Vec<u8>>,
}

/// What to do with an option after its replies so far were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait for the next option.
    Option,
    /// Name the exports with [`Handshake::listed`].
    List,
    /// Find the export and go on with [`Handshake::found`].
    Find(Ask),
    /// The handshake is over: transmission begins.
    Transmit(Terms),
    /// Close the connection.
    Close,
}

/// An option that waits for its export to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// The export's name.
    pub(crate) name: Vec<u8>,
    /// The option.
    pub(crate) option: OptionKind,
    wants_name: bool,
    wants_allocation: bool,
}

impl Ask {
    /// Whether the client means to use the export now, not only to hear of it.
    pub(crate) fn opens(&self) -> bool {
        matches!(self.option, OptionKind::Go | OptionKind::ExportName)
    }
}

/// An export as the handshake sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Bytes.
    pub(crate) size: u64,
    /// Whether writes are refused.
    pub(crate) read_only: bool,
}

impl Handshake {
    /// What this server offers.
    pub(crate) const FLAGS: HandshakeFlags = HandshakeFlags::all();

    /// Begins with the client's answer to the greeting.
    pub(crate) fn new(client: HandshakeFlags) -> Handshake {
        Handshake { client, structured: false, allocation: None }
    }

    /// Whether data of this length are to be read; if not, how many bytes to throw away before the answer of
    /// [`Handshake::oversized`], or `None` to close.
    pub(crate) fn reads(&self, header: OptionHeader) -> Result<(), Option<u32>> {
        if header.len <= OPTION_DATA_MAX {
            return Ok(());
        }
        let answered = self.fixed() && header.number != OptionKind::ExportName as u32;
        Err((answered && header.len <= OPTION_DRAIN_MAX).then_some(header.len))
    }

    /// Answers an option whose data were too long to be read.
    pub(crate) fn oversized(&self, header: OptionHeader, out: &mut Vec<u8>) {
        let known = OptionKind::from_u32(header.number).is_some();
        let why = if known { OptionReply::TooBig } else { OptionReply::Unsupported };
        option_reply(out, header.number, why, &[]);
    }

    /// Takes one option.
    pub(crate) fn option(&mut self, number: u32, data: &[u8], out: &mut Vec<u8>) -> Next {
        let kind = OptionKind::from_u32(number);
        if !self.fixed() && kind != Some(OptionKind::ExportName) {
            return Next::Close; // such a client would not understand an answer
        }
        let Some(kind) = kind else {
            option_reply(out, number, OptionReply::Unsupported, &[]);
            return Next::Option;
        };
        let taken = match kind {
            OptionKind::ExportName => {
                let fits = data.len() <= STRING_MAX;
                return if fits { Next::Find(ask(kind, data)) } else { Next::Close };
            }
            OptionKind::Abort => {
                // Nothing is refused to a client that leaves.
                option_reply(out, number, OptionReply::Ack, &[]);
                return Next::Close;
            }
            OptionKind::List => data.is_empty().then_some(Next::List),
            OptionKind::StructuredReply => data.is_empty().then(|| {
                self.structured = true;
                option_reply(out, number, OptionReply::Ack, &[]);
                Next::Option
            }),
            OptionKind::Info | OptionKind::Go => ExportQuery::parse(data)
                .map(|q| Next::Find(Ask { wants_name: q.wants_name, ..ask(kind, q.name) })),
            OptionKind::ListMetaContext | OptionKind::SetMetaContext => self.contexts(kind, data),
        };
        taken.unwrap_or_else(|| {
            option_reply(out, number, OptionReply::Invalid, &[]);
            Next::Option
        })
    }

    fn contexts(&mut self, kind: OptionKind, data: &[u8]) -> Option<Next> {
        let listing = kind == OptionKind::ListMetaContext;
        if !listing {
            self.allocation = None; // whatever comes of it, the choice before is void
        }
        let query = ContextQuery::parse(data)?;
        if !self.structured && !listing {
            return None;
        }
        let wants_allocation = query.allocation || (listing && (query.base || query.queries == 0));
        Some(Next::Find(Ask { wants_allocation, ..ask(kind, query.name) }))
    }

    /// Answers LIST.
    pub(crate) fn listed<'a>(&self, names: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) {
        let option = OptionKind::List as u32;
        for name in names {
            let len = u32::try_from(name.len()).expect("names are at most a path long");
            option_reply(out, option, OptionReply::Server, &[&len.to_be_bytes(), name]);
        }
        option_reply(out, option, OptionReply::Ack, &[]);
    }

    /// Goes on with an option now that its export was looked for.
    pub(crate) fn found(&mut self, ask: Ask, found: Result<Found, FsError>, out: &mut Vec<u8>) -> Next {
        let option = ask.option as u32;
        let found = match found {
            Ok(found) => found,
            Err(_) if ask.option == OptionKind::ExportName => return Next::Close,
            Err(why) => {
                option_reply(out, option, super::option_error(why), &[]);
                return Next::Option;
            }
        };
        let terms = self.terms(&ask.name, found);
        match ask.option {
            OptionKind::ExportName => {
                out.extend_from_slice(&terms.size.to_be_bytes());
                out.extend_from_slice(&terms.flags.bits().to_be_bytes());
                if !self.client.contains(HandshakeFlags::NO_ZEROES) {
                    out.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
                }
                Next::Transmit(terms)
            }
            OptionKind::Info | OptionKind::Go => {
                describe(&ask, &terms, out);
                option_reply(out, option, OptionReply::Ack, &[]);
                if ask.option == OptionKind::Go { Next::Transmit(terms) } else { Next::Option }
            }
            OptionKind::ListMetaContext | OptionKind::SetMetaContext => {
                if ask.wants_allocation {
                    // Listed contexts have no id yet.
                    let set = ask.option == OptionKind::SetMetaContext;
                    let id = if set { BASE_ALLOCATION_ID } else { 0 };
                    option_reply(
                        out,
                        option,
                        OptionReply::MetaContext,
                        &[&id.to_be_bytes(), BASE_ALLOCATION],
                    );
                    if set {
                        self.allocation = Some(ask.name);
                    }
                }
                option_reply(out, option, OptionReply::Ack, &[]);
                Next::Option
            }
            OptionKind::Abort | OptionKind::List | OptionKind::StructuredReply => {
                unreachable!("these options look for no export")
            }
        }
    }

    fn terms(&self, name: &[u8], found: Found) -> Terms {
        Terms {
            size: found.size,
            flags: Terms::flags(found.read_only, self.structured),
            structured: self.structured,
            // A choice made for another export does not count.
            allocation: self.structured && self.allocation.as_deref() == Some(name),
        }
    }

    fn fixed(&self) -> bool {
        self.client.contains(HandshakeFlags::FIXED_NEWSTYLE)
    }
}

fn ask(option: OptionKind, name: &[u8]) -> Ask {
    Ask { name: name.to_vec(), option, wants_name: false, wants_allocation: false }
}

/// The items of information of an export: INFO and GO get the same.
fn describe(ask: &Ask, terms: &Terms, out: &mut Vec<u8>) {
    let option = ask.option as u32;
    let kind = |kind: InfoKind| (kind as u16).to_be_bytes();
    let (size, flags) = (terms.size.to_be_bytes(), terms.flags.bits().to_be_bytes());
    option_reply(out, option, OptionReply::Info, &[&kind(InfoKind::Export), &size, &flags]);
    if ask.wants_name {
        option_reply(out, option, OptionReply::Info, &[&kind(InfoKind::Name), &ask.name]);
    }
    let sizes = [BLOCK_MIN, BLOCK_PREFERRED, super::REQUEST_LEN_MAX].map(u32::to_be_bytes);
    let sizes = sizes.as_flattened();
    option_reply(out, option, OptionReply::Info, &[&kind(InfoKind::BlockSize), sizes]);
}
