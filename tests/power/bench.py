"""What the cases share: a folder, the form, the seed, and a payload made once."""
import os
import random
import subprocess

from appliance import ROOT, run
from machines import Client
from tree import MIB, make_payload, odd_files

# What tar calls a record, in bytes: it counts its checkpoints in them.
TAR_RECORD = 10240
# Parts that the client unpacks and compares side by side.
STREAMS = 2


class Plan:
    """The random choices of one run; the same for the same seed."""

    def __init__(self, seed, name):
        self.chance = random.Random(f"{seed} {name}")

    def moments(self, count, most):
        """So many different numbers from 1 to `most`."""
        return set(self.chance.sample(range(1, most + 1), min(count, most)))

    def subset(self):
        """For a cut: every third time all that was not flushed is lost, else a random part of it."""
        return None if self.chance.randrange(3) == 0 else self.chance.getrandbits(32)


class Bench:
    def __init__(self, folder, seed, long):
        self.folder, self.seed, self.long = folder, seed, long
        self.step = 500 if long else 20  # records of tar from one line about progress to the next
        self.made = None

    def path(self, name):
        return os.path.join(self.folder, name)

    def plan(self, name):
        return Plan(self.seed, name)

    def project(self):
        """A copy of this project's tracked files (of all, without git)."""
        source = self.path("project")
        if not os.path.exists(source):
            os.mkdir(source)
            listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True)
            words = ["--null", "-T", "-"] if listed.returncode == 0 else ["--exclude=./target", "."]
            tar = subprocess.run(["tar", "-C", ROOT, *words, "-cf", "-"], input=listed.stdout, stdout=subprocess.PIPE,
                                 check=True)
            subprocess.run(["tar", "-C", source, "-xf", "-"], input=tar.stdout, check=True)
        return source

    def source(self):
        """The folder of the tree that is copied: the toolchain's own, or this project's."""
        return run("rustc", "--print", "sysroot").strip() if self.long else self.project()

    def payload(self):
        """(path, PARTS, how many parts)."""
        if not self.made:
            odd, path = self.path("odd-tree"), self.path("payload")
            os.mkdir(odd)
            odd_files(odd, self.seed)
            words = make_payload(path, [odd, self.source()], (128 if self.long else 2) * MIB)
            self.made = path, words, len(words.split())
        return self.made

    def steps(self):
        """How many lines about progress a copy says at least."""
        _, words, _ = self.payload()
        return sum((int(part.split(":")[1]) - 1) * MIB // TAR_RECORD // self.step for part in words.split())

    def last_cut(self, steps):
        """Between which of a copy's steps the client goes with the server: the long form's large files come first, and
        copying its many small ones twice would take most of an hour more."""
        return (steps // 4, steps // 2) if self.long else (steps // 2, steps * 3 // 4)

    def copy(self, server, folder):
        path, words, _ = self.payload()
        return Client(server, "copy.sh", path, PARTS=words, DIR=folder, STEP=self.step, STREAMS=STREAMS)

    def compare(self, server, folder, count=None, later=0, remove=False):
        """All of the first `count` parts below `folder` are as they were synced; `later` as in compare.sh, for each
        stream."""
        path, words, parts = self.payload()
        count = parts if count is None else count
        what = {"PARTS": words, "DIR": folder, "COUNT": count, "LATER": later * STREAMS, "REMOVE": int(remove),
                "STREAMS": STREAMS}
        with Client(server, "compare.sh", path, **what) as client:
            return client.finish()
