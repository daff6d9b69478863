//! Good inputs to begin with, made by the writers themselves, and the helpers that make messages.

use moraine_format::dirent::{Dirent, Target};
use moraine_format::extent::Extent;
use moraine_format::inode::{Inode, InodeKind};
use moraine_format::journal::{self, ENTRY_HEADER_BYTES, EntryHeader, Item, ItemKind, Seq};
use moraine_format::node::{self, NodeIdent, NodePlace, NodePointer, RunInfo};
use moraine_format::space::{Alloc, Backpointer, DeviceUsage, PoolUsage};
use moraine_format::superblock::{BucketRange, Member, MemberState, Superblock};
use moraine_format::{DeviceSet, Pos, Tree};

/// The pool's tag in journal entries and nodes.
pub const POOL_TAG: u64 = 7;
/// The network card's address.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// How an NBD server begins.
pub const NBD_GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";

/// Good inputs of a target; at least one.
pub fn of(target: &str) -> Vec<Vec<u8>> {
    match target {
        "superblock" => superblocks(),
        "journal" => journals(),
        "node" => nodes(),
        "value" => values(),
        "record" => [0, 3, 255].map(|size| [vec![size], records()].concat()).into(),
        "call" => [mount(), getattr(), write()].into(),
        "arguments" => (0..22).map(|n| [vec![n], arguments()].concat()).collect(),
        "portmap" => (0..6).map(|n| [vec![n], words(&[100_003, 3, 6, 0])].concat()).collect(),
        "nfs-stream" => vec![records(), [record(&write()), record(&getattr())].concat()],
        "nfs-calls" => calls(),
        "nfs-datagrams" => vec![datagrams()],
        "pool" => pools(),
        "probe" => disks(),
        "mount" => mounts(),
        "nbd-wire" => nbd_messages(),
        "devices" => devices(),
        "acpi" => vec![tables()],
        "memory-map" => vec![ranges()],
        "clock" => vec![vec![0x59, 0x59, 0x23, 0x31, 0x12, 0x24, 2, 0, 0, 0, 0, 0x60, 0x60, 0, 0]],
        "nbd-handshake" => vec![go(b"vm"), list(), [list(), go(b"vm")].concat()],
        "nbd-transmission" => requests(),
        "frames" => frames(),
        "words" => vec![
            b"format=blank ip=10.0.0.2/24,10.0.0.1 panic=halt log=debug budget=256M accel=scalar squash=root"
                .to_vec(),
            b"# words\nip=fd00::2/64\nselftest=memory copy=words virtio_mmio.device=512@0xd0000000:5"
                .to_vec(),
        ],
        "last-log" => last_logs(),
        _ => vec![Vec::new()],
    }
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_be_bytes()).collect()
}

fn superblocks() -> Vec<Vec<u8>> {
    let member = |n: u8| Member {
        uuid: [n; 16],
        bytes: 64 << 20,
        bucket_bytes: 64 << 10,
        state: MemberState::ReadWrite,
        durability: 1,
        first_bucket: 3,
        bucket_count: 1000,
        last_seen_seq: 5,
        last_seen_epoch: 6,
        journal: vec![BucketRange { first: 3, count: 4 }],
        label: String::from("disk"),
    };
    let superblock = Superblock {
        pool_id: *b"0123456789abcdef",
        device: 1,
        journal_replicas: 1,
        metadata_replicas: 1,
        seq: 5,
        epoch: 6,
        prev_epoch: 4,
        mount_epoch: 9,
        mount_nonce: 10,
        change_counter: 1 << 20,
        handle_key: [3; 16],
        appliance: [4; 16],
        dirty_bytes_max: 12 << 20,
        node_bytes: 64 << 10,
        block_bytes: 4096,
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        clean: true,
        journal_floor: 77,
        created: 1,
        written: 2,
        label: String::from("tank"),
        journal_set: [0, 1].into_iter().collect(),
        metadata_set: [0].into_iter().collect(),
        members: vec![member(7), member(8)],
    };
    vec![superblock.to_bytes()]
}

