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
# utimensat::y2038 sets a time in 2106, one second beyond what 32 bits of seconds hold (nfstime3, RFC 1813 section 2.5).
# unlink::open_file_not_freed wants no link left on a file that is open and removed: NFSv3 clients rename it instead, to
# .nfsXXXX, and remove that name at the last close (trap V3-13).
expected_failures = ["utimensat::y2038", "unlink::open_file_not_freed"]
[dummy_auth]
entries = [["nobody", "nobody"], ["tests", "tests"]]
T
cd /mnt/pjd
NO_COLOR=1 pjdfstest -c /tmp/pjd.toml -p /mnt/pjd > /tmp/pjd.log && rc=0 || rc=$?
[ $rc = 0 ] || grep -A4 -E 'FAILED|UNEXPECTEDLY' /tmp/pjd.log
cd /; rm -rf /mnt/pjd
tail -1 /tmp/pjd.log
exit $rc
