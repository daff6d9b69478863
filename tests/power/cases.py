"""The cases of tests/power/run, each a function of a `Bench`."""
import os
import subprocess

from appliance import run
from machines import Client, FileDisk, ForgetfulDisk, Image, Plan
from tree import MIB, make_payload, odd_files

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
DISK_BYTES = 8 << 30
TAR_RECORD = 10240


class Bench:
    """What the cases share: a folder, the form, the seed, and a payload made once."""

    def __init__(self, folder, seed, long):
        self.folder, self.seed, self.long = folder, seed, long
        self.step = 500 if long else 20  # records of tar from one line about progress to the next
        self.made = None

    def path(self, name):
        return os.path.join(self.folder, name)

    def plan(self, name):
        return Plan(self.seed, name)

    def source(self):
        """The folder of the tree that is copied: the toolchain's own, or this project's."""
        if self.long:
            return run("rustc", "--print", "sysroot").strip()
        source = self.path("source")
        if not os.path.exists(source):
            os.mkdir(source)
            listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True)
            words = ["--null", "-T", "-"] if listed.returncode == 0 else ["--exclude=./target", "."]
            tar = subprocess.run(["tar", "-C", ROOT, *words, "-cf", "-"], input=listed.stdout, stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-C", source, "-xf", "-"], input=tar.stdout, check=True)
        return source

    def payload(self):
        """(path, PARTS, how many parts)."""
        if not self.made:
            odd, path = self.path("odd-tree"), self.path("payload")
            os.mkdir(odd)
            odd_files(odd, self.seed)
            words = make_payload(path, [odd, self.source()], (128 if self.long else 2) * MIB)
            self.made = path, words, len(words.split())
        return self.made

    def copy(self, server, folder):
        path, words, _ = self.payload()
        return Client(server, "copy.sh", path, PARTS=words, DIR=folder, STEP=self.step)

    def compare(self, server, folder, count=None, later=0, remove=False):
        """All of the first `count` parts below `folder` are as they were synced; `later` as in compare.sh."""
        path, words, parts = self.payload()
        count = parts if count is None else count
        with Client(server, "compare.sh", path, PARTS=words, DIR=folder, COUNT=count, LATER=later, REMOVE=int(remove)) as client:
            return client.finish()


def tree(bench, disk, name, memory):
    """A tree over NFS. Cuts while it is copied: the hard mount goes on; a cut at once after the sync; and one that takes the
    client along: what it had synced is there."""
    plan = bench.plan(name)
    _, words, parts = bench.payload()
    steps = sum((int(part.split(":")[1]) - 1) * MIB // TAR_RECORD // bench.step for part in words.split())
    with disk, Image(disk, "--memory", memory) as server:
        cuts, seen = 3, 0
        moments = plan.moments(cuts, steps * 3 // 4)
        with bench.copy(server, "tree") as client:
            for line in client.lines():
                seen += "at " in line
                if seen in moments:
                    moments.discard(seen)
                    server.cut_power_and_boot(plan.subset())
            assert not moments, f"the copy ended before the cuts {moments}"
            client.finish()
        note = server.cut_power(plan.subset())
        server.fsck()
        server.start()
        compared = bench.compare(server, "tree", later=cuts)

        with bench.copy(server, "again") as client:
            last, seen, synced = plan.chance.randrange(steps // 2, steps * 3 // 4), 0, 0
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
        return f"{compared}; with the client gone at part {synced} of {parts}, {partly}; {server.cuts} cuts, the third: {note}"


def tree_on_file(bench):
    return tree(bench, FileDisk(bench.path("disk"), DISK_BYTES), "tree-on-file", "512")


def tree_on_forgetful_disk(bench):
    disk = ForgetfulDisk(bench.path("disk"), DISK_BYTES)
    note = tree(bench, disk, "tree-on-forgetful-disk", "128")
    assert disk.counts["dropped"] > 0, "no cut ever lost a write: the disk did not forget"
    return f"{note}; {disk.counts}"


CASES = {
    "tree-on-forgetful-disk": tree_on_forgetful_disk,
    "tree-on-file": tree_on_file,
}
