//! Faults planted on purpose, to see whether the tests notice. Without the feature `planted`, which only the test that
//! looks for them switches on, none of this is in the program: [`is`] is then the constant `false`.

macro_rules! faults {
    ($($name:ident = $doc:literal;)*) => {
        /// A fault that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Fault { $(#[doc = $doc] $name,)* }

        impl Fault {
            /// All of them.
            pub const ALL: &[Fault] = &[$(Fault::$name,)*];

            /// What it does.
            pub fn text(self) -> &'static str {
                match self { $(Fault::$name => $doc,)* }
            }
        }
    };
}

faults! {
    FlushSkipped = "A flush is never sent, and counts.";
    FuaForgotten = "A write that must be durable on completion is an ordinary one.";
    PreflushSkipped = "A flush entry does not wait for a flush of what it depends on.";
    EarlyAcknowledgement = "Waiting for durability returns at once.";
    DataNotFlushed = "Data is called durable without a flush.";
    NodePointerEarly = "A node's pointer is committed before the flush that covers the node.";
    PinReleasedEarly = "A journal entry is given up when the write-back of what it holds begins.";
    LastSeqTooHigh = "An entry says that none before it is needed.";
    ChainIgnored = "Recovery takes a chain that does not reach as far back as its end needs.";
    StaleRunAccepted = "A node with fewer or other runs than its parent counted is good.";
    RootNotLogged = "A new root is not put into the journal.";
    DataNotVerified = "Blocks are handed out whatever their checksums say.";
    BucketReusedEarly = "A bucket is discarded before the commit that emptied it is durable.";
    ReaderNotHeld = "A bucket is reused under its reader.";
    FreeRangeLost = "A freed bucket is in no range of free ones.";
    BackpointerForgotten = "A backpointer stays when its key goes.";
    CounterDrifts = "The counter of data bytes is not kept.";
    PageCleanedEarly = "A page that changed while it was written back is clean.";
    OldWriteBackWins = "A write-back commits a page that something newer has replaced.";
    LoadOverwritesNewer = "A load replaces what was written while it ran.";
    InFlightIgnored = "A sync does not wait for pages another write-back holds.";
    SizeForgotten = "Content is committed without the size that shows it.";
    SizeRunsAhead = "Older content is committed with the size that newer writes made.";
    CutOvertaken = "A truncate does not notice the write that came between its look and its commit.";
    TruncateLeavesTail = "A truncate leaves the bytes behind the new end in the last page.";
    PunchKeepsData = "A punched range keeps its extents.";
    MaskForgotten = "A range that a background cut is deleting still reads as data.";
    NlinkWrong = "A link is not counted.";
    OrphanForgotten = "What lost its last name is not put among the deleted.";
    XattrsNotReaped = "Extended attributes outlive their inode.";
    OldNameStays = "A rename leaves the old name.";
    WhiteoutDropped = "Removing a name cuts the chain of those that collided with it.";
    CookieRepeats = "A listing goes on with the entry it ended with.";
    CursorNotStored = "Inode numbers are handed out again after a crash.";
    VerifierUnchanged = "The write verifier stays although writes may be lost.";
    VerifierSurvives = "The write verifier is the same after a boot.";
    ReplyForgotten = "NFS runs a repeated call again.";
    NamesNotAwaited = "NFS answers a change before it is on media.";
    CommitIgnored = "NFS answers COMMIT without doing anything.";
    StableForgotten = "NFS writes what must be stable as unstable, and says otherwise.";
    HandleOfOneBoot = "A boot makes other NFS handles.";
    FuaIgnored = "NBD writes with FUA as without.";
    FlushIgnored = "NBD answers FLUSH at once.";
}

#[cfg(feature = "planted")]
static ACTIVE: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(u8::MAX);

/// Plants a fault for the rest of the process.
#[cfg(feature = "planted")]
pub fn plant(fault: Fault) {
    ACTIVE.store(fault as u8, core::sync::atomic::Ordering::Relaxed);
}

/// Whether a fault is planted.
#[cfg(feature = "planted")]
pub fn is(fault: Fault) -> bool {
    ACTIVE.load(core::sync::atomic::Ordering::Relaxed) == fault as u8
}

/// Whether a fault is planted: never.
#[cfg(not(feature = "planted"))]
pub const fn is(_: Fault) -> bool {
    false
}
