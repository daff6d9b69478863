"""A disk behind NBD that forgets: what was not flushed when the power goes is lost, all of it or a seeded part.

    with ForgetfulDisk(path, size) as disk:
        disk.uri                    # nbd://127.0.0.1:PORT/disk, for scripts/run --disk
        disk.cut(seed=None)         # power cut: nothing unflushed is kept; with a seed, a random part of it
    # `path` is what the platter holds, for fsck

Two files: `path` holds what is stable, `path`.now what the disk answers reads from. Each write goes to the second at
once and waits in a log, in order, for the flush (or its own FUA) that carries it to the first. A cut forgets the log and
makes the second file equal the first again. One connection at a time; requests are answered in order.
"""
import ctypes
import os
import random
import socket
import struct
import threading

HANDSHAKE_MAGIC, OPTION_MAGIC, REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, ANSWER_MAGIC = 0x25609513, 0x67446698
OPT_EXPORT_NAME, OPT_ABORT, OPT_INFO, OPT_GO = 1, 2, 6, 7
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, 1 << 31 | 1
READ, WRITE, DISC, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA, NO_HOLE = 1, 2
# HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES
FLAGS = 1 | 4 | 8 | 32 | 64
EINVAL = 22
REQUEST_BYTES_MAX = 32 << 20
OPTION_BYTES_MAX = 64 << 10
# A cache writes back by itself when it is full.
LOG_BYTES_MAX = 256 << 20
SECTOR = 512
KEEP_SIZE_PUNCH_HOLE = 1 | 2
libc = ctypes.CDLL(None, use_errno=True)


class ForgetfulDisk:
    def __init__(self, path, size, lies=False):
        """`lies`: acknowledges flushes and carries nothing out, to show that the tests would notice."""
        self.path, self.size, self.lies = path, size, lies
        for name in (path, path + ".now"):
            with open(name, "ab") as file:
                file.truncate(size)
        self.stable = os.open(path, os.O_RDWR)
        self.now = os.open(path + ".now", os.O_RDWR)
        self.log, self.log_bytes = [], 0
        self.counts = {"writes": 0, "forced": 0, "flushes": 0, "dropped": 0, "kept": 0}
        self.lock = threading.Lock()
        self.connection = None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"nbd://127.0.0.1:{self.listener.getsockname()[1]}/disk"
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hang_up()
        # Closing alone would leave the thread in its accept.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        for file in (self.stable, self.now):
            os.close(file)
        os.unlink(self.path + ".now")

    # The power cut.

    def hang_up(self):
        connection = self.connection
        if connection:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self, seed=None):
        """After the machine's end: forgets what was not flushed; with a seed, keeps, drops or tears each write by chance.
        Tells how many writes were kept and dropped."""
        self.hang_up()
        with self.lock:
            chance = random.Random(seed)
            kept = []
            for at, length, data in self.log:
                fate = "drop" if seed is None else chance.choice(["keep", "drop", "tear"])
                if fate == "tear" and length > SECTOR:
                    length = chance.randrange(SECTOR, length, SECTOR)
                if fate == "drop":
                    self.counts["dropped"] += 1
                else:
                    self.counts["kept"] += 1
                    kept.append((at, length, data))
            touched, self.log, self.log_bytes = self.log, [], 0
            for at, length, data in kept:
                put(self.stable, at, length, data)
            for at, length, _ in touched:
                copy(self.stable, self.now, at, length)
            return f"{len(kept)} unflushed writes kept, {len(touched) - len(kept)} dropped"

    # The disk. Each of these holds the lock.

    def write(self, at, length, data):
        """`data` of None are zeroes."""
        put(self.now, at, length, data)
        self.log.append((at, length, data))
        self.log_bytes += len(data) if data else 0
        self.counts["writes"] += 1
        if self.log_bytes > LOG_BYTES_MAX and not self.lies:
            self.carry_out(len(self.log) // 2)

    def flush(self):
        self.counts["flushes"] += 1
        if not self.lies:
            self.carry_out(len(self.log))

    def force(self, start, end):
        """Carries out what touches a range, older writes too: none of them may come later and undo it."""
        self.counts["forced"] += 1
        touching = [e for e in self.log if e[0] < end and start < e[0] + e[1]]
        self.log = touching + [e for e in self.log if not (e[0] < end and start < e[0] + e[1])]
        self.carry_out(len(touching))

    def carry_out(self, count):
        for at, length, data in self.log[:count]:
            put(self.stable, at, length, data)
            self.log_bytes -= len(data) if data else 0
        del self.log[:count]

    # The protocol: fixed newstyle, simple replies.

    def serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.connection = connection
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    if self.negotiate(connection):
                        self.answer(connection)
                except (ConnectionError, TimeoutError):
                    pass
                self.connection = None

    def negotiate(self, s):
        s.sendall(struct.pack(">QQH", HANDSHAKE_MAGIC, OPTION_MAGIC, 1 | 2))
        no_zeroes = struct.unpack(">I", take(s, 4))[0] & 2
        while True:
            magic, option, length = struct.unpack(">QII", take(s, 16))
            if magic != OPTION_MAGIC or length > OPTION_BYTES_MAX:
                return False
            take(s, length)

            def reply(kind, data=b""):
                s.sendall(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)

            if option == OPT_EXPORT_NAME:
                s.sendall(struct.pack(">QH", self.size, FLAGS) + bytes(0 if no_zeroes else 124))
                return True
            if option in (OPT_INFO, OPT_GO):
                reply(REP_INFO, struct.pack(">HQH", 0, self.size, FLAGS))
                reply(REP_INFO, struct.pack(">HIII", 3, SECTOR, 4096, REQUEST_BYTES_MAX))
                reply(REP_ACK)
                if option == OPT_GO:
                    return True
            elif option == OPT_ABORT:
                reply(REP_ACK)
                return False
            else:
                reply(REP_ERR_UNSUP)

    def answer(self, s):
        while True:
            magic, flags, command, cookie, at, length = struct.unpack(">IHHQQI", take(s, 28))
            if magic != REQUEST_MAGIC or command == DISC or (command <= WRITE and length > REQUEST_BYTES_MAX):
                return
            data = take(s, length) if command == WRITE else None
            error, answer = 0, b""
            with self.lock:
                if command != FLUSH and at + length > self.size:
                    error = EINVAL
                elif command == READ:
                    answer = os.pread(self.now, length, at)
                elif command in (WRITE, TRIM, WRITE_ZEROES):
                    self.write(at, length, data)
                    if flags & FUA and not self.lies:
                        self.force(at, at + length)
                elif command == FLUSH:
                    self.flush()
                else:
                    error = EINVAL
            s.sendall(struct.pack(">IIQ", ANSWER_MAGIC, error, cookie) + answer)


def take(s, count):
    data = bytearray(count)
    view, have = memoryview(data), 0
    while have < count:
        got = s.recv_into(view[have:])
        if not got:
            raise ConnectionError("hung up")
        have += got
    return data


def put(file, at, length, data):
    """Writes the first `length` bytes of `data`, or zeroes as a hole."""
    if data is not None:
        assert os.pwrite(file, memoryview(data)[:length], at) == length
    elif libc.fallocate(file, KEEP_SIZE_PUNCH_HOLE, ctypes.c_long(at), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), "punching a hole")


def copy(source, target, at, length):
    """A range of one file to another, holes as holes."""
    end = at + length
    while at < end:
        data = os.pread(source, min(end - at, 1 << 20), at)
        put(target, at, len(data), data if data.count(0) != len(data) else None)
        at += len(data)
