#!/bin/bash
# Compares the first $COUNT parts in $DIR with the payload: content, and every name with type, mode, owner, time, links,
# size and target. With REMOVE=1 removes all of $DIR afterwards.
#
# $STREAMS parts are compared side by side.
#
# $LATER files may have a later time of change: those a client was writing when the server died. Linux sends what the new
# write verifier tells it to send again after the SETATTR that a tar ends each file with (its nfs_wb_all does not wait
# for that), and a WRITE changes the time.
set -eu
exec 2>&1
export LC_ALL=C
nfs-mount / /mnt

differ() { # NUMBER PART: says what differs, and last "names: N"; fails if content or a name does
    IFS=: read -r at mib list bytes <<< $2
    local here=/tmp/part-$1
    mkdir -p $here
    dd if=/dev/vda bs=1M skip=$at count=$mib iflag=direct status=none |
        tar -C /mnt/$DIR/$1 --numeric-owner -df - > $here/delta || true
    if grep -v ': Mod time differs$' $here/delta; then echo "part $1 differs"; return 1; fi
    dd if=/dev/vda bs=1M skip=$list count=$((bytes / 1048576 + 1)) iflag=direct status=none | head -c $bytes > $here/wanted
    (cd /mnt/$DIR/$1; find . -mindepth 1 \( -type d -printf '%T@\t%y\t%m\t%U\t%G\t0\t0\t%P\t\0' -o \
        -type p -printf '%T@\t%y\t%m\t%U\t%G\t%n\t0\t%P\t\0' -o \
        -printf '%T@\t%y\t%m\t%U\t%G\t%n\t%s\t%P\t%l\0' \)) > $here/found
    # A line each, even if a name should hold a line's end.
    for list in wanted found; do tr '\0\n' '\n\1' < $here/$list > $here/$list.lines; done
    busybox awk '
        { at = index($0, "\t"); time = substr($0, 1, at - 1); rest = substr($0, at + 1) }
        NR == FNR { wanted[rest] = time; next }
        !(rest in wanted) { print "not wanted: " $0; next }
        time != wanted[rest] { print (time > wanted[rest] && rest ~ /^f/ ? "later: " : "time: ") $0 " instead of " wanted[rest] }
        { delete wanted[rest]; names++ }
        END { for (rest in wanted) print "missing: " wanted[rest] "\t" rest; print "names: " names }
    ' $here/wanted.lines $here/found.lines > $here/names
    rm $here/wanted* $here/found*
}

parts=($PARTS) number=0 names=0 later=0
while [ $number -lt $COUNT ]; do
    first=$number running=()
    while [ $number -lt $COUNT ] && [ ${#running[@]} -lt ${STREAMS:-1} ]; do
        differ $number ${parts[number]} &
        running+=($!) number=$((number + 1))
    done
    for each in ${running[@]}; do wait $each; done
    while [ $first -lt $number ]; do
        found=/tmp/part-$first/names
        later=$((later + $(grep -c '^later: ' $found || true)))
        if [ $later -gt ${LATER:-0} ] || grep -E '^(not wanted|time|missing): ' $found; then
            grep '^later: ' $found || true
            echo "names of part $first differ"; exit 1
        fi
        names=$((names + $(sed -n 's/^names: //p' $found)))
        echo "equal $first"
        first=$((first + 1))
    done
done
[ "${REMOVE:-0}" = 0 ] || { rm -rf /mnt/$DIR; [ ! -e /mnt/$DIR ]; }
echo "$number parts with $names names compare equal, $later of them with a later time"
