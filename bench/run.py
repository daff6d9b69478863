#!/usr/bin/env python3
"""Runs the benchmarks in interleaved rounds and writes the tables of docs/performance.md.

Absolute times of a shared machine mean little: what counts are ratios of medians within one run, processor time, and
instruction counts, which repeat.
"""
import argparse
import os
import sys
import time

sys.dont_write_bytecode = True
import booted  # noqa: E402
import files  # noqa: E402
import kv  # noqa: E402
from report import write_report  # noqa: E402

PARTS = {"kv": kv.report, "files": files.report, "booted": booted.report}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("part", nargs="*", help=f"what to measure: {', '.join(PARTS)} (everything)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, help="for each part: no further round begins after so many. One "
                        "round takes, roughly, kv 3 minutes and then once 5 for counting instructions, files 1 and each round of mounts "
                        "2, booted 2 for each filesystem and number of processors and then once 5 for boots and memory")
    parser.add_argument("--entries", type=int, default=2_000_000)
    parser.add_argument("--commits", type=int, default=2000)
    parser.add_argument("--cache", type=int, default=512, help="MiB of the engines' own caches")
    parser.add_argument("--fs", default="xfs,btrfs", help="filesystems of the Linux appliance (xfs, ext4, btrfs, bcachefs)")
    parser.add_argument("--cpus", default="1", help="numbers of virtual processors")
    parser.add_argument("--mib", type=int, default=128, help="of data for each load on a booted appliance")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--files-made", type=int, default=20_000, help="natively, in each round of `files`")
    parser.add_argument("--mounted-files", type=int, default=200_000, help="on what `files` mounts after a power cut")
    parser.add_argument("--mount-rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=16, help="calls in flight")
    parser.add_argument("--seconds", type=float, default=4, help="at most, for each load on a booted appliance")
    parser.add_argument("--no-instructions", action="store_true", help="leave out the runs under valgrind")
    parser.add_argument("--print", action="store_true", help="print the tables instead of writing them")
    options = parser.parse_args()
    unknown = [p for p in options.part if p not in PARTS]
    if unknown:
        parser.error(f"no part '{unknown[0]}': {', '.join(PARTS)}")
    if os.geteuid() != 0:
        sys.exit("scripts/bench: needs root, for loop devices and networks")
    if not options.part or "booted" in options.part:
        booted.prepare(options)  # and begins again in a network of its own
    for name in options.part or PARTS:
        options.deadline = time.monotonic() + options.minutes * 60 if options.minutes else None
        text = PARTS[name](options)
        if options.print:
            print(text)
        else:
            write_report(name, text)
            print(f"docs/performance.md: {name} written", file=sys.stderr)


if __name__ == "__main__":
    main()
