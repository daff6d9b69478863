"""Starts something that serves, for the system tests: in a process or as a booted image, all on loopback.

    with Appliance("memory") as server:   # moraine serve --memory
    with Appliance("disk") as server:     # moraine mkfs and serve, on a new disk image
    with Appliance("image") as server:    # scripts/run, on a new disk
        server.nfs, server.nbd            # HOST:PORT of each
    Appliance("image", disk=PATH_OR_URI)  # scripts/run, on a disk of one's own

Also `check`, which runs one check of a test and tells how it went, and `finish`, which ends the test.
"""
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "scripts", "lib"))
from machine import die_with_parent  # noqa: E402

READY_SECONDS_MAX = 120
STOP_SECONDS_MAX = 60
DISK_BYTES = 4 << 30


class Appliance:
    """One server and the folder its files live in. It ends, and the folder goes, with the `with` block."""

    def __init__(self, kind, words=(), disk=None):
        self.kind = kind
        self.words = list(words)
        self.own_disk = disk
        self.folder = tempfile.mkdtemp(prefix="moraine-")
        self.process = None

    def __enter__(self):
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def disk(self):
        return self.own_disk or os.path.join(self.folder, "disk.img")

    def prepare(self):
        if self.kind != "memory" and not self.own_disk:
            with open(self.disk, "wb") as file:
                file.truncate(DISK_BYTES)
        if self.kind == "disk":
            subprocess.run([moraine(), "mkfs", self.disk], check=True, stdin=subprocess.DEVNULL)

    def command(self):
        if self.kind == "memory":
            return [moraine(), "serve", "--memory", "--nfs", "127.0.0.1:0", "--nbd", "127.0.0.1:0", *self.words]
        if self.kind == "disk":
            return [moraine(), "serve", self.disk, "--nfs", "127.0.0.1:0", "--nbd", "127.0.0.1:0", *self.words]
        run = os.path.join(ROOT, "scripts", "run")
        return [run, "--disk", self.disk, "--nfs-port", "0", "--nbd-port", "0", *self.words]

    def start(self):
        """Starts it on what its disk holds, and waits until it answers."""
        self.log = os.path.join(self.folder, "log")
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                text=True, preexec_fn=die_with_parent)
        deadline = time.monotonic() + READY_SECONDS_MAX
        line = ""
        while not line.startswith("moraine ready") and self.says_something(deadline):
            line = self.process.stdout.readline()
            if not line:
                break
        found = dict(re.findall(r"(\w+)=(\S+)", line))
        if not line.startswith("moraine ready"):
            raise RuntimeError(f"{self.kind}: no ready line; its log ends:\n{self.tail()}")
        self.nfs, self.nbd, self.pid = found["nfs"], found["nbd"], int(found["pid"])
        self.boot_ms = int(found["boot_ms"])

    def says_something(self, deadline):
        """Waits until there is something to read, or its end; false if it is idle, which is for ever, or late."""
        while not select.select([self.process.stdout], [], [], 0.2)[0]:
            if time.monotonic() > deadline or "\nmoraine idle" in self.said().replace("\r", ""):
                return False
        return True

    def stop(self):
        """Asks it to shut down in order and returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(STOP_SECONDS_MAX)
        self.process = None
        return status

    def cut(self):
        """The power cut."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS_MAX)
        self.kill()

    def kill(self):
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # its own group: it and whatever it started
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process = None

    def said(self):
        """Everything it wrote to its console or log so far."""
        with open(self.log, errors="replace") as log:
            return log.read()

    def tail(self):
        return "".join(self.said().splitlines(keepends=True)[-30:])


_moraine = None


def moraine():
    """The `moraine` command, built once."""
    global _moraine
    if _moraine is None:
        cargo = ["cargo", "build", "--quiet", "--release", "-p", "moraine-host", "--bin", "moraine"]
        subprocess.run(cargo, cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
        _moraine = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release", "moraine")
    return _moraine


_results = {"passed": 0, "failed": 0}


def check(name, action, *arguments):
    """Runs one check; what it raises is its failure."""
    began = time.monotonic()
    try:
        note = action(*arguments)
        verdict = "passed"
    except subprocess.CalledProcessError as error:
        note = f"{' '.join(map(str, error.cmd))}: status {error.returncode}\n{error.stdout or ''}{error.stderr or ''}"
        verdict = "failed"
    except Exception as error:  # noqa: BLE001: whatever went wrong, the other checks still run
        note = f"{type(error).__name__}: {error}"
        verdict = "failed"
    _results[verdict] += 1
    took = time.monotonic() - began
    print(f"{'PASS' if verdict == 'passed' else 'FAIL'} {name} ({took:.1f} s)", note or "", flush=True)


def run(*command, timeout=300):
    """Runs a command that has to succeed and returns what it printed."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    return done.stdout


def finish():
    print(f"{_results['passed']} passed, {_results['failed']} failed")
    sys.exit(_results["failed"] > 0 or _results["passed"] == 0)
