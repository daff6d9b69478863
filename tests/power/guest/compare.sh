#!/bin/bash
# Compares the first $COUNT parts in $DIR with the payload: content, and every name with type, mode, owner, time, links,
# size and target. With REMOVE=1 removes all of $DIR afterwards.
#
# $LATER files may have a later time of change: those a client was writing when the server died. Linux sends what the new
# write verifier tells it to send again after the SETATTR that a tar ends each file with (its nfs_wb_all does not wait
# for that), and a WRITE changes the time.
set -eu
exec 2>&1
export LC_ALL=C
nfs-mount / /mnt
number=0 names=0 later=0
for part in $PARTS; do
    [ $number -lt $COUNT ] || break
    IFS=: read -r at mib list bytes <<< $part
    dd if=/dev/vda bs=1M skip=$at count=$mib iflag=direct status=none |
        tar -C /mnt/$DIR/$number --numeric-owner -df - > /tmp/delta || true
    if grep -v ': Mod time differs$' /tmp/delta; then echo "part $number differs"; exit 1; fi
    dd if=/dev/vda bs=1M skip=$list count=$((bytes / 1048576 + 1)) iflag=direct status=none | head -c $bytes > /tmp/wanted
    (cd /mnt/$DIR/$number; find . -mindepth 1 \( -type d -printf '%T@\t%y\t%m\t%U\t%G\t0\t0\t%P\t\0' -o \
        -type p -printf '%T@\t%y\t%m\t%U\t%G\t%n\t0\t%P\t\0' -o \
        -printf '%T@\t%y\t%m\t%U\t%G\t%n\t%s\t%P\t%l\0' \)) > /tmp/found
    # A line each, even if a name should hold a line's end.
    for list in wanted found; do tr '\0\n' '\n\1' < /tmp/$list > /tmp/$list.lines; done
    found=$(busybox awk '
        { at = index($0, "\t"); time = substr($0, 1, at - 1); rest = substr($0, at + 1) }
        NR == FNR { wanted[rest] = time; next }
        !(rest in wanted) { print "not wanted: " $0; next }
        time != wanted[rest] { print (time > wanted[rest] && rest ~ /^f/ ? "later: " : "time: ") $0 " instead of " wanted[rest] }
        { delete wanted[rest]; names++ }
        END { for (rest in wanted) print "missing: " wanted[rest] "\t" rest; print "names: " names }
    ' /tmp/wanted.lines /tmp/found.lines)
    later=$((later + $(grep -c '^later: ' <<< $found || true)))
    if [ $later -gt ${LATER:-0} ] || grep -E '^(not wanted|time|missing): ' <<< $found; then
        grep '^later: ' <<< $found || true
        echo "names of part $number differ"; exit 1
    fi
    names=$((names + $(sed -n 's/^names: //p' <<< $found)))
    number=$((number + 1))
    echo "equal $number"
done
[ $number -ge $COUNT ] || { echo "only $number parts"; exit 1; }
[ "${REMOVE:-0}" = 0 ] || { rm -rf /mnt/$DIR; [ ! -e /mnt/$DIR ]; }
echo "$number parts with $names names compare equal, $later of them with a later time"
