//! What may be behind a disk: a medium that takes orders and ends them when it likes, in any order.

/// What a medium is told to do; bytes from its start.
#[derive(Clone, Debug)]
pub enum Order {
    /// Read so many bytes.
    Read {
        /// Where.
        at: u64,
        /// How many.
        len: usize,
    },
    /// Write these.
    Write {
        /// Where.
        at: u64,
        /// What.
        bytes: Vec<u8>,
        /// They are to be durable when it ends.
        fua: bool,
    },
    /// Write zeroes.
    Zero {
        /// Where.
        at: u64,
        /// How many bytes.
        len: u64,
    },
    /// Forget what is there.
    Discard {
        /// Where.
        at: u64,
        /// How many bytes.
        len: u64,
    },
    /// Make what has ended durable.
    Flush,
}

impl Order {
    /// First byte and length; none of a flush.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Order::Read { at, len } => (*at, *len as u64),
            Order::Write { at, bytes, .. } => (*at, bytes.len() as u64),
            Order::Zero { at, len } | Order::Discard { at, len } => (*at, *len),
            Order::Flush => (0, 0),
        }
    }
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done; with what was read.
    Done(Vec<u8>),
    /// The medium is bad there.
    MediumError,
    /// Something else is wrong.
    DeviceError,
    /// The device never answers, unless the driver does something about it.
    Never,
    /// The device is gone.
    Gone,
}

/// How a medium tells that an order ended: at once or later.
pub type End = Box<dyn FnOnce(Outcome)>;

/// A medium.
pub trait Medium {
    /// Its size in bytes.
    fn size(&self) -> u64;
    /// What is done and not flushed may be lost.
    fn has_cache(&self) -> bool;
    /// Begins an order.
    fn begin(&self, order: Order, end: End);
    /// The device in front of it was reset: nothing that is under way may happen later than now.
    fn reset(&self);
}
