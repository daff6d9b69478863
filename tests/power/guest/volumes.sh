#!/bin/bash
# Checks $VOLUMES (NAME:KIND each) through the kernel's NBD client, read-only, by the owner of its format, then mounts each and reads
# every file: all of them hold the same tree.
set -eu
exec 2>&1
load nbd ext4 xfs
number=0 sum=
for volume in $VOLUMES; do
    IFS=: read -r name kind <<< $volume
    device=/dev/nbd$number folder=/tmp/$name
    nbd-client -R -N $name $SERVER $NBD_PORT $device > /tmp/log || { cat /tmp/log; echo "$name: no connection"; exit 1; }
    case $kind in
    ext4) e2fsck -fn $device > /tmp/log 2>&1 ;;
    xfs) xfs_repair -n $device > /tmp/log 2>&1 ;;
    esac || { tail -40 /tmp/log; echo "$name: its $kind is damaged"; exit 1; }
    mkdir -p $folder
    mount -t $kind -o ro $device $folder
    found=$(cd $folder; find . -type f -not -path './lost+found/*' -print0 | sort -z | xargs -0 sha256sum | sha256sum)
    [ "$found" = "${sum:=$found}" ] || { echo "$name holds another tree"; exit 1; }
    files=$(find $folder -type f | wc -l)
    umount $folder
    nbd-client -d $device > /dev/null
    number=$((number + 1))
done
echo "$number volumes with the same $files files checked and read"
