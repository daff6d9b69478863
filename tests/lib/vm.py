"""Linux VMs, as clients of the appliance and as what it is compared with: a package cache, the guests' images, QEMU's
command line.

Everything downloaded or built lands in $MORAINE_CLIENT_CACHE (default
~/.cache/moraine-client); removing that folder is the way to start afresh.
Packages come through apt from the mirror this machine already uses; nothing is
installed on the machine.
"""
import fcntl, os, re, shutil, subprocess, sys
from dataclasses import dataclass, field
from pathlib import Path

CACHE = Path(os.environ.get("MORAINE_CLIENT_CACHE") or
             Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moraine-client")


@dataclass(frozen=True)
class Guest:
    """What a guest's image is made of; all by name, separated by blanks."""
    name: str
    init: Path = field(repr=False)  # its first process
    packages: str       # of Debian, with what they depend on
    programs: str       # paths in these beside busybox; the libraries they need come along
    modules: str        # of the kernel
    crates: str = ""    # test programs from the Cargo registry, built once
    users: tuple = (("root", 0), ("nobody", 65534))
    links: tuple = ()   # (path, target)


def log(*a):
    print("vm:", *a, file=sys.stderr, flush=True)


def run(*cmd, **kw):
    return subprocess.run([str(c) for c in cmd], check=True, **kw)


# ---- packages -------------------------------------------------------------

def codename():
    return re.search(r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), re.M)[1]


def apt_options():
    """A private apt: this machine's mirror and keys, plus backports, and an empty dpkg status, so that it resolves a
    whole userland."""
    d = CACHE / "apt"
    src = d / "sources.list"
    if not src.exists():
        (d / "lists/partial").mkdir(parents=True, exist_ok=True)
        (d / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        out = subprocess.run(["apt-get", "indextargets", "--format",
                              "$(REPO_URI) $(RELEASE)", "Created-By: Packages", "Component: main"],
                             capture_output=True, text=True, check=True).stdout
        mirror = next(l.split()[0] for l in out.splitlines() if l.split()[1] == codename())
        key = "/usr/share/keyrings/debian-archive-keyring.gpg"
        signed = f"[signed-by={key}]" if os.path.exists(key) else ""
        src.write_text("".join(f"deb {signed} {mirror} {s} main\n" for s in (codename(), codename() + "-backports")))
    opt = ["-o", f"Dir::Etc::sourcelist={src}", "-o", "Dir::Etc::sourceparts=-",
           "-o", "Dir::Etc::preferencesparts=/dev/null", "-o", f"Dir::State::lists={d}/lists",
           "-o", f"Dir::Cache={d}/cache", "-o", "Dir::State::status=/dev/null",
           "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root",
           "-o", "Acquire::Languages=none", "-o", f"APT::Default-Release={codename()}"]
    if not (d / "updated").exists():
        log("apt update")
        run("apt-get", "-qq", *opt, "update", stdout=sys.stderr)
        (d / "updated").touch()
    return opt


def unpack(deb, root):
    """dpkg -x that keeps the /bin -> usr/bin links of a merged /usr."""
    p = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE)
    run("tar", "-xC", root, "--keep-directory-symlink", stdin=p.stdout)
    if p.wait():
        raise SystemExit(f"cannot unpack {deb}")


def new_root(root):
    for n in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / n).mkdir(parents=True)
        (root / n).symlink_to("usr/" + n)


def userland(guest):
    """The unpacked packages (with their dependencies) the image is picked from."""
    root = CACHE / f"{guest.name}.userland"
    of = CACHE / f"{guest.name}.packages"  # what it was made of
    if not root.exists() or not of.exists() or of.read_text().split() != guest.packages.split():
        log(f"downloading the userland of the {guest.name}")
        run("apt-get", "-qq", *apt_options(), "install", "-y", "--no-install-recommends", "--download-only",
            *guest.packages.split(), stdout=sys.stderr)
        tmp = CACHE / f"{guest.name}.userland.tmp"
        shutil.rmtree(tmp, ignore_errors=True)
        new_root(tmp)
        for d in sorted((CACHE / "apt/cache/archives").glob("*.deb")):
            unpack(d, tmp)
        shutil.rmtree(root, ignore_errors=True)
        tmp.rename(root)
        of.write_text("\n".join(guest.packages.split()))
    return root


