"""The log of what a disk was told, as QEMU's blklogwrites leaves it, and the images a power cut could leave of it.

The format is that of Linux's dm-log-writes: a sector that describes the log, then for each command a sector that
describes it and, for writes, its data. QEMU writes a command's entry after the file below has done the command and before
the guest is told: what was answered is in the log, and a flush under way is not. A write that ended while a flush was under
way stands before it, and counts as covered: there alone the log is kinder than a disk.
"""
import os
import struct

MAGIC = 0x6A736677736872
SECTOR = 512
PIECE = 1 << 20
FLUSH, FUA, DISCARD = 1, 2, 4
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")


def disk(path, log):
    """QEMU's name for a disk of these two files, for scripts/run --disk."""
    return ('json:{"driver":"blklogwrites","file":{"driver":"file","filename":"%s"},"log":{"driver":"file","filename":"%s"},'
            '"log-sector-size":%d,"log-super-update-interval":1}' % (path, log, SECTOR))


def length(log):
    """How many entries the log has; no entry that an answered command made is missing."""
    with open(log, "rb") as file:
        magic, _, entries, sector = SUPER.unpack(file.read(SUPER.size))
    assert (magic, sector) == (MAGIC, SECTOR), "not a log of writes"
    return entries


class Command:
    """An entry: flags, where on the disk and how long (bytes), and where in the log its data is."""

    def __init__(self, header, data):
        sector, sectors, self.flags, _ = ENTRY.unpack(header)
        self.offset, self.length, self.data = sector * SECTOR, sectors * SECTOR, data

    def follows(self):
        """Bytes of data in the log behind the entry."""
        return 0 if self.flags & DISCARD else self.length


def commands(log, count):
    """The first `count` commands."""
    found, at = [], SECTOR
    with open(log, "rb") as file:
        for _ in range(count):
            file.seek(at)
            command = Command(file.read(ENTRY.size), at + SECTOR)
            found.append(command)
            at = command.data + command.follows()
    return found


class Replay:
    """An image that holds, of a growing prefix of the log, only what no power cut may take: each write that a later
    flush covers, and each that had FUA. `forget` is what flushes are to be overlooked (numbers in the log)."""

    def __init__(self, log, all_commands, image, size, forget=()):
        self.log, self.commands, self.forget = open(log, "rb"), all_commands, set(forget)
        self.image = open(image, "w+b")
        self.image.truncate(size)
        self.seen, self.waiting, self.changes = 0, [], 0

    def close(self):
        self.log.close()
        self.image.close()

    def advance(self, count):
        """Goes on to the first `count` commands."""
        for number in range(self.seen, count):
            command = self.commands[number]
            if command.flags & FLUSH and number not in self.forget:
                for covered in self.waiting:
                    self.apply(covered)
                self.changes += bool(self.waiting)
                self.waiting = []
            if command.flags & FUA:
                self.apply(command)
                self.changes += 1
            elif command.length:
                self.waiting.append(command)
        self.seen = max(self.seen, count)
        self.image.flush()

    def apply(self, command):
        if command.flags & DISCARD:
            # What a discarded block reads as is not said: these bytes are no data of anybody.
            self.put(command.offset, b"\xdb" * min(command.length, 1 << 20))
            return
        self.log.seek(command.data)
        self.put(command.offset, self.log.read(command.length))

    def put(self, offset, data):
        self.image.seek(offset)
        self.image.write(data)

    def copy(self, path):
        """A copy of the image as it is now, holes kept."""
        source, size = self.image.fileno(), os.fstat(self.image.fileno()).st_size
        with open(path, "wb") as out:
            out.truncate(size)
            end = 0
            while (start := next_data(source, end)) is not None:
                end = os.lseek(source, start, os.SEEK_HOLE)
                for at in range(start, end, PIECE):
                    os.pwrite(out.fileno(), os.pread(source, min(PIECE, end - at), at), at)


def next_data(file, offset):
    """Where the next bytes that are no hole are; None if there are none."""
    try:
        return os.lseek(file, offset, os.SEEK_DATA)
    except OSError:
        return None
