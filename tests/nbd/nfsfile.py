#!/usr/bin/python3
"""Makes, resizes and removes files on an NFSv3 server, without mounting it: how the tests make their volumes.

    nfsfile.py HOST:PORT create PATH SIZE | resize PATH SIZE | remove PATH | rename PATH PATH

NFS and MOUNT answer on the same port. Exit status: 0, or the NFS status that was answered (1 if none was).
"""
import os
import socket
import struct
import sys

NFS, MOUNT = (100003, 3), (100005, 3)
AUTH = struct.pack(">IIIIIII", 1, 20, 0, 0, 0, 0, 0)  # AUTH_SYS: no stamp, no name, uid 0, gid 0, no groups
NONE = struct.pack(">II", 0, 0)


class Refused(Exception):
    """The server answered with this status."""


def opaque(data):
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


class Client:
    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.stream = socket.create_connection((host.strip("[]"), int(port)), timeout=30)
        # The server remembers answers by these numbers, also those given to other runs of this program.
        self.xid = int.from_bytes(os.urandom(4), "big") >> 1

    def call(self, program, procedure, arguments):
        """The results behind a status of zero."""
        self.xid += 1
        head = struct.pack(">IIIIII", self.xid, 0, 2, *program, procedure)
        record = head + AUTH + NONE + arguments
        self.stream.sendall(struct.pack(">I", 1 << 31 | len(record)) + record)
        reply = b""
        last = False
        while not last:
            mark = struct.unpack(">I", self.take(4))[0]
            last = mark >> 31
            reply += self.take(mark & 0x7FFFFFFF)
        xid, kind, accepted, _, verifier = struct.unpack(">IIIII", reply[:20])
        results = reply[20 + verifier:]
        outcome, status = struct.unpack(">II", results[:8])
        assert (xid, kind, accepted, outcome) == (self.xid, 1, 0, 0), reply
        if status:
            raise Refused(status)
        return results[8:]

    def take(self, count):
        data = b""
        while len(data) < count:
            more = self.stream.recv(count - len(data))
            assert more, "the server hung up"
            data += more
        return data

    def find(self, path):
        """The directory of a path, and its last name."""
        *folders, name = [part.encode() for part in path.split("/") if part]
        handle = handle_of(self.call(MOUNT, 1, opaque(b"/")))
        for folder in folders:
            handle = handle_of(self.call(NFS, 3, opaque(handle) + opaque(folder)))
        return handle, name


def handle_of(results):
    length = struct.unpack(">I", results[:4])[0]
    return results[4:4 + length]


def attributes(size=None):
    """A sattr3 that sets mode and, if given, size."""
    mode = struct.pack(">II", 1, 0o644)
    return mode + bytes(8) + (struct.pack(">IQ", 1, size) if size is not None else bytes(4)) + bytes(8)


def main(address, action, path, *more):
    client = Client(address)
    folder, name = client.find(path)
    here = opaque(folder) + opaque(name)
    if action == "create":
        client.call(NFS, 8, here + struct.pack(">I", 0) + attributes(int(more[0])))
    elif action == "resize":
        handle = handle_of(client.call(NFS, 3, here))
        client.call(NFS, 2, opaque(handle) + attributes(int(more[0])) + bytes(4))
    elif action == "remove":
        client.call(NFS, 12, here)
    elif action == "rename":
        target, new = client.find(more[0])
        client.call(NFS, 14, here + opaque(target) + opaque(new))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Refused as why:
        status = why.args[0]
        print(f"{' '.join(sys.argv[2:])}: NFS status {status}", file=sys.stderr)
        sys.exit(min(status, 255))
