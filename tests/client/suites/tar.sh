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
    (cd /tmp/tree; find . -printf '%p %m %y %T@\n' | grep -v '^\. ' | sort) > /tmp/want
    (cd /mnt/tree/$i; find . -printf '%p %m %y %T@\n' | grep -v '^\. ' | sort) > /tmp/got
    # Times on the server are exact to the nanosecond; tar's archive holds whole seconds.
    diff /tmp/want /tmp/got > /tmp/delta || { head -20 /tmp/delta; echo "modes or times of copy $i differ"; exit 1; }
done
tar -C /mnt/tree/1 -cf - . | tar -C /mnt/tree/1 -df -
files=$(find /mnt/tree | wc -l)
rm -rf /mnt/tree; [ ! -e /mnt/tree ]
echo "$files files and directories in $copies copies"
