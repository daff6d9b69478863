#!/bin/bash
# fsx: random reads, writes, truncates and mappings of one file, checked against a copy in memory; several seeds,
# with and without caching, and with small transfers.
set -eu
exec 2>&1
ops=1500; [ $LONG = 1 ] && ops=20000
n=0
for options in "" noac,sync rsize=4096,wsize=4096; do
    nfs-mount / /mnt $options
    mkdir -p /mnt/fsx
    for seed in 1 2 3; do
        fsx -N $ops -S $seed /mnt/fsx/file-$seed > /tmp/fsx.log || { echo "options '$options' seed $seed"; tail -50 /tmp/fsx.log; exit 1; }
        n=$((n + 1))
    done
    rm -rf /mnt/fsx
    umount /mnt
done
echo "$n runs of $ops operations"
