#!/bin/bash
# git: clone over its own protocol onto the mount, check, work, pack, clone again from there.
set -eu
exec 2>&1
export GIT_AUTHOR_NAME=t GIT_AUTHOR_EMAIL=t@t GIT_COMMITTER_NAME=t GIT_COMMITTER_EMAIL=t@t GIT_CONFIG_COUNT=2 \
    GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*' GIT_CONFIG_KEY_1=core.fsync GIT_CONFIG_VALUE_1=all
nfs-mount / /mnt
rm -rf /mnt/git; mkdir -p /mnt/git /tmp/src
tar -C /tmp/src -xf /dev/vda
cd /tmp/src; git init -q; git add -A; git commit -qm one
cd /mnt/git
git clone -q file:///tmp/src work
cd work
git fsck --full --strict
[ -z "$(git status --porcelain)" ] || { git status; exit 1; }
for i in 1 2 3 4 5; do
    for f in $(git ls-files | head -20); do echo "$i" >> "$f"; done
    git commit -qam "change $i"
done
git gc -q --prune=now
git fsck --full --strict
cd ..; git clone -q file:///mnt/git/work again
diff -r -x .git work again
cd /; umount /mnt; nfs-mount / /mnt
git -C /mnt/git/again fsck --full --strict
[ -z "$(git -C /mnt/git/work status --porcelain)" ]
n=$(git -C /mnt/git/work rev-list --objects --all | wc -l)
rm -rf /mnt/git
echo "$n objects cloned, changed, packed, cloned and checked"