def kernel():
    """(kernel release, folder with lib/modules/, uncompressed vmlinux)."""
    root = CACHE / "kernel"
    if not root.exists():
        out = subprocess.run(["apt-cache", *apt_options(), "show",
                              "linux-image-cloud-amd64/" + codename() + "-backports"],
                             capture_output=True, text=True, check=True).stdout
        pkg = re.search(r"^Depends:.*?(linux-image-\S+)", out, re.M)[1]
        log("downloading", pkg)
        tmp = CACHE / "kernel.tmp"
        shutil.rmtree(tmp, ignore_errors=True)
        (tmp / "debs").mkdir(parents=True)
        run("apt-get", "-qq", *apt_options(), "download", pkg, cwd=tmp / "debs", stdout=sys.stderr)
        new_root(tmp)
        for d in (tmp / "debs").glob("*.deb"):
            unpack(d, tmp)
        kver = next((tmp / "lib/modules").iterdir()).name
        vmlinux(tmp / f"boot/vmlinuz-{kver}", tmp / "boot/vmlinux")
        tmp.rename(root)
    return next((root / "lib/modules").iterdir()).name, root, root / "boot/vmlinux"


def vmlinux(bz, out):
    """Take the ELF out of a bzImage: QEMU enters it through PVH, which saves the guest the decompressing."""
    data = bz.read_bytes()
    for magic, tool in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\0", "xz")):
        at = data.find(magic, 0x4000)
        while at > 0:
            r = subprocess.run([tool, "-dc"], input=data[at:], capture_output=True)
            if r.stdout[:4] == b"\x7fELF":
                out.write_bytes(r.stdout)
                return
            at = data.find(magic, at + 1)
    shutil.copy(bz, out)


def crates(guest):
    """The test programs from the Cargo registry."""
    root = CACHE / "cargo"
    for name in guest.crates.split():
        if not (root / "bin" / name).exists():
            log("building", name)
            run("cargo", "install", "--quiet", "--root", root, name, cwd=CACHE, stdout=sys.stderr)
    return [root / "bin" / name for name in guest.crates.split()]


# ---- the guest's image ----------------------------------------------------