fn journals() -> Vec<Vec<u8>> {
    let items = [
        Item::put(Tree::ALL[0], 0, Pos::new(1, 2, u32::MAX), b"value"),
        Item::delete(Tree::ALL[1], 0, Pos::new(3, 0, u32::MAX)),
        Item::root(Tree::ALL[0], 1, &[9; 64]),
        Item::note(ItemKind::from_id(4).unwrap_or(ItemKind::from_id(1).expect("there are kinds")), b"note"),
    ];
    let mut body = Vec::new();
    items.iter().for_each(|item| journal::push_item(&mut body, item));
    let mut out = vec![0; journal::entry_bytes(body.len())];
    let used = ENTRY_HEADER_BYTES + body.len();
    out[ENTRY_HEADER_BYTES..used].copy_from_slice(&body);
    let header = EntryHeader {
        epoch: 3,
        seq: Seq(9),
        prev_seq: Seq(8),
        prev_hash: 5,
        last_seq: Seq(2),
        flushed_upto: Seq(7),
        flush: true,
        mount: false,
        devices: [0].into_iter().collect::<DeviceSet>(),
    };
    journal::seal_entry(&mut out, used, items.len(), POOL_TAG, &header);
    vec![out, body]
}

fn nodes() -> Vec<Vec<u8>> {
    let ident = NodeIdent { node: 5, tree: Tree::ALL[0], level: 0, min: Pos::MIN, max: Pos::MAX };
    let info = RunInfo { index: 0, epoch: 2, seq: 9, previous: 0 };
    let entries: [node::Entry<'_>; 3] = [
        (Pos::new(1, 0, u32::MAX), Some(b"one")),
        (Pos::new(1, 4096, u32::MAX), None),
        (Pos::new(2, 0, u32::MAX), Some(b"a longer value")),
    ];
    let bytes: usize = entries.iter().map(|(_, value)| node::entry_bytes(value.map_or(0, <[u8]>::len))).sum();
    let mut out = vec![0; node::run_bytes(bytes)];
    node::write_run(&mut out, POOL_TAG, &ident, &info, entries.into_iter());
    vec![out]
}

fn values() -> Vec<Vec<u8>> {
    let key = Pos::new(4, 8192, u32::MAX);
    let inode = Inode::new(InodeKind::File, [5; 16]).to_value();
    let name = Dirent::Entry { target: Target::Inode { inode: 9, kind: InodeKind::Dir }, name: b"name" };
    let mut made = vec![(0, inode), (1, name.to_value())];
    made.extend([(5, vec![0; 56]), (6, vec![0; 32]), (7, vec![0; 48]), (8, vec![0; 48])]);
    made.extend([5, 6, 7, 8].map(|kind| (kind, [1_u8, 0, 0, 0].repeat(14))));
    for zeroes in [56, 32, 48] {
        // Whatever parses of a plain pattern is written by its own writer.
        let pattern = vec![0; zeroes];
        made.extend(Alloc::parse(&pattern).map(|a| (5, a.to_bytes().to_vec())));
        made.extend(Backpointer::parse(&pattern).map(|b| (6, b.to_bytes().to_vec())));
        made.extend(DeviceUsage::parse(&pattern).map(|u| (7, u.to_bytes().to_vec())));
        made.extend(PoolUsage::parse(&pattern).map(|u| (8, u.to_bytes().to_vec())));
    }
    let extents = [vec![0; 16], vec![1; 24], [vec![1, 0, 0, 0], vec![0; 60]].concat()];
    made.extend(extents.into_iter().map(|bytes| (2, bytes)));
    made.extend((9..13).map(|kind| (kind, [kind, 1, 0, 0, 0, 0, 0, 0, b'a', b'b'].to_vec())));
    let pointer = NodePointer {
        node: 5,
        level: 0,
        blocks_written: 1,
        runs: 1,
        last_hash: 9,
        min: Pos::MIN,
        places: [NodePlace { device: 0, generation: 2, offset: 1 << 20 }].into_iter().collect(),
    };
    made.push((3, pointer.to_bytes()));
    let _ = Extent::parse(key, &[]);
    made.into_iter().map(|(kind, value)| [vec![kind], key.to_bytes().to_vec(), value].concat()).collect()
}

/// A call with the credential of root.
pub fn nfs_call(xid: u32, program: u32, version: u32, procedure: u32, args: &[u8]) -> Vec<u8> {
    let mut out = words(&[xid, 0, 2, program, version, procedure, 1, 28, 1, 4]);
    out.extend(b"host");
    out.extend(words(&[0, 0, 1, 0, 0, 0]));
    out.extend(args);
    out
}

