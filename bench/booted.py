"""The booted image beside a Linux appliance with the same flags of QEMU: NFS and NBD, boot, least memory."""
import collections
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [os.path.join(ROOT, "tests", "lib"), os.path.join(ROOT, "scripts", "lib"), os.path.join(HERE, "peer")]
import load  # noqa: E402
import machine  # noqa: E402
import network  # noqa: E402
from appliance import Appliance, run  # noqa: E402
from peer import Peer  # noqa: E402
from report import figure, rounds, table  # noqa: E402

VOLUME_BYTES = 1 << 30
DISK_BYTES = 16 << 30
NFSFILE = os.path.join(ROOT, "tests", "nbd", "nfsfile.py")
PEER_ADDRESS, PEER_NET = network.CLIENT[3], network.CLIENT[1]
# MiB tried, from more to less: the least with which it still serves. The budget of ours is made for 32 free ones, which a
# machine of 40 has.
MEMORY_TRIED = [512, 256, 192, 160, 128, 96, 80, 64, 48, 40]


class Moraine(Appliance):
    """The booted image with the flags the Linux appliance has too."""
    title = "moraine"

    def __init__(self, disk, cpus=1, memory=1024):
        super().__init__("image", [*network.APPLIANCE, "--driver", "virtio", "--memory", str(memory), "--cpus", str(cpus)],
                         disk)

    def start(self):
        super().start()
        host, port = self.nfs.rsplit(":", 1)
        self.nfs_url = f"nfs://{host}/?version=3&nfsport={port}&mountport={port}"
        self.nbd_uri = f"nbd://{self.nbd}/volume"

    def make_volume(self):
        run(sys.executable, NFSFILE, self.nfs, "create", "volumes/volume", str(VOLUME_BYTES))


class Linux(Peer):
    def __init__(self, fs, disk, cpus=1, memory=1024):
        self.title = f"Linux, {fs}"
        super().__init__(fs, disk, PEER_ADDRESS, PEER_NET, memory, cpus, VOLUME_BYTES)

    def make_volume(self):
        """Its first process has."""


def cpu_seconds(pid):
    """Processor time of a process so far, of all its threads."""
    with open(f"/proc/{pid}/stat") as file:
        words = file.read().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


class Disks:
    """Sparse images in memory: the machine's disk is left out of the picture for both sides."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="moraine-bench-", dir="/dev/shm")
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder)

    def new(self, name):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.truncate(DISK_BYTES)
        return path


def loads(server, options):
    """Runs the load once: workload -> (rate, p99, processor time of the whole VM an operation or MB)."""
    rows = {}

    def group(generator):
        before = cpu_seconds(server.pid)
        for name, operations, total, seconds, p99 in generator:
            now = cpu_seconds(server.pid)
            count = total / 1e6 if "sequential" in name else operations
            rows[name] = (count / seconds, p99, (now - before) / max(count, 1) * 1e6)
            before = now

    group(load.nfs(server.nfs_url, options.mib, options.files, options.depth, options.seconds))
    group(load.nbd(server.nbd_uri, min(options.mib, load.VOLUME_MIB_MAX), options.depth, options.seconds))
    return rows


def side_by_side(options, fs, cpus):
    """Both up at once, loaded in turn, the order turned round each round. Workload -> side -> list of rows."""
    seen = collections.defaultdict(lambda: ([], []))
    with Disks() as disks, Moraine(disks.new("moraine"), cpus) as ours, Linux(fs, disks.new("linux"), cpus) as theirs:
        sides = [ours, theirs]
        for side in sides:
            side.make_volume()
        for number in rounds(options):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                print(f"round {number + 1}: {sides[which].title}", file=sys.stderr)
                for name, row in loads(sides[which], options).items():
                    seen[name][which].append(row)
        ours.stop()
        theirs.stop()
    return seen


def boots(options, fs):
    """(milliseconds to the first answered NFS call, processor seconds up to then) of both, medians."""
    result = []
    with Disks() as disks:
        for make in (lambda: Moraine(disks.new("moraine")), lambda: Linux(fs, disks.new("linux"))):
            with make() as side:
                side.stop()
                wall, spent = [], []
                for _ in range(options.rounds):
                    began = time.monotonic()
                    side.start()
                    wall.append((time.monotonic() - began) * 1000)
                    spent.append(cpu_seconds(side.pid))
                    side.stop()
                result.append((side.title, statistics.median(wall), statistics.median(spent)))
    return result


def least_memory(options, fs):
    """MiB with which each still takes a load of files and blocks."""
    result = []
    small = type(options)(**{**vars(options), "mib": 64, "files": 200, "seconds": 1})
    with Disks() as disks:
        for name, make in (("moraine", lambda mib: Moraine(disks.new("moraine"), memory=mib)),
                           (f"Linux, {fs}", lambda mib: Linux(fs, disks.new("linux"), memory=mib))):
            least = None
            for mib in MEMORY_TRIED:
                print(f"least memory: {name}, {mib} MiB", file=sys.stderr)
                try:
                    with make(mib) as side:
                        side.make_volume()
                        loads(side, small)
                        side.stop()
                except (RuntimeError, OSError, subprocess.SubprocessError):
                    break
                least = mib
            result.append((name, least))
    return result


def prepare(options):
    """What needs the world outside, before the network is one of our own."""
    if not network.entered():
        machine.build_kernel()
        load.nfsload()
        for fs in options.fs.split(","):
            Peer(fs, "", PEER_ADDRESS, PEER_NET).image()
    network.enter()


def rows_of(seen):
    """For each workload: both medians, the median of the rounds' ratios, and the ratio of processor time."""
    rows = []
    for name, (ours, theirs) in seen.items():
        unit = "MB/s" if "sequential" in name else "/s"
        median = lambda side, column: statistics.median(row[column] for row in side)
        ratio = statistics.median(a[0] / b[0] for a, b in zip(ours, theirs))
        spent = statistics.median(a[2] / b[2] for a, b in zip(ours, theirs) if b[2]) if any(b[2] for b in theirs) else 0
        rows.append([name, f"{figure(median(ours, 0))} {unit}", f"{figure(median(theirs, 0))} {unit}", f"{ratio:.2f}×",
                     f"{spent:.2f}×"])
    return rows


def report(options):
    filesystems, parts = options.fs.split(","), []
    parts.append(f"At most {options.rounds} rounds, medians; {options.mib} MiB, {options.files} files, {options.depth} calls in flight. Both "
                 "machines emulated by QEMU on one host, 1 GiB of memory, virtio disk in memory, a bridge of taps.")
    for cpus in map(int, options.cpus.split(",")):
        for fs in filesystems:
            head = ["workload", "moraine", f"Linux, {fs}", "rate", "processor time of the VM an operation"]
            rows = rows_of(side_by_side(options, fs, cpus))
            parts.append(f"{cpus} virtual processor{'s' if cpus > 1 else ''}, beside Linux with {fs}:\n\n" + table(head, rows))
    boot = [[title, figure(wall), figure(spent)] for title, wall, spent in boots(options, filesystems[0])]
    parts.append("From the start of QEMU to the first answers:\n\n" + table(["", "ms", "processor seconds"], boot))
    least = [[title, str(mib)] for title, mib in least_memory(options, filesystems[0])]
    parts.append("Least memory with which it serves a small load:\n\n" + table(["", "MiB"], least))
    return "\n\n".join(parts)
