"""Cases of tests/boot in which the red zone is held while disks and cards interrupt (boot word selftest=canary)."""

import os
import socket
import threading

DISK_BYTES = 64 << 20


def udp_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def under_frames(port):
    """Frames come all the time while the canary runs."""

    def check(console):
        console.wait_for(r"^moraine canary waits for frames")
        end = threading.Event()

        def send():
            frame = b"\xff" * 6 + b"\x52\x54\x00\x00\x00\x01" + b"\x88\xb5" + bytes(200)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                while not end.wait(0.0005):
                    s.sendto(frame, ("127.0.0.1", port))

        sender = threading.Thread(target=send)
        sender.start()
        try:
            console.wait_for(r"devices: red zone intact after \d{3,} interrupts; without their stack [1-9]\d* of \d+ holds break")
            console.wait_for(r"^moraine canary passed")
            assert console.ends() == 0, "the machine switches off"
        finally:
            end.set()
            sender.join()

    return check


def run(cases, boot, microvm, work):
    """`boot` makes QEMU's arguments, `microvm` are those of that machine."""

    def devices(name, *disks):
        arguments = []
        for i, disk in enumerate(disks):
            path = os.path.join(work, f"canary-{name}-{i}")
            with open(path, "wb") as file:
                file.truncate(DISK_BYTES)
            arguments += ["-drive", f"if=none,id=d{i},format=raw,file={path}", "-device", f"{disk},drive=d{i},serial=d{i}"]
        port = udp_port()
        bus = "device" if name == "microvm" else "pci"
        arguments += ["-netdev", f"socket,id=n,udp=127.0.0.1:{udp_port()},localaddr=127.0.0.1:{port}"]
        return [*arguments, "-device", f"virtio-net-{bus},netdev=n"], under_frames(port)

    more, check = devices("q35", "nvme", "virtio-blk-pci")
    cases.case("canary-q35-nvme-virtio", boot(["-M", "q35"], "selftest=canary panic=halt", more=more), check)
    more, check = devices("microvm", "virtio-blk-device")
    more = ["-global", "virtio-mmio.force-legacy=false", *more]
    cases.case("canary-microvm", boot(microvm, "selftest=canary panic=halt", more=more), check)
