//! NFSv3 messages: arguments from bytes, results to bytes. Pure functions on slices.
//!
//! | file | what |
//! |---|---|
//! | `procedure.rs` | the 22 procedures and what is true of each |
//! | `args.rs` | [`Args`]: what each procedure is given |
//! | `results.rs` | attributes, weak cache consistency data and handles in results |
//! | `write_head.rs` | finds the data inside a WRITE call before the rest of it has arrived |

mod args;
mod procedure;
mod results;
mod write_head;

pub use args::{Args, DirOp, Node};
pub use procedure::Procedure;
pub use results::{ATTR_LEN, Results, ftype, nfstime};
pub use write_head::{Located, WriteHead, locate_write};
