"""The load on an NFS and an NBD endpoint: bench/peer/nfsload.c on libnfs and fio's NBD engine, which check what they
read. A row is a dict: workload, operations, bytes, seconds, errors."""
import json
import os
import subprocess
import tempfile
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.path.join(os.path.dirname(HERE), "target", "bench")
GROUP_SECONDS_MAX = 180
VOLUME_MIB_MAX = 512

# Every block carries this run's number, and each read checks it.
FIO = {
    "sequential write": "--rw=write --bs=1M --iodepth=4 --end_fsync=1 --do_verify=0",
    "sequential read": "--rw=read --bs=1M --iodepth=4",
    "random read": "--rw=randread --bs=4k --iodepth={depth} --time_based",
    "random write": "--rw=randwrite --bs=4k --iodepth={depth} --time_based --end_fsync=1 --do_verify=0",
    "write, flush": "--rw=randwrite --bs=4k --iodepth=1 --fsync=1 --time_based --do_verify=0",
}
SEQUENTIAL = ("sequential write", "sequential read")
NFS = {
    "seqwrite": "sequential write", "seqread": "sequential read", "randread": "random read", "randwrite": "random write",
    "commit": "write, commit", "filesyncq": "synced write", "create": "create", "stat": "stat", "readdir": "readdir",
    "unlink": "unlink",
}


def nfsload():
    """Built with this machine's libnfs."""
    out, source = os.path.join(TARGET, "nfsload"), os.path.join(HERE, "peer", "nfsload.c")
    os.makedirs(TARGET, exist_ok=True)
    if not os.path.exists(out) or os.path.getmtime(out) < os.path.getmtime(source):
        subprocess.run(["gcc", "-O2", "-Wall", source, "-lnfs", "-o", out], check=True)
    return out


def nfs(url, mib, files, depth, seconds):
    command = [nfsload(), "-s", mib, "-n", files, "-q", depth, "-t", seconds, "-w", ",".join(NFS), url]
    # Line by line as it comes, so that whoever looks on knows which load was under way.
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    late = threading.Timer(GROUP_SECONDS_MAX, process.kill)
    late.start()
    try:
        for line in process.stdout:
            row = json.loads(line)
            yield "NFS " + NFS[row["wl"].split(".")[1]], row["ops"], row["bytes"], row["seconds"], row["p99_us"]
        if process.wait():
            raise RuntimeError(f"nfsload {url}: {process.stderr.read().strip()[-300:]}")
    finally:
        late.cancel()
        process.kill()
        process.wait()


def nbd(uri, mib, depth, seconds):
    tag = "0x" + os.urandom(4).hex()
    with tempfile.TemporaryDirectory(prefix="moraine-bench-") as scratch:
        for name, words in FIO.items():
            command = ["fio", "--name=nbd", "--ioengine=nbd", f"--uri={uri}", f"--size={mib}M", "--randrepeat=0",
                       "--verify=pattern", f"--verify_pattern={tag}", "--verify_fatal=1", "--verify_state_save=0",
                       "--norandommap", "--output-format=json", *words.format(depth=depth).split()]
            # What is read later has to be written whole, however long that takes.
            command += [] if name in SEQUENTIAL else [f"--runtime={seconds}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=GROUP_SECONDS_MAX, cwd=scratch)
            if done.returncode:
                raise RuntimeError(f"fio, {name} on {uri}: {(done.stderr + done.stdout).strip()[-300:]}")
            job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
            data = job["write" if "write" in words else "read"]
            p99 = data["clat_ns"].get("percentile", {}).get("99.000000", 0) / 1000
            yield f"NBD {name}", data["total_ios"], data["io_bytes"], job["job_runtime"] / 1000, p99
