#!/bin/bash
# Unpacks the payload's parts into $DIR; says how far it is, and of each part when it is synced.
set -eu
exec 2>&1
nfs-mount / /mnt
mkdir -p /mnt/$DIR
number=0
for part in $PARTS; do
    IFS=: read -r at mib _ _ <<< $part
    mkdir -p /mnt/$DIR/$number
    dd if=/dev/vda bs=1M skip=$at count=$mib iflag=direct status=none |
        tar -C /mnt/$DIR/$number --numeric-owner --checkpoint=${STEP:-200} --checkpoint-action=echo="at %u" -xf -
    sync
    echo "synced $number"
    number=$((number + 1))
done
echo "copied $number parts"
