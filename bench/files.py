"""The filesystem beside the kernel's, natively, each on a loop device in memory: small overwrites, synced writes, small new
files, mounting after a stop without warning; and a bare device for what a single commit costs at least."""
import collections
import os
import statistics
import subprocess
import sys
import tempfile

from kv import BINARY, call
from report import figure, rounds, table

KERNEL = ["xfs", "ext4", "btrfs"]
PHASES = "overwrite,direct,sync,create"
# Files for the mount: as many as were asked for, and a hundredth, to see how it grows.
SMALLER = 100


class Loop:
    """A loop device on a sparse file in memory."""

    def __init__(self, image):
        self.image = image

    def __enter__(self):
        self.device = call("losetup", "--show", "--find", "--direct-io=off", self.image).strip()
        return self

    def __exit__(self, *_):
        call("losetup", "--detach", self.device)

    @property
    def stat(self):
        return f"/sys/block/{os.path.basename(self.device)}/stat"


def new_image(scratch, gib):
    image = os.path.join(scratch, "disk")
    with open(image, "wb") as file:
        file.truncate(gib << 30)
    return image


def rows_of(text):
    lines = [line.split("\t") for line in text.splitlines()]
    return [dict(zip(lines[0], line)) for line in lines[1:]]


def measure(kind, path, loop, phases, options):
    return rows_of(call(BINARY, "files", kind, path, "--phases", phases, "--files", str(options.files_made), "--fill",
                        str(options.fill), "--stat", loop.stat))


def work(scratch, name, phases, options, after=None):
    """One kind through phases on a new device; `after` gets the scratch directory's image as a power cut leaves it."""
    image = new_image(scratch, 16)
    mnt = os.path.join(scratch, "mnt")
    os.makedirs(mnt, exist_ok=True)
    try:
        with Loop(image) as loop:
            if name in KERNEL:
                call(f"mkfs.{name}", "-q", loop.device, stderr=subprocess.DEVNULL)
                call("mount", loop.device, mnt)
                try:
                    rows = measure("kernel", mnt, loop, phases, options)
                    if after:
                        # What lies on the device now is what a power cut would leave.
                        call("cp", "--sparse=always", image, image + ".cut")
                finally:
                    call("umount", mnt)
            else:
                rows = measure(name, loop.device, loop, phases, options)
                if after:
                    call("cp", "--sparse=always", image, image + ".cut")
        return after(image + ".cut") if after else rows
    finally:
        for path in (image, image + ".cut"):
            if os.path.exists(path):
                os.remove(path)


def mount_after_cut(scratch, name, fill, options):
    options.fill = fill
    mnt = os.path.join(scratch, "mnt")

    def mount(image):
        with Loop(image) as loop:
            kind = "kernel" if name in KERNEL else name
            with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
                file.write("1")
            row = rows_of(call(BINARY, "mount", kind, loop.device, mnt))[0]
            if kind == "kernel":
                call("umount", mnt)
        return row

    return work(scratch, name, "fill", options, mount)


def report(options):
    rows = collections.defaultdict(lambda: collections.defaultdict(list))
    mounts = collections.defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="moraine-bench-", dir="/dev/shm") as scratch:
        options.fill = 0
        for number in rounds(options):
            for name in ["raw", "moraine", *KERNEL]:
                print(f"round {number + 1}: {name}", file=sys.stderr)
                phases = {"raw": "commit", "moraine": "commit," + PHASES}.get(name, PHASES)
                for row in work(scratch, name, phases, options):
                    rows[name][row["phase"]].append(row)
        for number in rounds(options, options.mount_rounds):
            for name in ["moraine", *KERNEL]:
                for fill in (options.mounted_files // SMALLER, options.mounted_files):
                    print(f"mount round {number + 1}: {name}, {fill} files", file=sys.stderr)
                    mounts[name, fill].append(mount_after_cut(scratch, name, fill, options))
    median = lambda name, phase, column: statistics.median(float(r[column]) for r in rows[name][phase])
    names = ["moraine", *KERNEL]
    show = lambda phase, column: [figure(median(n, phase, column)) if rows[n][phase] else "–" for n in names]
    mounted = lambda fill, column: [figure(statistics.median(float(m[column]) for m in mounts[n, fill])) for n in names]
    lines = [
        ["4 KiB overwrite in the cache, durable at the end", "µs", *show("overwrite", "cpu_us/op")],
        ["the same past the cache, 32 under way", "µs", *show("direct", "cpu_us/op")],
        ["4 KiB write, durable each", "µs", *show("sync", "cpu_us/op")],
        ["4 KiB write, durable each", "a second", *show("sync", "ops/s")],
        ["the same, bytes that reach the device", "bytes", *show("sync", "bytes/op")],
        ["new 4 KiB file, durable at the end", "µs", *show("create", "cpu_us/op")],
    ]
    for fill in (options.mounted_files // SMALLER, options.mounted_files):
        lines.append([f"mount after a power cut, {fill} files", "ms", *mounted(fill, "ms")])
        lines.append([f"mount after a power cut, {fill} files, processor", "ms", *mounted(fill, "cpu_ms")])
    single = [[n, figure(median(n, "commit", "ops/s")), figure(median(n, "commit", "cpu_us/op")),
               figure(median(n, "commit", "bytes/op"))] for n in ("moraine", "raw")]
    return "\n\n".join([
        f"{len(rows['raw']['commit'])} rounds, medians (mounts: {len(mounts['moraine', options.mounted_files])}). Processor time is that of the process and of the "
        "kernel's own threads.",
        table(["work", "", *names], lines),
        "Single durable commits of a small key, beside a 4 KiB write and `fdatasync` on the bare device:\n\n"
        + table(["", "a second", "processor time, µs", "bytes"], single),
    ])
