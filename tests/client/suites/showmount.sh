#!/bin/bash
# Port mapper and MOUNT as a user sees them, over TCP and UDP; mounts found through port 111 alone.
set -eu
exec 2>&1
load nfs nfsv3
rpcinfo -p $SERVER
for want in "100000 *2 *tcp *111" "100000 *2 *udp *111" "100003 *3 *tcp *$NFS_PORT" "100005 *3 *tcp *$MOUNT_PORT"; do
    rpcinfo -p $SERVER | grep -qE "$want" || { echo "rpcinfo: no $want"; exit 1; }
done
showmount --no-headers -e $SERVER | grep -qE '^/ ' || { echo "no export /"; exit 1; }
mkdir -p /mnt
mount.nfs $SERVER:/ /mnt -o vers=3,proto=tcp,nolock
mkdir -p /mnt/volumes/../sub/dir
showmount -a $SERVER
umount /mnt
for path in /sub/dir /sub /; do
    mount.nfs $SERVER:$path /mnt -o vers=3,proto=tcp,nolock
    umount /mnt
done
mount.nfs $SERVER:/nothing /mnt -o vers=3,proto=tcp,nolock,retry=0 && { echo "mounted what is not there"; exit 1; }
nfs-mount / /mnt && rmdir /mnt/sub/dir /mnt/sub && umount /mnt
echo "exports, mounts and sub-mounts through port 111"
