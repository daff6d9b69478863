#!/bin/bash
# With `run --crash`: the server dies every few seconds while this writes, and comes back. A hard mount waits and sends
# again, unsynced data too, since the write verifier tells it what was lost: in the end nothing is missing or wrong.
# Only operations that may safely happen twice are used: a repeated REMOVE whose answer died says ENOENT (docs/nfs.md).
set -eu
exec 2>&1
fail() { echo "$*"; exit 1; }
rounds=2; [ $LONG = 1 ] && rounds=20
nfs-mount / /mnt
dir=/mnt/crash-$RANDOM$RANDOM
mkdir -p $dir /tmp/tree; tar -C /tmp/tree -xf /dev/vda
dd if=/dev/urandom of=/tmp/data bs=1M count=16 2>/dev/null
for i in $(seq $rounds); do
    mkdir -p $dir/$i
    tar -C $dir/$i -xf /dev/vda
    cp /tmp/data $dir/$i/unsynced
    dd if=/tmp/data of=$dir/$i/direct bs=256k oflag=direct 2>/dev/null
    for n in $(seq 40); do echo "$i $n" >> $dir/$i/log; sync $dir/$i/log; done
done
sync
cd /; umount /mnt; nfs-mount / /mnt
for i in $(seq $rounds); do
    cmp /tmp/data $dir/$i/unsynced || fail "unsynced of round $i"
    cmp /tmp/data $dir/$i/direct || fail "direct of round $i"
    [ "$(for n in $(seq 40); do echo "$i $n"; done)" = "$(cat $dir/$i/log)" ] || fail "log of round $i"
    for f in unsynced direct log; do mv $dir/$i/$f $dir/$f-$i || [ -e $dir/$f-$i ]; done
    diff -r /tmp/tree $dir/$i || fail "tree of round $i"
done
echo "$rounds rounds of $(find /tmp/tree -type f | wc -l) files, synced and unsynced, compare equal"
