#!/bin/bash
# Fills the journal: many at once make names in many directories, each an entry of its own, so that many nodes are dirty.
set -eu
exec 2>&1
nfs-mount / /mnt nconnect=4
mkdir -p /mnt/journal; cd /mnt/journal
worker() {
    for d in $(seq $ROUNDS); do
        mkdir -p $1-$d
        for i in $(seq 100); do echo "$1 $d $i" > $1-$d/a-name-that-is-rather-long-so-that-it-takes-room-$i; done
        echo "at $1 $d"
    done
}
for w in $(seq 6); do worker $w & done
wait
