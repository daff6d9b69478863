"""A client that does one thing after another over NFS and NBD, and knows what must be there after each answer.

A state is a dictionary of paths. A file's content is kept by blocks: each block has the set of tags that a power cut may
leave there (a tag stands for 4 KiB of bytes), one if what was written last is stable. So a stable answer is a set that
shrinks to one.
"""
import copy
import hashlib
import os
import struct
import sys

import nbd

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "nbd"))
from nfsfile import MOUNT, NFS, Client, handle_of, opaque  # noqa: E402

BLOCK = 4096
FILE_BLOCKS_MAX = 12
VOLUME_BLOCKS = 64
VOLUME = ("volumes", "disk")
UNSTABLE, DATA_SYNC, FILE_SYNC = 0, 1, 2
READ_BYTES = 64 << 10
DIRECTORY, SYMLINK = 2, 5


def block(tag):
    """The bytes of a tag; 0 is what was never written."""
    return hashlib.sha256(str(tag).encode()).digest() * (BLOCK // 32) if tag else bytes(BLOCK)


def sattr(mode=None, size=None):
    return (struct.pack(">II", 1, mode) if mode is not None else bytes(4)) + bytes(8) + \
        (struct.pack(">IQ", 1, size) if size is not None else bytes(4)) + bytes(8)


class Files(Client):
    """NFSv3 by paths, which are tuples of names."""

    def root(self):
        return handle_of(self.call(MOUNT, 1, opaque(b"/")))

    def handle(self, path):
        handle = self.root()
        for name in path:
            handle = handle_of(self.call(NFS, 3, opaque(handle) + opaque(name.encode())))
        return handle

    def place(self, path):
        return opaque(self.handle(path[:-1])) + opaque(path[-1].encode())

    def list(self, handle):
        """Name, attributes (84 bytes) and handle of each entry."""
        cookie, verifier, found = 0, bytes(8), []
        while True:
            r = self.call(NFS, 17, opaque(handle) + struct.pack(">Q", cookie) + verifier + struct.pack(">II", 8192, 32768))
            at = 4 + 84 * r[3]
            verifier, at = r[at:at + 8], at + 8
            while r[at + 3]:
                length = struct.unpack(">I", r[at + 12:at + 16])[0]
                name, at = r[at + 16:at + 16 + length].decode(), at + 16 + length + -length % 4
                cookie, given = struct.unpack(">QI", r[at:at + 12])
                assert given and r[at + 12 + 84 + 3], f"{name} is listed without attributes or handle"
                attributes, at = r[at + 12:at + 96], at + 100
                child = handle_of(r[at:])
                at += 4 + len(child) + -len(child) % 4
                if name not in (".", ".."):
                    found.append((name, attributes, child))
            if r[at + 7]:
                return found

    def read(self, handle, size):
        data = b""
        while len(data) < size:
            r = self.call(NFS, 6, opaque(handle) + struct.pack(">QI", len(data), READ_BYTES))
            at = 4 + 84 * r[3]
            count = struct.unpack(">I", r[at:at + 4])[0]
            assert count, "a read in the middle of a file gave nothing"
            data += r[at + 12:at + 12 + count]
        return data

    def tree(self, handle=None, path=()):
        """All there is: path → (type, mode, links, content or target); of a directory no links."""
        found = {}
        for name, attributes, child in self.list(handle or self.root()):
            kind, mode, links = struct.unpack(">III", attributes[:12])
            size = struct.unpack(">Q", attributes[20:28])[0]
            here = path + (name,)
            if kind == DIRECTORY:
                found[here] = (kind, mode, 0, b"")
                found.update(self.tree(child, here))
            elif kind == SYMLINK:
                r = self.call(NFS, 5, opaque(child))
                found[here] = (kind, mode, links, handle_of(r[4 + 84 * r[3]:]))
            else:
                found[here] = (kind, mode, links, self.read(child, size))
        return found


class File:
    """A regular file: its mode, and for each block the tags that may be there."""

    def __init__(self, blocks=0):
        self.mode, self.blocks = 0o644, [{0} for _ in range(blocks)]


class Session:
    """Does `step` by `step`; `state` is what must be there now, `stable` whether the last answer promised something."""

    def __init__(self, server, random):
        self.random, self.files, self.tags, self.names = random, Files(server.nfs), 0, 0
        self.state = {path: "directory" for path in self.files.tree()}
        self.kinds = {}
        self.files.call(NFS, 8, self.files.place(VOLUME) + struct.pack(">I", 0) + sattr(0o644, VOLUME_BLOCKS * BLOCK))
        self.state[VOLUME] = File(VOLUME_BLOCKS)
        self.volume = nbd.NBD()
        host, port = server.nbd.rsplit(":", 1)
        self.volume.set_export_name(VOLUME[1])
        self.volume.connect_tcp(host, port)

    def snapshot(self):
        return copy.deepcopy(self.state)

    def ours(self, kind):
        """The paths of this kind that may be changed."""
        return sorted(p for p, v in self.state.items() if isinstance(v, kind) and p[0] != "volumes")

    def new(self):
        folders = [()] + [p for p in self.ours(str) if self.state[p] == "directory"]
        self.names += 1
        return self.random.choice(folders) + (f"name-{self.names}-" + "x" * self.random.choice([0, 0, 40, 200]),)

    def step(self):
        """One operation; its name, once it is answered, and whether the answer promised anything that a cut before it
        could take away."""
        verbs = [("create", 3), ("mkdir", 2), ("symlink", 1), ("write", 6), ("unstable", 2), ("commit", 3), ("mode", 1),
                 ("truncate", 1), ("link", 1), ("rename", 2), ("remove", 1), ("nbd_write", 2), ("nbd_fua", 3),
                 ("nbd_flush", 2)]
        while True:
            verb = self.random.choices([v for v, _ in verbs], [w for _, w in verbs])[0]
            if verb in ("create", "mkdir", "symlink") or verb.startswith("nbd") or self.ours(File):
                break
        promised = getattr(self, verb)()
        self.kinds[verb] = self.kinds.get(verb, 0) + 1
        return verb, promised

    def some_file(self):
        path = self.random.choice(self.ours(File))
        return path, self.state[path]

    def fresh(self, count):
        self.tags += count
        return range(self.tags - count + 1, self.tags + 1)

    # The operations; each says whether it promised something.

    def create(self):
        path = self.new()
        self.files.call(NFS, 8, self.files.place(path) + struct.pack(">I", 1) + sattr(0o644))
        self.state[path] = File()
        return True

    def mkdir(self):
        path = self.new()
        self.files.call(NFS, 9, self.files.place(path) + sattr(0o755))
        self.state[path] = "directory"
        return True

    def symlink(self):
        path = self.new()
        target = b"to/" + path[-1].encode()
        self.files.call(NFS, 10, self.files.place(path) + sattr(0o777) + opaque(target))
        self.state[path] = target
        return True

    def write(self):
        path, file = self.some_file()
        at = self.random.randrange(min(len(file.blocks), FILE_BLOCKS_MAX - 1) + 1)
        tags = self.fresh(self.random.randint(1, FILE_BLOCKS_MAX - at))
        self.put(path, at, tags, self.random.choice([DATA_SYNC, FILE_SYNC]))
        file.blocks += [{0} for _ in range(at + len(tags) - len(file.blocks))]
        for number, tag in enumerate(tags, at):
            file.blocks[number] = {tag}
        return True

    def unstable(self):
        path, file = self.some_file()
        if not file.blocks:
            return self.write()
        at = self.random.randrange(len(file.blocks))
        tags = self.fresh(self.random.randint(1, len(file.blocks) - at))
        self.put(path, at, tags, UNSTABLE)
        self.may_be(file, at, tags)
        return False

    def put(self, path, at, tags, how):
        data = b"".join(map(block, tags))
        words = struct.pack(">QII", at * BLOCK, len(data), how)
        r = self.files.call(NFS, 7, opaque(self.files.handle(path)) + words + opaque(data))
        count, committed = struct.unpack(">II", r[-16:-8])
        assert count == len(data) and committed >= how, f"a write of {len(data)} bytes, {how}: {count}, {committed}"

    def may_be(self, file, at, tags):
        """Written and not promised: the block keeps what it may have been, and its greatest tag is what a flush will make of it."""
        for number, tag in enumerate(tags, at):
            file.blocks[number] = file.blocks[number] | {tag}

    def settle(self, file):
        """All that was written is stable: tags grow, so the greatest of a block is the last."""
        promised = any(len(tags) > 1 for tags in file.blocks)
        file.blocks = [{max(tags)} for tags in file.blocks]
        return promised

    def commit(self):
        path, file = self.some_file()
        self.files.call(NFS, 21, opaque(self.files.handle(path)) + bytes(12))
        return self.settle(file)

    def mode(self):
        path, file = self.some_file()
        file.mode = 0o600 if file.mode == 0o644 else 0o644
        self.files.call(NFS, 2, opaque(self.files.handle(path)) + sattr(mode=file.mode) + bytes(4))
        return True

    def truncate(self):
        path, file = self.some_file()
        count = self.random.choice([c for c in range(FILE_BLOCKS_MAX + 1) if c != len(file.blocks)])
        self.files.call(NFS, 2, opaque(self.files.handle(path)) + sattr(size=count * BLOCK) + bytes(4))
        file.blocks = file.blocks[:count] + [{0} for _ in range(count - len(file.blocks))]
        return True

    def link(self):
        (path, file), new = self.some_file(), self.new()
        self.files.call(NFS, 15, opaque(self.files.handle(path)) + self.files.place(new))
        self.state[new] = file
        return True

    def rename(self):
        path, new = self.some_file()[0], self.new()
        self.files.call(NFS, 14, self.files.place(path) + self.files.place(new))
        self.state[new] = self.state.pop(path)
        return True

    def remove(self):
        path = self.some_file()[0]
        self.files.call(NFS, 12, self.files.place(path))
        del self.state[path]
        return True

    def nbd_write(self, flags=0):
        file, at = self.state[VOLUME], self.random.randrange(VOLUME_BLOCKS)
        tags = self.fresh(self.random.randint(1, min(8, VOLUME_BLOCKS - at)))
        self.volume.pwrite(b"".join(map(block, tags)), at * BLOCK, flags)
        if not flags:
            self.may_be(file, at, tags)
        else:
            for number, tag in enumerate(tags, at):
                file.blocks[number] = {tag}
        return bool(flags)

    def nbd_fua(self):
        return self.nbd_write(nbd.CMD_FLAG_FUA)

    def nbd_flush(self):
        self.volume.flush()
        return self.settle(self.state[VOLUME])


def differs(tree, names, contents):
    """Why a tree is none of what it may be: the names and attributes of the state `names`, and each block as the state
    `names` or `contents` allows. None if it is."""
    if set(tree) != set(names):
        return f"names: {sorted(set(names) - set(tree))} are missing, {sorted(set(tree) - set(names))} are there"
    links = {}
    for value in names.values():
        links[id(value)] = links.get(id(value), 0) + 1
    for path, value in names.items():
        kind, mode, count, content = tree[path]
        where = "/".join(path)
        if value == "directory" or isinstance(value, bytes):
            if (kind, content) != ((DIRECTORY, b"") if value == "directory" else (SYMLINK, value)):
                return f"{where} is of type {kind} with {content}"
            continue
        if (kind, mode & 0o777, count, len(content)) != (1, value.mode, links[id(value)], len(value.blocks) * BLOCK):
            return f"{where} is of type {kind}, mode {mode:o}, {count} links, {len(content)} bytes"
        other = contents.get(path)
        for number, tags in enumerate(value.blocks):
            if isinstance(other, File) and number < len(other.blocks):
                tags = tags | other.blocks[number]
            if content[number * BLOCK:][:BLOCK] not in map(block, tags):
                return f"{where}: block {number} is none of what was written, {sorted(tags)}"
    return None
