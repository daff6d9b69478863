"""What scripts/run, scripts/image and the boot tests share: packages, builds, ports, and QEMU as a child process."""

import ctypes
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TRIPLE = "x86_64-unknown-linux-gnu"
SIZE = re.compile(r"^(\d+)([KMGT]?)$", re.IGNORECASE)


class Failure(Exception):
    """Something that a person must be told; exit status 1."""


def say(text):
    """One line for the person, on standard error."""
    print(text, file=sys.stderr, flush=True)


def target_dir():
    """Where cargo builds to and where run-time files go."""
    return os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"))


def need(command, package):
    """Makes sure that a command is there, through apt if it is not."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    if shutil.which(command, path=path) or os.path.exists(command):
        return
    say(f"{command} is missing: installing the Debian package {package}")
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    quiet = {"stdout": sys.stderr, "env": env, "stdin": subprocess.DEVNULL}
    install = root + ["apt-get", "-q", "-y", "--no-install-recommends", "install", package]
    try:
        if subprocess.run(install, **quiet).returncode != 0:
            subprocess.run(root + ["apt-get", "-q", "update"], **quiet)
            subprocess.run(install, **quiet)
    except OSError as error:
        raise Failure(f"cannot install {package}: {error}") from error
    if not (shutil.which(command, path=path) or os.path.exists(command)):
        raise Failure(f"{command} is missing and the package {package} did not bring it")


def cargo(arguments):
    """Runs cargo in the workspace, its words on standard error."""
    if not shutil.which("cargo"):
        raise Failure("cargo is missing: install Rust (rustup.rs), the right version comes by itself")
    if subprocess.run(["cargo"] + arguments, cwd=ROOT, stdout=sys.stderr, stdin=subprocess.DEVNULL).returncode != 0:
        raise Failure("the build failed")


def build_kernel():
    """Builds the kernel by its own cargo call, so that features never unify with the host's; its path."""
    cargo(["build", "--quiet", "-p", "moraine-kernel", "--release", "--target", TRIPLE])
    return os.path.join(target_dir(), TRIPLE, "release", "moraine-kernel")


def build_moraine():
    """Builds the `moraine` command; its path."""
    cargo(["build", "--quiet", "--release", "-p", "moraine-host", "--bin", "moraine"])
    return os.path.join(target_dir(), "release", "moraine")


def build_image(kernel, out, words):
    """Wraps a kernel into a flashable image."""
    cargo(["run", "--quiet", "--release", "-p", "moraine-image", "--", kernel, out, *words])


def parse_size(text):
    """Bytes of a number with an optional K, M, G or T; None if it is none."""
    match = SIZE.match(text)
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2].upper()] if match else None


def free_port():
    """A TCP port of the loopback interface that nobody uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def processor(accelerator):
    """QEMU's arguments for a processor with everything that the accelerator offers."""
    # Emulated `rep movsb` is a byte at a time, so nobody shall think it fast.
    return ["-accel", accelerator, "-cpu", "max,-erms" if accelerator == "tcg" else "max"]


def mac_of(text):
    """A locally administered Ethernet address that stays the same for the same text."""
    digest = hashlib.sha256(text.encode()).digest()
    return "52:54:00:" + ":".join(f"{b:02x}" for b in digest[:3])


def die_with_parent():
    """In the child, before it becomes QEMU: a process group of its own, and death when we die, however we die."""
    os.setpgid(0, 0)
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def start_qemu(arguments, pass_fds=(), stderr=None):
    """Starts QEMU with its serial port on standard output."""
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]
    return subprocess.Popen(
        command + arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        pass_fds=pass_fds,
        preexec_fn=die_with_parent,
    )