/// A message as one fragment.
pub fn record(message: &[u8]) -> Vec<u8> {
    [&(0x8000_0000 | message.len() as u32).to_be_bytes(), message].concat()
}

fn handle() -> Vec<u8> {
    [words(&[40]), vec![1; 40]].concat()
}

fn mount() -> Vec<u8> {
    nfs_call(1, 100_005, 3, 1, &words(&[1, u32::from_be_bytes(*b"/\0\0\0")]))
}

fn getattr() -> Vec<u8> {
    nfs_call(2, 100_003, 3, 1, &handle())
}

fn write() -> Vec<u8> {
    nfs_call(3, 100_003, 3, 7, &[handle(), words(&[0, 0, 8, 2, 8]), b"12345678".to_vec()].concat())
}

fn records() -> Vec<u8> {
    let half = mount();
    let (a, b) = half.split_at(20);
    let cut = [&(a.len() as u32).to_be_bytes(), a, &record(b)].concat();
    [record(&mount()), record(&getattr()), cut, record(&write())].concat()
}

/// A handle, a name, attributes and numbers: something of everything that arguments are made of.
fn arguments() -> Vec<u8> {
    [handle(), words(&[4]), b"name".to_vec(), words(&[0, 0, 1, 0o644, 0, 0, 0, 1, 0, 100, 0, 0, 8, 2, 8])]
        .concat()
}

fn calls() -> Vec<Vec<u8>> {
    // Program and procedure, whose handle, length of the rest, the rest.
    let call = |which: u8, handle: u8, args: Vec<u8>| [vec![which, handle, args.len() as u8], args].concat();
    let name = |text: &[u8; 4]| [words(&[4]), text.to_vec()].concat();
    let sattr = words(&[1, 0o644, 0, 0, 0, 0, 0]);
    let nfs = 0x40;
    let script = [
        call(nfs | 1, 1, vec![]),
        call(nfs | 8, 1, [name(b"file"), words(&[0]), sattr.clone()].concat()),
        call(nfs | 3, 1, name(b"file")),
        call(nfs | 9, 1, [name(b"dir1"), sattr.clone()].concat()),
        call(nfs | 10, 1, [name(b"link"), sattr.clone(), name(b"to_x")].concat()),
        call(nfs | 11, 1, [name(b"node"), words(&[4]), sattr.clone(), words(&[1, 2])].concat()),
        call(nfs | 7, 2, [words(&[0, 0, 8, 2, 8]), b"12345678".to_vec()].concat()),
        call(nfs | 6, 2, words(&[0, 0, 100])),
        call(nfs | 21, 2, words(&[0, 0, 0])),
        call(nfs | 2, 2, [sattr, words(&[0])].concat()),
        call(nfs | 4, 2, words(&[63])),
        call(nfs | 16, 1, words(&[0, 0, 0, 0, 4096])),
        call(nfs | 17, 1, words(&[0, 0, 0, 0, 4096, 4096])),
        call(nfs | 18, 1, vec![]),
        call(nfs | 19, 1, vec![]),
        call(nfs | 20, 1, vec![]),
        call(nfs | 5, 2, vec![]),
        call(nfs | 12, 1, name(b"link")),
        call(nfs | 13, 1, name(b"dir1")),
        call(1, 0, [words(&[8]), b"/volumes".to_vec()].concat()),
        call(5, 0, vec![]),
        call(0x20 | 3, 0, words(&[100_003, 3, 6, 0])),
        call(0x20 | 4, 0, vec![]),
    ];
    let all = script.concat();
    [script.to_vec(), vec![all]].concat()
}

fn datagrams() -> Vec<u8> {
    let one = |mut message: Vec<u8>| {
        message.resize(message.len().next_multiple_of(4), 0);
        [vec![(message.len() / 4) as u8], message].concat()
    };
    let portmap = |procedure, args: &[u8]| one(nfs_call(procedure, 100_000, 2, procedure, args));
    [portmap(0, &[]), portmap(3, &words(&[100_003, 3, 6, 0])), portmap(4, &[]), portmap(5, &[0; 64])].concat()
}

