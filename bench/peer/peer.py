"""A Linux storage appliance in a VM, as a user would build it instead: Debian's kernel, one filesystem, knfsd and
nbd-server, nothing else running. The way it is started and ended is that of tests/lib/appliance.py."""
import os
import subprocess
import sys
import threading
import time

HERE = os.path.dirname(os.path.realpath(__file__))
ROOT = os.path.realpath(os.path.join(HERE, "..", ".."))
sys.path[:0] = [os.path.join(ROOT, "tests", "lib"), os.path.join(ROOT, "scripts", "lib")]
import vm  # noqa: E402
from machine import die_with_parent  # noqa: E402
from pathlib import Path  # noqa: E402

MKFS = {"xfs": "usr/sbin/mkfs.xfs", "ext4": "usr/sbin/mke2fs", "btrfs": "usr/sbin/mkfs.btrfs", "bcachefs": ""}
MAC = "52:54:00:12:34:10"
NFS_PORT, MOUNT_PORT, NBD_PORT = 2049, 20048, 10809
READY_SECONDS_MAX = 120
STOP_SECONDS_MAX = 60


def guest(fs):
    return vm.Guest(
        name=f"peer-{fs}", init=Path(HERE, "server.init"),
        packages="""libc6 busybox-static kmod nfs-kernel-server nfs-common rpcbind netbase libtirpc-common nbd-server
          btrfs-progs e2fsprogs xfsprogs util-linux coreutils""",
        programs=f"""usr/sbin/rpcbind usr/sbin/rpc.nfsd usr/sbin/rpc.mountd usr/sbin/exportfs usr/bin/nbd-server
          {MKFS[fs]}""",
        modules=f"virtio_net virtio_blk sunrpc nfsd crc32c_intel {fs}",
        users=(("root", 0), ("nobody", 65534), ("statd", 102)),
        links=())


class Peer:
    """One such VM, on a disk that it formats when it first starts."""

    def __init__(self, fs, disk, address, net, memory=1024, cpus=1, volume_bytes=1 << 30):
        self.fs, self.disk, self.address, self.net = fs, disk, address, net
        self.memory, self.cpus, self.volume_bytes = memory, cpus, volume_bytes
        self.host = address.split("/")[0]
        self.nfs_url = f"nfs://{self.host}/srv?version=3&nfsport={NFS_PORT}&mountport={MOUNT_PORT}"
        self.nbd_uri = f"nbd://{self.host}:{NBD_PORT}/vol"
        self.nfs = f"{self.host}:{NFS_PORT}"
        self.formatted = False
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def image(self):
        return vm.image(guest(self.fs))

    def start(self):
        if self.fs == "bcachefs" and not self.formatted:
            subprocess.run([os.path.join(HERE, "mkbcachefs"), self.disk], check=True)
        words = (f"peer.fs={self.fs} peer.format={int(not self.formatted)} peer.ip={self.address} "
                 f"peer.nbd={self.volume_bytes}")
        extra = ["-drive", f"file={self.disk},format=raw,if=none,id=d0,cache=writeback,discard=unmap",
                 "-device", "virtio-blk-pci,drive=d0", "-serial", "null", "-device", "virtio-serial-pci",
                 "-chardev", "stdio,id=c,signal=off", "-device", "virtserialport,chardev=c,nr=1"]
        command = vm.qemu(self.image(), words, self.cpus, self.memory, self.net, MAC, extra)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        errors="replace", preexec_fn=die_with_parent)
        self.pid = self.process.pid
        late = threading.Timer(READY_SECONDS_MAX, self.process.kill)
        late.start()
        said = []
        for line in self.process.stdout:
            said.append(line)
            if line.startswith("READY"):
                break
        late.cancel()
        if not said or not said[-1].startswith("READY"):
            raise RuntimeError(f"the Linux appliance with {self.fs} did not start:\n{''.join(said)}")
        self.formatted = True

    def stop(self):
        try:
            self.process.stdin.write("poweroff\n")
            self.process.stdin.flush()
            self.process.wait(STOP_SECONDS_MAX)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