def image(guest):
    """The guest's image, made if it is missing or older than what it is made of; by one at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return make_image(guest)


def make_image(guest):
    """An uncompressed initramfs: busybox, the programs with the libraries they need, the modules (unpacked, in load
    order) and the first process."""
    out, of = CACHE / f"{guest.name}.cpio", CACHE / f"{guest.name}.of"
    u, (kver, kroot, _), built = userland(guest), kernel(), crates(guest)
    newest = max(p.stat().st_mtime for p in [guest.init, Path(__file__), *built])
    if out.exists() and out.stat().st_mtime > newest and of.exists() and of.read_text() == repr(guest):
        return out
    log("building", out.name)
    st = CACHE / f"{guest.name}.root"
    shutil.rmtree(st, ignore_errors=True)
    new_root(st)
    for d in "dev proc sys run tmp etc mnt var/lib/nfs/rpc_pipefs modules".split():
        (st / d).mkdir(parents=True)
    ld = u / "lib64/ld-linux-x86-64.so.2"
    path = f"{u}/lib/x86_64-linux-gnu:{u}/usr/lib/x86_64-linux-gnu"

    def put(path, src=None):
        dst = st / path
        dst.parent.mkdir(parents=True, exist_ok=True)
        if not dst.exists():
            shutil.copy2(src or u / path, dst)

    put("bin/busybox")
    put("lib64/ld-linux-x86-64.so.2", ld.resolve())
    for program in [*guest.programs.split(), *built]:
        src = program if isinstance(program, Path) else u / program
        put("usr/bin/" + src.name if isinstance(program, Path) else program, src)
        deps = subprocess.run([ld, "--library-path", path, "--list", src], capture_output=True, text=True).stdout
        for lib in re.findall(r"=> (/\S+)", deps):
            put("usr/lib/" + Path(lib).name, Path(lib).resolve())
    for path, target in guest.links:
        (st / path).symlink_to(target)
    for f in "netconfig protocols services rpc mke2fs.conf".split():
        if (u / "etc" / f).exists():
            put("etc/" + f)
    (st / "etc/passwd").write_text("".join(f"{n}:x:{i}:{i}::/:/bin/sh\n" for n, i in guest.users) +
                                   "_rpc:x:101:65534::/run/rpcbind:/bin/false\n")
    (st / "etc/group").write_text("".join(f"{n}:x:{i}:\n" for n, i in guest.users))
    sources = "passwd group protocols services rpc".split()
    (st / "etc/nsswitch.conf").write_text("".join(f"{s}: files\n" for s in sources) + "hosts: files\n")
    (st / "etc/hosts").write_text("127.0.0.1 localhost\n")
    # Modules: unpacked here, since xz costs a guest under emulation seconds. One line in modules/deps per wanted module:
    # its name, then what to insmod, in order.
    have = {p.name.split(".")[0].replace("-", "_"): p for p in (kroot / "lib/modules" / kver).rglob("*.ko*")}

    def load_order(m, seq):
        if m in have and m not in seq:
            ko = st / f"modules/{m}.ko"
            if not ko.exists():
                with open(ko, "wb") as f:
                    run(*(["xz", "-dc"] if have[m].suffix == ".xz" else ["cat"]), have[m], stdout=f)
                # without the signature and BTF, whose checks cost seconds under emulation
                run("objcopy", "--strip-debug", "-R", ".BTF", "-R", ".BTF.base", ko)
            d = re.search(rb"\0depends=([^\0]*)", ko.read_bytes())
            for n in (d[1].decode().split(",") if d else ()):
                load_order(n.replace("-", "_"), seq)
            seq.append(m)
        return seq

    (st / "modules/deps").write_text("".join(f"{m} {' '.join(load_order(m, []))}\n" for m in guest.modules.split()))
    shutil.copy(guest.init, st / "init")
    (st / "init").chmod(0o755)
    with open(out.with_suffix(".tmp"), "wb") as f:
        cpio(st, f)
    out.with_suffix(".tmp").rename(out)
    of.write_text(repr(guest))
    return out


def cpio(root, out):
    """Everything below root as a newc archive, owned by root."""
    def entry(number, name, mode=0, data=b""):
        head = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        text = b"070701" + b"".join(b"%08X" % n for n in head) + name + b"\0"
        for part in (text, data):
            out.write(part + bytes(-len(part) % 4))
    for number, path in enumerate(sorted(root.rglob("*")), 1):
        st = path.lstat()
        data = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        entry(number, os.fsencode(path.relative_to(root)), st.st_mode, data)
    entry(0, b"TRAILER!!!")


# ---- QEMU -----------------------------------------------------------------

def qemu(initrd, cmdline, smp, mem, net, mac, extra):
    """The guest's command line. No display, no firmware menu, PVH entry."""
    _, _, vm = kernel()
    return ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "q35,graphics=off,hpet=off,vmport=off",
            # Without cx16: with `max` under QEMU 7.2 Debian's 6.12 kernel oopses at boot, at a CMPXCHG16B.
            "-accel", os.environ.get("MORAINE_CLIENT_ACCEL", "tcg,thread=multi"),
            "-cpu", os.environ.get("MORAINE_CLIENT_CPU", "max,-cx16,-erms"),
            "-smp", str(smp), "-m", str(mem), "-kernel", str(vm), "-initrd", str(initrd),
            "-append", "quiet panic=-1 nokaslr tsc=reliable no_timer_check random.trust_cpu=on "
                       "rcupdate.rcu_expedited=1 console=ttyS0 " + cmdline,
            "-netdev", netdev(net) + ",id=n0",
            "-device", f"virtio-net-pci,netdev=n0,mac={mac},romfile="] + extra


def netdev(spec):
    """--net: user | tap:IFACE | any -netdev text with '='."""
    kind, _, rest = spec.partition(":")
    if kind == "user":
        return "user"
    if kind == "tap":
        return f"tap,ifname={rest},script=no,downscript=no,vhost=off"
    return spec