/// One change of each kind, in a clean and in a running pool.
fn pools() -> Vec<Vec<u8>> {
    let change = |kind: u8, how: u8| {
        let numbers = [7_u16, 3, 5].map(u16::to_le_bytes).concat();
        [&[kind, how][..], &numbers, &[1, 0, 0, 0, 0, 0, 0, 0]].concat()
    };
    let one = |pool: u8| (0..16).map(move |kind| [vec![pool], change(kind, 8)].concat());
    let many: Vec<u8> = (0..8).flat_map(|kind| change(kind * 2, 4)).collect();
    one(0).chain(one(1)).chain([vec![0], vec![3], [vec![2], many].concat()]).collect()
}

fn disks() -> Vec<Vec<u8>> {
    let piece = |place: u32, bytes: &[u8]| [&place.to_be_bytes()[1..], &[bytes.len() as u8], bytes].concat();
    let from_end = |place: u32, bytes: &[u8]| piece(0x80_0000 | (place - 1), bytes);
    let superblock = &superblocks()[0];
    let members = [0, 64, 128, 192, 256].map(|at: usize| {
        let place = 0x40_0000 | (at as u32 * 4);
        piece(place, &superblock[at..at + 64])
    });
    let members = [members.concat(), piece(0x40_0000 | (4096 * 4), &superblock[4096..4096 + 192])].concat();
    vec![
        vec![0],
        vec![1],
        [vec![1], piece(1080, b"\x53\xef"), piece(0, b"XFSB"), piece(510, b"\x55\xaa")].concat(),
        [vec![1], piece(512, b"EFI PART"), from_end(512, b"EFI PART"), from_end(8192, b"\xfc\x4e\x2b\xa9")]
            .concat(),
        [vec![1], piece(128 << 10, &0x00ba_b10c_u64.to_le_bytes()), piece(700_000, b"data")].concat(),
        [vec![0], members.clone()].concat(),
        [vec![1], members, piece(0, b"LUKS\xba\xbe")].concat(),
    ]
}

fn mounts() -> Vec<Vec<u8>> {
    let call = |which: u8, args: Vec<u8>| [vec![which, args.len() as u8], args].concat();
    let path = |text: &[u8]| {
        let mut out = words(&[text.len() as u32]);
        out.extend(text);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    };
    let script = |transport: u8| {
        [
            call(transport, vec![]),
            call(transport | 1, path(b"/volumes")),
            call(transport | 1, path(b"/volumes/../volumes/vm")),
            call(transport | 2, vec![]),
            call(transport | 3, path(b"/volumes")),
            call(transport | 4, vec![]),
            call(transport | 5, vec![]),
            call(transport | 0x40 | 3, words(&[100_003, 3, 6, 0])),
            call(transport | 0x40 | 4, vec![]),
            call(transport | 0x40 | 1, words(&[100_003, 3, 6, 2049])),
        ]
        .concat()
    };
    vec![script(0), script(0x80), [script(0x80), script(0)].concat()]
}

fn nbd_messages() -> Vec<Vec<u8>> {
    let named = [&words(&[2]), &b"vm"[..]].concat();
    let request =
        [&0x2560_9513_u32.to_be_bytes()[..], &[0, 1, 0, 1], &[7; 8], &[0; 8], &[0, 0, 16, 0]].concat();
    vec![
        vec![0, 0, 0, 0, 3],
        [&[1], &option(7, &[])[..]].concat(),
        [&[2], &named[..], &[0, 2, 0, 3, 0, 1]].concat(),
        [&[3], &named[..], &words(&[1, 15]), b"base:allocation"].concat(),
        [&[4], &request[..]].concat(),
    ]
}

/// Each kind of device that keeps to its rules, that breaks some, and functions of which nothing is right.
fn devices() -> Vec<Vec<u8>> {
    let kinds = || (0..9).chain([200]);
    let wild = [0, 40, 1, 90, 2, 200, 3].repeat(20);
    let capabilities = [0, 3, 1, 0, 16, 0, 0, 4, 0, 0, 0, 4, 12, 0, 0, 0, 64, 5].repeat(12);
    let good = kinds().map(|kind| vec![kind]).chain(kinds().map(|kind| vec![kind; 60]));
    good.chain(kinds().map(|kind| [vec![kind], wild.clone()].concat()))
        .chain((0..4).map(|which| [vec![200, which], capabilities.clone()].concat()))
        .collect()
}

