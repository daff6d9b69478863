//! What a connection knows and decides, as plain synchronous steps: options and requests in, decisions out. It never
//! awaits and never sees a clock, a stream or a filesystem.
//!
//! | file | what it decides |
//! |---|---|
//! | `handshake` | what to answer to each option, and under which terms transmission begins |
//! | `transmission` | whether a request is admitted under those terms, and as what work |
//! | `errors` | which error of the protocol stands for which error of the filesystem |
//! | `pieces` | how a long range is cut |
//! | `status` | which extents a block status reply tells |

mod errors;
mod handshake;
mod pieces;
mod status;
mod transmission;

pub(crate) use errors::{Answer, Asked, answer, option_error};
pub(crate) use handshake::{Ask, Found, Handshake, Next};
pub(crate) use pieces::Range;
pub(crate) use status::Status;
pub use transmission::REQUEST_LEN_MAX;
pub(crate) use transmission::{Durability, Extents, Provision, Terms, Verdict, Work};
