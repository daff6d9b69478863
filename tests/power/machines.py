"""What the cases of tests/power are made of: disks, the booted image on one, the client VM, and their power cuts."""
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))
import network  # noqa: E402
from appliance import Appliance, die_with_parent, moraine, run  # noqa: E402
from forgetful import ForgetfulDisk  # noqa: E402

CLIENT = os.path.join(HERE, "..", "client", "client")
CLIENT_SECONDS_MAX = 3 * 3600


class FileDisk:
    """A disk image on this machine: everything written stays, as after a crash of the appliance alone."""

    def __init__(self, path, size):
        self.path = self.uri = path
        with open(path, "wb") as file:
            file.truncate(size)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.unlink(self.path)

    def cut(self, seed=None):
        return "disk image"


class Image(Appliance):
    """The booted image on a disk, beside the client VM. Its power can be cut together with the disk's."""

    def __init__(self, disk, *words):
        super().__init__("image", [*network.APPLIANCE, *words], disk.uri)
        self.platter = disk
        self.cuts = 0

    def cut_power(self, seed=None):
        """With a seed, the disk keeps a random part of what it had not flushed."""
        self.cut()
        self.cuts += 1
        return self.platter.cut(seed)

    def cut_power_and_boot(self, seed=None):
        self.cut_power(seed)
        self.start()

    def fsck(self):
        """While the power is off: nothing may be found."""
        run(moraine(), "fsck", self.platter.path, timeout=CLIENT_SECONDS_MAX)

    def end(self):
        """In good order, and with nothing on the console that a person would have to worry about."""
        status = self.stop()
        assert status == 0, f"it ended with status {status}:\n{self.tail()}"
        self.unharmed()
        self.fsck()

    def unharmed(self):
        for line in self.said().splitlines():
            assert "panic" not in line and "] error " not in line, f"the console says: {line}"


class Client:
    """A script in the client VM."""

    def __init__(self, server, script, payload=None, **environment):
        command = [CLIENT, *network.CLIENT, "--nfs", server.nfs, "--nbd", server.nbd, "--timeout", str(CLIENT_SECONDS_MAX)]
        for name, value in environment.items():
            command += ["-e", f"{name}={value}"]
        if payload:
            command += ["--payload", payload]
        self.said = []
        self.process = subprocess.Popen([*command, os.path.join(HERE, "guest", script)], stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace",
                                        preexec_fn=die_with_parent)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def lines(self):
        """What it says, as it comes."""
        for line in self.process.stdout:
            self.said.append(line.rstrip())
            yield line.rstrip()

    def finish(self):
        """Waits for its end, which must be a good one; its last line."""
        for _ in self.lines():
            pass
        status = self.process.wait()
        assert status == 0, f"status {status} of the client:\n" + "\n".join(self.said[-40:])
        return self.said[-1] if self.said else ""

    def kill(self):
        try:
            os.killpg(self.process.pid, 9)  # its own group; its QEMU dies with it
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process.stdout.close()
