"""A disk is taken away from a running machine, as by a hand that pulls it: its client is told, and nothing hangs."""
import os
import socket
import time

import nfsfile

# QEMU's ACPI hot-plug controller on the `pc` machine (docs/specs/acpi_pci_hotplug): which bus, and which slots to eject.
SELECT_BUS, EJECT = 0xAE10, 0xAE08
# The first device that scripts/run adds: behind the bridge and the controllers of the machine.
DISK_SLOT = 2
NOTICED_SECONDS_MAX = 15
IO_ERROR = 5


def eject(path):
    """What the operating system of a guest would write to let a device go; here it knows nothing of it."""
    with socket.socket(socket.AF_UNIX) as port:
        port.connect(path)
        answers = port.makefile("r")
        for register, value in ((SELECT_BUS, 0), (EJECT, 1 << DISK_SLOT)):
            port.sendall(f"outl {register:#x} {value:#x}\n".encode())
            assert answers.readline().startswith("OK"), "QEMU's test port refuses"


def run(cases, work):
    for driver in ("virtio", "nvme"):
        # A folder of its own, with a disk that is of no other case's pool.
        folder = os.path.join(work, f"taken-{driver}")
        os.mkdir(folder)
        port = os.path.join(folder, "qtest")

        def check(script, port=port):
            address = script.ready()[1]
            nfsfile.main(address, "create", "before", "0")
            client = nfsfile.Client(address)
            home, name = client.find("after")
            eject(port)
            began = time.monotonic()
            try:
                client.call(nfsfile.NFS, 8, nfsfile.opaque(home) + nfsfile.opaque(name) + bytes(4) + nfsfile.attributes(0))
                raise AssertionError("a file was made without a disk")
            except nfsfile.Refused as refused:
                assert refused.args[0] == IO_ERROR, refused
            took = time.monotonic() - began
            assert took < NOTICED_SECONDS_MAX, f"it took {took:.0f} s to notice"
            # What is in memory can still be read, and the machine ends when it is asked to.
            client.call(nfsfile.NFS, 1, nfsfile.opaque(home))
            script.process.terminate()
            script.ends()

        cases.script(f"run-disk-taken-away-{driver}", folder,
                     ["--append", "", "--machine", "pc", "--driver", driver, "--memory", "128",
                      "--qemu", f"-qtest unix:{port},server=on,wait=off -qtest-log none"], check)
