#!/bin/bash
# pjdfstest: what POSIX says of every system call on files, as several users.
set -eu
exec 2>&1
nfs-mount / /mnt
mkdir -p /mnt/pjd; chmod 0777 /mnt/pjd
cat > /tmp/pjd.toml <<'T'
# What NFSv3 has no procedure for stays off: file flags, NFSv4 ACLs, birth time, posix_fallocate.
[features]
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nobody"], ["tests", "tests"]]
T
cd /mnt/pjd
pjdfstest -c /tmp/pjd.toml -p /mnt/pjd > /tmp/pjd.log && rc=0 || rc=$?
tail -400 /tmp/pjd.log
cd /; rm -rf /mnt/pjd
exit $rc
