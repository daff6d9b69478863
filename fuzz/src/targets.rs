//! All targets, and what each may take of memory.

mod devices;
mod disk;
mod frame;
mod machine;
mod pool;
mod probe;
mod rpc;
mod serve;
mod words;

/// A decoder under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also that of its folder in `corpus/`.
    pub name: &'static str,
    /// Feeds it `bytes`; panics if anything is wrong.
    pub run: fn(&[u8]),
    /// Bytes of memory it may hold at once, whatever it is fed.
    pub memory_max: usize,
    /// How many mutations CI tries: those that start a whole server are slower.
    pub tries: u64,
}

/// What a decoder of one message may hold: far above what any does, far below what a length from outside could ask for.
const MESSAGE: usize = 1 << 20;
/// What a server with the smallest budget may hold: its payload, rings and caches, and a simulated world around it.
const SERVER: usize = 48 << 20;

/// What mounting and checking a small pool with small caches may hold, simulated disks included.
const POOL: usize = 48 << 20;

/// What drivers may hold for a few devices: rings, receive buffers, and what is in flight.
const DEVICES: usize = 64 << 20;

/// All of them.
pub static TARGETS: &[Target] = &[
    Target { name: "superblock", run: disk::superblock, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "journal", run: disk::journal, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "node", run: disk::node, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "value", run: disk::value, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "pool", run: pool::pool, memory_max: POOL, tries: 150 },
    Target { name: "probe", run: probe::probe, memory_max: POOL, tries: 2000 },
    Target { name: "record", run: rpc::record, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "call", run: rpc::call, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "arguments", run: rpc::arguments, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "portmap", run: rpc::portmap, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "nfs-stream", run: serve::nfs_stream, memory_max: SERVER, tries: 1500 },
    Target { name: "nfs-calls", run: serve::nfs_calls, memory_max: SERVER, tries: 1500 },
    Target { name: "nfs-datagrams", run: serve::nfs_datagrams, memory_max: SERVER, tries: 1500 },
    Target { name: "mount", run: serve::mount, memory_max: SERVER, tries: 1500 },
    Target { name: "nbd-wire", run: rpc::nbd, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "nbd-handshake", run: serve::nbd_handshake, memory_max: SERVER, tries: 1500 },
    Target { name: "nbd-transmission", run: serve::nbd_transmission, memory_max: SERVER, tries: 1500 },
    Target { name: "frames", run: frame::frames, memory_max: SERVER, tries: 1500 },
    Target { name: "devices", run: devices::devices, memory_max: DEVICES, tries: 1500 },
    Target { name: "acpi", run: machine::acpi, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "memory-map", run: machine::memory_map, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "clock", run: machine::clock, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "words", run: words::words, memory_max: MESSAGE, tries: 20_000 },
    Target { name: "last-log", run: words::last_log, memory_max: MESSAGE, tries: 20_000 },
];
