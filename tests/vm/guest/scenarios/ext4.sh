# shellcheck shell=sh
# SPDX-License-Identifier: MIT
# As a plain block device: a file system that is the same after it was unmounted, sound, and gone after a discard.
need mkfs.ext4 e2fsprogs
modprobe ext4 || fail "no ext4"
up e 64M --no-swapon
device=$(status_of e device)
mkfs.ext4 -q "$device" || fail "mkfs.ext4"
mount -t ext4 -o discard "$device" /mnt || fail "mount"
mkdir /mnt/files
for size in 1 3 40 700 4096; do
    dd if=/dev/urandom of="/mnt/files/$size" bs=1k count="$size" 2>/dev/null || fail "write"
done
cp -r /vm /bin/busybox /mnt/files
rm /mnt/files/700
(cd /mnt/files && find . -type f -exec md5sum {} +) >/tmp/sums.out
umount /mnt
fsck.ext4 -fn "$device" || fail "fsck"
mount -t ext4 "$device" /mnt || fail "mount again"
(cd /mnt/files && md5sum -c -s /tmp/sums.out) || fail "files differ"
wc -l </tmp/sums.out
umount /mnt
blkdiscard "$device" || fail "blkdiscard"
expect "$(status_of e stored_bytes)" -eq 0
cmp -n 1048576 "$device" /dev/zero || fail "not zeros after discard"
down e
