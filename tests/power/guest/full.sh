#!/bin/bash
# A full disk: the writer is told, everybody else is served, removing makes room again. $STAGE fill, or after a power cut
# on the full disk, free.
set -eu
exec 2>&1
fail() { echo "$*"; exit 1; }
used() { df -Pk /mnt | awk 'NR == 2 { print $3 }'; }
# fill FOLDER: files of 8 MiB until there is no space, which a sync must tell at the latest.
fill() {
    mkdir -p $1
    local number=0
    while dd if=/dev/urandom of=$1/$number bs=1M count=8 conv=fsync 2> /tmp/dd; do
        number=$((number + 1))
        [ $number -lt 1000 ] || fail "the disk does not fill"
    done
    grep -q 'No space left' /tmp/dd || { cat /tmp/dd; fail "filling ended with another error"; }
}
nfs-mount / /mnt
cd /mnt
if [ $STAGE = fill ]; then
    dd if=/dev/urandom of=keep bs=64k count=40 2> /dev/null
    sha256sum keep > keep.sum
    mkdir -p small volumes
    for i in $(seq 100); do echo "$i" > small/$i; done
    truncate -s 1G volumes/v
    sync
    before=$(used)
    for round in 1 2; do
        fill round-$round
        # Others stay served: everything that needs no room works.
        echo 3 > /proc/sys/vm/drop_caches
        sha256sum -c --quiet keep.sum || fail "keep differs"
        [ "$(cat small/77)" = 77 ] || fail "a small file"
        [ $(ls small | wc -l) = 100 ] || fail "a listing"
        [ $round = 2 ] || { rm -rf round-1; sync; }
    done
    echo "full, $before KiB used before"
else
    sha256sum -c --quiet keep.sum || fail "keep differs"
    mv keep kept; mv kept keep
    rm -rf round-*
    # Space comes back when what freed it is on disk.
    for try in $(seq 60); do
        dd if=/dev/urandom of=after bs=1M count=32 conv=fsync 2> /tmp/dd && break
        grep -q 'No space left' /tmp/dd || { cat /tmp/dd; fail "writing after removing"; }
        sleep 0.5
    done
    [ "$(stat -c %s after)" = $((32 << 20)) ] || fail "no room after removing: $(df -Pk /mnt | tail -1)"
    rm after
    for i in $(seq 100); do [ "$(cat small/$i)" = $i ] || fail "small/$i"; done
    rm -rf small keep keep.sum volumes/v
    sync
    echo "room again, $(used) KiB used"
fi
