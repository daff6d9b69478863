#!/bin/bash
# A source tree unpacked, compared, packed again and removed.
set -eu
exec 2>&1
nfs-mount / /mnt
rm -rf /mnt/tree; mkdir -p /mnt/tree /tmp/tree
tar -C /tmp/tree -xf /dev/vda
copies=3; [ $LONG = 1 ] && copies=20
for i in $(seq $copies); do
    mkdir /mnt/tree/$i
    tar -C /mnt/tree/$i -xf /dev/vda
done
cd /; umount /mnt; nfs-mount / /mnt
for i in $(seq $copies); do
    diff -r /tmp/tree /mnt/tree/$i || { echo "copy $i differs"; exit 1; }
    # The archive names no directories, so theirs are the times of unpacking.
    for tree in /tmp/tree /mnt/tree/$i; do
        (cd $tree; find . -mindepth 1 \( -type d -printf '%p %m %y\n' -o -printf '%p %m %y %T@\n' \) | sort) > /tmp/list-$(basename $tree)
    done
    diff /tmp/list-tree /tmp/list-$i > /tmp/delta || { head -20 /tmp/delta; echo "modes or times of copy $i differ"; exit 1; }
done
tar -C /mnt/tree/1 -cf - . | tar -C /mnt/tree/1 -df -
files=$(find /mnt/tree | wc -l)
rm -rf /mnt/tree; [ ! -e /mnt/tree ]
echo "$files files and directories in $copies copies"
