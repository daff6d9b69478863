#!/bin/bash
# Many at once: several connections, verified random I/O, and storms of names from parallel processes.
set -eu
exec 2>&1
fail() { echo "$*"; exit 1; }
size=16m rounds=60
if [ $LONG = 1 ]; then size=256m rounds=600; fi
nfs-mount / /mnt nconnect=4
rm -rf /mnt/storm; mkdir -p /mnt/storm; cd /mnt/storm

# Random writes of every kind, each block checked when it is read back, and once more after a new mount.
cat > /tmp/storm.fio <<F
[global]
directory=/mnt/storm
size=$size
verify=crc32c
verify_fatal=1
ioengine=psync
group_reporting
[small]
rw=randwrite
bsrange=512-9k
[blocks]
rw=randrw
bs=4k
direct=1
fsync=64
[large]
rw=write
bs=1m
direct=1
F
fio --output=/tmp/fio.log /tmp/storm.fio || { cat /tmp/fio.log; fail "fio"; }
cd /; umount /mnt; nfs-mount / /mnt nconnect=4; cd /mnt/storm
fio --output=/tmp/fio.log --section=large --verify_only /tmp/storm.fio || { cat /tmp/fio.log; fail "fio after remount"; }

# Names: each process makes, links, renames and removes in one shared directory; nothing is left over or lost.
mkdir names
worker() {
    for i in $(seq $rounds); do
        echo "$1 $i" > names/$1-$i
        ln names/$1-$i names/$1-$i-link
        mv names/$1-$i names/$1-$i-moved
        [ "$(cat names/$1-$i-link)" = "$1 $i" ] || exit 1
        [ $((i % 3)) = 0 ] || rm names/$1-$i-link names/$1-$i-moved
    done
}
pids=
for w in a b c d; do worker $w & pids="$pids $!"; done
for p in $pids; do wait $p || fail "a worker of names"; done
left=$(ls names | wc -l)
[ $left = $((4 * 2 * (rounds / 3))) ] || fail "$left names are left"
[ $(find names -type f -links 2 | wc -l) = $left ] || fail "link counts"

# One lock file, many takers: exclusive create lets one in at a time.
taker() {
    for i in $(seq 15); do
        until (set -C; : > lock) 2>/dev/null; do :; done
        n=$(cat counter); echo $((n + 1)) > counter.new; mv counter.new counter
        rm lock
    done
}
echo 0 > counter
pids=
for w in a b c; do taker & pids="$pids $!"; done
for p in $pids; do wait $p || fail "a taker"; done
[ "$(cat counter)" = 45 ] || fail "the counter says $(cat counter)"
cd /mnt; rm -rf storm; [ ! -e storm ] || fail "rm -rf"
echo "verified random I/O over 4 connections, $((4 * rounds)) files in a storm of names, 45 turns at a lock"
