"""A tree of files as parts which the client VM unpacks and compares one by one.

A payload is one file, the client's /dev/vda: for each part a tar archive and, from the next MiB on, the list that
tests/power/guest/compare.sh makes of what it finds: every name with type, mode, owner, time, links, size and target.
"""
import os
import random
import stat
import subprocess

MIB = 1 << 20


def odd_files(folder, seed):
    """What a source tree seldom holds: links, modes, times, holes, names, and content that does not compress."""
    chance = random.Random(seed)
    os.makedirs(os.path.join(folder, "odd", "deep", *("d" * n for n in range(1, 12))))
    odd = os.path.join(folder, "odd")

    def made(name, data=b"", mode=0o644):
        path = os.path.join(odd, name)
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, mode)
        return path

    for number, mode in enumerate((0o000, 0o444, 0o600, 0o755, 0o4755, 0o2711, 0o1777)):
        made(f"mode-{number}", b"x" * number, mode)
    # From inline to many extents, around the borders of blocks.
    for size in (0, 1, 511, 512, 2048, 4095, 4096, 4097, 65535, 65537, MIB + 1, 5 * MIB + 4095):
        made(f"size-{size}", chance.randbytes(size))
    for links in (2, 3, 17):
        for number in range(1, links):
            os.link(made(f"links-{links}", chance.randbytes(links * 100)) if number == 1 else
                    os.path.join(odd, f"links-{links}"), os.path.join(odd, f"links-{links}-{number}"))
    with open(os.path.join(odd, "holes"), "wb") as file:
        for at in (0, 3 * MIB + 7, 20 * MIB):
            file.seek(at)
            file.write(chance.randbytes(5000))
    for name in ("n" * 255, "space in it", "tab\tin it", "\u00e4\u00f6\u00fc \u2603"):
        made(name, name.encode())
    os.symlink("size-1", os.path.join(odd, "soft"))
    os.symlink("t" * 1000, os.path.join(odd, "dangling"))
    os.mkfifo(os.path.join(odd, "fifo"))
    # nfstime3 has 32 bits of seconds; Linux clears the nanoseconds of the first and the last.
    for name, seconds in (("1970", 1), ("2100", 4102444800)):
        os.utime(made(name), ns=(seconds * 10**9 + 123456789,) * 2)


def make_payload(path, folders, part_bytes):
    """Writes the payload for everything below each folder; the words of PARTS: `tar at MiB:MiB:list at MiB:bytes`."""
    words = []
    with open(path, "wb") as payload:
        for root, members in parts(folders, part_bytes):
            at = payload.tell()
            subprocess.run(
                ["tar", "-C", root, "--format=posix", "--numeric-owner", "--no-recursion", "--sparse", "--null",
                 "-T", "-", "-cf", "-"],
                input=b"\0".join(members), stdout=payload, check=True)
            middle = pad(payload)
            lines = listing(root, members)
            payload.write(lines)
            end = pad(payload)
            assert end > middle
            words.append(f"{at // MIB}:{(middle - at) // MIB}:{middle // MIB}:{len(lines)}")
    return " ".join(words)


def pad(payload):
    """Fills up to the next MiB; where that is."""
    end = -(-payload.seek(0, os.SEEK_END) // MIB) * MIB
    payload.truncate(end)
    return payload.seek(end)


def parts(folders, part_bytes):
    """(root, members) with files of about as many bytes each; a member's directories are in its part."""
    for root in folders:
        members, size = {}, 0
        for folder, names, files in os.walk(os.fsencode(root)):
            names.sort()
            here = os.path.relpath(folder, os.fsencode(root))
            linked = [n for n in names if os.path.islink(os.path.join(folder, n))]
            for name in sorted(files + linked) or [None]:
                member = os.path.normpath(os.path.join(here, name)) if name is not None else here
                size += os.lstat(os.path.join(os.fsencode(root), member)).st_size + 1024
                while member not in (b"", b"."):
                    members[member] = None
                    member = os.path.dirname(member)
                if size >= part_bytes:
                    yield root, by_folder(members)
                    members, size = {}, 0
        if members:
            yield root, by_folder(members)


def by_folder(members):
    """What a directory holds follows it at once: tar sets a directory's time when it meets the first name outside."""
    return sorted(members, key=lambda member: member.split(b"/"))


def listing(root, members):
    """What tests/power/guest/compare.sh lets `find` say of them, each ended by a zero byte."""
    states = {m: os.lstat(os.path.join(os.fsencode(root), m)) for m in members}
    links = {}
    for s in states.values():
        links[s.st_dev, s.st_ino] = links.get((s.st_dev, s.st_ino), 0) + 1
    kinds = [(stat.S_ISDIR, "d"), (stat.S_ISLNK, "l"), (stat.S_ISFIFO, "p"), (stat.S_ISREG, "f")]
    lines = []
    for member, s in states.items():
        kind = next(letter for is_it, letter in kinds if is_it(s.st_mode))
        time = f"{s.st_mtime_ns // 10**9}.{s.st_mtime_ns % 10**9:09d}0"
        count, size, target = links[s.st_dev, s.st_ino], s.st_size, b""
        if kind == "d":
            count = size = 0  # for each filesystem to say
        if kind == "l":
            target = os.readlink(os.path.join(os.fsencode(root), member))
        if kind == "p":
            size = 0
        words = f"{time}\t{kind}\t{stat.S_IMODE(s.st_mode):o}\t{s.st_uid}\t{s.st_gid}\t{count}\t{size}\t"
        lines.append(words.encode() + member + b"\t" + target + b"\0")
    return b"".join(lines)
