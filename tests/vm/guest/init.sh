#!/bin/sh
# SPDX-License-Identifier: MIT
# Process 1 of the guest: mounts what programs expect, then runs /vm/command, scenarios or a shell, and switches off.
# Standard output is the console (ttyS0); file descriptor 9 is the report (ttyS1), which kernel messages never break.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for folder in /dev/shm /tmp /run; do mount -t tmpfs tmpfs "$folder"; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
echo /bin/modprobe >/proc/sys/kernel/modprobe
ip link set lo up

stty -F /dev/ttyS1 -opost 2>/dev/null
exec 9>/dev/ttyS1
echo "VM-BOOTED $(uname -r) $(cut -d' ' -f1 /proc/uptime)" >&9

# shellcheck source=/dev/null
[ -e /vm/environment ] && . /vm/environment

for module in loop fuse nbd ublk_drv; do modprobe "$module" 2>/dev/null; done

if grep -qw vm.shell /proc/cmdline; then
    setsid cttyhack sh
elif [ -e /vm/command ]; then
    sh /vm/command
    echo "VM-STATUS $?" >&9
else
    sh /vm/scenarios.sh
fi
sync
poweroff -f
