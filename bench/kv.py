"""The engine as a store of keys, beside redb, LMDB, RocksDB and a map with a log: processor time, instructions, bytes
that reach the device."""
import collections
import os
import re
import statistics
import subprocess
import sys
import tempfile

from report import ROOT, figure, rounds, table

BINARY = os.path.join(ROOT, "target/release/moraine-bench")
ENGINES = ["moraine", "redb", "lmdb", "rocksdb", "wal"]
# Under valgrind `rep movsb` counts an instruction a byte; the library's other way of copying counts as it runs.
PLAIN_COPIES = "glibc.cpu.x86_rep_movsb_threshold=0x7fffffffffff:glibc.cpu.x86_rep_stosb_threshold=0x7fffffffffff"
COUNTED_ENTRIES = 100_000


def call(*words, **options):
    return subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


class LoopDisk:
    """A loop device on a file in memory, with an ext4 of its own: what reaches it is counted, and nothing else does."""

    def __init__(self, gib):
        self.gib = gib

    def __enter__(self):
        self.dir = tempfile.TemporaryDirectory(prefix="moraine-bench-", dir="/dev/shm")
        image = os.path.join(self.dir.name, "disk")
        with open(image, "wb") as file:
            file.truncate(self.gib << 30)
        self.device = call("losetup", "--show", "--find", "--direct-io=off", image).strip()
        call("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.device)
        self.path = os.path.join(self.dir.name, "mnt")
        os.mkdir(self.path)
        call("mount", self.device, self.path)
        return self

    def __exit__(self, *_):
        call("umount", self.path)
        call("losetup", "--detach", self.device)
        self.dir.cleanup()

    @property
    def stat(self):
        return f"/sys/block/{os.path.basename(self.device)}/stat"


def rounds_of_kv(options):
    """engine -> phase -> list of rows, a row being a dict of the printed columns."""
    rows = collections.defaultdict(lambda: collections.defaultdict(list))
    with LoopDisk(12) as disk:
        for number in rounds(options):
            for engine in ENGINES:
                print(f"round {number + 1}: {engine}", file=sys.stderr)
                text = call(BINARY, "kv", engine, disk.path, "--entries", str(options.entries), "--commits",
                            str(options.commits), "--cache", str(options.cache), "--stat", disk.stat)
                lines = [line.split("\t") for line in text.splitlines()]
                for line in lines[1:]:
                    row = dict(zip(lines[0], line))
                    rows[engine][row["phase"]].append(row)
                call("fstrim", disk.path)
    return rows


def instructions(engine, phases):
    with tempfile.TemporaryDirectory(prefix="moraine-bench-", dir="/dev/shm") as scratch:
        run = subprocess.run(
            ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", BINARY, "kv", engine, scratch,
             "--entries", str(COUNTED_ENTRIES), "--commits", "200", "--cache", "64", "--phases", phases],
            text=True, capture_output=True, env={**os.environ, "GLIBC_TUNABLES": PLAIN_COPIES}, check=True)
    return int(re.search(r"Collected : (\d+)", run.stderr).group(1))


def counted(options):
    """engine -> instructions for each operation of load, put at 100 a commit, get, scan."""
    result = {}
    for engine in ENGINES:
        print(f"instructions: {engine}", file=sys.stderr)
        load = instructions(engine, "load")
        cost = lambda phase, operations: (instructions(engine, f"load,{phase}") - load) // operations
        result[engine] = {
            "load": load // COUNTED_ENTRIES,
            "put_100": cost("put_100", 20_000),
            "get": cost("get", 500_000),
            "scan": cost("scan", COUNTED_ENTRIES),
        }
    return result


def report(options):
    rows = rounds_of_kv(options)
    median = lambda engine, phase, column: statistics.median(float(r[column]) for r in rows[engine][phase])
    phases = [p for p in rows["moraine"] if p != "close"]
    cpu = [[p, *(figure(median(e, p, "cpu_us/op")) for e in ENGINES)] for p in phases]
    amplified = [p for p in phases if median("moraine", p, "write_amp") > 0]
    written = [[p, *(figure(median(e, p, "write_amp")) for e in ENGINES)] for p in amplified]
    last = lambda e, column: figure(median(e, "delete_1000", column))
    size = [["stored, MB", *(last(e, "stored_MB") for e in ENGINES)],
            ["peak memory, MiB", *(last(e, "peak_MiB") for e in ENGINES)]]
    parts = [
        f"{options.entries} entries of 64 bytes, {len(rows['moraine']['load'])} rounds, medians. Stores on ext4 on a loop device in memory.",
        "Processor time of all threads, µs an operation:\n\n" + table(["phase", *ENGINES], cpu),
        "Bytes that reached the device for each byte of entries:\n\n" + table(["phase", *ENGINES], written),
        table(["at the end", *ENGINES], size),
    ]
    if not options.no_instructions:
        count = counted(options)
        kinds = ["load", "put_100", "get", "scan"]
        parts.append(f"Instructions an operation, {COUNTED_ENTRIES} entries:\n\n" + table(
            ["phase", *ENGINES], [[k, *(str(count[e][k]) for e in ENGINES)] for k in kinds]))
    return "\n\n".join(parts)
