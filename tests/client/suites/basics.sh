#!/bin/bash
# What a person does first, and what the server promises about it.
set -eu
exec 2>&1
nfs-mount / /mnt
cd /mnt
rm -rf basics; mkdir basics; cd basics
fail() { echo "$*"; exit 1; }

# Content, holes, truncation, append, large offsets.
dd if=/dev/urandom of=/tmp/data bs=1M count=24 2>/dev/null
cp /tmp/data copy; sync copy; cmp /tmp/data copy || fail "copy differs"
truncate -s 10G sparse; [ "$(stat -c %s sparse)" = $((10 << 30)) ] || fail "size of sparse"
printf tail | dd of=sparse bs=1 seek=$(((10 << 30) - 4)) conv=notrunc 2>/dev/null
[ "$(tail -c 4 sparse)" = tail ] || fail "tail of sparse"
[ $(stat -c %b sparse) -lt 100000 ] || fail "sparse is not sparse"
truncate -s 5 copy; [ "$(stat -c %s copy)" = 5 ] || fail "truncate"
for i in $(seq 100); do echo $i >> append; done
[ $(wc -l < append) = 100 ] || fail append

# Names: many, long, odd, hard and symbolic links, renames over others.
for i in $(seq 500); do : > many-$i; done
[ $(ls | grep -c many-) = 500 ] || fail "listing"
rm many-*; [ -z "$(ls | grep many-)" ] || fail "not all removed"
long=$(printf 'x%.0s' $(seq 255)); : > $long; [ -e $long ]; rm $long
if (: > ${long}x) 2>/dev/null; then fail "a name of 256 bytes"; fi
: > "$(printf 'odd \n\t name')"; rm odd*
ln copy hard; [ "$(stat -c %h copy)" = 2 ] || fail links
ln -s copy soft; [ "$(readlink soft)" = copy ] || fail readlink
echo a > a; echo b > b; mv a b; [ "$(cat b)" = a ] || fail "rename over"
mkdir d1 d2; mv d1 d2; if rmdir d2 2>/dev/null; then fail "rmdir of what is not empty"; fi
mkfifo fifo; [ -p fifo ] || fail fifo
mknod null c 1 3; [ -c null ] || fail mknod

# Open and removed: readable until closed.
echo kept > open; exec 3< open; rm open; [ "$(cat <&3)" = kept ] || fail "open and removed"; exec 3<&-

# Exclusive create and permissions.
(set -C; echo 1 > excl); if (set -C; echo 2 > excl) 2>/dev/null; then fail "created twice"; fi
chmod 0444 excl; chown 1001:1001 .
setuidgid() { /bin/busybox su tests -s /bin/sh -c "cd /mnt/basics; $1"; }
setuidgid 'umask 0; echo mine > mine; chmod 0400 mine; cat mine >/dev/null' || fail "owner"
if setuidgid 'echo x >> excl' 2>/dev/null; then fail "wrote what is not theirs"; fi

# Two mounts of the same: what one changes the other sees.
mkdir -p /mnt2; nfs-mount /basics /mnt2 nosharecache,noac
echo first > /mnt2/shared; [ "$(cat shared)" = first ] || fail "not seen"
sleep 0.1; echo second > shared; sync shared
[ "$(cat /mnt2/shared)" = second ] || fail "not seen on the other mount"
umount /mnt2

# Direct I/O and many writers.
dd if=/tmp/data of=direct bs=1M oflag=direct 2>/dev/null; cmp /tmp/data direct || fail direct
for i in 1 2 3 4; do dd if=/tmp/data of=par$i bs=64k 2>/dev/null & done; wait
for i in 1 2 3 4; do cmp /tmp/data par$i || fail "parallel $i"; done

# After the mount is made anew: everything is as it was.
cd /; umount /mnt; nfs-mount / /mnt; cd /mnt/basics
for i in 1 2 3 4; do cmp /tmp/data par$i || fail "par$i after remount"; done
df /mnt | tail -1
cd /mnt; rm -rf basics; [ ! -e basics ] || fail "rm -rf"
echo "content, names, links, permissions, two mounts, direct I/O, remount"