/// A root pointer, a list of tables, and one of each kind.
fn tables() -> Vec<u8> {
    let table = |name: &[u8; 4], body: &[u8]| {
        let len = 36 + body.len() as u32;
        [&name[..], &len.to_le_bytes(), &[0; 28], body].concat()
    };
    let madt = [
        &[0, 0, 0xe0, 0xfe, 1, 0, 0, 0][..],
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0],
        &[5, 12, 0, 0, 0, 0, 0xe0, 0xfe, 0, 0, 0, 0],
        &[9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let mut code = b"\x08_S5_\x12\x06\x04\x0a\x05\x00\x00\x00".to_vec();
    code.extend(
        b"\x5b\x82\x3eVR00\x08_HID\x0dLNRO0005\0\x08_UID\x0a\x07\x08_CCA\x01\x08_CRS\x11\x1a\x0a\x17",
    );
    code.extend(
        b"\x86\x09\x00\x01\x00\x0e\xb0\xfe\x00\x02\x00\x00\x89\x06\x00\x01\x01\x1f\x00\x00\x00\x79\x00",
    );
    let mut fadt = vec![0; 220];
    fadt[48 - 36..52 - 36].copy_from_slice(&0xb2_u32.to_le_bytes());
    fadt[56 - 36..60 - 36].copy_from_slice(&0x600_u32.to_le_bytes());
    fadt[64 - 36..68 - 36].copy_from_slice(&0x604_u32.to_le_bytes());
    fadt[112 - 36 + 1] = 4;
    fadt[116 - 36] = 1;
    fadt[120 - 36] = 0xf9;
    let rest = [table(b"APIC", &madt), table(b"MCFG", &[0; 24]), table(b"DSDT", &code)];
    let list_at = 0x1000 + 36;
    let mut at = list_at + 36 + 4 * 4;
    let mut list = Vec::new();
    for table in &rest {
        list.extend((at as u32).to_le_bytes());
        at += table.len();
    }
    let code_at = at - rest[2].len();
    fadt[4..8].copy_from_slice(&(code_at as u32).to_le_bytes());
    list.extend((at as u32).to_le_bytes());
    let mut root = vec![0; 36];
    root[..8].copy_from_slice(b"RSD PTR ");
    root[16..20].copy_from_slice(&(list_at as u32).to_le_bytes());
    [root, table(b"RSDT", &list), rest.concat(), table(b"FACP", &fadt)].concat()
}

fn ranges() -> Vec<u8> {
    let range =
        |kind: u8, start: u64, len: u64| [&[kind][..], &start.to_le_bytes(), &len.to_le_bytes()].concat();
    [
        range(0, 0, 0x9_fc00),
        range(0, 0x10_0000, 0x4_0000),
        range(1, 0xf_0000, 0x1_8000),
        range(0x80, 1 << 32, 1 << 30),
    ]
    .concat()
}

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &words(&[kind, data.len() as u32])[..], data].concat()
}

fn list() -> Vec<u8> {
    [words(&[3]), option(8, &[]), option(3, &[]), option(2, &[])].concat()
}

/// An NBD client's side of a handshake up to GO for `name`, with structured replies and the allocation context.
pub fn go(name: &[u8]) -> Vec<u8> {
    let named = [&words(&[name.len() as u32]), name].concat();
    let context = [&named[..], &words(&[1, 15]), b"base:allocation"].concat();
    let info = [&named[..], &1u16.to_be_bytes(), &3u16.to_be_bytes()].concat();
    [words(&[3]), option(8, &[]), option(10, &context), option(6, &info), option(7, &info)].concat()
}

fn requests() -> Vec<Vec<u8>> {
    // Flags, command, three bytes of offset, three of length.
    let all = (0..8).map(|command| vec![0, command, 0, 0x10, 0, 0, 0x10, 0]);
    let reads = [[0, 0, 0x10, 0, 0, 0x1f, 0xff, 0xff], [4, 0, 0, 0, 0, 2, 0, 0], [0, 7, 0, 0, 0, 0, 0, 1]];
    let stable = [[1, 1, 0, 2, 0, 0, 2, 0], [1, 6, 0, 0, 0, 0x1f, 0, 0], [0, 3, 0, 0, 0, 0, 0, 0]];
    vec![all.flatten().collect(), reads.concat(), stable.concat(), [stable, reads].concat().concat()]
}

