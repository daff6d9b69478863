"""A tree of files over NFS by a Linux client, and power cuts: while it is copied, after a sync, and with the client."""
from machines import FileDisk, ForgetfulDisk, Image

DISK_BYTES = 8 << 30


def tree(bench, disk, name, memory):
    """Cuts while it is copied: the hard mount goes on. One at once after the sync. And one that takes the client along:
    everything it had synced is there."""
    plan = bench.plan(name)
    _, _, parts = bench.payload()
    steps = bench.steps()
    with disk, Image(disk, "--memory", memory) as server:
        cuts, seen = 3, 0
        moments = plan.moments(cuts, steps * 3 // 4)
        with bench.copy(server, "tree") as client:
            for line in client.lines():
                seen += "at " in line
                if seen in moments:
                    moments.discard(seen)
                    server.cut_power_and_boot(plan.subset())
            client.finish()
        assert not moments, f"the copy ended before the cuts {moments}"
        note = server.cut_power(plan.subset())
        server.fsck()
        server.start()
        compared = bench.compare(server, "tree", later=cuts)

        with bench.copy(server, "again") as client:
            last, seen, synced = plan.chance.randrange(*bench.last_cut(steps)), 0, 0
            for line in client.lines():
                seen += "at " in line
                synced += line.startswith("synced ")
                if seen == last:
                    break
            assert seen == last, "the copy ended before the cut"
            server.cut_power(plan.subset())
        server.fsck()
        server.start()
        partly = bench.compare(server, "again", synced, remove=True)
        bench.compare(server, "tree", later=cuts, remove=True)
        server.end()
        return f"{compared}; with the client gone at part {synced} of {parts}, {partly}; {server.cuts} cuts, the fourth: {note}"


def on_file(bench):
    return tree(bench, FileDisk(bench.path("disk"), DISK_BYTES), "tree-on-file", "512")


def on_forgetful_disk(bench):
    disk = ForgetfulDisk(bench.path("disk"), DISK_BYTES)
    note = tree(bench, disk, "tree-on-forgetful-disk", "128")
    return f"{note}; {disk.counts}"


def on_liar(bench):
    """The tests would notice: on a disk that acknowledges flushes and does nothing, what was synced is not there."""
    disk = ForgetfulDisk(bench.path("disk"), DISK_BYTES, lies=True)
    with disk, Image(disk) as server:
        with bench.copy(server, "tree") as client:
            client.finish()
        server.cut_power()
        try:
            server.start()
            bench.compare(server, "tree")
        except (AssertionError, RuntimeError):
            return "a disk that lies is noticed"
        raise AssertionError("a disk that lies was not noticed")
