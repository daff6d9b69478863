"""At the limits: a full disk, little memory under load from both sides, a full journal."""
import os
import re
import subprocess
import threading

from appliance import run
from machines import Client, FileDisk, ForgetfulDisk, Image
from tree import MIB
from volumes import make_volume, uri

BOOT_MS_MAX = 1500
# A journal with fewer was not full.
ENTRIES_WANTED = 2000


def full_disk(bench):
    """No space is an answer to who asked for some, not to others; and it passes."""
    plan = bench.plan("full-disk")
    size = (1024 if bench.long else 192) * MIB
    with ForgetfulDisk(bench.path("disk"), size) as disk, Image(disk, "--memory", "128") as server:
        notes = []
        for _ in range(4 if bench.long else 1):
            with Client(server, "full.sh", STAGE="fill") as client:
                notes.append(client.finish())
            # A volume's writer is told too (Linux' own NBD client would make any error EIO of it), and may read on.
            refused = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 64M", uri(server, "v")],
                                     capture_output=True, text=True, stdin=subprocess.DEVNULL)
            assert "No space left" in refused.stdout + refused.stderr, refused
            run("qemu-io", "-r", "-f", "raw", "-c", "read 0 16M", "-c", "read 1000M 16M", uri(server, "v"))
            server.cut_power(plan.subset())
            server.fsck()
            server.start()
            with Client(server, "full.sh", STAGE="free") as client:
                notes.append(client.finish())
        server.end()
        used = [int(n) for n in re.findall(r"(\d+) KiB", " ".join(notes))]
        assert used[-1] < used[0], f"space was lost: {notes}"
        return "; ".join(notes)


def little_memory(bench):
    """128 MiB, a tree over NFS and verified random writes over NBD at once; then the power cut."""
    plan = bench.plan("little-memory")
    size = 2048 if bench.long else 48
    job = ["--name=load", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-64k", "--bs_unaligned=0", f"--size={size}M",
           "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--randrepeat=1", "--fsync=256", "--end_fsync=1",
           "--verify_state_save=0", "--output-format=terse"]
    with ForgetfulDisk(bench.path("disk"), 8 << 30) as disk, Image(disk, "--memory", "128") as server:
        make_volume(server, "load", size * MIB)
        load = job + [f"--uri={uri(server, 'load')}"]
        errors = []

        def fio():
            try:
                run("fio", *load, "--do_verify=1", timeout=3600)
            except subprocess.CalledProcessError as error:
                errors.append(f"fio: {error.stdout[-2000:]} {error.stderr[-2000:]}")

        thread = threading.Thread(target=fio)
        thread.start()
        try:
            with bench.copy(server, "tree") as client:
                client.finish()
        finally:
            thread.join()
        assert not errors, errors
        server.cut_power(plan.subset())
        server.fsck()
        server.start()
        run("fio", *load, "--verify_only=1", timeout=3600)
        note = bench.compare(server, "tree", remove=True)
        server.end()
        return f"{size} MiB over NBD verified beside it; {note}"


def full_journal(bench):
    """Ready soon after a power cut with the journal as full as it gets."""
    plan = bench.plan("full-journal")
    workers, rounds = 6, 40 if bench.long else 10
    with FileDisk(bench.path("disk"), 8 << 30) as disk, Image(disk) as server:
        moments = plan.moments(12 if bench.long else 3, workers * rounds)
        notes, most, worst = [], 0, 0
        with Client(server, "journal.sh", ROUNDS=rounds) as client:
            seen = 0
            for line in client.lines():
                seen += line.startswith("at ")
                if seen in moments:
                    moments.discard(seen)
                    server.cut_power_and_boot()
                    # On a machine that has other work too, what QEMU used of a processor is what it would have taken.
                    took = min(server.boot_ms, processor_ms(server.pid))
                    entries = int(re.findall(r"mounted: (\d+) journal", server.said())[-1])
                    notes.append(f"{entries} entries {server.boot_ms} ms ({took})")
                    most, worst = max(most, entries), max(worst, took)
            client.finish()
        server.end()
        note = ", ".join(notes)
        assert most >= ENTRIES_WANTED, f"the journal was never full: {note}"
        assert worst < BOOT_MS_MAX, note
        return note


def processor_ms(pid):
    """What a process used of the processors so far."""
    with open(f"/proc/{pid}/stat") as stat:
        user, system = map(int, stat.read().rsplit(")", 1)[1].split()[11:13])
    return (user + system) * 1000 // os.sysconf("SC_CLK_TCK")
