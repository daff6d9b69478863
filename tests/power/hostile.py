"""Clients that stall, and garbage: each ends in a clean protocol error or a closed connection, and others stay served."""
import os
import socket
import struct
import sys

from appliance import ROOT, run
from machines import ForgetfulDisk, Image
from tree import MIB
from volumes import NFSFILE, make_volume, uri

sys.path.insert(0, os.path.join(ROOT, "tests", "nbd"))
import nfsfile  # noqa: E402

PATIENCE_SECONDS = 30
NFS_NULL, NFS_GETATTR, NFS_READ = 0, 1, 6
NO_CREDENTIALS = bytes(16)


def connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS)


def record(body):
    return struct.pack(">I", 1 << 31 | len(body)) + body


def call(procedure, arguments=b"", rpc=2, program=100003, version=3):
    return record(struct.pack(">IIIIII", 7, 0, rpc, program, version, procedure) + NO_CREDENTIALS + arguments)


def answer(address, request):
    """The reply behind its record mark, or nothing if the connection is closed."""
    with connect(address) as s:
        s.sendall(request)
        reply = b""
        while len(reply) < 4 or len(reply) < 4 + (struct.unpack(">I", reply[:4])[0] & 0x7FFFFFFF):
            part = s.recv(65536)
            if not part:
                return b""
            reply += part
        return reply[4:]


def refusals(server):
    """What is understood and wrong is told so, in the protocol's words."""
    words = struct.Struct(">6I")
    mismatch = answer(server.nfs, call(NFS_NULL, rpc=3))
    assert words.unpack(mismatch[:24]) == (7, 1, 1, 0, 2, 2), "RPC_MISMATCH with versions 2 to 2"
    program = answer(server.nfs, call(NFS_NULL, program=100099))
    assert words.unpack(program[:24])[5] == 1, "PROG_UNAVAIL"
    procedure = answer(server.nfs, call(99))
    assert words.unpack(procedure[:24])[5] == 3, "PROC_UNAVAIL"
    arguments = answer(server.nfs, call(NFS_GETATTR, b"\xff\xff\xff\xff"))
    assert words.unpack(arguments[:24])[5] == 4, "GARBAGE_ARGS"
    # A record of 2 GiB in one fragment: nobody waits for it.
    assert answer(server.nfs, b"\xff\xff\xff\xff" + bytes(4096)) == b"", "closed"


def garbage(server, chance, count):
    for address in (server.nfs, server.nbd):
        for _ in range(count):
            data = chance.randbytes(chance.randrange(1, 3000))
            with connect(address) as s:
                try:
                    s.sendall(data)
                    s.shutdown(socket.SHUT_WR)
                    # An answer or an end, in bounded time.
                    while s.recv(65536):
                        pass
                except TimeoutError:
                    raise AssertionError(f"{address} stands still after {len(data)} bytes: {data[:64].hex()}") from None
                except OSError:
                    pass  # it hung up first


def stalled(server, count):
    """Connections that stand still in the middle of something; to be kept open."""
    held = []
    beginnings = [
        (server.nfs, b"\x80"),
        (server.nfs, record(bytes(100_000))[:50]),
        (server.nfs, call(7, bytes(200_000))[:1000]),
        (server.nbd, b""),
        (server.nbd, struct.pack(">IQI", 3, 0x49484156454F5054, 7)),
    ]
    for number in range(count):
        address, data = beginnings[number % len(beginnings)]
        s = connect(address)
        s.sendall(data)
        held.append(s)
    return held


def slow_readers(server, path, count):
    """Clients that ask for much and take nothing."""
    client = nfsfile.Client(server.nfs)
    folder, name = client.find(path)
    handle = nfsfile.handle_of(client.call(nfsfile.NFS, 3, nfsfile.opaque(folder) + nfsfile.opaque(name)))
    read = call(NFS_READ, nfsfile.opaque(handle) + struct.pack(">QI", 0, 65536))
    held = []
    for _ in range(count):
        s = connect(server.nfs)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.sendall(read * 64)
        held.append(s)
    return held


def honest(server, bench, number):
    """What any client may expect meanwhile."""
    name, path = f"honest-{number}", bench.path("honest")
    with open(path, "wb") as file:
        file.write(bench.plan(name).chance.randbytes(8 * MIB))
    make_volume(server, name, 8 * MIB)
    run("nbdcopy", "--flush", path, uri(server, name), timeout=120)
    run("nbdcopy", uri(server, name), path + ".back", timeout=120)
    run("cmp", path, path + ".back")
    run(NFSFILE, server.nfs, "remove", f"volumes/{name}", timeout=120)


def hostile(bench):
    chance = bench.plan("hostile").chance
    rounds = 10 if bench.long else 1
    with ForgetfulDisk(bench.path("disk"), 2 << 30) as disk, Image(disk, "--memory", "128") as server:
        make_volume(server, "large", 16 * MIB)
        for number in range(rounds):
            refusals(server)
            garbage(server, chance, 40)
            held = stalled(server, 60) + slow_readers(server, "volumes/large", 12)
            honest(server, bench, number)
            refusals(server)
            for s in held:
                s.close()
        server.end()
        return f"{rounds} rounds: refusals, 80 bits of garbage, 60 stalled and 12 slow clients beside an honest one"
