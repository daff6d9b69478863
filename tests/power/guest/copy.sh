#!/bin/bash
# Unpacks the payload's parts into $DIR, $STREAMS of them side by side; says how far they are, and of each part when it
# is synced.
set -eu
exec 2>&1
nfs-mount / /mnt
mkdir -p /mnt/$DIR

unpack() { # NUMBER PART
    IFS=: read -r at mib _ _ <<< $2
    mkdir -p /mnt/$DIR/$1
    dd if=/dev/vda bs=1M skip=$at count=$mib iflag=direct status=none |
        tar -C /mnt/$DIR/$1 --numeric-owner --checkpoint=${STEP:-200} --checkpoint-action=echo="at %u" -xf -
}

parts=($PARTS) number=0
while [ $number -lt ${#parts[@]} ]; do
    first=$number running=()
    while [ $number -lt ${#parts[@]} ] && [ ${#running[@]} -lt ${STREAMS:-1} ]; do
        unpack $number ${parts[number]} &
        running+=($!) number=$((number + 1))
    done
    for each in ${running[@]}; do wait $each; done
    sync
    while [ $first -lt $number ]; do echo "synced $first"; first=$((first + 1)); done
done
echo "copied $number parts"