fn frames() -> Vec<Vec<u8>> {
    let frame = |kind: u16, body: &[u8]| {
        let whole = [&MAC[..], &[2, 0, 0, 0, 0, 2], &kind.to_be_bytes(), body].concat();
        [&(whole.len() as u16).to_le_bytes()[..], &whole].concat()
    };
    let ip = |protocol: u8, body: &[u8]| {
        let len = (20 + body.len()) as u16;
        let mut head = [&[0x45, 0][..], &len.to_be_bytes(), &[0, 1, 0x40, 0, 64, protocol, 0, 0]].concat();
        head.extend([10, 0, 0, 2, 10, 0, 0, 1]);
        let sum: u32 = head.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        let folded = !((sum & 0xffff) + (sum >> 16)) as u16;
        head[10..12].copy_from_slice(&folded.to_be_bytes());
        frame(0x0800, &[&head[..], body].concat())
    };
    let arp = frame(
        0x0806,
        &[&[0, 1, 8, 0, 6, 4, 0, 1][..], &[2, 0, 0, 0, 0, 2, 10, 0, 0, 2], &[0; 6], &[10, 0, 0, 1]].concat(),
    );
    let tcp = |flags: u8, seq: u32, body: &[u8]| {
        let ports = [&40_000u16.to_be_bytes()[..], &2049u16.to_be_bytes()].concat();
        let rest = [&[0, 0, 0, 0, 0x50, flags, 0x20, 0, 0, 0, 0, 0][..], body].concat();
        ip(6, &[ports, seq.to_be_bytes().to_vec(), rest].concat())
    };
    let udp = ip(17, &[&[0x9c, 0x40, 0, 111, 0, 12, 0, 0][..], b"echo"].concat());
    let dhcp = {
        let mut body =
            vec![2, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9, 10, 0, 0, 2, 0, 0, 0, 0];
        body.extend(MAC);
        body.resize(236, 0);
        body.extend([
            99, 130, 83, 99, 53, 1, 2, 54, 4, 10, 0, 0, 2, 51, 4, 0, 0, 1, 0, 1, 4, 255, 255, 255, 0, 255,
        ]);
        let len = (8 + body.len()) as u16;
        ip(17, &[&[0, 67, 0, 68][..], &len.to_be_bytes(), &[0, 0], &body].concat())
    };
    let advertisement = {
        let icmp = [
            &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &[3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 7, 8, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0],
            &[0; 8],
        ]
        .concat();
        let mut head = vec![0x60, 0, 0, 0, 0, icmp.len() as u8, 58, 255, 0xfe, 0x80];
        head.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        head.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        frame(0x86dd, &[head, icmp].concat())
    };
    let with = |how: u8, frames: &[&[u8]]| [&[how][..], &frames.concat()].concat();
    let syn = tcp(2, 1000, &[]);
    vec![
        with(1, &[&arp, &syn, &tcp(0x10, 1001, b"hello"), &tcp(0x11, 1006, &[])]),
        with(1, &[&arp, &udp, &udp]),
        with(0, &[&dhcp, &dhcp]),
        with(0, &[&advertisement, &advertisement]),
        with(1, &[&syn, &tcp(4, 1001, &[]), &syn]),
    ]
}

fn last_logs() -> Vec<Vec<u8>> {
    let mut memory = vec![0; 512];
    let mut ring = kernel_parts::ring::Ring::over(&mut memory);
    ring.clear();
    (0..80).for_each(|_| ring.write(b"a line of the log\n"));
    vec![memory, vec![0xff; 300]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use moraine_format::journal::Entry;
    use moraine_format::node::Run;

    #[test]
    fn what_writers_make_is_good() {
        assert!(Superblock::parse(&of("superblock")[0]).is_ok());
        assert_eq!(Entry::parse(&of("journal")[0], POOL_TAG).map(|e| e.item_count), Ok(4));
        assert_eq!(Run::parse(&of("node")[0], POOL_TAG).map(|run| run.len()), Ok(3));
        for target in crate::TARGETS {
            assert!(of(target.name).iter().all(|bytes| !bytes.is_empty()), "{} has seeds", target.name);
        }
    }
}
