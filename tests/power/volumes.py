"""Disk images as volumes over NBD: copied in, the power cut after the flush, and checked through NBD by the owners of
their formats."""
import os
import subprocess

from appliance import ROOT, run
from machines import Client, ForgetfulDisk, Image
from tree import MIB

DISK_BYTES = 8 << 30
NFSFILE = os.path.join(ROOT, "tests", "nbd", "nfsfile.py")


def ext4(path, source, size):
    with open(path, "wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-d", source, path)


def xfs(path, source, size):
    """Populated through a prototype, whose grammar knows no blanks in names."""
    lines = ["-", "0 0", "d--755 0 0"]

    def folder(here):
        for entry in sorted(os.scandir(here), key=lambda e: e.name):
            if entry.is_symlink():
                lines.append(f"{entry.name} l--777 0 0 {os.readlink(entry.path)}")
            elif entry.is_dir():
                lines.append(f"{entry.name} d--755 0 0")
                folder(entry.path)
            elif entry.is_file():
                lines.append(f"{entry.name} ---644 0 0 {entry.path}")
        lines.append("$")

    folder(source)
    with open(path + ".proto", "w") as file:
        file.write("\n".join(lines) + "\n")
    with open(path, "wb") as file:
        file.truncate(size)
    run("mkfs.xfs", "-q", "-f", "-p", path + ".proto", path)


def make_volume(server, name, size):
    run(NFSFILE, server.nfs, "create", f"volumes/{name}", str(size))


def uri(server, name):
    return f"nbd://{server.nbd}/{name}"


def volumes(bench):
    plan = bench.plan("volumes")
    # The least that mkfs.xfs makes is 300 MiB; most of it are holes.
    size = (1536 if bench.long else 384) * MIB
    source = bench.project() if not bench.long else os.path.join(bench.source(), "lib", "rustlib")
    images = {"e": ext4, "x": xfs}
    for name, make in images.items():
        make(bench.path(name), source, size)
    with ForgetfulDisk(bench.path("disk"), DISK_BYTES) as disk, Image(disk, "--memory", "128") as server:
        for name in images:
            make_volume(server, name, size)
            run("nbdcopy", "--destination-is-zero", "--flush", bench.path(name), uri(server, name), timeout=3600)
        server.cut_power(plan.subset())
        server.fsck()
        server.start()
        for name in images:
            run("nbdcopy", uri(server, name), bench.path("back"), timeout=3600)
            run("cmp", bench.path(name), bench.path("back"), timeout=3600)
            os.unlink(bench.path("back"))
        with Client(server, "volumes.sh", VOLUMES=" ".join(f"{n}:{make.__name__}" for n, make in images.items())) as client:
            note = client.finish()

        # A cut amid another copy harms neither volume nor neighbour.
        make_volume(server, "half", size)
        copy = subprocess.Popen(["nbdcopy", "--destination-is-zero", "--progress=3", bench.path("e"), uri(server, "half")],
                                stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(), stdout=subprocess.DEVNULL)
        writes = disk.counts["writes"]
        while copy.poll() is None and disk.counts["writes"] < writes + 5:
            pass
        server.cut_power(plan.subset())
        # Nobody tells it that its server is gone: with all it sent acknowledged it would wait for answers for good.
        copy.kill()
        copy.wait()
        server.fsck()
        server.start()
        run("nbdcopy", uri(server, "x"), bench.path("back"), timeout=3600)
        run("cmp", bench.path("x"), bench.path("back"), timeout=3600)
        for name in (*images, "half"):
            run(NFSFILE, server.nfs, "remove", f"volumes/{name}")
        server.end()
        return f"{note}; {disk.counts}"
